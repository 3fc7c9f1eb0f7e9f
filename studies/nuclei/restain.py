"""Drawn nuclei in other stains: haematoxylin over eosin, or beside brown, in colours that are drawn anew each time."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import torch
from scipy.ndimage import gaussian_filter
from torch.nn import functional
from truth import svs_pixels

if TYPE_CHECKING:
    from pathlib import Path

HAEMATOXYLIN = ((1.0, 1.0), (0.7, 1.5), (0.25, 0.95))
EOSIN = ((0.03, 0.28), (1.0, 1.0), (0.15, 0.75))
BROWN = ((0.4, 0.6), (0.75, 1.0), (1.0, 1.4))
"""Ranges of what a stain takes up of red, green and blue."""

RESTAINED, BROWNED, HOLLOW = 0.75, 0.15, 0.4  # parts of the crops, and of those that are stained anew
PATTERNS, PATTERN_PX = 48, 256


class Restain:
    """Stains crops anew, and gives them the blur, grain and light of a scanner."""

    def __init__(self, data: Path, rng: np.random.Generator, px: int) -> None:
        self.rng, self.px = rng, px
        self.slide = torch.from_numpy(eosin_of(svs_pixels(data)))
        self.patterns = [torch.from_numpy(pattern(rng, fibres=i % 2 == 0)) for i in range(PATTERNS)]

    def __call__(self, pixels: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
        """Crops (n, 3, px, px) with the labels of their nuclei, in new colours; one without nuclei has none after."""
        out = []
        for crop, here in zip(pixels, labels, strict=True):
            density = -torch.log(crop.clamp(1 / 255))
            if here.max() == 0 or self.rng.uniform() < RESTAINED:
                density = self._stained(density[0], here)
            else:
                mixed = np.eye(3) + self.rng.normal(0, 0.1, (3, 3))
                density = torch.einsum("ij,jhw->ihw", torch.tensor(mixed, dtype=torch.float32), density)
                density = density * float(np.exp(self.rng.normal(0, 0.3)))
            out.append(self._scanned(density.clamp(0)))
        return torch.stack(out)

    def _stained(self, red: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
        """The density of nuclei, as haematoxylin, and of what lies between them."""
        rng = self.rng
        low, high = np.quantile(red[::3, ::3], (0.1, 0.98))
        amount = (red - low).clamp(0) / max(0.1, high - low)
        if labels.max() == 0:
            amount = 0 * amount
        amount = amount.clamp(0, 1.5) ** float(np.exp(rng.normal(0, 0.25)))
        # Nuclei of one image differ more in life than here.
        n = int(labels.max()) + 1
        single = torch.from_numpy(np.exp(rng.normal(0, 0.25, n)).astype(np.float32))[labels]
        strength = float(np.exp(rng.uniform(np.log(0.35), np.log(1.8))))
        haematoxylin = strength * amount * single
        if rng.uniform() < 0.7:  # cytoplasm takes some, in grains
            grains = torch.from_numpy(gaussian_filter(rng.standard_normal(amount.shape, np.float32), 1.0))
            grains = (1 + rng.uniform(0, 2) * grains).clamp(0)
            haematoxylin = haematoxylin + rng.uniform(0, 0.35) * min(1.0, strength) * self._pattern() * grains
        brown = torch.zeros_like(amount)
        browned = rng.uniform() < BROWNED
        if browned:
            which = torch.from_numpy((rng.uniform(size=n) < rng.uniform(0, 0.9)).astype(np.float32))
            which[0] = float(rng.uniform() < 0.5)  # what lies between the nuclei
            which = which[labels]
            brown = which * (rng.uniform(0.3, 1.6) * amount * single)
            brown = brown + rng.uniform(0, 0.5) * self._pattern() * float(rng.uniform() < 0.5)
            haematoxylin = haematoxylin * (1 - which * rng.uniform(0.3, 1))
        eosin = rng.uniform(0, 0.5) + rng.uniform(0, 1) * turned(self.slide, rng, self.px, self._zoom())[0]
        if rng.uniform() < 0.6:
            eosin = eosin + rng.uniform(0.2, 1.8) * self._pattern()
        eosin = eosin * (0.1 * float(rng.uniform()) if browned else 1.0)
        eosin = eosin * (1 - rng.uniform(0.2, 1.0) * amount.clamp(0, 1))
        if rng.uniform() < HOLLOW:
            hole = self._hole() * (labels == 0)
            rim = rng.uniform(0, 2) * hole * (1 - hole)  # tissue folds, and light bends, where it ends
            haematoxylin, eosin, brown = (each * (1 - hole) for each in (haematoxylin, eosin, brown))
            haematoxylin, eosin = haematoxylin + rng.uniform(0, 0.6) * rim, eosin + rim
        vectors = [[rng.uniform(*span) for span in stain] for stain in (HAEMATOXYLIN, EOSIN, BROWN)]
        amounts = torch.stack([haematoxylin, eosin, brown])
        return torch.einsum("sc,shw->chw", torch.tensor(vectors, dtype=torch.float32), amounts)

    def _scanned(self, density: torch.Tensor) -> torch.Tensor:
        """Pixels with blur and grain, on glass that is not quite white."""
        rng = self.rng
        glass = torch.tensor(rng.uniform(0.82, 1.0) * rng.uniform(0.96, 1.0, 3), dtype=torch.float32)
        out = glass[:, None, None] * torch.exp(-density)
        if rng.uniform() < 0.7:
            sigma = rng.uniform(0.3, 1.3)
            out = torch.from_numpy(gaussian_filter(out.numpy(), (0, sigma, sigma), truncate=3, mode="nearest"))
        grain = torch.from_numpy(rng.standard_normal(out.shape, np.float32)) * rng.uniform(0, 0.025)
        return (out + grain).clamp(0, 1)

    def _pattern(self) -> torch.Tensor:
        """Fibres or blobs, from 0 to 1."""
        chosen = self.patterns[self.rng.integers(len(self.patterns))]
        return turned(chosen, self.rng, self.px, self._zoom())[0]

    def _hole(self) -> torch.Tensor:
        """Where the glass is bare: 1 in wide holes, 0 beside them."""
        blobs = self.patterns[1 + 2 * self.rng.integers(len(self.patterns) // 2)]
        place = turned(blobs, self.rng, self.px, self.rng.uniform(0.2, 0.7))[0]
        return torch.sigmoid((place - self.rng.uniform(0.3, 0.8)) * float(np.exp(self.rng.uniform(2.3, 3.9))))

    def _zoom(self) -> float:
        return float(np.exp(self.rng.normal(0, 0.35)))


def turned(planes: torch.Tensor, rng: np.random.Generator, px: int, zoom: float, nearest: int = 0) -> torch.Tensor:
    """A crop of planes (c, h, w) somewhere, turned by any angle, mirrored or not, a little stretched.

    ``zoom`` is in pixels of the planes per pixel of the crop; of the last ``nearest`` planes no means are taken.
    """
    height, width = planes.shape[1:]
    angle, flip, stretch = rng.uniform(0, 2 * np.pi), rng.choice([-1, 1]), float(np.exp(rng.normal(0, 0.08)))
    turn = np.array([[np.cos(angle), -np.sin(angle)], [np.sin(angle), np.cos(angle)]])
    matrix = zoom * px / 2 * turn @ np.diag([flip * stretch, 1 / stretch])
    # Near the middle, or where most of the crop lies on the image.
    margin = [min(n / 2, 0.4 * zoom * px) for n in (width, height)]
    centre = [rng.uniform(low, n - low + 1e-6) for low, n in zip(margin, (width, height), strict=True)]
    middle = [[2 * at / n - 1] for at, n in zip(centre, (width, height), strict=True)]
    theta = torch.tensor(np.concatenate([2 * matrix / [[width], [height]], middle], 1)[None]).float()
    grid = functional.affine_grid(theta, [1, 1, px, px], align_corners=False)
    smooth = planes[: len(planes) - nearest]
    parts = [functional.grid_sample(smooth[None], grid, padding_mode="reflection", align_corners=False)[0]]
    if nearest:
        hard = planes[len(planes) - nearest :]
        parts.append(
            functional.grid_sample(hard[None], grid, mode="nearest", padding_mode="reflection", align_corners=False)[0]
        )
    return torch.cat(parts)


def eosin_of(rgb: np.ndarray) -> np.ndarray:
    """Eosin of a slide, (1, h, w), about 0 to 1: what green light loses beyond red, with nuclei painted over."""
    density = -np.log(np.maximum(rgb.astype(np.float32), 1) / 245)
    red = gaussian_filter(density[..., 0], 1)
    eosin = np.clip(density[..., 1] - 1.05 * density[..., 0], 0, None)
    between = (red < 0.35).astype(np.float32)
    around = gaussian_filter(eosin * between, 6) / (gaussian_filter(between, 6) + 1e-3)
    soft = gaussian_filter(between, 1.5)
    eosin = soft * eosin + (1 - soft) * around
    return np.clip(eosin / np.percentile(eosin[eosin > 0.02], 95), 0, 1.5)[None]


def pattern(rng: np.random.Generator, *, fibres: bool) -> np.ndarray:
    """Random fibres, or blobs of the size of cells, (1, px, px) from 0 to 1."""
    noise = rng.standard_normal((PATTERN_PX, PATTERN_PX)).astype(np.float32)
    across = rng.uniform(1.5, 5)
    noise = gaussian_filter(noise, (across, across * rng.uniform(3, 10)) if fibres else across * 1.6, mode="wrap")
    noise /= noise.std()
    return (1 / (1 + np.exp(-(noise - rng.uniform(-0.3, 1.5)) * rng.uniform(2, 10))))[None].astype(np.float32)
