"""What gives tiles of one slide the stain of another."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np

from sthist import stains
from sthist.pp._stain_normalize.reference import JSONFile, Method, StainReference

CLEAR_OD = 0.1
"""Optical density up to which a pixel is glass: of 255 grey levels it leaves 231, where ST2HE's blank tiles begin."""

RAMP_OD = (0.1, 0.6)
"""Width, at least and at most, of the optical densities over which a pixel comes to be changed in full."""

PER_OD = 1024
DENSEST, BRIGHTEST = 8.0, 1.0
"""What the table of grey levels spans, in optical density beyond that of glass, on either side."""

PER_LEVEL, PER_LOG, LOGARITHMS = 16, 256, (-3, 8)
"""Steps of the tables of logarithms (per grey level) and of exponentials (per unit), and what the latter span."""


@dataclass(frozen=True)
class StainNormalizer(JSONFile):
    """Gives tiles of one slide the stain of another.

    What :func:`stain_normalize` returns: ``TileReader(..., normalizer=normalizer)`` applies it to whatever is read. It
    can be pickled, called in several threads, and kept as a JSON file. ``source``, what was measured on this slide, may
    be the reference of another.

    Macenko's takes optical densities apart into haematoxylin, eosin and what is neither; brings both stains to the
    colour and strength of the reference, and leaves the rest as it is, so that pigment and ink do not take on a stain
    (the paper drops it), and a slide that has the reference's stain does not change. Reinhard's gives the tissue the
    mean and spread of the reference's colours; with both, glass (optical density up to 0.1 against the slide's own)
    stays as it is, byte by byte, and so does pure black, and the change sets in smoothly above it.

    ``"channels"`` is for the input of networks: red, green and blue each get the mean and standard deviation of the
    reference, whatever they show, glass included.

    Parameters
    ----------
    source
        The stain of the slide.
    reference
        The stain that it gets.

    Raises
    ------
    ValueError
        If they are of different methods.

    Examples
    --------
    >>> import numpy as np, sthist
    >>> sdata = sthist.datasets.toy(size_um=300)
    >>> normalizer = sthist.pp.stain_normalize(sdata)
    >>> blank = np.full((1, 8, 8, 3), 250, np.uint8)
    >>> bool((normalizer(blank) == blank).all())
    True
    """

    kind = "stain normaliser"

    source: StainReference
    reference: StainReference

    def __post_init__(self) -> None:
        if self.source.method != self.reference.method:
            raise ValueError(
                f"The slide was measured by method {self.source.method!r}, and the reference by "
                f"{self.reference.method!r} ({self.reference.origin}); pass method={self.reference.method!r}, or "
                "another reference."
            )

    def __repr__(self) -> str:
        return (
            f"StainNormalizer by {self.method}: the stain of {self.source.origin or 'a slide'} becomes that of "
            f"{self.reference.origin or 'another'}"
        )

    @property
    def method(self) -> Method:
        """``"macenko"``, ``"reinhard"`` or ``"channels"``."""
        return self.source.method

    def __call__(self, tiles: np.ndarray) -> np.ndarray:
        """Normalise tiles. Returns the same, of a new array."""
        tiles = np.asarray(tiles)
        if tiles.dtype != np.uint8 or tiles.ndim not in {3, 4} or tiles.shape[-1] != 3:
            raise ValueError(f"Tiles are (n, h, w, 3) or (h, w, 3) of uint8; these are {tiles.shape} of {tiles.dtype}.")
        pixels = np.ascontiguousarray(tiles).reshape(-1, 3)
        out = np.empty_like(pixels)
        kernel, arguments = self._kernel
        kernel(pixels, *arguments, out)
        return out.reshape(tiles.shape)

    def __reduce__(self) -> tuple[Any, ...]:
        """Without its tables, which are made anew."""
        return StainNormalizer, (self.source, self.reference)

    def to_dict(self) -> dict[str, Any]:
        """Plain values, for JSON."""
        return {"source": self.source.to_dict(), "reference": self.reference.to_dict()}

    @classmethod
    def from_dict(cls, values: dict[str, Any]) -> StainNormalizer:
        """The normaliser that :meth:`to_dict` wrote.

        Parameters
        ----------
        values
            Of it.
        """
        return cls(*(StainReference.from_dict(values[name]) for name in ("source", "reference")))

    @cached_property
    def _kernel(self) -> tuple[Any, tuple[Any, ...]]:
        """What runs over the pixels, and its arguments between the pixels and the result."""
        from sthist._imaging.stain_kernels import recolour_cones, recolour_densities

        if self.method == "channels":
            return _look_up, (self._channel_levels(),)
        white = np.array(self.source.white)
        levels = np.maximum(np.arange(256), 1.0)
        density = -np.log(levels / white[:, None]).astype(np.float32)
        if self.method == "reinhard":
            matrix, shift = self._lms_change()
            arguments = (density, stains.RGB_TO_LMS, matrix, shift, np.linalg.inv(stains.RGB_TO_LMS))
            glass = np.exp(matrix @ np.log(stains.RGB_TO_LMS @ white) + shift)
            glass = np.clip(np.linalg.solve(stains.RGB_TO_LMS, glass), 1.0, 255.0)
            return recolour_cones, (*map(_float32, arguments), *_ramp(np.log(glass / white)), *_log_tables())
        steps = np.arange(int((BRIGHTEST + DENSEST) * PER_OD)) / PER_OD - BRIGHTEST
        grey = np.clip(np.round(white[:, None] * np.exp(-steps)), 0, 255).astype(np.uint8)
        brighter = np.log(np.array(self.reference.white) / white)
        change = self._density_change() - np.eye(3)
        table = (grey, np.float32(BRIGHTEST), np.float32(PER_OD))
        return recolour_densities, (density, _float32(change), _float32(-brighter), *_ramp(brighter), *table)

    def _density_change(self) -> np.ndarray:
        """Optical densities (a row) of the slide times this are the reference's."""
        ours, theirs = (with_residual(each.stains) for each in (self.source, self.reference))
        stronger = np.append(np.array(self.reference.amounts) / np.array(self.source.amounts), 1.0)
        return np.linalg.inv(ours) @ np.diag(stronger) @ theirs

    def _lms_change(self) -> tuple[np.ndarray, np.ndarray]:
        """Logarithms of cone responses (a column) change by a matrix, and then a shift."""
        to_lms = np.linalg.inv(stains.LMS_TO_LAB)
        wider = np.array(self.reference.spread) / np.array(self.source.spread)
        shift = np.array(self.reference.mean) - wider * np.array(self.source.mean)
        return to_lms @ np.diag(wider) @ stains.LMS_TO_LAB, to_lms @ shift

    def _channel_levels(self) -> np.ndarray:
        """Grey level that each grey level of each channel becomes, (3, 256) uint8."""
        (mean, spread), (to_mean, to_spread) = (
            (np.array(each.mean)[:, None], np.array(each.spread)[:, None]) for each in (self.source, self.reference)
        )
        return np.clip(np.rint((np.arange(256) - mean) / spread * to_spread + to_mean), 0, 255).astype(np.uint8)


