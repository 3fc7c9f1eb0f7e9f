"""Expression from histology: 100,000 tiles to a store, training of GenST from slides, memory by number of slides.

Run ``python bench/expression.py [--json FILE] [--folder DIR] [--parts predict train slides] [--tiles 100000]``. Each
measurement is a process of its own, which opens its store as a user would. Memory is the high-water mark of the whole
process, libraries included, and what it is above that after the imports. Others may use the machine, too: its load
stands beside, and seconds of the processor beside those of the clock.

``predict``: ``tl.expression`` with ridge on stored embeddings, and the same product of matrices with its result written
to zarr in the same chunks, and nothing else: the limit.

``train``: an epoch of GenST on a ResNet-50, by ``fit``, from a slide on zarr and from the same tiles in memory, in
turns in one process, and reading alone. The limit is the time from memory and 1.2 times that of reading alone. The
network takes a thousand times as long as reading, and differs by more than that from one turn to the next, so that what
counts is how long the training waits for its batches; both epochs as a whole stand beside.

``slides``: the most memory of a training on 96 tiles of 1, 4 and 16 slides of one size, each of more pixels (0.31 GB)
than a reader keeps decoded (0.27 GB).
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import os
import platform
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

TILES, GENES, DIM, TILE_UM = 100_000, 5_000, 512, 112.0
SIDE_PX, MPP, BATCH, TURNS, SLIDES = 10240, 0.5, 16, 3, (1, 4, 16)
MOST_SECONDS, MOST_GB, MOST_OF_READING, MOST_GROWTH = 60.0, 2.0, 1.2, 0.05  # what is promised, and kept or not


def resident() -> dict[str, int]:
    """Bytes that this process holds, and the most that it has held."""
    fields = dict(line.split(":", 1) for line in Path("/proc/self/status").read_text().splitlines() if ":" in line)
    return {name: int(fields[name].split()[0]) * 1024 for name in ("VmRSS", "VmHWM")}


def measure(call: Any) -> dict[str, float]:
    """Seconds of a call, by the clock and of the cores, and the most memory of the process."""
    before = resident()["VmRSS"]
    Path("/proc/self/clear_refs").write_text("5")  # the high-water mark begins anew
    start, worked = time.perf_counter(), time.process_time()
    facts = call() or {}
    seconds = {"seconds": time.perf_counter() - start, "cpu_seconds": time.process_time() - worked}
    most = resident()["VmHWM"]
    return seconds | {"gb": most / 1e9, "gb_above_start": (most - before) / 1e9, **facts}


def make_embedded(store: Path, n: int) -> None:
    """A store of tiles that are embedded, and beside it a ridge that knows 5,000 genes."""
    import geopandas as gpd
    import numpy as np
    import pandas as pd
    import spatialdata as sd
    from anndata import AnnData
    from spatialdata.models import ShapesModel, TableModel
    from spatialdata.transformations import Identity

    import sthist

    rng = np.random.default_rng(0)
    side = int(np.ceil(np.sqrt(n)))
    centres = np.stack(np.divmod(np.arange(n), side)[::-1], 1) * TILE_UM + TILE_UM / 2
    shapes = ShapesModel.parse(
        gpd.GeoDataFrame({"radius": np.full(n, TILE_UM / 2)}, geometry=gpd.points_from_xy(*centres.T)),
        transformations={"um": Identity(), "global": Identity()},
    )
    obs = pd.DataFrame({"region": pd.Categorical(["tiles"] * n), "instance_id": np.arange(n)})
    obs.index = obs.index.astype(str)
    features = rng.normal(size=(n, DIM)).astype(np.float32)
    table = AnnData(obs=obs, obsm={"spatial": centres, "X_features": features})
    table = TableModel.parse(table, region="tiles", region_key="region", instance_key="instance_id")
    sd.SpatialData(shapes={"tiles": shapes}, tables={"tiles_table": table}).write(store)
    known = AnnData(
        np.abs(features[:1000] @ rng.normal(size=(DIM, GENES)).astype(np.float32)) / 10,
        obs=pd.DataFrame({"part": ["train", "test"] * 500}, index=[f"spot_{i}" for i in range(1000)]),
        var=pd.DataFrame(index=[f"gene_{i}" for i in range(GENES)]),
        obsm={"spatial": centres[:1000], "X_features": features[:1000]},
    )
    sthist.tl.train_expression(known, split="part").save(store.parent / "ridge")


def run_predict(store: Path) -> dict[str, Any]:
    """``tl.expression``, from the store to a table in the store."""
    import spatialdata as sd

    import sthist
    from sthist.systems.expression import apply  # noqa: F401 - what the call would import

    def call() -> dict[str, Any]:
        sdata = sd.read_zarr(store)
        sthist.tl.expression(sdata, store.parent / "ridge", regions="tiles", overwrite=True)
        table = sdata["tiles_table_ridge"]
        return {"n_tiles": table.n_obs, "n_genes": table.n_vars, "X": type(table.X).__module__}

    return measure(call)


def run_product(store: Path) -> dict[str, Any]:
    """The limit: the table's embeddings times the weights, written block by block, and nothing else."""
    import anndata as ad
    import zarr
    from safetensors.numpy import load_file

    def call() -> None:
        features = ad.io.read_elem(zarr.open_group(store)["tables/tiles_table/obsm/X_features"])
        weights = load_file(store.parent / "ridge" / "model.safetensors")
        n, width = len(features), len(weights["bias"])
        target = zarr.create_array(
            store.parent / "product.zarr", shape=(n, width), dtype="float32", chunks=(1024, 1024), overwrite=True
        )
        for start in range(0, n, 3072):
            target[start : start + 3072] = features[start : start + 3072] @ weights["weight"] + weights["bias"]

    return measure(call)


