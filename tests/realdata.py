"""The real data sets as SpatialData objects; where they are absent, tests skip."""

from __future__ import annotations

import json
import os
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

import sthist

DATA = Path(os.environ.get("STHIST_TEST_DATA", Path(__file__).parents[2] / "shared" / "data"))


def folder(name: str) -> Path:
    """The folder of a real data set; skips the test where it is absent."""
    path = DATA / name
    if not path.exists():
        pytest.skip(f"the real data set {name!r} is not on this machine (set STHIST_TEST_DATA)")
    return path


def picture(path: Path) -> np.ndarray:
    """Pixels of a picture file."""
    from sthist.io._files.images import read_image

    return read_image(path, path.name).pixels


def her2st(name: str):
    """A section of her2st with its spots of 100 µm and their counts."""
    import anndata as ad

    data = folder("her2st")
    table = ad.read_h5ad(data / f"{name}_counts.h5ad")
    return sthist.io.assemble(
        {"he": data / f"{name}.jpg"},
        mpp=float(table.uns["mpp"]),
        table=table,
        xy=("pixel_x", "pixel_y"),
        unit="px",
        spot_diameter_um=100.0,
    )


def cosmx_lung12(*, outlines: bool = False):
    """One field of view: a composite whose blue is DAPI, and molecules; with the vendor's cells, if so asked."""
    import anndata as ad

    data = folder("cosmx_lung12")
    return sthist.io.assemble(
        {"stain": data / "fov2_composite.jpg"},
        mpp=0.18,
        channels={"stain": ["membrane", "PanCK", "DAPI"]},
        points=data / "fov2_transcripts.parquet",
        table=_with_centres(ad.read_h5ad(data / "fov2_cells.h5ad"), pd.read_parquet(data / "fov2_transcripts.parquet")),
        labels=data / "fov2_cell_labels.tif" if outlines else None,
    )


def _with_centres(table, molecules):
    """Give cells that have no coordinates the mean of their molecules."""
    if {"x_um", "y_um"} <= set(table.obs):
        return table
    centres = molecules[molecules.cell_id != 0].groupby("cell_id")[["x_um", "y_um"]].mean()
    ids = table.obs["cell_id"] if "cell_id" in table.obs else table.obs_names.astype(int)
    table.obs[["x_um", "y_um"]] = centres.loc[ids].to_numpy()
    return table


def merscope_mouse_brain():
    """DAPI and poly-T, two planes each."""
    import anndata as ad

    data = folder("merscope_mouse_brain")
    geometry = json.loads((data / "geometry.json").read_text())
    planes = [[picture(data / f"{stain}_z{z}.jpg")[0] for z in (0, 1)] for stain in ("dapi", "polyT")]
    outlines = pd.read_parquet(data / "cell_polygons.parquet")
    return sthist.io.assemble(
        {"mosaic": np.stack(planes)},
        mpp=geometry["mpp"],
        channels={"mosaic": ["DAPI", "PolyT"]},
        points=pd.read_parquet(data / "transcripts.parquet").drop(columns=["col", "row"]),
        table=ad.read_h5ad(data / "cells.h5ad"),
        cells=outlines[outlines.groupby("cell_id")["z"].transform("max") == outlines.z],
    )


def xenium_ileum_tiny():
    """The vendor's folder, as it is."""
    return sthist.io.xenium(folder("xenium_ileum_tiny") / "outs")


def xenium_pancreas():
    """DAPI, molecules and the vendor's cells of 0.85 x 0.85 mm, at full resolution."""
    import anndata as ad

    data = folder("xenium_pancreas_crop")
    table, outlines = ad.read_h5ad(data / "cells.h5ad"), pd.read_parquet(data / "cell_polygons.parquet")
    known = table.obs_names.isin(outlines["cell_id"].astype(str))
    return sthist.io.assemble(
        {"dapi": data / "dapi.png"},
        mpp=json.loads((data / "geometry.json").read_text())["mpp"],
        points=data / "transcripts.parquet",
        table=table[known].copy(),
        cells=outlines[outlines["cell_id"].astype(str).isin(table.obs_names)],
    )


def xenium_breast_dapi_crop():
    """A DAPI crop with every 200th molecule and 2189 cells, and the H&E of the whole section."""
    import anndata as ad

    data = folder("xenium_breast_rep1")
    geometry = json.loads((data / "geometry.json").read_text())["images"]
    molecules = pd.read_parquet(data / "transcripts_1in200.parquet")
    x0, y0, x1, y1 = 646.85, 519.35, 1232.5, 982.6
    molecules = molecules[molecules.x_um.between(x0, x1) & molecules.y_um.between(y0, y1)]
    files = {"dapi": "dapi_crop_0.85um.ome.tif", "he": "he_section_5.8um.png"}
    return sthist.io.assemble(
        {name: picture(data / file) for name, file in files.items()},
        matrices={name: geometry[file]["matrix"] for name, file in files.items()},
        points=molecules,
        table=ad.read_h5ad(data / "cells_dapi_crop.h5ad"),
        cells=data / "cell_polygons_dapi_crop.parquet",
    )


def xenium_breast_cells(margin_um: float = 0.0):
    """H&E of 2.4 µm/px, its µm/px, and the cells on it, in from its edge, with places in its pixels: ``x_px, y_px``."""
    import anndata as ad

    data = folder("xenium_breast_rep1")
    cells = ad.read_h5ad(data / "cells_roi_17k.h5ad")
    matrix = np.array(json.loads((data / "geometry.json").read_text())["images"]["he_crop_2.4um.png"]["matrix"])
    homogeneous = np.column_stack([cells.obs[["x_um", "y_um"]].to_numpy(), np.ones(cells.n_obs)])
    cells.obs[["x_px", "y_px"]] = (homogeneous @ np.linalg.inv(matrix).T)[:, :2]
    mpp = float(np.sqrt(np.linalg.det(matrix[:2, :2])))
    pixels = picture(data / "he_crop_2.4um.png")
    height, width = pixels.shape[-2:]
    margin = margin_um / mpp
    x, y = cells.obs[["x_px", "y_px"]].to_numpy().T
    return pixels, mpp, cells[(x > margin) & (y > margin) & (x < width - margin) & (y < height - margin)].copy()


def visium_hd_kidney_bins():
    """H&E of 2 µm/px, its µm/px, and the bins of 8 µm on it, with places in its pixels: ``x_px, y_px``."""
    import anndata as ad

    data = folder("visium_hd_kidney_roi")
    bins = ad.read_h5ad(data / "bins8um.h5ad")
    bins.obs[["x_px", "y_px"]] = bins.obsm["spatial"]
    return picture(data / "he_roi.png"), float(bins.uns["mpp"]), bins


HIGH_RES = {
    "cosmx_lung12": cosmx_lung12,
    "merscope_mouse_brain": merscope_mouse_brain,
    "xenium_ileum_tiny": xenium_ileum_tiny,
    "xenium_breast_rep1": xenium_breast_dapi_crop,
}
