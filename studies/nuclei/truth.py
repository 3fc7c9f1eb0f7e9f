"""Images whose nuclei are known, at the µm/px that is asked for."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import pandas as pd
from PIL import Image

if TYPE_CHECKING:
    from pathlib import Path

FINE_MPP = 0.25
TYPICAL_UM2 = 45.0
"""Area that the median nucleus of an image of unknown scale is taken to have."""


@dataclass
class Known:
    """An image, (h, w, 3), with its nuclei as labels (h, w), or as centres x, y in pixels where that is all."""

    name: str
    style: str
    rgb: np.ndarray
    labels: np.ndarray | None = None
    centres: np.ndarray | None = None


def drawn_nuclei(data: Path, style: str, mpp: float) -> list[Known]:
    """Of dsb2018_purple_nuclei; each is scaled so that its median nucleus has the typical area."""
    folder = data / "dsb2018_purple_nuclei"
    index = pd.read_csv(folder / "index.csv")
    found = []
    for row in index[index["style"] == style].itertuples():
        rgb = _rgb(folder / "images" / f"{row.name}.jpg")
        labels = np.asarray(Image.open(folder / "labels" / f"{row.name}.png")).astype(np.int32)
        found.append(_scaled(row.name, style, rgb, labels, float(np.sqrt(TYPICAL_UM2 / row.median_area_px)) / mpp))
    return found


def stained_pairs(data: Path, mpp: float) -> list[Known]:
    """Of deepliif_pairs, 0.25 µm/px: bodies of nuclei in red and blue, their rims in green."""
    from scipy.ndimage import distance_transform_edt, label
    from skimage.segmentation import watershed

    folder, found = data / "deepliif_pairs", []
    for image, truth in (
        ("Bladder1/ihc.png", "Bladder1/seg.png"),
        ("Bladder1/hematoxylin.png", "Bladder1/seg.png"),
        ("ihc_seg/22_2_ihc.png", "ihc_seg/22_2_seg.png"),
        ("ihc_seg/34_3_ihc.png", "ihc_seg/34_3_seg.png"),
    ):
        red, green, blue = _rgb(folder / truth).astype(int).transpose(2, 0, 1)
        body = ((red > 100) | (blue > 100)) & (green < 100)
        bodies, _ = label(body)
        labels = watershed(distance_transform_edt(bodies == 0), bodies, mask=body | (green >= 100)).astype(np.int32)
        small = np.bincount(labels.ravel()) < 10 / FINE_MPP**2
        found.append(_scaled(image, "ihc", _rgb(folder / image), np.where(small[labels], 0, labels), FINE_MPP / mpp))
    return found


def tumour_centres(data: Path, mpp: float) -> list[Known]:
    """Of brecahad_tumor_nuclei, 0.25 µm/px: centres of tumour nuclei, other nuclei not marked."""
    folder = data / "brecahad_tumor_nuclei"
    found = []
    for name, part in pd.read_csv(folder / "tumor_centroids.csv").groupby("image"):
        known = _scaled(str(name), "h&e", _rgb(folder / "images" / f"{name}.jpg"), None, FINE_MPP / mpp)
        known.centres = part[["x_px", "y_px"]].to_numpy() * FINE_MPP / mpp
        found.append(known)
    return found


def svs_pixels(data: Path) -> np.ndarray:
    """Of he_svs, level 0 at 0.499 µm/px."""
    import tifffile

    return np.asarray(tifffile.imread(data / "he_svs" / "CMU-1-Small-Region.svs", key=0))


def resized(rgb: np.ndarray, factor: float) -> np.ndarray:
    """Pixels of another size, with anti-aliasing."""
    size = [max(1, round(n * factor)) for n in rgb.shape[1::-1]]
    return np.asarray(Image.fromarray(rgb).resize(size, Image.Resampling.LANCZOS))


def _rgb(path: Path) -> np.ndarray:
    return np.asarray(Image.open(path).convert("RGB"))


def _scaled(name: str, style: str, rgb: np.ndarray, labels: np.ndarray | None, factor: float) -> Known:
    rgb = resized(rgb, factor)
    if labels is not None:
        y, x = (
            ((np.arange(n) + 0.5) * old / n).astype(int) for n, old in zip(rgb.shape[:2], labels.shape, strict=True)
        )
        labels = labels[np.ix_(y, x)]
    return Known(name, style, rgb, labels)
