"""Embedding a slide: how much of the bare encoder's speed is left, and what the tiles take in memory.

Run ``python bench/embed.py [--tiles 2025] [--json FILE] [--folder DIR] [--image FILE]``. A slide is made on disk (zarr,
chunks of 512, a pyramid) from an H&E, repeated and mirrored, or from the toy's; side by side, its tiles of 224 pixels
are read, embedded and stored by ``pp.embed``, and the same encoder gets the same tiles from memory, in the same
batches, in the same process, in turns; of several turns the medians count. The limits: on a processor, where reading
takes the encoder's own cores, the bare time and that of reading alone; on an accelerator the bare time.
``timm:resnet18`` and, on cuda, ViT-L/16 in bf16 have random weights, which take as long as any. LazySlide's
``feature_extraction`` gets the same network (as a timm model in evaluation mode, channels-last) and the same slide,
where it is installed. Memory is that of a process of its own above its imports, for 10,000 and for 100,000 tiles, with
a function in place of a network, whose rows are as long as a ResNet-18's: while tiles are embedded, and in all, with
the table in memory and another copy of it, which is read back from the store.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

PX, MPP, BATCH = 224, 0.5, 32
WIDTH = 512
LEAST_OF_BARE, MOST_OF_READING = 0.9, 1.2  # what is promised; the exit status says whether it is kept
MOST_GROWTH = 0.1


def make_slide(folder: Path, side: int, image: Path | None) -> None:
    """A slide of ``side`` pixels, and tiles side by side on it."""
    import numpy as np
    import spatialdata as sd
    from spatialdata.models import Image2DModel
    from spatialdata.transformations import Scale

    import sthist

    if image is None:
        pixels = np.asarray(sthist.datasets.toy(size_um=1000)["he"])
    else:
        from PIL import Image

        Image.MAX_IMAGE_PIXELS = None
        pixels = np.asarray(Image.open(image).convert("RGB")).transpose(2, 0, 1)
        height, width = pixels.shape[1:]
        pixels = pixels[:, height // 4 : -height // 4, width // 4 : -width // 4]  # less of the glass around
    pad = [(0, 0), *((0, max(0, side - n)) for n in pixels.shape[1:])]
    pixels = np.pad(pixels, pad, mode="symmetric")[:, :side, :side]
    at = {"um": Scale([MPP, MPP], ("x", "y"))}
    he = Image2DModel.parse(
        pixels, c_coords=["r", "g", "b"], scale_factors=[2, 2], chunks=(3, 512, 512), transformations=at
    )
    sd.SpatialData(images={"he": he}).write(folder)


def lay_tiles(store: Path, n: int) -> None:
    """Tiles on a square grid over the slide, which overlap where there are many."""
    import geopandas as gpd
    import numpy as np
    import shapely
    import spatialdata as sd
    from spatialdata.models import ShapesModel
    from spatialdata.transformations import Identity

    sdata = sd.read_zarr(store)
    height, width = sdata["he"]["scale0"].image.shape[1:]
    per_side = round(n**0.5)
    half = PX * MPP / 2
    centres = [np.linspace(half, size * MPP - half, per_side) for size in (width, height)]
    x, y = (grid.ravel() for grid in np.meshgrid(*centres))
    squares = gpd.GeoDataFrame(geometry=shapely.box(x - half, y - half, x + half, y + half))
    sdata["squares"] = ShapesModel.parse(squares, transformations={"um": Identity()})
    sdata.write_element("squares")


def network(name: str, device: str):
    """A timm model of random weights, and the encoder that it becomes."""
    import timm
    import torch

    import sthist

    torch.manual_seed(0)
    module = timm.create_model(name, pretrained=False, num_classes=0).eval()
    return sthist.encoders.get(module, name=name, device=device)


def bare(encoder, tiles) -> float:
    """Seconds of the encoder on tiles in memory; what it gives comes back, as it has to."""
    start = time.perf_counter()
    for _ in encoder.embed_batches(tiles[at : at + BATCH] for at in range(0, len(tiles), BATCH)):
        pass
    return time.perf_counter() - start


def pipeline(encoder, store: Path) -> float:
    """Seconds of ``pp.embed``, from the slide on disk to the table on disk."""
    import spatialdata as sd

    import sthist

    sdata = sd.read_zarr(store)
    spec = sthist.tiles.TileSpec(PX * MPP, PX)
    start = time.perf_counter()
    sthist.pp.embed(sdata, encoder, regions="squares", spec=spec, batch_size=BATCH, progress=False)
    seconds = time.perf_counter() - start
    sdata.delete_element_from_disk("squares_table")
    return seconds


def read_all(store: Path):
    """All tiles, and the seconds of reading them."""
    import numpy as np
    import spatialdata as sd

    import sthist

    sdata = sd.read_zarr(store)
    reader = sthist.tiles.TileReader(sdata, "he", sthist.tiles.TileSpec(PX * MPP, PX), fill=255)
    places = np.stack([sdata["squares"].centroid.x, sdata["squares"].centroid.y], axis=1)
    places = places[reader.order(places)]
    out = np.empty((len(places), PX, PX, 3), np.uint8)
    start = time.perf_counter()
    for at in range(0, len(places), 256):
        reader.read(places[at : at + 256], out=out[at : at + 256])
    return out, time.perf_counter() - start


def lazyslide(name: str, store: Path, device: str) -> dict | None:
    """Seconds of LazySlide on the same slide and network; None where it is not installed."""
    try:
        import lazyslide as zs
        import wsidata
    except ImportError:
        return None
    import spatialdata as sd
    import timm
    import torch
    from torchvision.transforms import v2

    torch.manual_seed(0)
    module = timm.create_model(name, pretrained=False, num_classes=0).eval().to(memory_format=torch.channels_last)
    normalise = v2.Compose(
        [
            v2.ToImage(),
            v2.ToDtype(torch.float32, scale=True),
            v2.Normalize((0.485, 0.456, 0.406), (0.229, 0.224, 0.225)),
        ]
    )
    sdata = sd.read_zarr(store)
    wsi = wsidata.open_wsi(sdata, image_key="he", store=None)
    zs.pp.tile_tissues(wsi, PX, tissue_key=None, background_filter=False)
    start = time.perf_counter()
    zs.tl.feature_extraction(
        wsi, module, transform=normalise, batch_size=BATCH, device=device, model_name=name, pbar=False, num_workers=0
    )
    return {"seconds": time.perf_counter() - start, "tiles": len(wsi.shapes["tiles"]), "version": zs.__version__}


def measure_speed(store: Path, name: str, device: str, turns: int) -> dict:
    """Bare encoder, pipeline and reading, in turns."""
    import sthist

    tiles, _ = read_all(store)
    encoder = sthist.encoders.Morphology(mpp=MPP) if name == "morphology" else network(name, device)
    bare(encoder, tiles[: 4 * BATCH])  # compiled, and warm
    seconds: dict[str, list[float]] = {"bare": [], "pipeline": [], "reading": []}
    for _ in range(turns):
        seconds["reading"].append(read_all(store)[1])
        seconds["bare"].append(bare(encoder, tiles))
        seconds["pipeline"].append(pipeline(encoder, store))
    middle = {kind: statistics.median(each) for kind, each in seconds.items()}
    result = {
        "tiles": len(tiles),
        "device": device,
        "seconds": {kind: [round(s, 3) for s in each] for kind, each in seconds.items()},
        "tiles_per_second": {kind: len(tiles) / s for kind, s in middle.items()},
        "of_the_bare_speed": middle["bare"] / middle["pipeline"],
        "beyond_the_bare_time_in_readings": (middle["pipeline"] - middle["bare"]) / middle["reading"],
    }
    if name != "morphology" and (theirs := lazyslide(name, store, device)) is not None:
        theirs["tiles_per_second"] = theirs["tiles"] / theirs["seconds"]
        theirs["sthist_is_faster_by"] = result["tiles_per_second"]["pipeline"] / theirs["tiles_per_second"]
        result["lazyslide"] = theirs
    return result


def colours(tiles):
    """As many numbers as a ResNet-18 gives, at no cost."""
    import numpy as np

    return np.resize(tiles[:, ::32, ::32].reshape(len(tiles), -1).astype(np.float32), (len(tiles), WIDTH))


def measure_memory(store: Path) -> dict:
    """In a process of its own: the most that it holds while embedding, above what it held before."""
    import spatialdata as sd

    import sthist
    from sthist.pp import _embed
    from sthist.tiles._blocks import run

    def resident() -> dict[str, int]:
        fields = dict(line.split(":", 1) for line in Path("/proc/self/status").read_text().splitlines() if ":" in line)
        return {name: int(fields[name].split()[0]) * 1024 for name in ("VmRSS", "VmHWM")}

    sdata = sd.read_zarr(store)
    n = len(sdata["squares"])
    spec = sthist.tiles.TileSpec(PX * MPP, PX)
    some = sthist.datasets.toy(size_um=300)
    sthist.pp.embed(some, colours, regions="nucleus_boundaries", spec=spec, progress=False)  # imports and kernels
    before = resident()["VmRSS"]
    Path("/proc/self/clear_refs").write_text("5")
    peaks = []

    def run_pending(*args, **kwargs):
        run.run_pending(*args, **kwargs)
        peaks.append(resident()["VmHWM"] - before)

    _embed.run_pending = run_pending
    start = time.perf_counter()
    sthist.pp.embed(sdata, colours, regions="squares", spec=spec, progress=False)
    seconds = time.perf_counter() - start
    peaks.append(resident()["VmHWM"] - before)
    made, whole = (peak / 1e9 for peak in peaks)
    return {
        "tiles": n,
        "seconds": seconds,
        "gb_while_embedding": made,
        "gb_with_the_table": whole,
        "result_gb": n * WIDTH * 4 / 1e9,
    }


def main() -> int:
    """Measure, print, and keep."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--tiles", type=int, default=2025)
    parser.add_argument("--turns", type=int, default=3)
    parser.add_argument("--json", type=Path)
    parser.add_argument("--folder", type=Path)
    parser.add_argument("--image", type=Path, help="an H&E to make the slide of")
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--networks", nargs="*", default=None)
    parser.add_argument("--no-memory", action="store_true")
    parser.add_argument("--child", type=Path)
    options = parser.parse_args()
    if options.child:
        print(json.dumps(measure_memory(options.child)))
        return 0
    import torch

    cuda = options.device.startswith("cuda")
    usual = ["resnet18", "vit_large_patch16_224"] if cuda else ["resnet18", "morphology"]
    names = usual if options.networks is None else options.networks
    results: dict = {
        "command": "python bench/embed.py",
        "machine": (
            f"{platform.machine()}, {os.cpu_count()} cores, Python {platform.python_version()}, torch "
            f"{torch.__version__}"
        ),
        "device": torch.cuda.get_device_name(0) if cuda else "cpu",
        "speed": {},
        "memory": [],
    }
    root = Path(tempfile.mkdtemp(dir=options.folder))
    kept = True
    for name in names:
        grid = root / f"{name}.zarr"
        n = options.tiles * (4 if name == "morphology" else 1)  # which is faster by more than that
        make_slide(grid, PX * round(n**0.5), options.image)
        lay_tiles(grid, n)
        found = results["speed"][name] = measure_speed(grid, name, options.device, options.turns)
        shutil.rmtree(grid)
        print(name, json.dumps(found), flush=True)
        enough = (
            found["of_the_bare_speed"] >= LEAST_OF_BARE
            if name != "morphology"
            else found["beyond_the_bare_time_in_readings"] <= MOST_OF_READING
        )
        kept &= enough and found.get("lazyslide", {}).get("sthist_is_faster_by", 2) > 1
    for n in () if options.no_memory else (10_000, 100_000):
        store = root / f"{n}.zarr"
        make_slide(store, PX * round(options.tiles**0.5), options.image)
        lay_tiles(store, n)
        done = subprocess.run(
            [sys.executable, "-W", "ignore", __file__, "--child", str(store)], check=True, stdout=subprocess.PIPE
        )
        results["memory"].append(json.loads(done.stdout.splitlines()[-1]))
        print(results["memory"][-1], flush=True)
    if results["memory"]:
        small, large = (each["gb_while_embedding"] for each in results["memory"])
        results["growth_of_memory_while_embedding"] = large / small - 1
        kept &= large <= (1 + MOST_GROWTH) * small
    shutil.rmtree(root)
    if options.json:
        options.json.write_text(json.dumps(results, indent=1) + "\n")
    return int(not kept)


if __name__ == "__main__":
    sys.exit(main())
