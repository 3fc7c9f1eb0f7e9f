"""The viewer on a slide of 32,768 pixels a side with 300,000 cells: tiles per second, memory, the first picture.

Run ``python bench/view.py [--json FILE] [--folder DIR] [--side 32768] [--cells 300000] [--seconds 60]``. The slide is
made on disk once: an H&E with a pyramid, cells as polygons of twelve corners with counts of 300 genes, and 2 million
molecules. ``sthist view`` serves it in a process of its own, whose resident memory is watched. Six connections, as a
browser has, ask for the tiles of screens of 1,600 x 900 pixels at random places and zooms, images and cells coloured
by a gene in turn, none of them twice. Where Chromium and playwright are there, a page is opened too, and the time is
taken until all tiles of the whole slide are there. Tiles per second of a core are those for each second that the server
has computed, whatever else the machine does meanwhile.
"""

from __future__ import annotations

import argparse
import http.client
import json
import os
import platform
import queue
import re
import shutil
import subprocess
import sys
import tempfile
import threading
import time
from pathlib import Path
from urllib.parse import urlsplit

import numpy as np

MPP, PATCH_UM, CHUNK, GENES, MOLECULES = 0.25, 600.0, 1024, 300, 2_000_000
SCREEN = (1600, 900)
CONNECTIONS = 6
LEAST_PER_CORE, MOST_GROWTH_GB = 60.0, 0.2  # what is promised; the exit status says whether it is kept


def make_slide(folder: Path, side: int, n_cells: int) -> None:
    """A slide on disk: the toy's H&E, turned and moved from block to block, and cells on a shaken grid."""
    import anndata as ad
    import dask.array as da
    import dask.dataframe as dd
    import geopandas as gpd
    import pandas as pd
    import shapely
    import spatialdata as sd
    from scipy.sparse import random_array
    from spatialdata.models import Image2DModel, PointsModel, ShapesModel, TableModel
    from spatialdata.transformations import Identity, Scale

    import sthist

    toy = sthist.datasets.toy(size_um=PATCH_UM)
    box = (PATCH_UM * 0.15, PATCH_UM * 0.15, PATCH_UM * 0.85, PATCH_UM * 0.85)
    patch = sthist.tiles.read_region(toy, "he", box, MPP).transpose(2, 0, 1)

    def stain(block_info=None):
        (y0, y1), (x0, x1) = block_info[None]["array-location"][1:]
        rng = np.random.default_rng([y0, x0])
        y, x = rng.integers(0, patch.shape[1] - CHUNK, 2)
        pixels = np.rot90(patch[:, y : y + CHUNK, x : x + CHUNK], rng.integers(4), axes=(1, 2))
        noise = rng.integers(0, 6, (1, y1 - y0, x1 - x0), dtype=np.uint8)
        return np.minimum(pixels[:, : y1 - y0, : x1 - x0], 249) + noise

    chunks = da.core.normalize_chunks(CHUNK, (side,))[0]
    image = da.map_blocks(stain, chunks=((3,), chunks, chunks), dtype=np.uint8, meta=np.empty((0, 0, 0), np.uint8))
    um, place = {"um": Identity()}, {"um": Scale([MPP, MPP], ("x", "y"))}
    he = Image2DModel.parse(
        image, dims=("c", "y", "x"), c_coords=["r", "g", "b"], transformations=place, scale_factors=[2, 2, 2, 2]
    )
    rng = np.random.default_rng(0)
    size = side * MPP
    columns = int(np.ceil(np.sqrt(n_cells)))
    places = np.stack(np.divmod(np.arange(n_cells), columns)[::-1], 1) + 0.5 + rng.uniform(-0.2, 0.2, (n_cells, 2))
    places *= size / columns
    angles = np.linspace(0, 2 * np.pi, 13)
    corners = np.stack([np.cos(angles), np.sin(angles)], 1) * 0.42 * size / columns
    cells = shapely.polygons(places[:, None] + corners * rng.uniform(0.6, 1, (n_cells, 1, 1)))
    names = [f"GENE{i}" for i in range(GENES)]
    counts = random_array((n_cells, GENES), density=0.1, format="csr", rng=rng, dtype=np.float32)
    obs = pd.DataFrame(
        {
            "region": pd.Categorical(["cells"] * n_cells),
            "instance_id": np.arange(n_cells),
            "cell_type": pd.Categorical(rng.choice([f"type {i}" for i in range(12)], n_cells)),
        },
        index=[str(i) for i in range(n_cells)],
    )
    table = TableModel.parse(
        ad.AnnData(counts, obs=obs, var=pd.DataFrame(index=names)),
        region="cells",
        region_key="region",
        instance_key="instance_id",
    )
    frame = pd.DataFrame(rng.uniform(0, size, (MOLECULES, 2)).astype(np.float32), columns=["x", "y"]).assign(
        gene=pd.Categorical(rng.choice(names, MOLECULES))
    )
    points = PointsModel.parse(dd.from_pandas(frame, npartitions=4), feature_key="gene", transformations=um)
    shapes = ShapesModel.parse(gpd.GeoDataFrame(geometry=cells), transformations=um)
    sd.SpatialData(
        images={"he": he}, shapes={"cells": shapes}, points={"transcripts": points}, tables={"table": table}
    ).write(folder)


