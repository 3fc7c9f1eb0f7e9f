"""From measured compositions to a model, and from a model to what is written."""

from __future__ import annotations

import subprocess
import sys

import anndata as ad
import numpy as np
import pandas as pd
import pytest
import spatialdata as sd
from expressing import SPEC, planted_slide

import sthist

TYPES = ["B/T cells", "Tumour", "Rest"]
QUICK = sthist.models.CompositionMLPConfig(widths=(32, 32))
TRAINING = {"epochs": 120, "lr": 3e-3, "batch_size": 64}


def proportions_of(amounts: np.ndarray) -> np.ndarray:
    """Shares of three types, a known function of how the tissue looks."""
    return np.c_[amounts, np.full(len(amounts), 0.5)] / (amounts.sum(axis=1, keepdims=True) + 0.5)


def planted(seed: int, **options):
    """A slide whose composition follows its stains."""
    sdata = planted_slide(seed, **options)
    table = sdata["table"]
    frame = pd.DataFrame(proportions_of(table.obsm["amounts"]), index=table.obs_names, columns=TYPES)
    table.obsm["cell_abundance"] = frame
    return sdata


@pytest.fixture(scope="module")
def slides():
    made = {name: planted(seed, patient=name) for seed, name in enumerate(("a", "b", "c"))}
    sthist.pp.embed(made, "morphology", regions="spots", spec=SPEC, progress=False)
    return made


@pytest.fixture(scope="module")
def ridge(slides):
    return sthist.tl.train_composition(slides, "ridge")


@pytest.fixture
def new_slide():
    return planted_slide(9)


def altered(slides, change):
    """Tables of slides, with a composition that is changed."""
    tables = {name: sdata["table"].copy() for name, sdata in slides.items()}
    for number, table in enumerate(tables.values()):
        table.obsm["cell_abundance"] = change(table.obsm["cell_abundance"].copy(), number)
    return tables


@pytest.mark.parametrize("model", ["ridge", QUICK])
def test_what_tissue_shows_is_learned(slides, model):
    fitted = sthist.tl.train_composition(slides, model, training=TRAINING, progress=False)
    assert fitted.types == tuple(TYPES)
    assert fitted.quantity == "proportions"
    assert (fitted.scores["pearson"] > 0.8).all()
    assert fitted.scores["trusted"].all()
    assert (fitted.scores["l1"] < 0.5 * fitted.scores["l1_of_mean"]).all()


def test_the_published_sizes_fit_their_own_training_rows(slides):
    table = slides["a"]["table"]
    truth = table.obsm["cell_abundance"].to_numpy()
    model = sthist.models.CompositionMLP().fit(table.obsm["X_morphology"], truth, progress=False)
    fitted = model.predict(table.obsm["X_morphology"])
    assert (sthist.metrics.gene_pearson(truth, fitted) > 0.9).all()


def test_of_exchanged_tiles_nothing_is_learned(slides):
    rng = np.random.default_rng(0)
    mixed = altered(slides, lambda frame, _: frame.iloc[rng.permutation(len(frame))].set_axis(frame.index))
    scores = sthist.tl.train_composition(mixed, "ridge").scores
    assert scores["pearson"].abs().mean() < 0.15


def test_abundances_of_any_size_are_learned(slides):
    many = altered(slides, lambda frame, _: frame * 1000)
    model = sthist.tl.train_composition(many, QUICK, training=TRAINING, progress=False)
    assert model.quantity == "abundances"
    assert (model.scores["pearson"] > 0.8).all()


