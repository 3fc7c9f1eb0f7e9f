"""Messages of damaged files name the part that is at fault."""

from __future__ import annotations

import json

import h5py
import numpy as np
import pandas as pd
import pytest

import sthist
from sthist._reading import reading


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
