"""What all tests share."""

from __future__ import annotations

import os
import shutil

if "PYTEST_XDIST_WORKER" in os.environ:  # a process per core: more threads than one each would wait for one another
    from threadpoolctl import threadpool_limits

    os.environ.update(dict.fromkeys((f"{each}_NUM_THREADS" for each in ("OMP", "OPENBLAS", "MKL", "NUMBA")), "1"))
    _limits = threadpool_limits(1)  # of libraries that plugins have loaded before this file; numba would undo it

import pytest

import sthist

collect_ignore = ["first_day"]  # scripts, which test_first_day.py runs where their data are


@pytest.fixture(scope="session")
def _toy():
    return sthist.datasets.toy(size_um=400)


@pytest.fixture
def toy(_toy):
    """A toy section of 400 µm, fresh for each test."""
    import spatialdata as sd

    return sd.deepcopy(_toy)


@pytest.fixture(scope="session")
def _stored(_toy, tmp_path_factory):
    import spatialdata as sd

    path = tmp_path_factory.mktemp("stored") / "toy.zarr"
    sd.deepcopy(_toy).write(path)
    return path


@pytest.fixture
def backed(_stored, tmp_path):
    """The toy section on disk, of its own for each test."""
    import spatialdata as sd

    return sd.read_zarr(shutil.copytree(_stored, tmp_path / "toy.zarr"))
