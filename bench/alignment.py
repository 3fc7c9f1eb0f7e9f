"""Automatic alignment of an H&E with a nuclear stain, from 50 random places each.

Run ``PYTHONPATH=tests python bench/alignment.py [--json FILE] [--runs N]``. Rotations by any angle, shifts of up to 500 µm (a tenth of
the field for the small pair), scales of up to 5 %, half of them flipped. ``toy``: the toy section's H&E onto its DAPI. ``C4``, ``B4``:
the H&E of two her2st sections onto the nuclear stain that ``simulate_hrst`` makes of them. ``Bladder1``: a real pair of haematoxylin and
DAPI, whose own misfit is measured first, by the plain shift that correlates best. ``unrelated``: the H&E of B4 onto the stain of C4, which
has to be refused. Errors are distances in µm over nine places of the tissue.
"""

from __future__ import annotations

import argparse
import json
import platform
import time
from pathlib import Path

import numpy as np
from hrst import MPP, section
from realdata import folder, picture
from spatialdata.transformations import Affine, set_transformation

import sthist


def random_move(rng: np.random.Generator, centre: np.ndarray, shift: float) -> np.ndarray:
    """A similarity, perhaps mirrored, about the middle of the field: (3, 3) in µm."""
    angle, scale = rng.uniform(0, 2 * np.pi), rng.uniform(0.95, 1.05)
    cos, sin = np.cos(angle), np.sin(angle)
    linear = scale * np.array([[cos, -sin], [sin, cos]]) @ np.diag([rng.choice([-1.0, 1.0]), 1.0])
    matrix = np.eye(3)
    matrix[:2, :2] = linear
    matrix[:2, 2] = centre + rng.uniform(-shift, shift, 2) - linear @ centre
    return matrix


def pairs():
    """Name, sample with its images in place, and largest shift."""
    yield "toy", sthist.datasets.toy(size_um=1500), 500.0
    for name in ("C4", "B4"):
        yield name, sthist.datasets.simulate_hrst(section(name), MPP, seed=0), 500.0
    bladder = folder("deepliif_pairs") / "Bladder1"
    images = {"dapi": picture(bladder / "dapi.png")[:1], "he": picture(bladder / "hematoxylin.png")}
    yield "Bladder1", sthist.io.assemble(images, mpp=0.25), 12.8


def best_shift(sdata, reach_px: int = 8) -> np.ndarray:
    """x, y in pixels by which the H&E of a small pair lies off its stain, by correlation alone."""
    stain = sdata["dapi"].to_numpy()[0].astype(float)
    dark = 255.0 - sdata["he"].to_numpy().mean(0)
    inner = slice(reach_px, -reach_px)
    best, found = -1.0, (0, 0)
    for dy in range(-reach_px, reach_px + 1):
        for dx in range(-reach_px, reach_px + 1):
            moved = np.roll(dark, (-dy, -dx), (0, 1))
            score = np.corrcoef(stain[inner, inner].ravel(), moved[inner, inner].ravel())[0, 1]
            best, found = max((best, found), (score, (dx, dy)))
    return np.array(found, float)


def run(name: str, sdata, shift: float, n: int) -> dict:
    """Errors of n runs."""
    truth = sthist.scale.matrix_to(sdata["he"])
    x0, y0, x1, y1 = sthist.tiles._source.extent_um(sdata, sthist._elements.find_nuclear(sdata)[0])
    centre = np.array([(x0 + x1) / 2, (y0 + y1) / 2])
    grid = np.stack(np.meshgrid(np.linspace(x0, x1, 5)[1:-1], np.linspace(y0, y1, 5)[1:-1]), -1).reshape(-1, 2)
    in_pixels = np.c_[grid, np.ones(9)] @ np.linalg.inv(truth).T
    rng = np.random.default_rng(0)
    errors, spread, seconds, refused = [], [], [], 0
    for _ in range(n):
        away = random_move(rng, centre, shift) @ truth
        set_transformation(sdata["he"], Affine(away, ("x", "y"), ("x", "y")), to_coordinate_system="um")
        start = time.perf_counter()
        try:
            sthist.pp.align(sdata, "he", matrix="auto")
        except ValueError:
            refused += 1
            continue
        seconds.append(time.perf_counter() - start)
        places = (in_pixels @ sthist.scale.matrix_to(sdata["he"]).T)[:, :2]
        errors.append(float(np.median(np.linalg.norm(places - grid, axis=1))))
        spread.append(places)
    apart = np.linalg.norm(np.array(spread) - np.median(spread, axis=0), axis=-1)
    result = {
        "pair": name,
        "runs": n,
        "refused": refused,
        "median_error_um": float(np.median(errors)),
        "largest_error_um": float(np.max(errors)),
        "share_within_5_um": float(np.mean(np.array(errors) <= 5) * len(errors) / n),
        "median_spread_between_runs_um": float(np.median(apart)),
        "seconds": float(np.median(seconds)),
    }
    if name == "Bladder1":
        sdata["he"].attrs["transform"]["um"] = Affine(truth, ("x", "y"), ("x", "y"))
        result["best_plain_shift_um"] = (best_shift(sdata) * 0.25).tolist()
    print(
        ", ".join(
            f"{key} {value:.3f}" if isinstance(value, float) else f"{key} {value}" for key, value in result.items()
        )
    )
    return result


def unrelated() -> bool:
    """Whether another section's H&E is refused."""
    sdata = sthist.datasets.simulate_hrst(section("C4"), MPP, seed=0)
    del sdata.images["he"]
    sdata.images["he"] = sthist.io.assemble({"he": section("B4")}, mpp=MPP)["he"]
    try:
        sthist.pp.align(sdata, "he", matrix="auto")
    except ValueError as error:
        print("unrelated sections:", error)
        return True
    return False


def main() -> None:
    """Measure, print, and keep."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--json", type=Path)
    parser.add_argument("--runs", type=int, default=50)
    arguments = parser.parse_args()
    sthist.settings.progress = False
    results = {
        "command": "PYTHONPATH=tests python bench/alignment.py",
        "machine": f"{platform.machine()}, 2 cores, Python {platform.python_version()}",
        "pairs": [run(*pair, arguments.runs) for pair in pairs()],
        "unrelated_is_refused": unrelated(),
    }
    if arguments.json:
        arguments.json.write_text(json.dumps(results, indent=1) + "\n")


if __name__ == "__main__":
    main()
