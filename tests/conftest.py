"""What all tests share."""

from __future__ import annotations

import os

if "PYTEST_XDIST_WORKER" in os.environ:  # a process per core: more threads than one each would wait for one another
    os.environ.update(OMP_NUM_THREADS="1", OPENBLAS_NUM_THREADS="1", MKL_NUM_THREADS="1")

import pytest

import sthist


@pytest.fixture(scope="session")
def _toy():
    return sthist.datasets.toy(size_um=400)


@pytest.fixture
def toy(_toy):
    """A toy section of 400 µm, fresh for each test."""
    import spatialdata as sd

    return sd.deepcopy(_toy)


@pytest.fixture
def backed(toy, tmp_path):
    """The toy section on disk."""
    import spatialdata as sd

    path = tmp_path / "toy.zarr"
    toy.write(path)
    return sd.read_zarr(path)
