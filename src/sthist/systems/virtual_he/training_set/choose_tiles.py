"""Which tiles a translation can be trained on: with content, and in register."""

from __future__ import annotations

import logging
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING, Any

import numpy as np

from sthist import _sample, stains
from sthist._imaging.shifts import REACH_UM, STAIN_VECTORS
from sthist._sample.elements import present, region_geometry
from sthist._sample.samples import naming
from sthist._settings import logger, settings
from sthist._tables.rows import core_columns
from sthist.pp._tiles import centroids, find_cells, spread_tiles
from sthist.tiles import Overlay, TileSpec, has_content, keep_shifted, tile_shifts_um
from sthist.tiles._sampling import MAX_BLANK, lies_inside
from sthist.training.split_groups import units_of

if TYPE_CHECKING:
    from collections.abc import Sequence

    import pandas as pd

    from sthist.systems.virtual_he.training_set.sections import Section
    from sthist.tiles import TileReader
    from sthist.training.splits import Units

SHIFTS = ("shift_x_um", "shift_y_um", "shift_um", "confidence")
"""Columns of how far the H&E of a tile lies off its stain."""

BATCH = 32
"""Tiles that are in memory at once while they are chosen."""

FINEST_MPP, COARSEST_MPP = 0.5, 1.5
"""µm/px between which nuclei are matched: finer shows no more of them, coarser too little."""

LEAST_WINDOW_UM = 64.0
"""Around smaller tiles, nuclei are matched in a window of this side."""

LEAST_KEPT = 2 / 3
"""Part of a section's tiles below which it is said aloud how many are left."""

ALIKE = 0.98
"""Cosine above which two stain vectors are one stain found twice."""


def choose_tiles(
    sections: Sequence[Section],
    spec: TileSpec,
    *,
    n_tiles: int,
    max_shift_um: float | None,
    within: Any = None,
) -> tuple[pd.DataFrame, Units]:
    """Spread tiles where none are laid, and leave out those that cannot be trained on.

    Returns one row per tile: sample, instance_id, x_um, y_um, part (empty, or ``"dropped"``), reason, shift_x_um,
    shift_y_um, shift_um and confidence; and by what the tiles can be split.
    """
    import pandas as pd

    frames, known = [], []
    for section in sections:
        with naming(section.name):
            frame, obs = _tiles_of(section, spec, n_tiles, within)
            usable = np.flatnonzero(frame["part"] != "dropped")
            if max_shift_um is not None and len(usable):
                _measure_shifts(section, spec, frame, usable, max_shift_um)
            _report(section, spec, frame, max_shift_um)
        frames.append(frame)
        known.append(obs)
    centres = [frame[["x_um", "y_um"]].to_numpy() for frame in frames]
    units = units_of([section.sample for section in sections], known, centres, spec.size_um)
    return pd.concat(frames, ignore_index=True), units


def _tiles_of(section: Section, spec: TileSpec, n_tiles: int, within: Any) -> tuple[pd.DataFrame, pd.DataFrame]:
    """The tiles of a section, laid or spread, and what is known of them."""
    import pandas as pd
    import shapely
    import spatialdata as sd

    views = _views(section, spec)
    region = None if within is None else region_geometry(section.sdata, within)
    if section.laid is not None:
        centres, ids, obs = section.laid.centres, section.laid.ids, section.laid.obs
        outside, blank = _without_content(views, centres, spec.size_um)
        if region is not None:
            outside |= ~shapely.contains_xy(region, *centres.T)
    else:
        try:
            shapes = find_cells(section.sdata)
        except KeyError:
            raise KeyError(
                "There are neither laid tiles nor cells to spread tiles over. Lay some with pp.tiles(sdata, "
                f"size_um={spec.size_um:g}, px={spec.px})."
            ) from None
        cells = present(sd.transform(section.sdata.shapes[shapes], to_coordinate_system=_sample.UM))
        places = centroids(cells)
        if region is not None:
            inside = shapely.contains_xy(region, *places.T)
            cells, places = cells[inside], places[inside]
        chosen = spread_tiles(views, places, spec.size_um, n_tiles, MAX_BLANK)
        centres, ids = places[chosen], cells.index.to_numpy()[chosen]
        obs = pd.DataFrame(core_columns(section.sdata, centres), index=range(len(chosen)))
        outside = blank = np.zeros(len(chosen), bool)
    frame = pd.DataFrame(
        {
            "sample": section.name,
            "instance_id": ids,
            "x_um": centres[:, 0],
            "y_um": centres[:, 1],
            "part": np.where(outside | blank, "dropped", "").astype(object),
            "reason": np.select([outside, blank], ["outside", "blank"], "").astype(object),
            **dict.fromkeys(SHIFTS, np.nan),
        }
    )
    return frame, obs


def _views(section: Section, spec: TileSpec) -> list[TileReader | Overlay]:
    """Stain and H&E, read no finer than the coarser of them is."""
    seen = TileSpec(spec.size_um, max(1, min(spec.px, round(spec.size_um / section.mpp))))
    stain = Overlay(
        section.sdata,
        seen,
        mode="none",
        image=section.nuclear,
        channel=section.channel,
        z=section.z,
        allow_upsampling=True,
    )
    return [stain, section.histology(seen)]


