"""Spots on an H&E: what the readers of research formats share."""

from __future__ import annotations

import difflib
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from sthist import _sample, scale
from sthist._messages import plain
from sthist._sample.samples import safe_names
from sthist._settings import logger
from sthist.io._files.checks import require_unique
from sthist.io._files.images import LooseImage, image_element
from sthist.io._files.values import MAX_OUTSIDE, require_places
from sthist.io._parts.matrix import POSITION, Matrix
from sthist.io._parts.sample import circles, link_table, read_he

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

    import pandas as pd
    from anndata import AnnData
    from spatialdata import SpatialData

# Diameter of the spots and distance between neighbours, by technology.
SPOTS_UM = {"Visium": (55.0, 100.0), "Spatial Transcriptomics": (100.0, 200.0)}
# Of the distance between spots of a legacy array: their median may lie this far from where they should be.
OFF_LATTICE = 0.125
NEIGHBOURS = 6
SAME_STEP = 1.25  # neighbours are those within this many steps to the nearest; the diagonal of a square is 1.41
# Of the distances to the nearest neighbour, third quartile by first: spots on a lattice have one distance.
MAX_SPREAD = 1.2


@dataclass(frozen=True)
class Lattice:
    """An affine from positions on an array, in µm, to pixels."""

    mpp_x: float  # µm per pixel along the first and the second axis of the array
    mpp_y: float
    mpp: float  # that keeps areas
    off_um: float  # median distance of the spots from where the affine puts them

    @property
    def anisotropy(self) -> float:
        """By how much the scales along the two axes differ, relatively."""
        return max(self.mpp_x, self.mpp_y) / min(self.mpp_x, self.mpp_y) - 1


def fit_lattice(um: np.ndarray, px: np.ndarray) -> Lattice | None:
    """The affine with the least squared distances; None where the spots lie on one line."""
    design = np.c_[um - um.mean(0), np.ones(len(um))]
    solution, _, rank, _ = np.linalg.lstsq(design, px, rcond=1e-9)
    linear = solution[:2].T
    determinant = abs(np.linalg.det(linear))
    if rank < 3 or determinant <= 0:
        return None
    mpp = 1 / float(np.sqrt(determinant))
    x, y = (1 / float(length) for length in np.linalg.norm(linear, axis=0))
    return Lattice(x, y, mpp, float(np.median(np.linalg.norm(design @ solution - px, axis=1))) * mpp)


def array_pitch(names: pd.Index, px: np.ndarray) -> float | None:
    """Distance in pixels between neighbouring spots of a legacy array that are named by their places, like ``10x13``.

    Whole rows of such an array can lie a fifth of a step off their places, so that distances to neighbours alone
    mislead; where names are no places, or others than those of these spots, nothing else is left.

    Returns the distance; as of :func:`spot_pitch` where the names do not tell it.
    """
    places = [POSITION.search(name) for name in names]
    if all(places):
        lattice = fit_lattice(np.array([place.groups() for place in places if place], np.float64), px)
        if lattice is not None and max(lattice.off_um, lattice.anisotropy) <= OFF_LATTICE:
            return 1 / lattice.mpp
    return spot_pitch(px)


def spot_pitch(px: np.ndarray) -> float | None:
    """Mean distance between neighbouring spots in pixels; None where they lie on no lattice.

    The mean over all neighbours, since the distance to the nearest one alone is too short where spots are off their
    places.
    """
    from scipy.spatial import KDTree

    if len(px) <= NEIGHBOURS:
        return None
    distances = KDTree(px).query(px, k=NEIGHBOURS + 1)[0][:, 1:]
    low, middle, high = np.percentile(distances[:, 0], [25, 50, 75])
    if low <= 0 or high > MAX_SPREAD * low:
        return None
    return float(distances[distances < SAME_STEP * middle].mean())


def read_slide_image(
    path: Path | None, mpp: float, source: str, argument: float | None, spots: Path, fields: str, px: np.ndarray
) -> tuple[LooseImage, dict[str, float]] | None:
    """The H&E under some spots, and what it states of its µm/px, which is known; None where there is no H&E.

    An image that ends before the spots do is refused.
    """
    if path is None:
        return None
    loose = read_he(path, "he")
    stated = {f"{name} of {path.name}": value for name, value in scale.trusted(loose.mpp, mpp).items()}
    scale.agreed_mpp(str(path), {source: mpp} | stated, argument, "")
    height, width = loose.pixels.shape[-2:]
    outside = (px < 0).any(1) | (px > [width, height]).any(1)
    if outside.mean() > MAX_OUTSIDE:
        raise ValueError(
            f"{spots}: {outside.mean():.0%} of the spots ({fields}) lie outside of {path}, which has {width} x "
            f"{height} px; they reach to ({px[:, 0].max():.0f}, {px[:, 1].max():.0f}). Give the image to whose pixels "
            "they refer, not a smaller copy or another section."
        )
    if outside.any():
        logger.warning("%s: %d of %d spots lie outside of %s.", spots, int(outside.sum()), len(px), path)
    return loose, stated


