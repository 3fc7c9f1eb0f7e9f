"""The U-Net of pix2pix."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from sthist.nets import Pix2Pix, l2_loss


@pytest.fixture(autouse=True)
def _seeded():
    torch.manual_seed(0)


def test_size_is_that_of_the_paper():
    down = [(3, 64), (64, 128), (128, 256), (256, 512), *[(512, 512)] * 4]
    up = [(512, 512), *[(1024, 512)] * 3, (1024, 256), (512, 128), (256, 64), (128, 3)]
    weights = sum(16 * a * b for a, b in down + up)
    normed = [b for _, b in down[1:-1] + up[:-1]]
    expected = weights + 2 * sum(normed) + 64 + 512 + 3  # a bias where no norm follows
    with torch.device("meta"):
        network = Pix2Pix()
        assert network(torch.zeros(1, 3, 512, 256)).shape == (1, 3, 512, 256)
    assert sum(parameter.numel() for parameter in network.parameters()) == expected
    assert expected == pytest.approx(54.414e6, rel=1e-4)  # as its authors' later code prints it
    assert sum(isinstance(m, nn.Dropout) and m.p > 0 for m in network.modules()) == 3


@pytest.mark.parametrize("norm", ["batch", "instance", "none"])
@pytest.mark.parametrize("depth", [2, 3, 5])
def test_images_in_images_out(norm, depth):
    network = Pix2Pix(2, 4, width=4, max_width=8, depth=depth, norm=norm)
    found = network(torch.randn(1, 2, 2**depth, 2 ** (depth + 1)))
    assert found.shape == (1, 4, 2**depth, 2 ** (depth + 1))
    assert float(found.detach().abs().max()) <= 1


def test_an_image_comes_out_the_same_whatever_its_batch():
    network, images = Pix2Pix(width=4, depth=3).eval(), torch.randn(3, 3, 16, 16)
    torch.testing.assert_close(network(images)[1:2], network(images[1:2]), atol=1e-6, rtol=1e-5)
    assert torch.equal(network(images), network(images))


def test_skips_carry_what_the_bottleneck_cannot():
    network = Pix2Pix(width=4, depth=3, dropout=0.0, norm="none").eval()
    nn.init.zeros_(network.up[0][1].weight)  # nothing comes from the innermost level
    one, other = torch.randn(2, 1, 3, 16, 16)
    assert not torch.allclose(network(one), network(other), atol=1e-7)


def test_every_weight_learns():
    network = Pix2Pix(width=4, depth=3)
    l2_loss(network(torch.randn(2, 3, 16, 16)), torch.rand(2, 3, 16, 16)).backward()
    assert all(
        parameter.grad is not None and torch.isfinite(parameter.grad).all() for parameter in network.parameters()
    )


def test_it_learns_to_invert():
    network = Pix2Pix(width=8, depth=3, dropout=0.0)
    optimiser = torch.optim.Adam(network.parameters(), 1e-2, betas=(0.5, 0.999))
    images = nn.functional.interpolate(torch.rand(10, 3, 4, 4) * 1.6 - 0.8, size=(16, 16), mode="bilinear")
    for _ in range(150):
        optimiser.zero_grad()
        l2_loss(network(images[:8]), -images[:8]).backward()
        optimiser.step()
    network.eval()
    with torch.no_grad():
        left = l2_loss(network(images[8:]), -images[8:])
    assert float(left) < 0.3 * float(images[8:].square().mean())  # held out; 1.0 of it for an even image


def test_refused():
    with pytest.raises(ValueError, match="multiples of 8"):
        Pix2Pix(width=4, depth=3)(torch.zeros(1, 3, 16, 20))
    with pytest.raises(ValueError, match="two levels"):
        Pix2Pix(depth=1)
    with pytest.raises(ValueError, match="none of"):
        Pix2Pix(norm="layer")
