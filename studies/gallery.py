"""The figures of docs/gallery.md, from the real data sets whose licence allows it, and others to look at.

Run ``PYTHONPATH=tests python studies/gallery.py [--all FOLDER]``. Reads the real data from ``../shared/data`` or from
the folder that ``STHIST_TEST_DATA`` names. Without ``--all``, writes JPEG files under ``docs/_static/gallery/``.
"""

from __future__ import annotations

import argparse
import warnings
from pathlib import Path

import matplotlib as mpl
import matplotlib.pyplot as plt
import realdata

import sthist

GALLERY = Path(__file__).parents[1] / "docs" / "_static" / "gallery"
SHARED = {
    "xenium_breast_rep1": (700.0, 550.0, 1180.0, 950.0),
    "xenium_ileum_tiny": (865.0, 340.0, 985.0, 440.0),
}
"""Sets under CC BY 4.0, and the box shown of each."""


def figure(name: str, path: Path, within: tuple[float, ...] | None) -> None:
    """One call to make it, one to show it."""
    sdata = realdata.HIGH_RES[name]()
    sthist.tl.virtual_he(sdata)
    axes = sthist.pl.virtual_he(sdata, within=within)
    axes[0].figure.savefig(path, dpi=110, bbox_inches="tight", pil_kwargs={"quality": 88})
    plt.close("all")
    print(f"{path}: {path.stat().st_size / 1000:.0f} kB, {sdata.attrs['sthist']['results']['virtual_he']['section']}")


def main() -> None:
    """Make them."""
    mpl.use("agg")
    warnings.simplefilter("ignore")
    sthist.settings.progress = False
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--all", type=Path, help="figures of all sets, to look at, into this folder")
    options = parser.parse_args()
    if options.all is not None:
        options.all.mkdir(parents=True, exist_ok=True)
        for name in realdata.HIGH_RES:
            figure(name, options.all / f"{name}.png", SHARED.get(name) if name == "xenium_ileum_tiny" else None)
        return
    GALLERY.mkdir(parents=True, exist_ok=True)
    for name, within in SHARED.items():
        figure(name, GALLERY / f"{name}.jpg", within)


if __name__ == "__main__":
    main()
