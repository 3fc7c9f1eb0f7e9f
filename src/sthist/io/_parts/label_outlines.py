"""Outlines of the cells of a label image, block by block."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from sthist._reading import reading
from sthist.io._files.images import TIFF_SUFFIXES, read_image

if TYPE_CHECKING:
    import geopandas as gpd

BLOCK_PX = 2048
PICTURES = TIFF_SUFFIXES | {".png", ".npy"}


def is_label_image(source: Any) -> bool:
    """Whether something is pixels, in an array or a file, and no table."""
    if isinstance(source, str | Path):
        return Path(source).suffix.lower() in PICTURES
    return hasattr(source, "ndim") and hasattr(source, "dtype") and getattr(source, "ndim", 0) >= 2


def read_labels(source: Any, argument: str = "labels") -> Any:
    """A label image as an array of (y, x), read when needed where the file allows it."""
    shown = str(source) if isinstance(source, str | Path) else "the array"
    if not isinstance(source, str | Path):
        pixels = getattr(source, "data", source) if hasattr(source, "dims") else source
    elif not Path(source).is_file():
        raise FileNotFoundError(f"{argument}=: there is no file {source}.")
    elif Path(source).suffix.lower() == ".npy":
        with reading(source):
            pixels = np.load(source, mmap_mode="r", allow_pickle=False)
    else:
        pixels = read_image(source, argument).pixels
    pixels = pixels[0] if pixels.ndim == 3 and len(pixels) == 1 else pixels
    if pixels.ndim != 2 or pixels.dtype.kind not in "iu":
        raise ValueError(
            f"{argument}=: {shown} is {pixels.dtype} of shape {tuple(pixels.shape)}; a label image is (y, x) of whole "
            "numbers, one for each cell, and 0 beside them."
        )
    return pixels


def outlines_of_labels(pixels: Any) -> gpd.GeoDataFrame:
    """Polygons in pixels along the edges of the pixels, by label, sorted; one block of the image is held at a time."""
    import geopandas as gpd
    import pandas as pd
    import shapely

    parts: list[np.ndarray] = []
    labels: list[np.ndarray] = []
    height, width = pixels.shape
    for top in range(0, height, BLOCK_PX):
        for left in range(0, width, BLOCK_PX):
            block = np.asarray(pixels[top : top + BLOCK_PX, left : left + BLOCK_PX])
            here, boxes = _runs(block, top, left)
            labels_here, shapes = _unions(here, boxes)
            labels.append(labels_here)
            parts.append(shapes)
    every, shapes = np.concatenate(labels), np.concatenate(parts)
    if not len(every):
        raise ValueError("labels=: the label image is 0 everywhere; it has no cells.")
    if (every < 0).any():
        raise ValueError(f"labels=: a label is {every.min()}; labels are numbers from 1, and 0 beside the cells.")
    names, merged = _unions(every, shapes)  # of cells that lie in several blocks
    return gpd.GeoDataFrame(geometry=shapely.simplify(merged, 0), index=pd.Index(names, name="cell_id"))


def _runs(block: np.ndarray, top: int, left: int) -> tuple[np.ndarray, np.ndarray]:
    """Label and rectangle of each run of equal pixels in a row, without those of 0."""
    import shapely

    padded = np.zeros((len(block), block.shape[1] + 2), np.int64)
    padded[:, 1:-1] = block
    rows, starts = np.nonzero(padded[:, 1:] != padded[:, :-1])
    # A run ends where the next one of its row begins, of zeros or not.
    values = padded[rows, starts + 1]
    kept = values != 0
    ends = np.append(starts[1:], 0)[kept]
    rows, starts = rows[kept], starts[kept]
    boxes = shapely.box(starts + left, rows + top, ends + left, rows + top + 1)
    return values[kept], boxes


def _unions(labels: np.ndarray, shapes: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Each label once, and the union of what is of it."""
    import shapely

    order = np.argsort(labels, kind="stable")
    labels, shapes = labels[order], shapes[order]
    starts = np.flatnonzero(np.diff(labels, prepend=labels[:1] - 1)) if len(labels) else np.zeros(0, int)
    groups = np.split(shapes, starts[1:]) if len(labels) else []
    joined = [group[0] if len(group) == 1 else shapely.union_all(group) for group in groups]
    return labels[starts], np.array(joined, dtype=object)
