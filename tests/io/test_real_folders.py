"""The real data sets, each read by the lines of the documentation, without a rewrite of its files."""

from __future__ import annotations

import json

import anndata as ad
import dask.array as da
import numpy as np
import pandas as pd
import shapely
from realdata import folder
from scipy import sparse

import sthist
from sthist import scale


def share_inside(outlines, molecules):
    """Share of molecules that lie in the outline of the cell that the file gives them."""
    some = molecules[molecules["cell_id"].isin(outlines.index)]
    shapes = outlines.geometry.loc[some["cell_id"]].to_numpy()
    return shapely.contains_xy(shapes, some["x"].to_numpy(), some["y"].to_numpy()).mean()


def test_merscope_outlines_and_stains():
    """One outline of each of 505 cells, of one plane; poly-T goes with DAPI."""
    data = folder("merscope_mouse_brain")
    mpp = json.loads((data / "geometry.json").read_text())["mpp"]
    sdata = sthist.io.assemble(
        {"dapi": data / "dapi_z0.jpg", "polyT": data / "polyT_z0.jpg"},
        mpp=mpp,
        points=data / "transcripts.parquet",
        cells=data / "cell_polygons.parquet",
        table=ad.read_h5ad(data / "cells.h5ad"),
    )
    assert sdata["table"].n_obs == len(sdata["cells"]) == 505
    planes = pd.read_parquet(data / "cell_polygons.parquet").groupby("cell_id")["z"].agg(["nunique", "max"])
    chosen = sdata["cells"]["z"].reindex(planes.index)
    assert ((chosen == 1) | (planes["max"] == 0)).all()  # plane 1 has 504 outlines, plane 0 498
    assert sdata.attrs["sthist"]["roles"]["nuclear"]["cytoplasm"] == ["polyT"]
    molecules = sdata["transcripts"].compute()
    assert share_inside(sdata["cells"], molecules[(molecules.cell_id != 0) & (molecules.z == 1)]) > 0.98


def test_cosmx_label_image():
    """Molecules lie in the outlines of their cells as in the labels: 98.9 %."""
    data = folder("cosmx_lung12")
    sdata = sthist.io.assemble(
        {"stain": data / "fov2_composite.jpg"},
        mpp=0.18,
        channels={"stain": ["membrane", "PanCK", "DAPI"]},
        points=data / "fov2_transcripts.parquet",
        labels=data / "fov2_cell_labels.tif",
        table=ad.read_h5ad(data / "fov2_cells.h5ad"),
    )
    assert sdata["table"].n_obs == 67
    molecules = sdata["transcripts"].compute()
    assert share_inside(sdata["cells"], molecules[molecules.cell_id != 0]) > 0.98


def test_iss_labels_and_molecules():
    """3481 nuclei of a large label image without a picture; 61 % of the molecules lie in one."""
    data = folder("iss_mouse_ca1")
    labels = sparse.load_npz(data / "nuclei_labels.npz").toarray()[2000:3500, 2000:4500]
    molecules = pd.read_parquet(data / "spots.parquet")
    here = molecules[molecules["col"].between(2000, 4499) & molecules["row"].between(2000, 3499)]
    sdata = sthist.io.assemble(mpp=0.325, labels=labels)
    np.testing.assert_allclose(sdata["cells"].area / 0.325**2, np.bincount(labels.ravel())[sdata["cells"].index])
    xy = (here[["col", "row"]].to_numpy() - 2000 + 0.5) * 0.325
    hits = shapely.STRtree(sdata["cells"].geometry.to_numpy()).query(shapely.points(xy), predicate="intersects")
    expected = (labels[here["row"].astype(int) - 2000, here["col"].astype(int) - 2000] > 0).mean()
    assert abs(len(np.unique(hits[0])) / len(xy) - expected) < 0.01


