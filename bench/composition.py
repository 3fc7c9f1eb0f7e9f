"""Cell composition: what an epoch of Hist2Cell costs, in epochs of a network on stored embeddings.

Run ``python bench/composition.py [--json FILE] [--spots 1000] [--steps 3]``. Each model is trained by ``fit`` in a
process of its own, on the same number of spots and types, in its published size: seven layers on 1,536 features of a
spot, in batches of 512; and a ResNet-18 on tiles of 224 px, in batches of 16 spots and all within two steps of them.
What pixels and targets are does not matter to either.

Time is that from one epoch to the next, after the first. An epoch of Hist2Cell takes too long on a CPU, so that a few
of its batches are timed and their mean is multiplied. Memory is the high-water mark of the process above what it held
after the imports, with the spots in memory: features in one case, tiles in the other. ``hist2cell_frozen`` is the same
network on features of its backbone that are stored. Embeddings have to be made once, too: ``embedding`` is a network of
UNI's size (ViT-L/16), with random weights, on a few tiles.
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
from typing import Any

PX, TYPES, FEATURES, POOLED, EMBEDDED = 224, 80, 1536, 512, 4
PAPER = {"seconds_per_epoch": 40, "memory": 79}  # about, on a GPU, and with settings that are not published


def resident() -> dict[str, int]:
    """Bytes that this process holds, and the most that it has held."""
    fields = dict(line.split(":", 1) for line in Path("/proc/self/status").read_text().splitlines() if ":" in line)
    return {name: int(fields[name].split()[0]) * 1024 for name in ("VmRSS", "VmHWM")}


def clocked(inputs: Any) -> Any:
    """The same inputs, which note in ``epochs`` when each batch is asked for, and its rows."""
    epochs: list[list[tuple[float, float, int]]] = []

    class Clocked(type(inputs)):  # type: ignore[misc]
        def shuffled(self, *arguments: Any) -> Any:
            asked: list[tuple[float, float, int]] = []
            epochs.append(asked)
            for rows, batch in super().shuffled(*arguments):
                asked.append((time.perf_counter(), time.process_time(), len(rows)))
                yield rows, batch
            asked.append((time.perf_counter(), time.process_time(), 0))

    # Others may use the machine, too: seconds of the processor stand beside those of the clock.
    same = Clocked(**{name: getattr(inputs, name) for name in type(inputs).__dataclass_fields__})
    object.__setattr__(same, "epochs", epochs)
    return same


def train(model: Any, arrays: Any, n: int, *, epochs: int, centres: int | None = None) -> dict[str, Any]:
    """Seconds of a batch and memory of a training; ``arrays`` makes what the model takes."""
    import numpy as np
    import torch

    import sthist
    from sthist.regression.data.graph import as_graph
    from sthist.regression.data.inputs import as_inputs

    rng = np.random.default_rng(0)
    small = sthist.models.CompositionMLP(sthist.models.CompositionMLPConfig(widths=(8,)))
    small.fit(rng.normal(size=(20, 3)), rng.random((20, 2)), training={"epochs": 1}, progress=False)  # what is imported
    before = resident()["VmRSS"]
    Path("/proc/self/clear_refs").write_text("5")  # the high-water mark begins anew
    inputs = as_inputs(arrays(rng))
    inputs = clocked(as_graph(inputs) if "places" in inputs.arrays else inputs)
    targets = rng.dirichlet(np.ones(TYPES), n).astype(np.float32)
    rows = None if centres is None else rng.permutation(n)[:centres]
    model.fit(inputs, targets, rows=rows, training={"epochs": epochs, "patience": None}, progress=False)
    most = resident()["VmHWM"]
    size = model.options(None).batch_size
    batches = -(-n // size)
    if epochs == 1:
        # Two batches are read before the first is used: from then on each is asked for when one has been.
        steps = np.diff(inputs.epochs[0][1:], axis=0)[:, :2]
    else:
        steps = np.diff([epoch[0][:2] for epoch in inputs.epochs[1:]], axis=0) / batches
    seconds, cpu_seconds = (batches * steps.mean(axis=0)).tolist()
    return {
        "parameters": sum(each.numel() for each in model.net.parameters()),
        "spots": n,
        "batch_size": size,
        "rows_of_a_batch": [rows for epoch in inputs.epochs for _, _, rows in epoch if rows][:4],
        "timed": f"{len(steps)} {'batches' if epochs == 1 else 'epochs'}",
        "batches_of_an_epoch": batches,
        "seconds_per_epoch": seconds,
        "cpu_seconds_per_epoch": cpu_seconds,
        "gb": most / 1e9,
        "gb_above_start": (most - before) / 1e9,
        "threads": torch.get_num_threads(),
    }


def places(n: int) -> Any:
    """Visium's, in µm."""
    import numpy as np

    row, step = np.divmod(np.arange(n), int(np.sqrt(n)))
    return np.stack([100 * (step + row % 2 / 2), 50 * 3**0.5 * row], axis=1)


