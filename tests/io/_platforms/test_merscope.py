"""A MERSCOPE region: its frame of micrometres, its planes; and folders that are damaged."""

from __future__ import annotations

import logging

import geopandas as gpd
import numpy as np
import pandas as pd
import pytest
import shapely
import spatialdata as sd
import tifffile
import vendor
from spatialdata.transformations import get_transformation

import sthist
from sthist import _sample, scale
from sthist.io import merscope


@pytest.fixture
def folder(tmp_path):
    """Planes 2 and 3 of three stains."""
    return vendor.merscope_folder(tmp_path / "run" / "region_0")[0]


def places(matrix, um):
    """Rows and columns of points in µm."""
    xy = np.c_[um, np.ones(len(um))] @ np.linalg.inv(matrix)[:2].T
    return np.floor(xy[:, 1]).astype(int), np.floor(xy[:, 0]).astype(int)


def test_everything_lands_on_each_other(folder):
    """The frame um is that of the vendor's own tables; the markers lie there, brighter by plane, stain and number."""
    sdata = merscope(folder)
    for _, name, element in sdata.gen_spatial_elements():
        assert set(get_transformation(element, get_all=True)) == {"um", "global"}, name
    np.testing.assert_allclose(scale.matrix_to(sdata["transcripts"]), np.eye(3), atol=1e-9)
    matrix = scale.matrix_to(sdata["mosaic"])
    np.testing.assert_allclose(matrix, [[0.108, 0, -50], [0, 0.108, 120], [0, 0, 1]], atol=1e-9)
    assert scale.resolve_mpp(sdata, "mosaic") == pytest.approx((0.108, 0.108))
    mosaic = sdata["mosaic"]
    assert mosaic.dims == ("c", "y", "x")
    assert sd.models.get_channel_names(mosaic) == ["Cellbound1", "DAPI", "PolyT"]
    table = sdata["table"]
    meta = pd.read_csv(folder / "cell_metadata.csv")
    np.testing.assert_allclose(table.obsm["spatial"], meta[["center_x", "center_y"]])
    dapi = mosaic.sel(c="DAPI").to_numpy()
    np.testing.assert_array_equal(dapi[places(matrix, table.obsm["spatial"])], 13_100 + np.arange(25))
    molecules = sdata["transcripts"].compute()
    assert (dapi[places(matrix, molecules[["x", "y"]].to_numpy())] >= 13_100).all()
    centroids = sd.transform(sdata["cells"], to_coordinate_system="um").geometry.centroid
    np.testing.assert_allclose(np.c_[centroids.x, centroids.y], table.obsm["spatial"], atol=1e-6)


def test_counts_and_roles(folder, tmp_path):
    """Blanks are no genes; the verbs find everything; it can be written and read."""
    sdata = merscope(folder)
    table = sdata["table"]
    assert table.var_names.tolist() == ["Slc17a7", "Gad1"]
    np.testing.assert_array_equal(table[:, "Slc17a7"].X.toarray().ravel(), np.arange(25) + 1)
    np.testing.assert_array_equal(table.obsm["blank"].to_numpy(), np.ones((25, 1)))
    assert str(sdata["transcripts"].dtypes["gene"]) == "category"
    assert sdata.attrs["sthist"]["roles"] == {
        "nuclear": {"images": ["mosaic"], "channel": "DAPI", "cytoplasm": ["Cellbound1", "PolyT"]},
        "transcripts": {"points": "transcripts", "gene": "gene", "z_step": 1.0, "z_planes": [3]},
        "cells": {"table": "table"},
    }
    _, counts = _sample.cell_counts(sdata, "table")
    np.testing.assert_array_equal(counts, np.arange(25) + 3)
    sdata.write(tmp_path / "out.zarr")
    again = sd.read_zarr(tmp_path / "out.zarr")
    np.testing.assert_array_equal(again["mosaic"].to_numpy(), sdata["mosaic"].to_numpy())


def test_planes_are_stacked(folder):
    """In the order in which they are asked for; the vendor's numbers are recorded."""
    sdata = merscope(folder, z_layers=[3, 2])
    assert sdata["mosaic"].sizes == {"c": 3, "z": 2, "y": 96, "x": 96}
    assert sdata["mosaic"].to_numpy()[:, :, 9, 9].tolist() == [[13200, 12200], [13100, 12100], [13000, 12000]]
    assert sdata.attrs["sthist"]["roles"]["transcripts"]["z_planes"] == [3, 2]
    assert sorted(sdata["transcripts"].compute()["z"].unique()) == [2.0, 3.0]


