"""The vendor's folder, real and damaged."""

from __future__ import annotations

import json
import os
import re
import shutil
import zipfile

import numpy as np
import pandas as pd
import pyarrow.parquet as pq
import pytest
import spatialdata_io
import tifffile
from PIL import Image
from realdata import folder

import sthist
from sthist import scale
from sthist.io._files import checks


def linked(tmp_path):
    """A folder of links to the real files, to be damaged."""
    shutil.copytree(folder("xenium_ileum_tiny") / "outs", tmp_path / "outs", copy_function=os.symlink)
    return tmp_path / "outs"


def test_real_folder():
    """Everything in um; molecules lie on the nuclei."""
    sdata = sthist.io.xenium(folder("xenium_ileum_tiny") / "outs")
    for _, name, element in sdata.gen_spatial_elements():
        assert scale.matrix_to(element).shape == (3, 3), name
    assert scale.resolve_mpp(sdata, "morphology_focus") == pytest.approx((0.2125, 0.2125))
    np.testing.assert_allclose(scale.matrix_to(sdata["transcripts"]), np.eye(3), atol=1e-9)
    roles = sdata.attrs["sthist"]["roles"]
    assert roles["nuclear"] == {"images": ["morphology_focus"], "channel": "DAPI", "cytoplasm": []}
    assert roles["transcripts"] == {"points": "transcripts", "gene": "feature_name"}
    frame = sdata["transcripts"].compute()
    frame = frame[(frame.qv >= 20) & (frame.overlaps_nucleus == 1)]
    rows, columns = (frame[axis].to_numpy() / 0.2125 for axis in ("y", "x"))
    stain = sdata["morphology_focus"]["scale0"].image.to_numpy()[0]
    on_nuclei = stain[rows.astype(int), columns.astype(int)]
    assert (on_nuclei > 0).mean() > 0.9


def test_the_elements_are_those_of_spatialdata_io():
    """Names, pixels, labels, outlines, molecules, counts and facts of the cells."""
    path = folder("xenium_ileum_tiny") / "outs"
    with checks.quietly():
        theirs = spatialdata_io.xenium(path)
    ours = sthist.io.xenium(path)
    for kind in ("images", "labels"):
        assert list(getattr(ours, kind)) == list(getattr(theirs, kind))
        for name, element in getattr(theirs, kind).items():
            for level in ("scale0", "scale3"):
                np.testing.assert_array_equal(ours[name][level].image, element[level].image)
    assert ours["morphology_focus"]["scale0"].c.to_numpy().tolist() == ["DAPI"]
    assert sorted(ours.shapes) == sorted(theirs.shapes)
    for name, frame in theirs.shapes.items():
        pd.testing.assert_frame_equal(pd.DataFrame(ours[name]), pd.DataFrame(frame))
    molecules, expected = (one["transcripts"].compute() for one in (ours, theirs))
    gene = expected["feature_name"].astype(str)
    pd.testing.assert_series_equal(molecules["feature_name"].astype(str), gene, check_dtype=False)
    pd.testing.assert_frame_equal(molecules.drop(columns="feature_name"), expected.drop(columns="feature_name"))
    table, expected = ours["table"], theirs["table"]
    assert (table.X != expected.X).nnz == 0
    pd.testing.assert_frame_equal(table.obs[expected.obs.columns], expected.obs)
    pd.testing.assert_frame_equal(table.var, expected.var)
    assert table.uns["spatialdata_attrs"] == expected.uns["spatialdata_attrs"]
    np.testing.assert_array_equal(table.obsm["spatial"], expected.obsm["spatial"])


