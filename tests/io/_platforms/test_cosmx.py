"""Fields of view of a CosMx folder: their places, without seams; and folders that are damaged."""

from __future__ import annotations

import gzip
import logging
import re
import shutil

import numpy as np
import pandas as pd
import pytest
import spatialdata as sd
import vendor
from PIL import Image
from spatialdata.transformations import get_transformation

import sthist
from sthist import _sample, scale
from sthist.io import cosmx
from sthist.io._platforms.cosmx import find_layout, stated_mpp

MPP = 0.12


@pytest.fixture
def folder(tmp_path):
    """Two by two fields, as the public data have them."""
    return vendor.cosmx_folder(tmp_path / "Mini", **vendor.cosmx_sample(), mpp=MPP)


def expected_um(frame, total=80, first=(1000, 2000), mpp=MPP):
    """µm of pixels of the sample's field, rows downwards: global pixels count y upwards."""
    return np.c_[frame["x"] + first[0], total - frame["y"] + first[1]] * mpp


def by_place(xy):
    return xy[np.lexsort(xy.round(6).T)]


def value_at(element, um):
    """Pixel of an image or labels under a point in µm, or None outside."""
    x, y = (np.linalg.inv(scale.matrix_to(element)) @ [*um, 1.0])[:2]
    row, column = int(np.floor(y)), int(np.floor(x))
    if 0 <= row < element.sizes["y"] and 0 <= column < element.sizes["x"]:
        return np.asarray(element)[..., row, column]
    return None


@pytest.mark.parametrize("layout", [{}, {"y_up": False, "compress": True, "area_um2": False}, {"grey": True}])
def test_everything_lands_on_each_other(tmp_path, layout):
    """Molecules and cells lie on their bright squares and labels, in both ways that the vendor counts y."""
    sample = vendor.cosmx_sample()
    sdata = cosmx(vendor.cosmx_folder(tmp_path / "Mini", **sample, mpp=MPP, **layout))
    for _, name, element in sdata.gen_spatial_elements():
        assert set(get_transformation(element, get_all=True)) >= {"um", "global"}, name
    assert sdata["1_image"].sizes == {"c": 1 if "grey" in layout else 3, "y": 40, "x": 40}
    molecules = sdata["transcripts"].compute()
    expected = expected_um(sample["molecules"])
    np.testing.assert_allclose(by_place(molecules[["x", "y"]].to_numpy()), by_place(expected), atol=1e-3)
    table = sdata["table"]
    cells = sample["cells"]
    np.testing.assert_allclose(by_place(table.obsm["spatial"]), by_place(expected_um(cells)), atol=0.5 * MPP + 1e-9)
    for um, gene in zip(molecules[["x", "y"]].to_numpy(), molecules["target"], strict=True):
        number = int(np.argmin(np.linalg.norm(expected - um, axis=1)))
        assert gene == sample["molecules"]["gene"][number]
        stain = sample["stain"][int(cells["y"][number]), int(cells["x"][number])]
        found = [value_at(sdata[f"{fov}_image"].sel(c="DAPI"), um) for fov in range(1, 5)]
        assert [value for value in found if value is not None] == [stain]
    for um, obs in zip(table.obsm["spatial"], table.obs.itertuples(), strict=True):
        assert value_at(sdata[obs.fov_labels], um) == obs.cell_ID


def test_counts_and_roles(folder, tmp_path):
    """Counts go with their cells, background rows do not; the verbs find everything; it can be written and read."""
    sdata = cosmx(folder)
    table = sdata["table"]
    assert table.shape == (49, 2)
    places = expected_um(vendor.cosmx_sample()["cells"])
    nearest = [int(np.argmin(np.linalg.norm(places - um, axis=1))) for um in table.obsm["spatial"]]
    np.testing.assert_array_equal(table[:, "GAPDH"].X.toarray().ravel(), np.array(nearest) + 1)
    np.testing.assert_allclose(sdata["cells"].radius, np.sqrt(49 / np.pi) * MPP)
    images = [f"{fov}_image" for fov in (1, 2, 3, 4)]
    assert sdata.attrs["sthist"]["roles"] == {
        "nuclear": {"images": images, "channel": "DAPI", "cytoplasm": []},
        "transcripts": {"points": "transcripts", "gene": "target"},
        "cells": {"table": "table"},
    }
    shapes, counts = _sample.cell_counts(sdata, "table")
    np.testing.assert_allclose(np.c_[shapes.geometry.x, shapes.geometry.y], table.obsm["spatial"])
    np.testing.assert_array_equal(counts, np.array(nearest) + 3)
    assert sdata["transcripts"].npartitions == 4
    assert set(sdata["transcripts"]["target"].cat.categories) == {"GAPDH", "KRT8"}
    sdata.write(tmp_path / "out.zarr")
    again = sd.read_zarr(tmp_path / "out.zarr")
    np.testing.assert_array_equal(again["3_image"].to_numpy(), sdata["3_image"].to_numpy())
    assert again.attrs["sthist"]["roles"] == sdata.attrs["sthist"]["roles"]