def test_tables_in_another_order(folder):
    """Cells go by their names: one file is turned around and does not name its first column."""
    meta = pd.read_csv(folder / "cell_metadata.csv", dtype={"EntityID": str})
    meta.iloc[::-1].rename(columns={"EntityID": ""}).to_csv(folder / "cell_metadata.csv", index=False)
    table = merscope(folder)["table"]
    np.testing.assert_array_equal(table[:, "Slc17a7"].X.toarray().ravel(), 25 - np.arange(25))
    np.testing.assert_allclose(table.obsm["spatial"], meta.iloc[::-1][["center_x", "center_y"]])


def test_optional_files(folder, caplog):
    """Without outlines, cells are circles, which is said; a sample without a table has to be asked for."""
    (folder / "cell_boundaries.parquet").unlink()
    with caplog.at_level(logging.WARNING, "sthist"):
        sdata = merscope(folder)
    assert "There is no file" in caplog.text
    assert "cell_boundaries.parquet" in caplog.text
    assert sdata.attrs["sthist"]["roles"]["cells"] == {"table": "table"}
    circles = sd.transform(sdata["cells"], to_coordinate_system="um")
    np.testing.assert_allclose(circles.geometry.x, sdata["table"].obsm["spatial"][:, 0])
    np.testing.assert_allclose(circles.radius, 5)
    (folder / "cell_by_gene.csv").unlink()
    with pytest.raises(FileNotFoundError, match="no file .*cell_by_gene.csv. Add it, or .*cells_table=False"):
        merscope(folder)
    assert not merscope(folder, cells_table=False).tables


def test_cells_of_one_file_only(folder, caplog):
    """Both are counted."""
    meta = pd.read_csv(folder / "cell_metadata.csv", dtype=str)
    meta.iloc[:-2].to_csv(folder / "cell_metadata.csv", index=False)
    counts = pd.read_csv(folder / "cell_by_gene.csv", dtype=str)
    counts.iloc[1:].to_csv(folder / "cell_by_gene.csv", index=False)
    with caplog.at_level(logging.WARNING, "sthist"):
        assert merscope(folder)["table"].n_obs == 22
    assert "1 of 23 cells of" in caplog.text
    assert "2 of 24 cells of" in caplog.text


@pytest.mark.parametrize("z_layers", [np.array([2, 3]), range(2, 4), {3, 2}, (np.int64(2), np.int64(3))])
def test_kinds_of_planes(folder, z_layers):
    """Whatever counts planes."""
    sdata = merscope(folder, z_layers=z_layers)
    assert sdata["mosaic"].to_numpy()[:, :, 9, 9].tolist() == [[12200, 13200], [12100, 13100], [12000, 13000]]


def test_one_plane_of_numpy_and_none(folder):
    """A number of an array is a number."""
    assert merscope(folder, z_layers=np.int64(2))["mosaic"].dims == ("c", "y", "x")
    for z_layers in ([], 2.5, None, "3"):
        with pytest.raises(ValueError, match="z_layers is .*; it is the number of a plane"):
            merscope(folder, z_layers=z_layers)


@pytest.mark.parametrize(
    ("column", "value", "message"),
    [
        ("global_x", "here", "column 'global_x' should hold numbers, but row 1490 has 'here'"),
        ("global_z", "", "column 'global_z' should hold numbers, but row 1490 has"),
        ("gene", "", "column 'gene' should hold names of genes, but row 1490 has"),
    ],
)
def test_a_broken_molecule_far_down(folder, column, value, message):
    """Also beyond the rows that are looked at first."""
    file = folder / "detected_transcripts.csv"
    frame = pd.read_csv(file, dtype=str)
    frame = pd.concat([frame] * 30, ignore_index=True)
    frame.loc[1490, column] = value
    frame.to_csv(file, index=False)
    with pytest.raises(ValueError, match=f"detected_transcripts.csv: {message}"):
        merscope(folder)


def test_cells_without_outline_are_left_out(folder, caplog):
    """The table stays linked."""
    import geopandas as gpd

    file = folder / "cell_boundaries.parquet"
    outlines = gpd.read_parquet(file)
    outlines[outlines.EntityID != outlines.EntityID.iloc[3]].to_parquet(file)
    with caplog.at_level(logging.WARNING, "sthist"):
        sdata = merscope(folder)
    assert "1 of 25 cells have no valid outline" in caplog.text
    assert sdata["table"].n_obs == 24
    assert sdata.attrs["sthist"]["roles"]["cells"] == {"table": "table"}


