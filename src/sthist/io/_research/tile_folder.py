"""Folders of tiles with no slide."""

from __future__ import annotations

import os
import re
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path, PurePosixPath
from typing import TYPE_CHECKING, Any, Literal

import numpy as np

from sthist import _store
from sthist._reading import parse_json, reader
from sthist._sample.samples import require_one_spelling
from sthist._settings import logger, settings
from sthist.io._files import checks

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    import pandas as pd
    from anndata import AnnData

SUFFIXES = {".png", ".jpg", ".jpeg", ".tif", ".tiff", ".bmp", ".webp"}
IGNORED = {"__MACOSX"}
SAME_MPP = 0.02
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


@reader
def tile_folder(
    path: str | Path,
    *,
    mpp: float | None = None,
    labels: Literal["folder"] | str | Path | pd.DataFrame | None = "folder",
    levels: Sequence[str | None] | None = None,
    columns: Mapping[str, str] | None = None,
    patient: str | None = None,
    broken: Literal["error", "leave out"] = "error",
) -> AnnData:
    r"""List a folder of tiles that come without their slide, as BRACS, SPIDER, NCT-CRC or MHIST do.

    Pixels stay in their files: :class:`sthist.tiles.FolderReader` reads them, at any µm/px and size. Here, all headers
    are read, so that what is broken is found before anything expensive begins.

    Parameters
    ----------
    path
        The folder. Images are PNG, JPEG, TIFF, BMP or WebP at any depth; hidden files and folders are passed over, and
        so are files of other kinds, which are counted.
    mpp
        µm per pixel of all images, which the files do not state: 0.25 for BRACS, 0.5 for SPIDER and NCT-CRC. May be
        left out where the table has a column ``mpp``; both have to agree within 2 %.
    labels
        ``"folder"``: by folder, see ``levels``. Or a table, a frame or a file (csv, tsv, json with a list of objects),
        with one row per image: then, images that it does not list are left out. None for no labels.
    levels
        What the folders from ``path`` on to an image mean, ``"split"``, ``"label"``, ``"patient"``, ``"slide"`` or None
        for nothing, as in ``("patient", "label")``. By default ``("label",)``, or ``("split", "label")`` where the
        upper ones are called train, val and test; folders around all of that do not count.
    columns
        Which columns of the table hold ``"file"``, ``"label"``, ``"patient"``, ``"slide"``, ``"split"`` and ``"mpp"``,
        as in ``{"label": "Majority Vote Label", "patient": "slide_id"}``. By default those that are called so or nearly
        so. Files are named by their path in ``path`` or by their name, with or without the ending.
    patient
        A regular expression whose first group is the patient in a path, such as ``r"BRACS_(\d+)_"``.
    broken
        ``"leave out"`` images that cannot be read, with a warning.

    Returns
    -------
    An AnnData with one row per image, sorted by path, and no genes. ``obs``, indexed by path: ``file`` (in ``path``),
    ``height`` and ``width`` (int64, pixels), ``mpp`` (float64) and, where they are known, ``label``, ``patient``,
    ``slide`` and ``split``, categorical, NaN for none. ``uns["sthist"]["tile_folder"]`` has the ``root`` and what made
    it.

    Raises
    ------
    FileNotFoundError
        If there is no such folder or table, or no image in it.
    KeyError
        If the table has no such column.
    ValueError
        If the µm/px is not known; if images are broken, or are not three colours of 8 bits (CMYK and palettes are
        converted, and what is transparent is white); if it cannot be told what the folders mean; if the table names an
        image that is not there, twice, or by a name that several have; if a patient has two spellings.

    Notes
    -----
    Layouts: BRACS, Brancati et al., Database 2022; SPIDER, Nechaev et al., arXiv 2503.02876; NCT-CRC-HE-100K, Kather et
    al., Zenodo 2018; MHIST, Wei et al., AIME 2021.

    Examples
    --------
    >>> import tempfile, pathlib, numpy as np, sthist
    >>> from PIL import Image
    >>> root = pathlib.Path(tempfile.mkdtemp())
    >>> for name in ("train/tumour/a.png", "test/stroma/b.png"):
    ...     (root / name).parent.mkdir(parents=True)
    ...     Image.fromarray(np.full((64, 64, 3), 200, np.uint8)).save(root / name)
    >>> tiles = sthist.io.tile_folder(root, mpp=0.5)
    >>> tiles.obs[["split", "label", "mpp"]].values.tolist()
    [['test', 'stroma', 0.5], ['train', 'tumour', 0.5]]
    """
    import anndata as ad
    import pandas as pd

    root = Path(path).absolute()
    if broken not in {"error", "leave out"}:
        raise ValueError(f"broken is {broken!r}; it is 'error' or 'leave out'.")
    files, n_others = _images(root)
    # By path: label, patient, slide, split and mpp, those that are known.
    facts: dict[str, dict[str, Any]] = {file: {} for file in files}
    source = str(root)
    if isinstance(labels, str) and labels == "folder":
        facts = _by_folder(root, files, levels)
    elif labels is not None:
        facts, source = _by_table(root, files, labels, columns)
    if len(facts) < len(files):
        logger.warning(
            f"{root}: {len(files) - len(facts)} of {len(files)} images are left out: {source} does not list them."
        )
    if patient is not None:
        _find_patients(facts, patient)
    scales = _scales(facts, source, mpp)
    sizes = _sizes(root, list(facts), broken)
    obs = pd.DataFrame.from_dict(sizes, orient="index", columns=["height", "width"], dtype=np.int64)
    obs.insert(0, "file", list(sizes))
    obs["mpp"] = np.array([scales[file] for file in sizes], np.float64)
    for name in MEANINGS:
        values = [facts[file].get(name) for file in sizes]
        if any(value is not None for value in values):
            obs[name] = pd.Categorical(values)
    require_one_spelling([row.get("patient") for row in facts.values()])
    _say(root, obs, n_others)
    made = _store.provenance("io.tile_folder", root=str(root), labels=source, n_other_files=n_others)
    return ad.AnnData(obs=obs, uns={"sthist": {"tile_folder": made, "sample": {"name": root.name}}})