def run_mlp(n: int, steps: int) -> dict[str, Any]:
    """Ten epochs of the network on embeddings."""
    import sthist

    return train(sthist.models.CompositionMLP(), lambda rng: {"spot": rng.normal(size=(n, FEATURES))}, n, epochs=10)


def run_hist2cell(n: int, steps: int) -> dict[str, Any]:
    """Some batches of Hist2Cell, of spots that lie anywhere on the slide."""
    import sthist

    def arrays(rng: Any) -> dict[str, Any]:
        return {"tiles": rng.integers(0, 256, (n, PX, PX, 3), dtype="uint8"), "places": places(n)}

    model = sthist.models.Hist2Cell(sthist.models.Hist2CellConfig(pretrained=False))
    # Spots beside those that train are there as neighbours, so that batches are those of a whole epoch.
    return train(model, arrays, n, epochs=1, centres=model.options(None).batch_size * (steps + 1))


def run_hist2cell_frozen(n: int, steps: int) -> dict[str, Any]:
    """Epochs of Hist2Cell on features that are stored."""
    import sthist

    def arrays(rng: Any) -> dict[str, Any]:
        return {"spot": rng.normal(size=(n, POOLED)), "places": places(n)}

    return train(sthist.models.Hist2Cell(), arrays, n, epochs=4)


def run_embedding(n: int, steps: int) -> dict[str, Any]:
    """A tile through a network as large as UNI."""
    import timm
    import torch

    net = timm.create_model("vit_large_patch16_224", pretrained=False, num_classes=0).eval()
    took = []
    with torch.inference_mode():
        for _ in range(2):
            start = time.perf_counter()
            net(torch.zeros(EMBEDDED, 3, PX, PX))
            took.append((time.perf_counter() - start) / EMBEDDED)
    return {"tiles_timed": EMBEDDED, "seconds_per_spot": took[-1], "seconds_per_slide": took[-1] * n}


RUNS = {
    "mlp": run_mlp,
    "hist2cell": run_hist2cell,
    "hist2cell_frozen": run_hist2cell_frozen,
    "embedding": run_embedding,
}


def child(kind: str, n: int, steps: int) -> dict[str, Any]:
    """What a process of its own measures."""
    command = [sys.executable, "-W", "ignore", __file__, "--child", kind, "--spots", str(n), "--steps", str(steps)]
    result = json.loads(subprocess.run(command, check=True, stdout=subprocess.PIPE).stdout.splitlines()[-1])
    result["load_of_last_minute"] = os.getloadavg()[0]
    print(f"{kind}: {result}", flush=True)
    return result  # type: ignore[no-any-return]


def main() -> None:
    """Measure, print, and keep."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--json", type=Path)
    parser.add_argument("--spots", type=int, default=1000)
    parser.add_argument("--steps", type=int, default=3)
    parser.add_argument("--child")
    options = parser.parse_args()
    if options.child:
        print(json.dumps(RUNS[options.child](options.spots, options.steps)))
        return
    found = {kind: child(kind, options.spots, options.steps) for kind in RUNS}
    of_mlp = found["mlp"]
    for kind in ("hist2cell", "hist2cell_frozen"):
        costs = ("seconds_per_epoch", "cpu_seconds_per_epoch", "gb_above_start", "gb")
        found[kind]["in_units_of_mlp"] = {name: round(found[kind][name] / of_mlp[name], 1) for name in costs}
        print(kind, found[kind]["in_units_of_mlp"])
    machine = f"{platform.machine()}, {os.cpu_count()} cores, Python {platform.python_version()}"
    results = {
        "command": f"python bench/composition.py --spots {options.spots} --steps {options.steps}",
        "machine": machine,
        **found,
    }
    results["of_the_paper"] = PAPER
    if options.json:
        options.json.write_text(json.dumps(results, indent=1) + "\n")


if __name__ == "__main__":
    main()
