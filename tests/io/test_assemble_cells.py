"""Cells of loose files: label images, outlines of several planes, crops; stains in several images."""

from __future__ import annotations

import anndata as ad
import geopandas as gpd
import numpy as np
import pandas as pd
import pytest
import shapely
import tifffile
from scipy import ndimage, sparse

import sthist
from sthist import scale
from sthist.io._parts import label_outlines

MPP = 0.5
DAPI = np.random.default_rng(0).integers(0, 255, (80, 120), np.uint8)


def label_image(n=40, seed=0):
    """Cells that touch, of any form, some in several parts."""
    rng = np.random.default_rng(seed)
    seeds = np.zeros(DAPI.shape, np.int32)
    seeds[rng.integers(0, 80, n), rng.integers(0, 120, n)] = np.arange(1, n + 1)
    distance, (i, j) = ndimage.distance_transform_edt(seeds == 0, return_indices=True)
    return np.where((distance < 9) & (rng.random(DAPI.shape) < 0.98), seeds[i, j], 0)


@pytest.mark.parametrize("block", [2048, 32, 7])
def test_outlines_of_a_label_image_are_exact(monkeypatch, block):
    """Each pixel lies in the outline of its label and in no other, whatever the blocks are."""
    monkeypatch.setattr(label_outlines, "BLOCK_PX", block)
    labels = label_image()
    cells = sthist.io.assemble({"dapi": DAPI}, mpp=MPP, labels=labels)["cells"]
    assert cells.index.tolist() == sorted(set(labels.ravel().tolist()) - {0})
    np.testing.assert_allclose(cells.area, np.bincount(labels.ravel())[cells.index] * MPP**2)
    assert cells.is_valid.all()
    rows, columns = np.nonzero(labels)
    inside = shapely.contains_xy(
        cells.loc[labels[rows, columns]].geometry.to_numpy(), (columns + 0.5) * MPP, (rows + 0.5) * MPP
    )
    assert inside.all()


def test_a_label_image_with_its_table(tmp_path):
    """From a file, also as cells=; numbers in the table may be text; the matrix of the image counts."""
    labels = label_image()
    tifffile.imwrite(tmp_path / "cells.tif", labels.astype(np.uint16))
    np.save(tmp_path / "cells.npy", labels)
    names = sorted(set(labels.ravel().tolist()) - {0})
    table = ad.AnnData(np.ones((len(names), 2), np.float32), obs=pd.DataFrame(index=[str(name) for name in names]))
    matrix = np.array([[0, 0.5, 10], [0.5, 0, 20], [0, 0, 1]])
    expected = ndimage.center_of_mass(labels > 0, labels, names)  # y, x of centres of pixels
    expected = np.array(expected)[:, ::-1] + 0.5
    for given in ({"labels": labels}, {"labels": tmp_path / "cells.tif"}, {"cells": str(tmp_path / "cells.npy")}):
        sdata = sthist.io.assemble({"dapi": DAPI}, matrices={"dapi": matrix}, table=table, **given)
        um = np.c_[expected, np.ones(len(expected))] @ matrix[:2].T
        np.testing.assert_allclose(sdata["table"].obsm["spatial"], um)
        assert sdata.attrs["sthist"]["roles"]["cells"] == {"table": "table"}


@pytest.mark.parametrize(
    ("labels", "message"),
    [
        (np.zeros((80, 120), int), "0 everywhere"),
        (-label_image(), "a label is -40; labels are numbers from 1"),
        (label_image().astype(float), r"is float64 of shape \(80, 120\); a label image is"),
        (np.zeros((3, 80, 120), np.uint8), r"uint8 of shape \(3, 80, 120\); a label image is"),
        (label_image()[:40], "has 120 x 40 px; it lies on an image of its size, but 'dapi' has 120 x 80"),
    ],
)
def test_no_label_image(labels, message):
    """What is wrong with it is said."""
    with pytest.raises(ValueError, match=message):
        sthist.io.assemble({"dapi": DAPI}, mpp=MPP, labels=labels)


def vertices(planes):
    """One row per vertex of squares of cells; ``planes`` maps a plane to its cells and the shift of their squares."""
    rows = []
    for z, (cells, shift) in planes.items():
        for cell in cells:
            corner = np.array([10.0 * cell, 5.0]) + shift
            ring = corner + np.array([[0, 0], [4, 0], [4, 4], [0, 4], [0, 0]])
            rows += [(cell, z, x, y) for x, y in ring]
    return pd.DataFrame(rows, columns=["cell_id", "z", "x_um", "y_um"])