def _images(root: Path) -> tuple[list[str], int]:
    """Paths of the images in a folder, sorted, and the number of other files."""
    if not root.is_dir():
        raise FileNotFoundError(f"There is no folder {root}.")
    files: list[Path] = []
    for folder, folders, names in os.walk(root):
        folders[:] = [name for name in folders if not name.startswith(".") and name not in IGNORED]
        files += [Path(folder) / name for name in names if not name.startswith(".")]
    images = sorted(file.relative_to(root).as_posix() for file in files if file.suffix.lower() in SUFFIXES)
    n_others = len(files) - len(images)
    if not images:
        raise FileNotFoundError(f"{root} has no images ({', '.join(sorted(SUFFIXES))}), but {n_others} other files.")
    return images, n_others


def _by_folder(root: Path, files: list[str], levels: Sequence[str | None] | None) -> dict[str, dict[str, Any]]:
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
    return {
        file: {name: part for name, part in zip(meanings, parts[n_around:], strict=True) if name}
        for file, parts in folders.items()
    }


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


def _by_table(
    root: Path, files: list[str], table: Any, columns: Mapping[str, str] | None
) -> tuple[dict[str, dict[str, Any]], str]:
    """What a table says of the images that it lists."""
    import pandas as pd

    frame, source = _read_table(table)
    column_of = _columns(frame, source, columns)
    paths = _paths(root, files, frame[column_of["file"]], source, column_of["file"])
    if "mpp" in column_of:
        _require_mpp(frame[column_of["mpp"]], source, column_of["mpp"])
    rows: dict[str, dict[str, Any]] = {path: {} for path in sorted(paths)}
    for name, column in column_of.items():
        if name != "file":
            for path, value in zip(paths, frame[column], strict=True):
                if not (pd.isna(value) or not str(value).strip()):
                    rows[path][name] = float(value) if name == "mpp" else str(value).strip()
    return rows, source


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
            records = parse_json(path)
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
    named = dict(columns or {})
    unknown = sorted(set(named) - set(SPELLINGS))
    if unknown:
        raise ValueError(f"columns= names {unknown[0]!r}; it takes {', '.join(map(repr, SPELLINGS))}.")
    plain = {"_".join(column.casefold().replace("-", " ").replace("_", " ").split()): column for column in there}
    column_of = {}
    for name, spellings in SPELLINGS.items():
        column = named.get(name) or next((plain[spelling] for spelling in spellings if spelling in plain), None)
        if column in there:
            column_of[name] = column
        elif column is not None:
            raise KeyError(f"{source} has no column {column!r}, which columns= names; its columns are {there[:12]}.")
        elif name in {"file", "label"}:
            raise KeyError(
                f"{source} has no column {name!r} (nor {', '.join(map(repr, spellings[1:4]))}); its columns are "
                f"{there[:12]}. Say which one it is with columns={{{name!r}: ...}}."
            )
    return column_of


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
        matches = {file for file in known.get(inner, ()) if "/" in inner or "/" not in file}
        if matches:
            return [inner] if inner in matches else sorted(matches)
    return []


