"""What a training leaves in its folder beside the model: its tiles and its history."""

from __future__ import annotations

import warnings
from pathlib import Path
from typing import TYPE_CHECKING, Any

from sthist._disk import written_whole
from sthist._faults import fault_in

if TYPE_CHECKING:
    import pandas as pd

CHECKPOINT = Path("checkpoints") / "last.ckpt"
TILES, HISTORY = "tiles.csv", "metrics.csv"
NOT_NEEDED = "The model does not need it; move it elsewhere to go on without it."


def read_tiles(folder: Path) -> pd.DataFrame | None:
    """The tiles as they were written, or None: names stay text, also where they look like numbers."""
    if not (folder / TILES).exists():
        return None
    measured = ("shift_um", "shift_x_um", "shift_y_um", "confidence")
    names = dict.fromkeys(("sample", "instance_id", "part", "reason", "tissue"), str)
    missing = dict.fromkeys(measured, "")
    tiles = _read_csv(folder / TILES, "instance_id", dtype=names, keep_default_na=False, na_values=missing)
    if tiles["instance_id"].str.fullmatch("0|[1-9][0-9]*").all():
        tiles["instance_id"] = tiles["instance_id"].astype(int)  # laid tiles are numbered
    return tiles


def write_tiles(folder: Path, tiles: pd.DataFrame) -> None:
    """Write the tiles; numbers are read back as they are."""
    with written_whole(folder / TILES) as partial:
        tiles.to_csv(partial, index=False)


def read_history(folder: Path) -> list[dict[str, float]]:
    """Numbers of each epoch; none where nothing was written."""
    if not (folder / HISTORY).exists():
        return []
    frame = _read_csv(folder / HISTORY, "epoch", dtype=str)
    return [
        {str(name): _number(folder / HISTORY, line, str(name), text) for name, text in row.items() if text == text}
        for line, row in enumerate(frame.to_dict("records"), 2)
    ]


def _number(path: Path, line: int, name: str, text: str) -> float:
    try:
        return float(text)
    except ValueError:
        raise ValueError(
            f"{path} is damaged: line {line}, column {name!r} holds {text!r:.60}, which is no number. {NOT_NEEDED}"
        ) from None


def _read_csv(path: Path, column: str, **options: Any) -> pd.DataFrame:
    """A table that a training has written, with a column that it must have; numbers are as they were written."""
    import pandas as pd

    try:
        with warnings.catch_warnings():
            warnings.simplefilter("error", pd.errors.ParserWarning)  # of rows that are longer than the header
            frame = pd.read_csv(path, index_col=False, float_precision="round_trip", **options)
        frame[column]
    except (ValueError, KeyError, OSError, pd.errors.ParserWarning) as error:  # also those of pandas' parsers
        why = f"no column {column!r}" if isinstance(error, KeyError) else (str(error).splitlines() or [repr(error)])[0]
        raise ValueError(f"{path} is damaged: {why.rstrip('.')}.{fault_in(path)} {NOT_NEEDED}") from error
    return frame


def write_history(folder: Path, rows: list[dict[str, float]]) -> None:
    """Write the numbers of all epochs so far, in place of those before."""
    import pandas as pd

    with written_whole(folder / HISTORY) as partial:
        pd.DataFrame(rows).to_csv(partial, index=False)


def require_resumable(folder: Path | None, *, resume: bool) -> None:
    """Refuse to begin where a training is, and to resume without a folder, before anything is read.

    Raises
    ------
    FileExistsError
        If there is a checkpoint, and the training is not to be resumed.
    ValueError
        If a training is to be resumed without a folder.
    """
    if folder is None and resume:
        raise ValueError("resume=True needs folder=, in which the training has left its checkpoints.")
    if folder is not None and not resume and (folder / CHECKPOINT).exists():
        raise FileExistsError(
            f"{folder / CHECKPOINT} is there already: pass resume=True to go on from it, or another folder=."
        )
