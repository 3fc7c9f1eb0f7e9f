"""Heat maps against a loop over kernels."""

from __future__ import annotations

import numpy as np
import pytest
import shapely
import spatialdata as sd
from annotating import Planted
from scipy.ndimage import gaussian_filter
from spatialdata.models import Image2DModel
from spatialdata.transformations import Affine, get_transformation

import sthist
from sthist.tiles import TileSpec

CLASSES = ["tumour", "B cells"]


class Moments(sthist.encoders.Encoder):
    """Mean and standard deviation of each colour; texts are embedded by their length."""

    name = "moments"

    def __init__(self):
        self.seen = 0

    def embed(self, tiles):
        self.seen += len(tiles)
        values = tiles.reshape(len(tiles), -1, 3).astype(np.float64) / 255
        return np.concatenate([values.mean(1), values.std(1)], axis=1).astype(np.float32)

    def embed_text(self, texts):
        return np.random.default_rng(len("".join(texts))).normal(size=(len(texts), 6)).astype(np.float32)


class Coloured(sthist.encoders.Encoder):
    """The planted texts, and mean colours in the same space."""

    name, key, logit_scale, embed_text = "coloured", "X_coloured", 20.0, Planted.embed_text
    n_calls, provenance = 0, {"sha256": "aa"}

    def embed(self, tiles):
        return np.pad(tiles.mean((1, 2), dtype=np.float32) / 255 - 0.6, ((0, 0), (0, 1)))


def two_scores(rows):
    return np.stack([rows[:, 0] - rows[:, 4], np.tanh(3 * rows[:, 2])], axis=1)


def sample(height, width, mpp=0.5, seed=0):
    pixels = np.random.default_rng(seed).integers(0, 256, (3, height, width), dtype=np.uint8)
    matrix = np.array([[mpp, 0, 100.0], [0, mpp, -20.0], [0, 0, 1]])
    image = Image2DModel.parse(
        pixels,
        dims=("c", "y", "x"),
        c_coords=["r", "g", "b"],
        transformations={"um": Affine(matrix, ("x", "y"), ("x", "y"))},
    )
    return sd.SpatialData(images={"he": image}), pixels.transpose(1, 2, 0)


