"""Loose files to one sample in micrometres."""

from __future__ import annotations

import logging

import anndata as ad
import geopandas as gpd
import numpy as np
import pandas as pd
import pytest
import shapely
import tifffile
from PIL import Image
from realdata import folder

import sthist
from sthist import scale


@pytest.fixture
def dapi():
    return np.random.default_rng(0).integers(0, 255, (60, 80)).astype(np.uint8)


@pytest.fixture
def molecules():
    return pd.DataFrame({"pixel_x": [10.0, 20.0], "pixel_y": [30.0, 40.0], "gene": ["A", "B"], "z": [0, 1]})


@pytest.fixture
def table():
    obs = pd.DataFrame({"pixel_x": [10.0, 20.0], "pixel_y": [30.0, 40.0]}, index=["c1", "c2"])
    return ad.AnnData(np.array([[1.0, 2], [3, 4]], np.float32), obs=obs)


def test_pixels_become_micrometres(dapi, molecules, table):
    """Molecules and cells lie where they lie on the image."""
    sdata = sthist.io.assemble({"dapi": dapi}, mpp=0.5, points=molecules, table=table)
    frame = sdata["transcripts"].compute()
    assert frame[["x", "y"]].to_numpy().tolist() == [[5.0, 15.0], [10.0, 20.0]]
    assert list(frame.columns) == ["x", "y", "z", "gene"] or set(frame.columns) == {"x", "y", "z", "gene"}
    np.testing.assert_allclose(sdata["table"].obsm["spatial"], [[5, 15], [10, 20]])
    np.testing.assert_allclose(sdata["cells"].geometry.x, [5, 10])
    assert sdata.attrs["sthist"]["roles"]["nuclear"] == {"images": ["dapi"], "channel": "dapi", "cytoplasm": []}
    assert sdata.attrs["sthist"]["roles"]["transcripts"] == {"points": "transcripts", "gene": "gene"}


def test_matrix_places_image_and_pixels(dapi, molecules):
    """A (3, 3) matrix in place of a number: shift, flip, anything affine."""
    matrix = [[0, -0.5, 100], [0.5, 0, 7], [0, 0, 1]]
    sdata = sthist.io.assemble({"dapi": dapi}, matrices={"dapi": matrix}, points=molecules)
    np.testing.assert_allclose(scale.matrix_to(sdata["dapi"]), matrix)
    np.testing.assert_allclose(sdata["transcripts"].compute()[["x", "y"]].to_numpy()[0], [100 - 15, 7 + 5])


def test_micrometres_stay(dapi, molecules):
    """Columns named x_um and y_um, or a unit that is given."""
    for frame, kwargs in (
        (molecules.rename(columns={"pixel_x": "x_um", "pixel_y": "y_um"}), {}),
        (molecules.rename(columns={"pixel_x": "x", "pixel_y": "y"}), {"unit": "um"}),
        (molecules.rename(columns={"pixel_x": "east", "pixel_y": "south"}), {"xy": ("east", "south"), "unit": "um"}),
    ):
        sdata = sthist.io.assemble({"dapi": dapi}, mpp=0.5, points=frame, **kwargs)
        assert sdata["transcripts"].compute()[["x", "y"]].to_numpy().tolist() == [[10, 30], [20, 40]]


def test_spots(table):
    """Round regions of the given diameter, linked to the table."""
    he = np.full((60, 80, 3), 200, np.uint8)
    sdata = sthist.io.assemble({"he": he}, mpp=2.0, table=table, spot_diameter_um=55.0)
    assert sdata["spots"].radius.tolist() == [27.5, 27.5]
    assert sdata["table"].uns["spatialdata_attrs"]["region"] == "spots"
    assert sdata["he"].sizes["c"] == 3
    assert sdata.attrs["sthist"]["roles"]["he"] == {"image": "he"}


