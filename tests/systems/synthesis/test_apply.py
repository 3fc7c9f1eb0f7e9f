"""Synthetic samples: what tiles are made of, where they lie, and what a call that was stopped leaves."""

from __future__ import annotations

import logging
import tracemalloc

import numpy as np
import pytest
import spatialdata as sd

import sthist
from sthist.models import C2LConfig
from sthist.systems.synthesis.mosaic import Mosaic
from sthist.systems.synthesis.sampler import Sampler
from sthist.tiles import TileReader, TileSpec

TINY = C2LConfig(px=16, dim=8, multipliers=(1, 2))
QUICK = {"training": {"epochs": 1, "steps_per_epoch": 2, "batch_size": 4, "lr": 0.01, "ema": 0.0}}
QUIET = {"device": "cpu", "progress": False}


@pytest.fixture(scope="module")
def _slide():
    return sthist.datasets.toy("visium", size_um=900)


@pytest.fixture(scope="module")
def local(_slide):
    central = sthist.tl.train_central(_slide, TINY, **QUICK, **QUIET)
    return sthist.tl.adapt_local(_slide, central, fraction=0.1, **QUICK, **QUIET)


@pytest.fixture
def slide(_slide):
    return sd.deepcopy(_slide)


@pytest.fixture
def colours(monkeypatch):
    """Tiles that show their number, in place of those of a network; the numbers that were asked for."""
    asked = []

    def tiles(self, conditions, numbers):
        asked.extend(numbers.tolist())
        made = np.zeros((len(numbers), self.px, self.px, 3), np.uint8)
        made[:] = np.stack([numbers % 251, numbers // 251, numbers * 7 % 256], 1)[:, None, None]
        return made

    monkeypatch.setattr(Sampler, "__call__", tiles)
    return asked


def synthesize(data, model, **options):
    return sthist.tl.synthesize(data, model, **{"steps": 2, "seed": 4, **QUIET, **options})


def read_back(made):
    table = made["tiles_table"]
    spec = TileSpec(**table.uns["tile_spec"])
    return TileReader(made, "he", spec).read(table.obsm["spatial"])


def logarithms(adata):
    counts = np.asarray(adata.X.todense(), float)
    return np.log1p(1e4 * counts / counts.sum(1, keepdims=True))


def test_tiles_are_those_of_the_model_and_say_what_they_are(slide, local):
    made = synthesize(slide, local, n=3, guidance=2.0)
    table, source = made["tiles_table"], slide["table"]
    assert set(table.obs["source"]) == set(local.spots["instance_id"])
    assert table.obs["synthetic"].all()
    assert table.obs["replicate"].tolist() == [0, 1, 2] * len(local.spots)
    columns = source.var_names.get_indexer(table.var_names)
    expected = logarithms(source)[source.obs_names.get_indexer(table.obs["source"])][:, columns]
    assert np.allclose(table.X, expected, atol=1e-5)
    again = local.generate(
        table.X, guidance=2.0, steps=2, seed=4, numbers=table.obs["instance_id"], device="cpu", batch_size=32
    )
    assert np.array_equal(read_back(made), again)
    facts = table.uns["sthist"]["tiles_table"]
    assert facts["central_sha256"] == local.sha256
    assert facts["adapter_sha256"] == local.adapter.sha256
    assert (facts["guidance"], facts["steps"], facts["seed"]) == (2.0, 2, 4)


def test_blocks_are_of_whole_chunks_and_tiles_and_not_huge():
    for px in (8, 16, 64, 96, 120, 128, 136, 224, 256, 504, 1000, 1100, 5000):
        mosaic = Mosaic(1, TileSpec(112, px))
        assert mosaic.block_px % 512 == mosaic.block_px % mosaic.pitch_px == 0
        assert px <= mosaic.pitch_px < px + 512
        assert mosaic.block_px <= max(2 * 4096, 8 * mosaic.pitch_px)
    assert Mosaic(1, TileSpec(112, 128)).pitch_px == 128
    assert Mosaic(1, TileSpec(112, 224)).pitch_px == 224


@pytest.mark.parametrize(("px", "n"), [(16, 60), (24, 5), (64, 40), (48, 9), (120, 7)])
def test_each_tile_lies_at_its_place(slide, local, colours, monkeypatch, px, n):
    monkeypatch.setattr("sthist.systems.synthesis.mosaic.LEAST_PER_BLOCK", 1)
    monkeypatch.setattr("sthist.systems.synthesis.mosaic.LARGEST_PX", 1536)
    object.__setattr__(local.config, "px", px)
    try:
        made = synthesize(slide, local, n=n)
    finally:
        object.__setattr__(local.config, "px", 16)
    table = made["tiles_table"]
    numbers = table.obs["instance_id"].to_numpy()
    assert sorted(colours) == numbers.tolist()
    wanted = np.stack([numbers % 251, numbers // 251, numbers * 7 % 256], 1)
    assert (read_back(made) == wanted[:, None, None]).all()
    outlines = made["tiles"].geometry
    assert np.allclose(np.c_[outlines.centroid.x, outlines.centroid.y], table.obsm["spatial"])
    assert np.allclose(outlines.area, 112.0**2)


@pytest.mark.parametrize("to_disk", [True, False])
def test_what_was_stopped_goes_on(slide, local, colours, monkeypatch, tmp_path, to_disk):
    options = {"n": 250, "path": tmp_path / "made.zarr" if to_disk else None}
    wanted = read_back(synthesize(slide, local, n=250))
    n_tiles = len(wanted)
    colours.clear()
    own, calls = Sampler.__call__, []

    def stop(self, conditions, numbers):
        calls.append(1)
        if len(calls) > 40:
            raise KeyboardInterrupt
        return own(self, conditions, numbers)

    with monkeypatch.context() as patch:
        patch.setattr(Sampler, "__call__", stop)
        with pytest.raises(KeyboardInterrupt):
            synthesize(slide, local, **options)
    assert not (tmp_path / "made.zarr").exists()
    colours.clear()
    made = synthesize(slide, local, **options)
    assert len(colours) == n_tiles - 1024  # a block of 32 x 32 tiles was done
    assert np.array_equal(read_back(made), wanted)
    if to_disk:
        assert [each.name for each in tmp_path.iterdir() if "made" in each.name] == ["made.zarr"]
        assert np.array_equal(read_back(sd.read_zarr(tmp_path / "made.zarr")), wanted)
        with pytest.raises(FileExistsError, match=r"made\.zarr is there already"):
            synthesize(slide, local, **options)


def test_what_is_made_is_not_made_again(slide, local, colours, monkeypatch, tmp_path):
    path = tmp_path / "made.zarr"
    with monkeypatch.context() as patch:
        patch.setattr("sthist._store.recover", lambda _: 1 / 0)
        with pytest.raises(ZeroDivisionError):
            synthesize(slide["table"], local, n=3, path=path)
    assert not path.exists()
    colours.clear()
    made = synthesize(slide["table"], local, n=3, path=path)
    assert colours == []
    assert len(made["tiles"]) == 3 * len(local.spots)
    assert [each.name for each in tmp_path.iterdir() if "made" in each.name] == ["made.zarr"]
    assert np.array_equal(read_back(made)[:, 0, 0, 0], np.arange(3 * len(local.spots)))


@pytest.mark.slow
def test_ten_thousand_tiles_take_the_memory_of_two_thousand(slide, local, colours, tmp_path):
    peaks = {}
    object.__setattr__(local.config, "px", 64)
    try:
        for n in (1, 2000, 10_000):  # the first time, modules are loaded
            tracemalloc.start()
            synthesize(slide, local, n=-(-n // len(local.spots)), path=tmp_path / f"{n}.zarr")
            peaks[n] = tracemalloc.get_traced_memory()[1]
            tracemalloc.stop()
    finally:
        object.__setattr__(local.config, "px", 16)
    assert peaks[10_000] - peaks[2000] < 0.15 * 8000 * 3 * 64**2  # table and shapes, and none of the pixels


def test_a_sample_that_other_verbs_take(slide, local):
    made = synthesize(slide, local, n=4)
    central = sthist.tl.train_central(made, local.central, **QUICK, **QUIET)
    again = sthist.tl.adapt_local(made, central, fraction=1, **QUICK, **QUIET)
    assert len(again.spots) == len(made["tiles"])
    assert again.adapter.config.expression == local.adapter.config.expression
    assert np.allclose(again.adapter.config.mean, local.adapter.config.mean, atol=1e-5)


class TestSpots:
    def test_those_of_the_adaptation_or_all(self, slide, local, colours, caplog):
        assert len(synthesize(slide, local)["tiles"]) == len(local.spots)
        assert len(synthesize(slide, local, adapted_only=False)["tiles"]) == slide["table"].n_obs
        stranger = local.with_adapter(local.adapter)
        with caplog.at_level(logging.WARNING, "sthist"):
            assert len(synthesize(slide, stranger)["tiles"]) == slide["table"].n_obs
        assert "is not known" in caplog.text

    def test_slides_that_have_barcodes_in_common(self, slide, local, colours):
        other = sd.deepcopy(slide)
        named = local.with_adapter(local.adapter)
        named.spots = local.spots.assign(sample="mine")
        made = synthesize({"mine": slide, "other": other}, named)["tiles_table"].obs
        assert set(made["sample"]) == {"mine"}
        assert set(made["source"]) == set(local.spots["instance_id"])
        assert len(synthesize({"other": other}, named)["tiles"]) == other["table"].n_obs
        assert len(synthesize(slide["table"], named)["tiles"]) == len(local.spots)

    def test_an_anndata_in_another_order_of_genes(self, slide, local):
        adata = slide["table"]
        made = [synthesize(each, local) for each in (adata, adata[:, ::-1].copy())]
        assert np.allclose(made[0]["tiles_table"].X, made[1]["tiles_table"].X)
        assert np.array_equal(*(read_back(each) for each in made))

    def test_logarithms_and_counts_are_the_same(self, slide, local):
        wanted = read_back(synthesize(slide, local))
        sthist.pp.genes(slide)
        assert np.abs(read_back(synthesize(slide, local)).astype(int) - wanted).max() <= 1

    def test_genes_that_lack_are_at_their_mean_and_not_in_the_table(self, slide, local, caplog):
        sthist.pp.genes(slide)  # what is left out does not change the logarithms of others
        fewer, lacking = slide["table"][:, 2:].copy(), str(slide["table"].var_names[0])
        with caplog.at_level(logging.WARNING, "sthist"):
            made = synthesize(fewer, local)
        assert f"lacks 2 of the 60 genes that the adapter listens to, such as {lacking!r}" in caplog.text
        assert set(made["tiles_table"].var_names) == set(fewer.var_names)
        with pytest.raises(ValueError, match="lacks 40 of the 60 genes"):
            synthesize(slide["table"][:, 40:].copy(), local)

    def test_rows_without_expression_are_left_out(self, slide, local, caplog):
        adata = slide["table"].copy()
        chosen = adata.obs_names.get_indexer(local.spots["instance_id"])
        counts = adata.X.tolil()
        counts[chosen[:1]] = 0
        adata.X = counts.tocsr()
        with caplog.at_level(logging.WARNING, "sthist"):
            made = synthesize(adata, local)
        assert "1 of" in caplog.text
        assert set(made["tiles_table"].obs["source"]) == set(adata.obs_names[chosen[1:]])
        adata.X = 0 * adata.X
        with pytest.raises(ValueError, match="has any expression"):
            synthesize(adata, local)

    def test_expression_that_was_normalised_otherwise(self, slide, local):
        sthist.pp.genes(slide, target_sum=100)
        with pytest.raises(ValueError, match="at 100 a row; the adapter was trained on log1p of counts at 10000 a row"):
            synthesize(slide, local)

    @pytest.mark.parametrize("total", [250.0, 1e6])
    def test_how_it_was_normalised_stays_known(self, slide, local, total):
        sthist.pp.genes(slide, target_sum=total)
        model = sthist.tl.adapt_local(slide, local.central, **QUICK, **QUIET)
        said = synthesize(slide, model)["tiles_table"].uns["sthist"]["genes"]
        assert (said["log"], said["target_sum"]) == (True, total)

    def test_counts_of_the_genes_alone_are_pointed_out(self, slide, local, caplog):
        few = slide["table"].var_names[np.argsort(logarithms(slide["table"]).mean(0))[:8]].tolist()
        model = sthist.tl.adapt_local(slide, local.central, genes=few, **QUICK, **QUIET)
        with caplog.at_level(logging.WARNING, "sthist"):
            synthesize(slide, model)
        assert "sum up to" not in caplog.text
        with caplog.at_level(logging.WARNING, "sthist"):
            synthesize(slide["table"][:, few].copy(), model)
        assert "sum up to 1e+04 a row" in caplog.text

    def test_counts_for_an_adapter_of_unknown_logarithms(self, slide, local):
        central = local.central
        known = slide["table"].copy()
        slide["table"].X = np.sqrt(slide["table"].X.toarray()).astype(np.float32) / 3
        unknown = sthist.tl.adapt_local(slide, central, **QUICK, **QUIET)
        synthesize(slide, unknown)
        with pytest.raises(ValueError, match="the adapter was trained on X as it is"):
            synthesize(known, unknown)


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        ({"guidance": -0.5}, ValueError, "guidance is -0.5; it is 0"),
        ({"steps": 1001}, ValueError, "steps is 1001"),
        ({"n": 0}, ValueError, "n"),
        ({"model": 3}, TypeError, "tl.adapt_local"),
    ],
)
def test_what_is_refused(slide, local, options, error, message):
    with pytest.raises(error, match=message):
        synthesize(slide, **{"model": local, **options})


def test_a_central_model_is_refused(slide, local):
    with pytest.raises(ValueError, match="knows no genes"):
        synthesize(slide, local.central)
