"""Tiles around regions of several samples, drawn, read once, and kept for all epochs of a training."""

from __future__ import annotations

from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import numpy as np

from sthist._scratch import temporary_folder
from sthist._tables.rows import centroids_um, have_shapes, lie_within, rows_of
from sthist.tiles._sampling import lies_inside

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from sthist.training.batches import Tiles

IN_MEMORY = 2 * 2**30
"""Bytes of tiles up to which they are kept in memory; more are kept in a file."""

READ_AT_ONCE = 1024


def regions_on_image(sdata: Any, regions: str, he: Any, size_um: float, within: Any = None) -> np.ndarray:
    """Centres in µm, (n, 2), of the regions around which a square of some size lies on an image."""
    rows = rows_of(sdata, regions)
    places = centroids_um(sdata, rows)
    chosen = have_shapes(sdata, rows) & np.isfinite(places).all(axis=1)
    if within is not None:
        chosen &= lie_within(sdata, places, within, regions)
    whole = lies_inside(he, places[chosen], size_um)
    if not whole.any():
        raise ValueError(
            f"None of the {int(chosen.sum())} shapes of {regions!r} lies {size_um / 2:g} µm or more inside the image "
            f"{he.key!r}. Is it registered with them in 'um'?"
        )
    return np.asarray(places[chosen][whole])


def drawn(places: Sequence[np.ndarray], n: int, seed: int, name: str) -> list[np.ndarray]:
    """At most n of the places of all samples, each as likely as any other; ``name``: of the argument that says n."""
    if n < 2:
        raise ValueError(f"{name} is {n!r}; at least 2 are needed.")
    total = sum(map(len, places))
    if total <= n:
        return list(places)
    kept = np.zeros(total, np.bool_)
    kept[np.random.default_rng(seed).choice(total, n, replace=False)] = True
    ends = np.cumsum([len(each) for each in places])
    return [mine[part] for mine, part in zip(places, np.split(kept, ends[:-1]), strict=True)]


@contextmanager
def kept_tiles(readers: Sequence[Any], places: Sequence[np.ndarray], px: int) -> Iterator[np.ndarray]:
    """Tiles of all samples, read once, in the order in which they are read best."""
    with _space(sum(map(len, places)), px) as out:
        done = 0
        for reader, mine in zip(readers, places, strict=True):
            order = reader.order(mine)  # of none, where nothing of a sample was drawn
            for start in range(0, len(order), READ_AT_ONCE):
                part = order[start : start + READ_AT_ONCE]
                out[done : done + len(part)] = reader.read(mine[part])
                done += len(part)
        yield out


@contextmanager
def kept_rows(tiles: Tiles, px: int) -> Iterator[np.ndarray]:
    """Tiles, read once, in the order of their rows."""
    with _space(len(tiles), px) as out:
        for rows, part in tiles.in_order(np.arange(len(tiles)), READ_AT_ONCE):
            out[rows] = part
        yield out


@contextmanager
def _space(n: int, px: int) -> Iterator[np.ndarray]:
    """Room for n tiles: in memory, or in a file of the scratch folder where they are many."""
    shape = (n, px, px, 3)
    if np.prod(shape, dtype=np.int64) <= IN_MEMORY:
        yield np.empty(shape, np.uint8)
        return
    with temporary_folder("crops-") as scratch:
        yield np.lib.format.open_memmap(scratch / "crops.npy", "w+", np.uint8, shape)
