"""A gene on 300,000 cells: sthist.pl.regions, and spatialdata-plot.

Run ``python bench/regions.py [--json FILE] [--cells N]``. Cells are hexagons of 10 µm on a lattice, in memory; each
figure is drawn and saved as PNG once before it is timed, but for the slowest. spatialdata-plot draws it twice: with
matplotlib, a patch for each cell, and with datashader, as it does by itself for so many. The limit stated is that of
looking at each outline: the boxes around all of them.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import tempfile
import time
import warnings
from pathlib import Path

import anndata as ad
import geopandas as gpd
import matplotlib as mpl
import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import shapely
import spatialdata as sd
from spatialdata.models import ShapesModel, TableModel

import sthist

SIDE_UM, LIMIT_S = 10.0, 5.0


def section(n: int) -> sd.SpatialData:
    """Cells on a square lattice, and their counts of one gene."""
    per_side = int(np.ceil(np.sqrt(n)))
    places = np.stack(np.meshgrid(np.arange(per_side), np.arange(per_side)), -1).reshape(-1, 2)[:n] * SIDE_UM
    corners = np.stack([np.cos(np.arange(6) * np.pi / 3), np.sin(np.arange(6) * np.pi / 3)], -1) * SIDE_UM * 0.45
    outlines = shapely.polygons(places[:, None] + corners)
    names = [f"cell_{i}" for i in range(n)]
    shapes = ShapesModel.parse(
        gpd.GeoDataFrame(geometry=outlines, index=names),
        transformations=dict.fromkeys(("um", "global"), sd.transformations.Identity()),
    )
    counts = np.random.default_rng(0).poisson(1 + 4 * (places[:, :1] / places.max()), (n, 1)).astype(np.float32)
    obs = pd.DataFrame({"region": pd.Categorical(["cells"] * n), "instance": names}, index=names)
    table = ad.AnnData(counts, obs=obs, var=pd.DataFrame(index=["EPCAM"]), obsm={"spatial": places})
    link = {"region": "cells", "region_key": "region", "instance_key": "instance"}
    return sd.SpatialData(shapes={"cells": shapes}, tables={"table": TableModel.parse(table, **link)})


def by_sthist(sdata: sd.SpatialData, path: Path) -> None:
    """The figure of sthist."""
    sthist.pl.regions(sdata, "EPCAM", save=path)
    plt.close("all")


def by_spatialdata_plot(sdata: sd.SpatialData, path: Path, method: str) -> None:
    """The figure of spatialdata-plot."""
    import spatialdata_plot  # noqa: F401

    drawn = sdata.pl.render_shapes("cells", color="EPCAM", table_name="table", method=method)
    drawn.pl.show(coordinate_systems="global", save=str(path))
    plt.close("all")


def seconds(call, *args, repeats: int = 2) -> float:
    """Of the last of some calls."""
    times = []
    for _ in range(repeats):
        start = time.perf_counter()
        call(*args)
        times.append(time.perf_counter() - start)
    return times[-1]


def main() -> None:
    """Times and ratios, printed and saved."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--cells", type=int, default=300_000)
    parser.add_argument("--json", type=Path)
    given = parser.parse_args()
    mpl.use("agg")
    warnings.simplefilter("ignore")
    sdata = section(given.cells)
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "figure.png"
        ours = seconds(by_sthist, sdata, path)
        theirs = {
            "datashader": seconds(by_spatialdata_plot, sdata, path, "datashader"),
            "matplotlib": seconds(by_spatialdata_plot, sdata, path, "matplotlib", repeats=1),
        }
    bare = seconds(lambda: shapely.bounds(sdata["cells"].geometry.to_numpy()))
    found = {
        "cells": given.cells,
        "sthist_s": round(ours, 2),
        **{f"spatialdata_plot_{method}_s": round(value, 2) for method, value in theirs.items()},
        "boxes_alone_s": round(bare, 4),
        "ratio_to_datashader": round(theirs["datashader"] / ours, 2),
        "ratio_to_matplotlib": round(theirs["matplotlib"] / ours, 2),
        "ratio_to_boxes": round(ours / bare),
        "machine": f"{platform.machine()}, {os.cpu_count()} cores, Python {platform.python_version()}",
        "command": "python bench/regions.py",
    }
    print(json.dumps(found, indent=1))
    if given.json is not None:
        given.json.write_text(json.dumps(found, indent=1) + "\n")
    raise SystemExit(ours > LIMIT_S)


if __name__ == "__main__":
    main()
