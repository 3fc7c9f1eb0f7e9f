"""The nuclear stain beside smoothed densities of the molecules: what a network sees of transcripts at any scale."""

from __future__ import annotations

import copy
from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING, Any

import numpy as np

from sthist._settings import settings
from sthist.tiles._images.reader import TileReader
from sthist.tiles._images.window import mirrored
from sthist.tiles._molecules.index import PointFilter, PointIndex, planes_of, z_step_of
from sthist.tiles._molecules.overlay import find_for_overlay, molecule_centres
from sthist.tiles._molecules.overlay_style import tissue_tiles
from sthist.tiles._molecules.response import Response, measured_response

if TYPE_CHECKING:
    from collections.abc import Sequence

    from spatialdata import SpatialData

    from sthist.tiles._images.image import Image
    from sthist.tiles._spec import TileSpec

CELL_UM = 16.0
"""Side of the cells that transcripts are sorted into."""

NEIGHBOURHOOD = 3
"""Cells along the side of the square whose density is that around a molecule."""

REACH = 4
"""Standard deviations that a molecule's Gaussian reaches."""

FULL = 8.0
"""Times the typical density that is as bright as a bright nucleus; brighter is cut at half as much again."""

BRIGHTEST = 1.5
"""What the value 255 stands for, of stain and densities alike: 1 is a bright nucleus, or :data:`FULL`."""

SCALE = (0.1, 1.6)
"""µm/px that the darkest and the brightest value of the channel ``scale`` stand for, on a logarithmic scale."""

ENRICHMENT = (0.5, 4.0)
"""Nuclear enrichment of the molecules that the darkest and the brightest value of its channel stand for."""

OWN_CHANNELS = ("stain", "molecules", "scale", "enrichment")
"""Channels that there are without any groups of genes."""

Change = Callable[[np.ndarray], np.ndarray]


