"""Central model and adapter from samples: which tiles and spots are taken, what is learned of them, what is refused."""

from __future__ import annotations

import logging

import numpy as np
import pytest
import spatialdata as sd
from PIL import Image
from scipy.sparse import csr_matrix

import sthist
from sthist.models import C2L, C2LConfig
from sthist.tiles import TileReader, TileSpec

TINY = C2LConfig(px=16, dim=8, multipliers=(1, 2))
QUICK = {"epochs": 1, "steps_per_epoch": 2, "batch_size": 4, "seed": 5}
OPTIONS = {"training": QUICK, "device": "cpu", "progress": False}


@pytest.fixture(scope="module")
def _slide():
    return sthist.datasets.toy("visium", size_um=900)


@pytest.fixture
def slide(_slide):
    return sd.deepcopy(_slide)


@pytest.fixture(scope="module")
def central(_slide):
    return sthist.tl.train_central(_slide, TINY, **OPTIONS)


@pytest.fixture
def shown(monkeypatch):
    """What models were trained on: tiles, and expression."""
    seen = []
    for name in ("fit", "adapt"):
        own = getattr(C2L, name)

        def keep(self, tiles, *rest, own=own, **options):
            seen.append((np.array(tiles), *rest, options))
            return own(self, tiles, *rest, **options)

        monkeypatch.setattr(C2L, name, keep)
    return seen


def inside(slide):
    """Spots whose 112 µm lie on the slide, of 900 µm."""
    places = slide["table"].obsm["spatial"]
    return ((places >= 56) & (places <= 844)).all(axis=1)


def logarithms(adata):
    counts = np.asarray(adata.layers["counts"].todense() if "counts" in adata.layers else adata.X.todense(), float)
    return np.log1p(1e4 * counts / counts.sum(1, keepdims=True))


class TestCentral:
    def test_tiles_around_spots_that_lie_on_the_slide(self, slide, shown):
        model = sthist.tl.train_central(slide, TINY, **OPTIONS)
        reader = TileReader(slide, "he", TINY.spec, fill=255)
        wanted = reader.read(slide["table"].obsm["spatial"][inside(slide)])
        assert sorted(tile.tobytes() for tile in shown[0][0]) == sorted(tile.tobytes() for tile in wanted)
        assert model.config.training["tiles"] == int(inside(slide).sum())

    def test_slides_and_folders_together_and_no_more_than_asked_for(self, slide, shown, tmp_path):
        rng = np.random.default_rng(0)
        for i in range(5):
            Image.fromarray(rng.integers(0, 256, (300, 300, 3), np.uint8)).save(tmp_path / f"{i}.png")
        folder = sthist.io.tile_folder(tmp_path, mpp=0.5, labels=None)
        sthist.tl.train_central({"slide": slide, "folder": folder}, TINY, **OPTIONS)
        sthist.tl.train_central({"slide": slide, "folder": folder}, TINY, max_tiles=7, **OPTIONS)
        assert [len(each[0]) for each in shown] == [int(inside(slide).sum()) + 5, 7]

    def test_tells_nothing_of_its_samples(self, slide, tmp_path):
        sthist.tl.train_central({"patient_47": slide}, TINY, folder=tmp_path, **OPTIONS)
        assert {each.name for each in tmp_path.iterdir() if each.is_file()} == {
            "config.json",
            "model.safetensors",
            "metrics.csv",
        }
        text = (tmp_path / "config.json").read_text()
        assert not any(word in text for word in ("patient_47", *slide["table"].var_names[:3]))

    def test_a_model_is_trained_on_and_stays_as_it_is(self, slide, central):
        before = {name: value.copy() for name, value in central.weights.items()}
        more = sthist.tl.train_central(slide, central, **OPTIONS)
        assert all(np.array_equal(central.weights[name], value) for name, value in before.items())
        assert more.sha256 != central.sha256
        assert "before" in more.config.training

    @pytest.mark.parametrize(
        ("options", "error", "message"),
        [
            ({"model": "huge"}, ValueError, "model is 'huge'; it is one of"),
            ({"max_tiles": 1}, ValueError, "max_tiles is 1"),
            ({"regions": "spot"}, KeyError, "spot"),
            ({"model": C2LConfig(px=1024, dim=8, multipliers=(1, 2))}, ValueError, "coarser tiles, no finer than"),
        ],
    )
    def test_what_is_refused(self, slide, options, error, message):
        with pytest.raises(error, match=message):
            sthist.tl.train_central(slide, **{"model": TINY, **OPTIONS, **options})

    def test_tiles_of_another_size_are_refused(self, slide):
        sthist.pp.tissue(slide)
        sthist.pp.tiles(slide, size_um=56, px=16)
        with pytest.raises(ValueError, match=r"'tiles' show 56 µm, and the model is for tiles of 112 µm \(7 µm/px\)"):
            sthist.tl.train_central(slide, TINY, regions="tiles", **OPTIONS)
        sthist.tl.train_central(slide, C2LConfig(56, 16, 8, (1, 2)), regions="tiles", **OPTIONS)

    def test_no_pixels(self, slide):
        with pytest.raises(ValueError, match="has no pixels"):
            sthist.tl.train_central(slide["table"], TINY, **OPTIONS)


