"""Abundances or proportions of cell types that another program has estimated, beside the spots that they are of."""

from __future__ import annotations

import re
from pathlib import Path
from typing import TYPE_CHECKING, Literal

import numpy as np

from sthist import _store
from sthist._messages import listed
from sthist._reading import reader
from sthist._sample.verbs import verb
from sthist._settings import logger
from sthist._tables.composition import Quantity, as_composition, composition_columns
from sthist._tables.find import called, find_expression, require_free
from sthist._tables.rows import write_columns
from sthist.io._parts.matrix import position_key, read_frame

if TYPE_CHECKING:
    import pandas as pd
    from anndata import AnnData
    from spatialdata import SpatialData

RESIDUALS = ("res_ss",)
"""Columns of SPOTlight that are no types."""

BARCODE = re.compile(r"(?:^|[_:#.-])([ACGT]{8,})(?:[.-]\d+)*(?:_\d+)?$")
"""Of a spot of Visium in its name: ``AAAC...-1``, also behind the name of a sample, or with the dot that R makes."""

PLACE = re.compile(r"\d+x\d+")


@verb
@reader
def read_composition(
    data: SpatialData | AnnData,
    path: str | Path,
    *,
    table: str | None = None,
    key_added: str = "cell_abundance",
    quantity: Quantity | None = None,
    missing: Literal["error", "nan"] = "error",
    overwrite: bool = False,
) -> None:
    r"""Read how much of each cell type the spots hold, as another program has estimated it.

    A file has a row per spot and a column per cell type, as stereoscope (``W.*.tsv``), cell2location (a table of
    ``obsm``, ``q05`` or ``means``, as csv), RCTD (``weights``) and SPOTlight write them. Where it has the types as
    rows, it is turned, which is logged.

    Parameters
    ----------
    data
        One sample: a SpatialData or an AnnData with the spots.
    path
        csv or tsv, plain or ``.gz``, or parquet. The first column names spots, and R may leave out its name.
    table
        Key of the table of spots; by default the one with genes.
    key_added
        Name of the result.
    quantity
        ``"proportions"``, whose rows sum to 1, or ``"abundances"``; by default it is told from the sums.
    missing
        What becomes of spots that the file lacks: ``"error"`` refuses them, ``"nan"`` leaves them NaN, which no verb
        takes: take them away before going on.
    overwrite
        Replace a result of this name.

    Returns
    -------
    None. Writes into the table, also in the store of a backed object:

    * ``obsm[key_added]``: DataFrame of float64, (n_obs, types);
    * ``uns["sthist"][key_added]``: the file, ``quantity``, how rows were matched (``by``), how many spots the file
      lacks (``missing``), how many of its rows are no spot of the table (``unmatched``), and ``classes``, the types by
      column: prefixes of cell2location (``q05cell_abundance_w_sf_``) are taken off.

    Raises
    ------
    FileNotFoundError, KeyError
        If there is no such file or table.
    ValueError
        If the file is damaged, holds something else than numbers, or values that are negative; if rows named as
        proportions do not sum to 1; if no spot, or not each, is in it, or one is there twice; if two types have one
        name, or the result's name is taken.

    Notes
    -----
    Spots are matched by what fits most of them: their names as they are; barcodes, whatever stands before or behind
    (``AAAC...-1`` is ``AAAC...``); or places on a legacy array, ``10x13``, by name or by ``obs["array_x"]`` and
    ``obs["array_y"]``.

    Formats: stereoscope (github.com/almaan/stereoscope), cell2location 0.1, spacexr 2 (RCTD), SPOTlight 0.1 (whose
    column ``res_ss`` is left out) and 1.

    Examples
    --------
    >>> import pathlib, tempfile, sthist
    >>> sdata = sthist.datasets.toy("visium", size_um=900)
    >>> spots = sdata["table"].obs_names
    >>> path = pathlib.Path(tempfile.mkdtemp()) / "props.tsv"
    >>> _ = path.write_text("\ttumour\tT/NK\n" + "".join(f"{spot}\t0.25\t0.75\n" for spot in spots))
    >>> sthist.io.read_composition(sdata, path, key_added="stereoscope")
    >>> list(sdata["table"].obsm["stereoscope"])
    ['tumour', 'T_NK']
    >>> sdata["table"].uns["sthist"]["stereoscope"]["quantity"]
    'proportions'
    """
    if missing not in ("error", "nan"):
        raise ValueError(f"missing is {missing!r}; it is 'error' or 'nan'.")
    path = Path(path)
    table, adata = find_expression(data, table)
    require_free(adata, called(table), [], [key_added], overwrite=overwrite)
    frame = read_frame(path)
    by, rows = _match(path, frame.index, adata)
    turned, turned_rows = _match(path, frame.columns, adata)
    if (turned_rows >= 0).sum() > (rows >= 0).sum():
        logger.warning("%s has the spots as columns; it is turned.", path)
        frame, by, rows = frame.T, turned, turned_rows
    frame = frame.drop(columns=list(RESIDUALS), errors="ignore")
    _require_matched(path, frame.index, adata, table, rows, missing)
    there = rows >= 0
    composition = as_composition(frame.iloc[rows[there]], str(path), quantity)
    values = np.full((adata.n_obs, len(composition.types)), np.nan)
    values[there] = composition.values
    columns, stored = composition_columns(composition.types, values)
    unmatched = len(frame) - int(there.sum())
    if unmatched:
        logger.info("%s: %d of its %d rows are no spots of the table and are left out.", path, unmatched, len(frame))
    made = _store.provenance(
        "io.read_composition",
        path=str(path),
        quantity=composition.quantity,
        by=by,
        missing=int((~there).sum()),
        unmatched=unmatched,
        **stored,
    )
    write_columns(data, table, adata, key_added, made, obs={}, obsm={key_added: columns})