class DensityTiles:
    """Reads tiles of the nuclear stain, of the density of molecules, and of the density of groups of genes.

    A reader like :class:`TileReader`. Channels are ``"stain"``, ``"molecules"`` (all that are of a gene), ``"scale"``
    (µm per pixel, everywhere the same), ``"enrichment"`` (how much more nuclear stain there is where molecules are than
    elsewhere on the tissue, a figure of the section, everywhere the same) and one for each group. The stain's response
    is undone: its background is 0, its brightest nuclei are 1, and the median of its nuclei is a half, so that another
    gamma or exposure gives the same tile. Densities are smoothed by a Gaussian in µm, relative to what is around half
    of the molecules, on a logarithmic scale: a panel of ten times as many transcripts gives the same tile, and so does
    a section with more empty tissue. Beyond the border of the image, both go on as in a mirror.

    Parameters
    ----------
    sdata
        One sample, registered in ``um``.
    spec
        Physical size and pixels of the tiles.
    groups
        Genes of each group by its name, in any case; those that the panel lacks are left out.
    density_um
        Standard deviation of the Gaussian.
    min_qv
        Transcripts of less quality are left out.
    z
        A plane, or the first and last of several, as of :class:`sthist.tiles.Overlay`.
    image, channel, points
        Nuclear stain and transcripts, as of :func:`sthist.tl.virtual_he`. With ``points=False`` no molecules are read,
        and where there are none, their channels are 0.
    response
        What the stain's grey levels stand for; by default measured on the tissue.
    allow_upsampling
        Read a stain that is more than 1.5 times coarser than ``spec.mpp``.

    Raises
    ------
    KeyError
        If an element or channel is missing.
    ValueError
        If the stain is flat, or no transcript passes.

    Examples
    --------
    >>> import sthist
    >>> sdata = sthist.datasets.toy(size_um=200)
    >>> spec = sthist.tiles.TileSpec(size_um=64, px=128)
    >>> reader = sthist.tiles.DensityTiles(sdata, spec, groups={"epithelial": ["EPCAM", "KRT8"]})
    >>> reader.read([[100.0, 100.0]]).shape, reader.channels
    ((1, 128, 128, 5), ('stain', 'molecules', 'scale', 'enrichment', 'epithelial'))
    """

    dtype = np.dtype(np.uint8)

    def __init__(
        self,
        sdata: SpatialData,
        spec: TileSpec,
        *,
        groups: Mapping[str, Sequence[str]] | None = None,
        density_um: float = 4.0,
        min_qv: float = 20.0,
        z: int | tuple[int, int] | tuple[int, int, float] | None = None,
        image: str | Sequence[str] | Image | None = None,
        channel: str | None = None,
        points: str | bool | None = None,
        response: Response | None = None,
        allow_upsampling: bool = False,
    ) -> None:
        if not (np.isfinite(density_um) and density_um > 0):
            raise ValueError(f"density_um is {density_um!r}; it is a positive length in µm.")
        self.spec, self.density_um = spec, float(density_um)
        self.groups = {str(name): tuple(map(str, genes)) for name, genes in (groups or {}).items()}
        self.channels = (*OWN_CHANNELS, *self.groups)
        elements, stain, recorded = find_for_overlay(sdata, image, channel, points, needs_points=False)
        shown: Any = z[:2] if isinstance(z, tuple) else z
        self._reader = TileReader.from_image(stain.select(z=shown), spec, allow_upsampling=allow_upsampling)
        self.response = measured_response(self._reader) if response is None else response
        self.index: PointIndex | None = None
        self._number, self._typical = np.zeros(0, np.int64), np.ones(1 + len(self.groups))
        self.enrichment = 1.0
        if elements.points is not None:
            role = recorded.get("transcripts", {})
            planes = None if z is None else planes_of(role, shown)
            step = 1.0 if planes is None else z_step_of(role, z[2] if isinstance(z, tuple) and len(z) == 3 else None)
            self.index = PointIndex(elements, stain, CELL_UM, PointFilter(min_qv, planes=planes, z_step=step))
            self._sort_genes()
            self.enrichment = self._measured_enrichment(self.index)

    def _sort_genes(self) -> None:
        """Number the group of each gene (0 for none), and measure how dense each typically is."""
        from sthist.tiles._molecules.dot_kernels import count_by_cell

        assert self.index is not None
        group = {gene.upper(): k for k, genes in enumerate(self.groups.values(), 1) for gene in genes}
        self._number = np.array([group.get(gene.upper(), 0) for gene in self.index.genes], np.int64)
        index = self.index
        counts = count_by_cell(index.gene, index.starts, self._number, len(self._typical)).reshape(-1, *index.shape)
        self._typical = np.array([_around_half(each) for each in counts]) / index.cell_um**2

    def _measured_enrichment(self, index: PointIndex) -> float:
        """Nuclear stain where molecules are, over what there is on tissue.

        RNA of some assays lies in nuclei for the most part, and of others in cytoplasm: what a density says of eosin
        differs with it.
        """
        close, centres = tissue_tiles(self._reader)
        view = self.at(close.spec)
        amounts = self.response.amount(self.response.light(close.read(centres)[..., 0]))
        dense = np.stack([view._densities(index, centre, None)[..., 0] for centre in centres])
        weights, seen = np.expm1(dense * np.float32(np.log1p(FULL))), close.seen(centres)
        total = float(weights[seen].sum()) * float(amounts[seen].mean())
        return float((weights * amounts)[seen].sum()) / total if total > 0 else 1.0

    def __repr__(self) -> str:
        molecules = (
            "no molecules"
            if self.index is None
            else (
                f"{len(self.index):,} molecules of {len(self.index.genes):,} genes, smoothed by {self.density_um:g} µm"
            )
        )
        groups = ", ".join(f"{name} ({n} genes)" for name, n in self.shown.items())
        return f"DensityTiles of {self.image.key!r}: tiles of {self.spec.text}; {molecules}; groups: {groups or 'none'}"

    @property
    def shown(self) -> dict[str, int]:
        """How many genes of each group the panel has."""
        return {name: int((self._number == k).sum()) for k, name in enumerate(self.groups, 1)}

    @property
    def memory_bytes(self) -> int:
        """What its stain and its transcripts take in memory at most; transcripts in a file are the system's to keep."""
        return self._reader.memory_bytes + (0 if self.index is None else self.index.memory_bytes)

    @property
    def image(self) -> Image:
        """The stain."""
        return self._reader.image

    @property
    def extent_um(self) -> tuple[float, float, float, float]:
        """x0, y0, x1, y1 of the box around the stain, in µm."""
        return self._reader.extent_um

    def order(self, centres: np.ndarray) -> np.ndarray:
        """The order of centres in which the chunks of the stain are used while they are at hand."""
        return self._reader.order(centres)

    def at(self, spec: TileSpec) -> DensityTiles:
        """The same stain and transcripts in tiles of another size.

        Parameters
        ----------
        spec
            Of the new tiles.

        Returns
        -------
        A new reader that shares the index.
        """
        other = copy.copy(self)
        other.spec, other._reader = spec, self._reader.at(spec)
        return other

    def read(self, centres: Any, *, molecules: Any = None, out: np.ndarray | None = None) -> np.ndarray:
        """Read tiles.

        Parameters
        ----------
        centres
            (n, 2): x, y of the centres, in µm.
        molecules
            (n, 2): show what lies around these centres beside the stain of the tiles, as a null; False for none.
        out
            Array to read into.

        Returns
        -------
        Tiles of shape (n, px, px, c), uint8, in the order of ``centres``.
        """
        return self.read_changed(centres, molecules=molecules, out=out)

    def read_changed(
        self,
        centres: Any,
        light: Change | None = None,
        counts: Change | None = None,
        *,
        molecules: Any = None,
        out: np.ndarray | None = None,
    ) -> np.ndarray:
        """Read tiles of a stain, or of molecules, that are other ones than those of the section.

        Parameters
        ----------
        centres
            (n, 2): x, y of the centres, in µm.
        light
            Takes the light of a tile, float32 of shape (px, px), 0 for the background and 1 for the brightest nuclei,
            and returns what is seen in its place.
        counts
            Takes the counts of molecules, and of each group, on a grid, int64 of shape (1 + groups, rows, columns), and
            returns what is seen in their place.
        molecules
            As of :meth:`read`.
        out
            Array to read into.

        Returns
        -------
        Tiles of shape (n, px, px, c), uint8, in the order of ``centres``.
        """
        centres = np.asarray(centres, np.float64).reshape(-1, 2)
        if not np.isfinite(centres).all():
            raise ValueError("Centres of tiles are finite numbers, in µm.")
        px = self.spec.px
        if out is None:
            out = np.empty((len(centres), px, px, len(self.channels)), np.uint8)
        stain, seen = self._reader.read(centres)[..., 0], self._reader.seen(centres)
        around = molecule_centres(molecules, centres)
        scale, enrichment = _level(self.spec.mpp, SCALE), max(_level(self.enrichment, ENRICHMENT), 1)

        def compose(i: int) -> None:
            seen_light = self.response.light(stain[i])
            tile = np.zeros((px, px, 2 + len(self.groups)), np.float32)
            tile[..., 0] = self.response.amount(seen_light if light is None else light(seen_light))
            if around is not None and self.index is not None:
                tile[..., 1:] = self._densities(self.index, around[i], counts)
            tile = mirrored(tile, seen[i])
            levels = np.rint(tile.clip(0, BRIGHTEST) * (255 / BRIGHTEST)).astype(np.uint8)
            out[i, ..., :2], out[i, ..., 2], out[i, ..., len(OWN_CHANNELS) :] = levels[..., :2], scale, levels[..., 2:]
            out[i, ..., 3] = enrichment if tile[..., 1].any() else 0  # of nothing it says nothing

        if len(centres) == 1:
            compose(0)  # starting threads would take as long
            return out
        with ThreadPoolExecutor(settings.threads) as pool:
            list(pool.map(compose, range(len(centres))))
        return out

    def _densities(self, index: PointIndex, centre: np.ndarray, change: Change | None) -> np.ndarray:
        """Densities of all molecules and of each group over a tile, (px, px, 1 + groups), 1 where FULL times typical.

        Molecules are counted on a grid that does not depend on the tile, so tiles continue each other.
        """
        from scipy.ndimage import gaussian_filter

        from sthist.tiles._molecules.dot_kernels import bin_points

        n_groups, px = len(self._typical), self.spec.px
        bin_um = self.density_um / 2
        corner = centre - self.spec.size_um / 2
        first = np.floor(corner / bin_um).astype(np.int64) - 2 * REACH
        last = np.ceil((corner + self.spec.size_um) / bin_um).astype(np.int64) + 2 * REACH
        counts = np.zeros((n_groups, *(last - first)[::-1]), np.int64)
        box = (*(first * bin_um), *(last * bin_um))
        origin = np.asarray(index.origin_um)
        places = (index.x, index.y, index.gene, index.starts, index.shape[1], index.cells(box))
        bin_points(*places, origin - first * bin_um, index.cell_um, bin_um, self._number, counts)
        counts = counts if change is None else change(counts)
        # What lies beyond the section has no molecules to see: the Gaussian's part within it is what counts.
        edges = [(np.arange(n) + 0.5 + start) * bin_um for n, start in zip(counts.shape[1:], first[::-1], strict=True)]
        x0, y0, x1, y1 = self.extent_um
        within = np.outer((edges[0] >= y0) & (edges[0] < y1), (edges[1] >= x0) & (edges[1] < x1)).astype(np.float32)
        how = {"sigma": 2.0, "mode": "constant", "truncate": float(REACH)}
        share = 1.0 if within.all() else np.maximum(gaussian_filter(within, **how), 0.05)
        density = np.stack([gaussian_filter(each.astype(np.float32), **how) for each in counts]) / share
        relative = density / (self._typical * bin_um**2)[:, None, None].astype(np.float32)
        seen = relative
        for axis, low in ((1, first[1]), (0, first[0])):
            places = (corner[axis] + (np.arange(px) + 0.5) * self.spec.mpp) / bin_um - low - 0.5
            seen = _between(seen, places, axis=2 - axis)
        return np.moveaxis(np.log1p(seen) / np.float32(np.log1p(FULL)), 0, -1)