def test_xenium_pancreas_crop():
    """Outlines, cells and molecules of a crop; those of cells that the crop cuts are not there."""
    data = folder("xenium_pancreas_crop")
    sdata = sthist.io.assemble(
        {"dapi": data / "dapi.png"},
        mpp=0.2125,
        points=data / "transcripts.parquet",
        cells=data / "cell_polygons.parquet",
        table=ad.read_h5ad(data / "cells.h5ad"),
    )
    assert sdata["table"].shape == (5104, 506)
    assert len(sdata["transcripts"]) == 243504
    rows, columns = (np.floor(sdata["table"].obsm["spatial"][:, axis] / 0.2125).astype(int) for axis in (1, 0))
    stain = np.asarray(scale_0(sdata["dapi"]))[0]
    assert stain[rows, columns].mean() > 5 * stain.mean() / 2  # 9.2 inside the outlines, 0.9 outside


def scale_0(image):
    return image["scale0"].image if hasattr(image, "children") else image


def test_visium_hd_squares():
    """Bins of 8 and of 56 µm with their H&E: the places lie on the picture."""
    for name, table, picture, side in (
        ("visium_hd_kidney", "squares56um_900genes.h5ad", "he_capture_area.jpg", 56.0),
        ("visium_hd_kidney_roi", "bins8um.h5ad", "he_roi.png", 8.0),
    ):
        data = folder(name)
        mpp = json.loads((data / "geometry.json").read_text())["mpp"]
        bins = ad.read_h5ad(data / table)
        sdata = sthist.io.assemble(
            {"he": data / picture}, mpp=mpp, table=bins, unit="px", spot_diameter_um=side, crop=True
        )
        assert sdata["table"].n_obs == bins.n_obs
        np.testing.assert_allclose(sdata["table"].obsm["spatial"], bins.obsm["spatial"] * mpp)
        assert sdata.attrs["sthist"]["roles"]["spots"] == {"table": "table", "shapes": "spots"}
        assert sdata.attrs["sthist"]["roles"]["he"] == {"image": "he"}


def test_visium_heart():
    """A folder of Space Ranger without pictures: the spots are 100 µm apart."""
    sdata = sthist.io.visium(folder("squidpy_visium") / "human_heart_100spots")
    assert sdata["table"].n_obs == 100
    obs, centres = sdata["table"].obs, sdata["table"].obsm["spatial"]
    lattice = np.c_[obs["array_col"] * 50.0, obs["array_row"] * 50.0 * np.sqrt(3)]
    apart, expected = (np.linalg.norm(xy[:, None] - xy, axis=-1) for xy in (centres, lattice))
    np.testing.assert_allclose(apart, expected, rtol=0.01, atol=5.0)


def test_olfactory_bulb():
    """Spots of four sections in the pixels of their pictures."""
    data = folder("stutility_mob")
    for number, n in zip(range(1, 5), (379, 407, 438, 403), strict=True):
        table = ad.read_h5ad(data / f"MOB{number}.h5ad")
        sdata = sthist.io.assemble({"he": data / f"MOB{number}.jpg"}, mpp=4.6, table=table, spot_diameter_um=100)
        assert sdata["table"].n_obs == n
        assert (sdata["table"].obsm["spatial"] < 1905 * 4.6).all()


def test_qupath_regions():
    """Of one section in µm, and as QuPath has exported them in pixels: the same outlines."""
    section, drawn = folder("xenium_breast_rep1"), folder("xenium_breast_rep1_annotations")
    areas = []
    for file, unit, image, mpp in (
        ("annotations_um", "um", section / "he_section_5.8um.png", 5.8),
        ("demo_annotations_qupath_px", "px", da.zeros((3, 30000, 40000), np.uint8, chunks=(3, 4096, 4096)), 0.2125),
    ):
        sdata = sthist.io.assemble({"he": image}, mpp=mpp)
        sthist.io.read_annotations(sdata, drawn / f"{file}.geojson", image="he", unit=unit)
        regions = sdata["annotations"]
        areas.append(np.sort(regions.area * abs(np.linalg.det(scale.matrix_to(regions)))))
        if unit == "um":
            assert regions["label"].value_counts().to_dict() == {"Tumor cells": 22, "Stroma": 6}
    np.testing.assert_allclose(*areas, rtol=1e-3)
