"""Virtual H&E without weights: two stains, Beer and Lambert."""

from __future__ import annotations

import hashlib
import re
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np
from numba import njit

from sthist import _sample, stains
from sthist._settings import logger, settings
from sthist.systems.virtual_he.generator import PreparedSection, VirtualStainModel
from sthist.systems.virtual_he.section import SAMPLE_PX, find_tissue, reference_pixels, resample, sample_tiles
from sthist.tiles._images.reader import TileReader
from sthist.tiles._molecules.density import KERNEL_CELLS, Grid, adaptive_density, count_transcripts, paint_cells
from sthist.tiles._spec import TileSpec

if TYPE_CHECKING:
    from collections.abc import Sequence

    from sthist._sample.elements import HighResElements
    from sthist.tiles._images.image import Image


@njit(nogil=True, cache=True)
def stain_tiles(stain, raster, low, base, slope, knots, targets, shares, haematoxylin, eosin, per_step, out):
    """Colour tiles."""
    n, height, width, channels = stain.shape
    last = haematoxylin.shape[0] - 1
    molecules = 1.0 - shares.sum()
    for t in range(n):
        for i in range(height):
            for j in range(width):
                tissue = raster[t, i, j, 1]
                if tissue <= 0.0:
                    for k in range(3):
                        out[t, i, j, k] = 255
                    continue
                h = base + slope * max(stain[t, i, j, 0] - low, 0.0)
                e = molecules * raster[t, i, j, 0]
                for c in range(1, channels):
                    value = stain[t, i, j, c]
                    below, middle, above = knots[c - 1, 0], knots[c - 1, 1], knots[c - 1, 2]
                    if value < middle:
                        span = max(middle - below, 1e-6)
                        amount = targets[0] + (targets[1] - targets[0]) * max(value - below, 0.0) / span
                    else:
                        span = max(above - middle, 1e-6)
                        amount = targets[1] + (targets[2] - targets[1]) * min((value - middle) / span, 2.0)
                    e += shares[c - 1] * amount
                a = min(int(h * tissue * per_step), last)
                b = min(int(e * tissue * per_step), last)
                for k in range(3):
                    out[t, i, j, k] = np.uint8(255.0 * haematoxylin[a, k] * eosin[b, k] + 0.5)


TILE_PX = 512
LUT_STEP = 1 / 1024
LUT_MAX = 8.0

EOSIN_LEVELS = (0.5, 0.95)
"""Quantiles over the tissue at which eosin is matched; below them it goes to what there is without molecules."""

UPPER_DEVIATIONS = 1.645
"""Standard deviations between these two quantiles of a Gaussian."""

CHANNEL_WEIGHTS = {"cytoplasm": 1.0, "stroma": 1.0, "epithelium": 0.7, "membrane": 0.4, "immune": 0.1}
"""How much a channel says of eosin, by what it shows."""


@dataclass(frozen=True)
class BeerLambertConfig:
    """Settings of :class:`BeerLambert`. Concentrations are optical densities (base e) along unit stain vectors.

    The default vectors are haematoxylin's of Ruifrok and Johnston 2001 and eosin's as measured by Macenko's method on
    OpenSlide's public test slide CMU-1 (CC0); the default amounts are those of a section of middling strength.

    Attributes
    ----------
    haematoxylin_vector, eosin_vector
        Optical density of red, green and blue per unit of stain, of unit length.
    haematoxylin
        Concentration between nuclei, and of strongly stained nuclei.
    eosin
        Concentration where there are no molecules, and at the 50th and 95th percentile of the tissue.
    nuclear_quantiles
        Quantiles of the nuclear stain over the tissue: below the first is "between nuclei", the second is "strongly
        stained".
    cytoplasm_weight
        Share of the cytoplasm channels in eosin where they exist; the rest is molecules.
    channel_weights
        How much a channel counts by what it shows: ``"cytoplasm"`` (poly-T, ribosomal RNA, and whatever else a reader
        calls cytoplasm), ``"stroma"`` (actin, vimentin), ``"epithelium"`` (keratins), ``"membrane"`` (an outline, and
        no cytoplasm), ``"immune"`` (CD45: lymphocytes have little that eosin binds to). Channels share by their
        weights, and the largest of these is the part of ``cytoplasm_weight`` that they get.
    bin_um
        Grid on which molecules are counted.
    min_points
        Molecules under the smoothing Gaussian.
    min_qv
        Quality below which molecules are left out.
    """

    haematoxylin_vector: tuple[float, float, float] = (0.6500286, 0.7046090, 0.2857128)
    eosin_vector: tuple[float, float, float] = (0.1744860, 0.9072740, 0.3826337)
    haematoxylin: tuple[float, float] = (0.12, 1.8)
    eosin: tuple[float, float, float] = (0.1, 0.35, 0.7)
    nuclear_quantiles: tuple[float, float] = (0.4, 0.99)
    cytoplasm_weight: float = 0.6
    channel_weights: dict[str, float] = field(default_factory=lambda: dict(CHANNEL_WEIGHTS))
    bin_um: float = 1.0
    min_points: float = 40.0
    min_qv: float = 20.0

    def __post_init__(self) -> None:
        for kind, weight in self.channel_weights.items():
            if kind not in CHANNEL_WEIGHTS or not (np.isfinite(weight) and weight >= 0):
                raise ValueError(
                    f"channel_weights has {kind!r}: {weight!r}; each of {list(CHANNEL_WEIGHTS)} has a number from 0 on."
                )


