"""What is known of the tiles of a folder: from the folders that they lie in, or from a table."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import TYPE_CHECKING, Any

import numpy as np

from sthist.io._files import checks

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    import pandas as pd

SPLITS = {"train", "training", "val", "valid", "validation", "test", "testing"}
MEANINGS = ("label", "patient", "slide", "split")

# Names of columns, in small letters and with _ for blanks.
SPELLINGS = {
    "file": ("file", "filename", "file_name", "image", "image_name", "image_path", "path", "name", "patch", "tile"),
    "label": ("label", "class", "class_name", "category"),
    "patient": ("patient", "patient_id", "case", "case_id"),
    "slide": ("slide", "slide_id", "slide_name", "wsi"),
    "split": ("split", "subset", "partition", "set"),
    "mpp": ("mpp", "um_per_px", "um_per_pixel", "microns_per_pixel"),
}


@dataclass(frozen=True)
class Facts:
    """What is known of images."""

    rows: dict[str, dict[str, Any]]  # by path: label, patient, slide, split and mpp, those that are known
    source: str  # where it is from


def by_folder(root: Path, files: list[str], levels: Sequence[str | None] | None) -> Facts:
    """What the folders of images say."""
    folders = {file: PurePosixPath(file).parts[:-1] for file in files}
    depths = {len(parts): file for file, parts in folders.items()}
    if len(depths) > 1:
        shallow, deep = depths[min(depths)], depths[max(depths)]
        raise ValueError(
            f"{root}: images lie at several depths, such as {shallow!r} and {deep!r}: their folders cannot be labels. "
            "Give a table with labels=, or labels=None."
        )
    meanings, n_around = _meanings(root, files[0], list(folders.values()), levels)
    rows = {
        file: {name: part for name, part in zip(meanings, parts[n_around:], strict=True) if name}
        for file, parts in folders.items()
    }
    return Facts(rows, str(root))


def _meanings(
    root: Path, example: str, folders: list[tuple[str, ...]], levels: Sequence[str | None] | None
) -> tuple[list[str | None], int]:
    """What each level of folders means, and how many levels around them mean nothing."""
    depth = len(folders[0])
    if levels is not None:
        named = [level for level in levels if level]
        if len(levels) != depth or len(set(named)) < len(named) or not set(named) <= set(MEANINGS):
            raise ValueError(
                f"levels is {tuple(levels)!r}; it names each of the {depth} folders in {example!r}, as one of "
                f"{', '.join(map(repr, MEANINGS))} or None, and none twice."
            )
        return list(levels), 0
    if depth == 0:
        raise ValueError(
            f"{root}: the images lie in no folders that could be labels, such as {example!r}. Give a table with "
            "labels=, or labels=None."
        )
    names = [{parts[level] for parts in folders} for level in range(depth)]
    inner = ["split", "label"] if depth > 1 and {name.casefold() for name in names[-2]} <= SPLITS else ["label"]
    around = names[: depth - len(inner)]
    if any(len(there) > 1 for there in around):
        raise ValueError(
            f"{root}: what do the {depth} folders in {example!r} mean? Name them with levels=, such as "
            "levels=('patient', 'label'), or give a table with labels=."
        )
    return list(inner), len(around)


def by_table(root: Path, files: list[str], table: Any, columns: Mapping[str, str] | None) -> Facts:
    """What a table says of the images that it lists."""
    import pandas as pd

    frame, source = _read_table(table)
    found = _columns(frame, source, columns)
    paths = _paths(root, files, frame[found["file"]], source, found["file"])
    if "mpp" in found:
        _require_mpp(frame[found["mpp"]], source, found["mpp"])
    rows: dict[str, dict[str, Any]] = {path: {} for path in sorted(paths)}
    for name, column in found.items():
        if name != "file":
            for path, value in zip(paths, frame[column], strict=True):
                if not (pd.isna(value) or not str(value).strip()):
                    rows[path][name] = float(value) if name == "mpp" else str(value).strip()
    return Facts(rows, source)


def _read_table(table: Any) -> tuple[pd.DataFrame, str]:
    import pandas as pd

    if isinstance(table, pd.DataFrame):
        source, frame = "the table labels=", table.reset_index() if table.index.name is not None else table
    elif not isinstance(table, str | Path):
        raise TypeError(f"labels= is 'folder', None, a file or a DataFrame, not {type(table).__name__}.")
    else:
        path, source = Path(table), str(table)
        if not path.is_file():
            raise FileNotFoundError(f"There is no table of labels {path}.")
        if path.suffix.lower() == ".json":
            with checks.reading(path):
                records = json.loads(path.read_text(encoding="utf-8-sig"))
            if not isinstance(records, list) or not all(isinstance(record, dict) for record in records):
                raise ValueError(f"{path} should be a list of objects, one for each image.")
            frame = pd.DataFrame.from_records(records)
        else:
            with path.open(encoding="utf-8-sig", errors="replace") as file:
                separator = max(",;\t", key=file.readline().count)
            frame = checks.read_csv(path, [], dtype=str, sep=separator, encoding="utf-8-sig")
    if frame.empty:
        raise ValueError(f"{source} has no rows.")
    return frame, source


def _columns(frame: pd.DataFrame, source: str, columns: Mapping[str, str] | None) -> dict[str, str]:
    """The column of each fact that the table has."""
    there = [str(column) for column in frame.columns]
    given = dict(columns or {})
    unknown = sorted(set(given) - set(SPELLINGS))
    if unknown:
        raise ValueError(f"columns= names {unknown[0]!r}; it takes {', '.join(map(repr, SPELLINGS))}.")
    plain = {"_".join(column.casefold().replace("-", " ").replace("_", " ").split()): column for column in there}
    found = {}
    for name, spellings in SPELLINGS.items():
        column = given.get(name) or next((plain[spelling] for spelling in spellings if spelling in plain), None)
        if column is not None and column not in there:
            raise KeyError(f"{source} has no column {column!r}, which columns= names; its columns are {there[:12]}.")
        if column is not None:
            found[name] = column
        elif name in {"file", "label"}:
            raise KeyError(
                f"{source} has no column {name!r} (nor {', '.join(map(repr, spellings[1:4]))}); its columns are "
                f"{there[:12]}. Say which one it is with columns={{{name!r}: ...}}."
            )
    return found


def _require_mpp(values: pd.Series, source: str, column: str) -> None:
    import pandas as pd

    stated = values.notna() & (values.astype(str).str.strip() != "")
    numbers = pd.to_numeric(values[stated], errors="coerce").to_numpy(np.float64)
    wrong = np.flatnonzero(~(np.isfinite(numbers) & (numbers > 0)))
    if len(wrong):
        row = int(np.flatnonzero(stated)[wrong[0]])
        raise ValueError(
            f"{source}: column {column!r} should hold positive numbers, but has {str(values.iloc[row])!r} in row {row}."
        )


def _paths(root: Path, files: list[str], named: pd.Series, source: str, column: str) -> list[str]:
    """The path of each image that a table names."""
    known: dict[str, set[str]] = {}
    for file in files:
        inner = PurePosixPath(file)
        for key in (file, inner.with_suffix("").as_posix(), inner.name, inner.stem):
            known.setdefault(key, set()).add(file)
    paths: list[str] = []
    lost: list[Any] = []
    seen: dict[str, int] = {}
    for row, value in enumerate(named):
        candidates = _candidates(str(value), set(files), known)
        if len(candidates) > 1:
            raise ValueError(
                f"{source}: {str(value)!r} in column {column!r}, row {row}, may be {candidates[0]!r} or "
                f"{candidates[1]!r}: name images by their path in {root}."
            )
        if not candidates:
            lost.append(value)
            continue
        path = candidates[0]
        if path in seen:
            raise ValueError(
                f"{source} lists the image {path!r} more than once, in rows {seen[path]} and {row} (column {column!r})."
            )
        seen[path] = row
        paths.append(path)
    if lost:
        raise ValueError(
            f"{source}: {len(lost)} of {len(named)} images in column {column!r} are not in {root}, such as "
            f"{str(lost[0])!r}; files there are called like {files[0]!r}. Leave out those rows, or name another column "
            f"with columns={{'file': ...}}."
        )
    return paths


def _candidates(named: str, files: set[str], known: dict[str, set[str]]) -> list[str]:
    """Files that a name may mean: a path in the folder or from further out, or the name of a file alone."""
    parts = PurePosixPath(named.strip().replace("\\", "/")).parts
    if len(parts) == 1:
        return [parts[0]] if parts[0] in files else sorted(known.get(parts[0], ()))
    for start in range(len(parts)):
        inner = "/".join(parts[start:])
        # A name alone says which folder it is in here: that of the table is another one.
        found = {file for file in known.get(inner, ()) if "/" in inner or "/" not in file}
        if found:
            return [inner] if inner in found else sorted(found)
    return []