@pytest.mark.parametrize("verb", ["train_central", "adapt_local"])
def test_what_was_stopped_goes_on_to_the_same_weights(slide, central, tmp_path, verb):
    def run(folder=None, **training):
        model = TINY if verb == "train_central" else central
        made = getattr(sthist.tl, verb)(slide, model, **OPTIONS | {"training": QUICK | training}, folder=folder)
        return made.weights if verb == "train_central" else made.adapter.weights

    run(tmp_path, epochs=1)
    with pytest.raises(FileExistsError, match="resume=True"):
        run(tmp_path, epochs=2)
    resumed, whole = run(tmp_path, epochs=2, resume=True), run(epochs=2)
    assert all(np.array_equal(resumed[name], value) for name, value in whole.items())


class TestStain:
    def test_slide_and_folder_are_brought_to_one_stain_that_adapters_keep(self, slide, shown, tmp_path):
        rows = TileReader(slide, "he", TileSpec(150, 300), fill=255).read(
            slide["table"].obsm["spatial"][inside(slide)][:6]
        )
        for i, tile in enumerate(rows):
            Image.fromarray(tile).save(tmp_path / f"{i}.png")
        folder = sthist.io.tile_folder(tmp_path, mpp=0.5, labels=None)
        reference = sthist.pp.StainReference.default("reinhard")
        central = sthist.tl.train_central(folder, TINY, stain_reference="reinhard", **OPTIONS)
        assert central.config.stain == reference.to_dict()
        assert TINY.stain is None
        local = sthist.tl.adapt_local(slide, central, fraction=1, **OPTIONS)
        normalizer = sthist.pp.stain_normalize(slide, method="reinhard")
        reader = TileReader(slide, "he", TINY.spec, fill=255, normalizer=normalizer)
        places = slide["table"].obsm["spatial"][slide["table"].obs_names.get_indexer(local.spots["instance_id"])]
        assert np.array_equal(shown[-1][0], reader.read(places))
        plain = TileReader(slide, "he", TINY.spec, fill=255).read(places)
        of_folder, of_slide, before = (each.reshape(-1, 3).mean(0) for each in (shown[0][0], shown[-1][0], plain))
        assert np.abs(of_folder - of_slide).max() < 0.5 * np.abs(before - of_slide).max()
        central.save(tmp_path / "central")
        assert sthist.models.load(tmp_path / "central").config == central.config

    def test_a_trained_model_keeps_its_stain(self, slide, central):
        with pytest.raises(ValueError, match="normalised to another stain, or not at all"):
            sthist.tl.train_central(slide, central, stain_reference="macenko", **OPTIONS)
        with pytest.raises(ValueError, match="not the values of a stain reference"):
            C2LConfig(stain={"method": "macenko"})


