"""What a benchmark of augmentation has found: a tidy table, its summary, and a verdict in words."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np

from sthist._messages import listed
from sthist.benchmark._augmentation.predictors import BOTH, CONTROLS, MEAN, REAL, SHUFFLED
from sthist.benchmark._augmentation.scores import DRAWN, METRICS

if TYPE_CHECKING:
    import pandas as pd
    from anndata import AnnData

LOWER_IS_BETTER = ("mae",)
KEYS = ["fraction", "arm", "ratio"]

N_DRAWS = 2000
"""Draws of seeds and, of each, of its spots."""

NAMES = {
    "mae": "mean absolute error",
    "pearson": "gene-wise Pearson correlation",
    "accuracy": "accuracy of expression clusters",
    "f1": "macro F1 of expression clusters",
    "auc_ovr": "one-versus-rest AUC of expression clusters",
    "auc_ovo": "one-versus-one AUC of expression clusters",
}


@dataclass(frozen=True, eq=False)
class AugmentationScores:
    """What :func:`augmentation` has found.

    Attributes
    ----------
    scores
        A row for each fraction, seed, arm and ratio: ``n_spots`` that were adapted to and trained on, ``n_test``,
        ``n_train`` rows, ``steps`` in which weights were changed, and the scores.
    draws
        By score, (rows of ``scores``, draws): the same draws of test spots for all arms of a fraction and seed.
    tables
        By fraction and seed: measured log expression of the spots that test in ``X``, and as layers what the arms
        with most synthetic tiles, and their controls, predict.
    spots
        What each spot was for: ``fraction``, ``seed``, ``sample``, ``instance_id`` and ``part``, ``"adaptation"`` or
        ``"test"``.
    """

    scores: pd.DataFrame
    draws: dict[str, np.ndarray]
    tables: dict[tuple[float, int], AnnData] = field(repr=False)
    spots: pd.DataFrame = field(repr=False)

    def summary(self, metric: str = "mae") -> pd.DataFrame:
        """Mean of a score over seeds, and how much real and synthetic tiles together differ from the best control.

        Parameters
        ----------
        metric
            ``"mae"``, ``"pearson"``, ``"accuracy"``, ``"f1"``, ``"auc_ovr"`` or ``"auc_ovo"``.

        Returns
        -------
        A row for each fraction, arm and ratio: ``n_seeds``, ``n_spots``, ``steps``, ``mean``, ``sd`` over seeds, and
        ``low`` to ``high``, the middle 95 % over draws of seeds and of test spots (for ``"f1"`` and the AUC of seeds
        alone, and NaN of one seed). For real and synthetic tiles: ``control``, the best on average of training on real
        tiles alone, for as many epochs, for as many steps, and with ordinary augmentation; ``difference`` to it, and
        its interval, ``difference_low`` to ``difference_high``, in which seeds and spots are those of both sides. The
        best is chosen on the spots that test, which favours the controls.

        Raises
        ------
        ValueError
            If there is no such score.
        """
        import pandas as pd

        if metric not in METRICS:
            raise ValueError(f"metric is {metric!r}; it is one of {listed(METRICS)}.")
        rows = []
        for (fraction, arm, ratio), part in self.scores.groupby(KEYS, sort=False):
            drawn = self._drawn(part, metric)
            row: dict[str, Any] = {
                "fraction": fraction,
                "arm": arm,
                "ratio": ratio,
                "n_seeds": part["seed"].nunique(),
                "n_spots": int(part["n_spots"].iloc[0]),
                "steps": int(part["steps"].iloc[0]),
                "mean": part[metric].mean(),
                "sd": part[metric].std(),
            }
            row["low"], row["high"] = _middle(drawn)
            if arm == BOTH and ratio:
                control = self._best_control(fraction, ratio, metric)
                difference = drawn - self._drawn(control, metric)
                low, high = _middle(difference)
                row |= {
                    "control": str(control["arm"].iloc[0]),
                    "difference": row["mean"] - control[metric].mean(),
                    "difference_low": low,
                    "difference_high": high,
                }
            rows.append(row)
        return pd.DataFrame(rows)

    def verdict(self, metric: str = "mae") -> str:
        """Whether synthetic tiles help beyond equal training and ordinary augmentation, in words.

        Parameters
        ----------
        metric
            As of :meth:`summary`.
        """
        frame = self.summary(metric)
        both = frame[(frame["arm"] == BOTH) & (frame["ratio"] > 0)]
        found: list[dict[str, Any]] = both.to_dict("records")  # type: ignore[assignment]
        judged = [_judged(row, metric) for row in found]
        n = {word: judged.count(word) for word in ("better", "worse", "not told apart")}
        lines = [
            f"By the {NAMES[metric]}, real and synthetic tiles together are better than the best control in "
            f"{n['better']} of {len(judged)} comparisons, worse in {n['worse']}, and not told apart from it in "
            f"{n['not told apart']}."
        ]
        lines += [_line(row, word) for row, word in zip(found, judged, strict=True)]
        lines += self._warnings(frame, metric)
        return "\n".join(lines)

    def _warnings(self, frame: pd.DataFrame, metric: str) -> list[str]:
        """What stands against reading too much into the differences."""
        lines = []
        sign = -1 if metric in LOWER_IS_BETTER else 1
        for fraction, part in frame.groupby("fraction", sort=False):
            means = {(row["arm"], row["ratio"]): sign * row["mean"] for row in part.to_dict("records")}
            most = max(ratio for arm, ratio in means if arm == BOTH)
            if means[REAL, 0] <= means[MEAN, 0]:
                lines.append(
                    f"With {fraction:.0%} of the spots, training on real tiles alone is no better than the mean."
                )
            if means[SHUFFLED, most] >= means[BOTH, most]:
                lines.append(
                    f"With {fraction:.0%} of the spots, synthetic tiles with the expression of others do no worse: "
                    "what they add is not in their pairs."
                )
        return lines

    def _drawn(self, part: pd.DataFrame, metric: str) -> np.ndarray:
        """A score of an arm, over draws of seeds, and of spots where these were drawn, (draws,)."""
        part = part.sort_values("seed")
        values = part[metric].to_numpy(float)[:, None]
        if metric not in DRAWN and len(values) == 1:
            return np.full(N_DRAWS, np.nan)  # one seed says nothing of the next
        if metric in DRAWN:
            values = self.draws[metric][part.index.to_numpy()].astype(np.float64)
        rng = np.random.default_rng(40)  # the same for all arms, which are compared draw by draw
        seeds = rng.integers(len(values), size=(N_DRAWS, len(values)))
        spots = rng.integers(values.shape[1], size=seeds.shape)
        return np.asarray(values[seeds, spots].mean(axis=1))

    def _best_control(self, fraction: Any, ratio: Any, metric: str) -> pd.DataFrame:
        frame = self.scores
        there = (frame["fraction"] == fraction) & frame["arm"].isin(CONTROLS) & frame["ratio"].isin([0, ratio])
        means = frame[there].groupby("arm", sort=False)[metric].mean()
        best = means.idxmin() if metric in LOWER_IS_BETTER else means.idxmax()
        return frame[there & (frame["arm"] == best)]


def _middle(drawn: np.ndarray) -> tuple[float, float]:
    if not np.isfinite(drawn).any():
        return float("nan"), float("nan")
    low, high = np.nanquantile(drawn, [0.025, 0.975])
    return float(low), float(high)


def _judged(row: dict[str, Any], metric: str) -> str:
    low, high = row["difference_low"], row["difference_high"]
    if metric in LOWER_IS_BETTER:
        low, high = -high, -low
    return "better" if low > 0 else "worse" if high < 0 else "not told apart"


def _line(row: dict[str, Any], word: str) -> str:
    more = f"{row['ratio']:g} synthetic {'tile' if row['ratio'] == 1 else 'tiles'} of each"
    interval = f"{row['difference_low']:+.3g} to {row['difference_high']:+.3g}"
    if np.isnan(row["difference_low"]):
        interval = "of one seed, without an interval"
    return (
        f"- {row['n_spots']} spots ({row['fraction']:.0%}), {more}: {row['mean']:.4g}, {row['difference']:+.3g} "
        f"({interval}) to {row['control']!r}: {word}."
    )
