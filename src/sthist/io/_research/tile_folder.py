"""Folders of tiles with no slide."""

from __future__ import annotations

import os
import re
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path, PurePosixPath
from typing import TYPE_CHECKING, Literal

import numpy as np

from sthist import _store
from sthist._sample.samples import require_one_spelling
from sthist._settings import logger, settings
from sthist.io._files import checks
from sthist.io._research.tile_labels import Facts, by_folder, by_table

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    import pandas as pd
    from anndata import AnnData

SUFFIXES = {".png", ".jpg", ".jpeg", ".tif", ".tiff", ".bmp", ".webp"}
IGNORED = {"__MACOSX"}
SAME_MPP = 0.02


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
    if isinstance(labels, str) and labels == "folder":
        facts = by_folder(root, files, levels)
    elif labels is None:
        facts = Facts({file: {} for file in files}, str(root))
    else:
        facts = by_table(root, files, labels, columns)
    if labels is not None and len(facts.rows) < len(files):
        logger.warning(
            f"{root}: {len(files) - len(facts.rows)} of {len(files)} images are left out: {facts.source} does not list "
            "them."
        )
    if patient is not None:
        _find_patients(facts, patient)
    scales = _scales(facts, mpp)
    sizes = _sizes(root, list(facts.rows), broken)
    kept = list(sizes)
    obs = pd.DataFrame(
        {
            "file": kept,
            "height": np.array([sizes[file][0] for file in kept], np.int64),
            "width": np.array([sizes[file][1] for file in kept], np.int64),
            "mpp": np.array([scales[file] for file in kept], np.float64),
        },
        index=pd.Index(kept, dtype=object),
    )
    for name in ("label", "patient", "slide", "split"):
        values = [facts.rows[file].get(name) for file in kept]
        if any(value is not None for value in values):
            obs[name] = pd.Categorical(values)
    require_one_spelling([row.get("patient") for row in facts.rows.values()])
    _say(root, obs, n_others)
    made = _store.provenance("io.tile_folder", root=str(root), labels=facts.source, n_other_files=n_others)
    return ad.AnnData(obs=obs, uns={"sthist": {"tile_folder": made, "sample": {"name": root.name}}})


def _images(root: Path) -> tuple[list[str], int]:
    """Paths of the images in a folder, sorted, and the number of other files."""
    if not root.is_dir():
        raise FileNotFoundError(f"There is no folder {root}.")
    found, n_others = [], 0
    for folder, folders, names in os.walk(root):
        folders[:] = [name for name in folders if not name.startswith(".") and name not in IGNORED]
        for name in names:
            if name.startswith("."):
                continue
            if Path(name).suffix.lower() in SUFFIXES:
                found.append((Path(folder) / name).relative_to(root).as_posix())
            else:
                n_others += 1
    if not found:
        raise FileNotFoundError(f"{root} has no images ({', '.join(sorted(SUFFIXES))}), but {n_others} other files.")
    return sorted(found), n_others


def _find_patients(facts: Facts, pattern: str) -> None:
    try:
        expression = re.compile(pattern)
    except re.error as error:
        raise ValueError(f"patient={pattern!r} is no regular expression: {error}.") from None
    if not expression.groups:
        raise ValueError(f"patient={pattern!r} has no group: put what names the patient in parentheses.")
    for file, row in facts.rows.items():
        match = expression.search(file)
        if match is None or not match[1]:
            raise ValueError(f"patient={pattern!r} finds no patient in the path {file!r}.")
        row["patient"] = match[1]


def _scales(facts: Facts, mpp: float | None) -> dict[str, float]:
    """µm per pixel of each image."""
    scales = {}
    if mpp is not None and not (np.isfinite(mpp) and mpp > 0):
        raise ValueError(f"mpp is {mpp!r}; the µm per pixel are a positive number.")
    for file, row in facts.rows.items():
        stated = row.get("mpp", mpp)
        if stated is None:
            raise ValueError(
                f"The µm per pixel of {file!r} is not known: give it for all images with mpp=, or in a column 'mpp' of "
                "a table with labels=. It is stated where the tiles come from: 0.25 is about 40x, 0.5 about 20x."
            )
        if mpp is not None and abs(stated / mpp - 1) > SAME_MPP:
            raise ValueError(
                f"{facts.source} states {stated:.4g} µm/px for {file!r} in its column 'mpp', but mpp={mpp:.4g}. Leave "
                "out the wrong one."
            )
        scales[file] = float(stated)
    return scales


def _sizes(root: Path, files: list[str], broken: str) -> dict[str, tuple[int, int]]:
    """Height and width of the images that are whole and three colours of 8 bits."""
    with ThreadPoolExecutor(settings.threads) as pool:
        headers = list(pool.map(lambda file: _header(root / file), files))
    wrong = {file: header for file, header in zip(files, headers, strict=True) if isinstance(header, str)}
    if wrong:
        first = next(iter(wrong))
        told = (
            f"{len(wrong)} of {len(files)} images in {root} cannot be used: {_few(list(wrong))}. The first: "
            f"{wrong[first]}"
        )
        if broken == "error" or len(wrong) == len(files):
            raise ValueError(
                f"{told} Mend or remove "
                f"them{', or pass broken=' + repr('leave out') if len(wrong) < len(files) else ''}."
            )
        logger.warning("%s They are left out.", told)
    return {file: header for file, header in zip(files, headers, strict=True) if not isinstance(header, str)}


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
