"""iStar's network: published size and activation, what a spot is of its superpixels, and genes of one value."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from sthist.nets import IStar
from sthist.nets._expression.istar import activation


def test_the_published_network_has_as_many_parameters():
    """579 features, four layers of 256, 1,000 genes; five of them."""
    one = 579 * 256 + 256 + 3 * (256 * 256 + 256) + 256 * 1000 + 1000
    assert one == 602_856
    for members in (1, 5):
        assert sum(each.numel() for each in IStar(579, 1000, members=members).parameters()) == members * one


def test_the_activation_is_above_zero():
    values = activation(torch.tensor([-50.0, -1.0, 0.0, 2.0], dtype=torch.float64)).numpy()
    expected = [0.0, 0.01 * np.exp(-1.0), 0.01, 2.01]
    np.testing.assert_allclose(values, expected, atol=1e-12)
    assert (activation(torch.linspace(-30, 5, 100, dtype=torch.float64)) > 0).all()


def test_a_spot_of_equal_superpixels_is_as_each_of_them():
    torch.manual_seed(0)
    for logarithms in (False, True):
        net = IStar(4, 3, hidden=8, members=3, low=torch.ones(3), high=torch.tensor([2.0, 5.0, 90.0]))
        net.logarithms = logarithms
        features = torch.randn(2, 1, 4)
        each = net.superpixels(features)[:, 0]
        spots = net({"cells": features.expand(2, 37, 4), "weight": torch.full((2, 37), 1 / 37)})
        torch.testing.assert_close(spots, torch.log1p(each) if logarithms else each)


def test_a_spot_is_the_mean_of_what_its_superpixels_have():
    """Of what adds up, not of logarithms; superpixels of no weight take no part; the median of the members counts."""
    torch.manual_seed(1)
    net = IStar(4, 2, hidden=8, members=3, high=torch.tensor([10.0, 100.0]), logarithms=True)
    features = torch.randn(1, 5, 4)
    weight = torch.tensor([[0.5, 0.25, 0.25, 0.0, 0.0]])
    members = np.stack([activation(member(features[0])).detach().numpy() for member in net.members])
    superpixels = np.sort(members, axis=0)[1] * [10.0, 100.0]
    expected = np.log1p(0.5 * superpixels[0] + 0.25 * superpixels[1] + 0.25 * superpixels[2])
    found = net({"cells": features, "weight": weight}).detach().numpy()[0]
    np.testing.assert_allclose(found, expected, rtol=1e-5)


def test_ranges_of_genes_are_undone():
    """What a network says on the scale of 0 to 1 comes back in the units of the targets, and is compared there."""
    low, high = torch.tensor([2.0, 0.0]), torch.tensor([10.0, 4.0])
    net = IStar(3, 2, hidden=4, members=1, low=low, high=high)
    with torch.no_grad():
        for each in net.parameters():
            each.zero_()
        net.members[0][-1].bias.copy_(torch.tensor([0.24, 0.99]))  # 0.25 and 1 after the activation
    batch = {"cells": torch.randn(6, 4, 3)}
    torch.testing.assert_close(net(batch), torch.tensor([[4.0, 4.0]]).expand(6, 2))
    for said, expected in (([4.0, 4.0], 0.0), ([10.0, 0.0], (0.75**2 + 1.0) / 2)):
        loss = net.losses(batch, torch.tensor([said]).expand(6, 2))["loss"]
        assert loss.item() == pytest.approx(expected, rel=1e-5, abs=1e-12)


def test_a_gene_of_one_value_has_it_everywhere():
    value = torch.tensor([3.0, 0.0])
    net = IStar(3, 2, hidden=4, low=value, high=torch.tensor([3.0, 1.0]))
    batch = {"cells": torch.randn(5, 4, 3)}
    assert (net(batch)[:, 0] == 3.0).all()
    assert torch.isfinite(net.losses(batch, value.expand(5, 2))["loss"])


def test_genes_that_were_not_measured_do_not_count():
    torch.manual_seed(0)
    net = IStar(3, 2, hidden=4, members=2)
    batch, targets = {"cells": torch.randn(4, 5, 3)}, torch.rand(4, 2)
    mask = torch.tensor([[True, False]]).expand(4, 2)
    changed = torch.where(mask, targets, 77.0)
    torch.testing.assert_close(net.losses(batch, targets, mask)["loss"], net.losses(batch, changed, mask)["loss"])


def test_ranges_are_one_value_per_gene():
    with pytest.raises(ValueError, match="low has the shape"):
        IStar(3, 2, low=torch.zeros(3))
