"""Transcripts as dots on the nuclear stain: what ST2HE sees."""

from __future__ import annotations

import copy
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING, Any, Literal

import numpy as np

from sthist import _sample
from sthist._settings import settings
from sthist.tiles._images.image import Image, open_image
from sthist.tiles._images.reader import TileReader
from sthist.tiles._molecules.index import PointFilter, PointIndex, planes_of, z_step_of
from sthist.tiles._molecules.overlay_style import gene_colours, measured_limits, require_limits

if TYPE_CHECKING:
    from collections.abc import Sequence

    from spatialdata import SpatialData

    from sthist.tiles._spec import TileSpec

Mode = Literal["multi", "mono", "none"]
MAX_DOT_PX = 128
PAPER_S = 0.3
LIGHT_RED = (1.0, 0.35, 0.35)


class Overlay:
    """Reads tiles of the nuclear stain with one dot per transcript, drawn tile by tile.

    A reader like :class:`TileReader`: one set of centres gives paired tiles of overlay and H&E, and :func:`map_tiles`
    runs a model on it. Dots are discs with exact coverage at 1/16 of a pixel or finer, later transcripts over earlier
    ones within a cell of the index, a quarter of a tile wide. A dot is drawn on every tile that it touches, so tiles
    continue each other.

    Parameters
    ----------
    sdata
        One sample, registered in ``um``.
    spec
        Physical size and pixels of the tiles. ST2HE: ``TileSpec(size_um=108.8, px=512)``.
    mode
        ``"multi"``: one hue per gene of the panel; ``"mono"``: one colour for all; ``"none"``: the stain alone.
    palette
        ``"permuted"``: hues are dealt anew for each tile, from ``(seed, tile id)``; ``"fixed"``: genes take hues in
        alphabetical order; or a mapping of gene to a colour that matplotlib knows. For ``"mono"``, the colour of all
        dots; a light red by default.
    dot_um
        Diameter of a dot in µm; in place of ``dot_s``.
    dot_s, dot_dpi
        Size as of matplotlib's ``scatter`` (points squared) at a resolution: a disc of ``sqrt(s) * dpi / 72`` pixels;
        0.3 where neither this nor ``dot_um`` is given. The paper draws ``dot_s=0.3`` at 64 dpi, half a pixel: at that
        size, s acts as an opacity.
    min_qv
        Transcripts of less quality are left out; 20 itself is kept.
    genes
        Draw these genes only.
    controls
        Prefixes of features that are no genes, in any case; by default those of Xenium, CosMx and MERSCOPE.
    z
        A plane, or the first and the last of several, of the stain and of the transcripts together; all by default.
        Where no reader has recorded how much transcripts' z grows from one plane to the next, this comes third:
        ``(0, 4, 1.5)``.
    background
        ``"stain"``, or ``"black"``.
    limits
        Intensities of the stain that become black and white; by default its 1 and 99.8 % quantiles over up to 64 tiles
        of 64 µm on tissue, wherever a coarse view of it is bright. Give those of :attr:`limits` to draw another sample
        alike.
    image, channel, points
        Nuclear stain and transcripts, as of :func:`sthist.tl.virtual_he`; the stain may be open already
        (:func:`sthist.tiles.open_image`).
    seed
        Of the palette; ``settings.seed`` by default.
    allow_upsampling
        Read a stain that is more than 1.5 times coarser than ``spec.mpp``.

    Raises
    ------
    KeyError
        If an element, channel or column is missing, or a gene is not in the panel or not in the palette.
    ValueError
        If no transcript passes, the dot is no positive size, or an argument is unknown.

    References
    ----------
    The dots are ST2HE's; upstream draws them with matplotlib.

    Examples
    --------
    >>> import sthist
    >>> sdata = sthist.datasets.toy(size_um=200)
    >>> spec = sthist.tiles.TileSpec(size_um=64, px=128)
    >>> overlay = sthist.tiles.Overlay(sdata, spec, dot_um=0.5)
    >>> overlay.read([[100.0, 100.0]]).shape, len(overlay.genes)
    ((1, 128, 128, 3), 60)
    """

    channels = ("r", "g", "b")
    dtype = np.dtype(np.uint8)

    def __init__(
        self,
        sdata: SpatialData,
        spec: TileSpec,
        *,
        mode: Mode = "multi",
        palette: Literal["permuted", "fixed"] | Mapping[str, Any] | Any = "permuted",
        dot_um: float | None = None,
        dot_s: float | None = None,
        dot_dpi: float = 64.0,
        min_qv: float = 20.0,
        genes: str | Sequence[str] | None = None,
        controls: str | Sequence[str] | None = None,
        z: int | tuple[int, int] | tuple[int, int, float] | None = None,
        background: Literal["stain", "black"] = "stain",
        limits: tuple[float, float] | None = None,
        image: str | Sequence[str] | Image | None = None,
        channel: str | None = None,
        points: str | None = None,
        seed: int | None = None,
        allow_upsampling: bool = False,
    ) -> None:
        for name, value, known in (
            ("mode", mode, ("multi", "mono", "none")),
            ("background", background, ("stain", "black")),
        ):
            if value not in known:
                raise ValueError(f"{name} is {value!r}; it is one of {list(known)}.")
        if mode == "none" and background == "black":
            raise ValueError('mode="none" on a black background shows nothing.')
        if dot_um is not None and dot_s is not None:
            raise ValueError(f"Give the size of a dot as dot_um= or as dot_s=, not both ({dot_um!r} and {dot_s!r}).")
        self.spec, self.seed = spec, settings.seed if seed is None else int(seed)
        if self.seed < 0:
            raise ValueError(f"seed is {self.seed}; it is 0 or more.")
        elements, stain, recorded = find_for_overlay(
            sdata,
            image,
            channel,
            False if mode == "none" else points,
            with_stain=background == "stain",
            needs_points=mode != "none",
        )
        z_step = z[2] if isinstance(z, tuple) and len(z) == 3 else None
        planes_shown: Any = z if z_step is None else z[:2]  # type: ignore[index]
        self._reader = None
        if stain is not None:
            self._reader = TileReader.from_image(stain.select(z=planes_shown), spec, allow_upsampling=allow_upsampling)
        self.index = None
        if mode != "none":
            role = recorded.get("transcripts", {})
            planes = None if z is None else planes_of(role, planes_shown)
            step = 1.0 if planes is None else z_step_of(role, z_step)
            keep = PointFilter(min_qv, _several(genes), _several(controls), planes, step)
            self.index = PointIndex(elements, stain, spec.size_um / 4, keep)
        self.limits = limits if limits is not None or self._reader is None else measured_limits(self._reader)
        require_limits(self.limits)
        self._restyle(mode, palette, dot_um, dot_s, dot_dpi)

    @property
    def memory_bytes(self) -> int:
        """What its stain and its transcripts take in memory at most; transcripts in a file are the system's to keep."""
        lying = 0 if self.index is None else self.index.memory_bytes
        return lying + (0 if self._reader is None else self._reader.memory_bytes)

    def restyled(
        self,
        *,
        mode: Mode | None = None,
        palette: Literal["permuted", "fixed"] | Mapping[str, Any] | Any = None,
        dot_um: float | None = None,
        dot_s: float | None = None,
        dot_dpi: float | None = None,
        limits: tuple[float, float] | None = None,
        seed: int | None = None,
    ) -> Overlay:
        """The same transcripts on the same stain, drawn in another way, without sorting them again.

        Parameters
        ----------
        mode, palette, dot_um, dot_s, dot_dpi, limits, seed
            As of the class; what is not given stays.

        Returns
        -------
        A new overlay that shares the index.
        """
        other = copy.copy(self)
        if seed is not None:
            other.seed = int(seed)
        if limits is not None:
            require_limits(limits)
            other.limits = limits
        if all(each is None for each in (mode, palette, dot_um, dot_s, dot_dpi)):
            return other  # the dots stay as they are
        mode = self.mode if mode is None else mode
        if mode != "none" and self.index is None:
            raise ValueError('This overlay was made with mode="none": it has no transcripts to draw. Make a new one.')
        if dot_um is None and dot_s is None:
            dot_um, dot_s = self._dot_um, self._s
        other._restyle(
            mode,
            self._palette if palette is None else palette,
            dot_um,
            dot_s,
            self._dpi if dot_dpi is None else dot_dpi,
        )
        return other

    def at(self, spec: TileSpec) -> Overlay:
        """The same transcripts and style in tiles of another size; overlapping dots keep the order of the first size.

        Parameters
        ----------
        spec
            Of the new tiles.

        Returns
        -------
        A new overlay that shares the index.
        """
        other = copy.copy(self)
        other.spec = spec
        if self._reader is not None:
            other._reader = self._reader.at(spec)
        other._restyle(self.mode, self._palette, self._dot_um, self._s, self._dpi)
        return other

    def _restyle(self, mode: Mode, palette: Any, dot_um: float | None, s: float | None, dpi: float) -> None:
        from matplotlib.colors import to_rgb

        from sthist.tiles._molecules.dot_kernels import disc_coverage

        self.mode, self._palette = mode, palette
        self._dot_um, self._s, self._dpi = dot_um, s, dpi
        points2 = PAPER_S if s is None else max(s, 0.0)
        self.dot_px = dot_um / self.spec.mpp if dot_um is not None else float(np.sqrt(points2) * dpi / 72)
        if not 0 < self.dot_px <= MAX_DOT_PX:
            raise ValueError(
                f"A dot would be {self.dot_px:.4g} pixels wide; it is more than 0 and at most {MAX_DOT_PX}. Change "
                "dot_um= or dot_s=."
            )
        n_offsets = 32 if self.dot_px < 4 else 16
        coverage = disc_coverage(self.dot_px / 2, n_offsets, 64)
        # Eight bits, cut off as matplotlib's rasteriser does; so what a dot covers does not depend on its colour.
        self._table = (np.floor(coverage * 255) / 255).astype(np.float32)
        if self._table.max() == 0:
            raise ValueError(
                f"A dot of {self.dot_px:.3g} pixels is too small to leave a trace in 8 bits; from about 0.08 on it "
                "does."
            )
        by_gene = mode != "mono" or isinstance(palette, Mapping) or str(palette) in {"permuted", "fixed"}
        self._mono = np.array(to_rgb(LIGHT_RED if by_gene else palette), np.float32) * 255
        self._fixed = gene_colours(palette if by_gene else "fixed", self.genes)

    def __repr__(self) -> str:
        dots = "no dots"
        if self.index is not None:
            size = f"dots of {self.dot_px * self.spec.mpp:.3g} µm, {self.mode}"
            dots = f"{len(self.index):,} transcripts of {len(self.genes):,} genes, {size}"
        stain = "a black background" if self.image is None else repr(self.image.key)
        return f"Overlay on {stain}: tiles of {self.spec.text}; {dots}"

    @property
    def genes(self) -> tuple[str, ...]:
        """The panel: genes that are drawn, in alphabetical order."""
        return () if self.index is None else self.index.genes

    @property
    def image(self) -> Image | None:
        """The stain; None on a black background."""
        return None if self._reader is None else self._reader.image

    @property
    def extent_um(self) -> tuple[float, float, float, float]:
        """x0, y0, x1, y1 of the box around the stain, or around the transcripts, in µm."""
        if self._reader is not None:
            return self._reader.extent_um
        assert self.index is not None
        x0, y0 = self.index.origin_um
        rows, columns = self.index.shape
        return x0, y0, x0 + columns * self.index.cell_um, y0 + rows * self.index.cell_um

    def order(self, centres: np.ndarray) -> np.ndarray:
        """The order of centres in which the chunks of the stain are used while they are at hand."""
        return np.arange(len(centres)) if self._reader is None else self._reader.order(centres)

    def palette(self, tile_id: int | Sequence[int]) -> np.ndarray:
        """Colours of :attr:`genes` on a tile.

        Parameters
        ----------
        tile_id
            A whole number, or several, that name the tile.

        Returns
        -------
        Float32 of shape (genes, 3), 0 to 255.
        """
        if self.mode == "mono":
            return np.broadcast_to(self._mono, (len(self.genes), 3)).copy()
        if self._palette != "permuted":
            return self._fixed
        name = [int(part) & (2**64 - 1) for part in np.atleast_1d(np.asarray(tile_id, np.int64))]
        # The length belongs to the name: zeros at the end of a seed do not count.
        return self._fixed[np.random.default_rng([self.seed, len(name), *name]).permutation(len(self._fixed))]

    def read(
        self, centres: Any, *, ids: Sequence[int] | None = None, molecules: Any = None, out: np.ndarray | None = None
    ) -> np.ndarray:
        """Read tiles.

        Parameters
        ----------
        centres
            (n, 2): x, y of the centres, in µm.
        ids
            What the palette of each tile is drawn from; by default its place, to the nanometre.
        molecules
            (n, 2): draw what lies around these centres on the stain of the tiles, as a null; False to draw none.
        out
            Array to read into.

        Returns
        -------
        Tiles of shape (n, px, px, 3), uint8, in the order of ``centres``.
        """
        centres = np.asarray(centres, np.float64).reshape(-1, 2)
        px = self.spec.px
        if out is None:
            out = np.empty((len(centres), px, px, 3), np.uint8)
        if not np.isfinite(centres).all():
            raise ValueError("Centres of tiles are finite numbers, in µm.")
        names = np.round(centres * 1000).astype(np.int64) if ids is None else np.asarray(ids, np.int64)
        if len(names) != len(centres):
            raise ValueError(f"{len(names)} ids are given for {len(centres)} tiles.")
        stain = None if self._reader is None else self._reader.read(centres)[..., 0]
        drawn = molecule_centres(molecules, centres)

        def draw(i: int) -> None:
            self._draw(None if drawn is None else drawn[i], names[i], None if stain is None else stain[i], out[i])

        if len(centres) == 1:
            draw(0)  # starting threads would take as long
            return out
        with ThreadPoolExecutor(settings.threads) as pool:
            list(pool.map(draw, range(len(centres))))
        return out

    def _draw(self, centre: np.ndarray | None, tile_id: Any, stain: np.ndarray | None, tile: np.ndarray) -> None:
        from sthist.tiles._molecules.dot_kernels import draw_dots, grey_tile

        if stain is not None and self.limits is not None:
            low, high = self.limits
            grey_tile(stain, float(low), float(high), tile)
        else:
            tile.fill(0)
        if self.mode != "none" and self.index is not None and centre is not None:
            corner = centre - self.spec.size_um / 2
            margin = (self.dot_px / 2 + 1) * self.spec.mpp
            box = (*(corner - margin), *(corner + self.spec.size_um + margin))
            index = self.index
            draw_dots(
                tile,
                index.x,
                index.y,
                index.gene,
                index.starts,
                index.shape[1],
                index.cells(box),
                np.asarray(index.origin_um) - corner,
                index.cell_um,
                self.spec.mpp,
                self._table,
                self.palette(tile_id),
            )