def test_virtual_he_has_no_seams(tmp_path):
    """Four fields give the image of the field that they were cut from."""
    toy = sthist.datasets.toy(size_um=400)
    stain = toy["morphology_focus"].to_numpy()[0].astype(float)
    stain = np.clip(stain / stain.max() * 255, 0, 255).round().astype(np.uint8)
    molecules = toy["transcripts"].compute()
    molecules = molecules[molecules.qv >= 20]
    molecules = pd.DataFrame(
        {"x": molecules.x / 0.5, "y": molecules.y / 0.5, "gene": molecules.feature_name.astype(str)}
    )
    molecules = molecules.round(3)
    outlines = toy["cell_boundaries"].reset_index(drop=True)
    labels = np.zeros((800, 800), np.uint16)
    for number, outline in enumerate(outlines.geometry):
        row, column = int(outline.centroid.y / 0.5), int(outline.centroid.x / 0.5)
        labels[max(row - 3, 0) : row + 4, max(column - 3, 0) : column + 4] = number + 1
    centres = outlines.geometry.centroid
    cells = pd.DataFrame({"x": centres.x / 0.5, "y": centres.y / 0.5, "Area": outlines.area / 0.25, "EPCAM": 1})
    path = vendor.cosmx_folder(tmp_path / "Mini", stain, molecules, cells, labels, mpp=0.5)
    sdata = cosmx(path)
    sthist.tl.virtual_he(sdata)
    made = sdata["virtual_he"].to_numpy().astype(int)
    to_um = np.array([[0.5, 0, 500], [0, 0.5, 1000], [0, 0, 1]])
    uncut = molecules.assign(x_um=(molecules.x + 1000) * 0.5, y_um=(2800 - molecules.y) * 0.5)
    uncut = uncut[["x_um", "y_um", "gene"]]
    whole = sthist.io.assemble({"dapi": stain[::-1]}, matrices={"dapi": to_um}, points=uncut)
    sthist.tl.virtual_he(whole)
    expected = whole["virtual_he"].to_numpy().astype(int)
    assert expected.std() > 20
    assert made.shape == expected.shape == (3, 800, 800)
    np.testing.assert_allclose(scale.matrix_to(sdata["virtual_he"]), scale.matrix_to(whole["virtual_he"]), atol=1e-9)
    assert np.abs(made - expected).max() <= 2
    for image in (made, made.transpose(0, 2, 1)):
        steps = np.abs(np.diff(image, axis=2)).mean((0, 1))
        assert steps[399] <= steps[380:419].max()


def frame_of(fields, linear, offsets, rng, n=40, side=1000):
    """Rounded centres of cells in fields that are turned alike and shifted."""
    parts = []
    for fov, offset in zip(fields, offsets, strict=True):
        local = rng.uniform(0, side, (n, 2))
        there = local @ np.array(linear).T + offset
        columns = ["CenterX_local_px", "CenterY_local_px", "CenterX_global_px", "CenterY_global_px"]
        parts.append(pd.DataFrame(np.round(np.c_[local, there]), columns=columns).assign(fov=fov))
    return pd.concat(parts, ignore_index=True)


