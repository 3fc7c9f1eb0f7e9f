"""Scores of several trainings, summarised over their seeds."""

from __future__ import annotations

from typing import TYPE_CHECKING

from sthist.metrics._compare import by_seed

if TYPE_CHECKING:
    from collections.abc import Sequence

    import pandas as pd

KEYS = ("variant", "factor", "method")


def over_seeds(frame: pd.DataFrame, *, by: Sequence[str] | None = None) -> pd.DataFrame:
    """Mean of each score over seeds, and how far the seeds lie apart.

    A score of a seed is its mean over all held-out tiles; of FID and KID, which belong to whole sets, over the folds.

    Parameters
    ----------
    frame
        Of :func:`cross_validate_virtual_he` or :func:`ablate_virtual_he`.
    by
        Columns to group by; by default ``variant``, ``factor`` and ``method``, those that there are. With ``"class"`` among them FID
        and KID are those of the classes.

    Returns
    -------
    One row per group: its columns, ``n_seeds``, ``n_tiles`` (of a seed), and of each score the mean over seeds under its own name and the
    standard deviation over seeds as ``<score>_sd``, NaN for a single one.

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
    keys = [name for name in KEYS if name in frame] if by is None else [by] if isinstance(by, str) else list(by)
    missing = [name for name in ["seed", *keys] if name not in frame]
    if missing or not keys:
        msg = f"The table has no column {missing[0] if missing else KEYS!r}, but {list(frame.columns)}."
        raise ValueError(msg)
    seeds = by_seed(frame, keys)
    names = [name for name in seeds.columns if name not in (*keys, "seed", "n_tiles")]
    grouped = seeds.groupby(keys, sort=False, observed=True)
    summary = grouped.agg(n_seeds=("seed", "nunique"), n_tiles=("n_tiles", "first"))
    for name in names:
        summary[name], summary[f"{name}_sd"] = grouped[name].mean(), grouped[name].std()
    return summary.reset_index()
