"""Clusters of the expression that tiles were made of, and what their tiles look like."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from sthist._sample.verbs import verb
from sthist._settings import settings
from sthist.pl._base import finish
from sthist.pl._colours import MADE_HERE, class_colours, colour_legend
from sthist.pl._synthesis.spots import TILE_INCHES, SpotTiles, draw_grid

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from pathlib import Path

    from matplotlib.axes import Axes
    from spatialdata import SpatialData

    from sthist.pl._synthesis.spots import Normalizer

PANELS = ("pca", "genes", "tiles")


@verb
def synthetic_clusters(
    data: Any,
    synthetic: SpatialData,
    n_clusters: int = 4,
    *,
    n: int = 4,
    n_genes: int = 20,
    table: str | None = None,
    image: str | None = None,
    normalizer: Normalizer | Mapping[str, Normalizer] | None = None,
    cmap: str = "RdBu_r",
    palette: Mapping[str, Any] | None = None,
    seed: int | None = None,
    axes: Sequence[Axes] | None = None,
    save: str | Path | None = None,
) -> list[Axes]:
    """Show clusters of the expression that tiles were made of: on its principal components, by gene, and as tiles.

    Clusters are those of k-means on standardised expression of the spots. Tiles of a cluster are those of the spots
    nearest to its middle, real ones left, synthetic ones of the same spots right: what tells the clusters apart on the
    left should tell them apart on the right.

    Parameters
    ----------
    data
        As of :func:`synthetic_tiles`.
    synthetic
        Of :func:`sthist.tl.synthesize`.
    n_clusters
        How many.
    n
        Spots of each whose tiles are shown.
    n_genes
        Genes of the heat map: those that differ most between the clusters.
    table, image, normalizer
        As of :func:`synthetic_tiles`.
    cmap
        Colour map of the heat map, of the mean of each gene in standard deviations over the spots.
    palette
        Colours of the clusters by name, ``"1"`` to ``n_clusters``.
    seed
        Of the clusters; ``settings.seed`` by default.
    axes
        Three axes to draw on.
    save
        File to save the figure to.

    Returns
    -------
    The axes: principal components, heat map, tiles.

    Raises
    ------
    KeyError
        If there is no such table or image.
    ValueError
        If there are fewer spots than clusters, or no gene varies over them; as of :func:`synthetic_tiles`.

    Examples
    --------
    >>> import sthist
    >>> sdata, local = sthist.datasets.toy("visium", size_um=900), sthist.models.load("adapted")  # doctest: +SKIP
    >>> made = sthist.tl.synthesize(sdata, local)  # doctest: +SKIP
    >>> pca, genes, tiles = sthist.pl.synthetic_clusters(sdata, made)  # doctest: +SKIP
    """
    from sklearn.cluster import KMeans
    from sklearn.decomposition import PCA

    tiles = SpotTiles(data, synthetic, table, image, normalizer)
    values = tiles.conditions()
    varies = values.std(axis=0) > 0
    if not varies.any() or not 1 <= n_clusters <= len(values):
        raise ValueError(
            f"There are {len(values)} spots with {int(varies.sum())} genes that vary: no {n_clusters} clusters."
        )
    genes = np.array(tiles.table.var_names)[varies]
    standard = (values[:, varies] - values[:, varies].mean(axis=0)) / values[:, varies].std(axis=0)
    seed = settings.seed if seed is None else int(seed)
    fitted = KMeans(n_clusters, n_init=10, random_state=seed).fit(standard)
    order = np.argsort(-np.bincount(fitted.labels_, minlength=n_clusters), kind="stable")  # the largest first
    cluster, middles = np.argsort(order)[fitted.labels_], fitted.cluster_centers_[order]
    names = [str(i + 1) for i in range(n_clusters)]
    colours = class_colours(names, palette=palette)
    drawn = _axes(axes, n_clusters, n, min(n_genes, len(genes)))
    _draw_components(
        drawn[0], PCA(min(2, *standard.shape), random_state=seed).fit(standard), standard, cluster, colours
    )
    colour_legend(drawn[0], [f"{name} (n = {(cluster == i).sum()})" for i, name in enumerate(names)], colours)
    best = np.argsort(-middles.std(axis=0), kind="stable")[:n_genes]
    best = best[np.lexsort((-middles.max(axis=0)[best], middles.argmax(axis=0)[best]))]  # by the cluster that has most
    _draw_genes(drawn[1], middles[:, best], genes[best], names, cmap)
    picked = []
    for i in range(n_clusters):
        mine = np.flatnonzero(cluster == i)
        far = np.linalg.norm(standard[mine] - middles[i], axis=1)
        picked.append(mine[np.argsort(far, kind="stable")[:n]])
    px = tiles.spec.px
    grid = np.full((n_clusters, 2 * n, px, px, 3), 255, np.uint8)
    for row, spots in zip(grid, picked, strict=True):
        row[: len(spots)] = tiles.real(spots)
        row[n : n + len(spots)] = tiles.made(spots, 1)[:, 0]
    draw_grid(drawn[2], grid, names, [*["real"] * n, *["synthetic"] * n], apart=n)
    for label, colour in zip(drawn[2].get_yticklabels(), colours, strict=True):
        label.set(color=tuple(colour), fontweight="bold")
    return finish(drawn, save)


def _axes(axes: Any, n_clusters: int, n: int, n_genes: int) -> list[Axes]:
    """The user's axes, or three of a figure."""
    import matplotlib.pyplot as plt

    if axes is not None:
        own = list(np.ravel(np.asarray(axes, dtype=object)))
        if len(own) != len(PANELS):
            raise ValueError(f"3 panels ({', '.join(PANELS)}) need as many axes; {len(own)} are given.")
        return own
    width = max(8.5, 2 * n * TILE_INCHES + 1.5, 0.22 * n_genes + 5)
    heights = [2.8, TILE_INCHES * n_clusters + 0.4]
    figure = plt.figure(figsize=(width, sum(heights)), layout="constrained")
    panels: Any = figure.subplot_mosaic(
        [["pca", "genes"], ["tiles", "tiles"]], height_ratios=heights, width_ratios=[1, max(1.2, 0.09 * n_genes)]
    )
    setattr(figure, MADE_HERE, True)
    return [panels[name] for name in PANELS]


