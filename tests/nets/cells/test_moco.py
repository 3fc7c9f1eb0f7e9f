"""MoCo v3: its loss against a formula, the encoder that follows, LARS against its definition."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from torch import nn

from sthist.nets import LARS, MoCo, cell_backbone, contrastive_loss
from sthist.nets._cells.moco import momentum_at, rate_at, spread_of


class Small(nn.Module):
    """A backbone of one layer."""

    num_features = 6

    def __init__(self):
        super().__init__()
        self.layer = nn.Linear(12, 6)

    def forward(self, images):
        return self.layer(images.flatten(1))


def views(seed=0, n=8):
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(n, 3, 2, 2, generator=generator), torch.randn(n, 3, 2, 2, generator=generator)


def test_loss_of_equal_queries_and_keys_is_the_formula():
    queries = torch.randn(10, 5, dtype=torch.float64)
    unit = queries / queries.norm(dim=1, keepdim=True)
    terms = [-1 + math.log(sum(math.exp(float(a @ b)) for b in unit)) for a in unit]
    assert float(contrastive_loss(queries, queries)) == pytest.approx(2 * np.mean(terms), abs=1e-9)


@pytest.mark.parametrize("temperature", [1.0, 0.2])
def test_loss_at_a_temperature_and_with_keys_of_other_devices(temperature):
    queries, keys = torch.randn(4, 5), torch.randn(12, 5)
    unit, others = (each / each.norm(dim=1, keepdim=True) for each in (queries, keys))
    similar = (unit @ others.T / temperature).numpy()
    terms = [np.log(np.exp(row).sum()) - row[4 + i] for i, row in enumerate(similar)]
    found = contrastive_loss(queries, keys, 4, temperature=temperature)
    assert float(found) == pytest.approx(2 * temperature * np.mean(terms), rel=1e-5)


def test_both_views_are_query_and_key():
    torch.manual_seed(0)
    net = MoCo(Small(), hidden=7, dim=5)
    first, second = views()
    with torch.no_grad():
        loss, embedded = net(first, second)
        q1, q2 = (net.predictor(net.projector(net.backbone(each))) for each in (first, second))
        k1, k2 = (net.key_projector(net.key_backbone(each)) for each in (first, second))
    assert float(loss) == pytest.approx(float(contrastive_loss(q1, k2) + contrastive_loss(q2, k1)), rel=1e-5)
    torch.testing.assert_close(embedded, net.backbone(first))


def test_momentum_1_keeps_the_keys_encoder_and_0_copies():
    net = MoCo(Small(), hidden=7, dim=5)
    before = [each.clone() for each in net.key_backbone.parameters()]
    for each in net.backbone.parameters():
        each.data += 1
    net.follow(1.0)
    assert all(torch.equal(a, b) for a, b in zip(before, net.key_backbone.parameters(), strict=True))
    net.follow(0.75)
    for old, now in zip(before, net.key_backbone.parameters(), strict=True):
        torch.testing.assert_close(now, old + 0.25)
    net.follow(0.0)
    for base, key in ((net.backbone, net.key_backbone), (net.projector, net.key_projector)):
        assert all(torch.equal(a, b) for a, b in zip(base.parameters(), key.parameters(), strict=True))


def test_keys_take_no_gradient():
    net = MoCo(Small(), hidden=7, dim=5)
    net(*views())[0].backward()
    assert all(each.grad is None for each in net.key_backbone.parameters())
    assert all(each.grad is not None for each in [*net.backbone.parameters(), *net.predictor.parameters()])


def test_one_process_needs_no_process_group():
    assert not torch.distributed.is_initialized()
    assert torch.isfinite(MoCo(Small(), hidden=7, dim=5)(*views())[0])


def test_published_projector_and_predictor():
    net = MoCo(Small())
    n_weights = [sum(each.numel() for each in part.parameters()) for part in (net.projector, net.predictor)]
    assert n_weights == [6 * 4096 + 2 * 4096 + 4096 * 256, 256 * 4096 + 2 * 4096 + 4096 * 256]
    assert net.projector[-1].affine is False
    assert isinstance(net.predictor[-1], nn.Linear)


def test_lars_is_its_definition():
    torch.manual_seed(0)
    matrix, bias = nn.Parameter(torch.randn(3, 4)), nn.Parameter(torch.randn(3))
    expected = [matrix.detach().numpy().copy(), bias.detach().numpy().copy()]
    velocity = [np.zeros((3, 4)), np.zeros(3)]
    optimizer = LARS([matrix, bias], lr=0.5, weight_decay=0.1, momentum=0.9, trust=0.01)
    for step in range(3):
        gradients = [torch.full((3, 4), 1.0 + step), torch.full((3,), 2.0)]
        matrix.grad, bias.grad = gradients
        optimizer.step()
        change = gradients[0].numpy() + 0.1 * expected[0]
        change = change * 0.01 * np.linalg.norm(expected[0]) / np.linalg.norm(change)
        velocity = [0.9 * velocity[0] + change, 0.9 * velocity[1] + gradients[1].numpy()]
        expected = [value - 0.5 * each for value, each in zip(expected, velocity, strict=True)]
    np.testing.assert_allclose(matrix.detach(), expected[0], rtol=1e-5)
    np.testing.assert_allclose(bias.detach(), expected[1], rtol=1e-5)


def test_lars_leaves_what_has_no_gradient_and_moves_from_zero():
    zero, idle = nn.Parameter(torch.zeros(2, 2)), nn.Parameter(torch.ones(2, 2))
    optimizer = LARS([zero, idle], lr=0.5)
    zero.grad = torch.ones(2, 2)
    optimizer.step()
    assert torch.equal(zero.data, torch.full((2, 2), -0.5))
    assert torch.equal(idle.data, torch.ones(2, 2))


def test_rate_rises_and_falls():
    assert [rate_at(epoch, 10, 30) for epoch in (0, 5, 10, 20, 30)] == pytest.approx([0, 0.5, 1, 0.5, 0])
    assert [momentum_at(epoch, 10, 0.9) for epoch in (0, 5, 10)] == pytest.approx([0.9, 0.95, 1])


def test_spread_of_one_direction_is_0_and_of_all_about_1():
    assert float(spread_of(torch.ones(50, 8) * torch.rand(50, 1))) == pytest.approx(0, abs=1e-6)
    assert float(spread_of(torch.randn(5000, 64))) == pytest.approx(1, abs=0.02)


@pytest.mark.parametrize(("name", "stem", "side"), [("resnet10t", "standard", 1), ("resnet18", "small", 4)])
def test_backbones(name, stem, side):
    network = cell_backbone(name, width=0.125, stem=stem).eval()
    maps = network.forward_features(torch.zeros(1, 3, 32, 32))
    assert maps.shape == (1, network.num_features, side, side)
    assert network.num_features == 64


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("resnet17",), "timm has no network 'resnet17'"),
        (("vit_tiny_patch16_224",), "is no residual network"),
        (("resnet18", -1), "width is -1"),
        (("resnet18", 1.0, "large"), "stem is 'large'"),
    ],
)
def test_backbones_that_there_are_not(arguments, message):
    name, *rest = arguments
    with pytest.raises(ValueError, match=message):
        cell_backbone(name, **dict(zip(("width", "stem"), rest, strict=False)))