@pytest.mark.parametrize("linear", [[[1, 0], [0, -1]], [[0, -1], [1, 0]], [[-1, 0], [0, -1]]])
def test_layout_is_exact(linear):
    """Rounding leaves nothing in the orientation; a field of one cell takes that of the others."""
    rng = np.random.default_rng(1)
    offsets = [(100, 200), (1100, 200), (100, 1200)]
    cells = frame_of([1, 2, 7], linear, offsets, rng)
    cells = cells[(cells.fov != 7) | (cells.groupby("fov").cumcount() == 0)]
    layout = find_layout("cells.csv", cells, None)
    np.testing.assert_array_equal(layout.linear, linear)
    for fov, offset in zip([1, 2, 7], offsets, strict=True):
        np.testing.assert_allclose(layout.offset[fov], offset, atol=1)
    stated = pd.DataFrame(
        {"fov": [1, 2, 7, 9], "x_global_px": [100.3, 1100.3, 100.3, 5], "y_global_px": [200, 200, 1200, 6]}
    )
    assert find_layout("cells.csv", cells, stated).offset[7].tolist() == [100.3, 1200]
    contradicting = find_layout("cells.csv", cells, stated.assign(y_global_px=0.0))
    assert contradicting.offset[7].tolist() == layout.offset[7].tolist()


def test_layout_that_is_no_turn(caplog):
    """A stage that is turned by 3 degrees is taken as it is, and said."""
    c, s = np.cos(0.05), np.sin(0.05)
    cells = frame_of([1, 2], [[c, -s], [s, c]], [(0, 0), (1000, 0)], np.random.default_rng(1))
    with caplog.at_level(logging.WARNING, "sthist"):
        layout = find_layout("cells.csv", cells, None)
    np.testing.assert_allclose(layout.linear, [[c, -s], [s, c]], atol=2e-3)
    assert "no turn by 90 degrees" in caplog.text


def test_sources_of_the_scale():
    """Positions in mm, areas, and where there is neither, the size of the frame."""
    positions = pd.DataFrame({"x_global_px": [0, 1000], "y_global_px": [0, 500]})
    in_mm = positions.assign(x_global_mm=[1, 1.12], y_global_mm=[2, 2.06])
    cells = pd.DataFrame({"Area": [100, 0], "Area.um2": [1.21, 0.0]})
    found = stated_mpp(cells, in_mm, (3648, 5472))
    assert list(found.values()) == pytest.approx([0.12, 0.11])
    assert list(stated_mpp(cells[["Area"]], positions, (3648, 5472)).values()) == [0.18]
    assert list(stated_mpp(cells[["Area"]], None, (4256, 4256)).values()) == [0.12028]
    assert stated_mpp(cells[["Area"]], in_mm[:1], (80, 80)) == {}


def test_scale_is_not_guessed(tmp_path):
    """Without a source it has to be given; with one, it has to agree."""
    path = vendor.cosmx_folder(tmp_path / "Mini", **vendor.cosmx_sample(), mpp=MPP, area_um2=False)
    with pytest.raises(ValueError, match=r"cannot be told: no fov_positions_file in mm.*Give it with mpp="):
        cosmx(path)
    assert scale.resolve_mpp(cosmx(path, mpp=0.2), "2_image") == pytest.approx((0.2, 0.2))
    other = vendor.cosmx_folder(tmp_path / "Other", **vendor.cosmx_sample(), mpp=MPP)
    with pytest.raises(ValueError, match=r"disagree by 50.0%: 0.12 µm/px \(areas of the cells"):
        cosmx(other, mpp=0.18)


def test_without_labels(folder, caplog):
    """Then the table is linked to the circles."""
    for file in (folder / "CellLabels").iterdir():
        file.unlink()
    with caplog.at_level(logging.WARNING, "sthist"):
        sdata = cosmx(folder)
    assert "has no CellLabels" in caplog.text
    assert sdata["table"].uns["spatialdata_attrs"]["region"] == "cells"
    assert sdata.attrs["sthist"]["roles"]["cells"] == {"table": "table"}