def _draw_components(ax: Axes, fitted: Any, standard: np.ndarray, cluster: np.ndarray, colours: np.ndarray) -> None:
    """Spots on their first principal components."""
    points = fitted.transform(standard)
    if points.shape[1] < 2:
        points = np.c_[points, np.zeros(len(points))]
    shares = [*fitted.explained_variance_ratio_, 0.0]
    x, y = points.T
    ax.scatter(x, y, c=colours[cluster], s=float(np.clip(4000 / len(points), 4, 30)), linewidths=0)
    ax.set(xticks=[], yticks=[], xlabel=f"PC 1 ({shares[0]:.0%})", ylabel=f"PC 2 ({shares[1]:.0%})", title="expression")


def _draw_genes(ax: Axes, middles: np.ndarray, genes: np.ndarray, names: list[str], cmap: str) -> None:
    """Mean of each gene in each cluster, in standard deviations."""
    most = float(np.abs(middles).max()) or 1.0
    shown = ax.imshow(middles, cmap=cmap, vmin=-most, vmax=most, aspect="auto", interpolation="nearest")
    ax.set_xticks(np.arange(len(genes)), genes, rotation=90, fontsize="x-small")
    ax.set_yticks(np.arange(len(names)), names, fontsize="small")
    ax.set(title="mean expression (z)", ylabel="cluster")
    ax.figure.colorbar(shown, ax=ax, shrink=0.8, pad=0.02)
