"""DeepSpot: against its definition member by member, and what order and padding change, which is nothing."""

from __future__ import annotations

import pytest
import torch

from sthist.nets import DeepSpot


@pytest.fixture(autouse=True)
def _seeded():
    torch.manual_seed(0)


def net_of(**options) -> DeepSpot:
    return DeepSpot(5, 4, **{"width": 7, "members": 3, **options}).eval()


def batch_of(n: int = 6, k: int = 5) -> dict[str, torch.Tensor]:
    mask = torch.rand(n, k) > 0.4
    mask[0], mask[1] = False, True
    return {
        "spot": torch.randn(n, 5),
        "subspots": torch.randn(n, 9, 5),
        "neighbours": torch.randn(n, k, 5),
        "neighbour_mask": mask,
    }


def by_loops(net: DeepSpot, batch: dict[str, torch.Tensor], row: int, width: int = 7, n_genes: int = 4) -> torch.Tensor:
    """The definition, for one spot."""

    def phi(embedding):
        members = []
        for m in range(net.members):
            part = slice(m * width, (m + 1) * width)
            members.append((net.phi.weight[part] @ embedding + net.phi.bias[part]).clamp(min=0))
        return torch.stack(members).sort(dim=0).values[(net.members - 1) // 2]

    around = [phi(each) for each in batch["neighbours"][row][batch["neighbour_mask"][row]]]
    largest = torch.stack(around).max(dim=0).values if around else torch.zeros(width)
    units = torch.cat([phi(batch["spot"][row]), sum(phi(each) for each in batch["subspots"][row]), largest])
    parts = [slice(m * n_genes, (m + 1) * n_genes) for m in range(net.members)]
    found = sum(net.rho.weight[part] @ units + net.rho.bias[part] for part in parts) / net.members
    return found * net.scale + net.mean


@pytest.mark.parametrize("members", [1, 3, 4])
def test_is_its_definition(members):
    net = net_of(members=members, mean=torch.rand(4), scale=torch.rand(4) + 0.5)
    batch = batch_of()
    expected = torch.stack([by_loops(net, batch, row) for row in range(6)])
    torch.testing.assert_close(net(batch), expected)


def test_without_dropout_training_is_as_evaluation():
    net, batch = net_of(dropout=0, dropout_out=0), batch_of()
    torch.testing.assert_close(net.train()(batch), net.eval()(batch))


def test_members_have_dropout_of_their_own():
    """The mean of 100 networks with the same weights varies a tenth as much as one of them."""
    members, units = 100, torch.rand(8, 21)
    one, many = (net_of(dropout=0.5, dropout_out=0, members=n).train() for n in (1, members))
    with torch.no_grad():
        for net in (one, many):
            net.rho.weight.copy_(one.rho.weight.repeat(net.members, 1))
            net.rho.bias.zero_()
        spread = [torch.stack([net.regress(units) for _ in range(300)]).std(dim=0).mean() for net in (one, many)]
    assert float(spread[1] / spread[0]) == pytest.approx(members**-0.5, rel=0.1)


def test_order_of_sub_tiles_and_of_neighbours_changes_nothing():
    net, batch = net_of(), batch_of()
    sub, around = torch.randperm(9), torch.randperm(5)
    turned = {
        "spot": batch["spot"],
        "subspots": batch["subspots"][:, sub],
        "neighbours": batch["neighbours"][:, around],
        "neighbour_mask": batch["neighbour_mask"][:, around],
    }
    torch.testing.assert_close(net(turned), net(batch))


@pytest.mark.parametrize("padding", [0.0, 1e6, float("nan")])
def test_padding_changes_nothing(padding):
    net, batch = net_of(), batch_of()
    with torch.no_grad():
        net.phi.bias += 1  # so that what is padded would be seen
    padded = batch | {
        "neighbours": torch.cat([batch["neighbours"], torch.full((6, 3, 5), padding)], dim=1),
        "neighbour_mask": torch.cat([batch["neighbour_mask"], torch.zeros(6, 3, dtype=torch.bool)], dim=1),
    }
    torch.testing.assert_close(net(padded), net(batch))
    net.losses(padded, torch.rand(6, 4))["loss"].backward()
    assert all(torch.isfinite(each.grad).all() for each in net.parameters())


def test_no_neighbours_at_all():
    net, batch = net_of(), batch_of(k=0)
    alone = batch | {"neighbours": torch.randn(6, 2, 5), "neighbour_mask": torch.zeros(6, 2, dtype=torch.bool)}
    assert torch.isfinite(net(batch)).all()
    torch.testing.assert_close(net(batch), net(alone))


def test_median_of_identical_members_is_one_of_them():
    net, embeddings = net_of(members=10), torch.randn(3, 5)
    single = net_of(members=1)
    with torch.no_grad():
        for name in ("weight", "bias"):
            own, one = getattr(net.phi, name), getattr(single.phi, name)
            own.copy_(torch.cat([one] * 10))
    torch.testing.assert_close(net.transform(embeddings), single.transform(embeddings))


@pytest.mark.parametrize(("left_out", "factor"), [((), 3), (("subspots",), 2), (("subspots", "neighbours"), 1)])
def test_what_it_does_not_look_at_need_not_be_there(left_out, factor):
    net, batch = net_of(**dict.fromkeys(left_out, False)), batch_of()
    kept = {
        name: values for name, values in batch.items() if not name.startswith(tuple(n[:-1] for n in left_out) or "-")
    }
    assert net(kept).shape == (6, 4)
    assert net.rho.in_features == 7 * factor


class TestStandardisation:
    mean, scale = torch.tensor([1.0, 2.0, 0.0, 5.0]), torch.tensor([0.5, 2.0, 0.0, 1.0])

    def test_loss_is_of_standardised_expression(self):
        net, batch, targets = net_of(mean=self.mean, scale=self.scale), batch_of(), torch.rand(6, 4)
        scale = torch.tensor([0.5, 2.0, 1.0, 1.0])  # a constant gene is only centred
        expected = (((net(batch) - targets) / scale) ** 2).mean()
        torch.testing.assert_close(net.losses(batch, targets)["loss"], expected)

    def test_untrained_predictions_are_of_the_size_of_the_targets(self):
        net, batch = net_of(mean=self.mean, scale=self.scale), batch_of()
        torch.nn.init.zeros_(net.rho.weight)
        torch.nn.init.zeros_(net.rho.bias)
        torch.testing.assert_close(net(batch), self.mean.expand(6, 4))

    def test_is_saved_with_the_weights(self):
        net, batch = net_of(mean=self.mean, scale=self.scale), batch_of()
        again = net_of()
        again.load_state_dict(net.state_dict())
        assert torch.equal(again(batch), net(batch))

    def test_masked_genes_enter_no_loss(self):
        net, batch, targets = net_of(mean=self.mean, scale=self.scale), batch_of(), torch.rand(6, 4)
        mask = torch.rand(6, 4) > 0.5
        wrong = torch.where(mask, targets, float("nan"))
        torch.testing.assert_close(net.losses(batch, wrong, mask)["loss"], net.losses(batch, targets, mask)["loss"])

    def test_wrong_shape(self):
        with pytest.raises(ValueError, match=r"scale has the shape \(3,\); there are 4 genes"):
            net_of(scale=torch.ones(3))


@pytest.mark.parametrize(("n_features", "n_genes", "expected"), [(1024, 250, 9_090_500), (1536, 5000, 84_719_440)])
def test_weights_of_the_published_network(n_features, n_genes, expected):
    with torch.device("meta"):
        net = DeepSpot(n_features, n_genes)
    assert sum(each.numel() for each in net.parameters()) == expected
    assert expected == 10 * 512 * (n_features + 1) + 10 * n_genes * (3 * 512 + 1)