def require_positions(path: Path, field: str, px: Any, names: pd.Index) -> np.ndarray:
    """Positions as (n, 2) float64, refused where they are none."""
    px = np.asarray(px)
    if px.ndim != 2 or px.shape[1] < 2 or px.dtype.kind not in "iuf":
        raise ValueError(
            f"{path}: {field} is {px.dtype} of shape {px.shape}; it should hold x and y of each spot in pixels."
        )
    px = px[:, :2].astype(np.float64)
    require_places(path, field, px, names, what="spots")
    return px


def build_sample(
    name: str,
    table: AnnData,
    px: np.ndarray,
    mpp: float,
    source: str,
    /,
    *,
    size_px: float,
    kind: str = "circles",
    he: tuple[LooseImage, dict[str, float]] | None = None,
    **facts: Any,
) -> SpatialData:
    """A sample of spots (or cells) and their H&E, registered in ``um`` and, in pixels, in ``global``.

    What is known of it, such as its patient, is kept in ``attrs["sthist"]["sample"]``.
    """
    import geopandas as gpd
    import shapely
    from spatialdata import SpatialData
    from spatialdata.models import ShapesModel
    from spatialdata.transformations import Identity

    sdata = SpatialData()
    in_pixels = {"global": Identity()}
    if he is not None:
        sdata.images["he"] = image_element(he[0], in_pixels, name="he")
        for stated, value in ({source: mpp} | he[1]).items():
            scale.record_mpp(sdata, "he", stated, value)
        _sample.set_role(sdata, "he", {"image": "he"})
    key = "cells" if kind == "cells" else "spots"
    names = table.obs_names.to_numpy()
    if kind == "squares":
        squares = shapely.box(*(px - size_px / 2).T, *(px + size_px / 2).T)
        sdata.shapes[key] = ShapesModel.parse(
            gpd.GeoDataFrame(geometry=squares, index=names), transformations=in_pixels
        )
    else:
        sdata.shapes[key] = circles(px, size_px / 2, names, in_pixels)
    table.obs = table.obs.rename(columns=safe_names(map(str, table.obs)))
    table.var = table.var.rename(columns=safe_names(map(str, table.var)))
    table.obsm["spatial"] = px * mpp
    sdata.tables["table"] = link_table(table, key)
    _sample.set_role(sdata, key, {"table": "table"} if kind == "cells" else {"table": "table", "shapes": key})
    scale.register_system(sdata, "global", np.diag([mpp, mpp, 1.0]))
    known = {fact: value for fact, value in facts.items() if not (value is None or value != value or value == "")}
    sdata.attrs.setdefault("sthist", {})["sample"] = {"name": str(name), **known}
    return sdata


def chosen(root: Path, ids: Any, there: Sequence[str], where: str) -> list[str]:
    """The samples that are to be read."""
    names = list(there) if ids is None else [ids] if isinstance(ids, str) else [str(name) for name in ids]
    if not there:
        raise FileNotFoundError(f"{root} has no samples ({where.format('*')}).")
    if not names:
        raise FileNotFoundError(f"ids= names no sample of {root}.")
    for name in names:
        if name not in there:
            close = difflib.get_close_matches(name, there, n=1)
            raise FileNotFoundError(
                f"{root} has no sample {name!r} ({where.format(name)}); it has {len(there)}, such as {there[0]!r}."
                + (f" Did you mean {close[0]!r}?" if close else "")
            )
    return names


def by_sample(mpp: float | Mapping[str, float] | None, names: list[str]) -> Mapping[str, float | None]:
    """The argument ``mpp=`` of a reader of several samples, by sample."""
    if not isinstance(mpp, Mapping):
        return dict.fromkeys(names, mpp)
    for name in mpp:
        if name not in names:
            raise ValueError(f"mpp= names {name!r}, which is none of the samples that are read: {names[:8]}.")
    return mpp


def match_spots(matrix: Matrix, keys: pd.Index, places: pd.DataFrame, file: Path, like: str) -> np.ndarray:
    """Rows of the counts by spot of a table of places, -1 where it has none; what one of the files lacks is said."""
    require_unique(matrix.path, keys, "spot")
    rows = keys.get_indexer(places.index)
    n_both = int((rows >= 0).sum())
    if not n_both:
        raise ValueError(
            f"{matrix.path} and {file} have no spot in common: they are named like {like} and "
            f"{plain(places.index[0])!r}. Are both files of one section?"
        )
    message = "%d of %d spots of %s have no counterpart in %s; they are left out."
    if len(rows) > n_both:
        logger.warning(message, len(rows) - n_both, len(rows), file, matrix.path)
    if len(keys) > n_both:  # as many tables list only what lies on tissue
        logger.info(message, len(keys) - n_both, len(keys), matrix.path, file)
    return rows


def add_labels(table: AnnData, labels: pd.Series, names: pd.Index, path: Path) -> None:
    """Labels of the spots as ``obs["label"]``; it is said if none of them has one."""
    values = labels.reindex(names)
    if values.isna().all():
        shown = f"its names are like {labels.index[0]!r}, not {names[0]!r}" if len(labels) else "it has no labels"
        logger.warning("%s labels none of the %d spots: %s. Is it of this section?", path, len(names), shown)
    table.obs["label"] = values.astype("category").array
