"""Which files of a Visium folder are read; and scales, places and pictures of different samples in one folder."""

from __future__ import annotations

import gzip
import json
import shutil

import numpy as np
import pandas as pd
import pytest
import vendor
from PIL import Image
from scipy.io import mmwrite
from scipy.sparse import csc_matrix

from sthist.io import visium, visium_hd

MATRIX = "filtered_feature_bc_matrix.h5"


@pytest.fixture
def outs(tmp_path):
    return vendor.visium_folder(tmp_path / "outs", header=True)[0]


@pytest.fixture
def hd(tmp_path):
    return vendor.visium_hd_folder(tmp_path / "hd")


def counts(file, value):
    barcodes = [f"ACGT{i:04d}-1" for i in range(48)]
    vendor.write_10x_matrix(file, np.full((48, 2), value), barcodes, ["COL1A1", "EPCAM"])


def test_samples_of_one_folder(outs):
    """All slides have the same barcodes: nothing but the name tells two samples apart."""
    (outs / "again").mkdir()
    counts(outs / "again" / MATRIX, 7)
    assert visium(outs, counts_file=f"again/{MATRIX}")["table"].X.max() == 7
    (outs / MATRIX).unlink()
    counts(outs / f"A_{MATRIX}", 1)
    assert visium(outs)["table"].X.max() == 1
    counts(outs / f"B_{MATRIX}", 100)
    counts(outs / f"AB_{MATRIX}", 50)
    for name, value in (("A", 1), ("B", 100), ("AB", 50)):
        sdata = visium(outs, dataset_id=name)
        assert sdata["table"].X.max() == value
        assert f"{name}_hires_image" in sdata.images
    with pytest.raises(ValueError, match="has the counts of several samples: AB, A, B; choose one with dataset_id="):
        visium(outs)
    assert visium(outs, counts_file=f"B_{MATRIX}")["table"].X.max() == 100


def test_prefixed_places_and_factors(outs):
    """As GEO names them, packed, and beside the counts."""
    (outs / MATRIX).rename(outs / f"GSM1_A_{MATRIX}")
    content = (outs / "spatial" / "tissue_positions.csv").read_bytes()
    (outs / "spatial" / "tissue_positions.csv").unlink()
    (outs / "GSM1_A_tissue_positions_list.csv.gz").write_bytes(gzip.compress(content))
    (outs / "spatial" / "scalefactors_json.json").rename(outs / "spatial" / "GSM1_A_scalefactors_json.json")
    sdata = visium(outs)
    assert sdata["table"].shape == (48, 2)
    assert "GSM1_A" in sdata.shapes


@pytest.mark.parametrize(
    ("argument", "file"),
    [
        ("scalefactors_file", "spatial/scalefactors_json.json"),
        ("tissue_positions_file", "spatial/tissue_positions.csv"),
        ("counts_file", MATRIX),
        ("fullres_image_file", "he.png"),
    ],
)
def test_a_file_by_its_path(outs, tmp_path, argument, file):
    """From the folder, absolute, and elsewhere under another name."""
    elsewhere = shutil.copy(outs / file, tmp_path / f"other (1){(outs / file).suffix}")
    expected = visium(outs)["table"]
    for path in (file, outs / file, str(outs / file), elsewhere):
        table = visium(outs, **{argument: path})["table"]
        np.testing.assert_array_equal(table.X.toarray(), expected.X.toarray())
        np.testing.assert_array_equal(table.obsm["spatial"], expected.obsm["spatial"])
    with pytest.raises(FileNotFoundError, match="nowhere"):
        visium(outs, **{argument: "nowhere.json"})


