"""Matching against brute force, and what is written of it."""

from __future__ import annotations

import itertools

import geopandas as gpd
import numpy as np
import pytest
import spatialdata as sd
from spatialdata.models import ShapesModel
from spatialdata.transformations import Identity

import sthist
from sthist.tl import _match_cells


def circles(places, names=None):
    places = np.asarray(places, float)
    radius = np.full(len(places), 2.0)
    frame = gpd.GeoDataFrame({"radius": radius}, geometry=gpd.points_from_xy(*places.T), index=names)
    return ShapesModel.parse(frame, transformations={"um": Identity()})


def sample(nuclei, cells, nuclei_names=None, cell_names=None):
    shapes = {"nuclei": circles(nuclei, nuclei_names), "cells": circles(cells, cell_names)}
    return sd.SpatialData(shapes=shapes)


def by_brute_force(places, targets, most):
    """Number of pairs and sum of distances of the best of all matchings."""
    distance = np.linalg.norm(places[:, None] - targets[None], axis=2)
    best = (0, 0.0)
    choices = [[-1, *np.flatnonzero(row <= most)] for row in distance]
    for choice in itertools.product(*choices):
        used = [j for j in choice if j >= 0]
        if len(set(used)) == len(used):
            total = sum(distance[i, j] for i, j in enumerate(choice) if j >= 0)
            best = min(best, (-len(used), total))
    return -best[0], best[1]


@pytest.mark.parametrize("dense", [True, False])
@pytest.mark.parametrize("seed", range(12))
def test_equals_brute_force(seed, dense, monkeypatch):
    if not dense:
        monkeypatch.setattr(_match_cells, "DENSE", 0)
    rng = np.random.default_rng(seed)
    places, targets = rng.uniform(0, 10, (int(rng.integers(1, 7)), 2)), rng.uniform(0, 10, (int(rng.integers(1, 7)), 2))
    for most in (1.5, 4.0, 20.0):
        first, second, distances = _match_cells.matched(places, targets, most)
        assert len(set(first)) == len(first) == len(set(second))
        np.testing.assert_allclose(distances, np.linalg.norm(places[first] - targets[second], axis=1))
        assert (distances <= most).all()
        n, total = by_brute_force(places, targets, most)
        assert len(first) == n
        np.testing.assert_allclose(distances.sum(), total)


def test_the_nearest_is_not_taken_twice():
    """The middle cell is the nearest of both nuclei: one of them takes the other."""
    sdata = sample([[0, 0], [2, 0]], [[1, 0], [-3.5, 0]], cell_names=["near", "far"])
    sthist.tl.match_cells(sdata, max_um=4, to="cells")
    obs = sdata["nuclei_table"].obs
    assert obs["match"].tolist() == ["far", "near"]
    assert obs["match_um"].tolist() == [3.5, 1.0]


def test_unmatched_are_counted(caplog):
    sdata = sample([[0, 0], [100, 0], [200, 0]], [[1, 2], [101, 2], [300, 0], [400, 0]], cell_names=[5, 7, 9, 11])
    with caplog.at_level("INFO", logger="sthist"):
        sthist.tl.match_cells(sdata, "nuclei", "cells")
    obs = sdata["nuclei_table"].obs
    assert obs["match"].tolist()[:2] == [5, 7]
    assert obs["match"].isna().tolist() == obs["match_um"].isna().tolist() == [False, False, True]
    made = sdata["nuclei_table"].uns["sthist"]["match"]
    assert (made["matched"], made["unmatched"], made["unmatched_to"]) == (2, 1, 2)
    np.testing.assert_allclose(made["shift_um"], [1, 2])
    np.testing.assert_allclose(made["median_um"], np.sqrt(5))
    assert "1 and 2 have no partner" in caplog.text


def test_a_known_shift_of_many(tmp_path):
    """Cells on a lattice, moved by less than half its pitch, some gone on both sides."""
    rng = np.random.default_rng(0)
    lattice = np.stack(np.meshgrid(np.arange(60), np.arange(60)), -1).reshape(-1, 2) * 9.0
    shuffled = rng.permutation(len(lattice))
    kept = shuffled[: len(lattice) - 200]
    sdata = sample(lattice[100:], lattice[kept] + [1.5, -2.0], cell_names=[f"c{i}" for i in kept])
    sdata.write(tmp_path / "s.zarr")
    sthist.tl.match_cells(sdata, "nuclei", "cells", max_um=4)
    obs = sd.read_zarr(tmp_path / "s.zarr")["nuclei_table"].obs
    expected = [f"c{i}" if i in set(kept) else None for i in range(100, len(lattice))]
    assert [None if name != name else name for name in obs["match"].astype(object)] == expected
    np.testing.assert_allclose(obs["match_um"].dropna(), 2.5)


def test_the_cells_of_the_sample_are_found():
    sdata = sthist.datasets.toy(size_um=200)
    cells = sdata["cell_boundaries"].geometry.centroid
    sdata.shapes["nuclei"] = circles(np.c_[cells.x, cells.y][::-1] + 0.5)
    sthist.tl.match_cells(sdata)
    link = sdata["table"].uns["spatialdata_attrs"]["instance_key"]
    names = sdata["table"].obs[link].astype(str).tolist()
    assert sorted(sdata["nuclei_table"].obs["match"].astype(str)) == sorted(names)


@pytest.mark.parametrize(
    ("kwargs", "error", "message"),
    [
        ({"max_um": 0}, ValueError, "max_um is 0"),
        ({"to": "nuclei"}, ValueError, "the same shapes, 'nuclei'"),
        ({"to": "cell"}, KeyError, "Did you mean 'cells'"),
        ({}, KeyError, "No table of measured cells is known.*to="),
        ({"to": "cells"}, ValueError, r"within 5 µm of one of 'cells' \(1\); the nearest two are 40.0 µm"),
    ],
)
def test_what_cannot_be_meant(kwargs, error, message):
    with pytest.raises(error, match=message):
        sthist.tl.match_cells(sample([[0, 0], [10, 0]], [[50, 0]]), **kwargs)
