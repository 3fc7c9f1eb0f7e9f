"""Real and synthetic tiles of the same spots as pictures."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from sthist._sample.verbs import verb
from sthist.pl._base import finish, one_axes
from sthist.pl._synthesis.spots import SpotTiles, draw_grid, grid_inches

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from pathlib import Path

    from matplotlib.axes import Axes
    from spatialdata import SpatialData

    from sthist.pl._synthesis.spots import Normalizer


@verb
def synthetic_tiles(
    data: Any,
    synthetic: SpatialData,
    spots: Sequence[str] | int | None = None,
    *,
    n: int = 5,
    table: str | None = None,
    image: str | None = None,
    normalizer: Normalizer | Mapping[str, Normalizer] | None = None,
    ax: Axes | None = None,
    save: str | Path | None = None,
) -> Axes:
    """Show spots row by row: the real tile, and tiles that were made of its expression.

    Both are drawn at the pixels of the synthetic ones, so that neither is sharper than it is.

    Parameters
    ----------
    data
        The sample with spots and H&E, or the mapping of samples, that the tiles were made of.
    synthetic
        Of :func:`sthist.tl.synthesize`.
    spots
        Names of spots, or how many, evenly over all; 6 by default.
    n
        Synthetic tiles of each.
    table
        Key of the table with the spots, where there are several.
    image
        Key of the H&E.
    normalizer
        What :func:`sthist.pp.stain_normalize` returned, for real tiles, where the model was trained with
        ``stain_reference=``; or a mapping of sample name to such.
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
        If there is no such spot, table or image.
    ValueError
        If ``synthetic`` is not of :func:`sthist.tl.synthesize`, or of other spots, or real tiles cannot be read.

    Examples
    --------
    >>> import sthist
    >>> sdata = sthist.datasets.toy("visium", size_um=900)
    >>> config = sthist.models.C2LConfig(px=16, dim=8, multipliers=(1, 2))
    >>> quick = {"training": {"epochs": 1, "steps_per_epoch": 2, "batch_size": 4}, "device": "cpu", "progress": False}
    >>> central = sthist.tl.train_central(sdata, config, **quick)
    >>> local = sthist.tl.adapt_local(sdata, central, fraction=0.1, **quick)
    >>> made = sthist.tl.synthesize(sdata, local, n=2, steps=2, device="cpu", progress=False)
    >>> ax = sthist.pl.synthetic_tiles(sdata, made, 3)
    >>> [each.get_text() for each in ax.get_xticklabels()]
    ['real', 'synthetic']
    """
    tiles = SpotTiles(data, synthetic, table, image, normalizer)
    shown = tiles.found(spots, 6)
    n = min(n, tiles.replicates())
    grid = np.concatenate([tiles.real(shown)[:, None], tiles.made(shown, n)], axis=1)
    ax = one_axes(ax, grid_inches(*grid.shape[:2]))
    draw_grid(ax, grid, tiles.titles(shown), ["real", *["synthetic"] * n])
    return finish([ax], save)[0]


@verb
def guidance_sweep(
    data: Any,
    synthetic: Sequence[SpatialData],
    spots: Sequence[str] | int | None = None,
    *,
    table: str | None = None,
    image: str | None = None,
    normalizer: Normalizer | Mapping[str, Normalizer] | None = None,
    ax: Axes | None = None,
    save: str | Path | None = None,
) -> Axes:
    """Show what guidance changes: spots row by row, of the same noise, over guidance.

    Parameters
    ----------
    data
        As of :func:`synthetic_tiles`.
    synthetic
        Several of :func:`sthist.tl.synthesize`, alike but for ``guidance=``: the same spots, seed and ``n``.
    spots
        As of :func:`synthetic_tiles`; 4 by default.
    table, image, normalizer, ax, save
        As of :func:`synthetic_tiles`.

    Returns
    -------
    The axes.

    Raises
    ------
    KeyError
        As of :func:`synthetic_tiles`.
    ValueError
        As of :func:`synthetic_tiles`; if tiles are not of the same spots and noise.

    Examples
    --------
    >>> import sthist
    >>> sdata, local = sthist.datasets.toy("visium", size_um=900), sthist.models.load("adapted")  # doctest: +SKIP
    >>> made = [sthist.tl.synthesize(sdata, local, guidance=each, seed=0) for each in (0, 1, 3)]  # doctest: +SKIP
    >>> ax = sthist.pl.guidance_sweep(sdata, made)  # doctest: +SKIP
    """
    each = [SpotTiles(data, one, table, image, normalizer) for one in synthetic]
    if not each:
        raise ValueError("synthetic is empty: give what tl.synthesize returned, once for each guidance.")
    each.sort(key=_guidance)
    first = each[0]
    for other in each[1:]:
        same = ("seed", "steps", "central_sha256", "adapter_sha256")
        if other.names != first.names or any(first.facts.get(name) != other.facts.get(name) for name in same):
            differ = [name for name in same if first.facts.get(name) != other.facts.get(name)]
            raise ValueError(
                f"Tiles of guidance {_guidance(first):g} and {_guidance(other):g} differ in more than that: "
                f"{', '.join(differ) or 'their spots'}. Make all of the same spots, model, seed and steps."
            )
        if not np.array_equal(first.table.obs["instance_id"], other.table.obs["instance_id"]):
            raise ValueError("The numbers of tiles differ: n= has to be the same for all, so that noise is.")
    shown = first.found(spots, 4)
    made = [one.made(shown, 1) for one in each]
    grid = np.concatenate([first.real(shown)[:, None], *made], axis=1)
    ax = one_axes(ax, grid_inches(*grid.shape[:2]))
    draw_grid(ax, grid, first.titles(shown), ["real", *(f"guidance {_guidance(one):g}" for one in each)])
    ax.tick_params(axis="x", labelsize="x-small")
    return finish([ax], save)[0]


def _guidance(tiles: SpotTiles) -> float:
    return float(tiles.facts.get("guidance", np.nan))
