"""Networks on whole slides: sizes as published, parts against their definitions, and what must not change a spot."""

from __future__ import annotations

import itertools
import math

import pytest
import torch
from torch import nn
from torch.nn import functional

from sthist.nets import HisToGene, THItoGene
from sthist.nets._expression.sequence.capsules import Capsules, DynamicConv2d, NeighbourAttention, squash

GENES, POSITIONS = 5, 12


@pytest.fixture(autouse=True)
def _seed():
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        yield


def histogene(**options) -> HisToGene:
    sizes = {"n_positions": POSITIONS, "width": 12, "depth": 2, "heads": 3, "head_width": 4, "hidden": 20}
    return settled(HisToGene(48, GENES, **(sizes | options)))


def thitogene(**options) -> THItoGene:
    sizes = {"channels": (4, 4, 4, 4, 16), "capsules": 3, "capsule_width": 4, "heads": 2, "head_width": 4}
    sizes |= {
        "n_positions": POSITIONS,
        "depth": 2,
        "hidden": 20,
        "graph_heads": 2,
        "graph_widths": (6, 7),
        "head_hidden": 9,
    }
    return settled(THItoGene(48, GENES, **(sizes | options)))


def settled(net):
    """In evaluation mode, with places that are not all alike."""
    for table in (net.row, net.column) if net.n_positions else ():
        nn.init.normal_(table.weight)
    return net.eval()


def batch_of(sizes=(7, 1, 4)) -> dict[str, torch.Tensor]:
    """Slides of so many spots, each with its neighbours."""
    n = sum(sizes)
    starts = torch.tensor([0, *itertools.accumulate(sizes)])
    slide = torch.repeat_interleave(torch.arange(len(sizes)), torch.tensor(sizes))
    around = torch.full((n, 2), -1)
    for row in range(n):
        low, high = starts[slide[row]], starts[slide[row] + 1]
        near = [each for each in (row - 1, row + 1) if low <= each < high]
        around[row, : len(near)] = torch.tensor(near, dtype=torch.int64)
    return {
        "tiles": torch.randint(0, 256, (n, 48, 48, 3), dtype=torch.uint8),
        "positions": torch.randint(0, POSITIONS, (n, 2)),
        "slide": slide,
        "around": around,
    }


def part_of(batch: dict[str, torch.Tensor], rows: torch.Tensor) -> dict[str, torch.Tensor]:
    """Some rows in some order, with their neighbours where these are now."""
    place = torch.full((len(batch["slide"]) + 1,), -1)
    place[rows] = torch.arange(len(rows))
    return {name: place[values[rows]] if name == "around" else values[rows] for name, values in batch.items()}


