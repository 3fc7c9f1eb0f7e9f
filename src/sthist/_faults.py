"""Which part of a damaged file is at fault, as far as it can be told from the file alone."""

from __future__ import annotations

import contextlib
import csv
import gzip
import io
import json
import os
import re
import zipfile
from collections import Counter
from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

LARGEST_HEADER = 2**24
LARGEST_TEXT = 2**24
GAPS = ("", "na", "nan", "null", "none")
DEEPEST = 500  # levels of JSON; Python's reader takes some 1000
SAFETENSORS_BYTES = {
    "BOOL": 1, "U8": 1, "I8": 1, "F8_E4M3": 1, "F8_E5M2": 1, "U16": 2, "I16": 2, "F16": 2, "BF16": 2, "U32": 4,
    "I32": 4, "F32": 4, "U64": 8, "I64": 8, "F64": 8,
}  # fmt: skip
METADATA = {b"geo": {"columns", "primary_column"}, b"pandas": {"columns", "index_columns"}}
LARGEST_TABLE = 2**26
"""Bytes of a Parquet file or a zip up to which all of it is looked through once more."""


def fault_in(path: Path, error: Exception | None = None) -> str:
    """A sentence, after a space, that names the part of a file that cannot be right; empty where none is found.

    Before it stands the part that anndata notes beside its errors.
    """
    noted = ""
    for note in getattr(error, "__notes__", []):
        found = re.search(r"reading key '(.*)' of .* from (\S*)", note)
        if found:
            part = f"{found[2].strip('/')}/{found[1]}".strip("/")
            noted = f" The fault was met in {part!r}."
    name = path.name.lower().removesuffix(".gz")
    look = next((look for ending, look in LOOKS.items() if name.endswith(ending)), None)
    if look is None:
        return noted
    with contextlib.suppress(Exception):  # the file is damaged: whatever is raised here says nothing new
        return noted + _first(look(path))
    return noted


def _first(faults: Iterator[str]) -> str:
    return next((f" {fault}" for fault in faults), "")


# Text ----------------------------------------------------------------------------------------------------------------


def records(text: str, separator: str = ",") -> Iterator[tuple[int, list[str]]]:
    """Number of the line and cells of each row of a csv file; a quote that swallows rows is refused with its line."""
    reader = csv.reader(io.StringIO(text, newline=""), strict=True, delimiter=separator)
    while True:
        line = reader.line_num + 1
        try:
            cells = next(reader)
        except StopIteration:
            return
        except csv.Error as error:
            raise ValueError(f"line {line}: {_what_is_wrong(str(error))}") from None
        if reader.line_num > line:
            raise ValueError(
                f'line {line}: a quote (") opens a cell that goes on to line {reader.line_num}, and takes the rows '
                "between for text. Close the quote on its line, or remove it."
            )
        yield line, cells


def _what_is_wrong(message: str) -> str:
    """In plain words, what Python's parser says."""
    if "unexpected end of data" in message:
        return 'a quote (") is opened and never closed, and takes all rows that follow for text. Close or remove it.'
    if "expected after" in message:
        return 'a quote (") closes a cell in its middle: there is one too many, or a comma is missing after it.'
    return f"this is no csv: {message}."


def fault_in_text(text: str) -> str:
    """The same of the text of a csv file."""
    return _first(_of_cells(text))


def _of_lines(path: Path) -> Iterator[str]:
    """Bytes that are no text, with their line; and what is wrong with a text."""
    content, _ = _start_of(path)
    try:
        text = content.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line = content.count(b"\n", 0, error.start) + 1
        yield f"Line {line} holds bytes that are no text (UTF-8)."
        return
    yield from _of_cells(text)


def _of_cells(text: str) -> Iterator[str]:
    """Quotes, and what is no number among numbers, each with its line and column."""
    if "\0" in text:
        line = text.count("\n", 0, text.index("\0")) + 1
        yield f"Line {line} holds bytes of zero."
        return
    separator = "\t" if "\t" in text.partition("\n")[0] else ","
    widths = set()
    n: Counter[tuple[str, int]] = Counter()
    first: dict[tuple[str, int], tuple[int, str]] = {}
    rows = records(text, separator)
    try:
        header = next(cells for _, cells in rows if cells)
        for line, cells in rows:
            widths.add(len(cells) or len(header))
            for number, cell in enumerate(cells):
                kind = "gap" if cell.strip().lower() in GAPS else "number" if _is_number(cell) else "odd"
                n[kind, number] += 1
                first.setdefault((kind, number), (line, cell))
    except ValueError as error:
        yield f"{str(error)[:1].upper()}{str(error)[1:]}"
        return
    names = ["", *header] if widths == {len(header) + 1} else header  # names of the rows may have none of their own
    for kind in ("odd", "gap"):  # gaps last, which many a whole file has
        for number, name in enumerate(names):
            if 0 < n[kind, number] <= n["number", number]:
                line, cell = first[kind, number]
                yield f"Line {line}, column {name!r} has {cell!r:.60}, which is no number as in the other lines."


