"""Scores of cores against a loop over cores."""

from __future__ import annotations

import math

import numpy as np
import pandas as pd
import pytest
import spatialdata as sd

import sthist

CLASSES = ["tumour", "T/NK", "normal"]
COLUMNS = ["tumour", "T_NK", "normal"]


@pytest.fixture(scope="module")
def _array():
    sdata = sthist.datasets.toy("tma", size_um=600, mpp=1.0)
    sthist.pp.tma(sdata, overwrite=True)
    sthist.pp.tiles(sdata, size_um=24, px=24, regions="cores")
    return sdata


@pytest.fixture
def array(_array):
    """Nine cores of which one is missing, in tiles with scores."""
    sdata = sd.deepcopy(_array)
    table = sdata["tiles_table"]
    rng = np.random.default_rng(0)
    table.obsm["kind_score"] = pd.DataFrame(rng.uniform(size=(table.n_obs, 3)), index=table.obs_names, columns=COLUMNS)
    table.uns["sthist"]["kind"] = {"classes": dict(zip(COLUMNS, CLASSES, strict=True))}
    table.obs["kind"] = "tumour"
    table.obs["one"] = rng.normal(size=table.n_obs)
    return sdata


def by_loop(table, scores, names, k):
    rows = []
    for name in names:
        mine = scores[(table.obs["core"].astype(object) == name).to_numpy()]
        if not len(mine):
            rows.append([np.nan] * scores.shape[1])
            continue
        n = len(mine) if k == "all" else math.ceil(k * len(mine) - 1e-9) if isinstance(k, float) else min(k, len(mine))
        rows.append([np.mean(sorted(column)[-n:]) for column in mine.T])
    return np.array(rows)


class TestCores:
    @pytest.mark.parametrize("k", [1, 3, 10_000, 0.1, 0.5, 1.0, "all"])
    def test_equals_a_loop(self, array, k):
        tiles, cores = array["tiles_table"], array["cores_table"]
        sthist.tl.pool_topk(array, "kind", k=k)
        expected = by_loop(tiles, tiles.obsm["kind_score"].to_numpy(), cores.obs_names, k)
        found = array["cores_table"]
        np.testing.assert_allclose(found.obsm["kind_score"], expected)
        assert list(found.obsm["kind_score"].columns) == COLUMNS
        present = np.isfinite(expected[:, 0])
        assert present.sum() == 8
        assert found.obs["kind"][present].tolist() == [CLASSES[i] for i in expected[present].argmax(axis=1)]
        assert found.obs["kind"][~present].isna().all()
        assert found.obs["kind_tiles"].sum() == tiles.obs["core"].notna().sum()

    def test_all_is_the_mean(self, array):
        tiles = array["tiles_table"]
        sthist.tl.pool_topk(array, "kind", k="all")
        means = tiles.obsm["kind_score"].groupby(tiles.obs["core"], observed=False).mean()
        np.testing.assert_allclose(array["cores_table"].obsm["kind_score"], means.loc[array["cores_table"].obs_names])

    def test_a_column_of_numbers(self, array):
        sthist.tl.pool_topk(array, "one", k=2, key_added="best")
        tiles, cores = array["tiles_table"], array["cores_table"]
        expected = by_loop(tiles, tiles.obs[["one"]].to_numpy(), cores.obs_names, 2)[:, 0]
        np.testing.assert_allclose(cores.obs["best"], expected)
        assert "best_score" not in cores.obsm

    def test_too_few_tiles(self, array, caplog):
        """A k that is too large takes all and says so; ``min_tiles`` gives NaN; tiles without a score do not count."""
        tiles = array["tiles_table"]
        mine = np.flatnonzero(tiles.obs["core"] == "A1")
        tiles.obsm["kind_score"].iloc[mine[2:]] = np.nan
        sthist.tl.pool_topk(array, "kind", k=5)
        assert "1 of 9 'core' have fewer than k=5 tiles" in caplog.text
        first = tiles.obsm["kind_score"].iloc[mine[:2]].mean()
        np.testing.assert_allclose(array["cores_table"].obsm["kind_score"].loc["A1"], first)
        made = array["cores_table"].uns["sthist"]["kind"]
        assert (made["shorter_than_k"], made["too_few_tiles"], made["tiles_without_score"]) == (1, 1, len(mine) - 2)
        sthist.tl.pool_topk(array, "kind", k=5, min_tiles=3, overwrite=True)
        assert array["cores_table"].obs["kind"].isna()["A1"]
        assert array["cores_table"].obs["kind"].isna().sum() == 2
        assert array["cores_table"].obs["kind_tiles"]["A1"] == 2

    def test_on_disk(self, array, tmp_path):
        array.write(tmp_path / "x.zarr")
        backed = sd.read_zarr(tmp_path / "x.zarr")
        sthist.tl.pool_topk(backed, "kind")
        again = sd.read_zarr(tmp_path / "x.zarr")["cores_table"]
        pd.testing.assert_series_equal(again.obs["kind"], backed["cores_table"].obs["kind"])
        assert again.obsm["kind_score"].shape == (9, 3)
        with pytest.raises(ValueError, match=r"has obs\['kind'\] already"):
            sthist.tl.pool_topk(backed, "kind", table="tiles_table")


