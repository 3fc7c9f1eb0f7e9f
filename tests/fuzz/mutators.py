"""Damage to files: of any kind, and such as only the format's own reader meets."""

from __future__ import annotations

import contextlib
import io
import json
import os
import re
import shutil
import struct
import zipfile
from typing import TYPE_CHECKING, Any

import numpy as np
from fuzz.oversize import OVERSIZE

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path
    from random import Random

    # What was done; and where it tells, to which column, key, dataset or line: any of several names it.
    Damage = str | tuple[str, tuple[str, ...]]

TEXT = (".csv", ".tsv", ".json", ".geojson", ".xenium", ".txt")
JSON = (".json", ".geojson", ".xenium")
TIFF = (".tif", ".tiff")
ODD = (
    "NaN",
    "1e309",
    "-5",
    "-1e9",
    "",
    "abc",
    "0",
    "1.5",
    '"',
    "\u0661\u0662",
    "1e30",
    "99999999999999999999",
    "\ud7ff",
    "None",
)


def files_of(folder: Path) -> list[Path]:
    return sorted(file for file in folder.rglob("*") if file.is_file() or file.is_symlink())


def is_text(path: Path) -> bool:
    return path.suffix in TEXT


# Of any file --------------------------------------------------------------------------------------------------------


def truncate(path: Path, rng: Random) -> str:
    content = path.read_bytes()
    path.write_bytes(content[: rng.randrange(max(1, len(content)))])
    return "truncate"


def flip(path: Path, rng: Random) -> str:
    content = bytearray(path.read_bytes())
    reach = min(len(content), rng.choice([200, len(content)]))  # headers are small, and matter
    for _ in range(rng.choice([1, 1, 4, 32])):
        if reach:
            place = rng.randrange(reach)
            content[place if rng.random() < 0.7 else -1 - place] ^= 1 << rng.randrange(8)
    path.write_bytes(content)
    return "flip"


def zeros(path: Path, rng: Random) -> str:
    content = bytearray(path.read_bytes())
    start = rng.randrange(max(1, len(content)))
    length = rng.choice([4, 64, 4096, len(content)])
    content[start : start + length] = bytes(len(content[start : start + length]))
    path.write_bytes(content)
    return "zeros"


def empty(path: Path, rng: Random) -> str:
    path.write_bytes(b"")
    return "empty"


def remove(path: Path, rng: Random) -> str:
    path.unlink()
    return "remove"


def dangling(path: Path, rng: Random) -> str:
    path.unlink()
    path.symlink_to(path.name if rng.random() < 0.3 else "nowhere")
    return "link"


def folder_instead(path: Path, rng: Random) -> str:
    path.unlink()
    path.mkdir()
    return "folder"


def garbage(path: Path, rng: Random) -> str:
    kinds = [
        b"\x80\x04N.",
        b"<html><body>404 Not Found</body></html>\n",
        b"PK\x03\x04",
        b"\x89PNG\r\n\x1a\n",
        b"\xff\xfe\x00",
    ]
    kinds += [b"[" * 100_000, b'{"a":' * 100_000, rng.randbytes(500), b"\n" * 50, b"\x1f\x8b\x08", b"\x89HDF\r\n\x1a\n"]
    kinds += [
        b"II*\x00\x08\x00\x00\x00",
        b"PAR1" * 4,
        b"version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 9\n",
    ]
    path.write_bytes(rng.choice(kinds))
    return "garbage"


def append(path: Path, rng: Random) -> str:
    path.write_bytes(path.read_bytes() + rng.choice([b"\0" * 64, b"\n\n", b"x" * 10, rng.randbytes(30)]))
    return "append"


def swap(path: Path, rng: Random) -> str:
    others = [file for file in path.parent.rglob("*") if file.is_file() and file != path]
    if not others:
        return empty(path, rng)
    other = rng.choice(sorted(others))
    mine, its = path.read_bytes(), other.read_bytes()
    path.write_bytes(its)
    other.write_bytes(mine)
    return "swap"


# By format ----------------------------------------------------------------------------------------------------------


