"""What of ST2HE's input matters, on transcriptomics simulated over real histology.

Compared are the colours of the dots, their size, and the prompt.

Run ``PYTHONPATH=tests python studies/ablation.py FOLDER [--json FILE] [--figure FILE]``. Sections C4 and B4 of her2st
(two patients with HER2-positive breast cancer, stained on different days), 0.688 µm/px, nuclear stain and transcripts
by ``datasets.simulate_hrst``. Each variant of ``small`` is trained with three seeds on the same blocks of both sections
and scored on the others. There is one tissue here, so the prompt says the patient. What is trained stays in FOLDER; a
run that was stopped goes on.
"""

from __future__ import annotations

import argparse
import json
import platform
import resource
from pathlib import Path

from hrst import MPP, section

import sthist

SIZE = {"size_um": 64 * MPP, "px": 64}
SECTIONS = ("C4", "B4")
TISSUE = {"C4": "breast of patient C", "B4": "breast of patient B"}
VARIANTS = {
    "multi-colour, 0.3, conditioned": {},
    "mono-colour": {"mode": "mono"},
    "nuclear stain alone": {"mode": "none"},
    "dots of 0.1": {"dot_s": 0.1},
    "dots of 0.5": {"dot_s": 0.5},
    "dots of 0.7": {"dot_s": 0.7},
    "dots of 0.9": {"dot_s": 0.9},
    "not conditioned": {"tissue": None},
}
TRAINING = {"epochs": 1, "steps_per_epoch": 300, "batch_size": 4, "images_every": 0}
SEEDS = (0, 1, 2)


def sections() -> dict:
    """Simulated sections with tiles."""
    found = {}
    for name in SECTIONS:
        found[name] = sthist.datasets.simulate_hrst(section(name), MPP, seed=0)
        sthist.pp.tiles(found[name], sampling="fps", n_tiles=1000, **SIZE)
    return found


def main() -> None:
    """Train, score, print, and keep the table and a figure where asked to."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--json", type=Path)
    parser.add_argument("--figure", type=Path)
    arguments = parser.parse_args()
    sthist.settings.progress = False
    frame = sthist.benchmark.ablate_virtual_he(
        sections(),
        VARIANTS,
        seeds=SEEDS,
        split=sthist.models.Split("block", test=0.2, block_um=1000.0),
        metrics=("mse", "psnr", "ssim", "fid", "kid"),
        n_tiles=200,
        training={"tissue": TISSUE, "max_shift_um": None, "resume": True, "dot_s": 0.3} | TRAINING,
        seed=0,
        folder=arguments.folder,
    )
    table = sthist.benchmark.over_seeds(frame)
    print(table.round(3).to_string(index=False))
    if arguments.figure:
        sthist.pl.ablation(frame, metric="ssim", save=arguments.figure)
    if arguments.json:
        used = resource.getrusage(resource.RUSAGE_SELF)
        results = {
            "command": "PYTHONPATH=tests python studies/ablation.py FOLDER",
            "machine": f"{platform.machine()}, 2 cores, Python {platform.python_version()}",
            "what": __doc__,
            "training": TRAINING | {"seeds": SEEDS} | SIZE,
            "cpu_s": used.ru_utime + used.ru_stime,
            "table": json.loads(table.round(4).to_json(orient="records")),
        }
        arguments.json.write_text(json.dumps(results, indent=1) + "\n")


if __name__ == "__main__":
    main()
