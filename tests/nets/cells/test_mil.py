"""Cells and the means over them, and the negative binomial: against loops, formulas and scipy."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from scipy import stats

from sthist.nets import CellNetwork, negative_binomial_mean, negative_binomial_total, segment_mean

SIZES = torch.tensor([3, 1, 4, 2])


@pytest.fixture(autouse=True)
def _seeded():
    torch.manual_seed(0)


def batch_of(cells, bag, n=4):
    return {"cells": cells, "bag": bag, "size": torch.bincount(bag, minlength=n)}


@pytest.fixture
def cells():
    return torch.randn(10, 6)


@pytest.fixture
def bag():
    return torch.repeat_interleave(torch.arange(4), SIZES)


@pytest.fixture
def net():
    return CellNetwork(6, 5).eval()


class TestMean:
    def test_is_a_loop_s_in_any_order(self, cells, bag):
        order = torch.randperm(10)
        found = segment_mean(cells[order], bag[order], SIZES)
        expected = torch.stack([cells[bag == each].mean(dim=0) for each in range(4)])
        torch.testing.assert_close(found, expected, atol=1e-6, rtol=0)

    def test_weight_of_a_cell_is_one_over_the_cells_of_its_spot(self, cells, bag):
        cells.requires_grad_()
        segment_mean(cells, bag, SIZES).sum().backward()
        expected = (1 / SIZES[bag].float())[:, None].expand(10, 6)
        torch.testing.assert_close(cells.grad, expected)

    def test_of_a_spot_without_cells(self, cells, bag):
        with pytest.raises(ValueError, match="Segment 4 has no rows"):
            segment_mean(cells, bag, torch.tensor([3, 1, 4, 2, 0]))


class TestNetwork:
    @pytest.mark.parametrize(("dim", "genes"), [(2048, 1000), (512, 130), (6, 51)])
    def test_parameters(self, dim, genes):
        n = sum(each.numel() for each in CellNetwork(dim, genes).parameters())
        assert n == dim * 256 + 256 + 2 * (256 * 256 + 256) + 256 * genes + genes
        for loss in ("nb-mean", "nb-total"):
            assert sum(each.numel() for each in CellNetwork(dim, genes, loss=loss).parameters()) == n + genes

    def test_spot_is_the_mean_of_its_cells_whatever_else_is_in_the_batch(self, net, cells, bag):
        each = net({"cells": cells})
        spots = net(batch_of(cells, bag))
        for spot in range(4):
            mine = bag == spot
            torch.testing.assert_close(spots[spot], each[mine].mean(dim=0), atol=1e-6, rtol=0)
            alone = net(batch_of(cells[mine], torch.zeros(int(mine.sum()), dtype=torch.long), 1))[0]
            torch.testing.assert_close(alone, spots[spot], atol=1e-6, rtol=0)

    def test_of_one_cell_and_of_cells_that_are_there_twice(self, net, cells, bag):
        spots = net(batch_of(cells, bag))
        torch.testing.assert_close(spots[1], net({"cells": cells})[3], atol=1e-6, rtol=0)
        twice = net(batch_of(torch.cat([cells, cells]), torch.cat([bag, bag])))
        torch.testing.assert_close(twice, spots, atol=1e-6, rtol=0)

    def test_is_never_negative_and_zero_gives_what_softplus_gives(self, net, cells):
        assert bool((net({"cells": 100 * cells}) >= 0).all())
        for each in net.parameters():
            torch.nn.init.zeros_(each)
        expected = np.log(2) / 20  # .034657
        assert net({"cells": cells}).detach().numpy() == pytest.approx(expected, abs=1e-6)

    def test_half_precision_is_taken(self, net, cells):
        torch.testing.assert_close(net({"cells": cells.half()}), net({"cells": cells.half().float()}))

    @pytest.mark.parametrize("loss", ["mse", "nb-mean", "nb-total"])
    def test_begins_at_the_mean(self, loss):
        mean = torch.tensor([0.0, 0.2, 3.0, 400.0])
        net = CellNetwork(3, 4, loss=loss, mean=mean).eval()
        torch.nn.init.zeros_(net.layers[-1].weight)
        found = net({"cells": torch.randn(2, 3)})[0].detach()
        torch.testing.assert_close(found[1:], mean[1:], rtol=1e-4, atol=1e-4)
        assert float(found[0]) < 0.04 * (1 if loss != "nb-total" else float(net.gene[0].detach().exp()))

    def test_unknown_loss(self):
        with pytest.raises(ValueError, match="loss is 'l1'"):
            CellNetwork(3, 4, loss="l1")


class TestNegativeBinomial:
    def test_is_scipy_s(self):
        counts, mean = torch.arange(6.0)[:, None], torch.tensor([0.1, 2.0, 30.0])
        theta = torch.tensor([0.5, 1.5, 20.0])
        found = negative_binomial_mean(counts.expand(6, 3), mean.expand(6, 3), theta.log())
        expected = stats.nbinom.logpmf(counts.numpy(), theta.numpy(), (theta / (theta + mean)).numpy())
        np.testing.assert_allclose(found, expected, rtol=2e-5)
        assert float(found[3, 1]) == pytest.approx(-2.167035, abs=2e-6)

    def test_by_total_count_is_torch_s(self):
        counts, total = torch.arange(6.0), torch.rand(6) + 0.1
        logits = torch.randn(6)
        expected = torch.distributions.NegativeBinomial(total, logits=logits).log_prob(counts)
        torch.testing.assert_close(negative_binomial_total(counts, total, logits), expected)

    def test_of_no_dispersion_is_poisson_s(self):
        counts, mean = torch.arange(8.0, dtype=torch.float64), torch.full((8,), 2.5, dtype=torch.float64)
        found = negative_binomial_mean(counts, mean, torch.tensor(np.log(1e7)))
        np.testing.assert_allclose(found, stats.poisson.logpmf(counts, 2.5), rtol=1e-5)

    @pytest.mark.parametrize("loss", ["nb-mean", "nb-total"])
    def test_loss_is_that_of_raw_counts_whose_mean_follows_the_size_factor(self, loss, cells, bag):
        net = CellNetwork(6, 5, loss=loss).eval()
        counts, factor = torch.randint(0, 9, (4, 5)).float(), torch.tensor([0.5, 1.0, 2.0, 3.0])
        batch = batch_of(cells, bag) | {"size_factor": factor}
        found = net.losses(batch, counts / factor[:, None])["loss"].detach()
        mean = (net(batch) * factor[:, None]).detach().numpy()
        gene = net.gene.detach().exp().numpy()
        theta = np.broadcast_to(gene, mean.shape) if loss == "nb-mean" else mean / gene
        expected = stats.nbinom.logpmf(counts.numpy(), theta, theta / (theta + mean)).sum(axis=1)
        assert float(found) == pytest.approx(-expected.mean(), rel=1e-4)

    def test_genes_that_were_not_measured_do_not_count(self, cells, bag):
        net = CellNetwork(6, 5, loss="nb-mean").eval()
        counts, mask = torch.randint(0, 9, (4, 5)).float(), torch.ones(4, 5, dtype=torch.bool)
        mask[:, 2] = False
        other = counts.clone()
        other[:, 2] = 7
        one, two = (net.losses(batch_of(cells, bag), each, mask)["loss"].detach() for each in (counts, other))
        assert float(one) == float(two)