def _look_up(pixels: np.ndarray, levels: np.ndarray, out: np.ndarray) -> None:
    """Replace each channel's grey levels by those of its table."""
    for channel, table in enumerate(levels):
        np.take(table, pixels[:, channel], out=out[:, channel])


def with_residual(vectors: np.ndarray) -> np.ndarray:
    """Haematoxylin, eosin, and the unit vector at right angles to both, (3, 3)."""
    residual = np.cross(*vectors)
    return np.vstack([vectors, residual / np.linalg.norm(residual)])


def _ramp(brighter: np.ndarray) -> tuple[np.float32, np.float32]:
    """From which optical density on a pixel changes, and from which on in full.

    A smooth step is nowhere steeper than 1.5 over its width. Over three times what glass itself would be brightened by,
    it brightens no faster than stain darkens (eosin in the mean of the three colours, as the stain that absorbs the
    least of red): tissue has no bright rim.
    """
    width = float(np.clip(3.0 * np.abs(brighter).max(), *RAMP_OD))
    return np.float32(CLEAR_OD), np.float32(CLEAR_OD + width)


def _log_tables() -> tuple[Any, ...]:
    """Logarithms and inverses of cone responses, and exponentials, each with where it starts and its steps per unit."""
    responses = np.maximum(np.arange(257 * PER_LEVEL) / PER_LEVEL, 0.5)
    low, high = LOGARITHMS
    exponential = np.exp(np.arange((high - low) * PER_LOG) / PER_LOG + low)
    level, step = np.float32(PER_LEVEL), np.float32(PER_LOG)
    return _float32(np.log(responses)), _float32(1 / responses), level, _float32(exponential), np.float32(low), step


def _float32(values: Any) -> np.ndarray:
    return np.ascontiguousarray(values, np.float32)
