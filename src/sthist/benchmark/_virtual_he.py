"""Virtual against real H&E, tile by tile."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from sthist import _elements, stains
from sthist._settings import settings
from sthist.metrics import image as scores
from sthist.metrics._compare import shuffled
from sthist.tiles import TileReader, segment_nuclei
from sthist.tiles._nuclei import above_surroundings, contrast_of
from sthist.tiles._pairs import laid_tiles
from sthist.tiles._sampling import lies_inside

if TYPE_CHECKING:
    from collections.abc import Sequence

    import pandas as pd
    from spatialdata import SpatialData

MAX_SEGMENTED_MPP = 1.5
SAMPLE_PIXELS = 2_000_000


def virtual_he(
    sdata: SpatialData,
    key: str = "virtual_he",
    *,
    he: str | None = None,
    tiles: str = "tiles",
    classes: str | None = None,
    metrics: Sequence[str] = ("mse", "psnr", "ssim"),
    nuclei: bool = True,
    nulls: bool = True,
    seed: int | None = None,
    **kwargs: Any,
) -> pd.DataFrame:
    """Score a virtual H&E against the real one of the same section, per tile and region class.

    Parameters
    ----------
    sdata
        One sample with both images registered in ``um``.
    key
        The virtual image.
    he
        The real one.
    tiles
        Tiles that :func:`sthist.pp.tiles` has laid. Those that leave either image are left out.
    classes
        Column of the tiles' table that holds the region class of each.
    metrics
        As of :func:`sthist.metrics.image.compare`.
    nuclei
        Also compare the nuclei segmented from the haematoxylin of both (:func:`sthist.tiles.segment_nuclei`); the
        segmentation of the real image counts as the truth, and is none.
    nulls
        Beside each score that of the mean colour, and of the virtual image of another tile.
    seed
        Of the shuffling; ``settings.seed`` by default.
    kwargs
        Of :func:`sthist.metrics.image.compare`: ``extractor``, ``options``.

    Returns
    -------
    One row per method and tile: ``method``, ``tile`` (the instance id), ``class`` if asked for, one column per metric, and
    ``nucleus_f1``, ``nucleus_iou``, ``nucleus_shift_um`` (median over matched nuclei). All tiles are held in memory at once:
    six bytes per pixel.

    Raises
    ------
    KeyError
        If an image, the tiles or the column is missing.
    ValueError
        If no tile lies on both images, or the nuclei cannot be told apart at the tiles' resolution.

    Examples
    --------
    >>> import sthist
    >>> sdata = sthist.datasets.toy(size_um=400)
    >>> sthist.tl.virtual_he(sdata)
    >>> sthist.pp.tissue(sdata)
    >>> sthist.pp.tiles(sdata, size_um=64, px=128)
    >>> frame = sthist.benchmark.virtual_he(sdata)
    >>> means = frame.groupby("method", sort=False)["ssim"].mean()
    >>> list(means.index), bool(means["virtual"] > means["shuffled"])
    (['virtual', 'mean colour', 'shuffled'], True)
    """
    _elements.get(sdata, "images", key)
    he = _elements.find_he(sdata, he)
    table, spec = laid_tiles(sdata, tiles)
    if classes is not None and classes not in table.obs:
        msg = f"Table '{tiles}_table' has no column {classes!r}; it has {list(table.obs.columns)}."
        raise KeyError(msg)
    if nuclei and spec.mpp > MAX_SEGMENTED_MPP:
        msg = f"Nuclei cannot be told apart at {spec.mpp:.3g} µm/px; lay finer tiles, or pass nuclei=False."
        raise ValueError(msg)
    readers = [TileReader(sdata, name, spec, fill=255, allow_upsampling=True) for name in (key, he)]
    centres = np.asarray(table.obsm["spatial"], np.float64)
    inside = np.logical_and.reduce([lies_inside(reader.sources, centres, spec.size_um) for reader in readers])
    if not inside.any():
        msg = f"None of the {len(centres)} tiles lies on both {key!r} and {he!r}."
        raise ValueError(msg)
    virtual, real = (reader.read(centres[inside]) for reader in readers)
    seed = settings.seed if seed is None else seed
    labels = None if classes is None else table.obs[classes].to_numpy()[inside]
    frame = scores.compare(virtual, real, classes=labels, metrics=metrics, nulls=nulls, seed=seed, **kwargs)
    if nuclei:
        _add_nuclei(frame, virtual, real, spec.mpp, seed)
    frame["tile"] = table.obs["instance_id"].to_numpy()[inside][frame["tile"]]
    return frame


def _add_nuclei(frame: pd.DataFrame, virtual: np.ndarray, real: np.ndarray, mpp: float, seed: int) -> None:
    found, truth = _nuclei(virtual, mpp), _nuclei(real, mpp)
    n = len(real)
    empty = np.zeros(real.shape[1:3], np.int32)  # what is found in an image of one colour
    guesses = {"virtual": found, "mean colour": [empty] * n}
    if n > 1:
        guesses["shuffled"] = [found[i] for i in shuffled(n, seed)]
    for name in ("nucleus_f1", "nucleus_iou", "nucleus_shift_um"):
        frame[name] = np.nan
    for method, guess in guesses.items():
        # A frame without nulls has no rows of theirs.
        for row, mine, real_nuclei in zip(frame.index[frame["method"] == method], guess, truth, strict=False):
            matched = scores.nucleus_preservation(mine, real_nuclei, mpp=mpp)
            frame.loc[row, ["nucleus_f1", "nucleus_iou", "nucleus_shift_um"]] = (
                matched.f1,
                matched.mean_iou,
                matched.median_shift_um,
            )


def _nuclei(tiles: np.ndarray, mpp: float) -> list[np.ndarray]:
    """Nuclei of each tile, by the stains and the contrast of all of them."""
    step = max(1, int(np.sqrt(tiles[..., 0].size / SAMPLE_PIXELS)))
    vectors = stains.macenko(tiles[:, ::step, ::step])
    amounts = [stains.concentrations(tile, vectors)[..., 0] for tile in tiles]
    contrast = contrast_of(np.stack([above_surroundings(each, mpp)[::step, ::step] for each in amounts]))
    return [segment_nuclei(each, mpp, contrast=contrast) for each in amounts]
