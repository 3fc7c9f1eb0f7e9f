"""How well an annotator does on tiles that it was not trained on."""

from __future__ import annotations

from dataclasses import asdict, dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np

from sthist.metrics._classify import auc_statistic, bootstrap_interval, confusion

if TYPE_CHECKING:
    import pandas as pd

    from sthist.training.splits import Grouping


SHUFFLED, MAJORITY = "shuffled_", "majority_"
"""Before the names of the scores of a baseline."""

CALLS = ("accuracy", "balanced_accuracy", "f1")
"""Scores that need no probabilities."""

BINS = 10
"""Bins of the expected calibration error."""


@dataclass(frozen=True)
class AnnotatorReport:
    """Scores of an annotator, all of rows that the scored model was not trained on; plain values.

    Attributes
    ----------
    classes
        In the order of the scores.
    support
        Number of scored rows by class.
    auc, auc_low, auc_high
        Area under the ROC curve of each class against the rest, and its 95 % interval; NaN for a class that is absent.
    weighted_auc, weighted_auc_low, weighted_auc_high
        Their mean, each counted by its support.
    shuffled_auc, shuffled_auc_low, shuffled_auc_high
        The same of models trained in the same way on shuffled labels: what is reached by chance. NaN if it was not
        asked for.
    scores
        By name of the score, one value for each class against the rest, and one for all together: ``accuracy``;
        ``balanced_accuracy`` (mean over classes, so that rare ones count alike); ``f1`` (for all, the mean of the
        classes'); ``ece`` (expected calibration error: how far, on average, a stated probability is from how often it
        comes true, 0 to 1); ``brier`` (mean squared error of the probabilities; for all, the sum over classes, 0 to 2).
        With ``shuffled_`` before the name, those of models of shuffled labels, and with ``majority_`` those of saying
        always what is commonest.
    confusion
        Counts: true classes are the rows.
    split, leaks
        By what rows were split, and why the scores are better than they should be, if that is known.
    n_folds, n_groups
        Models that were scored, and groups that the scored rows are of; intervals resample groups.
    n_scored, n_unlabelled, n_absent
        Rows that were scored, rows without a label, classes that no scored row has.

    Examples
    --------
    >>> import sthist
    >>> sthist.models.AnnotatorReport(classes=["a", "b"], auc=[0.9, 0.9]).to_frame()["auc"].tolist()
    [0.9, 0.9]
    """

    classes: list[str] = field(default_factory=list)
    support: list[int] = field(default_factory=list)
    auc: list[float] = field(default_factory=list)
    auc_low: list[float] = field(default_factory=list)
    auc_high: list[float] = field(default_factory=list)
    weighted_auc: float = float("nan")
    weighted_auc_low: float = float("nan")
    weighted_auc_high: float = float("nan")
    shuffled_auc: float = float("nan")
    shuffled_auc_low: float = float("nan")
    shuffled_auc_high: float = float("nan")
    scores: dict[str, list[float]] = field(default_factory=dict)
    confusion: list[list[int]] = field(default_factory=list)
    split: str = ""
    leaks: str = ""
    n_folds: int = 0
    n_groups: int = 0
    n_scored: int = 0
    n_unlabelled: int = 0
    n_absent: int = 0

    def to_dict(self) -> dict[str, Any]:
        """Plain values, for JSON: NaN is None."""
        return {name: _without_nan(value) for name, value in asdict(self).items()}

    @classmethod
    def from_dict(cls, values: dict[str, Any]) -> AnnotatorReport:
        """The report of plain values.

        Parameters
        ----------
        values
            From :meth:`to_dict`.
        """
        return cls(**{name: _with_nan(value) for name, value in values.items()})

    def to_frame(self) -> pd.DataFrame:
        """One row per class and, where it is known, one of all together, named ``"all"``.

        Columns are ``auc``, ``low``, ``high`` (its interval), the ``scores``, and ``support``.
        """
        import pandas as pd

        own = [name for name in self.scores if not name.startswith((SHUFFLED, MAJORITY))]
        columns: dict[str, list[Any]] = {
            "auc": [*self.auc, self.weighted_auc],
            "low": [*self.auc_low, self.weighted_auc_low],
            "high": [*self.auc_high, self.weighted_auc_high],
            **{name: self.scores[name] for name in [*own, *(n for n in self.scores if n not in own)]},
            "support": [*self.support, sum(self.support)],
        }
        rows = [*self.classes, "all"] if self.scores else list(self.classes)
        index = pd.Index(rows, name="class", dtype=object)
        known = {name: values[: len(index)] for name, values in columns.items() if len(values) > len(self.classes)}
        return pd.DataFrame(known, index=index)


