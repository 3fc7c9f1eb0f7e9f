"""Tests of all scores between region classes."""

from __future__ import annotations

import numpy as np
import pandas as pd
import pytest
from scipy import stats

from sthist.benchmark import region_tests


@pytest.fixture
def frame():
    rng = np.random.default_rng(0)
    n = 30
    table = pd.DataFrame({"method": "virtual", "tile": np.arange(3 * n), "class": np.repeat(["a", "b", "c"], n)})
    table["ssim"] = rng.normal(0.6, 0.05, 3 * n) - 0.1 * (table["class"] == "c")
    table["nucleus_f1"] = np.where(rng.random(3 * n) < 0.2, np.nan, rng.random(3 * n))
    null = table.assign(method="shuffled", ssim=0.1)
    return pd.concat([table, null], ignore_index=True)


def test_all_scores(frame):
    """As scipy has them, of the virtual tiles that have a score; one row per score and two classes."""
    tests = region_tests(frame)
    assert list(tests.columns) == ["metric", "f", "p", "a", "b", "difference", "low", "high", "p_pair"]
    assert tests.groupby("metric", sort=False).size().to_dict() == {"ssim": 3, "nucleus_f1": 3}
    for name, part in tests.groupby("metric"):
        own = frame[(frame.method == "virtual") & frame[name].notna()]
        groups = [own[own["class"] == each][name] for each in "abc"]
        anova, tukey = stats.f_oneway(*groups), stats.tukey_hsd(*groups)
        np.testing.assert_allclose(part[["f", "p"]], [[anova.statistic, anova.pvalue]] * 3)
        np.testing.assert_allclose(part.p_pair, [tukey.pvalue[i, j] for i, j in ((0, 1), (0, 2), (1, 2))])
        np.testing.assert_allclose(
            part.difference, [groups[i].mean() - groups[j].mean() for i, j in ((0, 1), (0, 2), (1, 2))]
        )
    assert tests.attrs["not_tested"] == {}


def test_what_cannot_be_tested_is_said(frame):
    frame["psnr"], frame["lpips"] = np.inf, np.nan
    frame.attrs["not_available"] = {"lpips": "No weights."}
    tests = region_tests(frame)
    assert set(tests.metric) == {"ssim", "nucleus_f1"}
    assert tests.attrs["not_tested"]["lpips"] == "No weights."
    assert "not finite" in tests.attrs["not_tested"]["psnr"]
    assert set(region_tests(frame, metrics="ssim").metric) == {"ssim"}
    with pytest.raises(ValueError, match="No score can be tested"):
        region_tests(frame, metrics=["lpips"])
    with pytest.raises(ValueError, match="no column 'region'"):
        region_tests(frame, groupby="region")
    with pytest.raises(ValueError, match="no score 'sim'"):
        region_tests(frame, metrics="sim")
