"""Tables whose numbers are made, or read, block by block: they are never whole in memory, neither to be written."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from pathlib import Path

    from anndata import AnnData

SIDE = 1024
"""Rows and columns of a chunk on disk, 4 MB: a few genes are read without the others, and so are a few spots."""


@dataclass(frozen=True, eq=False)
class LazyParts:
    """The dask arrays of a table, by their places in a store: ``"X"``, ``"layers/ridge"``."""

    arrays: dict[str, Any]

    @classmethod
    def of(cls, element: Any) -> LazyParts:
        """Those of a table; none of another element."""
        if not hasattr(element, "obs_names"):
            return cls({})
        found = {"X": element.X} | {f"layers/{name}": values for name, values in element.layers.items()}
        return cls({place: values for place, values in found.items() if hasattr(values, "dask")})

    def without(self, table: AnnData) -> AnnData:
        """A table that lacks them, and shares all else."""
        import anndata as ad

        if not self.arrays:
            return table
        kept = {name: values for name, values in table.layers.items() if f"layers/{name}" not in self.arrays}
        parts = {name: dict(getattr(table, name)) for name in ("obsm", "varm", "obsp", "varp", "uns")}
        return ad.AnnData(
            None if "X" in self.arrays else table.X, obs=table.obs, var=table.var, layers=kept, raw=_raw(table), **parts
        )

    def write(self, folder: Path) -> None:
        """Make their blocks and write them into a table's folder; each must read there."""
        import dask.array as da
        import zarr

        group = zarr.open_group(folder, mode="r+", use_consolidated=False)
        for place, array in self.arrays.items():
            regular = array.rechunk(tuple(sizes[0] for sizes in array.chunks))
            target: Any = group.create_array(
                place,
                shape=array.shape,
                dtype=array.dtype,
                chunks=tuple(_side(sizes) for sizes in regular.chunks),
                attributes={"encoding-type": "array", "encoding-version": "0.2.0"},
                overwrite=True,
            )
            da.store(regular, target, lock=False, scheduler="threads", num_workers=2)
            _ = target[-1, -1]

    def read(self, table: AnnData, folder: Path) -> None:
        """Give a table those that lie in its folder, which are read when they are needed."""
        import dask.array as da

        for place in self.arrays:
            values = da.from_zarr(str(folder / place))
            if place == "X":
                table.X = values
            else:
                table.layers[place.partition("/")[2]] = values


def _raw(table: AnnData) -> Any:
    return None if table.raw is None else {"X": table.raw.X, "var": table.raw.var, "varm": dict(table.raw.varm)}


def _side(sizes: tuple[int, ...]) -> int:
    """Side of the chunks on disk along an axis, so that none is of two blocks: these are written at once."""
    if len(sizes) == 1:
        return max(1, min(sizes[0], SIDE))
    return SIDE if sizes[0] % SIDE == 0 else sizes[0]
