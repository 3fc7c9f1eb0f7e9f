"""The built-in and the learned virtual H&E on real sections of five platforms and organs, none of which was trained on.

Run ``PYTHONPATH=tests python studies/virtual_he/real.py [--model st2he-small] [--json FILE] [--figure FILE]``. CosMx
(human lung), MERSCOPE (mouse brain) and Xenium (human breast, ileum, pancreas) as ``tests/realdata.py`` opens them.
Both models run over each section. Scored are: nuclei found in the virtual H&E against the vendor's outlines, which are
of cells but in the ileum, and against the nuclei of the stain, beside those of another tile; seams, against the
interior of the tiles; and how dark the outer 8 px are beside the rest, glass left out. On the breast section the
virtual H&E is also held against the real one at the real one's resolution, 5.8 µm/px, beside the mean colour and
another place: one section, a check and no benchmark. (The finer crop of it, 2.4 µm/px, is of another place than the
stain's.)
"""

from __future__ import annotations

import argparse
import functools
import json
import os
import platform
from pathlib import Path

import numpy as np
import realdata

import sthist
from sthist.benchmark._virtual_he import seam_of
from sthist.tiles import Overlay, TileSpec, read_region

SECTIONS = {
    "CosMx, human lung": functools.partial(realdata.cosmx_lung12, outlines=True),
    "MERSCOPE, mouse brain": realdata.merscope_mouse_brain,
    "Xenium, human breast": realdata.xenium_breast_dapi_crop,
    "Xenium, human ileum": realdata.xenium_ileum_tiny,
    "Xenium, human pancreas": realdata.xenium_pancreas,
}
BUILT_IN = "beer-lambert"
TILE_UM, LEAST_IOU = 44.0, 0.3
SHOWN_UM, SHOWN_PX = 120.0, 480
REAL_MPP, BORDER_PX, GLASS = 5.8, 8, 243


def nuclei(sdata, key: str, reference: str) -> dict:
    """Nuclei against the vendor's outlines, or those of the stain; and against those of another tile."""
    frame = sthist.benchmark.nucleus_preservation(sdata, key, reference=reference, min_iou=LEAST_IOU, seed=0)
    found = {}
    for method, part in frame.groupby("method"):
        means = part[["nucleus_f1", "nucleus_iou", "nucleus_shift_um"]].mean()
        found[method] = {name: round(float(value), 3) for name, value in means.items()} | {"tiles": len(part)}
    return found


def border(sdata, key: str) -> dict:
    """Mean grey level of tissue in the outer pixels and inside."""
    made = sthist.tiles.open_image(sdata, key)
    grey = read_region(sdata, key, made.extent_um, made.finest_mpp, fill=255).mean(-1)
    inside = np.zeros(grey.shape, bool)
    inside[BORDER_PX:-BORDER_PX, BORDER_PX:-BORDER_PX] = True
    tissue = grey < GLASS
    parts = {"border": tissue & ~inside, "inside": tissue & inside}
    return {name: round(float(grey[where].mean()), 1) for name, where in parts.items() if where.any()}


def against_real(sdata, keys: list[str], mpp: float) -> dict:
    """Error of colour and correlation of darkness at a coarse resolution, where both images are."""
    box = sthist.tiles.open_image(sdata, "dapi").extent_um
    real = read_region(sdata, "he", box, mpp, fill=255).astype(float)
    found = {key: _compare(read_region(sdata, key, box, mpp, fill=255).astype(float), real) for key in keys}
    found["mean colour of this section"] = _compare(np.broadcast_to(real.mean((0, 1)), real.shape), real)
    found["real, mirrored"] = _compare(real[:, ::-1], real)
    return found | {"pixels": int(real[..., 0].size)}


def _compare(made: np.ndarray, real: np.ndarray) -> dict:
    darkness = [255 - each.mean(-1).ravel() for each in (made, real)]
    r = float(np.corrcoef(*darkness)[0, 1]) if darkness[0].std() > 0 else None
    return {"psnr": float(10 * np.log10(255**2 / ((made - real) ** 2).mean())), "correlation_of_darkness": r}


