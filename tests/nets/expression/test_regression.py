"""Regressors of expression: where they start, what their losses are, and how many weights they have."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from sthist.nets import EmbeddingMLP, ResNetRegressor, STNet


@pytest.fixture(autouse=True)
def _seeded():
    torch.manual_seed(0)


def trunk(width: int = 6) -> nn.Module:
    """A small one that turns and flips change the features of."""
    return nn.Sequential(nn.Conv2d(3, width, 3, stride=2), nn.Tanh(), nn.AdaptiveAvgPool2d(1), nn.Flatten())


def tiles(n: int = 4, side: int = 17) -> torch.Tensor:
    return torch.randn(n, 3, side, side)


MEAN = torch.tensor([0.5, 3.0, 0.0])


class TestSTNet:
    @pytest.mark.parametrize("training", [True, False])
    @pytest.mark.parametrize("symmetries", [True, False])
    def test_predicts_the_mean_before_it_has_learned(self, training, symmetries):
        net = STNet(trunk(), 6, 3, mean=MEAN, symmetries=symmetries).train(training)
        torch.testing.assert_close(net({"tiles": 100 * tiles()}), MEAN.expand(4, 3))

    def learned(self, **options) -> STNet:
        net = STNet(trunk(), 6, 3, mean=MEAN, **options).eval()
        nn.init.normal_(net.head.weight)
        return net

    def test_mean_over_symmetries_does_not_change_with_the_orientation(self):
        net, seen = self.learned(symmetries=True), tiles()
        expected = net({"tiles": seen})
        turned = [seen.rot90(turns, (2, 3)) for turns in range(4)] + [seen.flip(2), seen.flip(3), seen.transpose(2, 3)]
        for orientation in turned:
            torch.testing.assert_close(net({"tiles": orientation}), expected)
        once = self.learned()
        assert not torch.allclose(once({"tiles": seen.flip(2)}), once({"tiles": seen}), atol=1e-3)

    def test_mean_over_symmetries_is_that_of_the_predictions(self):
        net, seen = self.learned(symmetries=True), tiles()
        each = [net.head(net.trunk(seen.rot90(t, (2, 3)))) for t in range(4)]
        each += [net.head(net.trunk(seen.transpose(2, 3).rot90(t, (2, 3)))) for t in range(4)]
        torch.testing.assert_close(net({"tiles": seen}), torch.stack(each).mean(0))

    def test_published_loss_halves_with_the_batch_and_the_mean_does_not(self):
        seen, targets = tiles(), torch.rand(4, 3)
        for reduction, factor in (("sum", 0.5), ("mean", 1.0)):
            net = self.learned(reduction=reduction)
            whole = net.losses({"tiles": seen}, targets)["loss"]
            halves = [net.losses({"tiles": seen[i : i + 2]}, targets[i : i + 2])["loss"] for i in (0, 2)]
            torch.testing.assert_close(torch.stack(halves).mean(), factor * whole)
        net = self.learned(reduction="sum")
        errors = (net({"tiles": seen}) - targets) ** 2
        torch.testing.assert_close(net.losses({"tiles": seen}, targets)["loss"], errors.sum() / 3)

    def test_weights_of_the_published_network(self):
        from torchvision.models import densenet121

        with torch.device("meta"):
            dense = densenet121(weights=None)
            dense.classifier = nn.Identity()
            net = STNet(dense, 1024, 250)
        assert sum(each.numel() for each in net.parameters()) == 7_210_106

    def test_wrong_arguments(self):
        with pytest.raises(ValueError, match="'mean' or 'sum', not 'max'"):
            STNet(None, 6, 3, reduction="max")
        with pytest.raises(ValueError, match=r"mean has the shape \(3,\); there are 4 genes"):
            STNet(None, 6, 4, mean=MEAN)


class TestResNetRegressor:
    def test_loss_is_the_mean_absolute_error(self):
        net, seen, targets = ResNetRegressor(trunk(), 6, 3), tiles(), torch.rand(4, 3)
        torch.testing.assert_close(
            net.losses({"tiles": seen}, targets)["loss"], (net({"tiles": seen}) - targets).abs().sum() / 12
        )

    def test_bias_starts_at_the_mean(self):
        assert torch.equal(ResNetRegressor(trunk(), 6, 3, mean=MEAN).head.bias, MEAN)


class TestEmbeddingMLP:
    def test_gradients_do_not_reach_the_encoder_and_stored_features_are_as_good(self):
        encoder, net, seen = trunk(), EmbeddingMLP(6, 3).eval(), tiles()
        live = encoder(seen)
        net.losses({"spot": live}, torch.rand(4, 3))["loss"].backward()
        assert all(each.grad is None for each in encoder.parameters())
        assert all(each.grad.abs().sum() > 0 for each in net.parameters())
        stored = torch.from_numpy(live.detach().numpy().copy())
        assert torch.equal(net({"spot": stored}), net({"spot": live}))

    def test_layers(self):
        net = EmbeddingMLP(1024, 50)
        assert sum(each.numel() for each in net.parameters()) == 1024 * 512 + 512 + 512 * 50 + 50
        spot = torch.randn(3, 1024)
        first, _, _, last = net.layers
        hidden = spot @ first.weight.T + first.bias
        hidden = hidden * (1 + torch.erf(hidden / 2**0.5)) / 2
        torch.testing.assert_close(net.eval()({"spot": spot}), hidden @ last.weight.T + last.bias)

    def test_starts_around_the_mean(self):
        net = EmbeddingMLP(6, 3, mean=MEAN).eval()
        nn.init.zeros_(net.layers[-1].weight)
        torch.testing.assert_close(net({"spot": torch.randn(2, 6)}), MEAN.expand(2, 3))


@pytest.mark.parametrize(
    "net",
    [STNet(trunk(), 6, 3), ResNetRegressor(trunk(), 6, 3), EmbeddingMLP(6, 3)],
    ids=lambda net: type(net).__name__,
)
class TestMask:
    def test_what_was_not_measured_enters_no_loss(self, net):
        net.eval()
        batch, targets = {"tiles": tiles(), "spot": torch.randn(4, 6)}, torch.rand(4, 3)
        mask = torch.rand(4, 3) > 0.5
        mask[0] = False  # a row of which nothing was measured
        expected = net.losses(batch, targets, mask)["loss"]
        assert torch.isfinite(expected)
        for anything in (1e6, float("nan")):
            torch.testing.assert_close(net.losses(batch, torch.where(mask, targets, anything), mask)["loss"], expected)
        torch.testing.assert_close(
            net.losses(batch, targets, torch.ones_like(mask))["loss"], net.losses(batch, targets)["loss"]
        )

    def test_nan_where_nothing_was_measured_gives_no_nan_gradient(self, net):
        net.zero_grad()
        batch, mask = {"tiles": tiles(), "spot": torch.randn(4, 6)}, torch.rand(4, 3) > 0.5
        net.losses(batch, torch.where(mask, 1.0, float("nan")), mask)["loss"].backward()
        assert all(each.grad is None or torch.isfinite(each.grad).all() for each in net.parameters())

    def test_nothing_measured_at_all(self, net):
        batch = {"tiles": tiles(), "spot": torch.randn(4, 6)}
        assert net.losses(batch, torch.rand(4, 3), torch.zeros(4, 3, dtype=torch.bool))["loss"].item() == 0