def _is_number(cell: str) -> bool:
    """Whether a text is a finite number; a whole one of 64 bits."""
    try:
        return abs(int(cell)) < 2**63
    except ValueError:
        pass
    try:
        return abs(float(cell)) < float("inf")
    except ValueError:
        return False


def _start_of(path: Path) -> tuple[bytes, bool]:
    """The content of a text file, plain or packed by gzip, or its first lines; and whether it is all of it."""
    with path.open("rb") as file:
        packed = file.read(2) == b"\x1f\x8b"
    with gzip.open(path) if packed else path.open("rb") as lines:
        content = lines.read(LARGEST_TEXT)
    return (content, True) if len(content) < LARGEST_TEXT else (content[: content.rfind(b"\n")], False)


def _of_json(path: Path) -> Iterator[str]:
    """The key whose value is nested more deeply than anything that is meant, or in whose value the text is none."""
    content, is_whole = _start_of(path)
    if not is_whole:
        return
    text = content.decode("utf-8-sig")
    end = len(text)
    try:
        json.loads(text)
    except json.JSONDecodeError as error:
        end = error.pos
    except RecursionError:
        pass
    keys: list[str] = []  # of each level
    key = ""
    for match in re.finditer(r'"((?:[^"\\]|\\.)*)"\s*(:?)|([\[{])|[\]}]', text):
        if match.start() >= end:
            break
        if match[1] is not None:
            key = match[1] if match[2] else key
        elif match[3]:
            keys.append(key)
            if len(keys) > DEEPEST:
                yield f"{_named(keys)} holds lists or objects in more than {DEEPEST} levels."
                return
        elif keys:
            key = keys.pop()
    if end < len(text) and (keys or key):
        yield f"{_named([*keys, key])} is no JSON."


def _named(keys: list[str]) -> str:
    """The first levels of a place in a JSON document."""
    outer = list(dict.fromkeys(name for name in keys[:8] if name))  # a list has the name of what holds it
    return f"The value of {'.'.join(outer)!r:.200}" if outer else "A list"


def _of_members(path: Path) -> Iterator[str]:
    """Members of a zip that cannot be unpacked, are no JSON where they should be, or cannot be opened by zarr."""
    is_small = os.stat(path).st_size < LARGEST_TABLE
    with zipfile.ZipFile(path) as archive:
        for info in archive.infolist():
            is_metadata = info.filename.rpartition("/")[2] in {".zarray", ".zattrs", ".zgroup", "zarr.json"}
            if info.file_size > LARGEST_TEXT or not (is_metadata or is_small):
                continue
            try:
                content = archive.read(info)
            except Exception as error:  # noqa: BLE001
                yield f"Member {info.filename!r} cannot be unpacked: {error}."
                continue
            if is_metadata:
                try:
                    json.loads(content)
                except ValueError as error:
                    yield f"Member {info.filename!r} is no JSON: {error}."
        arrays = [name for name in archive.namelist() if name.endswith("/.zarray")]
        names = set(archive.namelist())
    if not arrays:
        return
    if not names & {".zgroup", "zarr.json"}:
        yield "It has no member '.zgroup' at its top."
    import zarr

    group = zarr.open_group(zarr.storage.ZipStore(path, read_only=True), mode="r")
    for name in arrays:
        try:
            array: Any = group[name.removesuffix("/.zarray")]
        except Exception as error:  # noqa: BLE001
            yield f"Member {name!r} describes no array: {error}."
            continue
        try:
            _ = array[...] if is_small and array.nbytes < LARGEST_TEXT else None
        except Exception as error:  # noqa: BLE001
            yield f"The array {array.path!r} cannot be read: {error}."


# Tables, arrays and tensors -------------------------------------------------------------------------------------------


