"""Whether the nuclei of a virtual H&E lie where the section's nuclei are."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import numpy as np

from sthist import _sample, stains
from sthist._imaging.nuclei import above_surroundings, contrast_of
from sthist._sample.samples import naming, samples_of
from sthist._sample.verbs import verb
from sthist._settings import settings
from sthist._tables.rows import polygons_um, rows_of
from sthist.benchmark._tiles import SharedTiles, on_images, shared_tiles
from sthist.metrics import image as scores
from sthist.metrics._compare import shuffled
from sthist.tiles import Image, TileReader, open_image, segment_nuclei
from sthist.tiles._regions.raster import rasterize

if TYPE_CHECKING:
    from collections.abc import Sequence

    import pandas as pd
    from spatialdata import SpatialData

    from sthist._sample.samples import Sample

MAX_SEGMENTED_MPP = 1.5
SAMPLE_PIXELS = 2_000_000
SCORES = {"nucleus_f1": "f1", "nucleus_iou": "mean_iou", "nucleus_shift_um": "median_shift_um"}
"""Columns of a frame, and the fields of :class:`sthist.metrics.image.NucleusPreservation` that they hold."""


@verb
def nucleus_preservation(
    data: SpatialData | Mapping[str, SpatialData],
    key: str = "virtual_he",
    *,
    reference: str = "stain",
    he: str | None = None,
    image: str | Sequence[str] | None = None,
    channel: str | None = None,
    z: int | None = None,
    regions: str = "tiles",
    min_iou: float = 0.5,
    nulls: bool = True,
    seed: int | None = None,
) -> pd.DataFrame:
    """Score how many of a section's nuclei a virtual H&E shows, and where; no real H&E is needed.

    Nuclei of the virtual image are segmented from its haematoxylin (:func:`sthist.tiles.segment_nuclei`).

    Parameters
    ----------
    data
        One sample, or a mapping of name to sample; the path of a store stands for its sample.
    key
        The virtual image.
    reference
        What counts as the truth: ``"stain"``, nuclei segmented in the same way from the nuclear stain; ``"vendor"``,
        the vendor's outlines of nuclei, or the key of such shapes; ``"real"``, nuclei segmented from the haematoxylin
        of the real H&E.
    he
        The real H&E, for ``reference="real"``.
    image, channel, z
        The nuclear stain, for ``reference="stain"``; as of :func:`sthist.tl.virtual_he`.
    regions
        Tiles that :func:`sthist.pp.tiles` has laid, alike in all samples. Those that leave an image are left out.
    min_iou
        Overlap above which two nuclei are one, as of :func:`sthist.metrics.image.nucleus_preservation`.
    nulls
        Beside each score that of the nuclei of another tile of the same virtual image: what chance gives where nuclei
        are as dense.
    seed
        Of the shuffling; ``settings.seed`` by default.

    Returns
    -------
    One row per sample, method (``"virtual"``, ``"shuffled"``) and tile: ``sample``, ``method``, ``tile`` (the instance
    id), ``n_found``, ``n_true``, ``precision``, ``recall``, ``nucleus_f1``, ``nucleus_iou`` (mean over matched nuclei)
    and ``nucleus_shift_um`` (median over matched nuclei). What has no nuclei to score is NaN. ``attrs["reference"]``
    says what counted as the truth; of a mapping of samples it is a mapping, too.

    Raises
    ------
    TypeError
        If a sample is no SpatialData.
    KeyError
        If an element is missing.
    ValueError
        If no tile lies on the images, tiles differ between samples, several elements could be meant, or the tiles are
        too coarse to tell nuclei apart.

    Examples
    --------
    >>> import sthist
    >>> sdata = sthist.datasets.toy(size_um=300)
    >>> sthist.tl.virtual_he(sdata)
    >>> sthist.pp.tissue(sdata)
    >>> sthist.pp.tiles(sdata, size_um=64, px=128)
    >>> frame = sthist.benchmark.nucleus_preservation(sdata, reference="vendor")
    >>> f1 = frame.groupby("method")["nucleus_f1"].mean()
    >>> bool(f1["virtual"] > f1["shuffled"])
    True
    """
    import pandas as pd

    parts = shared_tiles(samples_of(data), regions, lambda _: (key,))
    require_fine(parts[0][1].spec.mpp)
    seed = settings.seed if seed is None else seed
    truths = truths_of(parts, reference, he=he, image=image, channel=channel, z=z)
    frames, references = [], {}
    for (sample, shared), truth in zip(parts, truths, strict=True):
        with naming(sample.name):
            known = truth.on(shared)
            mpp, (virtual,) = known.spec.mpp, known.read()
            guesses = {"virtual": haematoxylin_nuclei(virtual, mpp)}
            if nulls and len(known) > 1:
                guesses["shuffled"] = [guesses["virtual"][i] for i in shuffled(len(known), seed)]
            frame = nucleus_scores(guesses, truth.nuclei(known), mpp, min_iou)
        frame.insert(1, "tile", np.tile(known.names, len(guesses)))
        frame.insert(0, "sample", sample.name)
        frames.append(frame)
        references[sample.name] = truth.shapes or reference
    frame = pd.concat(frames, ignore_index=True)
    frame.attrs["reference"] = references if isinstance(data, Mapping) else references[parts[0][0].name]
    return frame


def nucleus_scores(
    guesses: Mapping[str, Sequence[np.ndarray]], truth: Sequence[np.ndarray], mpp: float, min_iou: float = 0.5
) -> pd.DataFrame:
    """Scores of the nuclei of each method in each tile, one row each."""
    import pandas as pd

    rows: list[dict[str, Any]] = []
    for method, labels in guesses.items():
        for guess, true in zip(labels, truth, strict=True):
            matched = scores.nucleus_preservation(guess, true, mpp=mpp, min_iou=min_iou)
            rows.append({"method": method, "n_found": matched.n_a, "n_true": matched.n_b})
            rows[-1] |= {"precision": matched.precision, "recall": matched.recall}
            rows[-1] |= {column: matched[field] for column, field in SCORES.items()}
    return pd.DataFrame(rows)


class Truth:
    """Where the nuclei of a section are known from."""

    def __init__(
        self, sdata: SpatialData, reference: str, he: Any = None, image: Any = None, channel: Any = None, z: Any = None
    ) -> None:
        self._sdata, self._is_he = sdata, reference == "real"
        self.image: Image | None = None
        self.shapes: str | None = None
        if self._is_he:
            self.image = open_image(sdata, _sample.find_he(sdata, he), z=z)
        elif reference == "stain":
            keys, stain = _sample.find_nuclear(sdata, image, channel)
            self.image = open_image(sdata, keys, channels=[stain], z=z)
        else:
            self.shapes = nucleus_shapes(sdata) if reference == "vendor" else reference
            _sample.get(sdata, "shapes", self.shapes)

    def on(self, shared: SharedTiles) -> SharedTiles:
        """The tiles that lie where nuclei are known."""
        if self.image is None:
            return shared
        inside = on_images([self.image], shared.centres, shared.spec.size_um, [self.image.key])
        return shared.chosen(np.flatnonzero(inside))

    def nuclei(self, shared: SharedTiles) -> list[np.ndarray]:
        """Label images, one per tile."""
        if self.image is None:
            return outlined_nuclei(self._sdata, str(self.shapes), shared)
        fill = 255 if self._is_he else 0
        reader = TileReader.from_image(self.image, shared.spec, fill=fill, allow_upsampling=True)
        pixels = reader.read(shared.centres)
        if self._is_he:
            return haematoxylin_nuclei(pixels, shared.spec.mpp)
        return _segmented(list(pixels[..., 0]), shared.spec.mpp)


def truths_of(parts: Sequence[tuple[Sample, SharedTiles]], reference: str, **elements: Any) -> list[Truth]:
    """Of each sample, where its nuclei are known from."""
    truths = []
    for sample, _ in parts:
        with naming(sample.name):
            truths.append(Truth(sample.data, reference, **elements))
    return truths


def nucleus_shapes(sdata: SpatialData) -> str:
    """Key of the vendor's outlines of nuclei: the only shapes named like such that no verb has made."""
    made = sdata.attrs.get("sthist", {}).get("results", {})
    named = [name for name in sdata.shapes if _sample.NUCLEAR_NAMES.search(name) and name not in made]
    if len(named) == 1:
        return named[0]
    if not named:
        raise KeyError(
            f"Found no outlines of nuclei. {_sample.describe('shapes', sdata.shapes)} Name them in place of 'vendor'."
        )
    raise ValueError(
        f"Several shapes could be the nuclei: {', '.join(map(repr, sorted(named)))}. Name one of them in place of "
        "'vendor'."
    )