def test_outlines_of_several_planes():
    """One of each cell, of the plane with the most cells, else of the nearest one; never several joined into a ring."""
    frame = vertices({0: ([1, 2], 0.0), 1: ([1, 2, 3], 0.5), 2: ([1], 1.0), 5: ([4], 0.0)})
    for cells in (frame, frame.rename(columns={"z": "ZIndex"})):
        outlines = sthist.io.assemble({"dapi": DAPI}, mpp=MPP, cells=cells)["cells"]
        assert outlines.index.tolist() == [1, 2, 3, 4]
        assert outlines.area.tolist() == [16.0] * 4
        assert outlines.bounds["minx"].tolist() == [10.5, 20.5, 30.5, 40.0]


def test_polygons_that_are_there_twice():
    """Told apart by their plane, or refused."""
    squares = [shapely.box(x, 5, x + 4, 9) for x in (10, 20, 10.5)]
    frame = gpd.GeoDataFrame(geometry=squares, index=["a", "b", "a"])
    with pytest.raises(ValueError, match="has 1 outlines of cells that have one already, such as 'a'"):
        sthist.io.assemble({"dapi": DAPI}, mpp=MPP, cells=frame)
    outlines = sthist.io.assemble({"dapi": DAPI}, mpp=MPP, cells=frame.assign(z=[0, 0, 1]))["cells"]
    assert outlines.bounds["minx"].to_dict() == {"a": 10, "b": 20}


def test_a_file_of_polygons(tmp_path):
    """GeoParquet, as other tools write it; an infinite vertex is named."""
    squares = [shapely.box(x, 5, x + 4, 9) for x in (10, 20)]
    frame = gpd.GeoDataFrame({"cell_id": ["a", "b"]}, geometry=squares)
    frame.to_parquet(tmp_path / "cells.parquet")
    outlines = sthist.io.assemble({"dapi": DAPI}, mpp=MPP, cells=tmp_path / "cells.parquet")["cells"]
    assert outlines.index.tolist() == ["a", "b"]
    frame.geometry = [squares[0], shapely.Polygon([(0, 0), (np.inf, 1), (1, 0)])]
    frame.to_parquet(tmp_path / "cells.parquet")
    with pytest.raises(ValueError, match=r"cells.parquet: 1 vertices are NaN or infinite, .* \(row 1\)"):
        sthist.io.assemble({"dapi": DAPI}, mpp=MPP, cells=tmp_path / "cells.parquet")


def test_a_crop_with_the_files_of_the_whole_section(caplog):
    """What lies beside the image is said, and left out where it is asked for."""
    molecules = pd.DataFrame({"x_um": [5.0, 500.0, 59.9], "y_um": [5.0, 5.0, 39.9], "gene": ["A", "B", "C"]})
    places = pd.DataFrame({"x_um": [5.0, 30.0, 5.0], "y_um": [5.0, 30.0, 90]}, index=list("012"))
    table = ad.AnnData(np.eye(3, dtype=np.float32), obs=places)
    given = {"points": molecules, "table": table}
    whole = sthist.io.assemble({"dapi": DAPI}, mpp=MPP, **given)
    assert len(whole["transcripts"]) == 3
    assert "1 of 3 molecules lie beside the images, which span x 0 to 60, y 0 to 40 µm, such as (500, 5)" in caplog.text
    assert "crop=True leaves them out" in caplog.text
    cropped = sthist.io.assemble({"dapi": DAPI}, mpp=MPP, crop=True, **given)
    assert cropped["transcripts"].compute()["gene"].tolist() == ["A", "C"]
    assert cropped["table"].obs_names.tolist() == ["0", "1"]
    assert cropped["cells"].index.tolist() == cropped["table"].obs["instance_id"].tolist()
    squares = gpd.GeoDataFrame(geometry=[shapely.box(x, 5, x + 4, 9) for x in (5, 50, 80)], index=["0", "1", "2"])
    cropped = sthist.io.assemble({"dapi": DAPI}, mpp=MPP, crop=True, table=table, cells=squares)
    assert cropped["cells"].index.tolist() == cropped["table"].obs_names.tolist() == ["0", "1"]
    with pytest.raises(ValueError, match="none is left by crop=True"):
        sthist.io.assemble({"dapi": DAPI}, mpp=MPP, points=molecules.assign(x_um=-5.0), crop=True)
    with pytest.raises(ValueError, match="there are none: give images="):
        sthist.io.assemble(points=molecules, crop=True)