def find_for_overlay(
    sdata: SpatialData, image: Any, channel: Any, points: Any, *, with_stain: bool = True, needs_points: bool = True
) -> tuple[_sample.HighResElements, Any, dict[str, Any]]:
    """The elements that are drawn, the stain opened (unless it is already), and the roles that readers recorded.

    With ``points=False`` no transcripts are looked for.
    """
    recorded = _sample.roles(sdata)
    nuclear: tuple[str, ...] = ()
    nuclear_channel, stain = "", None
    if isinstance(image, Image):
        nuclear, stain = image.keys, image.select(None if channel is None else [channel])
    elif with_stain:
        nuclear, nuclear_channel = _sample.find_nuclear(sdata, image, channel, recorded=recorded)
        stain = open_image(sdata, nuclear, channels=[nuclear_channel])
    key, gene = (None, None) if points is False else _sample.find_transcripts(sdata, points, recorded=recorded)
    if needs_points and key is None:
        raise KeyError(
            f'No transcripts to draw. {_sample.describe("points", sdata.points)} Read them, or pass mode="none".'
        )
    _sample.require_one_sample(sdata)
    return _sample.HighResElements(sdata, nuclear, nuclear_channel, points=key, gene=gene), stain, recorded


def molecule_centres(molecules: Any, centres: np.ndarray) -> np.ndarray | None:
    """Around which places the molecules of tiles are read: their own, others, or none."""
    if molecules is None:
        return centres
    if molecules is False:
        return None
    others = np.asarray(molecules, np.float64).reshape(-1, 2)
    if len(others) != len(centres):
        raise ValueError(f"molecules= has {len(others)} centres for {len(centres)} tiles.")
    return others


def _several(names: str | Sequence[str] | None) -> tuple[str, ...] | None:
    """Names as a tuple; one name alone is one."""
    return None if names is None else (names,) if isinstance(names, str) else tuple(map(str, names))
