"""The built-in virtual H&E against a prototype and the mean colour, on nuclear stain and molecules made from real H&E.

Run ``PYTHONPATH=tests python bench/built_in_model.py [--json FILE] [--figure FILE]``. Needs the her2st sections (see
``tests/realdata.py``).
"""

from __future__ import annotations

import argparse
import json
import platform
from pathlib import Path

import hrst
import numpy as np
from PIL import Image

import sthist


def main() -> None:
    """Score both crops, print and save."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--json", type=Path)
    parser.add_argument("--figure", type=Path)
    options = parser.parse_args()
    sthist.settings.progress = False
    reference = hrst.section("C3")
    table, rows = {}, []
    for name, corner in hrst.CROPS.items():
        real = hrst.crop(name)
        nuclei, molecules = hrst.simulate(real)
        images = {"real": real, "mean colour": hrst.mean_colour(real)}
        for label, stain in (("default stains", None), ("stains of C3", reference)):
            images[f"prototype, {label}"] = hrst.prototype(nuclei, molecules, stain)
            images[f"built-in, {label}"] = hrst.built_in(nuclei, molecules, stain)
        scores = {key: hrst.scores(image, real) for key, image in images.items() if key != "real"}
        table[f"{name} {list(corner)}"] = {
            key: {"SSIM": round(ssim, 3), "PSNR_dB": round(psnr, 2)} for key, (ssim, psnr) in scores.items()
        }
        rows.append(np.hstack([image[::2, ::2] for image in images.values()]))
    result = {
        "command": "PYTHONPATH=tests python bench/built_in_model.py",
        "machine": f"{platform.machine()}, Python {platform.python_version()}",
        "crop_px": hrst.SIDE,
        "mpp": hrst.MPP,
        "scores": table,
    }
    print(json.dumps(result, indent=2))
    if options.json is not None:
        options.json.write_text(json.dumps(result, indent=2) + "\n")
    if options.figure is not None:
        Image.fromarray(np.vstack(rows)).save(options.figure)


if __name__ == "__main__":
    main()