@pytest.mark.parametrize("version", ["R&D", "develop", "3.0.0", "xeniumranger-3.1.0.4", "xenium-2.0.0.6-35-ga7e17149a"])
@pytest.mark.parametrize("key", ["analysis_sw_version", "xenium_ranger"])
def test_a_version_is_any_text(tmp_path, version, key):
    """The layout is told by what there is."""
    path = linked(tmp_path)
    specs = json.loads((path / "experiment.xenium").read_text())
    (path / "experiment.xenium").unlink()
    entry = version if key == "analysis_sw_version" else {"version": version}
    (path / "experiment.xenium").write_text(json.dumps(specs | {key: entry}))
    sdata = sthist.io.xenium(path, transcripts=False)
    assert list(sdata.images) == ["morphology_focus"]
    assert list(sdata.labels) == ["nucleus_labels", "cell_labels"]


@pytest.mark.parametrize(
    "flags", [{}, {"cells_labels": False, "nucleus_labels": False, "nucleus_boundaries": False}, {"transcripts": False}]
)
def test_an_imported_segmentation(tmp_path, flags):
    """One set of outlines, of cells; neither nuclei nor label images."""
    path = linked(tmp_path)
    with zipfile.ZipFile(path / "cells.zarr.zip") as old:
        files = {name: old.read(name) for name in old.namelist()}
    (path / "cells.zarr.zip").unlink()
    with zipfile.ZipFile(path / "cells.zarr.zip", "w") as new:
        for name, content in files.items():
            if not name.startswith(("polygon_sets/0/", "masks/0/", "masks/1/")):
                new.writestr(name.replace("polygon_sets/1/", "polygon_sets/0/"), content)
    edit("nucleus_boundaries.parquet", lambda frame: frame[:0])(path)
    sdata = sthist.io.xenium(path, **flags)
    assert sdata["table"].shape == (23, 5006)
    assert list(sdata.shapes) == ["cell_boundaries"]
    assert sdata["table"].uns["spatialdata_attrs"]["region"] == "cell_boundaries"
    assert sdata["table"].obs["cell_id"].tolist() == sdata["cell_boundaries"].index.tolist()


@pytest.mark.parametrize("kept", [1, 2, 3])
@pytest.mark.parametrize("name", ["nucleus_boundaries", "cell_boundaries"])
def test_an_outline_with_too_few_vertices(tmp_path, caplog, name, kept):
    """It is left out, and the file and the outline are named."""
    path = linked(tmp_path)
    first = pd.read_parquet(path / f"{name}.parquet")["label_id"].iloc[0]
    edit(f"{name}.parquet", lambda frame: frame.drop(frame.index[frame["label_id"] == first][kept:]))(path)
    sdata = sthist.io.xenium(path, transcripts=False)
    assert len(sdata[name]) == (23 if kept == 3 else 22)  # three corners are an area
    assert f"{name}.parquet: " in caplog.text
    said = "are vertices lost" if kept == 3 else f"1 of 23 outlines have fewer than 3 corners.*label_id '{first}'"
    assert re.search(said, caplog.text)


@pytest.mark.parametrize("channels", [["DAPI"], ["DAPI", "CD3"], ["DAPI", "CD3", "CD8"], [f"m{i}" for i in range(20)]])
def test_an_immunofluorescence_image(tmp_path, channels):
    """Of any number of channels, under their names, where its alignment puts it."""
    path = linked(tmp_path)
    pixels = np.arange(len(channels), dtype=np.uint16)[:, None, None] + np.zeros((1, 64, 96), np.uint16)
    metadata = {"axes": "CYX", "Channel": {"Name": channels}, "PhysicalSizeX": 0.425, "PhysicalSizeY": 0.425}
    tifffile.imwrite(path / "S_if_image.ome.tif", pixels, photometric="minisblack", metadata=metadata)
    (path / "S_if_imagealignment.csv").write_text("2,0,100\n0,2,200\n0,0,1\n")
    sdata = sthist.io.xenium(path, transcripts=False)
    image = sdata["if_image"]["scale0"].image
    assert {str(c): int(image.sel(c=c).max()) for c in image.c.to_numpy()} == dict(
        zip(channels, range(20), strict=False)
    )
    expected = np.diag([0.2125, 0.2125, 1]) @ [[2, 0, 100], [0, 2, 200], [0, 0, 1]]
    np.testing.assert_allclose(scale.matrix_to(sdata["if_image"]), expected)