def _level(value: float, ends: tuple[float, float]) -> int:
    """A value between two ends on a logarithmic scale, as 0 to 255."""
    low, high = np.log2(ends)
    return round(255 * float(np.clip((np.log2(value) - low) / (high - low), 0, 1)))


def _around_half(counts: np.ndarray) -> float:
    """What half of the molecules have more of around them, and half less, in a cell; infinite where there are none.

    Other than the mean it does not ask what counts as tissue.
    """
    from scipy.ndimage import uniform_filter

    around = uniform_filter(counts.astype(np.float32), NEIGHBOURHOOD, mode="nearest")
    order = np.argsort(around, axis=None)
    below = np.cumsum(counts.ravel()[order])
    return float(around.ravel()[order][np.searchsorted(below, below[-1] / 2)]) if below[-1] else np.inf


def _between(values: np.ndarray, places: np.ndarray, axis: int) -> np.ndarray:
    """Values along an axis at places between them, by linear interpolation.

    By a product of matrices it would be shorter, and its threads would wait on the cores that a network is to have.
    """
    below = np.clip(np.floor(places).astype(np.int64), 0, values.shape[axis] - 2)
    share = np.clip(places - below, 0, 1).astype(values.dtype)
    share = share.reshape([-1 if each == axis else 1 for each in range(values.ndim)])
    low, high = (np.take(values, below + step, axis) for step in (0, 1))
    return low + share * (high - low)
