"""Automatic alignment of an H&E with a nuclear stain, from 50 random places each.

Run ``PYTHONPATH=tests python studies/alignment.py [--json FILE] [--runs N]``. Each run moves the H&E: by any angle, up
to 500 µm along x and y (12.8 µm, a tenth of the field, for the small pair), up to 5 % of scale, every other mirrored;
``pp.align(matrix="auto")`` then looks for it. The error of a run is the distance in µm from where a place belongs: the
median, and the largest, over places of the tissue.

``toy``: the toy section's H&E onto its DAPI. ``C4``, ``B4``: the H&E of two her2st sections onto the nuclear stain that
``simulate_hrst`` makes of them. ``xenium_breast_rep1``: a real section; the scanner's own picture of its H&E (mirrored,
10.8 µm/px) onto DAPI of 12 µm/px, as the scanner left it and from random places; what is known of its place holds to
some µm. ``Bladder1``: a real pair of haematoxylin and DAPI, 512 px of 0.25 µm, which do not lie on each other as they
are shipped. How far off they are is measured without the search: by the plain shift that correlates best, and by the
centroids of single nuclei, segmented in both and matched; errors are given against the pair as it is shipped and
against the affine through these nuclei. ``unrelated``: the H&E of B4 onto the stain of C4, which has to be refused.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from hrst import MPP, section
from realdata import folder, picture
from spatialdata.transformations import Affine, set_transformation

import sthist
from sthist._alignment.read import from_landmarks
from sthist._sample.elements import find_nuclear

if TYPE_CHECKING:
    from collections.abc import Iterator


@dataclass
class Pair:
    """An H&E and a nuclear stain, and what is known of them.

    ``truth`` takes the H&E's pixels to µm, ``start`` to the place that runs are moved from; ``places`` are in µm.
    """

    name: str
    sdata: Any
    truth: np.ndarray
    start: np.ndarray
    places: np.ndarray
    shift_um: float = 500.0
    facts: dict = field(default_factory=dict)
    references: dict[str, np.ndarray] = field(default_factory=dict)
    """Further ideas of the truth."""


def pairs() -> Iterator[Pair]:
    """Pair by pair, as they are needed."""
    yield in_place("toy", sthist.datasets.toy(size_um=1500))
    for name in ("C4", "B4"):
        yield in_place(name, sthist.datasets.simulate_hrst(section(name), MPP, seed=0))
    yield xenium_breast()
    yield bladder()


def in_place(name: str, sdata, shift_um: float = 500.0) -> Pair:
    """A pair whose images lie on each other; nine places of the stain."""
    x0, y0, x1, y1 = sthist.tiles.open_image(sdata, find_nuclear(sdata)[0]).extent_um
    places = np.stack(np.meshgrid(np.linspace(x0, x1, 5)[1:-1], np.linspace(y0, y1, 5)[1:-1]), -1).reshape(-1, 2)
    truth = sthist.scale.matrix_to(sdata["he"])
    return Pair(name, sdata, truth, truth, places, shift_um)


def xenium_breast() -> Pair:
    """The section as its scanner left it; the start is the picture itself, upright, with its corner at 0."""
    data = folder("xenium_breast_rep1")
    known = json.loads((data / "geometry.json").read_text())["images"]
    truth = np.array(known["he_native_10.8um.png"]["matrix"])
    mpp = float(np.sqrt(abs(np.linalg.det(truth[:2, :2]))))
    start = np.diag([mpp, mpp, 1.0])
    sdata = sthist.io.assemble(
        {"dapi": picture(data / "dapi_section_12um.png"), "he": picture(data / "he_native_10.8um.png")},
        matrices={"dapi": known["dapi_section_12um.png"]["matrix"], "he": start},
    )
    places = np.array([[x, y] for x in (1000.0, 3000, 5000, 6500) for y in (1000.0, 2500, 4500)])
    return Pair("xenium_breast_rep1", sdata, truth, start, places)


def bladder() -> Pair:
    """The small real pair, and how far its images lie off each other."""
    data = folder("deepliif_pairs") / "Bladder1"
    images = {"dapi": picture(data / "dapi.png")[:1], "he": picture(data / "hematoxylin.png")}
    pair = in_place("Bladder1", sthist.io.assemble(images, mpp=0.25), 12.8)
    stain, dark = images["dapi"][0].astype(float), 255.0 - images["he"].mean(0)
    by_nuclei, facts = affine_of_nuclei(stain, dark, 0.25)
    pair.facts = best_plain_shift(stain, dark) | facts
    pair.references["the_nuclei"] = np.diag([0.25, 0.25, 1.0]) @ by_nuclei
    return pair


def best_plain_shift(stain: np.ndarray, dark: np.ndarray, reach_px: int = 8) -> dict:
    """Correlation of two images as they are, and at the shift (x, y) of the second at which it is best."""
    inner = slice(reach_px, -reach_px)
    scores = {
        (dx, dy): np.corrcoef(stain[inner, inner].ravel(), np.roll(dark, (-dy, -dx), (0, 1))[inner, inner].ravel())[
            0, 1
        ]
        for dy in range(-reach_px, reach_px + 1)
        for dx in range(-reach_px, reach_px + 1)
    }
    best = max(scores, key=scores.get)
    return {
        "best_plain_shift_px": list(best),
        "correlation_there": float(scores[best]),
        "correlation_as_shipped": float(scores[0, 0]),
    }


def affine_of_nuclei(stain: np.ndarray, dark: np.ndarray, mpp: float) -> tuple[np.ndarray, dict]:
    """The affine (dark's pixels to stain's) through nuclei found in both, and how far they lie off each other."""
    from scipy.ndimage import center_of_mass
    from scipy.spatial import cKDTree

    def centroids(image: np.ndarray) -> np.ndarray:
        labels = sthist.tiles.segment_nuclei(image, mpp)
        return np.array(center_of_mass(labels > 0, labels, range(1, labels.max() + 1)))[:, ::-1] + 0.5

    fixed, moving = centroids(stain), centroids(dark)
    # Mutual nearest neighbours within a nucleus' radius, from the images as they are: no shift is assumed.
    distance, nearest = cKDTree(moving).query(fixed, distance_upper_bound=8.0)
    _, back = cKDTree(fixed).query(moving)
    here = np.flatnonzero(np.isfinite(distance))
    here = here[back[nearest[here]] == here]
    fixed, moving = fixed[here], moving[nearest[here]]
    off = moving - fixed
    keep = np.ones(len(off), bool)
    for _ in range(5):  # nuclei that were parted otherwise in one of the two are left out
        matrix = from_landmarks(moving[keep], fixed[keep]).matrix
        residual = np.linalg.norm(moving @ matrix[:2, :2].T + matrix[:2, 2] - fixed, axis=1)
        keep = residual < 3 * np.median(residual)
    return matrix, {
        "nuclei_matched": len(off),
        "nuclei_median_shift_px": np.median(off, axis=0).tolist(),
        # Of a median: a factor of sqrt(pi / 2) over that of a mean.
        "nuclei_standard_error_px": (1.2533 * off.std(0) / np.sqrt(len(off))).tolist(),
        "nuclei_median_distance_as_shipped_px": float(np.median(np.linalg.norm(off, axis=1))),
        "nuclei_median_distance_after_their_affine_px": float(np.median(residual)),
    }


def random_move(rng: np.random.Generator, centre: np.ndarray, shift: float, *, mirrored: bool) -> np.ndarray:
    """A similarity, perhaps mirrored, about the middle of the field: (3, 3) in µm."""
    angle, scale = rng.uniform(0, 2 * np.pi), rng.uniform(0.95, 1.05)
    cos, sin = np.cos(angle), np.sin(angle)
    linear = scale * np.array([[cos, -sin], [sin, cos]]) @ np.diag([-1.0 if mirrored else 1.0, 1.0])
    matrix = np.eye(3)
    matrix[:2, :2] = linear
    matrix[:2, 2] = centre + rng.uniform(-shift, shift, 2) - linear @ centre
    return matrix


def measure(pair: Pair, n: int) -> dict:
    """Errors of n runs; the first one starts from where the H&E lies, for a pair that is not in place."""
    centre = np.array(sthist.tiles.open_image(pair.sdata, find_nuclear(pair.sdata)[0]).extent_um).reshape(2, 2).mean(0)
    elsewhere = not np.array_equal(pair.start, pair.truth)
    rng = np.random.default_rng(0)
    found, seconds, refused = [], [], []
    for i in range(n):
        move = random_move(rng, centre, pair.shift_um, mirrored=bool(i % 2))
        start = pair.start if elsewhere and i == 0 else move @ pair.start
        set_transformation(pair.sdata["he"], Affine(start, ("x", "y"), ("x", "y")), to_coordinate_system="um")
        begun = time.perf_counter()
        try:
            sthist.pp.align(pair.sdata, "he", matrix="auto", seed=i, overwrite=True)
        except ValueError as error:
            refused.append(f"run {i}: {error}")
        else:
            found.append(sthist.scale.matrix_to(pair.sdata["he"]))
        seconds.append(time.perf_counter() - begun)
        if (i + 1) % 10 == 0:
            print(f"  {pair.name}: {i + 1} of {n} runs, {sum(seconds):.0f} s", flush=True)
    result = {"pair": pair.name, "runs": n, "refused": len(refused)} | errors(found, pair.truth, pair.places, n)
    for name, truth in pair.references.items():
        result |= {f"{key}_against_{name}": value for key, value in errors(found, truth, pair.places, n).items()}
    if found:
        where = np.array([positions(matrix, pair.truth, pair.places) for matrix in found])
        apart = np.linalg.norm(where - np.median(where, axis=0), axis=-1)
        result["median_spread_between_runs_um"] = float(np.median(apart))
        result["largest_spread_between_runs_um"] = float(apart.max())
    return result | {"seconds": float(np.median(seconds)), "refusals": refused} | pair.facts


def positions(matrix: np.ndarray, truth: np.ndarray, places: np.ndarray) -> np.ndarray:
    """Where a matrix puts what belongs at the places, in µm."""
    in_pixels = np.c_[places, np.ones(len(places))] @ np.linalg.inv(truth).T
    return (in_pixels @ matrix.T)[:, :2]


def errors(found: list[np.ndarray], truth: np.ndarray, places: np.ndarray, n: int) -> dict:
    """Over the places the median and the largest of each run.

    Over the runs the median, the largest, and the share within 5 µm.
    """
    if not found:
        return {"share_within_5_um": 0.0}
    distances = np.array([np.linalg.norm(positions(matrix, truth, places) - places, axis=1) for matrix in found])
    typical, largest = np.median(distances, axis=1), distances.max(1)
    return {
        "median_error_um": float(np.median(typical)),
        "largest_error_um": float(typical.max()),
        "median_error_of_the_worst_place_um": float(np.median(largest)),
        "largest_error_of_the_worst_place_um": float(largest.max()),
        "share_within_5_um": float((typical <= 5).sum() / n),  # a refused run is not within
    }


def unrelated() -> dict:
    """Whether another section's H&E is refused, and with what message."""
    sdata = sthist.datasets.simulate_hrst(section("C4"), MPP, seed=0)
    del sdata.images["he"]
    sdata.images["he"] = sthist.io.assemble({"he": section("B4")}, mpp=MPP)["he"]
    try:
        sthist.pp.align(sdata, "he", matrix="auto")
    except ValueError as error:
        return {"refused": True, "message": str(error)}
    return {"refused": False}


def main() -> None:
    """Measure, print, and keep, pair by pair."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--json", type=Path)
    parser.add_argument("--runs", type=int, default=50)
    arguments = parser.parse_args()
    sthist.settings.progress = False
    results: dict[str, Any] = {
        "command": "PYTHONPATH=tests python studies/alignment.py",
        "machine": f"{platform.machine()}, {os.cpu_count()} cores, Python {platform.python_version()}",
        "pairs": [],
    }

    def keep() -> None:
        if arguments.json:
            arguments.json.write_text(json.dumps(results, indent=1) + "\n")

    for pair in pairs():
        result = measure(pair, arguments.runs)
        results["pairs"].append(result)
        print(pair.name)
        for key, value in list(result.items())[1:]:
            print(f"  {key}: {value:.3f}" if isinstance(value, float) else f"  {key}: {value}", flush=True)
        keep()
    results["unrelated"] = unrelated()
    print("unrelated:", results["unrelated"], flush=True)
    keep()


if __name__ == "__main__":
    main()