def by_loop(pixels, kernel, stride, score):
    """The mean over all kernels that cover each stride cell; pixels beyond the border are white."""
    rows, columns = (max(kernel // stride, -(-n // stride)) for n in pixels.shape[:2])
    padded = np.full((rows * stride, columns * stride, 3), 255, np.uint8)
    padded[: pixels.shape[0], : pixels.shape[1]] = pixels
    total, n = 0, np.zeros((rows, columns))
    for y in range(0, rows * stride - kernel + 1, stride):
        for x in range(0, columns * stride - kernel + 1, stride):
            found = score(Moments().embed(padded[None, y : y + kernel, x : x + kernel]))[0]
            part = np.zeros((rows, columns))
            part[y // stride : (y + kernel) // stride, x // stride : (x + kernel) // stride] = 1
            total, n = total + found[:, None, None] * part, n + part
    return total / n


def written(sdata, key="heatmap"):
    return np.asarray(sdata[key].data)


class TestCrop:
    @pytest.mark.parametrize(
        ("height", "width", "kernel", "stride"),
        [(128, 160, 64, 16), (131, 97, 32, 8), (65, 70, 64, 16), (40, 300, 64, 32), (50, 51, 10, 10), (33, 47, 9, 3)],
    )
    def test_equals_brute_force(self, height, width, kernel, stride):
        """Also where the sides are odd, at borders, and on an image that is smaller than the kernel."""
        sdata, pixels = sample(height, width)
        sthist.tl.heatmap(
            sdata,
            two_scores,
            encoder=Moments(),
            classes=CLASSES,
            spec=TileSpec(kernel / 2, kernel),
            stride_um=stride / 2,
            tissue=False,
            smooth_um=0,
            batch_size=7,
            progress=False,
        )
        expected = by_loop(pixels, kernel, stride, two_scores)
        assert written(sdata).dtype == np.float32
        np.testing.assert_allclose(written(sdata), expected, atol=1e-5)

    def test_many_blocks_and_bands_are_one(self, monkeypatch):
        import sthist.systems.annotation.heat_maps.sliding_windows as engine

        monkeypatch.setattr(engine, "BLOCK_PX", 70)
        monkeypatch.setattr(engine, "BAND_ROWS", 3)
        sdata, pixels = sample(131, 97)
        sizes = {"spec": TileSpec(16.0, 32), "stride_um": 4.0, "tissue": False, "progress": False, "smooth_um": 6.0}
        sthist.tl.heatmap(sdata, two_scores, encoder=Moments(), classes=CLASSES, **sizes)
        means = by_loop(pixels, 32, 8, two_scores)
        sigma = 6.0 / 4.0
        weight = gaussian_filter(np.ones(means.shape[1:]), sigma, mode="constant")
        expected = [gaussian_filter(each, sigma, mode="constant") / weight for each in means]
        np.testing.assert_allclose(written(sdata), expected, atol=1e-5)

    def test_it_lies_where_the_image_does(self):
        sdata, _ = sample(128, 160)
        sthist.tl.heatmap(sdata, two_scores, encoder=Moments(), classes=CLASSES, tissue=False, progress=False)
        matrix = get_transformation(sdata["heatmap"], "um").to_affine_matrix(("x", "y"), ("x", "y"))
        np.testing.assert_allclose(matrix, [[8, 0, 100], [0, 8, -20], [0, 0, 1]])
        assert written(sdata).shape == (2, 8, 10)

    def test_micrometres_and_pixels_are_the_same(self):
        sdata, _ = sample(128, 160)
        for key, sizes in (("px", {}), ("um", {"spec": TileSpec(32.0, 64), "stride_um": 8.0})):
            sthist.tl.heatmap(
                sdata,
                two_scores,
                encoder=Moments(),
                classes=CLASSES,
                tissue=False,
                key_added=key,
                progress=False,
                **sizes,
            )
        np.testing.assert_array_equal(written(sdata, "px"), written(sdata, "um"))


class TestTissue:
    def test_nothing_else_counts(self):
        """Off the tissue there is NaN, and smoothing takes nothing from there."""
        sdata, _ = sample(256, 256)
        sizes = {"encoder": Moments(), "classes": CLASSES, "tissue": False, "progress": False}
        sthist.tl.heatmap(sdata, two_scores, within=(130, 0, 180, 60), **sizes)
        np.testing.assert_array_equal(np.isfinite(written(sdata)[0]).sum(axis=(0, 1)), 7 * 6)  # by their centres
        left_half = shapely.box(100, -20, 164, 108)
        for sigma, scores in ((0, lambda rows: np.full((len(rows), 2), 3.0)), (10.0, two_scores)):
            sthist.tl.heatmap(sdata, scores, within=left_half, smooth_um=sigma, key_added=f"s{sigma:g}", **sizes)
        assert np.isfinite(written(sdata, "s10")).all()
        triangle = shapely.Polygon([(110, -10), (200, -10), (110, 90)])
        sthist.tl.heatmap(sdata, lambda rows: np.full((len(rows), 2), 3.0), within=triangle, key_added="t", **sizes)
        found = written(sdata, "t")
        assert 0.3 < np.isnan(found).mean() < 0.7
        np.testing.assert_allclose(found[np.isfinite(found)], 3.0, rtol=1e-6)

    def test_kernels_off_tissue_are_skipped(self, toy):
        encoder = Moments()
        sthist.pp.tissue(toy)
        sthist.tl.heatmap(toy, two_scores, encoder=encoder, classes=CLASSES, progress=False)
        made = toy.attrs["sthist"]["results"]["heatmap"]
        found = written(toy)
        assert encoder.seen == made["kernels"] < 0.95 * found[0].size
        matrix = get_transformation(toy["heatmap"], "um").to_affine_matrix(("x", "y"), ("x", "y"))
        rows, columns = np.indices(found.shape[1:]) + 0.5
        x, y = np.moveaxis(np.stack([columns, rows, np.ones_like(rows)], -1) @ matrix.T[:, :2], -1, 0)
        inside = shapely.contains_xy(shapely.union_all(toy["tissue"].geometry), x, y)
        np.testing.assert_array_equal(np.isfinite(found[0]), inside)

    def test_none_is_refused(self):
        sdata, _ = sample(64, 64)
        with pytest.raises(ValueError, match=r"does not lie on the image 'he'"):
            sthist.tl.heatmap(sdata, two_scores, encoder=Moments(), classes=CLASSES, within=(0, 0, 10, 10))


class TestModels:
    def test_prompts(self):
        """Shares of the classes by cosine similarity to the mean direction of a class's sentences."""
        sdata, pixels = sample(64, 64)
        prompts = {"tumour": ["a tumour", "carcinoma"], "T/NK": "lymphocytes"}
        options = {"templates": ["see {}"], "temperature": 0.5, "tissue": False, "smooth_um": 0, "progress": False}
        sthist.tl.heatmap(sdata, prompts, encoder=Moments(), **options)
        rows = Moments().embed_text(["see a tumour", "see carcinoma", "see lymphocytes"]).astype(float)
        rows /= np.linalg.norm(rows, axis=1, keepdims=True)
        towards = np.stack([rows[:2].mean(0), rows[2]])
        towards /= np.linalg.norm(towards, axis=1, keepdims=True)
        image = Moments().embed(pixels[None])[0]
        share = np.exp(towards @ image / np.linalg.norm(image) / 0.5)
        np.testing.assert_allclose(written(sdata)[:, 0, 0], share / share.sum(), atol=1e-6)
        made = sdata.attrs["sthist"]["results"]["heatmap"]
        assert made["classes"] == {"tumour": "tumour", "T_NK": "T/NK"}
        assert sthist._sample.elements.channel_names(sdata["heatmap"]) == ["tumour", "T_NK"]
        assert made["prompts"]["T/NK"] == ["lymphocytes"]
        assert (made["templates"], made["temperature"]) == (["see {}"], 0.5)
        sthist.tl.heatmap(sdata, prompts, encoder=Moments(), classes=["T/NK"], **options)
        np.testing.assert_array_equal(written(sdata, "T_NK_heatmap")[0], written(sdata)[1])

    @pytest.mark.parametrize("options", [{}, {"templates": ["{}"], "temperature": 0.3}])
    def test_prompts_mean_what_they_mean_to_annotate(self, options):
        """A kernel of the size of a tile has the score of that tile."""
        sdata = sthist.datasets.toy(size_um=192)
        encoder, prompts = Coloured(), {"tumour": ["tumour", "a carcinoma"], "stroma": "stroma", "fat": ["fat cells"]}
        sthist.pp.tissue(sdata)
        sthist.pp.tiles(sdata, size_um=32, px=32)
        sthist.pp.embed(sdata, encoder, progress=False)
        sthist.tl.annotate(sdata, prompts, encoder=encoder, **options)
        tiles = sdata["tiles_table"]
        scores = tiles.obsm["annotation_score"].to_numpy()
        assert np.ptp(scores, axis=0).min() > 0.01
        for centre, score in zip(tiles.obsm["spatial"][:5], scores, strict=False):
            sthist.tl.heatmap(
                sdata,
                prompts,
                encoder=encoder,
                spec=TileSpec(32, 32),
                within=(*(centre - 16), *(centre + 16)),
                stride_um=32,
                tissue=False,
                overwrite=True,
                progress=False,
                **options,
            )
            np.testing.assert_allclose(written(sdata)[:, 0, 0], score, atol=1e-6)

    def test_a_model_of_finer_tiles_than_the_image_is_refused(self):
        class Model:
            classes = ["a"]
            spec = TileSpec(6.4, 64)
            encoder = Moments()

            def predict(self, rows):
                return rows[:, 0]

        sdata, _ = sample(64, 64)
        with pytest.raises(ValueError, match=r"has 0.5 µm/px, and .* for 0.1 µm/px.* Pass spec= to go on"):
            sthist.tl.heatmap(sdata, Model(), tissue=False, progress=False)
        sthist.tl.heatmap(sdata, Model(), spec=TileSpec(6.4, 64), within=(100, -20, 106.4, -13.6), tissue=False)
        assert np.isfinite(written(sdata, "a_heatmap")).all()

    def test_a_trained_model_brings_its_tile_and_encoder(self):
        class Model:
            classes = ["a", "b", "c"]
            spec = TileSpec(32.0, 32)
            encoder = Moments()

            def predict(self, rows):
                return np.stack([rows[:, 0], rows[:, 1], rows[:, 2]], 1)

        sdata, _ = sample(128, 128)
        sthist.tl.heatmap(sdata, Model(), classes=["c"], tissue=False, progress=False)
        made = sdata.attrs["sthist"]["results"]["c_heatmap"]
        assert (made["kernel_um"], made["stride_um"], made["mpp"]) == (32.0, 8.0, 1.0)

    def test_a_model_that_has_trained_its_encoder(self):
        class Model:
            needs_tiles = True
            config = type("Config", (), {"encoder": "mine", "classes": ("a", "b")})
            embed = staticmethod(lambda tiles, encoder=None: Moments().embed(tiles))
            predict = None

            def classify(self, rows):
                return two_scores(rows)

        sdata, pixels = sample(64, 64)
        sthist.tl.heatmap(sdata, Model(), tissue=False, smooth_um=0, progress=False)
        np.testing.assert_allclose(written(sdata)[:, 0, 0], two_scores(Moments().embed(pixels[None]))[0], rtol=1e-6)
        assert sdata.attrs["sthist"]["results"]["heatmap"]["encoder"] == "mine, trained"

    @pytest.mark.parametrize(
        ("model", "kwargs", "error", "message"),
        [
            (3, {}, TypeError, "model is a int"),
            (two_scores, {}, TypeError, "name what it scores"),
            (two_scores, {"classes": ["a"]}, ValueError, r"scores of shape \(\d+, 2\)"),
            (two_scores, {"classes": []}, ValueError, "classes is empty"),
            (lambda rows: rows[:, :2] * np.nan, {"classes": CLASSES}, ValueError, "gave NaN"),
            ({"a": "x"}, {"classes": ["b"]}, KeyError, "no class 'b'"),
            ({"a": []}, {}, ValueError, "needs phrases that are not blank"),
            ({}, {}, ValueError, "mapping of class to phrases that is not empty"),
            ({"a": "x"}, {}, ValueError, "'a', the only class, is 1 everywhere"),
            ({"a": "x", "b": "X"}, {}, ValueError, "share the prompt 'X'"),
            ({"a": "x", "b": "y"}, {"templates": ["of"]}, ValueError, "one {} for the phrase"),
            ({"a": "x", "b": "y"}, {"temperature": 0}, ValueError, "temperature is 0"),
            (two_scores, {"classes": CLASSES, "temperature": 1}, ValueError, "go with prompts"),
            (two_scores, {"classes": ["a", "a"]}, ValueError, "twice"),
            (
                two_scores,
                {"classes": CLASSES, "spec": TileSpec(30, 60), "stride_um": 8},
                ValueError,
                "whole number of them",
            ),
            (two_scores, {"classes": CLASSES, "stride_um": -3}, ValueError, "stride_um is -3"),
            (two_scores, {"classes": CLASSES, "smooth_um": -1}, ValueError, "smooth_um is -1"),
            (two_scores, {"classes": CLASSES, "method": "x"}, ValueError, "method is 'x'"),
            (two_scores, {"classes": CLASSES, "method": "dense"}, ValueError, "no tokens"),
            (two_scores, {"classes": CLASSES, "key_added": "he"}, ValueError, "exists"),
            (two_scores, {"classes": CLASSES, "key_added": "a b"}, ValueError, "letters, digits"),
            (two_scores, {"classes": CLASSES, "encoder": None}, TypeError, "Which encoder"),
        ],
    )
    def test_what_cannot_be_is_refused(self, model, kwargs, error, message):
        sdata, _ = sample(64, 64)
        with pytest.raises(error, match=message):
            sthist.tl.heatmap(sdata, model, **({"encoder": Moments(), "tissue": False, "progress": False} | kwargs))
        assert list(sdata.images) == ["he"]


class Tokens(Moments):
    """Each 16th of a side is a token: the mean colour of its pixels; an embedding is the mean of the tokens."""

    name = "tokens"
    can_dense = True

    def __init__(self):
        super().__init__()
        self.px_seen = 0

    def embed(self, tiles):
        self.seen += len(tiles)
        return tiles.mean((1, 2), dtype=np.float64).astype(np.float32) / 255

    def dense(self, tiles):
        self.px_seen += tiles[..., 0].size
        n, px = tiles.shape[:2]
        return tiles.reshape(n, 14, px // 14, 14, px // 14, 3).mean((2, 4), dtype=np.float64).astype(np.float32) / 255


class TestDense:
    @pytest.mark.parametrize("size", [(500, 300), (224, 224), (130, 470)])
    def test_pooled_tokens_are_the_kernels(self, size):
        """Where embeddings are means of tokens, and tokens of pixels, dense and crop agree exactly; also with holes."""
        sdata, pixels = sample(*size)
        del pixels
        ring = shapely.Point(160, 40).buffer(60).difference(shapely.Point(160, 40).buffer(25))
        for within in (None, ring):
            for mode in ("crop", "dense"):
                encoder = Tokens()
                sthist.tl.heatmap(
                    sdata,
                    lambda rows: np.tanh(rows[:, :2]),
                    encoder=encoder,
                    classes=CLASSES,
                    method=mode,
                    within=within,
                    tissue=False,
                    key_added=mode,
                    overwrite=True,
                    progress=False,
                )
            np.testing.assert_allclose(written(sdata, "dense"), written(sdata, "crop"), atol=1e-5)
            assert encoder.px_seen <= np.prod([-(-n // 224) * 224 for n in size])
            assert sdata.attrs["sthist"]["results"]["dense"]["method"] == "dense"

    def test_auto(self):
        sdata, _ = sample(128, 128)
        for encoder, mode in ((Tokens(), "dense"), (Moments(), "crop")):
            sthist.tl.heatmap(
                sdata,
                lambda rows: rows[:, 0],
                encoder=encoder,
                classes=["a"],
                method="auto",
                tissue=False,
                overwrite=True,
                progress=False,
            )
            assert sdata.attrs["sthist"]["results"]["a_heatmap"]["method"] == mode

    def test_a_transformer_sees_much_the_same(self, toy, record_property):
        """Random weights: the share of the crops' scores that pooled tokens tell is reported.

        And clearly above none.
        """
        vit, toy_mpp = Vit(), sthist.tiles.open_image(toy, "he").coarsest_mpp
        score = np.random.default_rng(0).normal(size=192)
        for mode in ("crop", "dense"):
            sthist.tl.heatmap(
                toy,
                lambda rows: (rows - rows.mean(1, keepdims=True)) @ score,
                encoder=vit,
                classes=["a"],
                method=mode,
                within=(90, 90, 314, 314),
                spec=TileSpec.from_mpp(toy_mpp, round(56 / toy_mpp)),
                stride_um=28.0,
                tissue=False,
                key_added=mode,
                progress=False,
            )
        found = np.corrcoef(written(toy, "crop").ravel(), written(toy, "dense").ravel())[0, 1]
        record_property("correlation", float(found))
        print(f"correlation of dense and crop: {found:.3f}")
        assert found > 0.3


class Vit(sthist.encoders.Encoder):
    """A tiny vision transformer of random weights, whose embedding is the mean of its tokens."""

    name = "vit"
    can_dense = True

    def __init__(self):
        import timm
        import torch

        torch.manual_seed(0)
        self.net = timm.create_model("vit_tiny_patch16_224", pretrained=False, num_classes=0).eval()

    def _tokens(self, tiles):
        import torch

        images = torch.from_numpy(np.ascontiguousarray(tiles)).permute(0, 3, 1, 2).float() / 127.5 - 1
        images = torch.nn.functional.interpolate(images, size=(224, 224), mode="bilinear")
        with torch.inference_mode():
            return self.net.forward_features(images)[:, 1:].numpy()

    def embed(self, tiles):
        return self._tokens(tiles).mean(1)

    def dense(self, tiles):
        return self._tokens(tiles).reshape(len(tiles), 14, 14, -1)


def test_on_disk_and_to_cells(backed):
    """It is there when the store is read again, and cells take their labels from it."""
    sthist.tl.heatmap(backed, two_scores, encoder=Moments(), classes=CLASSES, progress=False)
    again = sd.read_zarr(backed.path)
    np.testing.assert_array_equal(written(again), written(backed))
    assert np.isnan(written(again)).any()
    assert again.attrs["sthist"]["results"]["heatmap"]["call"] == "tl.heatmap"
    sthist.tl.transfer_labels(again, "heatmap", regions="table", key_added="seen")
    scores = again["table"].obsm["seen_scores"]
    assert list(scores.columns) == ["tumour", "B_cells"]
    assert scores.notna().all(axis=1).mean() > 0.95
    with pytest.raises(ValueError, match=r"images\['heatmap'\] exists"):
        sthist.tl.heatmap(again, two_scores, encoder=Moments(), classes=CLASSES, progress=False)


def test_samples(toy):
    sthist.tl.heatmap({"one": toy}, two_scores, encoder=Moments(), classes=CLASSES, progress=False)
    assert "heatmap" in toy.images


def test_the_built_in_encoder_measures_in_micrometres():
    """Kernels of 32 px side by side at 1 µm/px: each place has the score of its own kernel."""
    sdata = sthist.datasets.toy(size_um=160)
    names = sthist.encoders.morphology_feature_names()
    column = names.index("sqrt_nuclei_density_per_mm2")
    options = {"spec": TileSpec(32, 32), "stride_um": 32, "smooth_um": 0, "tissue": False, "progress": False}
    sthist.tl.heatmap(sdata, lambda rows: rows[:, [column]], encoder="morphology", classes=["density"], **options)
    found = np.asarray(sdata["density_heatmap"])[0]
    spec = TileSpec(size_um=32, px=32)
    place = sthist.scale.matrix_to(sdata["density_heatmap"])
    rows, columns = np.indices(found.shape).reshape(2, -1) + 0.5
    centres = (place @ [columns, rows, np.ones_like(rows)])[:2].T
    tiles = sthist.tiles.TileReader(sdata, "he", spec, fill=255).read(centres)
    expected = sthist.encoders.Morphology(spec=spec).embed(tiles)[:, column].reshape(found.shape)
    assert np.ptp(expected) > 0
    np.testing.assert_allclose(found, expected, rtol=1e-5)
