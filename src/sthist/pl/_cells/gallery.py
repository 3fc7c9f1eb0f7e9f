"""The cells that have most of a type or a gene, as pictures."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from sthist import _sample
from sthist._messages import listed
from sthist._sample.verbs import verb
from sthist._tables.find import called, find_table
from sthist._tables.genes import closest
from sthist._tables.rows import centroids_um, rows_of
from sthist.pl._base import finish, nice_length, panel_axes, pictures
from sthist.pl._regions.found import gene_values, type_scores
from sthist.tiles import TileReader, TileSpec

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

    from anndata import AnnData
    from matplotlib.axes import Axes
    from spatialdata import SpatialData

CROP_PX = 72
GAP = 0.06
"""Between crops, in sides of one."""


@verb
def cell_gallery(
    sdata: SpatialData,
    color: Sequence[str] | str,
    n: int = 100,
    *,
    key: str = "cell_type",
    table: str | None = None,
    layer: str | None = None,
    image: str | None = None,
    size_um: float = 18.0,
    ncols: int = 10,
    axes: Any = None,
    save: str | Path | None = None,
) -> list[Axes]:
    """A gallery of the cells with the highest scores of a type, or with most of a gene: best first, row by row.

    Whether cells of a type look alike, and as they should, is the quickest check of what a model has learned.

    Parameters
    ----------
    sdata
        One sample, or the path of its store.
    color
        A type of :func:`sthist.tl.cell_types`, or a gene; or several, a panel each.
    n
        Cells of each.
    key
        Name of the types: the scores are ``obsm[key + "_scores"]``.
    table
        Key of the table; by default the only one with such scores or genes.
    layer
        Layer with the expression of genes; ``X`` by default.
    image
        What is shown; the H&E by default.
    size_um
        Side of a crop around the centre of a cell, in µm: 12 is what a model is usually given.
    ncols
        Crops in a row.
    axes
        Axes to draw on, one for each type or gene.
    save
        File to save the figure to.

    Returns
    -------
    The axes, one for each type or gene, with all its crops in one picture, in µm of tissue.

    Raises
    ------
    KeyError
        If there is no such type or gene, table, layer or image.
    ValueError
        If no cell has a finite score, the number of axes is wrong, or ``size_um`` is no positive number.

    Examples
    --------
    >>> import sthist
    >>> sdata = sthist.datasets.toy(size_um=300)
    >>> sthist.tl.cell_types(sdata, {"T cell": ["CD3E", "CD8A"], "duct": ["EPCAM", "KRT8"]}, key_added="call")
    >>> axes = sthist.pl.cell_gallery(sdata, ["T cell", "duct"], n=12, key="call", ncols=4)
    >>> [ax.get_title(loc="left") for ax in axes]
    ['T cell', 'duct']
    """
    if not (np.isfinite(size_um) and size_um > 0):
        raise ValueError(f"size_um is {size_um!r}; it is a positive number of µm.")
    names = [color] if isinstance(color, str) else list(dict.fromkeys(map(str, color)))
    if not names:
        raise ValueError("color is empty: name types or genes.")

    def fits(adata: AnnData) -> bool:
        return type_scores(adata, key) is not None or any(name in adata.var_names for name in names)

    table = table or ("nuclei_table" if "nuclei_table" in sdata.tables and fits(sdata.tables["nuclei_table"]) else None)
    where, adata = find_table(sdata, table, fits, f"scores obsm['{key}_scores'] or the gene {names[0]!r}", names[0])
    values = {name: _ranked_by(adata, name, key, layer, called(where)) for name in names}
    best = {name: _highest(each, int(n), name) for name, each in values.items()}
    spec = TileSpec(float(size_um), CROP_PX)
    reader = TileReader(sdata, _sample.find_he(sdata, image), spec, fill=255, allow_upsampling=True)
    places = centroids_um(sdata, rows_of(sdata, str(where)))
    rows = -(-int(n) // ncols)
    side = 0.42
    size = (max(2.2, side * ncols), max(1.0, side * rows) + 0.35)
    drawn = panel_axes(len(names), min(3, len(names)), size, axes, names)
    crops = reader.read(places[np.concatenate(list(best.values()))])
    for ax, (name, chosen), shown in zip(
        drawn, best.items(), np.split(crops, np.cumsum([len(each) for each in best.values()])[:-1]), strict=True
    ):
        _draw(ax, shown, ncols, float(size_um))
        scores = values[name][chosen]
        ax.set_title(name, loc="left", fontsize="medium")
        ax.set_title(f"{scores[0]:.2g} to {scores[-1]:.2g}", loc="right", fontsize="x-small", color="0.4")
    return finish(drawn, save)


def _ranked_by(adata: AnnData, name: str, key: str, layer: str | None, where: str) -> np.ndarray:
    """Scores of a type, or expression of a gene."""
    scores = type_scores(adata, key) or {}
    if name in scores:
        return scores[name]
    if name in adata.var_names:
        return gene_values(adata, name, layer, where)
    known = f"the types {listed(scores)}" if scores else f"no scores obsm['{key}_scores'] (tl.cell_types makes them)"
    raise KeyError(
        f"{where} has no type or gene {name!r}; it has {known} and {adata.n_vars} genes."
        f"{closest(name, [*scores, *map(str, adata.var_names)])}"
    )


def _highest(values: np.ndarray, n: int, name: str) -> np.ndarray:
    """Places of the n highest finite values."""
    known = int(np.isfinite(values).sum())
    if not known:
        raise ValueError(f"There is nothing to draw: no cell has a finite value of {name!r}.")
    order = np.argsort(-np.where(np.isfinite(values), values, -np.inf), kind="stable")
    return order[: min(n, known)]


def _draw(ax: Axes, crops: np.ndarray, ncols: int, size_um: float) -> None:
    """Crops side by side in one picture, in µm, and a bar below the last."""
    tiles, how = pictures(crops)
    px, gap = tiles.shape[1], max(1, round(GAP * tiles.shape[1]))
    step = px + gap
    columns = min(ncols, len(tiles))
    rows = -(-len(tiles) // columns)
    blank = how.get("vmax", 255)
    picture = np.full((rows * step - gap, columns * step - gap, *tiles.shape[3:]), blank, tiles.dtype)
    for i, tile in enumerate(tiles):
        y, x = (i // columns) * step, (i % columns) * step
        picture[y : y + px, x : x + px] = tile
    mpp = size_um / px
    height, width = (n * mpp for n in picture.shape[:2])
    ax.imshow(picture, extent=(0, width, height, 0), interpolation="antialiased", **how)
    length = nice_length(size_um * 0.8)
    below = height + 0.22 * size_um
    ax.plot([0, length], [below, below], color="black", lw=2, solid_capstyle="butt", clip_on=False)
    ax.text(length + 0.1 * size_um, below, f"{length:g} µm", va="center", ha="left", fontsize="x-small")
    ax.set(xlim=(0, width), ylim=(height + 0.45 * size_um, 0), aspect="equal", xticks=[], yticks=[])
    ax.spines[:].set_visible(False)
