"""Tiles around regions of several samples, drawn, read once, and kept for all epochs of a training."""

from __future__ import annotations

from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import numpy as np

from sthist._scratch import temporary_folder
from sthist._tables.rows import centroids_um, have_shapes, lie_within, rows_of

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

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
    half = size_um / 2
    corners = places[chosen, None] + half * np.array([[-1, -1], [-1, 1], [1, -1], [1, 1]])
    whole = np.logical_or.reduce([field.holds(corners).all(axis=1) for field in he.fields])
    if not whole.any():
        raise ValueError(
            f"None of the {int(chosen.sum())} shapes of {regions!r} lies {half:g} µm or more inside the image "
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
    """Tiles of all samples, read once: in memory, or in a file of the scratch folder where they are many."""
    shape = (sum(map(len, places)), px, px, 3)
    if np.prod(shape, dtype=np.int64) <= IN_MEMORY:
        yield _read(readers, places, np.empty(shape, np.uint8))
        return
    with temporary_folder("crops-") as scratch:
        file = np.lib.format.open_memmap(scratch / "crops.npy", "w+", np.uint8, shape)
        yield _read(readers, places, file)


def _read(readers: Sequence[Any], places: Sequence[np.ndarray], out: np.ndarray) -> np.ndarray:
    start = 0
    for reader, mine in zip(readers, places, strict=True):
        for part in np.array_split(reader.order(mine), -(-len(mine) // READ_AT_ONCE)):
            out[start : start + len(part)] = reader.read(mine[part])
            start += len(part)
    return out
