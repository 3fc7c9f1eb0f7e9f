"""High-resolution ST simulated from real H&E, and a 20-line model to beat.

The nuclear stain is the haematoxylin of the real image, the molecules follow its eosin. So there is a real H&E to
compare a virtual one with, at the resolution of the real one.
"""

from __future__ import annotations

from functools import cache

import numpy as np
import pandas as pd
from realdata import folder, picture
from scipy.ndimage import gaussian_filter
from skimage.metrics import peak_signal_noise_ratio, structural_similarity

import sthist
from sthist import stains

MPP = 0.688
SIDE = 1024
CROPS = {"C4": (3200, 4000), "B4": (6000, 2500)}
"""Top left corner [y, x] of the crop of each section."""


@cache
def section(name: str) -> np.ndarray:
    """The H&E of a her2st section, (h, w, 3) uint8."""
    return picture(folder("her2st") / f"{name}.jpg").transpose(1, 2, 0)


def crop(name: str, corner: tuple[int, int] | None = None) -> np.ndarray:
    """1024 x 1024 pixels of a section."""
    y, x = CROPS[name] if corner is None else corner
    return np.ascontiguousarray(section(name)[y : y + SIDE, x : x + SIDE])


def simulate(he: np.ndarray, seed: int = 0) -> tuple[np.ndarray, pd.DataFrame]:
    """Nuclear stain (uint16) and molecules (pixels) of an H&E image."""
    rng = np.random.default_rng(seed)
    haematoxylin, eosin = np.moveaxis(stains.concentrations(he, stains.macenko(he)), -1, 0)
    nuclei = np.clip(haematoxylin - np.quantile(haematoxylin, 0.4), 0, None)
    nuclei = gaussian_filter(nuclei, 1.0)
    nuclei = np.clip(nuclei / np.quantile(nuclei, 0.999) + rng.normal(0, 0.01, nuclei.shape), 0, 1.5)
    rate = gaussian_filter(eosin, 3.0)
    counts = rng.poisson(0.02 * rate / rate.mean())
    rows, columns = (np.repeat(index, counts.ravel()) for index in (i.ravel() for i in np.indices(counts.shape)))
    molecules = pd.DataFrame(
        {
            "pixel_x": columns + rng.uniform(size=len(columns)),
            "pixel_y": rows + rng.uniform(size=len(rows)),
            "gene": rng.choice([f"gene_{i:02d}" for i in range(60)], len(rows)),
        }
    )
    return np.round(nuclei * 20000).astype(np.uint16), molecules


def as_sdata(nuclei: np.ndarray, molecules: pd.DataFrame):
    """The simulated section as an object."""
    return sthist.io.assemble({"dapi": nuclei}, mpp=MPP, points=molecules)


def built_in(nuclei: np.ndarray, molecules: pd.DataFrame, reference: np.ndarray | None) -> np.ndarray:
    """The image of the built-in model."""
    sdata = as_sdata(nuclei, molecules)
    sthist.tl.virtual_he(sdata, stain_reference=reference, progress=False)
    height, width = nuclei.shape
    return sthist.tiles.read_region(sdata, "virtual_he", (0, 0, width * MPP, height * MPP), MPP, fill=255)


def prototype(nuclei: np.ndarray, molecules: pd.DataFrame, reference: np.ndarray | None) -> np.ndarray:
    """The baseline: two stains, one width of smoothing, quantiles of the crop."""
    vectors = np.array([[0.650, 0.704, 0.286], [0.072, 0.990, 0.105]])
    top = np.array([1.5, 0.8])  # 99th percentiles of haematoxylin and eosin
    if reference is not None:
        vectors = stains.macenko(reference)
        tissue = (stains.optical_density(reference) > stains.TISSUE_OD).all(-1)
        top = np.quantile(stains.concentrations(reference[tissue], vectors), 0.99, axis=0)
    haematoxylin = nuclei - np.quantile(nuclei, 0.4)
    counts, _, _ = np.histogram2d(molecules.pixel_y, molecules.pixel_x, nuclei.shape, [[0, n] for n in nuclei.shape])
    eosin = gaussian_filter(counts, 8.0)
    layers = [np.clip(layer / np.quantile(layer, 0.99), 0, 1.2) for layer in (haematoxylin, eosin)]
    return stains.to_rgb(np.stack(layers, -1) * top, vectors)


def mean_colour(he: np.ndarray) -> np.ndarray:
    """The null: every pixel the mean of the real image."""
    return np.broadcast_to(he.mean((0, 1)).round().astype(np.uint8), he.shape)


def scores(virtual: np.ndarray, real: np.ndarray) -> tuple[float, float]:
    """SSIM and PSNR (dB) of 8-bit RGB images."""
    ssim = structural_similarity(virtual, real, channel_axis=-1, data_range=255)
    return float(ssim), float(peak_signal_noise_ratio(real, virtual, data_range=255))
