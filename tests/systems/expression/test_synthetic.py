"""Synthetic tiles beside real ones: which folds see them, what is learned of them, and what is refused."""

from __future__ import annotations

import numpy as np
import pytest
import spatialdata as sd
from expressing import GENES, SPEC, planted_slide

import sthist
from sthist.models import C2LConfig, ResNetConfig
from sthist.regression.model import RegressionModel
from sthist.tiles import TileReader, TileSpec

QUICK = {"training": {"epochs": 1, "steps_per_epoch": 2, "batch_size": 4, "ema": 0.0}, "device": "cpu"}
QUIET = {"progress": False}
SMALL = ResNetConfig(backbone="test_resnet", pretrained=False, spec=SPEC)


@pytest.fixture(scope="module")
def central():
    config = C2LConfig(size_um=32, px=32, dim=8, multipliers=(1, 2))
    return sthist.tl.train_central(planted_slide(7), config, regions="spots", **QUICK, **QUIET)


@pytest.fixture(scope="module")
def _pair(central):
    slides = {name: planted_slide(seed, side=6, patient=name) for seed, name in enumerate("abc")}
    local = sthist.tl.adapt_local(slides, central, fraction=0.5, **QUICK, **QUIET)
    made = sthist.tl.synthesize(slides, local, n=2, steps=1, seed=3, device="cpu", progress=False)
    sthist.pp.embed(slides, "morphology", regions="spots", spec=SPEC, **QUIET)
    return slides, made


@pytest.fixture
def slides(_pair):
    return {name: sd.deepcopy(each) for name, each in _pair[0].items()}


@pytest.fixture
def made(_pair):
    return sd.deepcopy(_pair[1])


@pytest.fixture
def trained_on(monkeypatch):
    """Rows of each training, and rows that it watched."""
    seen, fit = [], RegressionModel.fit

    def recorded(self, inputs, targets, *, rows=None, watched=None, **options):
        seen.append((rows, watched, inputs, targets))
        return fit(self, inputs, targets, rows=rows, watched=watched, **options)

    monkeypatch.setattr(RegressionModel, "fit", recorded)
    return seen


def names_of(slides, made):
    """Sample and spot of each row, real ones first."""
    real = [(name, spot) for name, each in slides.items() for spot in each["table"].obs_names]
    obs = made["tiles_table"].obs
    return real, list(zip(obs["sample"].astype(str), obs["source"].astype(str), strict=True))


@pytest.mark.parametrize(("split", "patience"), [("patient", None), ("block", None), ("sample", 2)])
def test_no_fold_is_trained_on_tiles_of_what_it_holds_out(slides, made, trained_on, split, patience):
    training = {"epochs": 1, "batch_size": 16, "patience": patience}
    split = sthist.models.Split(split, block_um=64, gap_um=32, folds=3)
    model = sthist.tl.train_expression(slides, "mlp", synthetic=made, split=split, training=training, **QUIET)
    real, sources = names_of(slides, made)
    *folds, last = trained_on
    assert len(folds) == 3
    for rows, watched, _, _ in trained_on:
        own = {real[row] for row in rows if row < len(real)}
        of = [sources[row - len(real)] for row in rows if row >= len(real)]
        assert set(of) == own & set(sources)
        assert len(of) == 2 * len(set(of))
        assert not {real[row] for row in watched} & (own | set(of))
        assert (watched < len(real)).all()
    assert (len(watched) > 0) == (patience is not None)
    assert model.config.report["n_tested"] == len(real)
    assert model.config.training["n_rows"] == len(real)
    assert model.config.training["n_beside"] == sum(last[0] >= len(real)) > 0


def test_ridge_is_that_of_all_rows_together(slides, made):
    model = sthist.tl.train_expression(slides, synthetic=made, **QUIET)
    tables = [each["table"] for each in slides.values()]
    features = np.concatenate([each.obsm["X_morphology"] for each in (*tables, made["tiles_table"])])
    logs = np.concatenate([np.asarray(each.X) for each in tables])
    of = made["tiles_table"][:, list(GENES)]
    alone = sthist.models.Ridge().fit(features, np.concatenate([logs, np.asarray(of.X)]))
    np.testing.assert_allclose(model.weights["weight"], alone.weights["weight"], atol=1e-5)
    facts = model.config.training["synthetic"]["samples"]
    record = made["tiles_table"].uns["sthist"]["tiles_table"]
    assert facts == [{k: record[k] for k in ("central_sha256", "adapter_sha256", "guidance", "steps", "seed", "n")}]
    assert facts[0]["seed"] == 3


def test_tiles_are_those_of_both(slides, made, trained_on, tmp_path):
    training = {"epochs": 1, "batch_size": 32}
    model = sthist.tl.train_expression(slides, SMALL, synthetic=made, training=training, folder=tmp_path, **QUIET)
    _, _, inputs, targets = trained_on[-1]
    table = made["tiles_table"]
    n = sum(each["table"].n_obs for each in slides.values())
    wanted = TileReader(made, "he", SPEC).read(table.obsm["spatial"])
    np.testing.assert_array_equal(inputs.take(np.arange(n, n + table.n_obs))["tiles"], wanted)
    np.testing.assert_allclose(
        targets.dense(np.arange(n, n + table.n_obs)), np.asarray(table[:, list(GENES)].X), atol=1e-6
    )
    loaded = sthist.models.load(tmp_path)
    assert loaded.config.training["n_beside"] == model.config.training["n_beside"] == table.n_obs