def outlined_nuclei(sdata: SpatialData, shapes: str, shared: SharedTiles) -> list[np.ndarray]:
    """Outlines as label images, one per tile."""
    import shapely

    outlines = polygons_um(sdata, rows_of(sdata, shapes))
    tree = shapely.STRtree(outlines)
    spec, half = shared.spec, shared.spec.size_um / 2
    labels = []
    for centre in shared.centres:
        near = np.sort(tree.query(shapely.box(*(centre - half), *(centre + half))))
        painted = rasterize(outlines[near], centre - half, spec.mpp, (spec.px, spec.px), np.arange(1, len(near) + 1))
        labels.append(painted.astype(np.int32))
    return labels


def haematoxylin_nuclei(tiles: np.ndarray, mpp: float) -> list[np.ndarray]:
    """Nuclei of each H&E tile, by the stains and the contrast of all of them."""
    step = _step(tiles[..., 0].size)
    vectors = stains.macenko(tiles[:, ::step, ::step])
    return _segmented([stains.concentrations(tile, vectors)[..., 0] for tile in tiles], mpp)


def require_fine(mpp: float) -> None:
    """Refuse tiles on which nuclei cannot be told apart."""
    if mpp > MAX_SEGMENTED_MPP:
        raise ValueError(f"Nuclei cannot be told apart at {mpp:.3g} µm/px; lay finer tiles, or pass nuclei=False.")


def _segmented(amounts: Sequence[np.ndarray], mpp: float) -> list[np.ndarray]:
    """Nuclei of each tile, by one contrast for all."""
    step = _step(sum(each.size for each in amounts))
    contrast = contrast_of(np.stack([above_surroundings(each, mpp)[::step, ::step] for each in amounts]))
    return [segment_nuclei(each, mpp, contrast=contrast) for each in amounts]


def _step(n_pixels: int) -> int:
    return max(1, int(np.sqrt(n_pixels / SAMPLE_PIXELS)))
