"""Whether scores differ between classes of tiles: ANOVA and Tukey's test."""

from __future__ import annotations

from dataclasses import dataclass
from itertools import combinations
from typing import TYPE_CHECKING

import numpy as np

from sthist._messages import plain
from sthist.metrics._compare import check_column

if TYPE_CHECKING:
    import pandas as pd


@dataclass(frozen=True, eq=False)
class RegionTest:
    """Differences of a score between classes.

    Attributes
    ----------
    metric
        The score.
    f, p
        Statistic and p-value of one-way ANOVA over all classes.
    pairs
        Tukey's honestly significant differences, one row per two classes ``a``, ``b``: ``difference`` of their means (a
        minus b), its simultaneous 95 % interval ``low`` to ``high``, and ``p``, adjusted for the number of pairs.

    Examples
    --------
    >>> import pandas as pd
    >>> from sthist.metrics import image
    >>> frame = pd.DataFrame({"class": ["a", "a", "b", "b"], "ssim": [0.1, 0.2, 0.8, 0.9]})
    >>> image.region_tests(frame, "ssim").metric
    'ssim'
    """

    metric: str
    f: float
    p: float
    pairs: pd.DataFrame


def region_tests(frame: pd.DataFrame, metric: str, groupby: str = "class", *, method: str = "virtual") -> RegionTest:
    """Test whether a score differs between classes: one-way ANOVA, then Tukey's test of every two classes.

    Neighbouring tiles are not independent, so p-values of tiles of one section are smaller than they should be.

    Parameters
    ----------
    frame
        From :func:`compare`; rows without a class are left out.
    metric
        Column of the score.
    groupby
        Column of the class.
    method
        Whose score, where the frame has a column ``method``.

    Returns
    -------
    The tests.

    Raises
    ------
    ValueError
        If there are fewer than two classes, one has fewer than two tiles, scores are not finite, or do not vary.

    Examples
    --------
    >>> import pandas as pd
    >>> from sthist.metrics import image
    >>> frame = pd.DataFrame({"class": list("aaabbb"), "ssim": [0.1, 0.2, 0.3, 0.7, 0.8, 0.9]})
    >>> tests = image.region_tests(frame, "ssim")
    >>> round(tests.f, 1), round(tests.p, 4)
    (54.0, 0.0018)
    >>> tests.pairs.round(2)
       a  b  difference   low  high    p
    0  a  b        -0.6 -0.83 -0.37  0.0
    """
    import pandas as pd
    from scipy import stats

    values = by_class(frame, metric, groupby, method)
    if len(values) < 2:
        raise ValueError(f"A test between classes needs at least two; {groupby!r} has {plain(list(values))}.")
    for name, group in values.items():
        if len(group) < 2:
            raise ValueError(
                f"Class {plain(name)!r} has one tile only; each needs at least two. Leave it out of the table, or pass "
                "tests=False to a plot."
            )
    if all(np.ptp(group) == 0 for group in values.values()):
        raise ValueError(f"{metric} does not vary within any class: there is nothing to test against.")
    anova = stats.f_oneway(*values.values())
    tukey = stats.tukey_hsd(*values.values())
    interval = tukey.confidence_interval(0.95)
    names = list(values)
    pairs = [
        (names[i], names[j], tukey.statistic[i, j], interval.low[i, j], interval.high[i, j], tukey.pvalue[i, j])
        for i, j in combinations(range(len(names)), 2)
    ]
    columns = ["a", "b", "difference", "low", "high", "p"]
    return RegionTest(metric, float(anova.statistic), float(anova.pvalue), pd.DataFrame(pairs, columns=columns))


def by_class(frame: pd.DataFrame, metric: str, by: str, method: str) -> dict[object, np.ndarray]:
    """Scores of one method, by class."""
    check_column(frame, by)
    if metric not in frame.columns:
        raise ValueError(f"The table has no score {metric!r}, but {list(frame.columns)}.")
    if "method" in frame.columns:
        if method not in set(frame["method"]):
            raise ValueError(f"The table has no method {method!r}, but {plain(list(frame['method'].unique()))}.")
        frame = frame[frame["method"] == method]
    frame = frame[frame[by].notna()]
    finite = np.isfinite(frame[metric].to_numpy(float))
    if not finite.all():
        reason = frame.attrs.get("not_available", {}).get(metric)
        hint = "PSNR of equal images is infinite: leave those tiles out, or test mse."
        raise ValueError(f"{metric} is not finite in {(~finite).sum()} of {len(finite)} tiles. {reason or hint}")
    return {name: part[metric].to_numpy(float) for name, part in frame.groupby(by, observed=True)}
