"""Diffusion against its formulas, the numbers of the paper's schedule, and the scheduler of diffusers."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from sthist.nets import add_noise, ddim, ddim_times, diffusion_loss, guided, kept_signal, min_snr_weights, remove_noise

KEPT = kept_signal()


def images(n=2, px=8, seed=0, dtype=torch.float64):
    return torch.rand(n, 3, px, px, generator=torch.Generator().manual_seed(seed), dtype=dtype) * 2 - 1


def normal(n=2, px=8, seed=1, dtype=torch.float64):
    return torch.randn(n, 3, px, px, generator=torch.Generator().manual_seed(seed), dtype=dtype)


def test_schedule_is_the_product_of_what_each_step_keeps():
    betas = [1e-4 + (0.02 - 1e-4) * step / 999 for step in range(1000)]
    assert np.allclose(KEPT, np.cumprod(1 - np.array(betas)), rtol=1e-12)
    assert KEPT[999].item() == pytest.approx(4.04e-5, abs=5e-8)


def test_noise_keeps_the_variance_of_unit_data():
    data, noise = normal(64, 32, seed=2), normal(64, 32, seed=3)
    for time in (0, 100, 500, 999):
        assert add_noise(data, noise, KEPT[time]).var().item() == pytest.approx(1, abs=0.02)


@pytest.mark.parametrize("time", [0, 37, 500, 999])
def test_noise_that_is_known_can_be_removed_and_found_again(time):
    clean, noise, kept = images(), normal(), KEPT[time]
    noisy = add_noise(clean, noise, kept)
    found = remove_noise(noisy, noise, kept)
    assert torch.allclose(found, clean, atol=1e-10)
    assert torch.allclose((noisy - kept.sqrt() * found) / (1 - kept).sqrt(), noise, atol=1e-9)


def test_min_snr_weights_are_those_of_the_linear_schedule():
    weights, snr = min_snr_weights(KEPT), KEPT / (1 - KEPT)
    assert int((weights < 1).sum()) == 130
    assert weights[0].item() == pytest.approx(5.0e-4, rel=2e-3)
    assert weights[100].item() == pytest.approx(0.586, abs=5e-4)
    assert (weights[snr <= 5] == 1).all()
    assert torch.allclose(weights, torch.minimum(snr, torch.tensor(5.0)) / snr)
    assert (min_snr_weights(KEPT, float("inf")) == 1).all()


def test_loss_is_the_weighted_error_of_the_noise():
    clean, noise, times = images(3), normal(3), torch.tensor([0, 100, 900])
    loss = diffusion_loss(lambda noisy, _: torch.zeros_like(noisy), clean, times, noise)
    weights = min_snr_weights(KEPT)[times].numpy()
    expected = np.mean([w * np.mean(each.numpy() ** 2) for w, each in zip(weights, noise, strict=True)])
    assert loss.item() == pytest.approx(expected, rel=1e-5)


def test_times_are_those_of_the_paper_and_end_without_noise():
    times = ddim_times(250)
    assert (times[:4], times[-3:], len(times)) == ([999, 995, 991, 987], [7, 3, -1], 251)
    for steps in (1, 7, 300, 999, 1000):
        times = ddim_times(steps)
        assert (times[0], times[-1], len(times)) == (999, -1, steps + 1)
        assert all(a > b for a, b in zip(times, times[1:], strict=False))
    for steps in (0, 1001, 2.5, float("nan")):
        with pytest.raises(ValueError, match="from 1 to 1000"):
            ddim_times(steps)


@pytest.mark.parametrize("steps", [1, 3, 50, 300])
def test_sampling_with_the_true_noise_gives_the_image(steps):
    clean = images()

    def true_noise(noisy, times):
        return (noisy - KEPT[times].sqrt() * clean) / (1 - KEPT[times]).sqrt()

    for clip in (True, False):
        assert torch.allclose(ddim(true_noise, normal(), steps, clip=clip), clean, atol=1e-8)


def test_sampling_is_that_of_diffusers_where_steps_divide_the_schedule():
    from diffusers import DDIMScheduler

    def network(noisy, time):  # any function that stays finite
        return torch.tanh(noisy * 1.3 + 0.1) * (0.5 + float(time) / 2000)

    scheduler = DDIMScheduler(
        beta_start=1e-4, beta_end=0.02, beta_schedule="linear", timestep_spacing="trailing", clip_sample=True
    )
    scheduler.set_timesteps(50)
    noise = normal(dtype=torch.float32)
    sample = noise
    for time in scheduler.timesteps:
        step = scheduler.step(network(sample, time), int(time), sample, eta=0.0, use_clipped_model_output=True)
        sample = step.prev_sample
    assert ddim_times(50)[:-1] == scheduler.timesteps.tolist()
    assert torch.allclose(ddim(network, noise, 50), sample, atol=1e-4)
    assert torch.equal(ddim(network, noise, 50), ddim(network, noise, 50))


class Counting(torch.nn.Module):
    """Noise that depends on the modulation, in a way that is not linear; counts its passes."""

    passes = 0

    def forward(self, noisy, times, modulation=None):
        self.passes += 1
        change = torch.zeros(len(noisy), 1) if modulation is None else modulation.mean(1, keepdim=True)
        return torch.sin(noisy * (1 + change[:, :, None, None])) + times.view(-1, 1, 1, 1) / 1000


def test_guidance_is_linear_in_its_scale_and_one_pass():
    net, noisy, time = Counting(), normal(dtype=torch.float32), torch.tensor([300])
    modulation = torch.randn(2, 6, generator=torch.Generator().manual_seed(4))
    null, conditional = net(noisy, time), net(noisy, time, modulation)
    assert torch.equal(guided(net, modulation, 0)(noisy, time), null)
    assert torch.equal(guided(net, modulation, 1)(noisy, time), conditional)
    for scale in (0.3, 0.7, 3.0):
        net.passes = 0
        assert torch.allclose(
            guided(net, modulation, scale)(noisy, time), null + scale * (conditional - null), atol=1e-5
        )
        assert net.passes == 1
