"""Maps of genes and of clusters, measured and predicted."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from sthist._messages import listed
from sthist._sample.verbs import verb
from sthist._settings import settings
from sthist.metrics import clustering
from sthist.metrics._compare import shuffled
from sthist.metrics._expression.maps import pitch_of
from sthist.pl._base import add_scale_bar, dots_extent, draw_dots, finish, make_axes, title_with_r
from sthist.pl._colours import class_colours, limit, place_legend
from sthist.pl._expression.found import Found, find_prediction
from sthist.pl._expression.superpixels import draw_map, map_meant

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

    from anndata import AnnData
    from matplotlib.axes import Axes
    from spatialdata import SpatialData


@verb
def gene_maps(
    data: SpatialData | AnnData,
    genes: Sequence[str],
    key: str | Sequence[str] | None = None,
    *,
    table: str | None = None,
    nulls: bool = True,
    cmap: str = "viridis",
    vmin: float | str | None = "p1",
    vmax: float | str | None = "p99",
    seed: int | None = None,
    axes: Any = None,
    save: str | Path | None = None,
) -> list[Axes]:
    """Draw genes where they were measured, where they are predicted, and what the prediction is of other regions.

    Several predictions stand beside each other, such as those of models that were trained with and without something.
    A gene has one scale in all its panels: what is predicted too flat looks flat. Over a prediction stands its
    correlation with what was measured here, and beside the gene the one that it had where it was held out, when the
    model was trained.

    Parameters
    ----------
    data
        One sample, or the path of its store, or a table, with predictions of :func:`sthist.tl.expression`.
    genes
        Genes to draw, a row each.
    key
        The layer or table of the prediction, or the image that shows it at every place of the slide (of ``"istar"``);
        by default the only one. Or several layers of one table.
    table
        Key of the table, where several have such a layer.
    nulls
        Draw the prediction, of several the last, dealt to other regions, too: what it looks like where it knows
        nothing. Not beside an image.
    cmap
        Colour map.
    vmin, vmax
        Limits of log expression: a value, or a quantile of what was measured and predicted of the gene, such as
        ``"p99"``.
    seed
        Of the dealing.
    axes
        Axes to draw on: for each gene, one for what was measured (where anything was), one for each prediction, one for
        the null.
    save
        File to save the figure to.

    Returns
    -------
    The axes, gene by gene.

    Raises
    ------
    KeyError
        If there is no such prediction or gene, or regions have no places.
    ValueError
        If several predictions could be meant, or there is nothing to draw.

    Examples
    --------
    >>> import sthist
    >>> sdata = sthist.datasets.toy("visium", size_um=900)
    >>> sdata["table"].layers["mine"] = sdata["table"].X.toarray() / 2.0  # or tl.expression
    >>> axes = sthist.pl.gene_maps(sdata, sdata["table"].var_names[:2], "mine")
    >>> len(axes)
    6
    """
    genes = list(dict.fromkeys(map(str, genes)))
    if not genes:
        raise ValueError("genes is empty: name what is to be drawn.")
    keys: list[str | None] = [key] if key is None or isinstance(key, str) else list(dict.fromkeys(key))
    if not keys:
        raise ValueError("key is empty: name the predictions to draw, or leave key= out.")
    image = map_meant(data, keys, table)
    if image is not None:
        return draw_map(data, genes, image, cmap=cmap, vmin=vmin, vmax=vmax, axes=axes, save=save)
    every = [find_prediction(data, each, table) for each in keys]
    if any(each.adata is not every[0].adata for each in every):
        raise ValueError(f"The predictions {listed(keys)} are not layers of one table: draw them one by one.")
    found = every[0]
    places, truth = found.places, found.truth(genes)
    predicted = np.stack([each.predicted(genes) for each in every])
    shown = np.isfinite(predicted).any(axis=(0, 2)) & np.isfinite(places).all(axis=1)
    if shown.sum() < 2:
        raise ValueError(f"{found.name!r} has {int(shown.sum())} regions with predictions and places; a map needs two.")
    places, predicted, truth = places[shown], predicted[:, shown], truth[shown]
    panels = {"measured": truth} if np.isfinite(truth).any() else {}
    names_of = [found.model] if len(every) == 1 else [each.name for each in every]
    panels |= dict(zip(names_of, predicted, strict=True))
    if nulls:
        dealt = shuffled(len(places), settings.seed if seed is None else seed)
        panels[f"{names_of[-1]}, shuffled"] = predicted[-1][dealt]
    width = pitch_of(places)
    extent = dots_extent(places, width)
    names = [name for _ in genes for name in panels]
    drawn = make_axes(len(names), len(panels), extent, axes, names)
    for row, gene in enumerate(genes):
        own = drawn[row * len(panels) : (row + 1) * len(panels)]
        values = np.concatenate([truth[:, row], predicted[:, :, row].ravel()])
        known = values[np.isfinite(values)]
        low, high = limit(vmin, known, "p0"), limit(vmax, known, "p100")
        how: dict[str, Any] = {"cmap": cmap, "low": low, "high": max(high, low + 1e-6)}
        for ax, (name, each) in zip(own, panels.items(), strict=True):
            title = name if name == "measured" else title_with_r(name, truth[:, row], each[:, row])
            dots = draw_dots(ax, places, each[:, row], width, extent, title, **how)
        own[0].set_ylabel(_label(found, gene), fontsize="medium")
        own[0].figure.colorbar(dots, ax=own[-1], label="log expression", shrink=0.8)
        add_scale_bar(own[-1], extent, "black")
    return finish(drawn, save)


@verb
def clusters(
    data: SpatialData | AnnData,
    key: str | None = None,
    *,
    table: str | None = None,
    genes: Sequence[str] | None = None,
    resolution: float = 1.0,
    seed: int | None = None,
    axes: Any = None,
    save: str | Path | None = None,
) -> list[Axes]:
    """Draw clusters of what was measured beside those of what is predicted, in the colours of those they correspond to.

    Both are found as :func:`sthist.metrics.clustering` does.

    Parameters
    ----------
    data
        One sample, or the path of its store, or a table, with predictions of :func:`sthist.tl.expression`.
    key
        The layer or table of the prediction; by default the only one.
    table
        Key of the table, where several have such a layer.
    genes
        Genes that count; by default all that were measured and predicted.
    resolution
        Of Leiden.
    seed
        Of the clustering.
    axes
        Two axes to draw on.
    save
        File to save the figure to.

    Returns
    -------
    Two axes.

    Raises
    ------
    ImportError
        If igraph is not installed.
    KeyError
        If there is no such prediction or gene, or regions have no places.
    ValueError
        If several predictions could be meant, or nothing was measured at the regions.

    Examples
    --------
    >>> import sthist
    >>> sdata = sthist.datasets.toy("visium", size_um=900)
    >>> sdata["table"].layers["mine"] = sdata["table"].X.toarray() / 2.0  # or tl.expression
    >>> len(sthist.pl.clusters(sdata, "mine"))
    2
    """
    found = find_prediction(data, key, table)
    genes = list(map(str, found.scores.index)) if genes is None else list(dict.fromkeys(map(str, genes)))
    predicted, truth, places = found.predicted(genes), found.truth(genes), found.places
    measured = np.isfinite(truth).any(axis=0)
    shown = np.isfinite(predicted[:, measured]).all(axis=1) & np.isfinite(truth[:, measured]).all(axis=1)
    n_shown = int(shown.sum()) if measured.any() else 0
    if n_shown < 3:
        raise ValueError(
            f"Clusters are compared where something was measured; that is so in {n_shown} of {len(shown)} regions of "
            f"{found.name!r}."
        )
    scores = clustering(
        truth[shown][:, measured],
        predicted[shown][:, measured],
        resolution=resolution,
        seed=settings.seed if seed is None else seed,
    )
    places = places[shown]
    width = pitch_of(places)
    extent = dots_extent(places, width)
    titles = ["measured", f"{found.model}\nARI {scores.ari:.2f}, NMI {scores.nmi:.2f}, accuracy {scores.accuracy:.2f}"]
    drawn = make_axes(2, 2, extent, axes, ["measured", found.model])
    n = int(max(scores.truth.max(), scores.prediction.max())) + 1
    colours = class_colours([str(number) for number in range(n)])
    for ax, labels, title in zip(drawn, (scores.truth, scores.prediction), titles, strict=True):
        draw_dots(ax, places, None, width, extent, title, colours=colours[labels])
    add_scale_bar(drawn[-1], extent, "black")
    from matplotlib.lines import Line2D

    handles = [Line2D([], [], marker="o", linestyle="", color=colour) for colour in colours]
    place_legend(drawn[-1], handles=handles, labels=[str(number) for number in range(n)])
    return finish(drawn, save)


def _label(found: Found, gene: str) -> str:
    """A gene, and how it did where it was held out."""
    if "pearson" not in found.scores:
        return gene
    pearson = float(found.scores["pearson"].to_dict()[gene])
    if not np.isfinite(pearson):
        return f"{gene}\nnot scored"
    trusted = "trusted" not in found.scores or found.scores["trusted"].to_dict()[gene]
    return f"{gene}\nheld out r = {pearson:.2f}" + ("" if trusted else "\nnot trusted")
