"""Contrastive networks: losses against their formulas, and which weights they have."""

from __future__ import annotations

import math

import pytest
import torch
from torch import nn

from sthist.nets import BLEEP, McLSTExp, info_nce, soft_target_loss, soft_targets


def pair_loss(images, spots, temperature=1.0):
    return info_nce(spots, images, 1 / temperature)


LOSSES = {"bleep": soft_target_loss, "mclstexp": pair_loss}


@pytest.fixture(autouse=True)
def _seeded():
    torch.manual_seed(0)


def bleep(**options) -> BLEEP:
    return BLEEP(None, 6, 4, **{"width": 8, **options}).eval()


def mclstexp(**options) -> McLSTExp:
    return McLSTExp(None, 6, 4, 10, **{"width": 8, "heads": 2, "head_width": 3, **options}).eval()


def batch_of(n: int = 5) -> dict[str, torch.Tensor]:
    return {"spot": torch.randn(n, 6), "positions": torch.randint(10, (n, 2))}


class TestLosses:
    def test_two_orthonormal_pairs(self):
        """Similarities 1 and 0: of BLEEP the entropy of softmax(1, 0), of mclSTExp -log of its first."""
        first = math.e / (math.e + 1)
        pair = torch.eye(2, 7)
        entropy = -first * math.log(first) - (1 - first) * math.log(1 - first)
        assert (
            float(soft_target_loss(pair, pair)) == pytest.approx(entropy, abs=1e-6) == pytest.approx(0.582203, abs=1e-6)
        )
        assert (
            float(pair_loss(pair, pair))
            == pytest.approx(-math.log(first), abs=1e-6)
            == pytest.approx(0.313262, abs=1e-6)
        )

    @pytest.mark.parametrize("loss", LOSSES.values(), ids=LOSSES)
    def test_order_of_pairs_changes_nothing(self, loss):
        images, spots, order = torch.randn(6, 3), torch.randn(6, 3), torch.randperm(6)
        torch.testing.assert_close(loss(images[order], spots[order]), loss(images, spots))
        assert not torch.allclose(loss(images[order], spots), loss(images, spots))

    @pytest.mark.parametrize("temperature", [0.5, 1.0, 3.0])
    def test_against_loops(self, temperature):
        images, spots = torch.randn(4, 3).double(), torch.randn(4, 3).double()

        def entropy(shares, logits):
            total = sum(math.exp(logit) for logit in logits)
            return -sum(share * math.log(math.exp(x) / total) for share, x in zip(shares, logits, strict=True))

        logits = [[float(s @ i) / temperature for i in images] for s in spots]
        alike = [
            [float(images[i] @ images[j] + spots[i] @ spots[j]) / 2 / temperature for j in range(4)] for i in range(4)
        ]
        shares = [[math.exp(x) / sum(math.exp(y) for y in row) for x in row] for row in alike]
        columns = [[row[i] for row in logits] for i in range(4)]
        back = [[row[i] for row in shares] for i in range(4)]
        expected = sum(entropy(shares[i], logits[i]) + entropy(back[i], columns[i]) for i in range(4)) / 8
        assert float(soft_target_loss(images, spots, temperature)) == pytest.approx(expected)
        own = [[float(i == j) for j in range(4)] for i in range(4)]
        expected = sum(entropy(own[i], logits[i]) + entropy(own[i], columns[i]) for i in range(4)) / 8
        assert float(pair_loss(images, spots, temperature)) == pytest.approx(expected)

    def test_soft_targets_have_the_sum_one(self):
        found = soft_targets(5 * torch.randn(6, 3), torch.randn(6, 3), 0.3)
        torch.testing.assert_close(found.sum(dim=1), torch.ones(6))
        assert (found >= 0).all()

    def test_gradients_go_through_the_soft_targets(self):
        images, spots = torch.randn(4, 3, requires_grad=True), torch.randn(4, 3)
        whole = torch.autograd.grad(soft_target_loss(images, spots), images)[0]
        logits, targets = spots @ images.T, soft_targets(images, spots).detach()
        fixed = -(targets * logits.log_softmax(1)).sum(1) - (targets.T * logits.T.log_softmax(1)).sum(1)
        assert not torch.allclose(torch.autograd.grad(fixed.mean() / 2, images)[0], whole, atol=1e-3)