def test_several_aligned_images(tmp_path):
    """None is taken in place of the other."""
    path = linked(tmp_path)
    write_he(path, 0.425)
    shutil.copy(path / "Mini_he_image.ome.tif", path / "Other_he_image.ome.tif")
    with pytest.raises(ValueError, match="several aligned images: Mini_he_image.ome.tif, Other_he_image.ome.tif"):
        sthist.io.xenium(path)


def test_an_unknown_argument(tmp_path):
    """It is named."""
    with pytest.raises(TypeError, match="unexpected argument 'transcript'; it takes cells_boundaries"):
        sthist.io.xenium(linked(tmp_path), transcript=False)


def test_cells_of_a_table_linked_to_labels():
    """The vendor's table goes with the label image; its cells are found among the outlines by their names."""
    sdata = sthist.io.xenium(folder("xenium_ileum_tiny") / "outs", transcripts=False)
    sthist.tl.virtual_he(sdata)
    made = sdata.attrs["sthist"]["results"]["virtual_he"]["section"]["eosin_from"]
    assert made[0].startswith("counts of cells")


def test_contradicting_metadata(tmp_path):
    """Another µm/px in the image than in experiment.xenium."""
    linked(tmp_path)
    content = json.loads((tmp_path / "outs" / "experiment.xenium").read_text())
    (tmp_path / "outs" / "experiment.xenium").unlink()
    (tmp_path / "outs" / "experiment.xenium").write_text(json.dumps(content | {"pixel_size": 0.5}))
    with pytest.raises(ValueError, match=r"disagree by 135.3%: 0.2125 µm/px \(OME PhysicalSizeX.*\) and 0.5"):
        sthist.io.xenium(tmp_path / "outs")


def test_no_xenium_folder(tmp_path):
    """A missing folder, and one without its manifest."""
    for path in (tmp_path, tmp_path / "nowhere"):
        with pytest.raises(FileNotFoundError, match="is no Xenium folder: it has no experiment.xenium"):
            sthist.io.xenium(path)


@pytest.mark.parametrize("pixel_size", [None, "0.2", 0])
def test_no_pixel_size(tmp_path, pixel_size):
    """The scale is not guessed."""
    (tmp_path / "experiment.xenium").write_text(json.dumps({"pixel_size": pixel_size}))
    with pytest.raises(ValueError, match="experiment.xenium: 'pixel_size' is .*; it should be a positive number"):
        sthist.io.xenium(tmp_path)


def replace_by(name, change):
    """Damage: other bytes in place of those of a file, whose link is removed."""

    def damage(path):
        content = (path / name).read_bytes()
        (path / name).unlink()
        (path / name).write_bytes(change(content))

    return damage