class TestLocal:
    def test_a_fraction_of_the_spots_with_their_own_expression(self, slide, central, shown):
        model = sthist.tl.adapt_local(slide, central, fraction=0.3, **OPTIONS)
        tiles, expression, genes, _ = shown[-1]
        names = model.spots["instance_id"].tolist()
        assert len(names) == round(0.3 * inside(slide).sum()) == len(set(names))
        table = slide["table"]
        rows = table.obs_names.get_indexer(names)
        assert inside(slide)[rows].all()
        assert np.array_equal(tiles, TileReader(slide, "he", TINY.spec, fill=255).read(table.obsm["spatial"][rows]))
        columns = table.var_names.get_indexer(genes)
        assert np.allclose(expression, logarithms(table)[rows][:, columns], atol=1e-5)
        assert np.allclose(model.adapter.config.mean, expression.mean(0), atol=1e-5)
        assert np.allclose(model.adapter.config.std, expression.std(0), atol=1e-5)
        assert model.sha256 == central.sha256

    def test_genes_are_chosen_on_the_spots_of_the_adaptation(self, slide, central):
        table = slide["table"]
        kept = sthist.tl.adapt_local(slide, central, fraction=0.2, genes=5, **OPTIONS)
        rest = ~table.obs_names.isin(kept.spots["instance_id"])
        counts = table.X.toarray()
        counts[np.flatnonzero(rest)[:, None], np.arange(3)] = 10_000  # elsewhere, others are the most expressed
        table.X = csr_matrix(counts)
        again = sthist.tl.adapt_local(slide, central, fraction=0.2, genes=5, **OPTIONS)
        mean = logarithms(table)[~rest].mean(0)
        assert set(again.adapter.config.genes) == set(table.var_names[np.argsort(-mean)[:5]])
        assert again.adapter.config.genes == kept.adapter.config.genes

    def test_within_and_a_folder(self, slide, central, tmp_path):
        central.save(tmp_path / "central")
        model = sthist.tl.adapt_local(
            slide, tmp_path / "central", fraction=1, within=(0, 0, 450, 900), folder=tmp_path / "local", **OPTIONS
        )
        places = slide["table"].obsm["spatial"][slide["table"].obs_names.get_indexer(model.spots["instance_id"])]
        assert (places[:, 0] < 450).all()
        back = sthist.models.load(tmp_path / "local")
        assert back.spots.equals(model.spots)
        assert not any(
            name in (tmp_path / "local" / "adapter.safetensors").read_bytes().decode("latin1")
            for name in model.spots["instance_id"]
        )

    def test_logarithms_of_pp_genes_are_the_same_as_counts(self, slide, central):
        one = sthist.tl.adapt_local(slide, central, **OPTIONS)
        sthist.pp.genes(slide)
        other = sthist.tl.adapt_local(slide, central, **OPTIONS)
        assert one.adapter.config.expression == other.adapter.config.expression == "log1p of counts at 10000 a row"
        assert np.allclose(one.adapter.config.mean, other.adapter.config.mean)

    def test_rows_without_expression_are_left_out(self, slide, central, caplog):
        table = slide["table"]
        counts = table.X.toarray()
        counts[np.flatnonzero(inside(slide))[:4]] = 0
        table.X = csr_matrix(counts)
        with caplog.at_level(logging.WARNING, "sthist"):
            model = sthist.tl.adapt_local(slide, central, fraction=1, **OPTIONS)
        assert f"4 of {inside(slide).sum()} rows have no expression" in caplog.text
        assert len(model.spots) == inside(slide).sum() - 4

    def test_few_spots(self, slide, central, caplog):
        with caplog.at_level(logging.INFO, "sthist"):
            sthist.tl.adapt_local(slide, central, fraction=0.045, **OPTIONS)
        assert "fewer than batch_size=4" in caplog.text
        with pytest.raises(ValueError, match="an adapter needs two at least"):
            sthist.tl.adapt_local(slide, central, fraction=0.01, **OPTIONS)

    @pytest.mark.parametrize(
        ("options", "error", "message"),
        [
            ({"fraction": 0}, ValueError, "fraction is 0; it is a part"),
            ({"fraction": 1.5}, ValueError, "fraction is 1.5"),
            ({"genes": ["EPCAM", "NOGENE"]}, KeyError, "1 of the 2 genes, such as 'NOGENE'"),
            ({"where": "down"}, ValueError, "where is 'down'"),
            ({"model": 7}, TypeError, "tl.train_central"),
        ],
    )
    def test_what_is_refused(self, slide, central, options, error, message):
        with pytest.raises(error, match=message):
            sthist.tl.adapt_local(slide, **{"model": central, **OPTIONS, **options})

    def test_negative_expression_is_refused(self, slide, central):
        table = slide["table"]
        table.layers.pop("counts", None)
        table.X = table.X.astype(np.float32) * -0.5
        with pytest.raises(ValueError, match="negative"):
            sthist.tl.adapt_local(slide, central, **OPTIONS)