@pytest.mark.parametrize("make", [histogene, thitogene])
class TestBoth:
    def test_order_of_spots_permutes_predictions(self, make):
        net, batch, order = make(), batch_of(), torch.randperm(12)
        torch.testing.assert_close(net(part_of(batch, order)), net(batch)[order])

    def test_a_slide_does_not_depend_on_the_others(self, make):
        net, batch = make(), batch_of()
        whole = net(batch)
        for slide in range(3):
            rows = torch.nonzero(batch["slide"] == slide)[:, 0]
            torch.testing.assert_close(net(part_of(batch, rows)), whole[rows])
            alone = {name: each for name, each in part_of(batch, rows).items() if name != "slide"}
            torch.testing.assert_close(net(alone), whole[rows])

    def test_spots_of_a_slide_see_each_other(self, make):
        net, batch = make(), batch_of((8,))
        changed = batch | {"tiles": batch["tiles"].clone()}
        changed["tiles"][7] = 255 - changed["tiles"][7]
        moved = (net(changed) - net(batch)).abs().amax(dim=1)
        assert (moved > 1e-6).all()

    def test_of_one_slide_that_is_padded_and_one_that_is_not(self, make):
        """Slides of one size need no mask."""
        net, batch = make(), batch_of((4, 4))
        torch.testing.assert_close(net(batch)[:4], net(part_of(batch, torch.arange(4))))

    def test_tiles_a_few_at_a_time_give_the_same_gradients(self, make, monkeypatch):
        net, batch, targets = make(), batch_of(), torch.rand(12, GENES)
        found = []
        for at_once in (100, 5):
            monkeypatch.setattr(type(net), "at_once", at_once)
            net.zero_grad()
            net.losses(batch, targets)["loss"].backward()
            found.append([each.grad.clone() for each in net.parameters()])
        torch.testing.assert_close(found[0], found[1])

    def test_checkpoints_give_the_same_gradients(self, make):
        net, batch, targets = make(dropout=0.5).train(), batch_of(), torch.rand(12, GENES)
        found = []
        for recomputed in (False, True):
            if recomputed:
                net.checkpoint_gradients()
            torch.manual_seed(1)
            net.zero_grad()
            net.losses(batch, targets)["loss"].backward()
            found.append([each.grad.clone() for each in net.parameters()])
        torch.testing.assert_close(found[0], found[1])

    def test_a_position_that_nobody_has_seen_adds_nothing(self, make):
        net, batch = make(), batch_of((4,))
        for table in (net.row, net.column):
            nn.init.zeros_(table.weight)
        moved = batch | {"positions": (batch["positions"] + 3) % POSITIONS}
        torch.testing.assert_close(net(moved), net(batch))
        fresh = type(net)(48, GENES, POSITIONS, depth=1)
        assert not fresh.row.weight.any()
        assert not fresh.column.weight.any()

    def test_without_positions(self, make):
        net, batch = make(n_positions=0), batch_of((4,))
        del batch["positions"]
        assert net(batch).shape == (4, GENES)

    def test_tiles_of_another_size(self, make):
        batch = batch_of((4,))
        with pytest.raises(ValueError, match=r"Tiles are \(4, 44, 44, 3\); this network takes \(n, 48, 48, 3\)"):
            make()(batch | {"tiles": batch["tiles"][:, :44, :44]})

    @pytest.mark.parametrize("place", [-1, POSITIONS])
    def test_positions_beyond_the_table(self, make, place):
        batch = batch_of()
        batch["positions"][3, 1] = place
        with pytest.raises(ValueError, match=rf"go from .*; this network knows 0 to {POSITIONS - 1}"):
            make()(batch)

    def test_what_does_not_count(self, make):
        """Spots for others' sake and genes that were not measured, whatever stands there."""
        net, batch, targets = make(), batch_of(), torch.rand(12, GENES)
        counted, mask = torch.arange(12) < 9, torch.rand(12, GENES) < 0.7
        truth = (net(batch) - targets).square()
        for given, measured, chosen in (
            (batch | {"counted": counted}, None, counted[:, None].expand(12, GENES)),
            (batch | {"counted": counted}, mask, counted[:, None] & mask),
            (batch, mask, mask),
        ):
            loss = net.losses(given, torch.where(chosen, targets, torch.nan), measured)["loss"]
            torch.testing.assert_close(loss, truth[chosen].mean())

    def test_begins_at_the_mean(self, make):
        mean = torch.arange(GENES, dtype=torch.float32)
        net = make(mean=mean)
        torch.testing.assert_close(net(batch_of()), mean.expand(12, GENES))
        with pytest.raises(ValueError, match="there are 5 genes"):
            make(mean=mean[:3])

    def test_pixels_are_standardised_or_left(self, make):
        batch = batch_of((2,))
        pixels = batch["tiles"].double().flatten(0, 2)
        for scale, expected in ((None, pixels), (((0.5, 0.6, 0.7), (0.1, 0.2, 0.3)), None)):
            net = make(pixels=scale)
            seen = []
            net.of_tiles = lambda tiles, seen=seen: seen.append(tiles) or tiles.flatten(1)
            net.features(batch)
            if expected is None:
                expected = (pixels / 255 - torch.tensor(scale[0]).double()) / torch.tensor(scale[1]).double()
            torch.testing.assert_close(seen[0].double().flatten(0, 2), expected, rtol=1e-4, atol=1e-4)


class TestSizes:
    """Numbers of parameters, from the sizes of the layers."""

    @staticmethod
    def n_of(net: nn.Module) -> int:
        return sum(each.numel() for each in net.parameters())

    @staticmethod
    def block(width: int) -> int:
        return 2 * 2 * width + width * 3 * 1024 + (1024 + 1) * width + width * 2048 + 2048 + (2048 + 1) * width

    def test_histogene(self):
        with torch.device("meta"):
            net = HisToGene(112, 785, 64)
        assert self.n_of(net) == 106_648_337
        assert self.n_of(net.transformer) == 67_174_400 == 8 * self.block(1024)

    def test_thitogene(self):
        with torch.device("meta"):
            net = THItoGene(112, 785, 64, own=False)
            deeper, ours = THItoGene(112, 785, 64, depth=8, own=False), THItoGene(112, 785, 64)
        assert self.n_of(net.transformer) == 4 * self.block(1408)
        graph = 8 * (1408 * 1024 + 2 * 1024), 8192 * 512 + 2 * 512
        assert (self.n_of(net.near), self.n_of(net.around)) == graph
        assert self.n_of(net.head) == 513 * 1024 + 2 * 1024 + 1025 * 785
        assert self.n_of(net.capsules) == 16 * 20 * 8 * 64 + 20 * 16
        assert self.n_of(net.whole) == 128 * (81 + 1)
        kernels = 4 * 16 * 3 * 4 * 4
        attention = 3 * 16 + 17 * (3 + 16 + 16 + 4)
        assert self.n_of(net.first) == kernels + attention
        sizes = ((16, 32, 5), (32, 64, 3), (64, 64, 3), (64, 128, 3))
        convolutions = sum((before * size**2 + 1) * after for before, after, size in sizes)
        assert self.n_of(net.convolutions) == convolutions
        assert round(self.n_of(net) / 1e6) == 64
        assert self.n_of(deeper) - self.n_of(net) == 4 * self.block(1408)
        assert self.n_of(ours) - self.n_of(net) == 2 * 1408 + 1409 * 512

    def test_maps_of_thitogene_are_as_published(self):
        net, shapes = THItoGene(112, 2, 4, depth=1).eval(), []
        for part in (net.first, *net.convolutions, net.whole):
            if not isinstance(part, nn.ReLU):
                part.register_forward_hook(lambda module, inputs, output: shapes.append(tuple(output.shape[1:])))
        net.of_tiles(torch.rand(1, 112, 112, 3))
        assert shapes == [(16, 28, 28), (32, 24, 24), (64, 22, 22), (64, 20, 20), (128, 9, 9), (128, 1, 1)]

    def test_tiles_that_are_too_small(self):
        THItoGene(44, 2, 4, depth=1)
        with pytest.raises(ValueError, match="tiles of 44 pixels or more; these have 43"):
            THItoGene(43, 2, 4)
        with pytest.raises(ValueError, match="a multiple of 8"):
            thitogene(channels=(4, 4, 4, 4, 12))