def half(content):
    return content[: len(content) // 2]


def edit(name, change):
    """Damage: another frame in place of a parquet file."""

    def damage(path):
        frame = change(pd.read_parquet(path / name))
        (path / name).unlink()
        frame.to_parquet(path / name)

    return damage


STAIN = "morphology_focus/morphology_focus_0000.ome.tif"
DAMAGES = {
    "truncated manifest": (replace_by("experiment.xenium", half), ValueError, "experiment.xenium cannot be read"),
    "no molecules": (
        lambda path: (path / "transcripts.parquet").unlink(),
        FileNotFoundError,
        "no Xenium folder: it has no transcripts.parquet",
    ),
    "truncated molecules": (replace_by("transcripts.parquet", half), ValueError, "transcripts.parquet cannot be read"),
    "column of molecules": (
        edit("transcripts.parquet", lambda frame: frame.drop(columns="feature_name")),
        KeyError,
        "transcripts.parquet has no column 'feature_name'",
    ),
    "text for a coordinate": (
        edit("cells.parquet", lambda frame: frame.assign(x_centroid="left")),
        ValueError,
        "cells.parquet: column 'x_centroid' holds .*string; it should hold numbers",
    ),
    "no outlines of cells": (
        edit("cell_boundaries.parquet", lambda frame: frame[:0]),
        ValueError,
        "cell_boundaries.parquet has no rows",
    ),
    "vertex without a place": (
        edit("cell_boundaries.parquet", lambda frame: frame.assign(vertex_x=frame["vertex_x"].where(frame.index != 5))),
        ValueError,
        "cell_boundaries.parquet: 1 vertices have no vertex_x, vertex_y or no label_id, the first of them in row 5",
    ),
    "outlines in disorder": (
        edit("cell_boundaries.parquet", lambda frame: frame.sort_values("vertex_x")),
        ValueError,
        "cell_boundaries.parquet: the vertices of an outline should lie together",
    ),
    "outlines of another sample": (
        edit("cell_boundaries.parquet", lambda frame: frame.assign(cell_id="other-1")),
        ValueError,
        "cell_boundaries.parquet: no outline .cell_id. is of one of the 23 cells",
    ),
    "cells beside the stain": (
        edit("cells.parquet", lambda frame: frame.assign(x_centroid=frame["x_centroid"] * 1000)),
        ValueError,
        r"cells.parquet: \d+ of 23 cells \(x_centroid, y_centroid\) lie outside of the nuclear stain",
    ),
    "molecules beside the stain": (
        edit("transcripts.parquet", lambda frame: frame.assign(y_location=-frame["y_location"])),
        ValueError,
        r"transcripts.parquet: 1985 of 1985 molecules \(x_location, y_location\) lie outside of the image",
    ),
    "infinite centre": (
        edit(
            "cells.parquet", lambda frame: frame.assign(x_centroid=frame["x_centroid"].where(frame.index != 2, np.inf))
        ),
        ValueError,
        "cells.parquet: x_centroid, y_centroid are NaN or infinite for 1 of 23 cells, the first of them '",
    ),
    "fewer cells": (
        edit("cells.parquet", lambda frame: frame[:-2]),
        ValueError,
        "cells.parquet has .* rows, but cell_feature_matrix.h5 has counts of",
    ),
    "cells in another order": (
        edit("cells.parquet", lambda frame: frame[::-1]),
        ValueError,
        "cells.parquet: cell_id is .* in row 0, but cell_feature_matrix.h5 has",
    ),
    "molecule without a name": (
        edit(
            "transcripts.parquet",
            lambda frame: frame.assign(feature_name=frame["feature_name"].where(frame.index != 7)),
        ),
        ValueError,
        "transcripts.parquet: column 'feature_name' should hold names of genes, but row 7 has None",
    ),
    "molecule without a place": (
        edit("transcripts.parquet", lambda frame: frame.assign(x_location=frame["x_location"].where(frame.index != 5))),
        ValueError,
        "transcripts.parquet: column 'x_location' should hold numbers, but row 5 has None",
    ),
    "no cells": (edit("cells.parquet", lambda frame: frame[:0]), ValueError, "cells.parquet has no rows"),
    "truncated outlines": (
        replace_by("nucleus_boundaries.parquet", half),
        ValueError,
        "nucleus_boundaries.parquet cannot be read",
    ),
    "truncated matrix": (
        replace_by("cell_feature_matrix.h5", half),
        ValueError,
        "cell_feature_matrix.h5 cannot be read",
    ),
    "truncated labels": (replace_by("cells.zarr.zip", half), ValueError, "cells.zarr.zip cannot be read"),
    "no stain": (lambda path: (path / STAIN).unlink(), FileNotFoundError, "it has no morphology_focus.ome.tif"),
    "truncated stain": (replace_by(STAIN, half), ValueError, "morphology_focus_0000.ome.tif"),
}


@pytest.mark.parametrize("damage", DAMAGES)
def test_damaged_folder(tmp_path, damage):
    """The message names the file and what is wrong with it."""
    path = linked(tmp_path)
    break_it, error, message = DAMAGES[damage]
    break_it(path)
    with pytest.raises(error, match=message):
        sthist.io.xenium(path)


def test_damage_that_is_met_later_is_said_with_the_file(tmp_path):
    """Pages of molecules and pieces of label images are read when they are needed."""
    path = linked(tmp_path)
    molecules, labels = path / "transcripts.parquet", path / "cells.zarr.zip"
    column = next(
        column
        for column in map(pq.read_metadata(molecules).row_group(0).column, range(20))
        if column.path_in_schema == "qv"
    )
    with zipfile.ZipFile(labels) as archive:
        piece = max((i for i in archive.infolist() if i.filename.startswith("masks/1/")), key=lambda i: i.file_size)
    for file, start, n in (
        (molecules, column.dictionary_page_offset or column.data_page_offset, column.total_compressed_size),
        (labels, piece.header_offset + 30 + len(piece.filename), piece.compress_size),
    ):
        content = bytearray(file.read_bytes())
        content[start : start + n] = b"\x55" * n
        file.unlink()
        file.write_bytes(content)
    sdata = sthist.io.xenium(path)
    with pytest.raises(ValueError, match=r"transcripts.parquet cannot be read"):
        sdata["transcripts"].compute()
    with pytest.raises(ValueError, match=r"cells.zarr.zip cannot be read"):
        sdata["cell_labels"]["scale0"].image.to_numpy()


def test_he_is_laid_on_the_stain(tmp_path):
    """By its matrix to the stain's pixels; without one it is refused, and what lies in the folder is named."""
    path = linked(tmp_path)
    Image.fromarray(np.full((60, 80, 3), 220, np.uint8)).save(path / "he.png")
    (path / "Mini_he_imagealignment.csv").write_text("2,0,10\n0,2,30\n0,0,1\n")
    with pytest.raises(
        ValueError, match="with he_alignment=. The folder has Mini_he_imagealignment.csv; is it that one"
    ):
        sthist.io.xenium(path, he=path / "he.png")
    (path / "Mini_he_imagealignment.csv").rename(path / "Mini_if_imagealignment.csv")
    assert sthist.io.xenium(path, he=path / "he.png")["he"].shape == (3, 60, 80)  # that one is of another image
    (path / "Mini_if_imagealignment.csv").rename(path / "Mini_he_imagealignment.csv")
    sdata = sthist.io.xenium(path, he=path / "he.png", he_alignment=path / "Mini_he_imagealignment.csv")
    expected = np.diag([0.2125, 0.2125, 1]) @ [[2, 0, 10], [0, 2, 30], [0, 0, 1]]
    np.testing.assert_allclose(scale.matrix_to(sdata["he"]), expected)
    assert sdata.attrs["sthist"]["roles"]["he"] == {"image": "he"}


def write_he(path, mpp):
    metadata = {"axes": "YXS", "PhysicalSizeX": mpp, "PhysicalSizeY": mpp}
    pixels = np.full((60, 80, 3), 220, np.uint8)
    with tifffile.TiffWriter(path / "Mini_he_image.ome.tif", ome=True) as writer:
        writer.write(pixels, photometric="rgb", metadata=metadata)


def test_an_aligned_image_needs_its_alignment(tmp_path):
    """It would lie at the corner of the stain, pixel on pixel."""
    path = linked(tmp_path)
    write_he(path, 0.425)
    with pytest.raises(FileNotFoundError, match="Mini_he_image.ome.tif has no alignment Mini_he_imagealignment.csv"):
        sthist.io.xenium(path, transcripts=False)
    assert "he_image" not in sthist.io.xenium(path, transcripts=False, aligned_images=False).images
    (path / "Mini_he_imagealignment.csv").write_text("2,0,10\n0,2,30\n0,0,1\n")
    sdata = sthist.io.xenium(path, transcripts=False)
    assert scale.resolve_mpp(sdata, "he_image") == pytest.approx((0.425, 0.425))
    write_he(path, 0.6)
    with pytest.raises(ValueError, match=r"image 'he_image' disagree.*0.6 µm/px \(OME PhysicalSizeX of Mini_he_image"):
        sthist.io.xenium(path, transcripts=False)