def _of_tensors(path: Path) -> Iterator[str]:
    with path.open("rb") as file:
        length = int.from_bytes(file.read(8), "little")
        if length > LARGEST_HEADER:
            return
        header = json.loads(file.read(length))
    room = os.stat(path).st_size - 8 - length
    tensors = {name: value for name, value in header.items() if name != "__metadata__"}
    for name, value in tensors.items():
        if not _is_consistent(value):
            value = value if isinstance(value, dict) else {}
            yield (
                f"Tensor {name!r:.60} has the type {value.get('dtype')!r:.20}, the shape {value.get('shape')!r:.60} "
                f"and the bytes {value.get('data_offsets')!r:.60}, which do not go together."
            )
    end = 0
    for name, value in sorted(tensors.items(), key=lambda item: tuple(item[1]["data_offsets"])):
        start, stop = value["data_offsets"]
        if start > end:
            yield _nameless(end, start, tensors)
        if start < end or stop > room:
            whose = "are those of another" if start < end else "the file does not have"
            yield f"Tensor {name!r:.60} has the bytes {start} to {stop}, which {whose}."
        end = stop
    if end < room:
        yield _nameless(end, room, tensors)


def _nameless(start: int, end: int, tensors: dict[str, Any]) -> str:
    names = [f"{name:.40}" for name in list(tensors)[:8]]
    return f"The bytes {start} to {end} belong to no tensor; is one of {names} named wrongly, or twice?"


def _is_consistent(value: Any) -> bool:
    """Whether a tensor is as long as its type and shape say."""
    if not isinstance(value, dict):
        return False
    n_bytes: Any = SAFETENSORS_BYTES.get(value.get("dtype", ""))
    shape, offsets = value.get("shape"), value.get("data_offsets")
    if n_bytes is None or not isinstance(shape, list) or not isinstance(offsets, list) or len(offsets) != 2:
        return False
    if any(not isinstance(each, int) or each < 0 for each in (*shape, *offsets)):
        return False
    for side in shape:
        n_bytes *= side
    return bool(offsets[1] - offsets[0] == n_bytes)


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
            yield from _of_frame(place, found)
            counts = found.get("data")
            if {"indices", "indptr"} <= set(found) and getattr(counts, "dtype", np.dtype(int)).kind not in "iufb":
                yield f"{counts.name.lstrip('/')!r} holds {counts.dtype}, no numbers."
        elif found.dtype.kind in "SO" and found.size < LARGEST_HEADER:
            try:
                [each.decode() for each in found[()].ravel().tolist() if isinstance(each, bytes)]
            except UnicodeDecodeError:
                yield f"{place!r} holds bytes that are no text."


def _of_frame(place: str, group: Any) -> Iterator[str]:
    """Columns of a table, as anndata writes it, of another length than its index."""
    index = group.attrs.get("_index")
    if not isinstance(index, str) or index not in group:
        return
    for name, stored in group.items():
        stored = stored.get("codes") if hasattr(stored, "keys") else stored
        if stored is not None and len(stored) != len(group[index]):
            yield f"{f'{place}/{name}'!r} has {len(stored)} rows, and {f'{place}/{index}'!r} {len(group[index])}."


def _of_columns(path: Path) -> Iterator[str]:
    import pyarrow as pa
    import pyarrow.parquet as pq
    import shapely

    if os.stat(path).st_size > LARGEST_TABLE:
        return
    file = pq.ParquetFile(path)
    for key, value in (file.schema_arrow.metadata or {}).items():
        needed = METADATA.get(key, set())
        with contextlib.suppress(ValueError):
            stated = json.loads(value)
            needed = set() if isinstance(stated, dict) and needed <= set(stated) else needed
        if needed:
            yield f"Its metadata {key.decode()!r} is no JSON object with {' and '.join(sorted(needed))}."
    for name in file.schema_arrow.names:
        try:
            column = file.read([name]).column(0)
        except (pa.ArrowException, OSError, ValueError) as error:
            yield f"Column {name!r} cannot be read: {str(error).splitlines()[0]:.100}."
            continue
        if pa.types.is_nested(column.type):
            yield f"Column {name!r} holds {column.type}, not one value a row."
        elif column.null_count:
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


LOOKS = {
    ".safetensors": _of_tensors,
    ".h5": _of_hdf5,
    ".h5ad": _of_hdf5,
    ".parquet": _of_columns,
    ".zip": _of_members,
    ".csv": _of_lines,
    ".tsv": _of_lines,
    ".txt": _of_lines,
    ".json": _of_json,
    ".geojson": _of_json,
    ".xenium": _of_json,
}
