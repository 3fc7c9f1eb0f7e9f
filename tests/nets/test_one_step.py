"""The step from a latent to the clean one."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from sthist.nets import SMALL, Turbo, one_step_coefficients


def test_coefficients_are_the_published():
    assert one_step_coefficients(999) == pytest.approx((14.64882, 14.61465), abs=2e-5)


@pytest.mark.parametrize("timestep", [999, 499, 0])
def test_equals_the_scheduler_of_diffusers(timestep):
    from diffusers import DDPMScheduler

    scheduler = DDPMScheduler(
        beta_start=0.00085,
        beta_end=0.012,
        beta_schedule="scaled_linear",
        clip_sample=False,
        timestep_spacing="trailing",
    )
    kept = scheduler.alphas_cumprod[timestep]
    keep, remove = one_step_coefficients(timestep)
    assert keep == pytest.approx(float(kept**-0.5), rel=1e-6)
    assert remove == pytest.approx(float(((1 - kept) / kept) ** 0.5), rel=1e-6)
    if timestep == 999:
        scheduler.set_timesteps(1)
        latent, noise = torch.randn(2, 1, 4, 8, 8)
        expected = scheduler.step(noise, 999, latent).prev_sample
        torch.testing.assert_close(keep * latent - remove * noise, expected, rtol=1e-5, atol=1e-4)


def test_a_perfect_prediction_gives_the_clean_latent():
    prompt = torch.zeros(1, SMALL.tokens, SMALL.text_dim)
    turbo = Turbo(replace(SMALL, timestep=999))
    clean, noisy = torch.randn(2, 1, 4, 8, 8)
    kept = turbo.coefficients[0] ** -2

    class Perfect(torch.nn.Module):
        def forward(self, latent, *_, **__):
            return type("Output", (), {"sample": (latent - kept**0.5 * clean) / (1 - kept) ** 0.5})

    turbo.unet = Perfect()
    torch.testing.assert_close(turbo.step(noisy, prompt), clean, atol=1e-4, rtol=1e-4)
