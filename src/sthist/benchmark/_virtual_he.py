"""Virtual against real H&E, tile by tile."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import numpy as np

from sthist import _sample
from sthist._sample.samples import samples_of
from sthist._sample.verbs import verb
from sthist._settings import settings
from sthist.benchmark._nuclei import SCORES, Truth, haematoxylin_nuclei, nucleus_scores, require_fine, truths_of
from sthist.benchmark._tiles import SharedTiles, find_extractor, predict_tiles, shared_tiles
from sthist.metrics import image as scores
from sthist.metrics._compare import SETS, shuffled
from sthist.metrics._pixels import seam_score
from sthist.systems.virtual_he.config import TranslationConfig
from sthist.tiles._blocks.blend import TileGrid
from sthist.tiles._images.image import pyramid

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    import pandas as pd
    from spatialdata import SpatialData

    from sthist._sample.samples import Sample
    from sthist.encoders import Encoder
    from sthist.systems.virtual_he.translator import Translator

REACH = 8
"""Lines up to so many px from a seam are held against it."""

LEAST_TILES = 4
"""Tiles in a row, from which on what repeats can be told from what does not."""

OTHER_DISTANCES = (0.83, 0.87, 0.91, 1.07, 1.13, 1.19)
"""Of the stride; close to it, and no simple parts or multiples of it."""

MAX_SEGMENTS = 20_000
"""Pieces of seams that are looked at, each as long as a tile's stride."""


