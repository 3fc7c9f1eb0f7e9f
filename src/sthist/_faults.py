"""Which part of a damaged file is at fault, as far as it can be told from the file alone."""

from __future__ import annotations

import contextlib
import json
import os
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

LARGEST_HEADER = 2**24
SAFETENSORS_BYTES = {
    "BOOL": 1, "U8": 1, "I8": 1, "F8_E4M3": 1, "F8_E5M2": 1, "U16": 2, "I16": 2, "F16": 2, "BF16": 2, "U32": 4,
    "I32": 4, "F32": 4, "U64": 8, "I64": 8, "F64": 8,
}  # fmt: skip
LARGEST_TABLE = 2**26
"""Bytes of a Parquet file up to which its columns are looked through once more."""


def fault_in(path: Path) -> str:
    """A sentence, after a space, that names the part of a file that cannot be right; empty where none is found."""
    looks = {".safetensors": _of_tensors, ".h5": _of_hdf5, ".h5ad": _of_hdf5, ".parquet": _of_columns}
    look = looks.get(path.suffix.lower())
    if look is None:
        return ""
    with contextlib.suppress(Exception):  # the file is damaged: whatever is raised here says nothing new
        for fault in look(path):
            return f" {fault}"
    return ""


def _of_tensors(path: Path) -> Iterator[str]:
    with path.open("rb") as file:
        length = int.from_bytes(file.read(8), "little")
        if length > LARGEST_HEADER:
            return
        header = json.loads(file.read(length))
    room = os.stat(path).st_size - 8 - length
    tensors = {name: value for name, value in header.items() if name != "__metadata__"}
    end = 0
    for name, value in sorted(tensors.items(), key=lambda item: _start(item[1])):
        said = (
            f"Tensor {name!r} has the type {value.get('dtype')!r}, the shape {value.get('shape')!r:.60} and the bytes"
        )
        said += f" {value.get('data_offsets')!r:.60}, which do not go together."
        if not _fits(value, end, room):
            yield said
            return
        end = value["data_offsets"][1]


def _start(value: dict[str, Any]) -> float:
    """Where a tensor begins, or the end of all where it does not say."""
    offsets = value.get("data_offsets")
    return offsets[0] if isinstance(offsets, list) and offsets and isinstance(offsets[0], int) else float("inf")


def _fits(value: dict[str, Any], end: int, room: int) -> bool:
    """Whether a tensor begins where the last one ended, and is as long as its type and shape say."""
    n_bytes: Any = SAFETENSORS_BYTES.get(value.get("dtype", ""))
    shape, offsets = value.get("shape"), value.get("data_offsets")
    if n_bytes is None or not isinstance(shape, list) or not isinstance(offsets, list) or len(offsets) != 2:
        return False
    if any(not isinstance(each, int) or each < 0 for each in (*shape, *offsets)):
        return False
    for side in shape:
        n_bytes *= side
    return bool(offsets[0] == end and offsets[1] - offsets[0] == n_bytes and offsets[1] <= room)


def _of_hdf5(path: Path) -> Iterator[str]:
    import h5py

    with h5py.File(path, "r") as file:
        yield from _of_group(file)


def _of_group(group: Any) -> Iterator[str]:
    """Links to nowhere, empty groups and texts that are none, below a group."""
    import h5py

    for name in group:
        place = f"{group.name.rstrip('/')}/{name}".lstrip("/")
        if not isinstance(group.get(name, getlink=True), h5py.HardLink) and group.get(name) is None:
            yield f"{place!r} is a link to nowhere."
            continue
        try:
            found = group[name]
        except KeyError:
            yield f"{place!r} cannot be opened."
            continue
        if isinstance(found, h5py.Group):
            if not len(found) and not found.attrs:
                yield f"{place!r} is an empty group."
            yield from _of_group(found)
        elif found.dtype.kind in "SO" and found.size < LARGEST_HEADER:
            try:
                [each.decode() for each in found[()].ravel().tolist() if isinstance(each, bytes)]
            except UnicodeDecodeError:
                yield f"{place!r} holds bytes that are no text."


def _of_columns(path: Path) -> Iterator[str]:
    import pyarrow as pa
    import pyarrow.parquet as pq
    import shapely

    if os.stat(path).st_size > LARGEST_TABLE:
        return
    file = pq.ParquetFile(path)
    for name in file.schema_arrow.names:
        try:
            column = file.read([name]).column(0)
        except (pa.ArrowException, OSError, ValueError) as error:
            yield f"Column {name!r} cannot be read: {str(error).splitlines()[0]:.100}."
            continue
        if column.null_count:
            yield f"Column {name!r} is empty in {column.null_count} of {len(column)} rows."
        elif name == "geometry":
            wrong = shapely.is_missing(shapely.from_wkb(column.to_numpy(zero_copy_only=False), on_invalid="ignore"))
            if wrong.any():
                yield f"Column 'geometry' is no geometry in {int(wrong.sum())} of {len(column)} rows."
        elif str(column.type) in ("binary", "large_binary"):
            try:
                [each.decode() for each in column.to_pylist()]
            except UnicodeDecodeError:
                yield f"Column {name!r} holds bytes that are no text."