class TestParts:
    def test_squash(self):
        vectors = torch.randn(100, 8, dtype=torch.float64) * torch.logspace(-6, 3, 100, dtype=torch.float64)[:, None]
        found = squash(vectors)
        lengths = found.norm(dim=1)
        assert (lengths < 1).all()
        torch.testing.assert_close(lengths, 1 - torch.exp(-vectors.norm(dim=1)), rtol=1e-5, atol=0)
        torch.testing.assert_close(functional.normalize(found), functional.normalize(vectors))
        assert (squash(vectors.float()).norm(dim=1) < 1).all()

    def test_squash_of_nothing(self):
        zero = torch.zeros(2, 8, requires_grad=True)
        assert not squash(zero).any()
        squash(zero).sum().backward()
        assert torch.isfinite(zero.grad).all()

    def test_dynamic_convolution_of_each_image_by_itself(self):
        layer, images = DynamicConv2d(3, 5, 4, kernels=2), torch.rand(3, 3, 8, 12)
        for image, found in zip(images, layer(images), strict=True):
            seen = layer.squeeze(image.mean((1, 2)))
            shares = layer.mixture(seen).softmax(0)
            kernel = sum(share * one for share, one in zip(shares, layer.kernels, strict=True)).unflatten(2, (4, 4))
            kernel = kernel * layer.filters(seen).sigmoid()[:, None, None, None]
            kernel = kernel * layer.channels(seen).sigmoid()[None, :, None, None]
            kernel = kernel * layer.places(seen).sigmoid().unflatten(0, (4, 4))
            torch.testing.assert_close(found, functional.conv2d(image[None], kernel, stride=4)[0])

    def test_capsules_are_routed_by_agreement(self):
        layer, before = Capsules(4, 2, 3, 5), torch.randn(2, 4, 2)
        nn.init.normal_(layer.prior)
        votes = [torch.stack([before[:, i] @ layer.weight[i, o] for i in range(4)], 1) for o in range(3)]
        votes = torch.stack(votes, 1)
        agreement = torch.zeros(2, 3, 4)
        for i in range(4):
            for j in range(4):
                agreement[:, :, i] += (votes[:, :, i] * votes[:, :, j]).sum(-1) / math.sqrt(2)
        shares = agreement.exp() / agreement.exp().sum(1, keepdim=True) + layer.prior
        expected = squash(sum(shares[:, :, i, None] * votes[:, :, i] for i in range(4)))
        torch.testing.assert_close(layer(before), expected)

    def test_attention_to_neighbours_against_its_definition(self):
        layer, nodes = NeighbourAttention(6, 2, 3), torch.randn(5, 6)
        rows = torch.tensor([[1, 2, -1], [0, -1, -1], [0, 1, 4], [3, -1, -1], [2, 3, -1]])
        values = layer.values(nodes).unflatten(1, (2, 3))
        expected = torch.zeros(5, 2, 3)
        for i in range(5):
            near = rows[i][rows[i] >= 0]
            for head in range(2):
                score = layer.seeing[head] @ values[i, head] + values[near, head] @ layer.seen[head]
                expected[i, head] = functional.leaky_relu(score, 0.2).softmax(0) @ values[near, head]
        torch.testing.assert_close(layer(nodes, rows), functional.elu(expected.flatten(1)))

    def test_a_spot_without_neighbours_sees_itself(self):
        net, batch = thitogene(own=False), batch_of((1,))
        tokens = net.transformer(torch.cat([net.features(batch), *net.places(batch)], dim=1))
        itself = torch.zeros(1, 1, dtype=torch.int64)
        torch.testing.assert_close(net.hidden(batch), net.around(net.near(tokens, itself), itself))

    def test_own_tile_reaches_a_spot_by_way_of_others_as_published(self):
        net, batch = thitogene(own=False, depth=0).double(), batch_of((8,))
        changed = batch | {"tiles": batch["tiles"].clone()}
        changed["tiles"][0] = 255 - changed["tiles"][0]
        moved = (net(changed) - net(batch)).abs().amax(dim=1) > 0
        # From 0 to 1, and from there back and on to 2, however 1 weighs what it sees.
        assert moved[[0, 2]].all()
        assert not moved[3:].any()