@pytest.mark.parametrize("y_up", [True, False])
def test_pictures_without_labels_lie_the_right_way_up(tmp_path, y_up):
    """The tables tell: their local y runs as their global y does, which is upwards, or against it."""
    path = vendor.cosmx_folder(tmp_path / "Mini", **vendor.cosmx_sample(), mpp=MPP, y_up=y_up)
    shutil.rmtree(path / "CellLabels")
    sdata = cosmx(path)
    for um in sdata["transcripts"][["x", "y"]].compute().to_numpy():
        found = [value_at(sdata[f"{fov}_image"].sel(c="DAPI"), um) for fov in range(1, 5)]
        assert [value >= 150 for value in found if value is not None] == [True]  # each lies on a bright square


def test_what_some_fields_lack_is_said(folder, caplog):
    """A composite of one, the labels of another; cells that only one of the tables has."""
    (folder / "CellComposite" / "CellComposite_F002.png").unlink()
    (folder / "CellLabels" / "CellLabels_F003.tif").unlink()
    edit("metadata", lambda frame: frame[1:])(folder)
    edit("exprMat", lambda frame: frame[:-2])(folder)
    with caplog.at_level(logging.WARNING, "sthist"):
        assert cosmx(folder)["table"].n_obs == 46
    assert re.search(r"CellComposite has no composite of field 2, which has \d+ cells", caplog.text)
    assert re.search(r"CellLabels has no labels of field 3, which has \d+ cells", caplog.text)
    assert re.search(r"2 of 48 cells of .*metadata_file.csv have no counts in .*exprMat_file.csv", caplog.text)
    assert re.search(r"1 of 51 cells of .*exprMat_file.csv are not in .*metadata_file.csv, such as '1_1'", caplog.text)


def test_he_is_laid_on_global_pixels(folder, tmp_path):
    """An H&E of twice the pixel size, whose corner is at global pixel (1000, 2000)."""
    picture = np.full((40, 40, 3), 200, np.uint8)
    Image.fromarray(picture).save(tmp_path / "he.png")
    sdata = cosmx(folder, he=tmp_path / "he.png", he_alignment=[[2, 0, 1000], [0, 2, 2000], [0, 0, 1]])
    np.testing.assert_allclose(scale.matrix_to(sdata["he"]), [[0.24, 0, 120], [0, 0.24, 240], [0, 0, 1]])
    assert sdata.attrs["sthist"]["roles"]["he"] == {"image": "he"}


def edit(name, change):
    """Damage: change a csv file as a frame."""

    def damage(path):
        file = path / f"Mini_{name}_file.csv"
        change(pd.read_csv(file, dtype=str)).to_csv(file, index=False)

    return damage


def remove(name):
    return lambda path: next(path.glob(name)).unlink()


def cut(name, share=0.5):
    """Damage: a file that ends too early."""

    def damage(path):
        file = next(path.glob(name))
        file.write_bytes(file.read_bytes()[: int(share * file.stat().st_size)])

    return damage