def test_cells_from_vertices(dapi, table, tmp_path):
    """One row per vertex, in a parquet file; a ring that crosses itself keeps its area."""
    rows = [("c1", x, y) for x, y in [(0, 0), (4, 0), (4, 4), (0, 4)]] + [
        ("c2", x, y) for x, y in [(9, 9), (13, 13), (13, 9), (9, 13)]
    ]
    frame = pd.DataFrame(rows, columns=["cell_id", "x_um", "y_um"])
    frame.to_parquet(tmp_path / "cells.parquet")
    sdata = sthist.io.assemble({"dapi": dapi}, mpp=0.5, table=table, cells=tmp_path / "cells.parquet")
    assert sdata["cells"].geometry.area.tolist() == [16.0, 8.0]
    np.testing.assert_allclose(sdata["table"].obsm["spatial"][0], [2, 2])
    alone = sthist.io.assemble({"dapi": dapi}, mpp=0.5, cells=frame)
    assert list(alone.shapes) == ["cells"]


def test_image_files(tmp_path, dapi):
    """PNG, JPEG, TIFF; OME-TIFF with its own scale and channel names."""
    rgb = np.random.default_rng(0).integers(0, 255, (50, 40, 3)).astype(np.uint8)
    Image.fromarray(rgb).save(tmp_path / "he.png")
    Image.fromarray(np.dstack([rgb, np.full((50, 40), 255, np.uint8)])).save(tmp_path / "rgba.png")
    tifffile.imwrite(tmp_path / "dapi16.tif", dapi.astype(np.uint16) * 200)
    tifffile.imwrite(tmp_path / "rgb.tif", rgb, photometric="rgb")
    stack = np.zeros((2, 3, 60, 80), np.uint16)
    meta = {
        "axes": "CZYX",
        "PhysicalSizeX": 0.2,
        "PhysicalSizeXUnit": "µm",
        "PhysicalSizeY": 200,
        "PhysicalSizeYUnit": "nm",
        "Channel": {"Name": ["DAPI", "18S"]},
    }
    tifffile.imwrite(tmp_path / "stack.ome.tif", stack, metadata=meta)
    images = {name: tmp_path / name for name in ("he.png", "rgba.png", "dapi16.tif", "rgb.tif")} | {
        "stack": tmp_path / "stack.ome.tif"
    }
    sdata = sthist.io.assemble(images, mpp={name: 0.5 for name in images if name != "stack"})
    for name in ("he.png", "rgba.png", "rgb.tif"):
        np.testing.assert_array_equal(sdata[name].to_numpy(), rgb.transpose(2, 0, 1))
    assert sdata["dapi16.tif"].dtype == np.uint16
    assert sdata["stack"].dims == ("c", "z", "y", "x")
    assert sdata["stack"].coords["c"].to_numpy().tolist() == ["DAPI", "18S"]
    assert scale.resolve_mpp(sdata, "stack") == pytest.approx((0.2, 0.2))
    with pytest.raises(ValueError, match=r"disagree by .*OME PhysicalSizeX"):
        sthist.io.assemble({"stack": tmp_path / "stack.ome.tif"}, mpp=0.5)


@pytest.mark.parametrize(
    ("axes", "shape", "dims"),
    [
        ("ZYX", (4, 30, 20), ("c", "z", "y", "x")),
        ("ZCYX", (4, 2, 30, 20), ("c", "z", "y", "x")),
        ("CYX", (2, 30, 20), ("c", "y", "x")),
    ],
)
def test_axes_of_tiff(tmp_path, axes, shape, dims):
    """In whatever order the file has them; time is not one of them."""
    pixels = np.random.default_rng(0).integers(0, 99, shape).astype(np.uint8)
    tifffile.imwrite(tmp_path / "a.ome.tif", pixels, metadata={"axes": axes})
    image = sthist.io.assemble({"a": tmp_path / "a.ome.tif"}, mpp=1.0)["a"]
    assert image.dims == dims
    expected = {"ZYX": lambda: pixels[None], "ZCYX": lambda: np.swapaxes(pixels, 0, 1), "CYX": lambda: pixels}[axes]()
    np.testing.assert_array_equal(image.to_numpy(), expected)
    tifffile.imwrite(tmp_path / "t.ome.tif", np.zeros((3, 2, 30, 20), np.uint8), metadata={"axes": "TCYX"})
    with pytest.raises(ValueError, match=r"the axes of .* are TCYX"):
        sthist.io.assemble({"t": tmp_path / "t.ome.tif"}, mpp=1.0)


