"""Hist2Cell: its size, what a prediction depends on, and graph attention against a loop over nodes."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import nn

from sthist.nets import GraphAttention, Hist2Cell

SMALL = {"heads": 2, "head_width": 4, "depth": 2, "hidden": 8}


@pytest.fixture(autouse=True)
def _seeded():
    torch.manual_seed(0)


def path_of(n: int) -> torch.Tensor:
    """Nodes in a row: each has the one before and the one after."""
    around = torch.stack([torch.arange(n) - 1, torch.arange(n) + 1], 1)
    return torch.where(around < n, around, -1)


def batch_of(n: int = 6, n_features: int = 5) -> dict[str, torch.Tensor]:
    return {"spot": torch.randn(n, n_features), "around": path_of(n)}


def net_of(**options) -> Hist2Cell:
    return Hist2Cell(None, 5, 3, **SMALL | options).eval()


def joined(one: dict[str, torch.Tensor], other: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """Both as one batch of two slides, their nodes in turns as far as the shorter goes."""
    n = len(one["spot"])
    around = torch.cat([one["around"], torch.where(other["around"] < 0, -1, other["around"] + n)])
    slide = torch.cat([torch.zeros(n, dtype=int), torch.ones(len(other["spot"]), dtype=int)])
    return {"spot": torch.cat([one["spot"], other["spot"]]), "around": around, "slide": slide}


def permuted(batch: dict[str, torch.Tensor], order: torch.Tensor) -> dict[str, torch.Tensor]:
    """Node ``order[i]`` becomes node i, and is called so by its neighbours."""
    around = batch["around"][order]
    new = {"around": torch.where(around < 0, -1, order.argsort()[around.clamp(min=0)])}
    return {name: values[order] for name, values in batch.items()} | new


class TestHist2Cell:
    def test_has_as_many_parameters_as_published(self):
        timm = pytest.importorskip("timm")
        trunk = timm.create_model("resnet18", pretrained=False, num_classes=0)
        assert sum(each.numel() for each in Hist2Cell(trunk, 512, 80).parameters()) == 14_232_064

    def test_tiles_go_through_the_trunk_unless_their_features_are_known(self):
        trunk = nn.Sequential(nn.Conv2d(3, 5, 3), nn.AdaptiveAvgPool2d(1), nn.Flatten())
        net = Hist2Cell(trunk, 5, 3, **SMALL).eval()
        tiles, around = torch.randn(4, 3, 9, 9), path_of(4)
        found = net({"tiles": tiles, "around": around})
        torch.testing.assert_close(found, net({"spot": trunk(tiles), "around": around}))
        found.sum().backward()
        assert (trunk[0].weight.grad != 0).any()

    def test_is_never_below_0(self):
        net = net_of(mean=torch.tensor([-0.3, 0.0, 0.3]))
        found = net({name: torch.cat([each] * 3) for name, each in batch_of(30).items()})
        assert (found >= 0).all()
        assert (found == 0).any()

    def test_heads_of_zeros_predict_0(self):
        net = net_of()
        for head in (net.own_head, net.local_head, net.fused_head, net.whole_head):
            nn.init.zeros_(head[-1].weight)
            nn.init.zeros_(head[-1].bias)
        assert (net(batch_of()) == 0).all()

    def test_starts_at_the_mean(self):
        net = net_of(mean=torch.tensor([0.2, 0.5, 0.3]))
        for head in (net.own_head, net.local_head, net.fused_head, net.whole_head):
            nn.init.zeros_(head[-1].weight)
        torch.testing.assert_close(net(batch_of()), torch.tensor([0.2, 0.5, 0.3]).expand(6, 3))

    @pytest.mark.parametrize("norm", ["node", "batch"])
    @pytest.mark.parametrize("k", [0, 1])
    def test_one_spot_alone(self, norm, k):
        found = net_of(norm=norm)({"spot": torch.randn(1, 5), "around": torch.full((1, k), -1)})
        assert found.shape == (1, 3)
        assert torch.isfinite(found).all()

    @pytest.mark.parametrize("kind", ["node", "batch"])
    def test_order_of_nodes_does_not_matter(self, kind):
        net = net_of(norm=kind, attention="slide" if kind == "node" else "batch")
        batch = joined(batch_of(), batch_of(7))
        order = torch.randperm(13)
        torch.testing.assert_close(net(permuted(batch, order)), net(batch)[order])

    def test_a_slide_does_not_depend_on_others(self):
        net, one, other = net_of(), batch_of(), batch_of(9)
        both = net(permuted(joined(one, other), order := torch.randperm(15)))[order.argsort()]
        torch.testing.assert_close(both[:6], net(one))
        torch.testing.assert_close(both[6:], net(other))

    @pytest.mark.parametrize("options", [{"norm": "batch"}, {"attention": "batch"}])
    def test_as_published_it_does(self, options):
        net, one, other = net_of(**options), batch_of(), batch_of(9)
        assert not torch.allclose(net(joined(one, other))[:6], net(one), atol=1e-4)

    def test_normalises_as_is_said(self):
        """Over all nodes and channels, or over the channels of each node."""
        features, around = torch.randn(6, 5), path_of(6)
        for norm, axes in (("batch", (0, 1)), ("node", (1,))):
            net = net_of(norm=norm)
            nn.init.normal_(net.local_norm.weight)
            nn.init.normal_(net.local_norm.bias)
            local = net.neighbours(features, around)
            centred = (local - local.mean(axes, keepdim=True)) / local.std(axes, keepdim=True, correction=0)
            seen = []
            net.local_head.register_forward_hook(lambda _, inputs, __, seen=seen: seen.append(inputs[0]))
            net({"spot": features, "around": around})
            expected = centred * net.local_norm.weight + net.local_norm.bias
            torch.testing.assert_close(seen[0], expected, rtol=1e-3, atol=1e-3)

    def test_neighbours_and_the_whole_slide_matter(self):
        net, batch = net_of(), batch_of(8)
        changed = {**batch, "spot": batch["spot"].clone()}
        changed["spot"][1] += 3
        moved = (net(changed) - net(batch)).detach().abs().amax(1)
        assert (moved[[0, 2]] > 0).all()  # by graph attention
        assert (moved[3:] > 0).any()  # by the transformer
        without = Hist2Cell(None, 5, 3, **SMALL | {"depth": 0}).eval()
        moved = (without(changed) - without(batch)).detach().abs().amax(1)
        assert (moved[3:] == 0).all()

    def test_loss_leaves_out_context_and_what_was_not_measured(self):
        net, batch, truth = net_of(), batch_of(), torch.rand(6, 3)
        counted = torch.tensor([True, False, True, True, False, True])
        mask = torch.ones(6, 3, dtype=torch.bool)
        mask[0, 1] = False
        errors = (net(batch) - truth).square()
        expected = errors[counted[:, None] & mask].mean()
        hidden = torch.where(counted[:, None] & mask, truth, torch.nan)
        torch.testing.assert_close(net.losses({**batch, "counted": counted}, hidden, mask)["loss"], expected)
        torch.testing.assert_close(net.losses({**batch, "counted": counted}, truth)["loss"], errors[counted].mean())
        torch.testing.assert_close(net.losses(batch, truth)["loss"], errors.mean())

    @pytest.mark.parametrize("argument", ["norm", "attention"])
    def test_refuses_words_that_it_does_not_know(self, argument):
        with pytest.raises(ValueError, match=rf"{argument} is 'graph'; it is one of \["):
            net_of(**{argument: "graph"})
        with pytest.raises(ValueError, match=r"mean has the shape \(2,\); there are 3 types"):
            net_of(mean=torch.zeros(2))


class TestGraphAttention:
    def looped(self, net: GraphAttention, features: np.ndarray, neighbours: list[set[int]]) -> np.ndarray:
        """Node by node and head by head, from the formula."""
        weight = {name: each.detach().numpy().astype(float) for name, each in net.state_dict().items()}
        seen = features @ weight["seen.weight"].T + weight["seen.bias"]
        seeing = features @ weight["seeing.weight"].T + weight["seeing.bias"]
        heads, width = weight["score"].shape
        found = np.zeros((len(features), heads * width))
        for node, near in enumerate(neighbours):
            for head in range(heads):
                part = slice(head * width, (head + 1) * width)
                scores = {}
                for other in near | {node}:
                    both = seen[other, part] + seeing[node, part]
                    scores[other] = np.exp(np.where(both > 0, both, 0.2 * both) @ weight["score"][head])
                total = sum(scores.values())
                found[node, part] = sum(score / total * seen[other, part] for other, score in scores.items())
        return found + weight["bias"]

    def test_is_what_a_loop_gives(self):
        rng = np.random.default_rng(0)
        net = GraphAttention(5, heads=3, width=4).double()
        for each in net.parameters():
            nn.init.normal_(each)
        neighbours = [set(rng.choice(7, rng.integers(0, 5), replace=False).tolist()) - {node} for node in range(7)]
        neighbours[3] = set()
        around = np.full((7, 4), -1)
        for node, near in enumerate(neighbours):
            around[node, rng.permutation(4)[: len(near)]] = list(near)
        features = rng.normal(size=(7, 5))
        found = net(torch.from_numpy(features), torch.from_numpy(around)).detach().numpy()
        np.testing.assert_allclose(found, self.looped(net, features, neighbours), atol=1e-6)
        # A node that is named as its own neighbour counts once.
        around[3, 0] = 3
        again = net(torch.from_numpy(features), torch.from_numpy(around)).detach().numpy()
        np.testing.assert_allclose(again, found)