def make_report(
    classes: list[str],
    codes: np.ndarray,
    scores: np.ndarray,
    grouping: Grouping,
    rows: np.ndarray,
    *,
    shuffled: tuple[np.ndarray, np.ndarray] | None = None,
    n_boot: int = 1000,
    seed: int = 0,
    **counts: int,
) -> AnnotatorReport:
    """Score held-out predictions."""
    groups = None if grouping.by == "random" else grouping.groups[rows]
    own = _scored(codes, scores, groups, n_boot, seed)
    null = None if shuffled is None else _scored(*shuffled, groups, n_boot, seed + 1)
    support = np.bincount(codes, minlength=len(classes))
    predicted = scores.argmax(axis=1)
    values: dict[str, Any] = _named("auc", own[:, :-1]) | _named("weighted_auc", own[:, -1]) | counts
    if null is not None:
        values |= _named("shuffled_auc", null[:, -1])
    commonest = np.eye(len(classes))[np.full(len(codes), support.argmax())]
    measured = _measured(codes, scores)
    if shuffled is not None and null is not None:
        measured |= {SHUFFLED + name: each for name, each in ({"auc": null[0].tolist()} | _measured(*shuffled)).items()}
    measured |= {MAJORITY + name: each for name, each in _measured(codes, commonest).items() if name in CALLS}
    return AnnotatorReport(
        classes=list(classes),
        support=support.tolist(),
        scores=measured,
        confusion=confusion(codes, predicted, classes=range(len(classes))).to_numpy().tolist(),
        split=grouping.by,
        leaks=grouping.leaks,
        n_groups=len(rows) if groups is None else len(np.unique(groups)),
        n_scored=len(rows),
        n_absent=int((support == 0).sum()),
        **values,
    )


def _measured(codes: np.ndarray, scores: np.ndarray) -> dict[str, list[float]]:
    """Scores of calls and of probabilities: of each class against the rest (NaN where it is absent), and of all."""
    probabilities, calls = np.asarray(scores, np.float64), scores.argmax(axis=1)
    classes = np.arange(scores.shape[1])
    true, called = codes[:, None] == classes, calls[:, None] == classes
    there = true.any(axis=0)
    with np.errstate(invalid="ignore"):
        recall = (true & called).sum(axis=0) / true.sum(axis=0)
        specificity = (~true & ~called).sum(axis=0) / (~true).sum(axis=0)
        f1 = 2 * (true & called).sum(axis=0) / (true.sum(axis=0) + called.sum(axis=0))
    confidence, right = probabilities.max(axis=1), calls == codes
    squares = (probabilities - true) ** 2
    by_class = {
        "accuracy": (true == called).mean(axis=0),
        "balanced_accuracy": (recall + specificity) / 2,
        "f1": f1,
        "ece": np.array([_calibration_error(probabilities[:, k], true[:, k]) for k in classes]),
        "brier": squares.mean(axis=0),
    }
    overall = {
        "accuracy": right.mean(),
        "balanced_accuracy": recall[there].mean(),
        "f1": f1[there].mean(),
        "ece": _calibration_error(confidence, right),
        "brier": squares.sum(axis=1).mean(),
    }
    return {name: [*np.where(there, each, np.nan).tolist(), float(overall[name])] for name, each in by_class.items()}


def _calibration_error(stated: np.ndarray, true: np.ndarray) -> float:
    """Mean distance of a probability from how often it comes true, over equally wide bins of it, by rows."""
    place = np.minimum((stated * BINS).astype(int), BINS - 1)
    off = np.bincount(place, stated - true, minlength=BINS)
    return float(np.abs(off).sum() / len(stated))


def _named(name: str, values: np.ndarray) -> dict[str, Any]:
    """Value, low and high under the names of a report."""
    return dict(zip((name, f"{name}_low", f"{name}_high"), values.tolist(), strict=True))


def _scored(codes: np.ndarray, scores: np.ndarray, groups: Any, n_boot: int, seed: int) -> np.ndarray:
    """Value, low and high of each class's AUC and of their mean, (3, k + 1)."""
    statistic = auc_statistic(codes, np.asarray(scores, np.float64))
    interval = bootstrap_interval(statistic, len(codes), groups=groups, n_boot=n_boot, seed=seed)
    return np.stack([statistic(np.ones(len(codes))), interval.low, interval.high])


def _without_nan(value: Any) -> Any:
    if isinstance(value, list):
        return [_without_nan(each) for each in value]
    if isinstance(value, dict):
        return {name: _without_nan(each) for name, each in value.items()}
    return None if isinstance(value, float) and np.isnan(value) else value


def _with_nan(value: Any) -> Any:
    if isinstance(value, list):
        return [_with_nan(each) for each in value]
    if isinstance(value, dict):
        return {name: _with_nan(each) for name, each in value.items()}
    return float("nan") if value is None else value
