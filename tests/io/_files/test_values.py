"""Counts and coordinates of files: what is none is refused, by every reader."""

from __future__ import annotations

import shutil

import h5py
import numpy as np
import pandas as pd
import pytest
import vendor
from realdata import folder
from scipy import sparse

import sthist
from sthist.io._files import values

MATRICES = {
    "visium": "filtered_feature_bc_matrix.h5",
    "visium_hd": "binned_outputs/square_008um/filtered_feature_bc_matrix.h5",
    "xenium": "cell_feature_matrix.h5",
}


def put(name, place, value):
    """Damage: one other number in a dataset of the matrix."""

    def change(matrix):
        array = matrix[name][()]
        array[place] = value
        matrix[name][...] = array

    return change


def other(name, make):
    """Damage: another dataset in place of one of the matrix."""

    def change(matrix):
        array = make(matrix[name][()])
        del matrix[name]
        matrix[name] = array

    return change


DAMAGES = {
    "indptr falls": (put("indptr", 3, 0), r"indptr falls from \d+ to 0 in row 2"),
    "indptr begins late": (put("indptr", 0, 2), r"indptr\[0\] is 2"),
    "indptr ends late": (put("indptr", -1, 10**6), "indptr ends at 1000000, but indices has"),
    "indptr is short": (other("indptr", lambda array: array[:-1]), r"indptr has \d+ entries; \d+ are needed"),
    "an index beyond the genes": (put("indices", 3, 10**6), r"indices\[3\] .*is 1000000; it should be from 0 to"),
    "an index of -1": (put("indices", 3, -1), r"indices\[3\] .*is -1; it should be from 0 to"),
    "indices of text": (other("indices", lambda array: array.astype("S")), "indices is .*it should be a list of whole"),
    "a negative count": (put("data", 3, -5), "should hold .*counts, .* has -5 of"),
    "halves": (other("data", lambda array: array.astype("f4") - 0.5), "should hold raw counts, whole numbers"),
    "a count of NaN": (
        other("data", lambda array: np.where(np.arange(len(array)) == 3, np.nan, array.astype("f4"))),
        "should hold .*counts, .* has nan of",
    ),
    "fewer counts than indices": (other("data", lambda array: array[:-1]), r"but indices has \d+ and data \d+ values"),
    "counts of text": (other("data", lambda array: array.astype("S")), "matrix/data is .*it should be a list of numb"),
    "a shape of text": (other("shape", lambda array: array.astype("S")), "matrix/shape is .*should be two whole num"),
    "a shape of one number": (other("shape", lambda array: array[:1]), "matrix/shape is .*should be two whole num"),
    "barcodes of numbers": (other("barcodes", lambda array: np.arange(len(array))), "matrix/barcodes holds int64"),
    "fewer genomes": (other("features/genome", lambda array: array[:1]), r"features/genome holds .* of shape \(1,\)"),
    "a barcode without a name": (put("barcodes", 1, b""), "matrix/barcodes should hold names, but 1 of .* are empty"),
    "a gene without a name": (put("features/name", 1, b" "), "matrix/features/name should hold names, but 1 of"),
}


@pytest.fixture
def folders(tmp_path):
    """A folder of each reader of 10x matrices, by its name."""

    def make(reader):
        if reader == "xenium":
            return shutil.copytree(folder("xenium_ileum_tiny") / "outs", tmp_path / reader)
        getattr(vendor, f"{reader}_folder")(tmp_path / reader)
        return tmp_path / reader

    return make


@pytest.mark.parametrize("damage", DAMAGES)
@pytest.mark.parametrize("reader", ["visium", "visium_hd"])
def test_damaged_matrix(folders, reader, damage):
    """The process lives, and the message names file and field."""
    path = folders(reader)
    break_it, message = DAMAGES[damage]
    with h5py.File(path / MATRICES[reader], "a") as file:
        break_it(file["matrix"])
    with pytest.raises(ValueError, match=message) as caught:
        getattr(sthist.io, reader)(path)
    assert str(path) in str(caught.value)


@pytest.mark.parametrize("damage", ["indptr falls", "an index beyond the genes", "a negative count", "halves"])
def test_damaged_matrix_of_xenium(folders, damage):
    """The same of the third reader of such files."""
    path = folders("xenium")
    break_it, message = DAMAGES[damage]
    with h5py.File(path / MATRICES["xenium"], "a") as file:
        break_it(file["matrix"])
    with pytest.raises(ValueError, match=message):
        sthist.io.xenium(path, transcripts=False, nucleus_boundaries=False)


