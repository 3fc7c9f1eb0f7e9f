"""Single cells: an epoch of sCellST beside what it could cost, and the prediction of whole slides.

Run ``python bench/cells.py [--json FILE] [--epochs 3]``. Each part is measured in a process of its own.

``epoch``: 3,000 spots of 15 cells of 2,048 features, 1,000 genes, batches of 128 spots. ``SCellST.fit`` stands beside
``per_spot``, the same network, optimiser and steps, but a forward pass for each spot, as bags of different sizes ask
for without a segment mean; and ``bare``, the network on batches that were put together before and whose spots all have
15 cells, so that nothing is gathered and the mean is one over an axis. The three take turns.

``predict``: cells from embeddings of float16, 2,048 features to 1,000 genes, batch after batch as
``tl.cell_expression`` asks for them. Memory is the high-water mark above what the process held with the embeddings, at
two numbers of cells.

Others may use the machine, too: seconds of the processor stand beside those of the clock.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import subprocess
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Callable

SPOTS, PER_SPOT, FEATURES, GENES, BATCH = 3000, 15, 2048, 1000, 128
CELLS = (75_000, 300_000)


def resident() -> dict[str, int]:
    """Bytes that this process holds, and the most that it has held."""
    fields = dict(line.split(":", 1) for line in Path("/proc/self/status").read_text().splitlines() if ":" in line)
    return {name: int(fields[name].split()[0]) * 1024 for name in ("VmRSS", "VmHWM")}


def clocks() -> tuple[float, float]:
    """Seconds of the clock and of the processor."""
    return time.perf_counter(), time.process_time()


def run_epoch(epochs: int) -> dict[str, Any]:
    """Seconds of an epoch of each, the three in turns."""
    import numpy as np
    import torch

    from sthist.models import Bags, SCellST, SCellSTConfig

    rng = np.random.default_rng(0)
    cells = rng.normal(size=(SPOTS * PER_SPOT, FEATURES)).astype(np.float32)
    spot = rng.permutation(np.repeat(np.arange(SPOTS), PER_SPOT))
    targets = rng.random((SPOTS, GENES), dtype=np.float32)
    asked: list[tuple[float, float]] = []

    class Clocked(Bags):
        def shuffled(self, *arguments: Any) -> Any:
            asked.append(clocks())
            yield from super().shuffled(*arguments)

    bags = Clocked(cells, spot)
    order = np.argsort(spot, kind="stable").reshape(SPOTS, PER_SPOT)
    settings = SCellSTConfig(standardize="none", scaling=None)

    def fit() -> None:
        asked.clear()
        SCellST(settings).fit(bags, targets, training={"epochs": epochs + 1, "patience": None}, progress=False)

    loops: dict[str, Callable[[Any, Any, Any], Any]] = {
        "per_spot": lambda net, batch, wanted: torch.nn.functional.mse_loss(
            torch.stack([net({"cells": each}).mean(dim=0) for each in batch]), wanted
        ),
        "bare": lambda net, batch, wanted: torch.nn.functional.mse_loss(
            net({"cells": batch.flatten(0, 1)}).unflatten(0, (-1, PER_SPOT)).mean(dim=1), wanted
        ),
    }
    model = SCellST(settings)
    model.settle(bags, None, np.arange(10))  # type: ignore[arg-type]
    took: dict[str, list[tuple[float, float]]] = {"fit": [], **{name: [] for name in loops}}
    for turn in range(2):
        fit()
        steps = np.diff(asked, axis=0)[turn == 0 :]
        took["fit"] += [tuple(step) for step in steps]
        for name, loss in loops.items():
            net = model.make_net(GENES, np.zeros(GENES, np.float32), np.ones(GENES, np.float32)).train()
            optimizer = torch.optim.AdamW(net.parameters(), lr=1e-4, weight_decay=1e-2)
            spots = rng.permutation(SPOTS)
            parts = [spots[start : start + BATCH] for start in range(0, SPOTS, BATCH)]
            batches = [(torch.from_numpy(cells[order[part]]), torch.from_numpy(targets[part])) for part in parts]
            start = clocks()
            for batch, wanted in batches:
                optimizer.zero_grad()
                loss(net, batch, wanted).backward()
                optimizer.step()
            took[name].append(tuple(np.subtract(clocks(), start)))
            del batches
    seconds = {name: np.median(each, axis=0).tolist() for name, each in took.items()}
    found = {
        name: {"seconds": clock, "cpu_seconds": cpu, "epochs": len(took[name])}
        for name, (clock, cpu) in seconds.items()
    }
    faster = {name: [seconds[name][i] / seconds["fit"][i] for i in (0, 1)] for name in loops}
    return {
        **found,
        "times_per_spot": dict(zip(("clock", "cpu"), faster["per_spot"], strict=True)),
        "part_of_bare": dict(zip(("clock", "cpu"), faster["bare"], strict=True)),
        "threads": torch.get_num_threads(),
    }


def run_predict(n: int) -> dict[str, Any]:
    """Seconds and memory of all cells of a slide."""
    import numpy as np
    import torch

    from sthist.models import Bags, SCellST

    rng = np.random.default_rng(0)
    small = rng.normal(size=(200, FEATURES)).astype(np.float32)
    model = SCellST().fit(small, rng.random((200, GENES)), training={"epochs": 1, "patience": None}, progress=False)
    cells = np.empty((n, FEATURES), np.float16)
    for start in range(0, n, 10_000):
        part = cells[start : start + 10_000]
        part[:] = rng.standard_normal(part.shape, np.float32)
    bags = Bags(cells)
    model.predict(small)
    before = resident()["VmRSS"]
    Path("/proc/self/clear_refs").write_text("5")  # the high-water mark begins anew
    start = clocks()
    done = sum(len(part) for part, _ in model.predict_batches(bags, np.arange(n)))
    clock, cpu = np.subtract(clocks(), start).tolist()
    return {
        "cells": done,
        "seconds": clock,
        "cpu_seconds": cpu,
        "mb_above_embeddings": (resident()["VmHWM"] - before) / 1e6,
        "threads": torch.get_num_threads(),
    }


def child(kind: str, number: int) -> dict[str, Any]:
    """What a process of its own measures."""
    command = [sys.executable, "-W", "ignore", __file__, "--child", kind, str(number)]
    result = json.loads(subprocess.run(command, check=True, stdout=subprocess.PIPE).stdout.splitlines()[-1])
    result["load_of_last_minute"] = os.getloadavg()[0]
    print(f"{kind}: {result}", flush=True)
    return result  # type: ignore[no-any-return]


def main() -> None:
    """Measure, print, and keep."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--json", type=Path)
    parser.add_argument("--epochs", type=int, default=3)
    parser.add_argument("--child", nargs=2)
    options = parser.parse_args()
    if options.child:
        kind, number = options.child
        print(json.dumps({"epoch": run_epoch, "predict": run_predict}[kind](int(number))))
        return
    results = {
        "command": f"python bench/cells.py --epochs {options.epochs}",
        "machine": f"{platform.machine()}, {os.cpu_count()} cores, Python {platform.python_version()}",
        "epoch": child("epoch", options.epochs),
        "predict": {str(n): child("predict", n) for n in CELLS},
    }
    if options.json:
        options.json.write_text(json.dumps(results, indent=2) + "\n")


if __name__ == "__main__":
    main()
