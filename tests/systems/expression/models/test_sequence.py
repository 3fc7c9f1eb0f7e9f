"""Models on whole slides: what they learn, what a prediction does not depend on, and slides that are hard to take."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from expressing import GENES, TILE_UM, planted_slide

import sthist
from sthist import models
from sthist.regression.rows import expression_rows
from sthist.systems.expression.models import as_model
from sthist.tiles import TileReader, TileSpec

CONFIGS = {
    "histogene": models.HisToGeneConfig.small(spec=TileSpec(TILE_UM, 16), max_spots=64),
    "thitogene": models.THItoGeneConfig.small(spec=TileSpec(TILE_UM, 44), max_spots=40, channels=(4, 8, 8, 8, 16)),
}
TINY = {
    "histogene": replace(CONFIGS["histogene"], depth=1, width=16, heads=2, head_width=4, hidden=16),
    "thitogene": replace(CONFIGS["thitogene"], depth=1, channels=(4, 4, 4, 4, 8), capsules=2, capsule_width=4),
}
TRAINING = {
    "histogene": {"epochs": 10, "lr": 3e-3, "patience": None},
    "thitogene": {"epochs": 22, "lr": 2e-3, "patience": None},
}
QUICK = {"epochs": 2, "lr": 1e-3, "patience": None}
SEEN = slice(0, 4)  # genes that follow the stains; the last is noise


@pytest.fixture(scope="module")
def slides():
    return {"a": planted_slide(0, side=20), "b": planted_slide(1, side=10)}


def arrays_of(sdata, name: str) -> tuple[dict[str, np.ndarray], np.ndarray]:
    table = sdata["table"]
    spec = TileSpec(**CONFIGS[name].spec)
    tiles = TileReader(sdata, "he", spec).read(table.obsm["spatial"])
    positions = table.obs[["array_row", "array_col"]].to_numpy()
    return {"tiles": tiles, "places": np.asarray(table.obsm["spatial"]), "positions": positions}, np.asarray(table.X)


def model_of(name: str, **changes) -> models.ExpressionModel:
    kind = models.HisToGene if name == "histogene" else models.THItoGene
    return kind(replace(TINY[name], **changes))


def random_slides(name: str, sizes=(30, 5)) -> tuple[dict[str, np.ndarray], np.ndarray]:
    rng, px = np.random.default_rng(0), CONFIGS[name].spec["px"]
    n = sum(sizes)
    places = np.concatenate([100 * np.stack(np.divmod(np.arange(size), 6), 1) for size in sizes])
    inputs = {
        "tiles": rng.integers(0, 256, (n, px, px, 3), dtype=np.uint8),
        "places": places,
        "slide": np.repeat(np.arange(len(sizes)), sizes),
    }
    return inputs, rng.random((n, 3)).astype(np.float32)


def correlations(predicted: np.ndarray, truth: np.ndarray) -> np.ndarray:
    return np.array([np.corrcoef(predicted[:, gene], truth[:, gene])[0, 1] for gene in range(truth.shape[1])])


@pytest.mark.parametrize("name", CONFIGS)
class TestLearning:
    def test_what_can_be_seen(self, name, slides, tmp_path):
        model = type(model_of(name))(CONFIGS[name])
        model.fit(*arrays_of(slides["a"], name), training=TRAINING[name])
        others, truth = arrays_of(slides["b"], name)
        predicted = model.predict(others)
        found = correlations(predicted, truth)
        assert (found[SEEN] >= 0.8).all(), found
        assert abs(found[-1]) < 0.3
        model.save(tmp_path)
        again = models.load(tmp_path)
        assert type(again) is type(model)
        np.testing.assert_allclose(again.predict(others), predicted, atol=1e-5)
        assert again.sha256 == model.sha256

    def test_nothing_of_shuffled_tiles(self, name, slides):
        inputs, expression = arrays_of(slides["a"], name)
        order = np.random.default_rng(0).permutation(len(expression))
        shuffled = inputs | {"tiles": inputs["tiles"][order]}
        model = model_of(name).fit(shuffled, expression, training=QUICK)
        others, truth = arrays_of(slides["b"], name)
        errors = ((model.predict(others) - truth) ** 2).mean(0)
        assert errors.mean() > 0.95 * ((expression.mean(0) - truth) ** 2).mean(), errors


@pytest.mark.parametrize("name", CONFIGS)
class TestPrediction:
    @pytest.mark.parametrize("max_spots", [None, 7])
    def test_of_a_slide_alone_and_beside_others(self, name, max_spots):
        inputs, expression = random_slides(name)
        model = model_of(name, max_spots=max_spots).fit(inputs, expression, training=QUICK)
        whole = model.predict(inputs)
        for slide in (0, 1):
            mine = inputs["slide"] == slide
            alone = {key: values[mine] for key, values in inputs.items() if key != "slide"}
            np.testing.assert_allclose(model.predict(alone), whole[mine], atol=1e-5)

    @pytest.mark.parametrize("max_spots", [None, 7])
    def test_order_of_spots_permutes_it(self, name, max_spots):
        inputs, expression = random_slides(name)
        model = model_of(name, max_spots=max_spots).fit(inputs, expression, training=QUICK)
        order = np.random.default_rng(1).permutation(len(expression))
        moved = {key: values[order] for key, values in inputs.items()}
        np.testing.assert_allclose(model.predict(moved), model.predict(inputs)[order], atol=1e-5)

    def test_sees_the_slide_up_to_the_window(self, name):
        inputs, expression = random_slides(name, (36,))
        for max_spots, all_moved in ((None, True), (18, False)):
            model = model_of(name, max_spots=max_spots).fit(inputs, expression, training=QUICK)
            changed = inputs | {"tiles": inputs["tiles"].copy()}
            changed["tiles"][0] = 255 - changed["tiles"][0]
            moved = np.abs(model.predict(changed) - model.predict(inputs)).max(1) > 0
            assert moved[0]
            # Rows of 6 spots: the first window is the first three rows.
            assert moved[18:].any() is np.bool_(all_moved)

    @pytest.mark.parametrize("precision", ["float32", "bf16"])
    def test_several_slides_of_a_batch_train_and_stop(self, name, precision):
        inputs, expression = random_slides(name, (12, 20, 7))
        watched = np.arange(32, 39)
        training = {"epochs": 3, "batch_size": 2, "patience": 1, "checkpoint_gradients": True}
        training["precision"] = precision
        model = model_of(name).fit(inputs, expression, watched=watched, training=training)
        assert np.isfinite([each["validation_loss"] for each in model.history]).all()
        assert np.isfinite(model.predict(inputs)).all()

    def test_same_seed_same_weights(self, name):
        inputs, expression = random_slides(name)
        one, other = (model_of(name, max_spots=10).fit(inputs, expression, training=QUICK) for _ in range(2))
        assert one.sha256 == other.sha256


@pytest.mark.parametrize("name", CONFIGS)
class TestThroughTheVerbs:
    def test_train_apply_and_load(self, name, slides, tmp_path):
        split = {"a": "train", "b": "test"}
        model = sthist.tl.train_expression(slides, TINY[name], split=split, training=QUICK, folder=tmp_path / "model")
        assert model.genes == GENES
        assert model.config.n_known == 20
        new = planted_slide(2, side=6)
        for each in (model, tmp_path / "model"):
            sthist.tl.expression(new, each, regions="spots", overwrite=True)
        table = new["table"]
        inputs, _ = arrays_of(new, name)
        np.testing.assert_allclose(table.layers[name], model.predict(inputs), atol=1e-5)
        assert table.obs[f"{name}_familiarity"].between(0, 1).all()
        # A part of the slide is predicted as if all of it were asked for.
        box = (0, 0, 3 * TILE_UM, 6 * TILE_UM)
        sthist.tl.expression(new, model, regions="spots", within=box, key_added="part")
        inside = np.isfinite(table.layers["part"][:, 0])
        assert inside.sum() == 18
        np.testing.assert_allclose(table.layers["part"][inside], table.layers[name][inside], atol=1e-5)

    def test_the_name_is_enough(self, name):
        model = as_model(name)
        assert model.system == name
        assert model.options(None).optimizer == "adam"


@pytest.mark.parametrize("name", CONFIGS)
class TestHardSlides:
    @pytest.mark.parametrize("n", [1, 2, 3])
    def test_fewer_spots_than_neighbours(self, name, n):
        inputs, expression = random_slides(name, (12, n))
        model = model_of(name).fit(inputs, expression, training=QUICK)
        predicted = model.predict(inputs)
        assert np.isfinite(predicted).all()
        alone = {key: values[12:] for key, values in inputs.items()}
        np.testing.assert_allclose(model.predict(alone), predicted[12:], atol=1e-5)

    def test_genes_that_are_constant_in_training(self, name):
        inputs, expression = random_slides(name)
        expression[:, 1] = 2.5
        model = model_of(name).fit(inputs, expression, training=QUICK)
        predicted = model.predict(inputs)
        assert np.isfinite(predicted).all()
        assert np.abs(predicted[:, 1] - 2.5).max() < 0.5  # it begins at the mean

    def test_a_larger_slide_than_the_tables(self, name):
        inputs, expression = random_slides(name, (12,))
        model = model_of(name).fit(inputs, expression, training=QUICK)
        larger, _ = random_slides(name, (48,))
        with pytest.raises(ValueError, match=r"go up to 7, and this model knows 0 to 5.*n_positions=8"):
            model.predict(larger)
        given = inputs | {"positions": inputs["places"] // 100 + 10}
        with pytest.raises(ValueError, match=r"'positions' go up to 15"):
            model.predict(given)
        for changes in ({"n_positions": 8}, {"positions": None}):
            wide = model_of(name, **changes).fit(inputs, expression, training=QUICK)
            assert np.isfinite(wide.predict(larger)).all()
        with pytest.raises(ValueError, match=r"go up to 7, and this model knows 0 to 2"):
            model_of(name, n_positions=3).fit(larger, np.zeros((48, 3)), training=QUICK)

    def test_a_larger_slide_is_refused_before_a_tile_is_read(self, name, slides):
        small = planted_slide(3, side=5)
        model = sthist.tl.train_expression(small, TINY[name], split="block", training=QUICK)
        with pytest.raises(
            ValueError, match=r"Rows or columns of table 'table' go up to 9, and this model knows 0 to 4"
        ):
            sthist.tl.expression(slides["b"], model, regions="spots")

    def test_positions_in_micrometres(self, name):
        """The same place on another lattice."""
        config = replace(TINY[name], positions="um", position_um=TILE_UM)
        rows = expression_rows({"s": planted_slide(4, side=6)}, None, None)
        found = type(model_of(name))(config).collect(rows)
        centres = rows.tables[0].obsm["spatial"]
        np.testing.assert_array_equal(found.positions, (centres - centres.min(0)) // TILE_UM)

    def test_spots_without_places(self, name):
        inputs, expression = random_slides(name, (12,))
        with pytest.raises(ValueError, match="it takes 'places'"):
            model_of(name).fit(inputs["tiles"], expression, training=QUICK)
        sdata = planted_slide(5, side=5)
        del sdata["table"].obsm["spatial"]
        rows = expression_rows({"s": sdata}, None, None)
        with pytest.raises(KeyError, match="needs the places of rows in µm, and table 'table'"):
            model_of(name).collect(rows)
        sdata["table"].obsm["spatial"] = np.full((25, 2), np.nan)
        with pytest.raises(ValueError, match=r"NaN or infinite in 25 rows, such as 'spot0'"):
            model_of(name).collect(rows)

    def test_spots_on_no_lattice(self, name):
        inputs, expression = random_slides(name, (12,))
        places = np.random.default_rng(3).random((12, 2)) * 500
        with pytest.raises(ValueError, match="lie on no lattice"):
            model_of(name).fit(inputs | {"places": places}, expression, training=QUICK)
        model_of(name, positions="um").fit(inputs | {"places": places}, expression, training=QUICK)

    def test_embeddings_are_refused(self, name):
        with pytest.raises(ValueError, match="takes 'tiles'"):
            model_of(name).fit(
                {"spot": np.zeros((9, 4)), "places": np.zeros((9, 2)), "positions": np.zeros((9, 2), int)},
                np.zeros((9, 2)),
                training=QUICK,
            )


def test_more_spots_than_memory(monkeypatch):
    """Smaller windows are advised, after the trainer has tried what it can."""
    import torch

    inputs, expression = random_slides("histogene", (36,))
    losses = sthist.nets.HisToGene.losses

    def limited(net, batch, targets, mask=None):
        if len(targets) > 20:
            raise torch.OutOfMemoryError
        return losses(net, batch, targets, mask)

    monkeypatch.setattr(sthist.nets.HisToGene, "losses", limited)
    with pytest.raises(MemoryError, match=r"windows of up to max_spots=64 spots.*HisToGeneConfig\(max_spots=18\)"):
        model_of("histogene").fit(inputs, expression, training=QUICK)
    model_of("histogene", max_spots=18).fit(inputs, expression, training=QUICK)


def test_beside_what_knows_nothing(slides):
    frame = sthist.benchmark.expression(
        slides,
        {"whole slides": TINY["histogene"]},
        split={"a": "train", "b": "test"},
        gene_sets={"all": list(GENES)},
        training=QUICK | {"epochs": 6},
        n_boot=0,
    )
    scores = frame.set_index(["model", "method"])["pearson_mean"]
    assert scores["whole slides", "model"] > scores["whole slides", "shuffled tiles"] + 0.2


class TestPresets:
    @pytest.mark.parametrize("kind", [models.HisToGeneConfig, models.THItoGeneConfig])
    def test_published_inputs(self, kind):
        config = kind.published(mpp=0.65)
        assert config.spec == {"size_um": 0.65 * 112, "px": 112}
        assert (config.positions, config.n_positions, config.max_spots) == ("array", 64, None)

    def test_what_is_published_of_each(self):
        assert models.HisToGeneConfig.published(0.5).pixels == "raw"
        assert models.THItoGeneConfig.published(0.5).own is False
        assert models.THItoGene().default_training["epochs"] == 300

    def test_sizes_of_networks(self):
        import torch

        config = replace(models.HisToGeneConfig(), n_known=64, tile_px=112)
        zeros = np.zeros(785, np.float32)
        with torch.device("meta"):
            net = models.HisToGene(config).network(112, 785, 64, depth=config.depth)
        assert sum(each.numel() for each in net.parameters()) == 106_648_337
        small = models.THItoGene(replace(models.THItoGeneConfig.small(), n_known=20, tile_px=48))
        assert sum(each.numel() for each in small.make_net(785, zeros, zeros).parameters()) < 300_000

    @pytest.mark.parametrize(
        ("changes", "words"),
        [
            ({"positions": "pixels"}, "positions is 'pixels'"),
            ({"pixels": "half"}, "pixels is 'half'"),
            ({"max_spots": 0}, "max_spots is 0"),
            ({"n_positions": 0}, "n_positions is 0"),
            ({"position_um": 0.0}, "position_um is 0"),
            ({"context_um": 100.0}, "no context_um"),
            ({"neighbours": 0}, "neighbours is 0"),
            ({"channels": (8, 8)}, "channels is"),
        ],
    )
    def test_settings_that_cannot_be(self, changes, words):
        with pytest.raises(ValueError, match=words):
            models.THItoGeneConfig(**changes)