@pytest.mark.parametrize("kind", [sparse.csr_matrix, sparse.csc_matrix, np.asarray])
def test_the_place_of_a_bad_count(kind, caplog):
    """Row and column are named, however the matrix is stored; fractions are said where they are allowed."""
    rows, columns = pd.Index(["a", "b"]), pd.Index(["x", "y", "z"])
    values.require_counts("file: X", kind(np.array([[1, 0, 2], [0, 3, 0]])), rows, columns)
    with pytest.raises(ValueError, match="1 values are none; cell 'b' has -3 of 'y'"):
        values.require_counts("file: X", kind(np.array([[1, 0, 2], [0, -3, 0]])), rows, columns)
    values.require_counts("file: X", kind(np.array([[1, 0, 2], [0, 0.5, 0]])), rows, columns, whole=False)
    assert "file: X: 1 of" in caplog.text
    assert "such as: cell 'b' has 0.5 of 'y'" in caplog.text
    with pytest.raises(ValueError, match="cell 'a' has inf of 'z'"):
        values.require_counts("file: X", kind(np.array([[1, 0, np.inf], [0, 3, 0]])), rows, columns, whole=False)


def edit(name, change):
    """Damage: another table in place of a csv file."""

    def damage(path):
        frame = pd.read_csv(path / name)
        change(frame).to_csv(path / name, index=False)

    return damage


def put_in(column, row, value):
    def change(frame):
        frame = frame.astype({column: object})
        frame.loc[frame.index[row], column] = value
        return frame

    return change


def times(column, factor):
    return lambda frame: frame.assign(**{column: frame[column] * factor + factor})


FRACTIONS = [("cosmx", "Mini_exprMat_file.csv", "KRT8"), ("merscope", "cell_by_gene.csv", "Gad1")]
OUTSIDE = r"of \d+ {} \(.*\) lie outside of"
TABLES = [
    ("cosmx", "Mini_exprMat_file.csv", put_in("KRT8", 3, -2), "should hold counts, .* cell '.*' has -2 of 'KRT8'"),
    ("cosmx", "Mini_exprMat_file.csv", lambda frame: frame.rename(columns={"KRT8": " "}), "1 of 2 are empty"),
    ("cosmx", "Mini_metadata_file.csv", times("CenterX_local_px", 100), OUTSIDE.format("cells")),
    ("cosmx", "Mini_tx_file.csv", times("y_local_px", 100), OUTSIDE.format("molecules")),
    ("merscope", "cell_by_gene.csv", put_in("Gad1", 4, -1), "should hold counts, .* has -1 of 'Gad1'"),
    ("merscope", "cell_metadata.csv", times("center_x", 1e6), OUTSIDE.format("cells")),
    ("merscope", "detected_transcripts.csv", times("global_y", 0.0), OUTSIDE.format("molecules")),
]


@pytest.mark.parametrize(("reader", "file", "change", "message"), TABLES)
def test_damaged_tables(tmp_path, reader, file, change, message):
    """Counts and places of text files are asked the same."""
    path = tmp_path / "run"
    if reader == "cosmx":
        vendor.cosmx_folder(path, **vendor.cosmx_sample(), mpp=0.12)
    else:
        vendor.merscope_folder(path)
    edit(file, change)(path)
    with pytest.raises(ValueError, match=message) as caught:
        getattr(sthist.io, reader)(path)
    assert file in str(caught.value)


@pytest.mark.parametrize(("reader", "file", "gene"), FRACTIONS)
def test_fractions_are_said_with_the_file(tmp_path, caplog, reader, file, gene):
    """They may be what is wanted; the first cell that has one is named."""
    path = tmp_path / "run"
    if reader == "cosmx":
        vendor.cosmx_folder(path, **vendor.cosmx_sample(), mpp=0.12)
    else:
        vendor.merscope_folder(path)
    edit(file, put_in(gene, 3, 1.25))(path)
    getattr(sthist.io, reader)(path)
    said = [text for text in caplog.messages if "no whole numbers" in text]
    assert len(said) == 1
    assert str(path / file) in said[0]
    assert f"has 1.25 of '{gene}'" in said[0]


def test_one_place_beside_the_image(tmp_path, caplog):
    """The rest is certain: it is said, with the file and the first of them."""
    path, _ = vendor.merscope_folder(tmp_path / "run")
    edit("detected_transcripts.csv", put_in("global_x", 7, 99999.0))(path)
    assert len(sthist.io.merscope(path)["transcripts"]) == 50
    assert "detected_transcripts.csv: 1 of 50 molecules (global_x, global_y) lie outside of the image" in caplog.text
    assert "such as (99999, " in caplog.text
