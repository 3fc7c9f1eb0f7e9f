"""Transcripts sorted by place, so that a tile costs what is in it."""

from __future__ import annotations

import difflib
import shutil
import tempfile
import weakref
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from sthist._messages import plain
from sthist._sample.elements import is_gene
from sthist._scratch import own_folder
from sthist._settings import logger
from sthist.tiles._images.planes import first_last
from sthist.tiles._molecules.density import iter_points, require_same_plane

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

    from sthist._sample.elements import HighResElements
    from sthist.tiles._images.image import Image

IN_MEMORY = 5_000_000
"""Transcripts above which the sorted ones lie in a file: 12 bytes each."""

MAX_CELLS = 16_000_000


@dataclass(frozen=True)
class PointFilter:
    """Which transcripts are drawn."""

    min_qv: float = 20.0  # least quality value, kept; of no effect where the points have no ``qv``
    genes: tuple[str, ...] | None = None  # these alone; None for all of the panel
    controls: tuple[str, ...] | None = None  # lower-case prefixes of features that are no genes
    planes: tuple[int, ...] | None = None  # numbers of the planes that are kept; None for all
    z_step: float = 1.0  # unit of the transcripts' z from one plane to the next

    def panel(self, names: np.ndarray) -> np.ndarray:
        """Which features are drawn."""
        keep = is_gene(names, self.controls)
        return keep if self.genes is None else keep & np.isin(names, self.genes)


