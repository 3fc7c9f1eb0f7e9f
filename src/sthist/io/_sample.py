"""What the readers of vendors' folders share: the scale, the H&E, and the roles of a sample."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

from sthist import _alignment, _elements

if TYPE_CHECKING:
    from spatialdata import SpatialData

CELL_RADIUS_UM = 5.0
"""Of a cell that has neither outline nor area."""


def require_he(folder: Path, he: Any, alignment: Any) -> None:
    """Check the arguments of an H&E that is laid on a sample, before the sample is read.

    Parameters
    ----------
    folder
        The vendor's folder, in which alignment files may lie.
    he, alignment
        The reader's arguments ``he=`` and ``he_alignment=``.

    Raises
    ------
    FileNotFoundError
        If one is missing.
    ValueError
        If only one of them is given, or the alignment is none.
    """
    if he is None and alignment is None:
        return
    if he is None:
        msg = "he_alignment= says where an H&E lies; give the image, too, with he=."
        raise ValueError(msg)
    if alignment is None:
        found = sorted({*folder.glob("*imagealignment*.csv"), *folder.glob("*_he_*alignment*.csv")})
        hint = f" The folder has {', '.join(file.name for file in found)}; is it that one?" if found else ""
        msg = f"Where does the H&E {he} lie? Give its 3 x 3 matrix or landmarks with he_alignment=.{hint}"
        raise ValueError(msg)
    if isinstance(he, str | Path) and not Path(he).is_file():
        msg = f"he=: there is no file {he}."
        raise FileNotFoundError(msg)
    _alignment.read_alignment(alignment)


def record_high_res(sdata: SpatialData, stain: str) -> None:
    """Record which elements are the nuclear stain, the transcripts and the cells."""
    elements = _elements.find_high_res(sdata, image=stain)
    _elements.set_role(
        sdata,
        "nuclear",
        {"images": [stain], "channel": elements.nuclear_channel, "cytoplasm": list(elements.cytoplasm_channels)},
    )
    if elements.points is not None:
        _elements.set_role(sdata, "transcripts", {"points": elements.points, "gene": elements.gene})
    if elements.table is not None:
        _elements.set_role(sdata, "cells", {"table": elements.table})