def cut_gz(path):
    file = path / "Mini_tx_file.csv"
    whole = gzip.compress(file.read_bytes())
    (path / "Mini_tx_file.csv.gz").write_bytes(whole[: len(whole) // 2])
    file.unlink()


def cut_last_line(file):
    """Its fields up to the coordinates are there; the name of the gene is not."""
    *lines, last = file.read_text().splitlines()
    file.write_text("\n".join([*lines, ",".join(last.split(",")[:6])]))
    return file


def pack(file):
    file.with_suffix(".csv.gz").write_bytes(gzip.compress(file.read_bytes()))
    file.unlink()


DAMAGES = {
    "no counts": (remove("*exprMat*"), FileNotFoundError, r"no CosMx folder: it has no \*exprMat_file.csv"),
    "no metadata": (remove("*metadata*"), FileNotFoundError, "it has no Mini_metadata_file.csv"),
    "no molecules": (remove("*tx_file*"), FileNotFoundError, "it has no Mini_tx_file.csv"),
    "no composites": (
        lambda path: [file.unlink() for file in (path / "CellComposite").iterdir()],
        FileNotFoundError,
        "no pictures that are named like CellComposite_F001.jpg",
    ),
    "column of metadata": (
        edit("metadata", lambda frame: frame.drop(columns="CenterX_local_px")),
        KeyError,
        "Mini_metadata_file.csv has no column 'CenterX_local_px'",
    ),
    "column of molecules": (
        edit("tx", lambda frame: frame.rename(columns={"target": "gene"})),
        KeyError,
        "Mini_tx_file.csv has no column 'target'",
    ),
    "text for a coordinate": (
        edit("tx", lambda frame: frame.assign(x_local_px=frame.x_local_px.where(frame.index != 3, "left"))),
        ValueError,
        r"Mini_tx_file.csv: column 'x_local_px' should hold numbers.*in row 3: 'left'",
    ),
    "text for a count": (
        edit("exprMat", lambda frame: frame.assign(KRT8="many")),
        ValueError,
        "Mini_exprMat_file.csv: column 'KRT8' should hold numbers",
    ),
    "empty metadata": (
        edit("metadata", lambda frame: frame[:0]),
        ValueError,
        "Mini_metadata_file.csv has no rows",
    ),
    "empty file": (cut("Mini_metadata*", 0), ValueError, "Mini_metadata_file.csv cannot be read: No columns to parse"),
    "cells of another sample": (
        edit("metadata", lambda frame: frame.assign(cell_ID=(frame.cell_ID.astype(int) + 9000).astype(str))),
        ValueError,
        "Mini_exprMat_file.csv has no counts of the cells in Mini_metadata_file.csv, by cell_ID and fov",
    ),
    "cell twice": (
        edit("metadata", lambda frame: pd.concat([frame, frame[:1]])),
        ValueError,
        r"has cell '1_1' \(cell_ID and fov\) more than once",
    ),
    "cells on one line": (
        edit("metadata", lambda frame: frame.assign(CenterY_local_px="5")),
        ValueError,
        "a field needs three cells",
    ),
    "molecules that end within a row": (
        lambda path: cut_last_line(path / "Mini_tx_file.csv"),
        ValueError,
        "Mini_tx_file.csv ends within a line: .*Is it truncated",
    ),
    "molecules that end within a row of a csv.gz": (
        lambda path: pack(cut_last_line(path / "Mini_tx_file.csv")),
        ValueError,
        "Mini_tx_file.csv.gz ends within a line: .*Is it truncated",
    ),
    "molecule without a name": (
        edit("tx", lambda frame: frame.assign(target=frame.target.where(frame.index != 3))),
        ValueError,
        "Mini_tx_file.csv: column 'target' is empty in 1 of 49 rows, the first of them row 3",
    ),
    "truncated csv.gz": (cut_gz, ValueError, "Mini_tx_file.csv.gz cannot be read: .*Is it truncated"),
    "truncated picture": (
        cut("CellComposite/*F003*"),
        ValueError,
        "CellComposite_F003.png cannot be read: the picture ends before it is complete",
    ),
    "truncated labels": (cut("CellLabels/*F002*"), ValueError, "CellLabels_F002.tif"),
    "labels of another size": (
        lambda path: Image.fromarray(np.zeros((7, 9), np.uint8)).save(path / "CellLabels" / "CellLabels_F002.tif"),
        ValueError,
        "CellLabels_F002.tif has 9 x 7 px, but the composite of field 2 has 40 x 40",
    ),
    "composites of several kinds": (
        lambda path: Image.fromarray(np.zeros((40, 40), np.uint8)).save(path / "CellComposite/CellComposite_F002.png"),
        ValueError,
        "The composites show different stains: .*F001.png has 3 channels, .*F002.png has 1",
    ),
}


@pytest.mark.parametrize("damage", DAMAGES)
def test_damaged_folder(folder, damage):
    """The message names the file and what is wrong with it."""
    break_it, error, message = DAMAGES[damage]
    break_it(folder)
    with pytest.raises(error, match=message):
        cosmx(folder)


def test_wrong_arguments(folder):
    """What is named must be there."""
    with pytest.raises(ValueError, match="nuclear_channel is 3; .* has the channels 0 to 2"):
        cosmx(folder, nuclear_channel=3)
    with pytest.raises(FileNotFoundError, match="it has no Other_metadata_file.csv"):
        cosmx(folder, dataset_id="Other")
    with pytest.raises(ValueError, match="give the image, too, with he="):
        cosmx(folder, he_alignment=np.eye(3))
    with pytest.raises(FileNotFoundError, match="he=: there is no file"):
        cosmx(folder, he=folder / "he.tif", he_alignment=np.eye(3))