def _without_content(
    views: Sequence[TileReader | Overlay], centres: np.ndarray, size_um: float
) -> tuple[np.ndarray, np.ndarray]:
    """Which tiles leave an image, and which of the others are blank in one."""
    inside = np.logical_and.reduce([lies_inside(view.image, centres, size_um) for view in views])
    blank = np.zeros(len(centres), bool)
    rows = np.flatnonzero(inside)
    rows = rows[views[0].order(centres[rows])]
    for start in range(0, len(rows), BATCH):
        batch = rows[start : start + BATCH]
        blank[batch] = ~np.logical_and.reduce([has_content(view.read(centres[batch]), MAX_BLANK) for view in views])
    return ~inside, blank


def _measure_shifts(
    section: Section, spec: TileSpec, frame: pd.DataFrame, rows: np.ndarray, max_shift_um: float
) -> None:
    """Fill in how far the H&E of each tile lies off its stain, and drop the tiles where it is too far."""
    if section.mpp > COARSEST_MPP:
        logger.info(
            "Sample %r has %.3g µm/px: above %g, nuclei cannot be matched, and all tiles count as registered.",
            section.name,
            section.mpp,
            COARSEST_MPP,
        )
        return
    mpp = max(section.mpp, FINEST_MPP)
    window = TileSpec.from_mpp(mpp, round(max(spec.size_um, LEAST_WINDOW_UM, 3.1 * REACH_UM) / mpp))
    histology, stain = section.histology(window), section.stain(window)
    centres = frame[["x_um", "y_um"]].to_numpy(np.float64)[rows]
    order = stain.order(centres)
    vectors = _stain_vectors(histology.read(centres[order[:: max(1, len(order) // BATCH)][:BATCH]]))
    shifts, confidence = np.full((len(rows), 2), np.nan), np.zeros(len(rows))

    def match(batch: np.ndarray) -> None:
        he, nuclear = histology.read(centres[batch]), stain.read(centres[batch])[..., 0]
        shifts[batch], confidence[batch] = tile_shifts_um(he, nuclear, window.mpp, vectors=vectors)

    # Small batches, so that no more than BATCH tiles are in memory at once.
    step = max(1, BATCH // settings.threads)
    with ThreadPoolExecutor(settings.threads) as pool:
        list(pool.map(match, [order[start : start + step] for start in range(0, len(order), step)]))
    near, _ = keep_shifted(shifts, max_shift_um=max_shift_um)
    unmatched = np.isnan(shifts).any(axis=1)
    lost = unmatched & (confidence > 0)  # there are nuclei in both, and nowhere near do they agree
    frame.loc[rows, list(SHIFTS)] = np.column_stack([shifts, np.hypot(*shifts.T), confidence])
    for chosen, reason in ((~near & ~unmatched, "shifted"), (lost, "no match")):
        frame.loc[rows[chosen], ["part", "reason"]] = ["dropped", reason]


def _stain_vectors(tiles: np.ndarray) -> np.ndarray:
    """Haematoxylin and eosin of a section, or of the literature where they cannot be told apart in it."""
    try:
        vectors = stains.macenko(tiles)
    except ValueError:
        return STAIN_VECTORS
    return vectors if vectors[0] @ vectors[1] < ALIKE else STAIN_VECTORS


def _report(section: Section, spec: TileSpec, frame: pd.DataFrame, max_shift_um: float | None) -> None:
    """Say how many tiles are left; refuse a section that has none, or none that is known to be in register."""
    kept = frame[frame["part"] != "dropped"]
    dropped = frame["reason"][frame["part"] == "dropped"].value_counts().to_dict()
    lost = ", ".join(f"{n} {reason}" for reason, n in dropped.items()) or "none"
    n_moved = dropped.get("shifted", 0) + dropped.get("no match", 0)
    n_near, n_unknown = int(kept["shift_um"].notna().sum()), int((kept["confidence"] == 0).sum())
    aligning = f"pp.align(sdata, {section.he!r}, matrix='auto')"
    if n_moved and not n_near:
        raise ValueError(
            f"The H&E {section.he!r} of sample {section.name!r} lies off the nuclear stain: of {len(frame)} tiles, "
            f"none is in register to {max_shift_um:g} µm; left out are: {lost}. Register it with {aligning}, or pass "
            "max_shift_um=None to take it as it is."
        )
    if not len(kept):
        raise ValueError(
            f"No tile of {spec.size_um:g} µm of sample {section.name!r} can be trained on: each has to lie wholly on "
            f"both images, and to show something. Left out are: {lost}. Make tiles smaller, or look whether H&E and "
            "stain lie on each other."
        )
    logger.log(
        logging.INFO if len(kept) >= LEAST_KEPT * len(frame) else logging.WARNING,
        "Sample %r: %d of %d tiles are kept, %d of them with too few nuclei to match; left out are: %s.",
        section.name,
        len(kept),
        len(frame),
        n_unknown,
        lost,
    )
    if n_moved > n_near:
        logger.warning(
            "The H&E of sample %r lies more than %g µm off its stain in most tiles; %s may mend that.",
            section.name,
            max_shift_um,
            aligning,
        )