def test_genes_that_they_lack_do_not_count(slides, made, trained_on, caplog):
    few = made["tiles_table"][:, ["HEM", "EOS"]].copy()
    sthist.tl.train_expression(slides, synthetic=few_of(made, few), **QUIET)
    _, _, _, targets = trained_on[-1]
    n = sum(each["table"].n_obs for each in slides.values())
    assert targets.mask(np.array([n])).tolist() == [[True, True, False, False, False]]
    assert targets.mask(np.array([0])).all()
    assert "lacks 3 of the 5 genes to predict, such as 'BOTH'" in caplog.text


def test_another_stain_is_said(slides, made, caplog):
    sthist.tl.train_expression(slides, synthetic=made, **QUIET)
    assert "in the stain" not in caplog.text
    made["tiles_table"].uns["sthist"]["tiles_table"]["stain"] = sthist.pp.StainReference.default("macenko").to_dict()
    sthist.tl.train_expression(slides, synthetic=made, **QUIET)
    assert "in the stain that their central model was trained in" in caplog.text


def few_of(made, table):
    made["tiles_table"] = table
    return made


class TestSources:
    def test_under_another_name_is_said(self, slides, made, caplog):
        renamed = {f"{name}1": each for name, each in slides.items()}
        sthist.tl.train_expression(renamed, synthetic=made, **QUIET)
        assert "under another name" in caplog.text

    def test_a_table_alone_is_known_by_its_spots(self, central, trained_on):
        slide = planted_slide(4, side=8)
        local = sthist.tl.adapt_local(slide, central, fraction=0.4, **QUICK, **QUIET)
        made = sthist.tl.synthesize(slide, local, steps=1, device="cpu", progress=False)
        sthist.pp.embed(slide, "morphology", regions="spots", spec=SPEC, **QUIET)
        sthist.tl.train_expression(
            slide["table"], synthetic=made, split=sthist.models.Split("block", block_um=64, gap_um=0), **QUIET
        )
        names = slide["table"].obs_names
        sources = made["tiles_table"].obs["source"].to_numpy()
        for rows, *_ in trained_on:
            of = {sources[row - 64] for row in rows if row >= 64}
            assert of == set(names[rows[rows < 64]]) & set(sources)


class TestRefused:
    def check(self, slides, made, match, model="ridge", error=ValueError, **options):
        with pytest.raises(error, match=match):
            sthist.tl.train_expression(slides, model, synthetic=made, **options, **QUIET)

    def test_a_real_sample(self, slides):
        self.check(slides, planted_slide(9), "is not of a synthetic sample: obs has no column 'synthetic'")

    def test_no_sample_at_all(self, slides):
        self.check(slides, 3, "is needed, not int", error=TypeError)
        self.check(slides, {}, "synthetic= is empty")

    def test_the_same_sample_twice(self, slides, made):
        self.check({**slides, "made": made}, made, "Sample 'made' is given as data, and as synthetic='synthetic'")
        self.check({**slides, "made": sd.deepcopy(made)}, made, "Sample 'made' of data is synthetic")
        self.check(slides, slides["a"], "Sample 'a' is given as data")

    def test_no_shared_genes(self, slides, made):
        made["tiles_table"].var_names = [f"other{i}" for i in range(made["tiles_table"].n_vars)]
        self.check(slides, made, "have none of the genes to predict.*0 genes match")

    def test_expression_that_was_normalised_otherwise(self, slides, made):
        made["tiles_table"].X = made["tiles_table"].X * 1.2
        self.check(slides, made, "expression was normalised otherwise")

    def test_records_that_say_so_where_no_spot_is_shared(self, made):
        slides = {name: planted_slide(seed, patient=name) for seed, name in enumerate("xy")}
        for each in slides.values():
            each["table"].uns["sthist"] = {"genes": {"log": True, "target_sum": 1e6}}
        made["tiles_table"].uns["sthist"]["genes"]["target_sum"] = 1e4
        self.check(slides, made, r"at 10000 a row; table 'table' of sample 'x' log1p of counts at 1e\+06")

    def test_tiles_that_are_coarser_or_of_another_size(self, slides, made, caplog):
        finer = ResNetConfig(backbone="test_resnet", pretrained=False, spec=TileSpec(32, 44))
        quick = {"epochs": 1, "batch_size": 32}
        sthist.tl.train_expression(slides, finer, synthetic=made, training=quick, split="sample", **QUIET)
        assert "differ in sharpness" in caplog.text
        made["tiles_table"].uns["tile_spec"] = {"size_um": 32.0, "px": 16}
        self.check(slides, made, r"are 16 px wide, .*ResNetConfig\(spec=sthist.tiles.TileSpec\(32, 16\)\)", SMALL)
        self.check(slides, made, r"differ in sharpness, .*pp.embed\(..., spec=sthist.tiles.TileSpec\(32, 16\)")
        made["tiles_table"].uns["tile_spec"] = {"size_um": 112.0, "px": 112}
        self.check(slides, made, "show 112 µm, and ResNet is for tiles of 32 µm", SMALL)

    def test_models_that_look_around(self, slides, made):
        around = sthist.models.Ridge(sthist.models.RidgeConfig(context_um=(50,)))
        self.check(slides, made, "looks at what is around a region", around)
        self.check(slides, made, "looks at what is around a region", "deepspot")

    def test_depth(self, slides, made):
        self.check(slides, made, "depth= needs raw counts", depth=100)


def test_finer_tiles_are_read_as_real_ones_are(slides, made, trained_on):
    coarse = ResNetConfig(backbone="test_resnet", pretrained=False, spec=TileSpec(32, 16))
    training = {"epochs": 1, "batch_size": 32}
    sthist.tl.train_expression(slides, coarse, synthetic=made, training=training, split="sample", **QUIET)
    rows, _, inputs, _ = trained_on[-1]
    assert inputs.take(rows[-1:])["tiles"].shape == (1, 16, 16, 3)
    assert made["tiles_table"].uns["tile_spec"]["px"] == 32
