"""From spots with nuclei to a model of cells, and from a model to every nucleus of a slide."""

from __future__ import annotations

import anndata as ad
import geopandas as gpd
import numpy as np
import pandas as pd
import pytest
import shapely
import spatialdata as sd
from spatialdata.models import ShapesModel, TableModel
from spatialdata.transformations import Identity

import sthist
from sthist.models import SCellSTConfig

KEY, ENCODER = "X_planted", {"encoder": "planted", "sha256": "ab", "spec": {"size_um": 12.0, "px": 48}}
GENES = ["A", "B", "C", "MT-X"]
SMALL = SCellSTConfig(widths=(32,), scaling="all")  # each spot has each gene
QUICK = {"epochs": 30, "lr": 1e-2, "batch_size": 32, "patience": None}
SLOPES = np.random.default_rng(99).normal(size=(4, len(GENES)))


def linked(table, region):
    table.obs["region"], table.obs["instance_id"] = pd.Categorical([region] * table.n_obs), np.arange(table.n_obs)
    return TableModel.parse(table, region=region, region_key="region", instance_key="instance_id")


def slide(seed=0, side=9, per_spot=5, outside=20, genes=GENES, patient=None):
    """Spots 100 µm apart whose counts are sums over their nuclei, of which the embedding tells all."""
    rng = np.random.default_rng(seed)
    centres = np.stack(np.meshgrid(np.arange(side), np.arange(side)), -1).reshape(-1, 2) * 100.0 + 50
    n = per_spot * len(centres)
    spot = rng.permutation(np.repeat(np.arange(len(centres)), per_spot))
    angle, away = rng.uniform(0, 2 * np.pi, n), 20 * np.sqrt(rng.uniform(size=n))
    places = np.r_[centres[spot] + np.c_[away * np.cos(angle), away * np.sin(angle)], rng.uniform(0, 10, (outside, 2))]
    features = rng.normal(size=(len(places), 4)).astype(np.float32)
    expected = 40 * np.exp(0.5 * features @ SLOPES)
    counts = rng.poisson([expected[:n][spot == each].sum(axis=0) for each in range(len(centres))])
    names = [f"s{number}" for number in range(len(centres))]
    table = ad.AnnData(counts.astype(np.float32), obs=pd.DataFrame(index=names), var=pd.DataFrame(index=GENES))
    table = table[:, genes].copy()
    table.obsm["spatial"] = centres
    if patient:
        table.obs["patient"] = patient
    nuclei = ad.AnnData(obs=pd.DataFrame({"area_um2": 30.0}, index=[f"n{number}" for number in range(len(places))]))
    nuclei.obsm["spatial"], nuclei.obsm[KEY] = places, features
    nuclei.uns["sthist"] = {KEY: ENCODER}
    um = {"um": Identity()}
    circles = gpd.GeoDataFrame(geometry=shapely.buffer(shapely.points(places), 3))
    sdata = sd.SpatialData(
        shapes={
            "nuclei": ShapesModel.parse(circles, transformations=um),
            "spots": ShapesModel.parse(centres, geometry=0, radius=27.5, transformations=um),
        },
        tables={"nuclei_table": linked(nuclei, "nuclei"), "table": linked(table, "spots")},
    )
    sdata["nuclei_table"].obsm["expected"] = expected
    return sdata


@pytest.fixture(scope="module")
def slides():
    return {name: slide(seed, patient=name) for seed, name in enumerate(("a", "b", "c"))}


@pytest.fixture(scope="module")
def model(slides):
    return sthist.tl.train_cell_expression(slides, SMALL, training=QUICK, progress=False)


def test_held_out_spots_and_cells_are_predicted(slides, model):
    assert model.genes == ("A", "B", "C")  # without the mitochondrial one
    assert (model.scores["pearson"] > 0.8).all()
    assert model.scores["trusted"].all()
    assert (model.scores["pearson_null"] < 0.3).all()
    assert model.config.encoders[0]["encoder"] == "planted"
    assert model.config.training["n_cells_outside"] == 60
    new = slide(9)
    sthist.tl.cell_expression(new, model)
    log_share = np.log(new["nuclei_table"].obsm["expected"][:, :3])
    log_share -= np.log(new["nuclei_table"].obsm["expected"][:, :3].sum(axis=1, keepdims=True))
    found = new["nuclei_table"].X
    assert all(np.corrcoef(found[:, gene], log_share[:, gene])[0, 1] > 0.5 for gene in range(3))


@pytest.mark.parametrize("loss", ["nb-mean", "nb-total"])
def test_counts(slides, loss):
    found = sthist.tl.train_cell_expression(slides, SMALL, loss=loss, training=QUICK, progress=False)
    assert found.config.loss == loss
    assert (found.scores["pearson"] > 0.5).all()
    assert found.weights["library.median"].shape == (3,)


