"""The network on embeddings, and its loss: against formulas, numpy, and what must not be NaN."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from sthist.nets import CompositionMLP, negative_correlation


@pytest.fixture(autouse=True)
def _seeded():
    torch.manual_seed(0)


class TestCorrelation:
    @pytest.mark.parametrize("over", ["spots", "types"])
    @pytest.mark.parametrize(("scale", "expected"), [(2.5, -1.0), (0.01, -1.0), (-3.0, 1.0)])
    def test_of_what_is_right_but_for_scale_and_offset(self, over, scale, expected):
        truth = torch.rand(30, 4)
        found = negative_correlation(scale * truth + 0.7, truth, over=over)
        assert float(found) == pytest.approx(expected, abs=1e-4)

    @pytest.mark.parametrize("over", ["spots", "types"])
    def test_is_numpy_s(self, over):
        predicted, truth = torch.randn(20, 5), torch.rand(20, 5)
        pairs = zip(predicted.T, truth.T, strict=True) if over == "spots" else zip(predicted, truth, strict=True)
        expected = -np.mean([np.corrcoef(one, other)[0, 1] for one, other in pairs])
        assert float(negative_correlation(predicted, truth, over=over)) == pytest.approx(expected, abs=1e-5)

    @pytest.mark.parametrize("over", ["spots", "types"])
    @pytest.mark.parametrize("constant", ["prediction", "target", "one row"])
    def test_is_0_where_something_is_constant(self, over, constant):
        n = 1 if constant == "one row" else 9
        kinds = torch.full((n, n), 0.3), torch.rand(n, n)
        predicted, truth = kinds if constant == "prediction" else kinds[::-1]
        predicted.requires_grad_()
        found = negative_correlation(predicted, truth, over=over)
        assert found.item() == 0
        found.backward()
        assert torch.isfinite(predicted.grad).all()

    def test_a_constant_type_counts_as_0(self):
        truth = torch.rand(10, 4)
        truth[:, 0] = 0.0
        assert float(negative_correlation(truth.clone(), truth)) == pytest.approx(-3 / 4, abs=1e-5)

    @pytest.mark.parametrize("over", ["spots", "types"])
    def test_leaves_out_what_was_not_measured(self, over):
        predicted, truth = torch.randn(12, 3), torch.rand(12, 3)
        predicted.requires_grad_()
        mask = torch.tensor([True, True, False]).expand(12, 3)
        expected = negative_correlation(predicted[:, :2], truth[:, :2], over=over)
        found = negative_correlation(predicted, torch.where(mask, truth, torch.nan), mask, over=over)
        torch.testing.assert_close(found, expected)
        found.backward()
        assert (predicted.grad[:, 2] == 0).all()
        assert (predicted.grad[:, :2] != 0).any()

    def test_refuses_another_axis(self):
        with pytest.raises(ValueError, match="over 'spots' or over 'types', not 'both'"):
            negative_correlation(torch.rand(2, 2), torch.rand(2, 2), over="both")
        with pytest.raises(ValueError, match="not 'both'"):
            CompositionMLP(2, 2, correlation="both")


class TestCompositionMLP:
    def test_seven_layers(self):
        net, shapes = CompositionMLP(1536, 80), []
        shapes = [each.weight.shape for each in net.layers if isinstance(each, torch.nn.Linear)]
        widths = (1536, 1024, 1024, 512, 512, 256, 256, 80)
        assert shapes == [(after, before) for before, after in zip(widths, widths[1:], strict=False)]
        assert net({"spot": torch.randn(3, 1536)}).shape == (3, 80)

    @pytest.mark.parametrize("correlation", ["spots", "types"])
    def test_loss_is_the_weighted_sum(self, correlation):
        net = CompositionMLP(6, 3, widths=(8,), l1=0.3, l2=0.7, correlation=correlation)
        batch, truth = {"spot": torch.randn(16, 6)}, torch.rand(16, 3)
        found, terms = net.unclipped(batch), net.losses(batch, truth)
        errors = found - truth
        assert terms["mse"].item() == pytest.approx(errors.square().mean().item(), rel=1e-5)
        assert terms["mae"].item() == pytest.approx(errors.abs().mean().item(), rel=1e-5)
        expected = terms["mse"] + 0.3 * terms["mae"] + 0.7 * negative_correlation(found, truth, over=correlation)
        torch.testing.assert_close(terms["loss"], expected)

    def test_is_never_below_0_but_learns_there(self):
        net = CompositionMLP(4, 2, widths=(8,), mean=torch.tensor([-5.0, 5.0]))
        batch = {"spot": torch.randn(7, 4)}
        assert (net(batch) >= 0).all()
        assert (net(batch)[:, 0] == 0).all()
        net.losses(batch, torch.rand(7, 2))["loss"].backward()
        assert (net.layers[-1].bias.grad != 0).all()

    def test_a_spot_does_not_depend_on_others(self):
        net = CompositionMLP(6, 3, widths=(8, 8)).eval()
        spots = torch.randn(5, 6)
        changed = spots.clone()
        changed[1:] += 100
        torch.testing.assert_close(net({"spot": changed})[0], net({"spot": spots})[0])

    def test_order_of_encoders_is_that_of_the_first_layer_s_columns(self):
        net, turned = (CompositionMLP(7, 3, widths=(8, 8)) for _ in range(2))
        order = torch.tensor([4, 5, 6, 0, 1, 2, 3])  # 4 features of one encoder, 3 of another
        state = net.state_dict()
        turned.load_state_dict(state | {"layers.0.weight": state["layers.0.weight"][:, order]})
        spots = torch.randn(5, 7)
        torch.testing.assert_close(turned({"spot": spots[:, order]}), net({"spot": spots}))

    def test_what_differs_between_spots_reaches_the_output(self):
        """Also through seven layers that have not learned yet."""
        net = CompositionMLP(256, 10)
        assert net.unclipped({"spot": torch.randn(64, 256)}).std(0).mean() > 0.02

    def test_gradients_are_finite_where_all_spots_are_alike(self):
        net = CompositionMLP(5, 3, widths=(8,), mean=torch.full((3,), 0.2))
        net.losses({"spot": torch.ones(9, 5)}, torch.full((9, 3), 0.2))["loss"].backward()
        assert all(torch.isfinite(each.grad).all() for each in net.parameters())

    def test_learns(self):
        """Two parts of three, of which the third is the rest."""
        net = CompositionMLP(6, 3, widths=(32, 32), mean=torch.full((3,), 1 / 3))
        spots = torch.randn(400, 6)
        truth = (spots[:, :3] + spots[:, 3:].square()).softmax(1)
        optimizer = torch.optim.Adam(net.parameters(), 3e-3)
        for start in list(range(0, 300, 100)) * 60:
            optimizer.zero_grad()
            part = slice(start, start + 100)
            net.losses({"spot": spots[part]}, truth[part])["loss"].backward()
            optimizer.step()
        held = slice(300, 400)
        assert negative_correlation(net({"spot": spots[held]}), truth[held]).item() < -0.9

    def test_mean_is_of_the_types(self):
        with pytest.raises(ValueError, match=r"mean has the shape \(2,\); there are 3 types"):
            CompositionMLP(4, 3, mean=torch.zeros(2))
