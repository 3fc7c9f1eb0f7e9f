"""The learned virtual H&E on real sections of other platforms, organs and species than it was trained on.

Run ``PYTHONPATH=tests python studies/real_virtual_he.py [--model st2he-small] [--json FILE] [--figure FILE]``. CosMx
(human lung), MERSCOPE (mouse brain) and Xenium (human breast) as ``tests/realdata.py`` opens them. Both models run over
each section; nuclei found in the virtual H&E are held against those of the nuclear stain, beside those of another tile,
and the seams against the interior of the tiles. On the breast section the virtual H&E is also held against the real one
at the real one's resolution, 5.8 µm/px, beside the mean colour and another place: one section, a check and no
benchmark. (The finer crop of it, 2.4 µm/px, is of another place than the stain's.)
"""

from __future__ import annotations

import argparse
import json
import platform
from pathlib import Path

import numpy as np
from realdata import HIGH_RES

import sthist
from sthist.benchmark._virtual_he import seam_of
from sthist.tiles import Overlay, TileSpec, read_region

SECTIONS = ("cosmx_lung12", "merscope_mouse_brain", "xenium_breast_rep1")
MODELS = {"beer_lambert": "beer-lambert"}
TILE_UM, TILE_PX, LEAST_IOU = 44.0, 64, 0.3
SHOWN_UM, SHOWN_PX = 240.0, 480
REAL_MPP = 5.8


def nuclei_and_seams(sdata, key: str) -> dict:
    """Nuclei against the stain's, and the seam score."""
    frame = sthist.benchmark.nucleus_preservation(sdata, key, reference="stain", min_iou=LEAST_IOU, seed=0)
    scores = {}
    for method, part in frame.groupby("method"):
        means = part[["nucleus_f1", "nucleus_iou", "nucleus_shift_um"]].mean()
        scores[method] = {name: float(value) for name, value in means.items()} | {"tiles": len(part)}
    return scores | {"seam": seam_of(sdata, key)}


def against_real(sdata, keys: list[str], mpp: float) -> dict:
    """Error of colour and correlation of darkness at a coarse resolution, where both images are."""
    x0, y0, x1, y1 = sthist.tiles.open_image(sdata, "dapi").extent_um
    box = (x0, y0, x1, y1)
    real = read_region(sdata, "he", box, mpp, fill=255).astype(float)
    found = {}
    for key in keys:
        made = read_region(sdata, key, box, mpp, fill=255).astype(float)
        found[key] = _compare(made, real)
    found["mean colour of this section"] = _compare(np.broadcast_to(real.mean((0, 1)), real.shape), real)
    found["real, mirrored"] = _compare(real[:, ::-1], real)
    return found | {"pixels": int(real[..., 0].size)}


def _compare(made: np.ndarray, real: np.ndarray) -> dict:
    darkness = [255 - each.mean(-1).ravel() for each in (made, real)]
    r = float(np.corrcoef(*darkness)[0, 1]) if darkness[0].std() > 0 else None
    return {"psnr": float(10 * np.log10(255**2 / ((made - real) ** 2).mean())), "correlation_of_darkness": r}


def views(sdata, keys: list[str]) -> dict[str, np.ndarray]:
    """A part of the section as stain and transcripts, by each model, and real if there is one."""
    stain = list(sthist._sample.elements.find_nuclear(sdata)[0])
    x0, y0, x1, y1 = sthist.tiles.open_image(sdata, stain).extent_um
    side = min(SHOWN_UM, x1 - x0, y1 - y0)
    centre = np.array([(x0 + x1) / 2, (y0 + y1) / 2])
    spec = TileSpec(side, SHOWN_PX)
    overlay = Overlay(sdata, spec, image=stain, dot_um=2 * spec.mpp, allow_upsampling=True)
    shown = {"stain and transcripts": overlay.read(centre[None])[0]}
    box = (*(centre - side / 2), *(centre + side / 2))
    for key in [*keys, *(["he"] if "he" in sdata else [])]:
        shown["real" if key == "he" else key] = read_region(sdata, key, box, spec.mpp, fill=255)
    return shown


def figure(shown: dict[str, dict[str, np.ndarray]], path: Path) -> None:
    """One row per section."""
    import matplotlib.pyplot as plt

    columns = max((list(row) for row in shown.values()), key=len)
    size = (3.2 * len(columns), 3.4 * len(shown))
    fig, axes = plt.subplots(len(shown), len(columns), figsize=size, layout="constrained")
    for row, (section, images) in zip(axes, shown.items(), strict=True):
        for ax, column in zip(row, columns, strict=True):
            ax.axis("off")
            if column in images:
                ax.imshow(images[column])
                ax.set_title(f"{section}, {column}", fontsize=8)
    path.parent.mkdir(parents=True, exist_ok=True)
    fig.savefig(path, dpi=90)
    plt.close(fig)


def main() -> None:
    """Run both models on each section, and keep scores and a figure where asked to."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--model", default="st2he-small")
    parser.add_argument("--json", type=Path)
    parser.add_argument("--figure", type=Path)
    arguments = parser.parse_args()
    sthist.settings.progress = False
    rows, shown = {}, {}
    for name in SECTIONS:
        sdata = HIGH_RES[name]()
        for key, model in (MODELS | {"st2he_small": arguments.model}).items():
            mpp = None if model in MODELS.values() else sthist.models.load(model).config.spec.mpp
            sthist.tl.virtual_he(sdata, model=model, mpp=mpp, key_added=key, batch_size=8)
        keys = [*MODELS, "st2he_small"]
        sthist.pp.tissue(sdata, min_area_um2=500.0)
        sthist.pp.tiles(sdata, size_um=TILE_UM, px=TILE_PX)
        rows[name] = {key: nuclei_and_seams(sdata, key) for key in keys}
        if name == "xenium_breast_rep1":
            rows[name]["against_the_real_one"] = against_real(sdata, keys, REAL_MPP) | {"um_per_px": REAL_MPP}
        print(name, json.dumps(rows[name], indent=1), flush=True)
        shown[name] = views(sdata, keys)
    if arguments.figure:
        figure(shown, arguments.figure)
    if arguments.json:
        results = {
            "command": "PYTHONPATH=tests python studies/real_virtual_he.py",
            "machine": f"{platform.machine()}, 2 cores, Python {platform.python_version()}",
            "what": __doc__,
            "min_iou": LEAST_IOU,
            "sections": rows,
        }
        arguments.json.write_text(json.dumps(results, indent=1) + "\n")


if __name__ == "__main__":
    main()
