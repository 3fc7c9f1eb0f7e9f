"""Real and synthetic tiles as sets: their embeddings, and distributions of what is measured of them."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, Literal

import numpy as np

from sthist._messages import listed
from sthist._sample.verbs import verb
from sthist._settings import settings
from sthist._tables.genes import closest
from sthist.pl._base import finish, one_axes, panel_axes
from sthist.pl._colours import class_colours, colour_legend

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

    import pandas as pd
    from matplotlib.axes import Axes

SIDE = 4.5
COLOURS = {"real": "0.25", "synthetic": "#d95f02", "baseline": "#7570b3"}
KINDS = tuple(COLOURS)
MEASURED = ("haematoxylin", "haematoxylin_texture", "nuclei_per_mm2", "nucleus_area_um2")
COMPONENTS = 30
"""Principal components that neighbours are looked for in."""


@verb
def synthetic_embedding(
    frame: Any,
    method: Literal["pca", "umap", "tsne"] = "pca",
    *,
    palette: Mapping[str, Any] | None = None,
    size: float | None = None,
    seed: int | None = None,
    ax: Axes | None = None,
    save: str | Path | None = None,
) -> Axes:
    """Draw embeddings of real and synthetic tiles on one plane: do they lie in the same places?

    Parameters
    ----------
    frame
        A result of :func:`sthist.benchmark.synthesis`.
    method
        ``"pca"``: the first principal components of the real tiles. ``"umap"`` and ``"tsne"`` show neighbours, and
        part sets that differ by little; they take seconds to minutes.
    palette
        Colours of ``"real"``, ``"synthetic"`` and ``"baseline"``.
    size
        Area of a point, in square points of type; fitted to their number by default.
    seed
        Of UMAP and t-SNE; ``settings.seed`` by default.
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
        If ``frame`` is no such result.
    ValueError
        If there is no such method, or palette= names no colour.

    Examples
    --------
    >>> import sthist
    >>> sdata, local = sthist.datasets.toy("visium", size_um=900), sthist.models.load("adapted")  # doctest: +SKIP
    >>> made = sthist.tl.synthesize(sdata, local)  # doctest: +SKIP
    >>> ax = sthist.pl.synthetic_embedding(sthist.benchmark.synthesis(sdata, made))  # doctest: +SKIP
    """
    tiles = _tiles_of(frame)
    points, called = _plane(np.asarray(frame.embeddings, np.float64), tiles["kind"].to_numpy(), method, seed)
    names, colours = _kinds(tiles["kind"], palette)
    ax = one_axes(ax, (SIDE, SIDE))
    code = np.array([names.index(kind) for kind in tiles["kind"]])
    order = np.random.default_rng(0).permutation(len(points))
    area = float(np.clip(8000 / len(points), 2, 25)) if size is None else size
    x, y = points[order].T
    ax.scatter(x, y, c=colours[code[order]], s=area, alpha=0.7, linewidths=0, rasterized=True)
    colour_legend(ax, names, colours)
    ax.set(xticks=[], yticks=[], xlabel=f"{called} 1", ylabel=f"{called} 2", title=frame.encoder)
    return finish([ax], save)[0]


@verb
def synthetic_composition(
    frame: Any,
    columns: Sequence[str] | None = None,
    *,
    key: str = "composition",
    palette: Mapping[str, Any] | None = None,
    ncols: int = 4,
    axes: Any = None,
    save: str | Path | None = None,
) -> list[Axes]:
    """Draw distributions over real and over synthetic tiles as violins: of nuclei and stains, or of classes of cells.

    Parameters
    ----------
    frame
        A result of :func:`sthist.benchmark.synthesis`; or a mapping of what is compared, such as
        ``{"real": real, "synthetic": made}``, to a frame with one row per tile, or to a table that has ``obsm[key]``.
    columns
        What is drawn, a panel each; by default what the benchmark has measured, or all numbers that the frames share.
    key
        Frame in ``obsm`` of tables, as :func:`sthist.tl.composition` writes it.
    palette
        Colours by name of what is compared.
    ncols
        Panels in a row.
    axes
        Axes to draw on, one per panel.
    save
        File to save the figure to.

    Returns
    -------
    The axes, one per column; bars are the median and the middle half.

    Raises
    ------
    KeyError
        If there is no such column, or a table has no such composition.
    TypeError
        If ``frame`` is neither a result nor a mapping.
    ValueError
        If nothing that is compared has a finite number, or axes are too few.

    Examples
    --------
    >>> import pandas as pd, sthist
    >>> real = pd.DataFrame({"tumour": [0.1, 0.4, 0.5], "stroma": [0.9, 0.6, 0.5]})
    >>> axes = sthist.pl.synthetic_composition({"real": real, "synthetic": real / 2})
    >>> [ax.get_title() for ax in axes]
    ['tumour', 'stroma']
    """
    frames = _frames(frame, key)
    first = next(iter(frames.values()))
    shared = [str(name) for name in first if all(name in each for each in frames.values())]
    chosen = shared if columns is None else [columns] if isinstance(columns, str) else list(columns)
    for name in chosen:
        if name not in shared:
            raise KeyError(
                f"There is no number {name!r} of all that are compared; there are {shared}.{closest(name, shared)}"
            )
    if not chosen:
        raise ValueError(f"{listed(frames)} have no column of numbers in common.")
    names = list(frames)
    usual = {name: COLOURS[name] for name in names if name in COLOURS}
    colours = class_colours(names, usual, palette)
    drawn = panel_axes(len(chosen), ncols, (0.75 * len(names) + 1.2, 2.4), axes, chosen)
    for ax, column in zip(drawn, chosen, strict=True):
        values = [each[column].to_numpy(np.float64, na_value=np.nan) for each in frames.values()]
        _draw_violins(ax, [each[np.isfinite(each)] for each in values], names, colours)
        ax.set_title(str(column), fontsize="small")
    return finish(drawn, save)


def _draw_violins(ax: Axes, values: Sequence[np.ndarray], names: Sequence[str], colours: np.ndarray) -> None:
    """A violin each, with median and middle half; a line where all values are the same."""
    if not any(len(each) for each in values):
        raise ValueError(f"There is nothing to draw: {listed(names)} have no finite number.")
    for place, (each, colour) in enumerate(zip(values, colours, strict=True)):
        if not len(each):
            continue
        low, middle, high = np.quantile(each, [0.25, 0.5, 0.75])
        if np.ptp(each) > 1e-9 * max(1.0, float(np.abs(each).max())):
            bodies: Any = ax.violinplot(each, [place], widths=0.8, showextrema=False)["bodies"]
            for body in bodies:
                body.set(facecolor=tuple(colour), edgecolor="none", alpha=0.6)
        ax.vlines(place, low, high, color=tuple(colour), lw=4)
        ax.hlines(middle, place - 0.2, place + 0.2, color="black", lw=1.2)
    ax.set_xticks(range(len(names)), names, fontsize="x-small")
    ax.set_xlim(-0.6, len(names) - 0.4)
    ax.tick_params(axis="y", labelsize="x-small")
    ax.spines[["top", "right"]].set_visible(False)


def _plane(rows: np.ndarray, kind: np.ndarray, method: str, seed: int | None) -> tuple[np.ndarray, str]:
    """Embeddings in two dimensions, and what these are called."""
    from sklearn.decomposition import PCA

    if method not in ("pca", "umap", "tsne"):
        raise ValueError(f"method is {method!r}; it is 'pca', 'umap' or 'tsne'.")
    seed = settings.seed if seed is None else int(seed)
    real = rows[kind == "real"]
    n = 2 if method == "pca" else COMPONENTS
    # Those of the real tiles: what synthetic ones have beside it would else be all that is seen.
    points = PCA(min(n, *real.shape), random_state=seed).fit(real).transform(rows)
    if method == "pca":
        return points, "PC"
    if method == "tsne":
        from sklearn.manifold import TSNE

        perplexity = min(30.0, (len(points) - 1) / 3)
        return TSNE(2, perplexity=perplexity, init="pca", random_state=seed).fit_transform(points), "t-SNE"
    from umap import UMAP

    neighbours = min(15, len(points) - 1)
    return np.asarray(UMAP(n_neighbors=neighbours, random_state=seed, n_jobs=1).fit_transform(points)), "UMAP"


def _tiles_of(result: Any) -> pd.DataFrame:
    """The tiles of a result of the benchmark."""
    tiles = getattr(result, "tiles", None)
    if tiles is None or not hasattr(result, "embeddings"):
        raise TypeError(f"A result of benchmark.synthesis is needed, not {type(result).__name__}.")
    found: pd.DataFrame = tiles
    return found


def _kinds(kind: pd.Series, palette: Mapping[str, Any] | None) -> tuple[list[str], np.ndarray]:
    """What tiles there are of the kinds, and their colours."""
    names = [name for name in KINDS if (kind == name).any()]
    return names, class_colours(names, COLOURS, palette)


def _frames(given: Any, key: str) -> dict[str, pd.DataFrame]:
    """Numbers of tiles, a frame for each of what is compared."""
    if not isinstance(given, Mapping):
        tiles = _tiles_of(given)
        columns = [name for name in MEASURED if name in tiles]
        kinds = [name for name in KINDS if (tiles["kind"] == name).any()]
        return {name: tiles.loc[tiles["kind"] == name, columns] for name in kinds}
    if not given:
        raise ValueError("There is nothing to compare: the mapping is empty.")
    frames = {}
    for name, each in given.items():
        found = each
        if hasattr(each, "obsm"):
            if key not in each.obsm or not hasattr(each.obsm[key], "columns"):
                raise KeyError(
                    f"{name!r} has no frame obsm[{key!r}]; it has {list(each.obsm)}. tl.composition makes it."
                )
            found = each.obsm[key]
        if not hasattr(found, "select_dtypes"):
            raise TypeError(f"{name!r} is a {type(each).__name__}; it is a frame, or a table with obsm[{key!r}].")
        frames[str(name)] = found.select_dtypes("number")
    return frames