class BeerLambert(VirtualStainModel):
    """Virtual H&E by the Beer-Lambert law; needs no weights and no training.

    Haematoxylin follows the nuclear stain, its background removed and scaled by quantiles over the whole section.
    Eosin follows the local density of molecules (with a Gaussian as wide as the counts ask for) and, where there is
    one, a cytoplasm, membrane or poly-T channel. Where there are no molecules it follows the counts of the cells over
    their outlines, else it is even over the tissue. Outside the tissue the image is white.

    What it is not: eosin in real tissue binds to protein, also where there is no RNA (collagen, red cells, keratin),
    and it cannot be known from molecules. The image shows nuclei where they are and RNA-rich cytoplasm; its pinks say
    nothing of extracellular matrix.

    Parameters
    ----------
    config
        Settings; the defaults are a typical section.

    Examples
    --------
    >>> import sthist
    >>> sdata = sthist.datasets.toy(size_um=200)
    >>> model = sthist.models.BeerLambert().fit((sdata, "he"))
    >>> sthist.tl.virtual_he(sdata, model=model)
    """

    system: ClassVar[str] = "beer-lambert"
    config_class: ClassVar[type] = BeerLambertConfig
    config: BeerLambertConfig

    def _about(self) -> list[str]:
        """That it needs no training, and whose stains it shows."""
        own, default = vars(self.config), vars(self.config_class())
        changed = [name for name in own if own[name] != default[name]]
        fitted = {"haematoxylin_vector", "eosin_vector"} & set(changed)
        settings = [f"changed: {', '.join(changed)}"] if changed else []
        return ["needs no weights", "stains of a real H&E" if fitted else "stains of its own", *settings]

    def fit(self, reference: Any, *, seed: int | None = None) -> BeerLambert:
        """Take stain vectors and concentrations from a real H&E image.

        Parameters
        ----------
        reference
            An (h, w, 3) uint8 array; or an image of a SpatialData, as ``(sdata, key)``; or a SpatialData with one H&E
            image.
        seed
            Of the choice of tiles in a large image.

        Returns
        -------
        The model, whose config has changed.

        Raises
        ------
        ValueError
            If the reference is no 8-bit RGB image, or shows almost no tissue.
        """
        rgb = reference_pixels(reference, settings.seed if seed is None else seed)
        vectors = stains.macenko(rgb)
        haematoxylin, eosin = stains.concentrations(rgb, vectors).T
        low, high = np.quantile(haematoxylin, self.config.nuclear_quantiles)
        self.config = replace(
            self.config,
            haematoxylin_vector=tuple(vectors[0].tolist()),
            eosin_vector=tuple(vectors[1].tolist()),
            haematoxylin=(float(haematoxylin[haematoxylin <= low].mean()), float(high)),
            eosin=tuple(np.quantile(eosin, (0.01, *EOSIN_LEVELS)).tolist()),
        )
        return self

    def mpp(self, stain: Image) -> float:
        """The finest µm per pixel of the nuclear stain."""
        return stain.finest_mpp

    def prepare(
        self,
        elements: HighResElements,
        stain: Image,
        mpp: float,
        *,
        allow_upsampling: bool = False,
        seed: int | None = None,
    ) -> PreparedSection:
        """Measure background and spread of the stain, the tissue, and the density of molecules."""
        channels = (elements.nuclear_channel, *elements.cytoplasm_channels)
        shown = stain.select(channels, z=elements.z)
        reader = TileReader.from_image(shown, TileSpec.from_mpp(mpp, TILE_PX), allow_upsampling=allow_upsampling)
        grid, molecules, points, source = self._molecules(elements, stain)
        content = hashlib.blake2b(digest_size=16)
        mask, mask_grid = find_tissue(elements, stain, grid, molecules, content)
        seed = settings.seed if seed is None else seed
        levels = self._stain_levels(shown, mpp, mask, mask_grid, seed, content)
        raster = np.empty((2, *grid.shape), np.float32)
        amount, tissue = raster
        resample(mask, mask_grid, grid, out=tissue)
        if molecules is None:
            amount[:] = self.config.eosin[1]
        else:
            on_tissue = tissue > 0.5
            adaptive_density(molecules, on_tissue, n_points=points, min_points=self.config.min_points, out=amount)
            knots = np.quantile(amount[on_tissue], EOSIN_LEVELS, overwrite_input=True)
            targets = self.config.eosin if points is not None else _as_sure(self.config, knots)
            for row in amount:
                row[:] = _match(row, knots, targets)
        content.update(raster.data)
        eosin_reader = TileReader.from_array(raster, grid.to_um, reader.spec)
        eosin_from = [*(["cytoplasm channels"] if elements.cytoplasm_channels else []), source]
        facts = {
            "eosin_from": eosin_from,
            "nuclear_stain": {"images": list(elements.nuclear), "channels": list(channels), "z": elements.z},
            "stain_levels": levels,
            "content": content.hexdigest(),
            "n_molecules": 0.0 if molecules is None else float(molecules.sum()),
            "tissue_um2": float(mask.sum() * mask_grid.bin_um**2),
        }
        logger.info("Eosin comes from: %s.", ", ".join(eosin_from))
        predict = _StainTiles(self.config, levels, channel_shares(self.config, elements.cytoplasm_channels))
        return PreparedSection([reader, eosin_reader], predict, facts, overlap=0.0, concurrent=True)

    def _molecules(
        self, elements: HighResElements, stain: Image
    ) -> tuple[Grid, np.ndarray | None, np.ndarray | None, str]:
        """Counts per grid cell and the points behind them, from transcripts or cells, whichever saw more molecules."""
        grid = Grid.over(stain.extent_um, self.config.bin_um)
        counts, n_transcripts = None, 0
        if elements.points is not None:
            counts, n_transcripts = count_transcripts(elements, stain, grid, self.config.min_qv)
        if elements.table is not None:
            n_in_cells = float(_sample.raw_counts(elements.sdata.tables[elements.table]).sum())
            if counts is None or n_in_cells > 5 * n_transcripts:
                painted, cells = paint_cells(elements, grid)
                return grid, painted, cells, f"counts of cells ({n_in_cells:.0f}; {n_transcripts} transcripts)"
        if counts is None:
            return grid, None, None, "nothing but the tissue: there are no molecules and no cells"
        return grid, counts, None, f"{n_transcripts} transcripts"

    def _stain_levels(
        self, stain: Image, mpp: float, mask: np.ndarray, mask_grid: Grid, seed: int, content: Any
    ) -> dict[str, list[float]]:
        """Quantiles of each channel over the tissue, from tiles spread over it at full resolution.

        The pixels go into the hash ``content``, as does whatever else is seen of the section: other input is another
        section, and none of its blocks is taken for one of this.
        """
        spec = TileSpec.from_mpp(mpp, SAMPLE_PX)
        reader = TileReader.from_image(stain, spec, allow_upsampling=True)
        chosen = sample_tiles(stain.extent_um, spec, mask, mask_grid, seed)
        tiles = reader.read(chosen)
        content.update(tiles.tobytes())
        tissue = TileReader.from_array(mask[None], mask_grid.to_um, spec).read(chosen)[..., 0]
        # A speck is nowhere all tissue.
        pixels = tiles[(tissue > min(0.5, tissue.max() / 2)) & reader.seen(chosen)]
        quantiles = {stain.channels[0]: np.quantile(pixels[:, 0], self.config.nuclear_quantiles)}
        for index, channel in enumerate(stain.channels[1:], start=1):
            quantiles[channel] = np.quantile(pixels[:, index], (0.05, *EOSIN_LEVELS))
        low, high = quantiles[stain.channels[0]]
        if not high > low:
            raise ValueError(
                f"The nuclear stain {stain.key!r}, channel {stain.channels[0]!r}, is flat over the tissue (both its "
                f"quantiles {self.config.nuclear_quantiles} are {low:g})."
            )
        return {channel: [float(value) for value in values] for channel, values in quantiles.items()}


