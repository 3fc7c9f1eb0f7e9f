"""Whether scores differ between region classes, of all scores at once."""

from __future__ import annotations

from typing import TYPE_CHECKING

from sthist.metrics import image as scores
from sthist.metrics._compare import NO_SCORES, by_seed, check_column

if TYPE_CHECKING:
    from collections.abc import Sequence

    import pandas as pd

KEYS = ("variant", "factor", "method")


def over_seeds(frame: pd.DataFrame, *, groupby: Sequence[str] | None = None) -> pd.DataFrame:
    """Mean of each score over seeds, and how far the seeds lie apart.

    A score of a seed is its mean over all held-out tiles; of FID and KID, which belong to whole sets, over the folds.

    Parameters
    ----------
    frame
        Of :func:`cross_validate_virtual_he` or :func:`ablate_virtual_he`.
    groupby
        Columns to group by; by default ``variant``, ``factor`` and ``method``, those that there are. With ``"class"``
        among them FID and KID are those of the classes.

    Returns
    -------
    One row per group: its columns, ``n_seeds``, ``n_tiles`` (of a seed), and of each score the mean over seeds under
    its own name and the standard deviation over seeds as ``<score>_sd``, NaN for a single one.

    Raises
    ------
    ValueError
        If the frame has no seeds, or no such columns.

    Examples
    --------
    >>> import pandas as pd, sthist
    >>> frame = pd.DataFrame({"method": "model", "seed": [0, 0, 1, 1], "ssim": [0.5, 0.7, 0.6, 0.8]})
    >>> sthist.benchmark.over_seeds(frame).round(3).to_dict("records")
    [{'method': 'model', 'n_seeds': 2, 'n_tiles': 2, 'ssim': 0.65, 'ssim_sd': 0.071}]
    """
    keys = (
        [name for name in KEYS if name in frame]
        if groupby is None
        else [groupby]
        if isinstance(groupby, str)
        else list(groupby)
    )
    missing = [name for name in ["seed", *keys] if name not in frame]
    if missing or not keys:
        raise ValueError(f"The table has no column {missing[0] if missing else KEYS!r}, but {list(frame.columns)}.")
    seeds = by_seed(frame, keys)
    names = [name for name in seeds.columns if name not in (*keys, "seed", "n_tiles")]
    grouped = seeds.groupby(keys, sort=False, observed=True)
    summary = grouped.agg(n_seeds=("seed", "nunique"), n_tiles=("n_tiles", "first"))
    for name in names:
        summary[name], summary[f"{name}_sd"] = grouped[name].mean(), grouped[name].std()
    return summary.reset_index()


def region_tests(
    frame: pd.DataFrame, *, groupby: str = "class", method: str = "virtual", metrics: Sequence[str] | None = None
) -> pd.DataFrame:
    """Test each score between region classes: one-way ANOVA, and Tukey's test of every two classes.

    Parameters
    ----------
    frame
        Of :func:`virtual_he` with ``classes=``.
    groupby
        Column of the class.
    method
        Whose scores, where there is a column ``method``.
    metrics
        Columns to test; by default all that hold numbers.

    Returns
    -------
    One row per score and two classes: ``metric``, ``f`` and ``p`` of ANOVA over all classes; classes ``a`` and ``b``,
    ``difference`` of their means (a minus b), its simultaneous 95 % interval ``low`` to ``high``, and ``p_pair``,
    adjusted for the number of pairs. Tiles without a score, such as those without nuclei, are left out; a score that
    cannot be tested is left out, and ``attrs["not_tested"]`` says why. Neighbouring tiles are alike, so that p-values
    are smaller than they should be.

    Raises
    ------
    ValueError
        If there is no such column, or nothing that can be tested.

    Examples
    --------
    >>> import pandas as pd, sthist
    >>> frame = pd.DataFrame({"class": list("aaabbb"), "ssim": [0.1, 0.2, 0.3, 0.7, 0.8, 0.9]})
    >>> tests = sthist.benchmark.region_tests(frame)
    >>> tests[["metric", "a", "b", "p_pair"]].round(3).to_numpy().tolist()
    [['ssim', 'a', 'b', 0.002]]
    """
    import pandas as pd

    check_column(frame, groupby)
    numbers = [name for name in frame.select_dtypes("number").columns if name not in (*NO_SCORES, groupby)]
    names = numbers if metrics is None else [metrics] if isinstance(metrics, str) else list(metrics)
    parts, reasons = [], {}
    for name in names:
        known = frame[frame[name].notna()] if name in frame else frame
        if not len(known):
            reasons[name] = frame.attrs.get("not_available", {}).get(name, "There are no scores.")
            continue
        try:
            tested = scores.region_tests(known, name, groupby, method=method)
        except ValueError as error:
            reasons[name] = str(error)
            continue
        pairs = tested.pairs.rename(columns={"p": "p_pair"})
        parts.append(pairs.assign(metric=name, f=tested.f, p=tested.p))
    if not parts:
        raise ValueError(f"No score can be tested between classes: {reasons or 'the table has no numbers'}.")
    columns = ["metric", "f", "p", "a", "b", "difference", "low", "high", "p_pair"]
    result = pd.concat(parts, ignore_index=True)[columns]
    result.attrs["not_tested"] = reasons
    return result
