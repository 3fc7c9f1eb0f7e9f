"""Ridge regression against scikit-learn's."""

from __future__ import annotations

import numpy as np
import pytest
import scipy.sparse as sp
from sklearn.decomposition import PCA
from sklearn.linear_model import Ridge
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

from sthist.models import Ridge as Model
from sthist.models import RidgeConfig

RNG = np.random.default_rng(0)
FEATURES = RNG.normal(size=(80, 12)) * np.arange(1, 13) + 5
GENES = np.maximum(FEATURES @ RNG.normal(size=(12, 4)) + RNG.normal(size=(80, 4)), 0)


@pytest.mark.parametrize("n_components", [None, 5, 256])
@pytest.mark.parametrize("form", [np.asarray, sp.csr_matrix])
def test_it_is_the_one_of_scikit_learn(n_components, form):
    steps = [StandardScaler()] if n_components is None else [StandardScaler(), PCA(min(n_components, 12))]
    wanted = make_pipeline(*steps, Ridge(alpha=7.0)).fit(FEATURES, GENES)
    found = Model(RidgeConfig(alpha=7.0, n_components=n_components)).fit(FEATURES, form(GENES))
    np.testing.assert_allclose(found.predict(FEATURES[:9]), wanted.predict(FEATURES[:9]), rtol=1e-4, atol=1e-4)


def test_a_constant_feature_does_no_harm():
    found = Model().fit(np.c_[FEATURES, np.full(80, 3.0)], GENES)
    np.testing.assert_allclose(
        found.predict(np.c_[FEATURES, np.full(80, 3.0)]), Model().fit(FEATURES, GENES).predict(FEATURES), atol=1e-3
    )


def test_what_it_cannot_take():
    model = Model().fit(FEATURES, GENES)
    with pytest.raises(ValueError, match="12 dimensions"):
        model.predict(FEATURES[:, :5])
    with pytest.raises(ValueError, match="NaN or infinite, first in row 3"):
        model.predict(np.where(np.arange(80)[:, None] == 3, np.nan, FEATURES))
    with pytest.raises(ValueError, match="not trained"):
        Model().predict(FEATURES)
    with pytest.raises(ValueError, match="alpha"):
        RidgeConfig(alpha=0)


def test_of_few_directions_predictions_have_no_more():
    model = Model(RidgeConfig(alpha=1.0, rank=2)).fit(FEATURES, GENES)
    full = Model(RidgeConfig(alpha=1.0)).fit(FEATURES, GENES).predict(FEATURES)
    directions = PCA(2).fit(GENES).components_
    wanted = GENES.mean(axis=0) + (full - GENES.mean(axis=0)) @ directions.T @ directions
    np.testing.assert_allclose(model.predict(FEATURES), wanted, atol=1e-3)


def test_the_recipe_of_hest():
    """Scikit-learn's ridge on 256 components, its penalty 100 / (components x genes); ours has an intercept."""
    mean = GENES.mean(axis=0)
    scores = make_pipeline(StandardScaler(), PCA(6)).fit(FEATURES)
    ridge = Ridge(alpha=100 / (6 * 4), fit_intercept=False).fit(scores.transform(FEATURES), GENES - mean)
    found = Model(RidgeConfig(alpha="hest", n_components=6)).fit(FEATURES, GENES).predict(FEATURES)
    np.testing.assert_allclose(found, ridge.predict(scores.transform(FEATURES)) + mean, atol=1e-3)
