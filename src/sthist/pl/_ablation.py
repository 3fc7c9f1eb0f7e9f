"""Scores of the variants of a model, seed by seed."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from sthist.metrics._compare import by_seed
from sthist.pl._base import finish
from sthist.pl._benchmark import LABELS

if TYPE_CHECKING:
    from pathlib import Path

    import pandas as pd
    from matplotlib.axes import Axes

SET_LABELS = {"fid": "FID", "kid": "KID"}
ROW_INCHES, GAP = 0.3, 0.8
"""Height of a variant, and the room between two factors in units of it."""

BASELINE = "baseline"


def ablation(
    frame: pd.DataFrame,
    metric: str = "ssim",
    *,
    method: str = "model",
    baselines: bool = True,
    level: float = 0.95,
    ax: Axes | None = None,
    save: str | Path | None = None,
) -> Axes:
    """Draw a score of each variant: a point per seed, their mean, and its interval.

    Variants stand below each other, grouped by what they change. The interval is Student's, of the mean over seeds; one seed has
    none. Dashed lines are what was not trained.

    Parameters
    ----------
    frame
        Of :func:`sthist.benchmark.ablate_virtual_he`.
    metric
        A score of tiles, which is averaged over the tiles of a seed, or ``"fid"`` or ``"kid"``.
    method
        Whose scores.
    baselines
        Draw what was not trained, and the model's image of another tile under the first variant.
    level
        Of the interval.
    ax
        Axes to draw on.
    save
        File to save the figure to.

    Returns
    -------
    The axes.

    Raises
    ------
    ValueError
        If the frame has no variants, no such score or method, the score was not available, or ``level`` is out of range.

    Examples
    --------
    >>> import pandas as pd, sthist
    >>> frame = pd.DataFrame(
    ...     {
    ...         "variant": ["base"] * 3 + ["one colour"] * 3,
    ...         "factor": ["base"] * 3 + ["mode"] * 3,
    ...         "method": "model",
    ...         "seed": [0, 1, 2] * 2,
    ...         "ssim": [0.6, 0.62, 0.61, 0.5, 0.52, 0.54],
    ...     }
    ... )
    >>> ax = sthist.pl.ablation(frame)
    >>> ax.get_xlabel(), [label.get_text() for label in ax.get_yticklabels()]
    ('SSIM', ['base', 'one colour'])
    """
    seeds = _scores(frame, metric)
    trained = seeds[(seeds["factor"] != BASELINE) & (seeds["method"] == method)]
    if not len(trained):
        msg = f"The table has no variants of the method {method!r}, but {sorted(set(seeds['method']))}."
        raise ValueError(msg)
    if not 0 < level < 1:
        msg = f"level is {level!r}; it lies between 0 and 1."
        raise ValueError(msg)
    places = _places(trained)
    if ax is None:
        import matplotlib.pyplot as plt

        rows = max(places.values()) + 2
        ax = plt.subplots(figsize=(6.0, 0.9 + ROW_INCHES * rows), layout="constrained")[1]
    for variant, part in trained.groupby("variant", sort=False):
        _draw(ax, places[str(variant)], part["value"].to_numpy(float), level)
    _name_rows(ax, trained, places)
    if baselines:
        _lines(ax, _baselines(seeds, str(trained["variant"].iloc[0])))
    label = SET_LABELS.get(metric, LABELS.get(metric, metric))
    ax.set(xlabel=label, ylim=(max(places.values()) + 0.7, -0.7))
    ax.spines[["top", "right"]].set_visible(False)
    return finish([ax], save)[0]


def _scores(frame: pd.DataFrame, metric: str) -> pd.DataFrame:
    """One value per variant, factor, method and seed."""
    keys = ["variant", "factor", "method"]
    missing = [name for name in [*keys, "seed"] if name not in frame]
    if missing:
        msg = f"The table has no column {missing[0]!r}, but {list(frame.columns)}; it comes from benchmark.ablate_virtual_he."
        raise ValueError(msg)
    seeds = by_seed(frame, keys)
    reasons = frame.attrs.get("not_available", {})
    if metric not in seeds:
        msg = f"The table has no score {metric!r}; it has {[name for name in seeds if name not in (*keys, 'seed', 'n_tiles')]}."
        raise ValueError(msg)
    if seeds[metric].isna().all():
        msg = f"The score {metric!r} is not available: {reasons.get(metric, 'all its values are missing.')}"
        raise ValueError(msg)
    return seeds[[*keys, "seed", metric]].rename(columns={metric: "value"})


def _places(trained: pd.DataFrame) -> dict[str, float]:
    """Height of each variant: in the order of the table, those of one factor together."""
    places: dict[str, float] = {}
    at = 0.0
    for _, part in trained.groupby("factor", sort=False):
        for variant in dict.fromkeys(part["variant"]):
            places[str(variant)] = at
            at += 1
        at += GAP
    return places


def _draw(ax: Axes, at: float, values: np.ndarray, level: float) -> None:
    """Points of the seeds, their mean, and its interval."""
    from scipy import stats

    ax.plot(values, np.full(len(values), at), "o", color="C0", alpha=0.5, markersize=4, zorder=2)
    mean = float(values.mean())
    ax.plot([mean], [at], "|", color="black", markersize=12, markeredgewidth=1.8, zorder=3)
    if len(values) > 1:
        half = float(stats.t.ppf((1 + level) / 2, len(values) - 1) * values.std(ddof=1) / np.sqrt(len(values)))
        ax.hlines(at, mean - half, mean + half, color="0.4", linewidth=1.2, zorder=1)


def _name_rows(ax: Axes, trained: pd.DataFrame, places: dict[str, float]) -> None:
    """Names of the variants on the left, of what they change on the right."""
    ax.set_yticks(list(places.values()), list(places))
    ax.tick_params(axis="y", length=0)
    for factor, part in trained.groupby("factor", sort=False):
        rows = [places[str(variant)] for variant in dict.fromkeys(part["variant"])]
        if factor == "base":
            continue
        ax.annotate(
            str(factor),
            (1, float(np.mean(rows))),
            xycoords=("axes fraction", "data"),
            xytext=(4, 0),
            textcoords="offset points",
            va="center",
            fontsize="small",
            color="0.4",
        )


def _baselines(seeds: pd.DataFrame, first: str) -> dict[str, float]:
    """Mean score of what was not trained, and of images of other tiles."""
    lines = seeds[seeds["factor"] == BASELINE].groupby("method", sort=False)["value"].mean().to_dict()
    other = seeds[(seeds["variant"] == first) & (seeds["method"] == "shuffled")]["value"]
    return {str(name): float(value) for name, value in lines.items()} | (
        {"shuffled": float(other.mean())} if len(other) else {}
    )


def _lines(ax: Axes, lines: dict[str, float]) -> None:
    shown = {name: value for name, value in lines.items() if np.isfinite(value)}
    for i, (name, value) in enumerate(shown.items()):
        ax.axvline(value, color=f"C{i + 1}", linestyle="--", linewidth=1.2, zorder=0, label=name)
    if shown:
        ax.legend(loc="lower center", bbox_to_anchor=(0.5, 1.0), ncols=2, frameon=False, fontsize="small")