def cut(name, share=0.5):
    def damage(path):
        file = path / name
        file.write_bytes(file.read_bytes()[: int(share * file.stat().st_size)])

    return damage


def edit(name, change):
    def damage(path):
        change(pd.read_csv(path / name, dtype=str)).to_csv(path / name, index=False)

    return damage


def write(name, text):
    return lambda path: (path / name).write_text(text)


TRANSFORM = "images/micron_to_mosaic_pixel_transform.csv"
DAMAGES = {
    "no images": (
        lambda path: (path / "images").rename(path / "elsewhere"),
        FileNotFoundError,
        "no MERSCOPE folder: it has no images",
    ),
    "no transform": (lambda path: (path / TRANSFORM).unlink(), FileNotFoundError, "it has no micron_to_mosaic"),
    "no molecules": (
        lambda path: (path / "detected_transcripts.csv").unlink(),
        FileNotFoundError,
        "it has no detected_transcripts.csv",
    ),
    "text in transform": (write(TRANSFORM, "a b c\n"), ValueError, "pixel_transform.csv should hold a 3 x 3 matrix"),
    "half a transform": (write(TRANSFORM, "9.2 0 3\n0 9.2 3\n"), ValueError, "pixel_transform.csv should hold a 3 x 3"),
    "two scales": (write(TRANSFORM, "9.2 0 3\n0 4.6 3\n0 0 1\n"), ValueError, r"disagree by 100.0%.*along x"),
    "plane missing": (
        lambda path: (path / "images/mosaic_PolyT_z3.tif").unlink(),
        FileNotFoundError,
        r"has no mosaic_PolyT_z3.tif; it has the planes \[2, 3\]: choose with z_layers=",
    ),
    "no nuclear stain": (
        lambda path: [file.unlink() for file in (path / "images").glob("mosaic_DAPI*")],
        FileNotFoundError,
        "has no mosaic of a nuclear stain",
    ),
    "truncated mosaic": (cut("images/mosaic_DAPI_z3.tif"), ValueError, "mosaic_DAPI_z3.tif"),
    "mosaic of another size": (
        lambda path: tifffile.imwrite(path / "images/mosaic_DAPI_z3.tif", np.zeros((5, 6), np.uint16)),
        ValueError,
        "mosaic_DAPI_z3.tif has 6 x 5 px",
    ),
    "text for a coordinate": (
        edit("detected_transcripts.csv", lambda frame: frame.assign(global_y="here")),
        ValueError,
        "detected_transcripts.csv: column 'global_y' should hold numbers",
    ),
    "column of molecules": (
        edit("detected_transcripts.csv", lambda frame: frame.drop(columns="gene")),
        KeyError,
        "detected_transcripts.csv has no column 'gene'",
    ),
    "empty molecules": (
        edit("detected_transcripts.csv", lambda frame: frame[:0]),
        ValueError,
        "detected_transcripts.csv has no rows",
    ),
    "truncated molecules": (
        lambda path: (path / "detected_transcripts.csv").write_text(
            "\n".join([*(path / "detected_transcripts.csv").read_text().splitlines()[:3000], "7,4,-48.9"])
        ),
        ValueError,
        "detected_transcripts.csv: column 'global_y' should hold numbers, but 1 of 51 are none",
    ),
    "truncated outlines": (cut("cell_boundaries.parquet"), ValueError, "cell_boundaries.parquet cannot be read"),
    "column of cells": (
        edit("cell_metadata.csv", lambda frame: frame.rename(columns={"center_x": "x"})),
        KeyError,
        "cell_metadata.csv has no column 'center_x'",
    ),
    "text for a count": (
        edit("cell_by_gene.csv", lambda frame: frame.assign(Gad1="few")),
        ValueError,
        "cell_by_gene.csv: column 'Gad1' should hold numbers",
    ),
    "empty counts": (edit("cell_by_gene.csv", lambda frame: frame[:0]), ValueError, "cell_by_gene.csv has no rows"),
    "cells of another sample": (
        edit("cell_by_gene.csv", lambda frame: frame.assign(cell=np.arange(len(frame)))),
        ValueError,
        "cell_by_gene.csv has no counts of the cells in cell_metadata.csv",
    ),
}


@pytest.mark.parametrize("damage", DAMAGES)
def test_damaged_folder(folder, damage):
    """The message names the file and what is wrong with it."""
    break_it, error, message = DAMAGES[damage]
    break_it(folder)
    with pytest.raises(error, match=message):
        merscope(folder)