def _match(path: Path, names: pd.Index, adata: AnnData) -> tuple[str, np.ndarray]:
    """How spots are told by names of a file, and the row of the file of each spot, (n_obs,) int, -1 for none."""
    import pandas as pd

    of_file, of_table = [str(name).strip() for name in names], [str(name).strip() for name in adata.obs_names]
    trials: dict[str, tuple[list[str], list[str]]] = {
        "names": (of_file, of_table),
        "barcodes": (_barcodes(of_file), _barcodes(of_table)),
        "places": (_places(of_file), _table_places(adata) or _places(of_table)),
    }
    best, found = "names", np.full(adata.n_obs, -1)
    for by, (theirs, ours) in trials.items():
        known = pd.Index([*set(ours) - {""}])
        if not len(known):
            continue
        index = pd.Index(theirs)
        mine = index.isin(known)
        if mine.sum() <= (found >= 0).sum():
            continue
        again = index[mine][index[mine].duplicated()]
        if len(again):
            first, second = (names[i] for i in np.flatnonzero(index == again[0])[:2])
            raise ValueError(
                f"{path} has spot {again[0]!r} more than once, as {first!r} and {second!r}. Are several samples in one "
                "file? Keep the rows of this one."
            )
        twice = pd.Series(ours)
        twice = twice[twice.isin(index) & twice.duplicated()]
        if len(twice):
            raise ValueError(
                f"Row {twice.iloc[0]!r} of {path} is several spots of the table, which holds several samples. Read "
                "each by itself, or name the rows of the file as the spots."
            )
        rows = np.flatnonzero(mine)
        best, found = by, np.asarray(np.append(rows, -1)[index[mine].get_indexer(pd.Index(ours))])
    return best, found


def _barcodes(names: list[str]) -> list[str]:
    """Sequences in names, "" for none."""
    return [found[1] if (found := BARCODE.search(name)) else "" for name in names]


def _places(names: list[str]) -> list[str]:
    """Places on an array in names, "" for none."""
    keys = map(position_key, names)
    return [key if PLACE.fullmatch(key) else "" for key in keys]


def _table_places(adata: AnnData) -> list[str]:
    """Places on an array by the columns of a table; none where it has none."""
    if not {"array_x", "array_y"} <= set(adata.obs):
        return []
    xy = adata.obs[["array_x", "array_y"]].to_numpy(np.float64)
    return [f"{x:.0f}x{y:.0f}" for x, y in xy]


def _require_matched(
    path: Path, names: pd.Index, adata: AnnData, table: str | None, rows: np.ndarray, missing: str
) -> None:
    """Refuse a file without any spot of a table, or, unless that is asked for, not with each."""
    lacking, where = rows < 0, called(table)
    where = where[0].lower() + where[1:]
    if lacking.all():
        raise ValueError(
            f"{path} has none of the {len(rows)} spots of {where}: its rows are such as "
            f"{listed(map(str, names[:3]))}, and the spots {listed(map(str, adata.obs_names[:3]))}. Is it "
            "of this sample?"
        )
    if lacking.any():
        said = (
            f"{path} lacks {int(lacking.sum())} of the {len(rows)} spots of {where}, such as "
            f"{str(adata.obs_names[int(lacking.argmax())])!r}"
        )
        if missing == "error":
            raise ValueError(
                f"{said}. Pass missing='nan' to leave them NaN, or take them out of the table before: programs leave "
                "out spots of few counts."
            )
        logger.warning("%s: they are NaN. Take them away before anything is done with the result.", said)
