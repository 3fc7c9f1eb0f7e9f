"""How a training went."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

from sthist._sample.verbs import verb
from sthist.pl._base import finish, make_axes
from sthist.training.run_folder import read_history

if TYPE_CHECKING:
    from collections.abc import Sequence

    from matplotlib.axes import Axes

VALIDATION = "validation_"
NOT_DRAWN = ("epoch", "step", "penalty")
SHAPE = (0.0, 0.0, 4.0, 3.0)


@verb
def training_history(
    model: Any,
    *,
    ncols: int = 3,
    axes: Sequence[Axes] | None = None,
    save: str | Path | None = None,
) -> list[Axes]:
    """Show the losses, the scores of validation data and the learning rate of a training, epoch by epoch.

    A linear annotator is solved without epochs: its losses are shown by the penalties that were tried.

    Parameters
    ----------
    model
        A trained model, or the folder of a training, also of one that still runs.
    ncols
        Panels per row.
    axes
        Axes to draw on, one per panel.
    save
        File to save the figure to.

    Returns
    -------
    The axes: one with the terms of the loss (and the validation loss, dashed), one for each score of validation data,
    and one with the learning rate, as far as the training has such.

    Raises
    ------
    FileNotFoundError
        If the folder has no history.
    ValueError
        If the model was not trained, or its history was not saved with it.

    Examples
    --------
    >>> import anndata as ad, numpy as np, sthist
    >>> rng = np.random.default_rng(0)
    >>> tiles = ad.AnnData(obs={"label": ["a", "b"] * 40, "slide": np.repeat(list("uvwx"), 20)})
    >>> tiles.obsm["X_mine"] = rng.normal(size=(80, 4)) + 3 * (tiles.obs["label"] == "a").to_numpy()[:, None]
    >>> training = {"baseline": False, "n_boot": 10, "epochs": 20}
    >>> split = sthist.models.Split("slide", folds=2)
    >>> annotator = sthist.tl.train_annotator(tiles, "label", split=split, training=training)
    >>> [ax.get_title() for ax in sthist.pl.training_history(annotator)]
    ['loss']
    """
    history = _history(model)
    over = "epoch" if "epoch" in history[0] else "penalty"
    places = [row[over] for row in history]
    names = list(dict.fromkeys(name for row in history for name in row))
    scores = [name for name in names if name.startswith(VALIDATION) and name != "validation_loss"]
    losses = [name for name in names if name not in (*NOT_DRAWN, *scores, "lr")]
    panels = {"loss": losses} | {name.removeprefix(VALIDATION): [name] for name in scores}
    panels |= {"learning rate": ["lr"]} if "lr" in names else {}
    drawn = make_axes(len(panels), ncols, SHAPE, axes, list(panels))
    for ax, (title, lines) in zip(drawn, panels.items(), strict=True):
        for name in lines:
            values = [row.get(name, float("nan")) for row in history]
            style = "--" if name == "validation_loss" else "-"
            ax.plot(places, values, style, marker="." if len(places) < 30 else None, label=name.replace("_", " "))
        if len(lines) > 1:
            ax.legend(fontsize="small")
            ax.set_yscale("log" if all(row.get(name, 1) > 0 for row in history for name in lines) else "linear")
        ax.set(title=title, xlabel=over, xscale="log" if over == "penalty" else "linear")
    return finish(drawn, save)


def _history(model: Any) -> list[dict[str, float]]:
    if isinstance(model, str | Path):
        history = read_history(Path(model))
        if not history:
            raise FileNotFoundError(f"There is no history of a training in {model}: it has no metrics.csv.")
        return history
    history = getattr(model, "history", [])
    if not history:
        raise ValueError(
            f"This {type(model).__name__} has no history: it was not trained, or loaded without what its training has "
            "written. Give the folder of the training."
        )
    return history