class TestApplied:
    def test_amounts_scores_and_familiarity_are_written(self, ridge, new_slide, tmp_path):
        new_slide.write(tmp_path / "slide.zarr")
        slide = sd.read_zarr(tmp_path / "slide.zarr")
        sthist.tl.composition(slide, ridge, progress=False)
        table = sd.read_zarr(tmp_path / "slide.zarr")["table"]
        found = table.obsm["composition"]
        assert (found.to_numpy() >= 0).all()
        assert (sthist.metrics.gene_pearson(proportions_of(table.obsm["amounts"]), found.to_numpy()) > 0.9).all()
        assert list(table.uns["composition_scores"].index) == TYPES
        np.testing.assert_allclose(table.uns["composition_scores"]["pearson"], ridge.scores["pearson"])
        shown = table.uns["sthist"]["composition"]["classes"]
        assert [shown[column] for column in found.columns] == TYPES
        assert table.uns["sthist"]["composition"]["quantity"] == "proportions"
        assert table.obs["composition_familiarity"].between(0, 1).all()

    def test_tiles_without_a_measurement(self, ridge, new_slide):
        sthist.pp.tissue(new_slide)
        sthist.pp.tiles(new_slide, size_um=SPEC.size_um, px=SPEC.px)
        sthist.tl.composition(new_slide, ridge, regions="tiles", progress=False)
        assert new_slide["tiles_table"].obsm["composition"].notna().all(axis=None)

    def test_a_part_of_the_slide(self, ridge, new_slide):
        sthist.tl.composition(new_slide, ridge, within=(0, 0, 100, 100), progress=False)
        inside = (new_slide["table"].obsm["spatial"] < 100).all(axis=1)
        known = new_slide["table"].obsm["composition"].notna().all(axis=1).to_numpy()
        np.testing.assert_array_equal(known, inside)

    def test_its_name_is_taken(self, ridge, new_slide):
        sthist.tl.composition(new_slide, ridge, progress=False)
        with pytest.raises(ValueError, match="overwrite=True"):
            sthist.tl.composition(new_slide, ridge, progress=False)
        sthist.tl.composition(new_slide, ridge, overwrite=True, progress=False)

    def test_what_a_user_keeps_under_the_name_of_the_scores_stays(self, ridge, new_slide):
        new_slide["table"].uns["composition_scores"] = {"mine": 1}
        with pytest.raises(ValueError, match="composition_scores"):
            sthist.tl.composition(new_slide, ridge, progress=False)
        assert new_slide["table"].uns["composition_scores"] == {"mine": 1}

    def test_an_ensemble_says_how_far_its_members_differ(self, slides, new_slide):
        config = sthist.models.CompositionMLPConfig(widths=(16,), members=3)
        model = sthist.tl.train_composition(slides, config, training={"epochs": 2}, progress=False)
        sthist.tl.composition(new_slide, model, progress=False)
        spread = new_slide["table"].obsm["composition_sd"]
        assert list(spread.columns) == list(new_slide["table"].obsm["composition"].columns)
        assert (spread.to_numpy() > 0).any()

    def test_again_without_an_ensemble_nothing_old_is_left(self, slides, ridge, new_slide):
        config = sthist.models.CompositionMLPConfig(widths=(16,), members=2)
        model = sthist.tl.train_composition(slides, config, training={"epochs": 2}, progress=False)
        sthist.tl.composition(new_slide, model, progress=False)
        sthist.tl.composition(new_slide, ridge, overwrite=True, progress=False)
        assert "composition_sd" not in new_slide["table"].obsm

    def test_embeddings_of_another_encoder_are_refused(self, ridge, new_slide):
        def colours(tiles):
            return tiles.mean((1, 2))

        sthist.pp.embed(new_slide, colours, regions="spots", spec=SPEC, key_added="X_morphology", progress=False)
        with pytest.raises(ValueError, match="trained on 'morphology'"):
            sthist.tl.composition(new_slide, ridge)

    def test_tiles_at_another_scale_are_refused(self, ridge, new_slide):
        sthist.pp.embed(new_slide, "morphology", regions="spots", spec=sthist.tiles.TileSpec(64, 32), progress=False)
        with pytest.raises(ValueError, match="trained on tiles of"):
            sthist.tl.composition(new_slide, ridge)

    def test_a_model_of_genes_is_refused(self, slides, new_slide):
        genes = sthist.tl.train_expression(slides)
        with pytest.raises(TypeError, match="tl.train_composition"):
            sthist.tl.composition(new_slide, genes)

    def test_rows_do_not_depend_on_each_other(self, slides):
        table = slides["a"]["table"]
        model = sthist.models.CompositionMLP(QUICK).fit(
            table.obsm["X_morphology"], table.obsm["cell_abundance"], training={"epochs": 3}, progress=False
        )
        alone = model.predict(table.obsm["X_morphology"][:1])
        np.testing.assert_allclose(model.predict(table.obsm["X_morphology"])[:1], alone, rtol=1e-5)


@pytest.mark.parametrize("model", ["ridge", QUICK])
def test_a_saved_model_says_the_same_in_another_process(slides, model, tmp_path):
    fitted = sthist.tl.train_composition(slides, model, training={"epochs": 3}, folder=tmp_path / "m", progress=False)
    features = slides["a"]["table"].obsm["X_morphology"]
    np.save(tmp_path / "features.npy", features)
    code = (
        "import sys, numpy as np, sthist; model = sthist.models.load(sys.argv[1] + '/m'); "
        "np.save(sys.argv[1] + '/found.npy', model.predict(np.load(sys.argv[1] + '/features.npy')))"
    )
    subprocess.run([sys.executable, "-c", code, str(tmp_path)], check=True)
    np.testing.assert_allclose(np.load(tmp_path / "found.npy"), fitted.predict(features), atol=1e-6)


