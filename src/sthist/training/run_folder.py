"""What a training leaves in its folder beside the model: its tiles and its figures."""

from __future__ import annotations

import csv
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from pathlib import Path

    import pandas as pd

TILES, FIGURES = "tiles.csv", "metrics.csv"


def read_tiles(folder: Path) -> pd.DataFrame | None:
    """The tiles as they were written, or None: names stay text, also where they look like numbers."""
    import pandas as pd

    if not (folder / TILES).exists():
        return None
    measured = ("shift_um", "shift_x_um", "shift_y_um", "confidence")
    names = dict.fromkeys(("sample", "instance_id", "part", "reason", "tissue"), str)
    tiles = pd.read_csv(folder / TILES, dtype=names, keep_default_na=False, na_values=dict.fromkeys(measured, ""))
    if tiles["instance_id"].str.fullmatch("0|[1-9][0-9]*").all():
        tiles["instance_id"] = tiles["instance_id"].astype(int)  # laid tiles are numbered
    return tiles


def read_figures(folder: Path) -> list[dict[str, float]]:
    """Figures of each epoch; none where nothing was written."""
    if not (folder / FIGURES).exists():
        return []
    with (folder / FIGURES).open(newline="") as file:
        return [{name: float(value) for name, value in row.items() if value} for row in csv.DictReader(file)]