def views(sdata, keys: dict[str, str]) -> dict[str, np.ndarray]:
    """The middle of the nuclei as stain and transcripts, and by each model."""
    stain = list(sthist._sample.elements.find_nuclear(sdata)[0])
    x0, y0, x1, y1 = sthist.tiles.open_image(sdata, stain).extent_um
    side = min(SHOWN_UM, x1 - x0, y1 - y0)
    places = np.asarray(sdata["tiles_table"].obsm["spatial"], float)
    middle = places[np.abs(places - np.median(places, axis=0)).sum(1).argmin()]
    centre = np.clip(middle, [x0 + side / 2, y0 + side / 2], [x1 - side / 2, y1 - side / 2])
    spec = TileSpec(side, SHOWN_PX)
    overlay = Overlay(sdata, spec, image=stain, dot_um=2 * spec.mpp, allow_upsampling=True)
    shown = {"stain and transcripts": overlay.read(centre[None])[0]}
    box = (*(centre - side / 2), *(centre + side / 2))
    for title, key in keys.items():
        shown[title] = read_region(sdata, key, box, spec.mpp, fill=255)
    return shown


def figure(shown: dict[str, dict[str, np.ndarray]], path: Path) -> None:
    """One row per section."""
    import matplotlib.pyplot as plt

    columns = list(next(iter(shown.values())))
    size = (3.2 * len(columns), 3.3 * len(shown))
    fig, axes = plt.subplots(len(shown), len(columns), figsize=size, layout="constrained")
    for row, (section, images) in zip(axes, shown.items(), strict=True):
        for ax, column in zip(row, columns, strict=True):
            ax.axis("off")
            ax.imshow(images[column])
            ax.set_title(f"{section}: {column}", fontsize=8)
    path.parent.mkdir(parents=True, exist_ok=True)
    fig.savefig(path, dpi=100)
    plt.close(fig)


def main() -> None:
    """Run both models on each section, and keep scores and a figure where asked to."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="st2he-small")
    parser.add_argument("--mpp", type=float, default=0.5, help="of the learned model, where the stain is as fine")
    parser.add_argument("--json", type=Path)
    parser.add_argument("--figure", type=Path)
    arguments = parser.parse_args()
    sthist.settings.progress = False
    keys = {"built-in": "built_in", "learned": "learned"}
    rows, shown = {}, {}
    for name, opened in SECTIONS.items():
        sdata = opened()
        sthist.tl.virtual_he(sdata, BUILT_IN, key_added="built_in")
        model = sthist.models.load(arguments.model)
        finest = sthist.tiles.open_image(sdata, "built_in").finest_mpp
        sthist.tl.virtual_he(sdata, model, mpp=float(np.clip(finest, arguments.mpp, 0.8)), key_added="learned")
        sthist.pp.tissue(sdata, min_area_um2=500.0)
        mpp = sthist.tiles.open_image(sdata, "learned").finest_mpp
        sthist.pp.tiles(sdata, size_um=TILE_UM, px=round(TILE_UM / mpp), min_tissue=0.1)
        vendor = "vendor" if "nucleus_boundaries" in sdata.shapes else "cells"
        rows[name] = {"um_per_px": round(mpp, 4)}
        for title, key in keys.items():
            rows[name][title] = {
                "nuclei against the vendor's outlines": nuclei(sdata, key, vendor),
                "nuclei against the stain": nuclei(sdata, key, "stain"),
                "seam": seam_of(sdata, key),
                "grey level": border(sdata, key),
            }
        if "breast" in name:
            rows[name]["against the real one"] = against_real(sdata, list(keys.values()), REAL_MPP)
        print(name, json.dumps(rows[name], indent=1), flush=True)
        shown[name] = views(sdata, keys)
    if arguments.figure:
        figure(shown, arguments.figure)
    if arguments.json:
        results = {
            "command": "PYTHONPATH=tests python studies/virtual_he/real.py",
            "machine": f"{platform.machine()}, {os.cpu_count()} cores, Python {platform.python_version()}",
            "what": __doc__,
            "min_iou": LEAST_IOU,
            "sections": rows,
        }
        arguments.json.write_text(json.dumps(results, indent=1).replace("NaN", "null") + "\n")


if __name__ == "__main__":
    main()
