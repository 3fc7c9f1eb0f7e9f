"""Scores of outputs, and how usual regions are."""

from __future__ import annotations

import numpy as np
import pytest
from scipy.stats import pearsonr

from sthist import metrics
from sthist.regression.trust.familiarity import Familiarity
from sthist.regression.trust.output_scores import SHUFFLES, output_scores

RNG = np.random.default_rng(0)


def test_scores_are_within_samples_and_by_their_size():
    truth = RNG.normal(size=(90, 2))
    predicted = truth + RNG.normal(size=(90, 2))
    sample = np.repeat([0, 1], [60, 30])
    predicted[sample == 1] += 100  # a sample that is brighter as a whole is none the better for it
    scores = output_scores(truth, predicted, np.zeros_like(truth), sample)
    for gene in range(2):
        parts = [pearsonr(truth[sample == each, gene], predicted[sample == each, gene])[0] for each in (0, 1)]
        assert scores["pearson"][gene] == pytest.approx((60 * parts[0] + 30 * parts[1]) / 90)
        assert scores["l1_of_mean"][gene] == pytest.approx(np.abs(truth[:, gene]).mean())


def test_chance_is_that_of_permutations():
    truth, predicted = RNG.normal(size=(2, 400, 50))
    chance = np.array(output_scores(truth, predicted, truth, np.zeros(400, int))["pearson_null"])
    # Under permutation a correlation has mean 0 and variance 1 / (n - 1), whatever the values.
    assert chance.mean() == pytest.approx(1.96 / np.sqrt(399), rel=0.1)


def test_what_does_not_vary_has_no_score():
    truth = np.c_[np.ones(30), RNG.normal(size=30)]
    scores = output_scores(truth, RNG.normal(size=(30, 2)), truth, np.zeros(30, int))
    assert scores["pearson"][0] is None
    assert scores["trusted"][0] is False


def test_the_null_is_the_quantile_of_exchanged_predictions():
    """The same exchanges, each scored anew."""
    truth, predicted = RNG.normal(size=(2, 50, 3)) + [[[0.0]], [[3.0]]]
    truth[20:, 2] = 1  # constant in one sample
    sample = np.repeat([0, 1], [20, 30])
    scores = output_scores(truth, predicted, truth, sample, seed=5)
    rng = np.random.default_rng([5, SHUFFLES])
    exchanged = []
    for _ in range(SHUFFLES):
        order = np.r_[rng.permutation(20), 20 + rng.permutation(30)]
        exchanged.append(metrics.gene_pearson(truth, predicted[order], groups=sample))
    np.testing.assert_allclose(scores["pearson_null"], np.quantile(exchanged, 0.975, axis=0), atol=1e-6)


def test_what_was_not_measured_does_not_count():
    truth = RNG.normal(size=(300, 2))
    predicted = truth + RNG.normal(size=(300, 2))
    sample = np.repeat([0, 1, 2], 100)
    mask = np.ones((300, 2), bool)
    mask[sample == 1, 0] = False
    scores = output_scores(np.where(mask, truth, np.nan), predicted, np.zeros(2), sample, mask)
    parts = [pearsonr(truth[sample == each, 0], predicted[sample == each, 0])[0] for each in (0, 2)]
    assert scores["pearson"][0] == pytest.approx(np.mean(parts))
    assert scores["l1"][0] == pytest.approx(np.abs(truth - predicted)[mask[:, 0], 0].mean())
    assert scores["trusted"] == [True, True]
    mask[0, 1] = False  # a part of a sample: each exchange is scored anew, to much the same end
    again = output_scores(truth, predicted, np.zeros(2), sample, mask)
    assert again["pearson_null"][1] == pytest.approx(scores["pearson_null"][1], abs=0.04)


def test_exchanged_tiles_count_where_they_score_higher():
    truth = RNG.normal(size=(200, 2))
    predicted = truth + RNG.normal(size=(200, 2))
    scores = output_scores(truth, predicted, truth, np.zeros(200, int), shuffled=truth * [1, 0])
    assert scores["pearson_null"][0] == pytest.approx(1)
    assert scores["trusted"] == [False, True]


class TestFamiliarity:
    features = RNG.normal(size=(300, 6))
    groups = np.repeat(np.arange(3), 100)

    def test_usual_strange_and_known(self):
        known = Familiarity.of_training(self.features, self.groups)
        usual = known.of(RNG.normal(size=(500, 6)))
        assert 0.35 < np.median(usual) < 0.75
        assert (known.of(self.features + 100) == 0).all()
        assert (known.of(self.features[:5]) == 1).all()

    def test_it_is_kept_with_a_model(self):
        known = Familiarity.of_training(self.features, self.groups)
        again = Familiarity.from_weights(known.weights())
        np.testing.assert_array_equal(again.of(self.features[:9] + 1), known.of(self.features[:9] + 1))

    def test_copies_in_one_group_do_not_count(self):
        twice = np.concatenate([self.features, self.features])
        known = Familiarity.of_training(twice, np.tile(self.groups, 2))
        assert known.distances.min() > 0

    def test_quantiles_by_a_loop(self):
        """Distances of the standardised features in full: as many components as features."""
        new = RNG.normal(size=(30, 6))
        z, other = (self.features - self.features.mean(0)) / self.features.std(0), self.groups[:, None] != self.groups
        own = [np.linalg.norm(z[other[row]] - z[row], axis=1).min() for row in range(300)]
        nearest = [np.linalg.norm(z - (x - self.features.mean(0)) / self.features.std(0), axis=1).min() for x in new]
        expected = [np.mean(np.array(own) >= distance) for distance in nearest]
        found = Familiarity.of_training(self.features, self.groups).of(new)
        np.testing.assert_allclose(found, expected, atol=1.1 / 300)  # a distance may round to another's

    def test_a_new_slide_is_compared_with_how_far_slides_are_apart(self):
        centres = 3 * RNG.normal(size=(6, 20))
        slides = [centre + RNG.normal(size=(100, 20)) for centre in centres]
        trained = np.concatenate(slides[:5])
        assert np.median(Familiarity.of_training(trained, np.repeat(np.arange(5), 100)).of(slides[5])) > 0.2
        assert np.median(Familiarity.of_training(trained, np.zeros(500, int)).of(slides[5])) < 0.05

    def test_what_no_component_shows_counts(self):
        wide = RNG.normal(size=(400, 80)) * np.r_[np.full(40, 5.0), np.full(40, 1.0)] @ RNG.normal(size=(80, 80))
        flat = np.c_[wide[:, :60], np.full((400, 20), 3.0)]  # 20 features that no training region shows
        known = Familiarity.of_training(flat, np.zeros(400, int))
        new = flat[:20].copy()
        new[:, 70] += 1000
        assert (known.of(flat[:20]) == 1).all()
        assert (known.of(new) == 0).all()

    def test_features_of_another_encoder_are_refused(self):
        with pytest.raises(ValueError, match="trained on 6 of each region"):
            Familiarity.of_training(self.features, self.groups).of(np.ones((3, 5)))