def seam_of(sdata: SpatialData, key: str, *, seed: int = 0) -> dict[str, Any]:
    """Seam score of an image on the lattice of the tiles that made it, and on the same lattice shifted by half a tile.

    Returns ``seam`` and ``interior``, as of :func:`sthist.metrics.image.seam_score`, their ``ratio``, and the
    ``stride_px`` of the lattice; ``repeat``, how much stronger what comes again from tile to tile is than what comes
    again at other distances, which also sees patterns inside the tiles; or only the ``reason`` why there are none.
    """
    made = sdata.attrs.get("sthist", {}).get("results", {}).get(key)
    if not made or "tile_px" not in made:
        return {"reason": f"{key!r} has no record of the tiles that made it, which tl.virtual_he keeps."}
    px = int(made["tile_px"])
    stride = TileGrid((0.0, 0.0), 1.0, px, float(made["overlap"])).stride
    pixels = pyramid(sdata.images[key])[0].transpose("y", "x", "c").data
    if max(pixels.shape[:2]) <= stride + REACH:
        return {"reason": f"{key!r} was made of tiles of {px} px and is not larger than one: it has no seam."}
    seam, interior = (_score(pixels, stride, offset, seed) for offset in (0, stride // 2))
    if seam is None or interior is None:
        return {"reason": f"{key!r} is too small beside its tiles of {px} px."}
    ratio = seam / interior if interior else float("nan")
    return {"seam": seam, "interior": interior, "ratio": ratio, "stride_px": stride, "repeat": _repeat(pixels, stride)}


def _repeat(pixels: Any, stride: int) -> float | None:
    """Spread of the mean tile's profile over that of means at other distances.

    None where too few tiles lie in a row.
    """
    strengths: list[list[float]] = []
    for axis in (0, 1):
        profile = np.asarray(pixels.mean(axis=(axis, 2)), np.float64)
        if len(profile) < LEAST_TILES * stride:
            continue
        # What changes over several tiles is tissue.
        profile -= np.convolve(
            np.pad(profile, stride, mode="reflect"), np.ones(2 * stride + 1) / (2 * stride + 1), "valid"
        )
        distances = [stride, *(round(stride * factor) for factor in OTHER_DISTANCES)]
        strengths.append([_folded(profile, distance) for distance in distances])
    if not strengths:
        return None
    own, *others = np.mean(strengths, axis=0)
    return float(own / np.median(others)) if np.median(others) > 0 else float("nan")


def _folded(profile: np.ndarray, distance: int) -> float:
    """Spread of the mean of the pieces of a profile that are as long as a distance."""
    n = len(profile) // distance
    return float(profile[: n * distance].reshape(n, distance).mean(0).std())


def _score(pixels: Any, stride: int, offset: int, seed: int) -> float | None:
    """Seam score of all lines of a lattice, or of a random part of them where there are many."""
    segments = [
        (axis, line, start)
        for axis in (0, 1)
        for line in range(offset or stride, pixels.shape[axis], stride)
        if REACH < line < pixels.shape[axis] - REACH
        for start in range(0, pixels.shape[1 - axis], stride)
    ]
    if not segments:
        return None
    if len(segments) > MAX_SEGMENTS:
        chosen = np.random.default_rng(seed).permutation(len(segments))[:MAX_SEGMENTS]
        segments = [segments[i] for i in np.sort(chosen)]
    # Strips across the seams, one above the other: what lies at a strip's end is never compared with the next strip.
    strips = [_strip(pixels, axis, line, slice(start, start + stride)) for axis, line, start in segments]
    return seam_score(np.concatenate(strips), seams_x=[REACH + 1], reach=REACH)


def _strip(pixels: Any, axis: int, line: int, along: slice) -> np.ndarray:
    """The pixels on both sides of a piece of a line: (length, 2 (REACH + 1), c), the line in the middle."""
    across = slice(line - REACH - 1, line + REACH + 1)
    part = np.asarray(pixels[across, along] if axis == 0 else pixels[along, across])
    return part.transpose(1, 0, 2) if axis == 0 else part


@verb
def virtual_he(
    data: SpatialData | Mapping[str, SpatialData],
    key: str = "virtual_he",
    *,
    model: Translator | None = None,
    he: str | None = None,
    regions: str = "tiles",
    classes: str | None = None,
    metrics: Sequence[str] = ("mse", "psnr", "ssim"),
    encoder: str | Encoder | Callable[[Any], Any] | None = "morphology",
    options: Mapping[str, Mapping[str, Any]] | None = None,
    nuclei: bool | str = True,
    nulls: bool = True,
    seed: int | None = None,
) -> pd.DataFrame:
    """Score a virtual H&E against the real one of the same section, per tile and region class.

    Parameters
    ----------
    data
        One sample, or a mapping of name to sample, with both images registered in ``um``.
    key
        The virtual image.
    model
        A model of :func:`sthist.tl.train_virtual_he`: score the tiles that its training has held out (``test=``), and
        no others. They are found by sample and place, whether they were laid or spread by the training; samples without
        such are left out. By default all laid tiles are scored, also those that a model was trained on, whose scores
        are too good.
    he
        The real one.
    regions
        Tiles that :func:`sthist.pp.tiles` has laid, alike in all samples. Those that leave either image are left out.
    classes
        Column of the tiles' table that holds the region class of each; :func:`region_tests` compares them.
    metrics
        As of :func:`sthist.metrics.image.compare`: ``"mse"``, ``"psnr"``, ``"ssim"``, ``"lpips"``, ``"clip"``,
        ``"fid"``, ``"kid"``.
    encoder
        What FID and KID look through: the name of an encoder such as ``"morphology"``, which is built in, or an
        encoder, whose features are standardised by the real tiles; a function, as of :func:`sthist.metrics.image.fid`;
        or None for Inception-v3, whose weights have to be there. Values through different ones do not compare.
    options
        Further arguments of metrics, as of :func:`sthist.metrics.image.compare`.
    nuclei
        Also compare the nuclei that are segmented from the haematoxylin of the virtual image
        (:func:`sthist.tiles.segment_nuclei`): with those of the real image (True or ``"real"``), of the nuclear stain
        (``"stain"``), or with the vendor's outlines (``"vendor"``, or the key of shapes). What is segmented counts as
        the truth, and is none. Where there is no real H&E, :func:`nucleus_preservation` scores nuclei alone.
    nulls
        Beside each score that of the mean colour of all real tiles, and of the virtual image of another tile, also of
        another sample. With a ``model`` that sees molecules also of what it makes of a tile alone (``"tile alone"``),
        without its molecules (``"molecules erased"``), and with those of another tile (``"molecules swapped"``): a
        model that is not worse for it does not use them.
    seed
        Of the shuffling; ``settings.seed`` by default.

    Returns
    -------
    One row per method and tile: ``sample``, ``method``, ``tile`` (the instance id), ``class`` if asked for, one column
    per metric, and ``nucleus_f1``, ``nucleus_iou``, ``nucleus_shift_um`` (median over matched nuclei). All tiles of all
    samples are held in memory at once: six bytes per pixel. ``attrs["sets"]`` holds FID and KID, which are of the tiles
    of all samples together, ``attrs["encoder"]`` what they looked through, ``attrs["not_available"]`` what could not
    be computed and why; ``attrs["seam"]`` says how far the tiles show that the image was made of: ``seam``, the score
    of :func:`sthist.metrics.image.seam_score` on their borders, ``interior``, the same half a tile beside them, and
    their ``ratio``, about 1 where seams do not show; or the ``reason`` why there are none. Of a mapping of samples it
    is a mapping, too.

    Raises
    ------
    TypeError
        If a sample is no SpatialData.
    KeyError
        If an image, the tiles, shapes or the column is missing, or the model was not trained on the sample.
    ValueError
        If no tile lies on both images, tiles differ between samples, the model was trained without a test part, or the
        nuclei cannot be told apart at the tiles' resolution.

    Examples
    --------
    >>> import sthist
    >>> sdata = sthist.datasets.toy(size_um=200)
    >>> sthist.tl.virtual_he(sdata)
    >>> sthist.pp.tissue(sdata)
    >>> sthist.pp.tiles(sdata, size_um=32, px=64)
    >>> frame = sthist.benchmark.virtual_he(sdata)
    >>> means = frame.groupby("method", sort=False)["ssim"].mean()
    >>> list(means.index), bool(means["virtual"] > means["shuffled"])
    (['virtual', 'mean colour', 'shuffled'], True)
    """
    parts = shared_tiles(
        samples_of(data), regions, lambda sdata: (key, _sample.find_he(sdata, he)), column=classes, of=model
    )
    spec = parts[0][1].spec
    if nuclei:
        require_fine(spec.mpp)
    truths = None if isinstance(nuclei, bool) or nuclei == "real" else truths_of(parts, nuclei)
    seed = settings.seed if seed is None else seed
    virtual, real = (_joined(pixels) for pixels in zip(*(part.read() for _, part in parts), strict=True))
    called = None
    if set(SETS) & set([metrics] if isinstance(metrics, str) else metrics):
        encoder, called = find_extractor(encoder, spec, real)
    others = _inputs_erased(model, parts, key, seed) if nulls and model is not None else {}
    frame = scores.compare(
        virtual,
        real,
        classes=None if classes is None else list(_column(parts, classes)),
        metrics=metrics,
        nulls=nulls,
        seed=seed,
        encoder=encoder,  # type: ignore[arg-type]
        options=options,
        others=others,
    )
    if nuclei:
        guesses, true = _nuclei(parts, truths, {"virtual": virtual, **others}, real)
        if nulls:
            blank = [np.zeros(true[0].shape, np.int32)] * len(true)  # what an image of one colour shows
            other = [guesses["virtual"][i] for i in shuffled(len(true), seed)]
            guesses |= {"mean colour": blank, "shuffled": other}  # in the order of compare()
        frame[list(SCORES)] = nucleus_scores(guesses, true, spec.mpp)[list(SCORES)]
    names = np.repeat([sample.name for sample, _ in parts], [len(part) for _, part in parts])
    frame.insert(0, "sample", names[frame["tile"]])
    frame["tile"] = _column(parts, "instance_id")[frame["tile"]]
    frame.attrs["encoder"] = called
    seams = {sample.name: seam_of(sample.data, key, seed=seed) for sample, _ in parts}
    frame.attrs["seam"] = seams if isinstance(data, Mapping) else next(iter(seams.values()))
    return frame


def _joined(arrays: Sequence[np.ndarray]) -> np.ndarray:
    """Tiles of all samples; those of one are not copied."""
    return arrays[0] if len(arrays) == 1 else np.concatenate(arrays)


def _column(parts: Sequence[tuple[Sample, SharedTiles]], name: str) -> np.ndarray:
    """A column of the tiles of all samples."""
    return _joined([part.column(name) for _, part in parts])


def _nuclei(
    parts: Sequence[tuple[Sample, SharedTiles]],
    truths: Sequence[Truth] | None,
    virtual: Mapping[str, np.ndarray],
    real: np.ndarray,
) -> tuple[dict[str, list[np.ndarray]], list[np.ndarray]]:
    """Nuclei of all virtual tiles of each method, and true ones; stains and contrast are those of a sample."""
    guesses: dict[str, list[np.ndarray]] = {method: [] for method in virtual}
    true: list[np.ndarray] = []
    for i, (_, part) in enumerate(parts):
        rows = slice(len(true), len(true) + len(part))
        for method, tiles in virtual.items():
            guesses[method] += haematoxylin_nuclei(tiles[rows], part.spec.mpp)
        true += haematoxylin_nuclei(real[rows], part.spec.mpp) if truths is None else truths[i].nuclei(part)
    return guesses, true


def _inputs_erased(
    model: Translator, parts: Sequence[tuple[Sample, SharedTiles]], key: str, seed: int
) -> dict[str, np.ndarray]:
    """What a model makes of each tile alone: as it is, without molecules, and with those of another tile."""
    config: Any = model.config
    if not isinstance(config, TranslationConfig) or (config.molecules == "dots" and config.mode == "none"):
        return {}
    made: dict[str, list[np.ndarray]] = {"tile alone": [], "molecules erased": [], "molecules swapped": []}
    for sample, part in parts:
        record = sample.data.attrs.get("sthist", {}).get("results", {}).get(key, {})
        stain = record.get("section", {}).get("nuclear_stain", {})
        elements = _sample.find_high_res(sample.data, image=stain.get("images"), channel=stain.get("channel"))
        others: Any = part.centres[shuffled(len(part), seed)] if len(part) > 1 else False
        for method, molecules in zip(made, (None, False, others), strict=True):
            made[method].append(predict_tiles(model, elements, part.centres, part.spec, molecules=molecules))
    return {method: _joined(tiles) for method, tiles in made.items()}