def test_real_svs():
    """Aperio's file is a TIFF; its scale is not in OME, so it is given."""
    path = folder("he_svs") / "CMU-1-Small-Region.svs"
    sdata = sthist.io.assemble({"he": path}, mpp=0.499)
    assert sdata["he"]["scale0"].image.shape == (3, 2967, 2220)
    sthist.pp.tissue(sdata)
    tissue = sdata["tissue"].geometry.union_all()
    assert tissue.area / (2220 * 2967 * 0.499**2) == pytest.approx(1 / 3, abs=0.08)
    strip = shapely.box(400 * 0.499, 0, 2000 * 0.499, 2967 * 0.499)
    assert tissue.intersection(strip).area > 0.95 * tissue.area


def test_real_spots_lie_on_tissue():
    """her2st C3: spots, where the study put them, are on the tissue that is found in its H&E."""
    data = folder("her2st")
    adata = ad.read_h5ad(data / "C3_counts.h5ad")
    sdata = sthist.io.assemble(
        {"he": data / "C3.jpg"}, mpp=0.687, table=adata, xy=("pixel_x", "pixel_y"), unit="px", spot_diameter_um=100
    )
    sthist.pp.tissue(sdata)
    tissue = sdata["tissue"].geometry.union_all()
    assert sdata["spots"].geometry.within(tissue.buffer(50)).mean() > 0.95
    assert tissue.area / (9270 * 9936 * 0.687**2) == pytest.approx(0.17, abs=0.04)
    sthist.pp.tiles(sdata, sampling="regions", regions="spots", key_added="spot_tiles")
    assert sdata["spot_tiles_table"].n_obs == 180


def bad(dapi, molecules, table, **changes):
    return {"images": {"dapi": dapi}, "mpp": 0.5, "points": molecules, "table": table} | changes


@pytest.mark.parametrize(
    ("changes", "error", "message"),
    [
        ({"images": {"dapi": "nowhere.tif"}}, FileNotFoundError, "Image 'dapi': there is no file nowhere.tif"),
        ({"mpp": None}, ValueError, "Image 'dapi' states no µm per pixel"),
        ({"mpp": -1.0}, ValueError, "it is a positive number"),
        ({"mpp": {"he": 0.5}}, KeyError, r"mpp= names the image 'he'; images= has \['dapi'\]"),
        ({"channels": {"dapi": ["a", "b"]}}, ValueError, "has 1 channels; 2 names are given"),
        ({"matrices": {"dapi": np.eye(2)}}, ValueError, r"matrices\['dapi'\] is no 3 x 3 matrix"),
        ({"matrices": {"dapi": np.zeros((3, 3))}}, ValueError, "no affine matrix: its last row"),
        ({"images": {"dapi": np.zeros((2, 2, 2, 2, 2))}}, ValueError, "has shape"),
        ({"gene": "target"}, KeyError, "points have no gene column 'target'"),
        ({"points": "nowhere.parquet"}, FileNotFoundError, "points: there is no file"),
        ({"points": pd.DataFrame({"pixel_x": [], "pixel_y": [], "gene": []})}, ValueError, "points has no rows"),
        (
            {"points": pd.DataFrame({"a": [1], "gene": ["A"]})},
            KeyError,
            "points has no coordinates that are recognised",
        ),
        ({"points": pd.DataFrame({"x": [1.0], "y": [1.0], "gene": ["A"]})}, KeyError, "name them with xy= and unit="),
        (
            {"points": pd.DataFrame({"x_um": [1.0, np.nan], "y_um": [1.0, 2], "gene": ["A", "B"]})},
            ValueError,
            r"1 of 2 coordinates \(x_um, y_um\) of points are NaN or infinite, the first in row 1",
        ),
        (
            {"points": pd.DataFrame({"x_um": [1.0, 1e300], "y_um": [1.0, 2], "gene": ["A", "B"]})},
            ValueError,
            r"1 of 2 coordinates .* of points are .* the first in row 1.*none is above 1e\+08",
        ),
        (
            {"cells": pd.DataFrame({"cell_id": ["a"] * 3, "x_um": [0, 1e300, 1], "y_um": [0.0, 0, 1]})},
            ValueError,
            r"cells: 1 vertices have no x_um, y_um .* in row 1.*none is above 1e\+08",
        ),
        ({"unit": "mm", "xy": ("pixel_x", "pixel_y")}, ValueError, 'unit is \'mm\'; it is "px" or "um"'),
        ({"images": {}, "mpp": None}, ValueError, "there is no image to tell their size"),
        ({"cells": pd.DataFrame({"cell": [1]})}, KeyError, r"cells have no column \['cell_id', 'x_um', 'y_um'\]"),
    ],
)
def test_malformed(dapi, molecules, table, changes, error, message):
    """Each says what, where, and how to mend it."""
    with pytest.raises(error, match=message):
        sthist.io.assemble(**bad(dapi, molecules, table, **changes))