@pytest.mark.parametrize("make", [bleep, mclstexp])
class TestNetworks:
    def test_loss_is_that_of_the_embeddings(self, make):
        net, batch, targets = make(), batch_of(), torch.rand(5, 4)
        images, spots = net.image_embedding(batch), net.expression_embedding(batch, targets)
        assert images.shape == spots.shape == (5, 8)
        torch.testing.assert_close(
            net.losses(batch, targets)["loss"], LOSSES[make.__name__](images, spots, net.temperature)
        )
        assert torch.equal(net(batch), images)

    def test_what_was_not_measured_is_not_looked_at(self, make):
        net, batch, targets = make(), batch_of(), torch.rand(5, 4)
        mask = torch.rand(5, 4) > 0.5
        wrong = torch.where(mask, targets, float("nan"))
        torch.testing.assert_close(
            net.expression_embedding(batch, wrong, mask), net.expression_embedding(batch, targets * mask)
        )
        assert torch.isfinite(net.losses(batch, wrong, mask)["loss"])

    def test_tiles_go_through_the_trunk(self, make):
        net, tiles = make(), torch.rand(3, 3, 8, 8)
        net.trunk = nn.Sequential(nn.Conv2d(3, 6, 3), nn.AdaptiveAvgPool2d(1), nn.Flatten())
        found = net.image_embedding({"tiles": tiles})
        torch.testing.assert_close(found, net.image(net.trunk(tiles)))
        torch.testing.assert_close(found.mean(dim=1), torch.zeros(3), atol=1e-5, rtol=0)  # normalised layer

    def test_temperature(self, make):
        with pytest.raises(ValueError, match="temperature is 0"):
            make(temperature=0)


class TestMcLSTExp:
    def test_attention_against_that_of_torch(self):
        from sthist.nets._expression.sequence.transformer import AttentionBlock

        block = AttentionBlock(6, 2, 3, 0.0).eval()
        reference = nn.TransformerEncoderLayer(
            6, 2, dim_feedforward=6, dropout=0, activation="gelu", batch_first=True, norm_first=True
        ).eval()
        attention = reference.self_attn
        with torch.no_grad():
            attention.in_proj_weight.copy_(block.inputs.weight)
            attention.in_proj_bias.zero_()
            for own, theirs in (
                (block.output[0], attention.out_proj),
                (block.layers[0], reference.linear1),
                (block.layers[3], reference.linear2),
            ):
                theirs.weight.copy_(own.weight)
                theirs.bias.copy_(own.bias)
        tokens = torch.randn(2, 7, 6)
        torch.testing.assert_close(block(tokens), reference(tokens))

    def test_spots_see_each_other_only_with_attention(self):
        batch, targets = batch_of(), torch.rand(5, 4)
        part = {name: values[:2] for name, values in batch.items()}
        for depth, alike in ((2, False), (0, True)):
            net = mclstexp(depth=depth)
            whole, alone = net.expression_embedding(batch, targets)[:2], net.expression_embedding(part, targets[:2])
            assert torch.allclose(whole, alone, atol=1e-5) is alike

    def test_order_of_spots_permutes_their_embeddings(self):
        net, batch, targets, order = mclstexp(), batch_of(), torch.rand(5, 4), torch.randperm(5)
        turned = {name: values[order] for name, values in batch.items()}
        torch.testing.assert_close(
            net.expression_embedding(turned, targets[order]), net.expression_embedding(batch, targets)[order]
        )

    def test_places_are_added_by_row_and_column(self):
        net, targets = mclstexp(depth=0), torch.rand(1, 4)
        found = net.expression_embedding({"positions": torch.tensor([[3, 7]])}, targets)
        torch.testing.assert_close(found, net.expression(targets + net.row.weight[3] + net.column.weight[7]))
        without = McLSTExp(None, 6, 4, 0, width=8, depth=0)
        torch.testing.assert_close(without.expression_embedding({}, targets), without.expression(targets))

    @pytest.mark.parametrize("place", [-1, 10])
    def test_places_outside_of_the_table(self, place):
        with pytest.raises(ValueError, match=r"go from .*; this network knows 0 to 9"):
            mclstexp().expression_embedding({"positions": torch.tensor([[0, 5], [place, 2]])}, torch.rand(2, 4))


class TestWeights:
    """Of the published networks, from the sizes of their layers."""

    @staticmethod
    def n_of(net: nn.Module) -> int:
        return sum(each.numel() for each in net.parameters())

    @staticmethod
    def projection(n: int) -> int:
        return n * 256 + 256 + 256 * 256 + 256 + 2 * 256

    def test_bleep(self):
        import timm

        with torch.device("meta"):
            trunk = timm.create_model("resnet50", num_classes=0)
            net = BLEEP(trunk, 2048, 3467)
        assert self.n_of(net.image) == self.projection(2048) == 590_848
        assert self.n_of(net) == 23_508_032 + self.projection(2048) + self.projection(3467)

    def test_mclstexp(self):
        genes = 785
        with torch.device("meta"):
            net = McLSTExp(nn.Identity(), 1024, genes, 65_536)
        block = 2 * 2 * genes + genes * 3 * 512 + (512 + 1) * genes + 2 * (genes + 1) * genes
        assert self.n_of(net.row) + self.n_of(net.column) == 102_891_520
        assert self.n_of(net.blocks) == 2 * block
        assert round(2 * block / 1e6, 1) == 5.7
        assert round((self.n_of(net.image) + self.n_of(net.expression)) / 1e6, 1) == 0.6