def text_edit(path: Path, rng: Random) -> Damage:
    text = path.read_bytes().decode("utf-8", "surrogateescape")
    tokens = [match.span() for match in re.finditer(r"[^,\t\n\r]+" if path.suffix not in JSON else r"[\w.+-]+", text)]
    kind = rng.choice(["token", "token", "token", "line", "twice", "quote", "column", "bom"])
    fields: tuple[str, ...] = ()
    if kind == "token" and tokens:
        start, end = rng.choice(tokens)
        fields = _column_at(path, text, start)
        text = text[:start] + rng.choice(ODD) + text[end:]
    lines = text.split("\n")
    at = rng.randrange(len(lines))
    if kind == "line":
        del lines[at]
    elif kind == "twice":
        lines.insert(at, lines[at])
    elif kind == "quote":
        lines[at] = lines[at][: len(lines[at]) // 2] + '"' + lines[at][len(lines[at]) // 2 :]
    elif kind == "column":
        lines[at] = lines[at].replace(",", ";").replace("\t", " ") if rng.random() < 0.5 else lines[at] + ",1,2"
    text = "\n".join(lines)
    content = text.encode("utf-8", "surrogateescape")
    path.write_bytes(
        content
        if kind != "bom"
        else rng.choice([b"\xef\xbb\xbf" + content, text.encode("utf-16", "ignore") if text < "\udc80" else content])
    )
    return f"text {kind}", fields


def _column_at(path: Path, text: str, place: int) -> tuple[str, ...]:
    """The column and the line of a table in which a character lies; none where the table has no names."""
    number_of_line = text.count("\n", 0, place) + 1
    header, line = text.partition("\n")[0], text[text.rfind("\n", 0, place) + 1 : place]
    separator = "\t" if "\t" in header else ","
    names, number = header.rstrip("\r").split(separator), line.count(separator)
    is_table = path.suffix in {".csv", ".tsv", ""} and len(names) > 1 and not any(re.match(r"[-\d#]", n) for n in names)
    is_known = is_table and number < len(names) and names[number]
    return (names[number], f"line {number_of_line}") if is_known else ()


def json_edit(path: Path, rng: Random) -> Damage:
    content = json.loads(path.read_text())
    places: list[tuple[Any, Any, str]] = []

    def walk(node: Any, name: str) -> None:
        items = node.items() if isinstance(node, dict) else enumerate(node) if isinstance(node, list) else ()
        for key, value in items:
            named = key if isinstance(key, str) else name
            places.append((node, key, named))
            walk(value, named)

    walk(content, "")
    fields = []
    values = [
        None,
        [],
        {},
        "text",
        "",
        -1,
        0,
        1e300,
        10**40,
        float("nan"),
        float("inf"),
        True,
        [[1]],
        "\u0000",
        {"a": 1},
        [1, "a"],
    ]
    for _ in range(rng.choice([1, 1, 2])):
        node, key, name = rng.choice(places)
        fields.append(name)
        if rng.random() < 0.2 and isinstance(node, dict):
            node.pop(key, None)
        else:
            with contextlib.suppress(IndexError):
                node[key] = rng.choice(values)
    text = json.dumps(content)
    if rng.random() < 0.1:
        number = re.search(r"[\d.]+", text)
        if number is not None:
            fields += re.findall(r'"([^"]*)":', text[: number.start()])[-1:]
            text = f"{text[: number.start()]}{'[' * 5000}{']' * 5000}{text[number.end() :]}"
    if rng.random() < 0.05:
        text, fields = json.dumps([content]), []  # no key is damaged, but the document
    path.write_text(text)
    return "json edit", tuple(dict.fromkeys(name for name in fields if name))


def h5_edit(path: Path, rng: Random) -> Damage:
    import h5py

    kind = rng.choice(
        ["value", "value", "value", "drop", "dtype", "length", "group", "link", "nan", "attribute", "axes", "huge"]
    )
    with h5py.File(path, "a") as file:
        names: list[str] = []
        file.visititems(lambda name, item: names.append(name) if isinstance(item, h5py.Dataset) else None)
        if not names:
            value = rng.choice(["{", "", "null", "[]", '{"hd_layout_json": 5}'])
            key = rng.choice(sorted(file.attrs))
            file.attrs[key] = value
            return "h5 attribute", (key,)
        ours = [name for name in names if re.search(r"indptr|indices|data$|shape|barcodes|index|spatial", name)]
        name = rng.choice(ours if ours and rng.random() < 0.7 else names)
        fields = (name.rpartition("/")[2],)
        data = file[name][()]
        options = dict(file[name].attrs)

        def put(value: Any) -> None:
            del file[name]
            made = file.create_dataset(name, data=value)
            for key, attribute in options.items():
                made.attrs[key] = attribute

        if kind == "attribute":
            node = rng.choice([file, *(file[each] for each in names), *(file[each].parent for each in names)])
            keys = sorted(node.attrs)
            if keys:
                key = rng.choice(keys)
                fields = (key, node.name.strip("/"))  # what has the attribute is found as well
                if rng.random() < 0.5:
                    del node.attrs[key]
                else:
                    node.attrs[key] = rng.choice([np.int64(-1), "other", np.zeros(3)])
        elif kind == "drop":
            del file[name]
        elif kind == "group":
            del file[name]
            file.create_group(name)
        elif kind == "link":
            del file[name]
            file[name] = h5py.SoftLink("/nowhere") if rng.random() < 0.5 else h5py.ExternalLink("nowhere.h5", "/x")
        elif kind == "huge":
            del file[name]
            file.create_dataset(name, shape=(2**37,), dtype="i8", chunks=(2**20,), compression="gzip")
        elif np.ndim(data) == 0:
            put(rng.choice([-1, 0, 2**40]) if np.asarray(data).dtype.kind in "iuf" else "odd")
        elif kind == "length":
            put(data[: len(data) // 2] if rng.random() < 0.5 else np.concatenate([data, data[:1]]))
        elif kind == "axes":
            put(data[None] if rng.random() < 0.5 else data.ravel()[:0])
        elif kind == "dtype":
            put(
                np.array([f"v{i}" for i in range(len(data))], "S") if data.dtype.kind in "iuf" else np.arange(len(data))
            )
        elif data.dtype.kind in "iuf" and data.size:
            data = data.astype(np.float64) if kind == "nan" else data
            value = rng.choice([np.nan, np.inf, 0.5]) if kind == "nan" else rng.choice([-1, -5, 0, 10**6, 2**31 - 1])
            if data.dtype.kind == "u":
                value = abs(value)
            data.flat[rng.randrange(data.size)] = value
            put(data)
        elif data.size:
            data = data.copy()
            data.flat[rng.randrange(data.size)] = rng.choice([b"", b"\xff\xfe", data.flat[0]])
            put(data)
    return f"h5 {kind}", tuple(filter(None, fields))


def parquet_edit(path: Path, rng: Random) -> Damage:
    import pandas as pd
    import pyarrow as pa
    import pyarrow.parquet as pq

    kind = rng.choice(
        ["value", "value", "null", "drop", "text", "rows", "empty", "twice", "nested", "bytes", "geo", "checks"]
    )
    table = pq.read_table(path)
    column = rng.randrange(table.num_columns)
    name, row = table.column_names[column], rng.randrange(max(1, table.num_rows))
    values = table.column(column).to_pylist()
    if kind == "value":
        is_number = pa.types.is_floating(table.schema.field(column).type)
        odd = rng.choice([float("nan"), float("inf"), -1e12, 1e30]) if is_number else None
        if is_number:
            values[row] = odd
            table = table.set_column(column, name, pa.array(values, pa.float64()))
        else:
            kind = "null"
    if kind == "null":
        values[row] = None
        table = table.set_column(column, name, pa.array(values, table.schema.field(column).type))
    elif kind == "drop":
        table = table.drop_columns([name])
    elif kind == "text":
        table = table.set_column(column, name, pa.array([f"v{i}" for i in range(len(values))]))
    elif kind == "bytes":
        table = table.set_column(column, name, pa.array([b"\xff\xfe" for _ in values]))
    elif kind == "nested":
        table = table.set_column(column, name, pa.array([[1, 2]] * len(values)))
    elif kind == "rows":
        table = table.slice(0, max(1, len(values) // 2))
    elif kind == "empty":
        table = table.slice(0, 0)
    elif kind == "twice":
        table = pa.concat_tables([table, table.slice(0, 1)])
    elif kind == "geo":
        metadata = dict(table.schema.metadata or {})
        for key in metadata:
            metadata[key] = rng.choice([b"", b"{", b'{"a": 1}', metadata[key].replace(b"2", b"9")])
        table = table.replace_schema_metadata(metadata)
    pq.write_table(table, path, write_page_checksum=kind == "checks")
    if kind == "checks":
        return flip(path, rng)
    del pd
    if kind == "geo":
        return "parquet geo", tuple(key.decode() for key in table.schema.metadata or ())
    of_column = kind in {"value", "null", "drop", "text", "bytes", "nested"}
    return f"parquet {kind}", (name,) if of_column else ()


TAGS = {
    256: "ImageWidth",
    257: "ImageLength",
    258: "BitsPerSample",
    259: "Compression",
    262: "Photometric",
    277: "Samples",
}
TAGS |= {
    278: "RowsPerStrip",
    322: "TileWidth",
    323: "TileLength",
    317: "Predictor",
    338: "ExtraSamples",
    339: "SampleFormat",
}
TAGS |= {
    273: "StripOffsets",
    279: "StripByteCounts",
    324: "TileOffsets",
    325: "TileByteCounts",
    284: "Planar",
    330: "SubIFDs",
}


def tiff_edit(path: Path, rng: Random) -> str:
    """A value of a directory, its count, or where it points."""
    import tifffile

    content = bytearray(path.read_bytes())
    with tifffile.TiffFile(path) as file:
        big = file.is_bigtiff
        pages = list(file.pages)
        page = rng.choice(pages)
        tags = [tag for tag in page.tags.values() if tag.code in TAGS or rng.random() < 0.2]
        tag = rng.choice(tags)
        offset, value_at, count, start = tag.offset, tag.valueoffset, tag.count, page.offset
        n_tags = len(page.tags)
    kind = rng.choice(["value", "value", "value", "value", "count", "type", "loop", "missing", "offset"])
    size = {1: 1, 2: 1, 3: 2, 4: 4, 5: 8, 6: 1, 7: 1, 12: 8, 13: 4, 16: 8, 18: 8}.get(int(tag.dtype), 4)
    if kind == "value":
        value = rng.choice([0, 1, 3, 7, 2**16 - 1, 2**31 - 1, 2**size, 34712, 5, 6, 8, 64, 300_000])
        content[value_at : value_at + size] = int(value % 2 ** (8 * size)).to_bytes(size, "little")
    elif kind == "count":
        width = 8 if big else 4
        content[offset + 4 : offset + 4 + width] = int(rng.choice([0, 1, 2, 2**31 - 1, count + 1])).to_bytes(
            width, "little"
        )
    elif kind == "type":
        content[offset + 2 : offset + 4] = struct.pack("<H", rng.choice([0, 1, 2, 5, 11, 12, 999]))
    elif kind == "loop":
        at = start + (8 + 20 * n_tags if big else 2 + 12 * n_tags)
        target = rng.choice([pages[0].offset, start, len(content) + 10, 3, 2**31 - 2])
        content[at : at + (8 if big else 4)] = int(target).to_bytes(8 if big else 4, "little")
    elif kind in {"missing", "offset"}:
        codes = (279, 325) if kind == "missing" else (273, 324)
        found = next((tag for tag in page.tags.values() if tag.code in codes), None)
        if found is not None:
            width = {3: 2, 4: 4, 16: 8}[int(found.dtype)]
            which = found.valueoffset + width * rng.randrange(found.count)
            number = 0 if kind == "missing" else rng.choice([0, len(content) - 1, 1])
            content[which : which + width] = number.to_bytes(width, "little")
    path.write_bytes(content)
    return f"tiff {kind}"


def zip_edit(path: Path, rng: Random) -> Damage:
    kind = rng.choice(["encrypted", "names", "drop", "member", "method", "twice"])
    with zipfile.ZipFile(path) as archive:
        members = {info.filename: archive.read(info) for info in archive.infolist()}
    name = rng.choice(sorted(members))
    if kind == "drop":
        del members[name]
    elif kind == "member":
        at = rng.randrange(max(1, len(members[name])))
        members[name] = rng.choice([b"", rng.randbytes(40), members[name][:at], members[name].replace(b"2", b"9")])
    made = io.BytesIO()
    with zipfile.ZipFile(made, "w", zipfile.ZIP_STORED) as archive:
        for each, content in members.items():
            prefix = rng.choice(["/", "../../", "C:\\"]) if kind == "names" and each == name else ""
            archive.writestr(prefix + each, content)
        if kind == "twice":
            import warnings

            with warnings.catch_warnings():
                warnings.simplefilter("ignore")
                archive.writestr(name, b"again")
    content = bytearray(made.getvalue())
    if kind in {"encrypted", "method"}:
        for signature, at in ((b"PK\x03\x04", 6), (b"PK\x01\x02", 8)):
            place = content.find(signature)
            while place >= 0:
                if kind == "encrypted":
                    content[place + at] |= 1
                else:
                    content[place + at + 2] = 99
                place = content.find(signature, place + 4)
    path.write_bytes(content)
    if kind not in {"names", "drop", "member"}:
        return f"zip {kind}", ()
    is_chunk = re.fullmatch(r"[\d.]+", name.rpartition("/")[2]) is not None  # of an array, which is what has a name
    return f"zip {kind}", (name, name.rpartition("/")[0]) if is_chunk else (name,)


def gz_edit(path: Path, rng: Random) -> Damage:
    """Damage inside of what is compressed."""
    import gzip

    inner = path.with_suffix("")
    inner.write_bytes(gzip.decompress(path.read_bytes()))
    what, fields = _with_fields((text_edit if is_text(inner) else flip)(inner, rng))
    path.write_bytes(gzip.compress(inner.read_bytes()))
    inner.unlink()
    return f"gz {what}", fields


def safetensors_edit(path: Path, rng: Random) -> Damage:
    content = path.read_bytes()
    length = struct.unpack("<Q", content[:8])[0]
    header, body = json.loads(content[8 : 8 + length]), content[8 + length :]
    name = rng.choice([key for key in header if key != "__metadata__"])
    kind = rng.choice(["drop", "name", "shape", "dtype", "offsets", "nan", "length", "squeeze", "wide"])
    renamed: tuple[str, ...] = ()
    if kind == "drop":
        from safetensors.numpy import load, save

        tensors = load(content)
        del tensors[name]
        path.write_bytes(save(tensors))
        return "safetensors drop", (name,)
    if kind in {"nan", "squeeze", "wide"}:
        from safetensors.numpy import load, save

        tensors = load(content)
        array = np.array(tensors[name])
        if kind == "nan" and array.dtype.kind == "f" and array.size:
            array.flat[0] = rng.choice([np.nan, np.inf])
        elif kind == "squeeze":
            array = array.ravel()[: max(0, array.size - 1)].copy()
        else:
            array = array[None].astype(rng.choice(["f8", "i4", "f2"]))
        path.write_bytes(save(tensors | {name: array}))
        return f"safetensors {kind}", (name,)
    if kind == "name":
        new = rng.choice(["other", "", "weight", "a" * 5000])
        header[new] = header.pop(name)
        renamed = (new,) if 0 < len(new) < 100 else ()
    elif kind == "shape":
        header[name]["shape"] = rng.choice([[], [1], [2**40], [-1], "x", header[name]["shape"][::-1]])
    elif kind == "dtype":
        header[name]["dtype"] = rng.choice(["F64", "I8", "X", "BF16", "BOOL", "I32"])
    elif kind == "offsets":
        header[name]["data_offsets"] = rng.choice([[0, 0], [0, 2**50], [5, 1], "x"])
    text = json.dumps(header).encode()
    size = len(text) if kind != "length" else rng.choice([0, 2**63, len(text) - 5])
    path.write_bytes(struct.pack("<Q", size) + text + body)
    return f"safetensors {kind}", () if kind == "length" else (name, *renamed)


def oversize(path: Path, rng: Random) -> str:
    """A small file that unpacks to gigabytes, in the format of its name."""
    suffix = next((end for end in OVERSIZE if path.name.endswith(end)), None)
    if suffix is None:
        return truncate(path, rng)
    shutil.copyfile(OVERSIZE[suffix](), path)
    return f"oversize {suffix}"


GENERIC: list[Callable[[Path, Random], Damage]] = [
    truncate,
    truncate,
    flip,
    flip,
    flip,
    zeros,
    zeros,
    empty,
    remove,
    dangling,
]
GENERIC += [folder_instead, garbage, garbage, append, swap]


def _with_fields(damage: Damage) -> tuple[str, tuple[str, ...]]:
    return (damage, ()) if isinstance(damage, str) else damage


def mutate(folder: Path, rng: Random, *, huge: bool) -> tuple[str, str, tuple[str, ...]]:
    """Damage one file of a folder; its name, the kind of damage, and what of the file was damaged, if it is known."""
    # A folder may hold many files of one kind (pictures): kinds are drawn first.
    by_kind: dict[str, list[Path]] = {}
    for file in files_of(folder):
        by_kind.setdefault(re.sub(r"\d+", "", file.name), []).append(file)
    path = rng.choice(by_kind[rng.choice(sorted(by_kind))])
    own = {".h5": h5_edit, ".h5ad": h5_edit, ".parquet": parquet_edit, ".zip": zip_edit, ".gz": gz_edit}
    own |= dict.fromkeys(TIFF, tiff_edit) | dict.fromkeys(JSON, json_edit) | {".safetensors": safetensors_edit}
    edits = [own[path.suffix]] if path.suffix in own else []
    edits += [text_edit] if is_text(path) else []
    if huge and rng.random() < 0.03:
        damage: Damage = oversize(path, rng)
    else:
        damage = rng.choice(edits if edits and rng.random() < 0.6 else GENERIC)(path, rng)
    return os.path.relpath(path, folder), *_with_fields(damage)
