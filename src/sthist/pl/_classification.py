"""How well classes are told apart."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from sthist._messages import plain
from sthist._sample.verbs import verb
from sthist.pl._base import finish, one_axes
from sthist.pl._colours import class_colours, place_legend

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

    from matplotlib.axes import Axes

INSIDE = 12
"""Classes that a legend inside of the axes has room for."""


@verb
def roc(
    labels: Any,
    scores: Any = None,
    *,
    classes: Sequence[str] | None = None,
    ax: Axes | None = None,
    save: str | Path | None = None,
) -> Axes:
    """Draw the receiver operating characteristic of each class against the rest.

    Parameters
    ----------
    labels
        True classes, (n,); NaN and None do not count. Or, without ``scores``, the report of an annotator, which keeps
        no curves: the area of each class is drawn then, with its interval.
    scores
        (n, classes): a DataFrame with one column per class, or an array; higher is likelier.
    classes
        Names of the columns of an array; of a DataFrame, those to draw.
    ax
        Axes to draw on.
    save
        File to save the figure to.

    Returns
    -------
    The axes.

    Raises
    ------
    KeyError
        If there is no such class.
    TypeError
        If ``labels`` is no report, and there are no scores.
    ValueError
        If shapes do not match, names are missing, or no class has both kinds of rows.

    Examples
    --------
    >>> import numpy as np, sthist
    >>> scores = np.array([[0.9, 0.1], [0.4, 0.6], [0.3, 0.7], [0.2, 0.8]])
    >>> ax = sthist.pl.roc(["a", "a", "b", "b"], scores, classes=["a", "b"])
    >>> [text.get_text() for text in ax.get_legend().get_texts()]
    ['a 1.00 (n=2)', 'b 1.00 (n=2)']
    """
    if scores is None:
        if not (hasattr(labels, "auc") and hasattr(labels, "classes")):
            raise TypeError(f"A {type(labels).__name__} is no report: give true classes and scores.")
        ax = one_axes(ax, (4.5, 0.5 + 0.35 * len(labels.classes)))
        _draw_areas(ax, labels)
        return finish([ax], save)[0]
    from sklearn.metrics import roc_auc_score, roc_curve

    frame, true = _matched(labels, scores, classes)
    colours = dict(zip(frame.columns, class_colours(list(frame.columns)), strict=True))
    ax = one_axes(ax, (4.5, 4.5))
    for name in frame.columns:
        of_class = true == name
        if of_class.all() or not of_class.any():
            continue
        false_rate, true_rate, _ = roc_curve(of_class, frame[name])
        area = roc_auc_score(of_class, frame[name])
        label = f"{name} {area:.2f} (n={int(of_class.sum())})"
        ax.plot(false_rate, true_rate, label=label, color=colours[name], drawstyle="steps-post")
    if not ax.get_lines():
        raise ValueError(
            f"No class of {list(frame.columns)} has rows that are of it and rows that are not: "
            f"{plain(sorted(set(true)))}."
        )
    ax.plot([0, 1], [0, 1], color="0.7", linestyle=":", zorder=0)
    ax.set(
        xlabel="false positive rate",
        ylabel="true positive rate",
        aspect="equal",
        xlim=(-0.01, 1.01),
        ylim=(-0.01, 1.01),
    )
    handles, texts = ax.get_legend_handles_labels()
    if len(handles) > INSIDE:
        place_legend(ax, handles=handles, labels=texts, title="AUC")
    else:
        ax.legend(title="AUC", loc="lower right", fontsize="small", frameon=False)
    return finish([ax], save)[0]


@verb
def confusion(
    labels: Any,
    predicted: Any = None,
    *,
    classes: Sequence[str] | None = None,
    normalize: bool = True,
    cmap: str = "Blues",
    ax: Axes | None = None,
    save: str | Path | None = None,
) -> Axes:
    """Draw how often each class is called each class.

    Parameters
    ----------
    labels
        True classes, (n,), one row each; or, without ``predicted``, the report of an annotator.
    predicted
        Called classes, (n,), one column each. Rows with NaN or None in either do not count.
    classes
        Their order; sorted, or that of the categories, by default.
    normalize
        Colours are shares of the true class; counts stand in the cells in any case.
    cmap
        Colour map.
    ax
        Axes to draw on.
    save
        File to save the figure to.

    Returns
    -------
    The axes.

    Raises
    ------
    TypeError
        If ``labels`` is no report, and there are no calls.
    ValueError
        If lengths differ, nothing is known of any row, or ``classes`` lacks one.

    Examples
    --------
    >>> import sthist
    >>> ax = sthist.pl.confusion(["a", "a", "b"], ["a", "b", "b"])
    >>> [text.get_text() for text in ax.texts]
    ['1', '1', '0', '1']
    """
    counts, names = _counts(labels, predicted, classes)
    size = 1.4 + 0.5 * len(names)
    ax = one_axes(ax, (size + 1.2, size))
    total = counts.sum(axis=1, keepdims=True)
    shares = counts / np.where(total > 0, total, 1)
    shown = ax.imshow(shares if normalize else counts, cmap=cmap, vmin=0, vmax=1 if normalize else None)
    dark = shares > 0.5 if normalize else counts > counts.max() / 2
    for (i, j), n in np.ndenumerate(counts):
        ax.text(j, i, f"{n:d}", ha="center", va="center", color="white" if dark[i, j] else "black", fontsize="small")
    ax.set_xticks(range(len(names)), names, rotation=45, ha="right", rotation_mode="anchor")
    ax.set_yticks(range(len(names)), names)
    ax.set(xlabel="called", ylabel="true")
    ax.figure.colorbar(shown, ax=ax, label="share of the true class" if normalize else "rows", shrink=0.8)
    return finish([ax], save)[0]


def _draw_areas(ax: Axes, report: Any) -> None:
    """The area under the curve of each class, with its interval, and chance."""
    area = np.asarray(report.auc, np.float64)
    rows = np.arange(len(area))
    low, high = (np.asarray(getattr(report, name, None) or area, np.float64) for name in ("auc_low", "auc_high"))
    ax.hlines(rows, low, high, color="0.5")
    ax.plot(area, rows, "o", color="C0")
    ax.axvline(0.5, color="0.7", linestyle=":", zorder=0)
    ax.set_yticks(rows, [f"{name} {value:.2f}" for name, value in zip(report.classes, area, strict=True)])
    ax.set(xlabel="AUC against the rest", xlim=(min(0.4, np.nanmin(low) - 0.02), 1.02), ylim=(len(area) - 0.5, -0.5))


def _matched(truth: Any, scores: Any, classes: Sequence[str] | None) -> tuple[Any, np.ndarray]:
    """Scores as a frame, and true classes as text, of the rows of which both are known."""
    import pandas as pd

    if hasattr(scores, "columns"):
        frame = scores.set_axis([str(name) for name in scores.columns], axis=1)
        for name in classes or []:
            if name not in frame:
                raise KeyError(f"There are no scores of class {name!r}; there are of {list(frame)}.")
        frame = frame if classes is None else frame[list(classes)]
    else:
        values = np.asarray(scores, np.float64)
        if values.ndim != 2 or classes is None or len(classes) != values.shape[1]:
            raise ValueError(f"Scores of shape {values.shape} need a name for each column: classes=[...].")
        frame = pd.DataFrame(values, columns=[str(name) for name in classes])
    labels = pd.Series(np.asarray(truth, dtype=object))
    if len(labels) != len(frame):
        raise ValueError(f"There are {len(labels)} true classes and {len(frame)} rows of scores.")
    known = labels.notna().to_numpy() & np.isfinite(frame.to_numpy(np.float64)).all(axis=1)
    return frame[known], labels[known].astype(str).to_numpy()


def _counts(truth: Any, predicted: Any, classes: Sequence[str] | None) -> tuple[np.ndarray, list[str]]:
    import pandas as pd

    if predicted is None:
        if not (hasattr(truth, "confusion") and hasattr(truth, "classes")):
            raise TypeError(f"A {type(truth).__name__} is no report: give true and called classes.")
        known = [str(name) for name in truth.classes]
        names = known if classes is None else [str(name) for name in classes]
        places = [known.index(name) for name in names if name in known]
        if len(places) != len(known):
            raise ValueError(f"classes is {names}; the report is of {known}.")
        return np.asarray(truth.confusion, int)[np.ix_(places, places)], names
    pair = [pd.Series(np.asarray(each, dtype=object)) for each in (truth, predicted)]
    if len(pair[0]) != len(pair[1]):
        raise ValueError(f"There are {len(pair[0])} true and {len(pair[1])} called classes.")
    both = pair[0].notna() & pair[1].notna()
    true, called = (each[both].astype(str) for each in pair)
    present = plain(sorted({*true, *called}))
    ordered = getattr(getattr(truth, "cat", truth), "categories", None)
    order = [str(name) for name in (classes if classes is not None else ordered if ordered is not None else present)]
    names = order if classes is not None else [*order, *(name for name in present if name not in order)]
    lacking = [name for name in present if name not in names]
    if lacking or not present:
        raise ValueError(
            f"classes is {names}; the rows are of {present}."
            if present
            else "No row has both a true and a called class."
        )
    table = np.zeros((len(names), len(names)), int)
    index = pd.Index(names)
    np.add.at(table, (index.get_indexer(pd.Index(true)), index.get_indexer(pd.Index(called))), 1)
    return table, names