def test_a_folder_of_mtx(outs):
    """The same counts; a folder without them is named."""
    expected = visium(outs)["table"]
    folder = outs / "filtered_feature_bc_matrix"
    folder.mkdir()
    with pytest.raises(FileNotFoundError, match=r"has no matrix.mtx.gz; give the folder that has it, or the .h5 file"):
        visium(outs, counts_file="filtered_feature_bc_matrix")
    mmwrite(folder / "matrix.mtx", csc_matrix(expected.X.toarray().T.astype(int)))
    (folder / "barcodes.tsv").write_text("\n".join(expected.obs_names) + "\n")
    genes = zip(expected.var["gene_ids"], expected.var_names, strict=True)
    (folder / "features.tsv").write_text("".join(f"{one}\t{name}\tGene Expression\n" for one, name in genes))
    for file in list(folder.iterdir()):
        (folder / f"{file.name}.gz").write_bytes(gzip.compress(file.read_bytes()))
        file.unlink()
    for given in ("filtered_feature_bc_matrix", folder / "matrix.mtx.gz"):
        np.testing.assert_array_equal(visium(outs, counts_file=given)["table"].X.toarray(), expected.X.toarray())
    (outs / MATRIX).unlink()
    np.testing.assert_array_equal(visium(outs)["table"].X.toarray(), expected.X.toarray())


def change(file, **entries):
    file.write_text(json.dumps(json.loads(file.read_text()) | entries))


@pytest.mark.parametrize(
    ("entries", "message"),
    [
        ({"tissue_hires_scalef": 0.05}, "make a full image of .* of their pictures. Is one of them of another sample"),
        ({"tissue_lowres_scalef": 0.5}, r"lie outside of .*tissue_lowres_image.png, which has 115 x 70"),
    ],
)
def test_scale_factors_that_do_not_fit_the_pictures(outs, entries, message):
    """Spots would lie elsewhere on the picture, or it would have another scale."""
    change(outs / "spatial" / "scalefactors_json.json", **entries)
    with pytest.raises(ValueError, match=f"scalefactors_json.json: .*{message}"):
        visium(outs)


BIN = "binned_outputs/square_008um/spatial"


def edit_positions(path, make):
    file = path / BIN / "tissue_positions.parquet"
    make(pd.read_parquet(file)).to_parquet(file, index=False)


HD_DAMAGES = {
    "bins without a place": (
        lambda path: edit_positions(
            path, lambda frame: frame.assign(pxl_col_in_fullres=frame["pxl_col_in_fullres"].where(frame.index != 3))
        ),
        "pxl_col_in_fullres, pxl_row_in_fullres are NaN or infinite for 1 of 64 bins, the first of them 's_008um_00000",
    ),
    "places of another size of bins": (
        lambda path: edit_positions(
            path, lambda frame: frame.assign(**{name: frame[name] * 2 for name in frame if name.startswith("pxl")})
        ),
        "the bins lie 32 px apart .* bins of 8 µm at 0.5 µm per pixel lie 16 px apart",
    ),
    "factors of another size of bins": (
        lambda path: shutil.copy(
            path / BIN.replace("008", "016") / "scalefactors_json.json", path / BIN / "scalefactors_json.json"
        ),
        "bin_size_um is 16 .* they should be 8 and 16",
    ),
    "another factor in a size of bins that is not read": (
        lambda path: change(path / BIN.replace("008", "016") / "scalefactors_json.json", tissue_hires_scalef=0.1),
        "square_008um.* and .*square_016um.* state another 'tissue_hires_scalef', 0.5 and 0.1",
    ),
    "a picture of another sample": (
        lambda path: Image.new("RGB", (30, 30)).save(path / "spatial" / "tissue_hires_image.png"),
        "tissue_hires_scalef .* lie outside of .*tissue_hires_image.png, which has 30 x 30",
    ),
}


@pytest.mark.parametrize("damage", HD_DAMAGES)
def test_parts_of_different_samples(hd, damage):
    """The message names the file, and what contradicts what."""
    break_it, message = HD_DAMAGES[damage]
    break_it(hd)
    with pytest.raises(ValueError, match=message):
        visium_hd(hd)


def test_slices_of_one_folder(hd):
    """One is to be named."""
    (hd / "feature_slice.h5").rename(hd / "A_feature_slice.h5")
    shutil.copy(hd / "A_feature_slice.h5", hd / "B_feature_slice.h5")
    with pytest.raises(ValueError, match="has several samples: A, B; choose one with dataset_id="):
        visium_hd(hd)
