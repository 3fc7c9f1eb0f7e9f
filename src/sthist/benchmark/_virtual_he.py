"""Virtual against real H&E, tile by tile."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from sthist import _elements
from sthist._settings import settings
from sthist.benchmark._extractor import find_extractor
from sthist.benchmark._nuclei import SCORES, Truth, haematoxylin_nuclei, require_fine
from sthist.benchmark._seams import seam_of
from sthist.benchmark._shared_tiles import require_column, shared_tiles
from sthist.metrics import image as scores
from sthist.metrics._compare import SETS, shuffled
from sthist.tiles._pairs import laid_tiles

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

    import pandas as pd
    from spatialdata import SpatialData

    from sthist.encoders import Encoder


def virtual_he(
    sdata: SpatialData,
    key: str = "virtual_he",
    *,
    he: str | None = None,
    tiles: str = "tiles",
    classes: str | None = None,
    metrics: Sequence[str] = ("mse", "psnr", "ssim"),
    extractor: str | Encoder | Callable[[Any], Any] | None = None,
    options: Mapping[str, Mapping[str, Any]] | None = None,
    nuclei: bool | str = True,
    nulls: bool = True,
    seed: int | None = None,
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
        Column of the tiles' table that holds the region class of each; :func:`region_tests` compares them.
    metrics
        As of :func:`sthist.metrics.image.compare`: ``"mse"``, ``"psnr"``, ``"ssim"``, ``"lpips"``, ``"clip"``, ``"fid"``, ``"kid"``.
    extractor
        What FID and KID look through: the name of an encoder such as ``"morphology"``, which is built in, or an encoder, whose features
        are standardised by the real tiles; a function, as of :func:`sthist.metrics.image.fid`. By default Inception-v3, whose weights
        have to be there.
    options
        Further arguments of metrics, as of :func:`sthist.metrics.image.compare`.
    nuclei
        Also compare the nuclei that are segmented from the haematoxylin of the virtual image (:func:`sthist.tiles.segment_nuclei`): with
        those of the real image (True or ``"real"``), of the nuclear stain (``"stain"``), or with the vendor's outlines (``"vendor"``, or the
        key of shapes). What is segmented counts as the truth, and is none. Where there is no real H&E,
        :func:`nucleus_preservation` scores nuclei alone.
    nulls
        Beside each score that of the mean colour, and of the virtual image of another tile.
    seed
        Of the shuffling; ``settings.seed`` by default.

    Returns
    -------
    One row per method and tile: ``method``, ``tile`` (the instance id), ``class`` if asked for, one column per metric, and
    ``nucleus_f1``, ``nucleus_iou``, ``nucleus_shift_um`` (median over matched nuclei). All tiles are held in memory at once:
    six bytes per pixel. ``attrs["sets"]`` holds FID and KID, ``attrs["extractor"]`` what they looked through, ``attrs["not_available"]`` what
    could not be computed and why; ``attrs["seam"]`` says how far the tiles show that the image was made of: ``seam``, the score of
    :func:`sthist.metrics.image.seam_score` on their borders, ``interior``, the same half a tile beside them, and their ``ratio``, about 1
    where seams do not show; or the ``reason`` why there are none.

    Raises
    ------
    KeyError
        If an image, the tiles, shapes or the column is missing.
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
    if classes is not None:
        require_column(table, tiles, classes)
    if nuclei:
        require_fine(spec.mpp)
    shared = shared_tiles(sdata, tiles, (key, he))
    seed = settings.seed if seed is None else seed
    truth = None if isinstance(nuclei, bool) or nuclei == "real" else Truth(sdata, nuclei)
    virtual, real = shared.read()
    labels = None if classes is None else list(shared.column(classes))
    called = None
    if set(SETS) & set([metrics] if isinstance(metrics, str) else metrics):
        extractor, called = find_extractor(extractor, spec, real)
    frame = scores.compare(
        virtual,
        real,
        classes=labels,
        metrics=metrics,
        nulls=nulls,
        seed=seed,
        extractor=extractor,  # type: ignore[arg-type]
        options=options,
    )
    if nuclei:
        true = haematoxylin_nuclei(real, spec.mpp) if truth is None else truth.nuclei(shared)
        _add_nuclei(frame, haematoxylin_nuclei(virtual, spec.mpp), true, spec.mpp, seed)
    frame["tile"] = shared.names[frame["tile"]]
    frame.attrs["extractor"] = called
    frame.attrs["seam"] = seam_of(sdata, key, seed=seed)
    return frame


def _add_nuclei(frame: pd.DataFrame, found: list[np.ndarray], truth: list[np.ndarray], mpp: float, seed: int) -> None:
    n = len(truth)
    empty = np.zeros(truth[0].shape, np.int32)  # what is found in an image of one colour
    guesses = {"virtual": found, "mean colour": [empty] * n}
    if n > 1:
        guesses["shuffled"] = [found[i] for i in shuffled(n, seed)]
    for name in SCORES:
        frame[name] = np.nan
    for method, guess in guesses.items():
        # A frame without nulls has no rows of theirs.
        for row, mine, real_nuclei in zip(frame.index[frame["method"] == method], guess, truth, strict=False):
            matched = scores.nucleus_preservation(mine, real_nuclei, mpp=mpp)
            frame.loc[row, list(SCORES)] = [matched[field] for field in SCORES.values()]
