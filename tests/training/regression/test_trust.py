"""Scores of outputs, and how usual regions are."""

from __future__ import annotations

import numpy as np
import pytest
from scipy.stats import pearsonr

from sthist.training.regression.familiarity import Familiarity
from sthist.training.regression.trust import output_scores

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