def test_long_file_that_ends_within_a_line(folder):
    """Also beyond the rows that are looked at."""
    file = folder / "detected_transcripts.csv"
    header, *lines = file.read_text().splitlines()
    file.write_text("\n".join([header, *(lines * 30), lines[0][:12]]))
    with pytest.raises(ValueError, match="detected_transcripts.csv ends within a line: .*Is it truncated"):
        merscope(folder)


def test_wrong_scale(folder):
    """The argument is checked against the vendor's matrix."""
    with pytest.raises(ValueError, match=r"disagree by .*the argument mpp="):
        merscope(folder, mpp=0.2)
    assert scale.resolve_mpp(merscope(folder, mpp=0.1085), "mosaic") == pytest.approx((0.108, 0.108))


def test_an_overlay_takes_stain_and_transcripts_of_one_plane(folder):
    """Planes of a stack count from 0; the vendor's transcripts name them by number."""
    sdata = merscope(folder, z_layers=[3, 2])
    spec = sthist.tiles.TileSpec.from_mpp(0.108, 96)
    for plane, grey in enumerate((13100, 12100)):
        overlay = sthist.tiles.Overlay(sdata, spec, z=plane, limits=(0, 65535), controls=())
        x0, y0, x1, y1 = overlay.extent_um
        bare = overlay.restyled(mode="none").read([[(x0 + x1) / 2, (y0 + y1) / 2]])[0]
        assert bare[9, 9, 0] == round(grey / 65535 * 255)
        z = sdata["transcripts"]["z"].compute()
        assert len(overlay.index) == (z == (3, 2)[plane]).sum()
    one = sthist.tiles.Overlay(merscope(folder), spec, z=0, limits=(0, 65535), controls=())  # plane 3 alone is read
    assert len(one.index) == (z == 3).sum()
    with pytest.raises(ValueError, match=r"no plane z=3: it has 1"):
        sthist.tiles.Overlay(merscope(folder), spec, z=3)


def outlines(path, change):
    """Other outlines of the cells."""
    file = path / "cell_boundaries.parquet"
    cells = gpd.read_parquet(file)
    change(cells[cells.ZIndex == 0]).to_parquet(file)


def on_plane(cells, z):
    """Outlines that are right in plane 3, and lie beside the cells elsewhere."""
    return cells.set_geometry(cells.Geometry.translate(2.0 * (z - 3))).assign(ZIndex=z)


PLANES = {
    "all planes": lambda cells: pd.concat([on_plane(cells, z) for z in range(7)]),
    "some cells in another plane": lambda cells: cells.assign(ZIndex=np.where(np.arange(25) < 5, 0, 3)),
    "one other plane": lambda cells: cells.assign(ZIndex=5),
    "one part each": lambda cells: cells.set_geometry(cells.Geometry.map(lambda cell: cell.geoms[0])).assign(ZIndex=3),
    "one that crosses itself": lambda cells: pd.concat(
        [on_plane(cells, 2), cells.assign(ZIndex=3).set_geometry(crossed(cells))]
    ).assign(Geometry=lambda frame: frame.Geometry.where(frame.ZIndex == 3, frame.Geometry.translate(2.0))),
}


def crossed(cells):
    bow = shapely.MultiPolygon([shapely.Polygon([(0, 0), (1, 1), (1, 0), (0, 1)])])
    return [bow, *cells.Geometry.iloc[1:]]


@pytest.mark.parametrize("planes", PLANES)
def test_outlines_are_those_of_the_plane_of_the_image(tmp_path, planes):
    """Else of the nearest plane in which a cell has one; each cell lies in its outline."""
    path, _ = vendor.merscope_folder(tmp_path / "region_0")
    outlines(path, PLANES[planes])
    sdata = merscope(path, z_layers=3)
    table = sdata["table"]
    assert table.n_obs == 25
    frame = sdata["cells"].loc[table.obs["EntityID"]]
    centres = gpd.GeoSeries(gpd.points_from_xy(*table.obsm["spatial"].T), index=frame.index)
    assert frame.contains(centres).all()
    assert set(frame.geom_type) == {"MultiPolygon"}


def test_an_infinite_vertex(tmp_path):
    """The file and the outline are named."""
    path, _ = vendor.merscope_folder(tmp_path / "region_0")
    ring = shapely.MultiPolygon([shapely.Polygon([(0, 0), (1, np.inf), (1, 0)])])
    outlines(path, lambda cells: cells.set_geometry([ring, *cells.Geometry.iloc[1:]]))
    with pytest.raises(ValueError, match=r"cell_boundaries.parquet: 1 vertices are NaN or infinite, .* \(row 0\)"):
        merscope(path)