class Viewer:
    """``sthist view`` in a process of its own."""

    def __init__(self, store: Path) -> None:
        self.started = time.perf_counter()
        command = [sys.executable, "-m", "sthist", "view", str(store), "--no-browser", "--port", "0"]
        self.process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
        self.url = ""
        while not self.url:
            line = self.process.stdout.readline()
            if not line:
                raise RuntimeError("sthist view ended before it served.")
            found = re.search(r"http://\S+", line)
            self.url = found.group() if found else ""
        self.serving_seconds = time.perf_counter() - self.started

    def gb(self) -> float:
        """Its resident memory."""
        import psutil

        return psutil.Process(self.process.pid).memory_info().rss / 1e9

    def cpu_seconds(self) -> float:
        """What it has computed."""
        import psutil

        times = psutil.Process(self.process.pid).cpu_times()
        return times.user + times.system

    def close(self) -> None:
        """End it."""
        self.process.terminate()
        self.process.wait()


class Connection:
    """A connection that is kept open."""

    def __init__(self, url: str) -> None:
        parts = urlsplit(url)
        self._path = parts.path
        self._http = http.client.HTTPConnection(parts.hostname, parts.port, timeout=300)

    def get(self, path: str) -> bytes:
        """What is answered to a path below the token."""
        self._http.request("GET", self._path + path)
        answer = self._http.getresponse()
        content = answer.read()
        if answer.status != 200:
            raise RuntimeError(f"{path}: {answer.status} {content[:200]!r}")
        return content