class TestOtherGroups:
    def test_shapes_without_a_table(self, array):
        """Tiles lie in them by their centroid, and a table is made."""
        sthist.tl.pool_topk(array, "kind", groupby="regions", k=2)
        table = array["regions_table"]
        assert table.obs["kind"].cat.categories.tolist() == CLASSES
        assert len(table) == len(array["regions"])
        centres = array["tiles_table"].obsm["spatial"]
        import shapely

        row = int(np.argmax(array["regions"].area))
        inside = shapely.contains_xy(array["regions"].geometry.iloc[row], *centres.T)
        best = np.sort(array["tiles_table"].obsm["kind_score"].to_numpy()[inside], axis=0)[-2:].mean(0)
        np.testing.assert_allclose(table.obsm["kind_score"].iloc[row], best)

    def test_a_column(self, array, tmp_path):
        """Patients have no place: they get a table of their own, to which further scores are added."""
        tiles = array["tiles_table"]
        tiles.obs["patient"] = pd.Categorical(np.where(tiles.obs["core"].astype(str).str[0] == "A", "P1", "P2"))
        sthist.tl.pool_topk(array, "kind", groupby="patient", k="all")
        sthist.tl.pool_topk(array, "one", groupby="patient", k=1)
        found = array["patient_table"]
        assert list(found.obs_names) == ["P1", "P2"]
        np.testing.assert_allclose(found.obs["one"], tiles.obs.groupby("patient", observed=True)["one"].max())
        means = tiles.obsm["kind_score"].groupby(tiles.obs["patient"], observed=True).mean()
        np.testing.assert_allclose(found.obsm["kind_score"], means)
        array.write(tmp_path / "x.zarr")
        assert sd.read_zarr(tmp_path / "x.zarr")["patient_table"].n_obs == 2
        with pytest.raises(ValueError, match=r"has obs\['kind'\] already"):
            sthist.tl.pool_topk(array, "kind", groupby="patient", table="tiles_table")


@pytest.mark.parametrize(
    ("kwargs", "error", "message"),
    [
        ({"k": 0}, ValueError, "k is 0"),
        ({"k": 1.5}, ValueError, "k is 1.5"),
        ({"k": True}, ValueError, "k is True"),
        ({"k": "most"}, ValueError, "k is 'most'"),
        ({"min_tiles": 0}, ValueError, "min_tiles is 0"),
        ({"groupby": "cors"}, KeyError, "Did you mean 'cores'"),
        ({"key": "kid"}, KeyError, "No table has scores 'kid'"),
        ({"key": "patch"}, TypeError, "scores are numbers"),
        ({"key": "bare"}, TypeError, "no names of classes"),
        ({"table": "cores_table"}, KeyError, "has no scores 'kind'"),
        ({"groupby": "nowhere"}, ValueError, "belongs to any"),
    ],
)
def test_what_cannot_be_is_refused(array, kwargs, error, message):
    tiles = array["tiles_table"]
    tiles.obs["patch"], tiles.obs["nowhere"] = "x", pd.Series(pd.NA, index=tiles.obs_names, dtype="category")
    tiles.obsm["bare"] = np.zeros((tiles.n_obs, 2))
    with pytest.raises(error, match=message):
        sthist.tl.pool_topk(array, **({"key": "kind"} | kwargs))
