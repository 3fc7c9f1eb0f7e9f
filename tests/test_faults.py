"""Messages of damaged files name the part that is at fault."""

from __future__ import annotations

import gzip
import json
import zipfile

import anndata as ad
import h5py
import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import zarr

import sthist
from sthist._reading import read_object, reading


def edit_header(path, change):
    """Rewrite the header of a file of tensors."""
    content = path.read_bytes()
    length = int.from_bytes(content[:8], "little")
    header = json.loads(content[8 : 8 + length])
    change(header)
    new = json.dumps(header).encode()
    path.write_bytes(len(new).to_bytes(8, "little") + new + content[8 + length :])


@pytest.mark.parametrize(
    ("field", "value"),
    [("dtype", "F64"), ("dtype", "Q9"), ("shape", [7, 7]), ("shape", [-1]), ("data_offsets", [4, 12])],
)
def test_the_tensor_is_named(tmp_path, field, value):
    rng = np.random.default_rng(0)
    model = sthist.models.Ridge().fit(rng.normal(size=(20, 4)), rng.normal(size=(20, 3)))
    model.save(tmp_path / "model")
    edit_header(tmp_path / "model" / "model.safetensors", lambda header: header["weight"].__setitem__(field, value))
    with pytest.raises(ValueError, match=r"model\.safetensors.*'weight'"):
        sthist.models.load(tmp_path / "model")


def test_the_link_of_hdf5_is_named(tmp_path):
    path = tmp_path / "matrix.h5"
    with h5py.File(path, "w") as file:
        file["matrix/indices"] = h5py.SoftLink("/nowhere")
    with (
        pytest.raises(ValueError, match="'matrix/indices' is a link to nowhere"),
        reading(path),
        h5py.File(path) as file,
    ):
        file["matrix/indices"][()]


def test_the_column_of_parquet_is_named(tmp_path):
    path = tmp_path / "cells.parquet"
    pd.DataFrame({"cell_id": [b"a", None], "n": [1, 2]}).to_parquet(path)
    with pytest.raises(ValueError, match="Column 'cell_id' is empty in 1 of 2 rows"), reading(path):
        [each.decode() for each in pd.read_parquet(path)["cell_id"]]


def test_bytes_of_no_tensor_are_named(tmp_path):
    """One of two tensors is called like the other, so that the bytes of the first are nobody's."""
    model = sthist.models.Ridge().fit(np.eye(8, 4), np.eye(8, 3))
    model.save(tmp_path / "model")
    edit_header(tmp_path / "model" / "model.safetensors", lambda header: header.update(weight=header.pop("bias")))
    with pytest.raises(ValueError, match=r"model\.safetensors.* The bytes \d+ to \d+ belong to no tensor; .*'weight'"):
        sthist.models.load(tmp_path / "model")


def damaged(path, content):
    """What is said of a file that a library could not read."""
    path.write_bytes(content)
    with pytest.raises(ValueError, match=path.name) as caught, reading(path):
        raise ArithmeticError("another library's message")
    return str(caught.value)


TABLE = "cell,Gad1,area\na,1,2.5\nb,2,3.5\nc,3,1.5\n"


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (("b,2", 'b,"2'), 'Line 3: a quote (") is opened and never closed'),
        (("b,2", 'b",2'), "another library's message"),  # which is what csv allows
        (("b,2", "b,x"), "Line 3, column 'Gad1' has 'x', which is no number as in the other lines"),
        (("3,1.5", "99999999999999999999,1.5"), "Line 4, column 'Gad1' has '99999999999999999999', which is no number"),
        (("a,1", "a,\0"), "Line 2 holds bytes of zero"),
        (("b,2", "b,"), "Line 3, column 'Gad1' has '', which is no number"),
    ],
)
@pytest.mark.parametrize("packed", [False, True])
def test_line_and_column_of_a_table_are_named(tmp_path, change, message, packed):
    content = TABLE.replace(*change).encode()
    name = "table.csv.gz" if packed else "table.csv"
    assert message in damaged(tmp_path / name, gzip.compress(content) if packed else content)


def test_the_line_of_bytes_that_are_no_text(tmp_path):
    assert "Line 3 holds bytes that are no text" in damaged(tmp_path / "table.tsv", b"a\tb\n1\t2\n\xff\t2\n")


@pytest.mark.parametrize(
    ("value", "message"),
    [("[" * 3000 + "]" * 3000, "more than 500 levels"), ("{]}", "is no JSON")],
)
def test_the_key_of_json_is_named(tmp_path, value, message):
    """The last one before the fault, with those around it; keys of what is whole are not."""
    path = tmp_path / "config.json"
    path.write_text('{"whole": {"a": [1]}, "outer": {"b": 1, "inner": [' + value + "]}}")
    with pytest.raises(ValueError, match=r"config\.json") as caught:
        read_object(path)
    assert f"The value of 'outer.inner' {message}" in str(caught.value).replace("holds lists or objects in ", "")


def test_the_member_of_a_zip_is_named(tmp_path):
    path = tmp_path / "cells.zarr.zip"
    with zarr.storage.ZipStore(path, mode="w") as store:
        group = zarr.create_group(store, zarr_format=2)
        group.create_array("masks/0", data=np.eye(4))
        group.create_array("ids", data=np.arange(4))
    with zipfile.ZipFile(path) as archive:
        members = {name: archive.read(name) for name in archive.namelist()}
    for name, content, message in (
        ("masks/0/.zarray", b"", "Member 'masks/0/.zarray' is no JSON"),
        ("ids/.zarray", members["ids/.zarray"].replace(b"2", b"9"), "Member 'ids/.zarray' describes no array"),
        ("masks/0/0.0", b"xx", "The array 'masks/0' cannot be read"),
        (".zgroup", None, "no member '.zgroup'"),
    ):
        changed = members | {name: content}
        with zipfile.ZipFile(path, "w") as archive:
            for member, each in changed.items():
                if each is not None:
                    archive.writestr(member, each)
        assert message in damaged(path, path.read_bytes())


def test_the_part_of_an_anndata_is_named(tmp_path):
    """What anndata notes beside its error; and the column of a table that is shorter than the others."""
    path = tmp_path / "table.h5ad"
    ad.AnnData(np.eye(3), obs=pd.DataFrame({"x": [1.0, 2, 3]}, index=list("abc"))).write_h5ad(path)
    with h5py.File(path, "a") as file:
        del file["obs/x"]
        file["obs/x"] = [1.0, 2.0]
        file["obs/x"].attrs.update({"encoding-type": "array", "encoding-version": "0.2.0"})
    with (
        pytest.raises(ValueError, match="The fault was met in 'obs'. 'obs/x' has 2 rows, and 'obs/_index' 3"),
        reading(path),
    ):
        ad.read_h5ad(path)


def test_the_column_of_lists_is_named(tmp_path):
    path = tmp_path / "cells.parquet"
    pd.DataFrame({"cell_id": [[1, 2], [3]], "n": [1, 2]}).to_parquet(path)
    assert "Column 'cell_id' holds list" in damaged(path, path.read_bytes())


@pytest.mark.parametrize("value", [b"", b"{", b'{"a": 1}', b"[]"])
def test_the_metadata_of_parquet_is_named(tmp_path, value):
    path = tmp_path / "cells.parquet"
    table = pa.table({"cell_id": ["a"]}).replace_schema_metadata({b"pandas": value, b"other": b"any"})
    pq.write_table(table, path)
    assert "Its metadata 'pandas' is no JSON object with columns and index_columns" in damaged(path, path.read_bytes())