def screens(slide: dict, rng: np.random.Generator):
    """Tiles of one screen after the other, image and cells; none comes twice."""
    plane, (picture,) = slide["plane"], slide["pictures"]
    seen = set()
    gene = 0
    while True:
        level = int(rng.integers(0, picture["levels"] + 1))
        side = plane["tile"]
        columns, rows = (-(-(plane[each] << level) // side) for each in ("width", "height"))
        wide, high = (min(-(-px // side) + 1, n) for px, n in zip(SCREEN, (columns, rows), strict=True))
        x0, y0 = int(rng.integers(0, columns - wide + 1)), int(rng.integers(0, rows - high + 1))
        if level < 3:  # there are few tiles of these: each screen shows another gene
            gene = (gene + 1) % GENES
        for y in range(y0, y0 + high):
            for x in range(x0, x0 + wide):
                for path in (
                    f"image/he/{level}/{x}/{y}?v=1",
                    f"regions/table/{level}/{x}/{y}?kind=gene&name=GENE{gene}&v=1",
                ):
                    if path not in seen:
                        seen.add(path)
                        yield path


def load(viewer: Viewer, seconds: float) -> dict:
    """Ask for tiles as fast as they come."""
    slide = json.loads(Connection(viewer.url).get("slide"))
    waiting: queue.Queue = queue.Queue(maxsize=200)
    times: dict[str, list[float]] = {"image": [], "regions": []}
    problems: list[Exception] = []

    def ask() -> None:
        connection = Connection(viewer.url)
        while (path := waiting.get()) is not None:
            start = time.perf_counter()
            try:
                connection.get(path)
            except Exception as error:  # noqa: BLE001
                problems.append(error)
                return
            times[path.split("/")[0]].append(time.perf_counter() - start)

    threads = [threading.Thread(target=ask, daemon=True) for _ in range(CONNECTIONS)]
    for thread in threads:
        thread.start()
    memory = []
    start, cpu = time.perf_counter(), viewer.cpu_seconds()
    for path in screens(slide, np.random.default_rng(1)):
        while True:
            try:
                waiting.put(path, timeout=1)
                break
            except queue.Full:
                pass
            if problems:
                raise problems[0]
        elapsed = time.perf_counter() - start
        if elapsed > len(memory) * seconds / 8:
            memory.append(round(viewer.gb(), 3))
        if elapsed > seconds:
            break
    for _ in threads:
        waiting.put(None)
    for thread in threads:
        thread.join()
    if problems:
        raise problems[0]
    elapsed, cpu = time.perf_counter() - start, viewer.cpu_seconds() - cpu
    n = sum(map(len, times.values()))
    both = np.array(times["image"] + times["regions"])
    return {
        "tile_px": slide["plane"]["tile"],
        "tiles": n,
        "seconds": elapsed,
        "tiles_per_second": n / elapsed,
        "cpu_milliseconds_per_tile": 1e3 * cpu / n,
        "tiles_per_second_of_a_core": n / cpu,
        "megapixels_per_second": n * slide["plane"]["tile"] ** 2 / 1e6 / elapsed,
        "milliseconds": {
            name: {"median": 1e3 * float(np.median(each)), "95th": 1e3 * float(np.percentile(each, 95))}
            for name, each in (*times.items(), ("all", both))
        },
        "resident_gb": memory,
    }


def first_picture(url: str) -> dict | None:
    """Seconds until a page shows the whole slide with cells in colours, and the requests of it."""
    chromium = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
    try:
        from playwright.sync_api import sync_playwright
    except ImportError:
        return None
    if chromium is None:
        return None
    with sync_playwright() as driver:
        browser = driver.chromium.launch(executable_path=chromium, args=["--no-sandbox"])
        page = browser.new_page(viewport={"width": SCREEN[0], "height": SCREEN[1]})
        requests: list[str] = []
        page.on("request", lambda request: requests.append(request.url))
        start = time.perf_counter()
        page.goto(url)
        page.wait_for_selector('#stage[data-whole="true"]', timeout=120_000)
        seconds = time.perf_counter() - start
        browser.close()
    return {"seconds": seconds, "requests": len(requests)}


def busy_cores(seconds: float = 3.0) -> float:
    """How many cores others keep busy."""
    import psutil

    return psutil.cpu_percent(seconds) / 100 * (psutil.cpu_count() or 1)


def main() -> int:
    """Make the slide, serve it, ask for tiles, and say how fast they came."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--json", type=Path)
    parser.add_argument("--folder", type=Path, help="where the slide lies, and stays; by default it goes")
    parser.add_argument("--side", type=int, default=32_768)
    parser.add_argument("--cells", type=int, default=300_000)
    parser.add_argument("--seconds", type=float, default=60.0)
    options = parser.parse_args()
    folder = options.folder or Path(tempfile.mkdtemp(prefix="view-"))
    store = folder / f"slide-{options.side}-{options.cells}.zarr"
    if not store.exists():
        start = time.perf_counter()
        make_slide(store, options.side, options.cells)
        print(f"The slide is made: {time.perf_counter() - start:.0f} s.", flush=True)
    busy = busy_cores()
    viewer = Viewer(store)
    try:
        first = time.perf_counter()
        Connection(viewer.url).get("image/he/0/0/0?v=1")
        tile_seconds = time.perf_counter() - first
        page = first_picture(f"{viewer.url}#show=%7B%22regions%22%3Atrue%7D")
        measured = load(viewer, options.seconds)
    finally:
        viewer.close()
        if options.folder is None:
            shutil.rmtree(folder)
    result = {
        "command": "python bench/view.py",
        "machine": f"{platform.machine()}, {os.cpu_count()} cores, Python {platform.python_version()}",
        "cores_busy_with_other_work": round(busy, 1),
        "side_px": options.side,
        "cells": options.cells,
        "start_to_serving_seconds": viewer.serving_seconds,
        "first_tile_seconds": tile_seconds,
        "first_picture": page,
        "load": measured,
    }
    print(json.dumps(result, indent=1))
    if options.json:
        options.json.write_text(json.dumps(result, indent=1) + "\n")
    memory = measured["resident_gb"]
    growth = memory[-1] - memory[len(memory) // 2]  # its caches are full by then
    kept = measured["tiles_per_second_of_a_core"] >= LEAST_PER_CORE and growth < MOST_GROWTH_GB
    return 0 if kept else 1


if __name__ == "__main__":
    sys.exit(main())