def test_measured_cells_are_full_supervision(slides):
    cells = {}
    for name, sdata in slides.items():
        counts = np.random.default_rng(0).poisson(sdata["nuclei_table"].obsm["expected"]).astype(np.float32)
        cells[name] = ad.AnnData(counts, obs=pd.DataFrame({"patient": name}, index=sdata["nuclei_table"].obs_names))
        cells[name].var_names = GENES
        cells[name].obsm[KEY] = sdata["nuclei_table"].obsm[KEY]
    training = {**QUICK, "batch_size": 256}
    fitted = sthist.tl.train_cell_expression(cells, SMALL, level="cell", training=training, progress=False)
    assert (fitted.scores["pearson"] > 0.8).all()
    assert fitted.config.training["n_cells"] == 3 * 425


def test_prediction_never_sees_what_was_measured(model):
    one, two = slide(9), slide(9)
    del two.tables["table"], two.shapes["spots"]
    one["table"].X[:] = 7
    for sdata in (one, two):
        sthist.tl.cell_expression(sdata, model)
    np.testing.assert_array_equal(one["nuclei_table"].X, two["nuclei_table"].X)


class TestWritten:
    def test_a_table_without_genes_gets_those_of_the_model(self, model, tmp_path):
        sdata = slide(9)
        before = sdata["nuclei_table"].copy()
        sdata.write(tmp_path / "s.zarr")
        sthist.tl.cell_expression(sdata, model, within=(0, 0, 450, 900))
        read = sd.read_zarr(tmp_path / "s.zarr")["nuclei_table"]
        assert read.var_names.tolist() == list(model.genes)
        assert read.var.columns.tolist() == ["pearson", "pearson_null", "trusted"]
        np.testing.assert_array_equal(read.var["trusted"], model.scores["trusted"])
        np.testing.assert_array_equal(read.obs["area_um2"], before.obs["area_um2"])
        np.testing.assert_array_equal(read.obsm[KEY], before.obsm[KEY])
        inside = before.obsm["spatial"][:, 0] <= 450
        expected = model.predict(before.obsm[KEY][inside])
        np.testing.assert_allclose(np.asarray(read.X)[inside], expected, atol=1e-6)
        assert np.isnan(read.X[~inside]).all()
        assert read.obs["familiarity"][inside].between(0, 1).all()
        assert read.obs["familiarity"][~inside].isna().all()
        assert read.uns["sthist"]["scellst"]["scale"] == "model"
        assert set(read.uns["sthist"]) == {KEY, "scellst"}

    def test_predictions_are_replaced_when_that_is_said(self, model):
        sdata = slide(9)
        sthist.tl.cell_expression(sdata, model)
        first = sdata["nuclei_table"].X.copy()
        with pytest.raises(ValueError, match="overwrite=True"):
            sthist.tl.cell_expression(sdata, model)
        sthist.tl.cell_expression(sdata, model, scale="log", overwrite=True)
        np.testing.assert_allclose(sdata["nuclei_table"].X, model.to_log(first), rtol=1e-6)
        # What is predicted is not taken for what was measured.
        assert sthist.tl.train_cell_expression(
            sdata, SMALL, split="block", training={"epochs": 1}, progress=False
        ).genes == ("A", "B", "C")

    def test_beside_genes_that_were_measured(self, model):
        sdata = slide(9)
        table = sdata["nuclei_table"]
        measured = ad.AnnData(np.ones((table.n_obs, 4), np.float32), obs=table.obs.copy(), obsm=dict(table.obsm))
        measured.var_names = ["B", "other", "A", "C"]
        sdata.tables["nuclei_table"] = linked(measured, "nuclei")
        sthist.tl.cell_expression(sdata, model)
        found = sdata["nuclei_table"]
        expected = model.predict(table.obsm[KEY])
        np.testing.assert_allclose(found.layers["scellst"][:, [2, 0, 3]], expected, atol=1e-6)
        assert np.isnan(found.layers["scellst"][:, 1]).all()
        assert (found.X == 1).all()
        assert "scellst_trusted" in found.var

    def test_other_genes_get_a_table_of_their_own(self, model):
        sdata = slide(9)
        table = sdata["nuclei_table"]
        measured = ad.AnnData(np.ones((table.n_obs, 1), np.float32), obs=table.obs.copy(), obsm=dict(table.obsm))
        sdata.tables["nuclei_table"] = linked(measured, "nuclei")
        sthist.tl.cell_expression(sdata, model)
        found = sdata["nuclei_table_scellst"]
        assert found.shape == (425, 3)
        assert "familiarity" in found.obs
        assert found.uns["spatialdata_attrs"]["region"] == "nuclei"