class PointIndex:
    """The transcripts of a sample, filtered and sorted by the cell of a square grid that they lie in.

    Built in two passes over the partitions of the points element: count, then place. Up to five million lie in memory,
    more in a file of :attr:`sthist.settings.scratch_dir` that goes with the index.
    What lies outside of the stain's box is left out; without a stain, the box is that of the transcripts.
    """

    def __init__(self, elements: HighResElements, stain: Image | None, cell_um: float, keep: PointFilter) -> None:
        from sthist.tiles._molecules.dot_kernels import place_points

        self._elements, self._keep = elements, keep
        gene = str(elements.gene)
        points = elements.sdata.points[str(elements.points)]
        self._gene = gene
        self._columns = (gene, *(name for name in ("qv",) if name in points.columns))
        if keep.planes is not None:
            if "z" not in points.columns:
                raise KeyError(f"Points {elements.points!r} have no column 'z'; a plane of them cannot be chosen.")
            self._columns = (*self._columns, "z")
        names = self._features()
        self._require_genes(names)
        x0, y0, x1, y1 = self._box() if stain is None else stain.extent_um
        self._end_um = (np.nextafter(x1, np.inf), np.nextafter(y1, np.inf)) if stain is None else (x1, y1)
        self.cell_um = max(cell_um, float(np.sqrt(max((x1 - x0) * (y1 - y0), 1e-9) / MAX_CELLS)))
        self.origin_um = (float(x0), float(y0))
        self.shape = tuple(int((high - low) // self.cell_um) + 1 for low, high in ((y0, y1), (x0, x1)))
        self.genes = tuple(names[keep.panel(names)].tolist())
        counts = np.zeros(self.shape[0] * self.shape[1], np.int64)
        self._n_all = self._n_wanted = 0
        self._low, self._high = np.full(2, np.inf), np.full(2, -np.inf)
        for cells, *_ in self._placed(survey=True):
            counts += np.bincount(cells[cells >= 0], minlength=len(counts))
        self.starts = np.concatenate([[0], np.cumsum(counts)])
        if self._n_wanted == 0:
            raise ValueError(self._why_none())
        if stain is not None:
            inside = len(self) / self._n_wanted
            ends = np.array([x0, y0]), np.array([x1, y1])
            require_same_plane(stain, str(elements.points), *ends, self._low, self._high, inside)
        logger.info(
            "%d transcripts are drawn; %d are of controls, of low quality, of other genes or planes, and %d lie "
            "off the image.",
            len(self),
            self._n_all - self._n_wanted,
            self._n_wanted - len(self),
        )
        self.x, self.y, self.gene = self._allocate(len(self))
        following = self.starts[:-1].copy()
        for cells, x, y, codes in self._placed():
            place_points(cells, x, y, codes, following, self.x, self.y, self.gene)

    def __getstate__(self) -> dict[str, Any]:
        """The sorted transcripts, without the sample that they were read from."""
        state = {name: value for name, value in vars(self).items() if name != "_elements"}
        # Plain arrays, also of what lies in a file of this process's own: those are pickled out of band.
        return state | {name: np.asarray(state[name]) for name in ("x", "y", "gene")}

    def __len__(self) -> int:
        """Number of transcripts."""
        return int(self.starts[-1])

    @property
    def memory_bytes(self) -> int:
        """What the transcripts take in memory; those in a file are the system's to keep."""
        return sum(array.nbytes for array in (self.x, self.y, self.gene) if not isinstance(array, np.memmap))

    def cells(self, box_um: tuple[float, float, float, float]) -> np.ndarray:
        """First and last-plus-one row, then column, of the cells that a box touches: int64 of shape (4,)."""
        x0, y0, x1, y1 = box_um
        bounds = []
        for low, high, origin, n in (
            (y0, y1, self.origin_um[1], self.shape[0]),
            (x0, x1, self.origin_um[0], self.shape[1]),
        ):
            bounds += [
                min(max(int((low - origin) // self.cell_um), 0), n),
                min(max(int((high - origin) // self.cell_um) + 1, 0), n),
            ]
        return np.array(bounds, np.int64)

    def counts(self) -> np.ndarray:
        """Transcripts per cell, int64 of the grid's shape."""
        return np.diff(self.starts).reshape(self.shape)

    def _features(self) -> np.ndarray:
        """Names of all features, sorted."""
        column = self._elements.sdata.points[str(self._elements.points)][self._gene]
        if getattr(getattr(column, "cat", None), "known", False):
            return np.array(sorted(map(str, column.cat.categories)))
        return np.array(sorted(map(str, column.dropna().unique().compute())))

    def _require_genes(self, names: np.ndarray) -> None:
        for gene in self._keep.genes or ():
            if gene not in names:
                close = difflib.get_close_matches(gene, names.tolist(), n=1)
                raise KeyError(
                    f"Gene {gene!r} is not among the {len(names)} features of points {self._elements.points!r}."
                    + (f" Did you mean {close[0]!r}?" if close else "")
                )
            if not is_gene(np.array([gene]), self._keep.controls)[0]:
                raise ValueError(f"{gene!r} is a control, not a gene; pass controls=() to draw controls, too.")

    def _box(self) -> tuple[float, float, float, float]:
        """The box around the transcripts."""
        low, high = np.full(2, np.inf), np.full(2, -np.inf)
        for x, y, _ in iter_points(self._elements):
            if len(x):
                low, high = np.minimum(low, [x.min(), y.min()]), np.maximum(high, [x.max(), y.max()])
        if not (np.isfinite(low) & np.isfinite(high)).all():
            raise ValueError(
                f"Points {self._elements.points!r} have no transcripts, or coordinates that are no finite numbers."
            )
        return (*low.tolist(), *high.tolist())

    def _placed(self, *, survey: bool = False) -> Iterator[tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]]:
        """By partition: the cell of each transcript (-1 for those left out), its place in the cell.

        Its gene's number.
        """
        number = {name: i for i, name in enumerate(self.genes)}
        for x, y, part in iter_points(self._elements, self._columns):
            categories = part[self._gene].astype("category").cat
            of_category = np.array([number.get(str(name), -1) for name in categories.categories] + [-1], np.int32)
            codes = of_category[categories.codes.to_numpy()]
            keep = codes >= 0
            if "qv" in part:
                keep &= part["qv"].to_numpy() >= self._keep.min_qv
            if self._keep.planes is not None:
                plane = np.floor(part["z"].to_numpy(np.float64) / self._keep.z_step + 0.5)
                keep &= np.isin(plane, self._keep.planes)
            lost = ~(np.isfinite(x) & np.isfinite(y))
            if lost.any():
                raise ValueError(
                    f"{int(lost.sum())} transcripts of points {self._elements.points!r} have coordinates that are no "
                    "finite numbers."
                )
            column, row = (
                np.floor((values - origin) / self.cell_um).astype(np.int64)
                for values, origin in zip((x, y), self.origin_um, strict=True)
            )
            if survey:
                self._n_all, self._n_wanted = self._n_all + len(x), self._n_wanted + int(keep.sum())
                if len(x):
                    self._low, self._high = (
                        np.minimum(self._low, [x.min(), y.min()]),
                        np.maximum(self._high, [x.max(), y.max()]),
                    )
            keep &= (row >= 0) & (x < self._end_um[0]) & (column >= 0) & (y < self._end_um[1])
            in_x = (x - self.origin_um[0] - column * self.cell_um).astype(np.float32)
            in_y = (y - self.origin_um[1] - row * self.cell_um).astype(np.float32)
            yield np.where(keep, row * self.shape[1] + column, -1), in_x, in_y, codes

    def _why_none(self) -> str:
        parts = [f"of a gene{'' if self._keep.genes is None else f' among {list(self._keep.genes)[:5]}'}"]
        if "qv" in self._columns:
            parts.append(f"with qv >= {self._keep.min_qv:g}")
        if self._keep.planes is not None:
            parts.append(f"on the planes {list(self._keep.planes)}")
        return (
            f"None of the {self._n_all} transcripts in points {self._elements.points!r} is {', '.join(parts)}; "
            "lower min_qv, or check the gene column."
        )

    def _allocate(self, n: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        dtypes = {"x": np.float32, "y": np.float32, "gene": np.int32}
        if n <= IN_MEMORY:
            x, y, gene = (np.empty(n, dtype) for dtype in dtypes.values())
            return x, y, gene
        folder = Path(tempfile.mkdtemp(prefix="points-", dir=own_folder()))
        weakref.finalize(self, shutil.rmtree, folder, ignore_errors=True)
        logger.info("%d transcripts are sorted in %s.", n, folder)
        x, y, gene = (np.memmap(folder / name, dtype, "w+", shape=(n,)) for name, dtype in dtypes.items())
        return x, y, gene


def planes_of(recorded: Mapping[str, Any], z: int | tuple[int, int]) -> tuple[int, ...]:
    """Numbers that transcripts give the planes of a stack: those that the reader recorded, else counted from 0."""
    first, last = first_last(z)
    numbers = recorded.get("z_planes")
    if numbers is None:
        return tuple(range(first, last + 1))
    if not 0 <= first <= last < len(numbers):
        raise ValueError(
            f"z is {z}; the stack has the planes 0 to {len(numbers) - 1}, which the transcripts call "
            f"{plain(list(numbers))}."
        )
    return tuple(int(number) for number in numbers[first : last + 1])


def z_step_of(recorded: Mapping[str, Any], z_step: float | None) -> float:
    """What transcripts' z grows by from plane to plane: given, or recorded by the reader."""
    step = z_step if z_step is not None else recorded.get("z_step")
    if step is None:
        raise ValueError(
            "How far apart are the planes, in the unit of the transcripts' z? Say it third: z=(0, 4, 1.5)."
        )
    if not step > 0:
        raise ValueError(f"The step of z= is {step!r}; it is a positive number.")
    return float(step)
