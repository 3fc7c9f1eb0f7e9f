"""Sections that a translation is trained on: which images they have, and where their tiles may lie."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from sthist import _sample, scale
from sthist._sample.samples import Sample, naming, samples_of
from sthist.tiles import TileReader, TileSpec
from sthist.tiles._images.image import Image, open_he, open_image
from sthist.tiles._laid_tiles import laid_tiles
from sthist.tiles._spec import same_spec

if TYPE_CHECKING:
    from collections.abc import Sequence

    import pandas as pd
    from spatialdata import SpatialData

    from sthist._sample.elements import HighResElements

TILES = "tiles"
"""Key of tiles that were laid beforehand, where none is given."""


@dataclass(frozen=True, eq=False)
class TileTable:
    """Tiles that were laid beforehand: centres (n, 2) in µm, their size, and what else is known of them, a row each."""

    centres: np.ndarray
    obs: pd.DataFrame
    spec: TileSpec

    @property
    def ids(self) -> np.ndarray:
        """(n,) name of each tile."""
        return self.obs["instance_id"].to_numpy()


@dataclass(frozen=True, eq=False)
class Section:
    """One sample, with the elements that a model is trained on, and scored against."""

    sample: Sample
    he: str
    nuclear: tuple[str, ...]
    channel: str
    points: str | None  # None where no transcripts are drawn
    z: int | tuple[int, int] | None  # plane of stain and transcripts, or the first and last
    mpp: float  # of the coarser of H&E and stain
    laid: TileTable | None  # None to spread tiles over the cells

    @property
    def name(self) -> str:
        """Of the sample."""
        return self.sample.name

    @property
    def sdata(self) -> SpatialData:
        """The sample's data."""
        return self.sample.data

    def elements(self) -> HighResElements:
        """What a model reads of the sample to predict."""
        keys: dict[str, Any] = {"image": self.nuclear, "channel": self.channel, "points": self.points, "z": self.z}
        return _sample.find_high_res(self.sdata, **keys)

    def histology(self, spec: TileSpec, *, allow_upsampling: bool = True, normalizer: Any = None) -> TileReader:
        """A reader of the H&E; outside of it is white."""
        how: dict[str, Any] = {"allow_upsampling": allow_upsampling, "normalizer": normalizer}
        return TileReader(self.sdata, self.he, spec, fill=255, **how)

    def stain(self, spec: TileSpec) -> TileReader:
        """A reader of the nuclear stain alone."""
        return TileReader(
            self.sdata, self.nuclear, spec, channels=[self.channel], z=self.z, fill=0, allow_upsampling=True
        )


def find_sections(
    data: Any,
    *,
    samples: Any = None,
    tiles: str | None = None,
    he: str | None = None,
    image: str | Sequence[str] | None = None,
    channel: str | None = None,
    points: str | None = None,
    z: int | tuple[int, int] | None = None,
    with_points: bool = True,
) -> list[Section]:
    """The sections of an argument, checked; no pixel is read."""
    sections = []
    for sample in samples_of(data, samples):
        with naming(sample.name):
            sections.append(_find_section(sample, tiles, he, image, channel, points, z, with_points=with_points))
    without = [section.name for section in sections if section.laid is None]
    if 0 < len(without) < len(sections):
        raise ValueError(
            f"{len(without)} of {len(sections)} samples have no laid tiles, such as {without[0]!r}, and the others "
            "have. Call pp.tiles for these, too."
        )
    return sections


def laid_spec(sections: Sequence[Section]) -> TileSpec | None:
    """Physical size and pixels of laid tiles, which are alike in all sections; None where none are laid."""
    specs = [section.laid.spec for section in sections if section.laid is not None]
    for section, spec in zip(sections, specs, strict=False):
        if not same_spec(spec, specs[0]):
            raise ValueError(
                f"Tiles of sample {sections[0].name!r} are {_in_words(specs[0])}, those of {section.name!r} "
                f"{_in_words(spec)}. Lay all alike with pp.tiles(..., overwrite=True)."
            )
    return specs[0] if specs else None  # all sections have laid tiles, or none


def common_spec(sections: Sequence[Section], asked: TileSpec | None, default: TileSpec) -> TileSpec:
    """Physical size and pixels of the tiles: as they were laid, else as asked, else the default's."""
    laid = laid_spec(sections)
    if laid is None:
        return asked or default
    if asked is not None and not same_spec(asked, laid):
        raise ValueError(
            f"Tiles of {_in_words(laid)} are laid, and {_in_words(asked)} is asked for. Leave spec out, or lay others "
            "with pp.tiles(..., key_added=...) and name them with regions=."
        )
    return laid


def _in_words(spec: TileSpec) -> str:
    return f"{spec.size_um:g} µm on {spec.px} px"


def _find_section(
    sample: Sample, tiles: Any, he: Any, image: Any, channel: Any, points: Any, z: Any, *, with_points: bool
) -> Section:
    sdata = sample.data
    if not hasattr(sdata, "images"):
        raise TypeError(
            f"Sample {sample.name!r} is a {type(sdata).__name__} without images; virtual H&E needs a SpatialData."
        )
    _sample.require_one_sample(sdata)
    he_key = _find_he(sdata, he)
    nuclear, nuclear_channel = _sample.find_nuclear(sdata, image, channel)
    transcripts = _sample.find_transcripts(sdata, points)[0] if with_points else None
    if with_points and transcripts is None:
        raise KeyError(
            f'No transcripts to draw. {_sample.describe("points", sdata.points)} Read them, or pass mode="none".'
        )
    for key in (he_key, *nuclear):
        _require_registered(sdata, key)
    images = open_he(sdata, he_key), open_image(sdata, nuclear, channels=[nuclear_channel])
    _require_meeting(*images)
    mpp = max(image.coarsest_mpp for image in images)
    return Section(sample, he_key, nuclear, nuclear_channel, transcripts, z, mpp, _laid(sdata, tiles))


def _find_he(sdata: SpatialData, he: str | None) -> str:
    try:
        return _sample.find_he(sdata, he)
    except (KeyError, ValueError) as error:
        # The image of this verb is the nuclear stain.
        raise type(error)(error.args[0].replace("with image=", "with he=")) from None


def _require_registered(sdata: SpatialData, key: str) -> None:
    try:
        scale.matrix_to(sdata.images[key])
    except KeyError:
        raise ValueError(
            f"Image {key!r} is not registered in {_sample.UM!r}: H&E and nuclear stain have to share it. Give its "
            f"scale with pp.set_scale, or lay it on the other one with pp.align(sdata, {key!r}, ...)."
        ) from None


def _require_meeting(he: Image, stain: Image) -> None:
    boxes = he.extent_um, stain.extent_um
    low = np.maximum(boxes[0][:2], boxes[1][:2])
    high = np.minimum(boxes[0][2:], boxes[1][2:])
    if not (low < high).all():
        he_box, stain_box = (f"x {x0:.0f} to {x1:.0f}, y {y0:.0f} to {y1:.0f} µm" for x0, y0, x1, y1 in boxes)
        raise ValueError(
            f"The H&E {he.key!r} ({he_box}) and the nuclear stain {stain.key!r} ({stain_box}) do not meet. Align them "
            "with pp.align."
        )


def _laid(sdata: SpatialData, tiles: str | None) -> TileTable | None:
    try:
        table, spec = laid_tiles(sdata, tiles or TILES)
    except KeyError:
        if tiles is None:
            return None
        raise
    return TileTable(np.asarray(table.obsm["spatial"], np.float64)[:, :2], table.obs, spec)