class TestInput:
    def test_assigned_cells_are_taken_as_they_are(self):
        sdata = slide(0)
        sthist.pp.assign_cells(sdata)
        spot = sdata["nuclei_table"].obs["spot"].astype(object)
        inside = np.flatnonzero(spot.notna())
        spot.iloc[inside[:7]] = None
        sdata["nuclei_table"].obs["spot"] = spot.astype("category")
        found = sthist.tl.train_cell_expression(sdata, SMALL, split="block", training={"epochs": 1}, progress=False)
        assert found.config.training["n_cells"] == 405 - 7
        assert found.config.training["n_cells_outside"] == 27
        sdata["nuclei_table"].obs["spot"] = "x"
        with pytest.raises(ValueError, match="names 'x', which is no spot of table 'table'"):
            sthist.tl.train_cell_expression(sdata, SMALL)
        sdata["nuclei_table"].obs["spot"] = pd.Categorical([None] * 425, categories=["1"])
        with pytest.raises(ValueError, match="lie outside of the spots"):
            sthist.tl.train_cell_expression(sdata, SMALL)

    def test_spots_without_cells_and_of_few_counts(self, caplog):
        caplog.set_level("INFO", logger="sthist")
        sdata = slide(0, side=9)
        keep = np.ones(425, bool)
        keep[np.hypot(*(sdata["nuclei_table"].obsm["spatial"] - 50).T) < 27.5] = False  # of the first spot
        few = sdata["table"].X.copy()
        few[5] = [1, 1, 1, 0]
        sdata["table"].X = few
        sdata.tables["nuclei_table"] = sdata["nuclei_table"][keep].copy()
        sdata.shapes["nuclei"] = sdata["nuclei"][keep]
        sthist.tl.train_cell_expression(sdata, SMALL, split="block", training={"epochs": 1}, progress=False)
        assert "79 of 81 spots: 1 have no cells, 1 too few counts" in caplog.text

    def test_genes_that_differ_between_slides(self, caplog):
        data = {"a": slide(0, patient="a"), "b": slide(1, genes=["C", "A", "MT-X"], patient="b")}
        found = sthist.tl.train_cell_expression(
            data, SMALL, genes=["A", "B", "C"], training={"epochs": 1}, progress=False
        )
        assert found.genes == ("A", "C")
        assert "1 genes are not in all samples, and are left out: 'B'" in caplog.text

    def test_listed_genes_stay_whatever_their_counts(self):
        found = sthist.tl.train_cell_expression(
            slide(0), SMALL, genes=["MT-X", "A"], split="block", training={"epochs": 1}, progress=False
        )
        assert found.genes == ("MT-X", "A")

    def test_no_nuclei(self):
        sdata = slide(0)
        del sdata.tables["nuclei_table"], sdata.shapes["nuclei"]
        for call in (sthist.tl.train_cell_expression, sthist.pp.assign_cells):
            with pytest.raises(KeyError, match=r"sthist.pp.nuclei\(sdata\)"):
                call(sdata)

    def test_two_encoders(self, slides, model):
        mixed = {"a": slide(0, patient="a"), "b": slide(1, patient="b")}
        mixed["b"]["nuclei_table"].uns["sthist"] = {KEY: {**ENCODER, "encoder": "other"}}
        with pytest.raises(ValueError, match="different encoders: 'planted' and 'other'"):
            sthist.tl.train_cell_expression(mixed, SMALL)
        with pytest.raises(ValueError, match="the encoder 'other'; this model was trained on 'planted'"):
            sthist.tl.cell_expression(mixed["b"], model)

    def test_counts_that_are_none(self):
        sdata = slide(0)
        sdata["table"].X = np.log1p(sdata["table"].X)
        with pytest.raises(ValueError, match="no raw counts"):
            sthist.tl.train_cell_expression(sdata, SMALL, loss="nb-mean")

    def test_few_counts(self):
        sdata = slide(0)
        sdata["table"].X = (sdata["table"].X > 100).astype(np.float32)
        with pytest.raises(ValueError, match="no gene has enough counts"):
            sthist.tl.train_cell_expression(sdata, SMALL)

    def test_an_anndata_has_no_cells_in_spots(self, slides):
        with pytest.raises(TypeError, match="level='cell'"):
            sthist.tl.train_cell_expression(slides["a"]["table"], SMALL)

    @pytest.mark.parametrize("options", [{"level": "bin"}, {"loss": "l1"}])
    def test_words_that_are_none(self, slides, options):
        with pytest.raises(ValueError, match=next(iter(options))):
            sthist.tl.train_cell_expression(slides, **options)