class _StainTiles:
    """Stains tiles: three table look-ups and two products per pixel and colour.

    ``config``: of the model; ``levels``: quantiles of the nuclear stain, then of each cytoplasm channel; ``shares``:
    of each cytoplasm channel in eosin.
    """

    def __init__(self, config: BeerLambertConfig, levels: dict[str, list[float]], shares: np.ndarray) -> None:
        (low, high), *cytoplasm = levels.values()
        amounts = np.arange(0, LUT_MAX, LUT_STEP)
        haematoxylin = np.exp(-np.outer(amounts, config.haematoxylin_vector)).astype(np.float32)
        eosin = np.exp(-np.outer(amounts, config.eosin_vector)).astype(np.float32)
        slope = (config.haematoxylin[1] - config.haematoxylin[0]) / (high - low)
        knots = np.array(cytoplasm, np.float32).reshape(len(cytoplasm), 3)
        targets = np.array(config.eosin, np.float32)
        self._arguments = (low, config.haematoxylin[0], slope, knots, targets, shares, haematoxylin, eosin)

    def __call__(self, stain: np.ndarray, raster: np.ndarray) -> np.ndarray:
        out = np.empty((*stain.shape[:3], 3), np.uint8)
        stain_tiles(stain, raster, *self._arguments, 1 / LUT_STEP, out)
        return out


