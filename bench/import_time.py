"""What ``import sthist`` adds to ``import spatialdata``: medians of fresh processes, in turn.

Run ``python bench/import_time.py [--json FILE]``.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import subprocess
import sys
from pathlib import Path

import numpy as np

RUNS = 7
CODE = "import time; t = time.perf_counter(); import {modules}; print(time.perf_counter() - t)"


def seconds(modules: str) -> float:
    """One import in a process of its own."""
    out = subprocess.run(
        [sys.executable, "-c", CODE.format(modules=modules)], capture_output=True, text=True, check=True
    )
    return float(out.stdout)


def main() -> None:
    """Time, print and save."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()
    names = {"spatialdata": "spatialdata", "both": "spatialdata, sthist", "sthist alone": "sthist"}
    times = {name: [] for name in names}
    for _ in range(RUNS):
        for name, modules in names.items():
            times[name].append(seconds(modules))
    result = {
        "command": "python bench/import_time.py",
        "machine": f"{platform.machine()}, {os.cpu_count()} cores, Python {platform.python_version()}",
        "runs": RUNS,
        "seconds": {name: round(float(np.median(values)), 4) for name, values in times.items()},
        "added_by_sthist": round(float(np.median(np.subtract(times["both"], times["spatialdata"]))), 4),
    }
    print(json.dumps(result, indent=2))
    if options.json is not None:
        options.json.write_text(json.dumps(result, indent=2) + "\n")


if __name__ == "__main__":
    main()
