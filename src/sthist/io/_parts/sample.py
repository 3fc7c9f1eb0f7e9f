"""What the readers of vendors' folders share: the scale, the H&E, and the roles of a sample."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from sthist import _alignment, _sample
from sthist._settings import logger

if TYPE_CHECKING:
    import pandas as pd
    from spatialdata import SpatialData

CELL_RADIUS_UM = 5.0  # of a cell that has neither outline nor area


def require_he(folder: Path, he: Any, alignment: Any, *, aligned: bool = False) -> None:
    """Check the arguments of an H&E that is laid on a sample, before the sample is read."""
    if he is None and alignment is None:
        return
    if he is None:
        raise ValueError("he_alignment= says where an H&E lies; give the image, too, with he=.")
    if alignment is None:
        found = sorted({*folder.glob("*imagealignment*.csv"), *folder.glob("*_he_*alignment*.csv")})
        found = [file for file in found if "if_imagealignment" not in file.name]  # of the immunofluorescence
        hint = f" The folder has {', '.join(file.name for file in found)}; is it that one?" if found else ""
        msg = f"Where does the H&E {he} lie? Give its 3 x 3 matrix or landmarks with he_alignment=.{hint}"
        if aligned or found:
            raise ValueError(msg)
    else:
        _alignment.read_alignment(alignment)
    if isinstance(he, str | Path) and not Path(he).is_file():
        raise FileNotFoundError(f"he=: there is no file {he}.")


def record_high_res(sdata: SpatialData, stain: str) -> None:
    """Record which elements are the nuclear stain, the transcripts and the cells."""
    elements = _sample.find_high_res(sdata, image=stain)
    _sample.set_role(
        sdata,
        "nuclear",
        {"images": [stain], "channel": elements.nuclear_channel, "cytoplasm": list(elements.cytoplasm_channels)},
    )
    if elements.points is not None:
        _sample.set_role(sdata, "transcripts", {"points": elements.points, "gene": elements.gene})
    if elements.table is not None:
        _sample.set_role(sdata, "cells", {"table": elements.table})


def match_cells(
    counts: Path,
    counted: pd.Index,
    metadata: Path,
    wanted: pd.Index,
    *,
    by: str,
    no_cells: np.ndarray | None = None,
) -> np.ndarray:
    """Rows of the counts by cell of the metadata, -1 where it has none; what one of the files lacks is said."""
    for file, names in ((counts, counted), (metadata, wanted)):
        if not names.is_unique:
            raise ValueError(
                f"{file} has cell {names[names.duplicated()][0]!r} ({by}) more than once. Export it again."
            )
    rows = counted.get_indexer(wanted)
    if not (rows >= 0).any():
        raise ValueError(
            f"{counts} has no counts of the cells in {metadata.name}, by {by}: their names are like {counted[0]!r} and "
            f"{wanted[0]!r}. Are both files of one sample?"
        )
    if (rows < 0).any():
        n = int((rows < 0).sum())
        logger.warning("%d of %d cells of %s have no counts in %s; they are left out.", n, len(rows), metadata, counts)
    surplus = ~counted.isin(wanted) & (True if no_cells is None else ~no_cells)
    if surplus.any():
        n, example = int(surplus.sum()), counted[surplus][0]
        logger.warning(
            f"{n} of {len(counted)} cells of {counts} are not in {metadata}, such as {example!r}; they are left out."
        )
    return np.asarray(rows)
