"""The U-Net of C2L-ST against the published one's counts, and the adapter, which begins as nothing."""

from __future__ import annotations

import pytest
import torch

from sthist.nets import DiffusionUNet, GeneAdapter, drop_conditions, guided

SITES = (*(64,) * 4, *(128,) * 2, *(256,) * 2, 512, 512, 512, 512, 256, 256, 128, 128, 64, 64, 64)


@pytest.fixture(scope="module")
def small():
    torch.manual_seed(0)
    return DiffusionUNet(8, (1, 2)).eval()


def noisy(n=2, px=16, seed=0):
    return torch.randn(n, 3, px, px, generator=torch.Generator().manual_seed(seed))


def adapter_for(unet, n_inputs=5, **options):
    """An adapter that has learned something."""
    adapter = GeneAdapter(n_inputs, unet.sites, **options)
    for parameter in adapter.parameters():
        torch.nn.init.normal_(parameter, std=0.1)
    return adapter


def test_has_the_parameters_and_sites_of_the_published_one():
    with torch.device("meta"):
        unet = DiffusionUNet()
    assert sum(each.numel() for each in unet.parameters()) == 35_711_491
    assert unet.sites == SITES
    assert (len(unet.sites), sum(unet.sites)) == (19, 4032)
    images = torch.zeros(2, 3, 40, 40, device="meta")
    times = torch.zeros(2, device="meta", dtype=torch.int64)
    assert unet(images, times, torch.zeros(2, 8064, device="meta")).shape == images.shape
    for px in (20, 36):
        with pytest.raises(ValueError, match="multiples of 8"):
            unet(images[..., :px, :px], times)


@pytest.mark.parametrize(("latent", "n"), [(64, 540_224), (128, 1_072_384), (256, 2_136_704)])
def test_adapter_has_the_parameters_of_one_layer_per_block(latent, n):
    with torch.device("meta"):
        adapter = GeneAdapter(250, SITES, latent)
    assert sum(each.numel() for each in adapter.parameters()) == n


def test_sides_that_are_no_multiples_are_refused(small):
    assert small(noisy(px=18), torch.tensor([3])).shape == (2, 3, 18, 18)
    with pytest.raises(ValueError, match=r"17 x 17 px; .* multiples of 2"):
        small(noisy(px=17), torch.tensor([3]))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_fresh_adapter_leaves_the_network_as_it_is_to_the_last_bit(small, dtype):
    adapter, images, times = GeneAdapter(5, small.sites), noisy(), torch.tensor([3, 800])
    with torch.no_grad(), torch.autocast("cpu", dtype, enabled=dtype != torch.float32):
        modulation = adapter(100 * noisy(2, 5)[:, 0, 0])
        assert torch.equal(small(images, times, modulation), small(images, times))


def test_every_site_is_modulated_by_its_own_part(small):
    images, times = noisy(1), torch.tensor([500])
    place = 0
    with torch.no_grad():
        plain = small(images, times)
        for channels in small.sites:
            for part in (slice(place, place + channels), slice(place + channels, place + 2 * channels)):
                modulation = torch.zeros(1, 2 * sum(small.sites))
                modulation[:, part] = 0.5
                assert not torch.allclose(small(images, times, modulation), plain)
            place += 2 * channels
    assert place == 2 * sum(small.sites)


def test_some_sites_can_be_left_out(small):
    made = adapter_for(small, where="mid+up")(torch.ones(1, 5))
    down = 2 * sum(small.sites[:4])
    assert made.shape == (1, 2 * sum(small.sites))
    assert (made[:, :down] == 0).all()
    assert (made[:, down:] != 0).all()
    with pytest.raises(ValueError, match="one of"):
        GeneAdapter(5, small.sites, where="down")


def test_gradients_reach_the_adapter_alone(small):
    adapter = adapter_for(small)
    small.requires_grad_(False)
    small(noisy(), torch.tensor([3, 800]), adapter(torch.ones(2, 5))).sum().backward()
    small_has = [each.grad is not None for each in small.parameters()]
    small.requires_grad_(True)
    assert not any(small_has)
    assert all(float(each.grad.abs().sum()) > 0 for each in adapter.parameters())


def test_conditions_are_dropped_with_the_probability():
    modulation = torch.ones(2000, 3)
    assert (drop_conditions(modulation, 1.0) == 0).all()
    assert (drop_conditions(modulation, 0.0) == 1).all()
    torch.manual_seed(0)
    rows = drop_conditions(modulation, 0.1)
    assert ((rows == 0).all(1) | (rows == 1).all(1)).all()
    assert (rows == 0).all(1).double().mean().item() == pytest.approx(0.1, abs=0.03)


def test_guidance_of_one_batch_is_that_of_two_passes(small):
    images, time = noisy(), torch.tensor([400])
    with torch.no_grad():
        modulation = adapter_for(small)(noisy(2, 5)[:, 0, 0])
        null, conditional = small(images, time), small(images, time, modulation)
        assert torch.allclose(guided(small, modulation, 3.0)(images, time), null + 3 * (conditional - null), atol=1e-5)
        assert torch.equal(guided(small, modulation, 1)(images, time), conditional)
        assert torch.equal(guided(small, modulation, 0)(images, time), null)