def test_embeddings_stand_in_the_order_in_which_they_are_named(slides):
    tables = {name: sdata["table"].copy() for name, sdata in slides.items()}
    for table in tables.values():
        table.obsm["X_one"] = table.obsm["X_morphology"][:, :5]
    both = sthist.tl.train_composition(tables, "ridge", embedding=["X_one", "X_morphology"])
    other = sthist.tl.train_composition(tables, "ridge", embedding=["X_morphology", "X_one"])
    assert both.config.embeddings == ("X_one", "X_morphology")
    np.testing.assert_allclose(np.roll(other.weights["weight"], 5, axis=0), both.weights["weight"], atol=1e-4)
    lacking = tables["a"].copy()
    del lacking.obsm["X_one"]
    with pytest.raises(KeyError, match="X_one"):
        sthist.tl.composition(lacking, both)


class TestBadInput:
    def test_proportions_that_do_not_sum_to_one(self, slides):
        def change(frame, _):
            frame.iloc[3] *= 1.2
            return frame

        with pytest.raises(ValueError, match="'spot3' .*quantity='abundances'"):
            sthist.tl.train_composition(altered(slides, change), "ridge")

    @pytest.mark.parametrize(("value", "what"), [(-0.1, "negative"), (np.nan, "NaN")])
    def test_negative_and_nan(self, slides, value, what):
        def change(frame, _):
            frame.iloc[5, 1] = value
            return frame

        with pytest.raises(ValueError, match=f"{what}.*'Tumour' of row 'spot5'"):
            sthist.tl.train_composition(altered(slides, change), "ridge")

    def test_proportions_beside_abundances(self, slides):
        mixed = altered(slides, lambda frame, number: frame * (10 if number else 1))
        with pytest.raises(ValueError, match=r"pp\.proportions"):
            sthist.tl.train_composition(mixed, "ridge")

    def test_a_type_that_one_slide_lacks(self, slides, caplog):
        lacking = altered(slides, lambda frame, number: frame if number else frame.drop(columns="Rest"))
        model = sthist.tl.train_composition(lacking, "ridge", quantity="abundances")
        assert "no column for" in caplog.text
        assert (model.scores["pearson"] > 0.8).all()

    def test_types_of_one_name(self, slides):
        twice = altered(slides, lambda frame, _: frame.set_axis(["a", "a", "b"], axis=1))
        with pytest.raises(ValueError, match="more than once"):
            sthist.tl.train_composition(twice, "ridge")

    def test_no_composition(self, slides):
        with pytest.raises(KeyError, match="cell_abundence"):
            sthist.tl.train_composition(slides, "ridge", key="cell_abundence")

    def test_an_array_without_names(self, slides):
        tables = {name: sdata["table"].copy() for name, sdata in slides.items()}
        for table in tables.values():
            table.obsm["cell_abundance"] = table.obsm["cell_abundance"].to_numpy()
        with pytest.raises(ValueError, match=r"pd\.DataFrame"):
            sthist.tl.train_composition(tables, "ridge")

    def test_columns_of_cell2location(self, slides):
        named = altered(slides, lambda frame, _: frame.add_prefix("q05cell_abundance_w_sf_"))
        assert sthist.tl.train_composition(named, "ridge").types == tuple(TYPES)

    def test_too_few_rows_for_a_correlation(self):
        with pytest.raises(ValueError, match="correlation='types'"):
            sthist.models.CompositionMLP().fit(np.eye(5), np.ones((5, 3)))

    def test_batches_too_small_for_a_correlation(self):
        with pytest.raises(ValueError, match="batch_size is 4"):
            sthist.models.CompositionMLP(QUICK).fit(np.eye(20), np.ones((20, 3)), training={"batch_size": 4})
        config = sthist.models.CompositionMLPConfig(widths=(4,), l2=0.0)
        sthist.models.CompositionMLP(config).fit(np.eye(20), np.ones((20, 3)), training={"batch_size": 4, "epochs": 1})

    def test_spots_without_embeddings(self, ridge):
        bare = ad.AnnData(np.zeros((12, 1), np.float32))
        with pytest.raises(KeyError, match="X_morphology"):
            sthist.tl.composition(bare, ridge)