def test_stains_in_several_images():
    """Nucleus and cytoplasm go together; each image stays as it is."""
    images = {"dapi": DAPI, "polyT": 255 - DAPI, "he": np.zeros((80, 120, 3), np.uint8)}
    sdata = sthist.io.assemble(images, mpp=MPP)
    assert sdata.attrs["sthist"]["roles"]["nuclear"] == {
        "images": ["stains"],
        "channel": "dapi",
        "cytoplasm": ["polyT"],
    }
    assert sdata["stains"].c.to_numpy().tolist() == ["dapi", "polyT"]
    np.testing.assert_array_equal(sdata["stains"].sel(c="polyT"), 255 - DAPI)
    np.testing.assert_array_equal(sdata["dapi"].to_numpy()[0], DAPI)
    assert scale.resolve_mpp(sdata, "stains") == (MPP, MPP)
    assert sdata.attrs["sthist"]["roles"]["he"] == {"image": "he"}


def test_stains_that_do_not_fit(caplog):
    """That one is not used is said."""
    sdata = sthist.io.assemble({"dapi": DAPI, "polyT": DAPI[:40]}, mpp=MPP)
    assert (
        "'polyT' has another size, type or place than 'dapi': it is not used as a stain of the cytoplasm" in caplog.text
    )
    assert sdata.attrs["sthist"]["roles"]["nuclear"]["images"] == ["dapi"]


@pytest.mark.parametrize("verb", ["embed", "tiles"])
def test_spots_are_known_as_spots(verb):
    """Verbs take them by default."""
    rng = np.random.default_rng(0)
    places = np.stack(np.meshgrid([100, 200, 300], [100, 200, 300]), -1).reshape(-1, 2).astype(float)
    spots = ad.AnnData(rng.poisson(1.0, (9, 5)).astype(np.float32), obsm={"spatial": places})
    he = rng.integers(120, 250, (400, 400, 3), dtype=np.uint8)
    sdata = sthist.io.assemble({"he": he}, mpp=1.0, table=spots, unit="um", spot_diameter_um=55)
    assert sdata.attrs["sthist"]["roles"]["spots"] == {"table": "table", "shapes": "spots"}
    if verb == "embed":
        sthist.pp.embed(sdata, "morphology", spec=sthist.tiles.TileSpec(64, 64), progress=False)
        assert len(sdata["table"].obsm["X_morphology"]) == 9
    else:
        sthist.pp.tiles(sdata, size_um=64, px=64, sampling="regions")
        assert len(sdata["tiles"]) == 9


def test_what_a_table_may_not_hold():
    """A cell twice; a matrix whose parts point outside of each other; text for a coordinate; a gene without a name."""
    obs = pd.DataFrame({"x_um": [1.0, 2.0], "y_um": [1.0, 2.0], "cell_id": ["a", "a"]}, index=["0", "1"])
    with pytest.raises(ValueError, match="table has the cell or spot 'a' more than once"):
        sthist.io.assemble(table=ad.AnnData(np.ones((2, 2), np.float32), obs=obs))
    obs["cell_id"] = ["a", "b"]
    damaged = ad.AnnData(sparse.csr_matrix(np.eye(2, dtype=np.float32)), obs=obs)
    damaged.X.indices[1] = 10**6
    with pytest.raises(ValueError, match=r"table: X: indices\[1\] \(of row 1\) is 1000000"):
        sthist.io.assemble(table=damaged)
    molecules = pd.DataFrame({"x_um": [1.0, 2.0], "y_um": ["1", "up"], "gene": ["A", "B"]})
    with pytest.raises(ValueError, match="points: column 'y_um' should hold numbers, but row 1 has 'up'"):
        sthist.io.assemble(points=molecules)
    with pytest.raises(ValueError, match="column 'gene' should hold names, but 1 of 2 are empty, the first in row 1"):
        sthist.io.assemble(points=molecules.assign(y_um=1.0, gene=["A", None]))