def make_slide(store: Path, seed: int = 0) -> None:
    """An H&E on zarr with spots of tiles, whose genes follow its colours."""
    import numpy as np
    import pandas as pd
    import spatialdata as sd
    from anndata import AnnData
    from spatialdata.models import Image2DModel, ShapesModel, TableModel
    from spatialdata.transformations import Identity, Scale

    import sthist

    rng = np.random.default_rng(seed)
    # Tissue of a toy, side by side: as hard to decompress as any.
    patch = sthist.datasets.toy(size_um=256, seed=seed)["he"].to_numpy()
    times = -(-SIDE_PX // patch.shape[1])
    pixels = np.tile(patch, (1, times, times))[:, :SIDE_PX, :SIDE_PX]
    pixels = np.clip(pixels + rng.integers(-3, 4, pixels.shape), 0, 255).astype(np.uint8)
    um = Scale([MPP, MPP], axes=("x", "y"))
    step = np.arange(TILE_UM, SIDE_PX * MPP - TILE_UM, 2 * TILE_UM)
    centres = np.stack(np.meshgrid(step, step), -1).reshape(-1, 2)
    n = len(centres)
    obs = pd.DataFrame({"region": pd.Categorical(["spots"] * n), "instance_id": np.arange(n)}, index=map(str, range(n)))
    table = AnnData(
        rng.poisson(2.0, (n, 1000)).astype(np.float32),
        obs=obs,
        var=pd.DataFrame(index=[f"gene_{i}" for i in range(1000)]),
        obsm={"spatial": centres},
    )
    sdata = sd.SpatialData(
        images={
            "he": Image2DModel.parse(
                pixels, dims=("c", "y", "x"), chunks=(3, 1024, 1024), transformations={"um": um, "global": Identity()}
            )
        },
        shapes={"spots": ShapesModel.parse(centres, geometry=0, radius=27.5, transformations={"um": Identity()})},
        tables={"table": TableModel.parse(table, region="spots", region_key="region", instance_key="instance_id")},
    )
    sthist.pp.set_scale(sdata, "he", mpp=MPP, overwrite=True)
    sdata.write(store)


def collected(stores: list[Path], config: Any) -> tuple[Any, Any, Any]:
    """A model that is not trained, and readers and genes of slides."""
    import spatialdata as sd

    import sthist
    from sthist.regression.data.expression import expression_targets
    from sthist.regression.rows import expression_rows

    model = sthist.models.GenST(config)
    rows = expression_rows({store.stem: sd.read_zarr(store) for store in stores}, None, None)
    return model, model.collect(rows), expression_targets(rows, None)


def run_train(store: Path) -> dict[str, Any]:
    """An epoch from zarr and from memory, in turns."""
    import logging
    import statistics

    import numpy as np
    import torch

    import sthist
    from sthist.regression.data.inputs import Inputs, TileArray

    class Clocked(Inputs):
        """Says how long batches were waited for."""

        def __init__(self, inputs: Inputs) -> None:
            self.inputs, self.waited = inputs, 0.0

        def __len__(self) -> int:
            return len(self.inputs)

        def take(self, rows: Any) -> Any:
            return self.inputs.take(rows)

        def shuffled(self, *arguments: Any) -> Any:
            batches = iter(self.inputs.shuffled(*arguments))
            while True:
                start = time.perf_counter()
                batch = next(batches, None)
                self.waited += time.perf_counter() - start
                if batch is None:
                    return
                yield batch

    logging.getLogger("lightning").setLevel(logging.ERROR)
    model, tissue, targets = collected([store], sthist.models.GenSTConfig(backbone="resnet50", pretrained=False))
    rows = np.arange(2 * BATCH)
    training = {"epochs": 1, "batch_size": BATCH, "patience": None}
    memory = TileArray(tissue.take(np.arange(2 * BATCH)))
    few = dataclasses.replace(targets, values=targets.values[rows], sample=targets.sample[rows])

    def fit(inputs: Any) -> tuple[float, float]:
        clocked = Clocked(inputs)
        start = time.perf_counter()
        own = few if inputs is memory else targets
        type(model)(model.config).fit(clocked, own, rows=rows, training=training, progress=False)
        return time.perf_counter() - start, clocked.waited

    def read() -> tuple[float, float]:
        start = time.perf_counter()
        for _ in tissue.shuffled(rows, BATCH, 0, 0):
            pass
        return (time.perf_counter() - start,) * 2

    calls = {"slide": lambda: fit(tissue), "memory": lambda: fit(memory), "reading": read}
    read()  # what is compiled, and what is imported
    took = {name: [] for name in calls}
    for _ in range(TURNS):
        for name, call in calls.items():
            took[name].append(call())
    whole, waited = ({name: statistics.median(each[i] for each in took[name]) for name in took} for i in (0, 1))
    return {
        "tiles": len(rows),
        "batch": BATCH,
        "threads": torch.get_num_threads(),
        "seconds": {name: [round(each[0], 3) for each in took[name]] for name in took},
        "waited_for_batches": {name: [round(each[1], 3) for each in took[name]] for name in took},
        "slide_by_memory": whole["slide"] / whole["memory"],
        "waiting_by_reading": (waited["slide"] - waited["memory"]) / waited["reading"],
        "reading_by_memory": whole["reading"] / whole["memory"],
    }


def run_slides(folder: Path) -> dict[str, Any]:
    """The most memory of a training from all slides in a folder."""
    import numpy as np

    import sthist

    config = sthist.models.GenSTConfig(
        backbone="resnet10t", pretrained=False, hidden=(64,), n_atoms=32, loss_weights={"image": 0}
    )

    def call() -> dict[str, Any]:
        stores = sorted(folder.glob("*.zarr"))
        model, tissue, targets = collected(stores, config)
        rows = np.linspace(0, len(targets) - 1, 6 * BATCH).astype(int)  # of all slides
        training = {"epochs": 1, "batch_size": BATCH, "patience": None}
        model.fit(tissue, targets, rows=rows, training=training, progress=False)
        return {"slides": len(stores), "tiles": len(rows)}

    return measure(call)


RUNS = {"predict": run_predict, "product": run_product, "train": run_train, "slides": run_slides}


def child(kind: str, store: Path) -> dict[str, Any]:
    """What a process of its own measures."""
    command = [sys.executable, "-W", "ignore", __file__, "--child", kind, "--folder", str(store)]
    result = json.loads(subprocess.run(command, check=True, stdout=subprocess.PIPE).stdout.splitlines()[-1])
    result["load_of_last_minute"] = os.getloadavg()[0]
    print(f"{kind}: {result}", flush=True)
    return result  # type: ignore[no-any-return]


def bench_predict(root: Path, n: int) -> dict[str, Any]:
    """Prediction out of core, against its limit."""
    store = root / "tiles.zarr"
    make_embedded(store, n)
    found, limit = child("predict", store), child("product", store)
    return {
        "tl.expression": found,
        "product_and_zarr_alone": limit,
        "by_the_limit": found["seconds"] / limit["seconds"],
        "kept": found["seconds"] <= MOST_SECONDS and found["gb"] <= MOST_GB,
    }


def bench_train(root: Path) -> dict[str, Any]:
    """Training from a slide, against training from memory."""
    make_slide(root / "slide.zarr")
    found = child("train", root / "slide.zarr")
    return found | {"kept": found["waiting_by_reading"] <= MOST_OF_READING}


def bench_slides(root: Path) -> dict[str, Any]:
    """Memory by the number of slides."""
    found = {}
    for n in SLIDES:
        folder = root / f"{n}_slides"
        folder.mkdir()
        for i in range(n):
            if i == 0 and n > SLIDES[0]:
                (root / f"{SLIDES[0]}_slides" / "slide00.zarr").rename(folder / "slide00.zarr")
            elif i == 0:
                make_slide(folder / "slide00.zarr")
            else:
                shutil.copytree(folder / "slide00.zarr", folder / f"slide{i:02d}.zarr", copy_function=os.link)
        found[str(n)] = child("slides", folder)
        if n > SLIDES[0]:
            (folder / "slide00.zarr").rename(root / f"{SLIDES[0]}_slides" / "slide00.zarr")
            shutil.rmtree(folder)
    growth = found[str(SLIDES[-1])]["gb"] / found[str(SLIDES[0])]["gb"] - 1
    return {"pixels_of_a_slide_gb": 3 * SIDE_PX**2 / 1e9, **found, "growth": growth, "kept": growth <= MOST_GROWTH}


def main() -> int:
    """Measure, print, and keep."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--json", type=Path)
    parser.add_argument("--folder", type=Path)
    parser.add_argument("--parts", nargs="+", default=["predict", "train", "slides"])
    parser.add_argument("--tiles", type=int, default=TILES)
    parser.add_argument("--child")
    options = parser.parse_args()
    if options.child:
        print(json.dumps(RUNS[options.child](options.folder)))
        return 0
    results: dict[str, Any] = {
        "command": "python bench/expression.py",
        "machine": f"{platform.machine()}, {os.cpu_count()} cores, Python {platform.python_version()}",
    }
    parts = {"slides": bench_slides, "train": bench_train, "predict": lambda root: bench_predict(root, options.tiles)}
    for name in options.parts:
        root = Path(tempfile.mkdtemp(dir=options.folder))
        results[name] = parts[name](root)
        shutil.rmtree(root)
        if options.json:
            options.json.write_text(json.dumps(results, indent=1) + "\n")
    return int(not all(part["kept"] for part in results.values() if isinstance(part, dict)))


if __name__ == "__main__":
    sys.exit(main())