def _find_patients(facts: dict[str, dict[str, Any]], pattern: str) -> None:
    try:
        expression = re.compile(pattern)
    except re.error as error:
        raise ValueError(f"patient={pattern!r} is no regular expression: {error}.") from None
    if not expression.groups:
        raise ValueError(f"patient={pattern!r} has no group: put what names the patient in parentheses.")
    for file, row in facts.items():
        match = expression.search(file)
        if match is None or not match[1]:
            raise ValueError(f"patient={pattern!r} finds no patient in the path {file!r}.")
        row["patient"] = match[1]


def _scales(facts: dict[str, dict[str, Any]], source: str, mpp: float | None) -> dict[str, float]:
    """µm per pixel of each image."""
    scales = {}
    if mpp is not None and not (np.isfinite(mpp) and mpp > 0):
        raise ValueError(f"mpp is {mpp!r}; the µm per pixel are a positive number.")
    for file, row in facts.items():
        stated = row.get("mpp", mpp)
        if stated is None:
            raise ValueError(
                f"The µm per pixel of {file!r} is not known: give it for all images with mpp=, or in a column 'mpp' of "
                "a table with labels=. It is stated where the tiles come from: 0.25 is about 40x, 0.5 about 20x."
            )
        if mpp is not None and abs(stated / mpp - 1) > SAME_MPP:
            raise ValueError(
                f"{source} states {stated:.4g} µm/px for {file!r} in its column 'mpp', but mpp={mpp:.4g}. Leave "
                "out the wrong one."
            )
        scales[file] = float(stated)
    return scales


def _sizes(root: Path, files: list[str], broken: str) -> dict[str, tuple[int, int]]:
    """Height and width of the images that are whole and three colours of 8 bits."""
    with ThreadPoolExecutor(settings.threads) as pool:
        headers = dict(zip(files, pool.map(lambda file: _header(root / file), files), strict=True))
    wrong = {file: header for file, header in headers.items() if isinstance(header, str)}
    if wrong:
        first = next(iter(wrong))
        message = f"{len(wrong)} of {len(files)} images in {root} cannot be used: {_few(list(wrong))}. The first: "
        message += wrong[first]
        if broken == "error" or len(wrong) == len(files):
            way_out = ", or pass broken='leave out'" if len(wrong) < len(files) else ""
            raise ValueError(f"{message} Mend or remove them{way_out}.")
        logger.warning("%s They are left out.", message)
    return {file: header for file, header in headers.items() if not isinstance(header, str)}


def _header(path: Path) -> tuple[int, int] | str:
    """Height and width of an image, or what is wrong with it."""
    try:
        (n_channels, height, width), dtype = checks.require_picture(path)
    except (ValueError, ImportError) as error:
        return str(error)
    if n_channels != 3 or dtype != np.uint8:
        return (
            f"{path} has {n_channels} channel{'s' if n_channels > 1 else ''} of {dtype}; three colours of 8 bits are "
            "needed."
        )
    return height, width


def _few(names: list[str]) -> str:
    return ", ".join(map(repr, names[:5])) + (f" and {len(names) - 5} more" if len(names) > 5 else "")


def _say(root: Path, obs: pd.DataFrame, n_others: int) -> None:
    """What was found, and what one should look at."""
    classes = f" of {obs['label'].nunique()} classes" if "label" in obs else ""
    logger.info("%s: %d images%s; %d other files are passed over.", root, len(obs), classes, n_others)
    if "label" in obs and obs["label"].isna().any():
        logger.warning("%d of %d images have no label.", int(obs["label"].isna().sum()), len(obs))
    names = obs["file"].map(lambda file: PurePosixPath(file).name)
    twice = names[names.duplicated(keep=False)]
    if len(twice):
        same = obs["file"][names == twice.iloc[0]].tolist()
        logger.warning(
            f"{twice.nunique()} names of images are in several folders, such as {_few(same)}: are they the same image? "
            "That leaks from training to test."
        )
