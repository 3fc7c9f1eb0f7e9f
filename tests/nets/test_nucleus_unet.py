"""The small network of nuclei: what it gives, and what decides about a pixel."""

from __future__ import annotations

import pytest
import torch

from sthist.nets import NucleusUNet


@pytest.fixture
def net():
    torch.manual_seed(0)
    return NucleusUNet(width=4).eval()


def test_two_planes_of_the_size_of_the_image(net):
    assert net.stride == 16
    with torch.inference_mode():
        assert net(torch.rand(2, 3, 48, 32)).shape == (2, 2, 48, 32)


def test_what_is_moved_by_a_stride_has_the_same_answer(net):
    pixels = torch.rand(1, 3, 256, 256)
    with torch.inference_mode():
        whole, moved = net(pixels), net(pixels[..., net.stride :, net.stride :])
    inner = slice(96, 144)  # beyond the reach of the borders
    here = slice(96 - net.stride, 144 - net.stride)
    assert torch.allclose(whole[..., inner, inner], moved[..., here, here], atol=1e-5)
    assert whole[..., inner, inner].std() > 0


def test_all_weights_learn(net):
    net.train()(torch.rand(2, 3, 32, 32)).square().mean().backward()
    assert all(each.grad is not None and each.grad.abs().sum() > 0 for each in net.parameters())
