"""A learned virtual H&E over a section: how much of the bare network's speed is left.

Run ``python bench/virtual_he.py [--side 2048] [--molecules groups] [--json FILE]``. The toy's section on disk,
``small`` with random weights, which take as long as any: ``tl.virtual_he`` (tiles of 128 px that overlap by a quarter,
read, predicted, blended and written) is timed in turns with the network alone, on the same tiles in the same batches
from memory, and with reading, blending and writing alone, by a model that gives its input back. Of seven turns the
medians count. What is spent in the network and outside of it while the section is worked through is told apart, too:
the network alone differs by a few per cent from one process to the next, which is as much as a fifth of the rest. On a
processor, where reading takes the network's own cores, the limit is the bare time and 1.2 times that of the rest. With
``--device cuda`` it is SD-Turbo's size in bf16, on tiles of 512 px, eager and compiled, beside the device's measured
rate of matrix products.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import statistics
import tempfile
import time
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import torch

import sthist

if TYPE_CHECKING:
    from collections.abc import Iterator

TURNS, BATCH, MOST_OF_THE_REST = 7, 16, 1.2


SEEN: dict[str, dict] = {
    "dots": {},
    "groups": {
        "molecules": "groups",
        "groups": sthist.models.TranslationTraining.PROGRAMMES,
        "density_um": 2.5,
        "scales": (0.25, 0.8),
        "target": "stains",
    },
}
"""What the network sees and says: the paper's dots, or what ``st2he-small`` does."""


class Copy(sthist.models.ST2HE):
    """Gives its input back, and keeps it if asked to."""

    kept: list[np.ndarray] | None = None

    def predict(self, tiles: np.ndarray, *, batch_size: int = BATCH) -> np.ndarray:
        """The tiles."""
        if self.kept is not None:
            self.kept.append(tiles.copy())
        return tiles[..., :3]


def section(folder: Path, side: int) -> Path:
    """The toy's section on disk, 0.5 µm/px."""
    path = folder / "section.zarr"
    sthist.datasets.toy(size_um=side / 2).write(path)
    return path


def seconds(call) -> float:
    """Time of a call."""
    start = time.perf_counter()
    call()
    return time.perf_counter() - start


@contextmanager
def clocked() -> Iterator[list[float]]:
    """Time of each pass through a network."""
    from sthist.systems.virtual_he.inference import RunningGenerator

    took: list[float] = []
    through = RunningGenerator.__call__

    def timed(self: RunningGenerator, tiles: np.ndarray) -> np.ndarray:
        start = time.perf_counter()
        made = through(self, tiles)
        took.append(time.perf_counter() - start)
        return made

    RunningGenerator.__call__ = timed  # type: ignore[method-assign]
    try:
        yield took
    finally:
        RunningGenerator.__call__ = through  # type: ignore[method-assign]


def pipeline(config: sthist.models.ST2HEConfig, side: int) -> dict:
    """Times over a section."""
    import spatialdata as sd

    model = sthist.models.ST2HE(config)
    with tempfile.TemporaryDirectory() as scratch:
        sdata = sd.read_zarr(section(Path(scratch), side))

        def run(which, device=None):
            sthist.tl.virtual_he(
                sdata, model=which, batch_size=BATCH, overwrite="virtual_he" in sdata, progress=False, device=device
            )

        copy = Copy(config)
        copy.kept = []
        run(copy)  # its copies share the list
        batches = copy.kept
        run(model)
        times: dict[str, list[float]] = {"whole": [], "in_the_network": [], "bare": [], "rest": []}
        for _ in range(TURNS):
            times["bare"].append(seconds(lambda: [model.predict(batch, batch_size=BATCH) for batch in batches]))
            with clocked() as passes:
                times["whole"].append(seconds(lambda: run(model)))
            times["in_the_network"].append(sum(passes))
            times["rest"].append(seconds(lambda: run(Copy(config))))
    median = {name: statistics.median(values) for name, values in times.items()}
    n_tiles = sum(map(len, batches))
    return {
        "side_px": side,
        "tiles": n_tiles,
        "seconds": {name: [round(value, 3) for value in values] for name, values in times.items()},
        "tiles_per_s": n_tiles / median["whole"],
        "megapixels_per_s": side * side / 1e6 / median["whole"],
        "of_bare": median["bare"] / median["whole"],
        "of_the_rest": (median["whole"] - median["bare"]) / median["rest"],
        "network_of_bare": median["in_the_network"] / median["bare"],
        "outside_of_the_rest": (median["whole"] - median["in_the_network"]) / median["rest"],
    }


def on_device(device: str) -> dict:
    """SD-Turbo's size in bf16: tiles of 512 px per second, and the part of the measured rate of matrix products."""
    from torch.utils.flop_counter import FlopCounterMode

    config = sthist.models.ST2HEConfig.sd_turbo(None)
    model = sthist.models.ST2HE(config)
    tiles = np.random.default_rng(0).integers(1, 255, (64, 512, 512, 3), dtype=np.uint8)
    square = torch.randn(8192, 8192, device=device, dtype=torch.bfloat16)
    square @ square
    torch.cuda.synchronize()
    rate = 20 * 2 * 8192**3 / seconds(lambda: ([square @ square for _ in range(20)], torch.cuda.synchronize()))
    found = {"device": torch.cuda.get_device_name(), "matrix_tflops": rate / 1e12}
    flops: dict[int, float] = {}
    for name, compiled in (("eager", False), ("compiled", True)):
        running = model.to(device, compile=compiled)
        for batch in (1, 4, 16):
            predict = partial(running.predict, batch_size=batch)
            predict(tiles[:batch])
            if not compiled:
                with FlopCounterMode(display=False) as counter:
                    predict(tiles[:batch])
                flops[batch] = counter.get_total_flops() / batch
            took = statistics.median(seconds(partial(predict, tiles)) for _ in range(TURNS))
            per_s = len(tiles) / took
            found[f"{name}_{batch}"] = {
                "tiles_per_s": per_s,
                "tflop_per_tile": flops[batch] / 1e12,
                "of_matrix_rate": per_s * flops[batch] / rate,
            }
    return found


def main() -> None:
    """Time, print, and say by the exit status whether the limit is kept."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--side", type=int, default=2048)
    parser.add_argument("--molecules", choices=sorted(SEEN), default="dots")
    parser.add_argument("--device")
    parser.add_argument("--json", type=Path)
    arguments = parser.parse_args()
    result = {
        "command": "python bench/virtual_he.py",
        "machine": f"{platform.machine()}, {os.cpu_count()} cores, Python {platform.python_version()}",
    }
    if arguments.device:
        result |= on_device(arguments.device)
    else:
        result["molecules"] = arguments.molecules
        result |= pipeline(sthist.models.ST2HEConfig(size_um=64.0, px=128, **SEEN[arguments.molecules]), arguments.side)
        result["kept"] = result["of_the_rest"] <= MOST_OF_THE_REST
    print(json.dumps(result, indent=1))
    if arguments.json:
        arguments.json.write_text(json.dumps(result, indent=1) + "\n")
    raise SystemExit(not result.get("kept", True))


if __name__ == "__main__":
    main()
