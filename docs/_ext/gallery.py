"""The figures of the gallery, made by the code on the page: ``python docs/_ext/gallery.py``; minutes on two cores."""

from __future__ import annotations

import re
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

import matplotlib

matplotlib.use("agg")
import matplotlib.pyplot as plt

import sthist

if TYPE_CHECKING:
    from matplotlib.figure import Figure

PAGE = Path(__file__).parents[1] / "gallery.md"
FIGURES = Path(__file__).parents[1] / "_static" / "plots"
BLOCK = re.compile(r"^```python\n(.*?)^```", re.DOTALL | re.MULTILINE)
PLOT = re.compile(r"\bsthist\.pl\.(\w+)\(")
WIDTH_PX, MOST_BYTES = 900, 95_000


def blocks() -> list[tuple[str | None, str]]:
    """Code of the page in its order, each with the name of the plot that it draws."""
    code = BLOCK.findall(PAGE.read_text())
    return [(found[-1] if (found := PLOT.findall(block)) else None, block) for block in code]


def save(figure: Figure, path: Path) -> None:
    """Save a figure as wide as the page, as finely as the limit of its size allows."""
    for quality in (82, 70, 60, 50):
        options = {"quality": quality, "optimize": True}
        figure.savefig(path, dpi=WIDTH_PX / figure.get_size_inches()[0], pil_kwargs=options)
        if path.stat().st_size <= MOST_BYTES:
            break


def draw(folder: Path, last: str | None = None) -> list[str]:
    """Run the page, up to a plot if one is named, and write the figures; the names of what was drawn are returned."""
    folder.mkdir(parents=True, exist_ok=True)
    space: dict[str, Any] = {}
    done = []
    for name, code in blocks():
        exec(code, space)
        if name is not None:
            save(plt.gcf(), folder / f"{name}.jpg")
            done.append(name)
        plt.close("all")
        if last is not None and name == last:
            break
    return done


if __name__ == "__main__":
    sthist.settings.progress = False
    sthist.settings.verbosity = "error"
    draw(FIGURES, *sys.argv[1:])