def test_files_that_are_no_images(tmp_path):
    """A text file with a picture's name."""
    for name in ("broken.png", "broken.tif"):
        (tmp_path / name).write_text("no picture")
        with pytest.raises(ValueError, match=f"Image 'x': .*{name} is no"):
            sthist.io.assemble({"x": tmp_path / name}, mpp=1.0)


def test_what_ome_files_say(tmp_path):
    """Three colours under one name; micrometres spelt with the Greek letter."""
    rgb = np.zeros((50, 40, 3), np.uint8)
    xml = (
        '<OME xmlns="http://www.openmicroscopy.org/Schemas/OME/2016-06"><Image ID="Image:0"><Pixels ID="Pixels:0" '
        'DimensionOrder="XYCZT" Type="uint8" SizeX="40" SizeY="50" SizeZ="1" SizeC="3" SizeT="1" PhysicalSizeX="0.25" '
        'PhysicalSizeXUnit="\u03bcm"><Channel ID="Channel:0:0" Name="RGB" '
        'SamplesPerPixel="3"/><TiffData/></Pixels></Image></OME>'
    )
    tifffile.imwrite(tmp_path / "rgb.tif", rgb, photometric="rgb", description=xml.encode(), metadata=None)
    sdata = sthist.io.assemble({"he": tmp_path / "rgb.tif"})
    assert sdata["he"].coords["c"].to_numpy().tolist() == ["r", "g", "b"]
    assert scale.resolve_mpp(sdata, "he") == (0.25, 0.25)


def test_outlines_without_area(dapi, caplog):
    """Left out, and said."""
    rows = [("a", 0, 0), ("a", 4, 0), ("a", 4, 4), ("b", 1, 1), ("b", 2, 2), ("b", 3, 3), ("c", 1, 1)]
    with caplog.at_level(logging.WARNING, "sthist"):
        sdata = sthist.io.assemble(
            {"dapi": dapi}, mpp=0.5, cells=pd.DataFrame(rows, columns=["cell_id", "x_um", "y_um"])
        )
    assert sdata["cells"].index.tolist() == ["a"]
    assert "1 of 3 outlines have fewer than 3 corners and are left out: cell_id 'c'" in caplog.text
    assert "1 outlines have no area" in caplog.text


def test_cells_without_outline(dapi, table):
    """Names the first."""
    outlines = gpd.GeoDataFrame(geometry=[shapely.box(0, 0, 4, 4)], index=["c1"])
    with pytest.raises(ValueError, match="1 of the table's 2 cells have no outline, the first of them 'c2'"):
        sthist.io.assemble({"dapi": dapi}, mpp=0.5, table=table, cells=outlines)


def test_table_without_unit(dapi, table, caplog):
    """obsm["spatial"] alone does not say its unit; with it, cells are shown with a stated size."""
    table.obsm["spatial"] = table.obs[["pixel_x", "pixel_y"]].to_numpy()
    table.obs = table.obs[[]]
    with pytest.raises(ValueError, match="does not say its unit"):
        sthist.io.assemble({"dapi": dapi}, mpp=0.5, table=table)
    with caplog.at_level(logging.INFO, "sthist"):
        sdata = sthist.io.assemble({"dapi": dapi}, mpp=0.5, table=table, unit="px")
    assert "cells of 10 µm" in caplog.text
    np.testing.assert_allclose(sdata["table"].obsm["spatial"], [[5, 15], [10, 20]])