def channel_shares(config: BeerLambertConfig, channels: Sequence[str]) -> np.ndarray:
    """Share of each cytoplasm channel in eosin, by what it shows."""
    weights = np.array([config.channel_weights.get(_kind_of(channel), 0.0) for channel in channels], np.float32)
    if not weights.any():
        return np.zeros(len(channels), np.float32)
    return np.float32(config.cytoplasm_weight) * weights.max() * weights / weights.sum()


def _kind_of(channel: str) -> str:
    kinds = _sample.CYTOPLASM_KINDS.items()
    return next((kind for kind, names in kinds if re.search(names, channel, re.IGNORECASE)), "cytoplasm")


def _as_sure(config: BeerLambertConfig, knots: np.ndarray) -> tuple[float, float, float]:
    """Eosin at the knots, drawn together as far as the spread of the density is the noise of few molecules.

    A density that varies no more than counting does says nothing of where eosin is: stretched over the whole range,
    it would be pink blotches.
    """
    middle, high = (float(knot) for knot in knots)
    low_eosin, eosin, high_eosin = config.eosin
    if not high > middle > 0:
        return config.eosin
    spread = (high - middle) / middle / UPPER_DEVIATIONS
    noise = 1 / max(middle * KERNEL_CELLS, config.min_points)
    sure = max(0.0, 1 - noise / spread**2)
    return eosin + sure * (low_eosin - eosin), eosin, eosin + sure * (high_eosin - eosin)


def _match(values: np.ndarray, knots: np.ndarray, targets: tuple[float, ...]) -> np.ndarray:
    """Map values so that 0 and the two knots take the targets: linear between, and on to twice the upper step."""
    middle, high = (float(knot) for knot in knots)
    if not high > 0:
        return np.full(values.shape, targets[1])
    middle = min(max(middle, 1e-3 * high), (1 - 1e-3) * high)
    return np.interp(values, [0, middle, high, 2 * high - middle], [*targets, 2 * targets[2] - targets[1]])
