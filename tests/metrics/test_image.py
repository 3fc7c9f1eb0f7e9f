"""Image metrics against independent implementations, with what they refuse."""

from __future__ import annotations

import logging
import subprocess
import sys

import numpy as np
import pandas as pd
import pytest
import torch
from safetensors.torch import save_file
from scipy.linalg import sqrtm
from skimage.metrics import mean_squared_error, peak_signal_noise_ratio
from statsmodels.stats.multicomp import pairwise_tukeyhsd
from statsmodels.stats.oneway import anova_oneway
from torchmetrics.functional.image import structural_similarity_index_measure

from sthist.metrics import image
from sthist.metrics._pixels import to_db


@pytest.fixture(autouse=True)
def _no_caches(tmp_path, monkeypatch):
    """Whatever lies in the caches of the machine that runs the tests is not there."""
    monkeypatch.setattr(torch.hub, "_hub_dir", None)
    monkeypatch.setenv("TORCH_HOME", str(tmp_path / "torch"))


@pytest.fixture
def tiles():
    """Eight noisy tiles, neither square nor alike, and a second version of them."""
    rng = np.random.default_rng(0)
    smooth = np.kron(rng.integers(40, 230, (8, 6, 5, 3)), np.ones((1, 8, 8, 1)))
    return [np.clip(smooth + rng.normal(0, sd, smooth.shape), 0, 255).astype(np.uint8) for sd in (5, 20)]


def colours(batch):
    """Three features: mean colour."""
    return batch.double().mean((2, 3)) / 255


def corners(batch):
    """Five features that tell tiles apart."""
    x = batch.double() / 255
    return torch.stack(
        [x[:, 0, 0, 0], x[:, 1].mean((1, 2)), x[:, 2].std((1, 2)), x[:, 0].amax((1, 2)), x[:, 1, 3, 4]], 1
    )


def features(images, extractor):
    return extractor(torch.from_numpy(np.moveaxis(images, -1, 1).copy())).numpy()


# Pixels


def test_pixels_as_in_scikit_image(tiles):
    """MSE and PSNR of every tile, and of grey ones."""
    a, b = tiles
    for x, y in ((a, b), (a[..., :1], b[..., :1])):
        theirs = [mean_squared_error(p, q) for p, q in zip(x, y, strict=True)]
        np.testing.assert_allclose(image.mse(x, y), theirs, rtol=1e-12)
        theirs = [peak_signal_noise_ratio(p, q, data_range=255) for p, q in zip(x, y, strict=True)]
        np.testing.assert_allclose(image.psnr(x, y), theirs, rtol=1e-12)


def test_ssim_by_definition(tiles):
    """Every window that lies inside the tile, one by one, with the weights and constants of Wang et al. 2004."""
    a, b = (images[:2, :20, :17] for images in tiles)
    weights = np.exp(-(np.arange(-5, 6) ** 2) / (2 * 1.5**2))
    weights = np.outer(weights, weights) / weights.sum() ** 2
    c1, c2 = (0.01 * 255) ** 2, (0.03 * 255) ** 2

    def at(x, y):
        mx, my = (weights * x).sum(), (weights * y).sum()
        vx, vy = (weights * (x - mx) ** 2).sum(), (weights * (y - my) ** 2).sum()
        cov = (weights * (x - mx) * (y - my)).sum()
        return (2 * mx * my + c1) * (2 * cov + c2) / ((mx**2 + my**2 + c1) * (vx + vy + c2))

    for x, y, found in zip(a.astype(float), b.astype(float), image.ssim(a, b), strict=True):
        windows = [(np.s_[i : i + 11, j : j + 11, k]) for i in range(10) for j in range(7) for k in range(3)]
        assert found == pytest.approx(np.mean([at(x[window], y[window]) for window in windows]), abs=1e-9)


def test_ssim_as_in_torchmetrics(tiles):
    """Of whole tiles, and of grey ones, without the frame that torchmetrics makes up by reflection."""
    for x, y in (tiles, [images[..., :1] for images in tiles]):
        tensors = [torch.from_numpy(np.moveaxis(images, -1, 1).copy()).double() for images in (x, y)]
        options = {"sigma": 1.5, "reduction": None, "data_range": 255.0, "return_full_image": True}
        _, full = structural_similarity_index_measure(*tensors, **options)
        np.testing.assert_allclose(image.ssim(x, y), full[..., 5:-5, 5:-5].mean((1, 2, 3)), atol=1e-9)


def test_pixels_by_definition(tiles):
    """Equal images, the published pair of MSE and PSNR, single images, the bound by Jensen's inequality."""
    a, b = tiles
    assert image.mse(a, a).tolist() == [0] * 8
    assert image.psnr(a, a).tolist() == [np.inf] * 8
    np.testing.assert_allclose(image.ssim(a, a), 1, atol=1e-12)
    assert to_db(928.18).round(3) == 18.454
    for score in (image.mse, image.psnr, image.ssim):
        assert score(a, b).shape == (8,)
        assert score(a, b).dtype == np.float64
        assert isinstance(score(a[3], b[3]), float)
        assert score(a[3], b[3]) == pytest.approx(score(a, b)[3], rel=1e-12)
    assert image.psnr(a, b).mean() >= to_db(image.mse(a, b).mean())


@pytest.mark.parametrize("score", [image.mse, image.psnr, image.ssim, image.lpips, image.clip_similarity])
def test_images_that_cannot_be_compared(score):
    """Scale, shape, layout and emptiness are checked before anything is computed."""
    tile = np.zeros((2, 16, 16, 3), np.uint8)
    with pytest.raises(ValueError, match=r"uint8; the first is float64 of shape \(2, 16, 16, 3\).*multiply"):
        score(tile / 255, tile)
    with pytest.raises(ValueError, match="the second is float64"):
        score(tile, np.full(tile.shape, np.nan))
    with pytest.raises(ValueError, match=r"these have \(2, 16, 16, 3\) and \(2, 16, 12, 3\)"):
        score(tile, tile[:, :, :12])
    with pytest.raises(ValueError, match=r"these have \(2, 16, 16, 3\) and \(16, 16, 3\)"):
        score(tile, tile[0])
    with pytest.raises(ValueError, match=r"\(2, 16, 16\). Grey images need a last axis"):
        score(tile[..., 0], tile[..., 0])
    with pytest.raises(ValueError, match="There are no pixels in the first"):
        score(tile[:0], tile[:0])


def test_window_does_not_fit():
    """SSIM is undefined below its window."""
    tile = np.zeros((16, 10, 3), np.uint8)
    with pytest.raises(ValueError, match=r"at least 11 x 11 px; these are \(16, 10\)"):
        image.ssim(tile, tile)


# Sets


def test_fid_by_definition(tiles):
    """Fréchet distance with a matrix square root, for sets of unequal size."""
    a, b = tiles[0], tiles[1][:7]
    one, other = features(a, corners), features(b, corners)
    s, t = np.cov(one.T), np.cov(other.T)
    expected = ((one.mean(0) - other.mean(0)) ** 2).sum() + np.trace(s + t - 2 * sqrtm(s @ t).real)
    assert image.fid(a, b, encoder=corners) == pytest.approx(expected, rel=1e-5)
    assert image.fid(b, a, encoder=corners) == pytest.approx(expected, rel=1e-5)
    assert image.fid(a, a, encoder=corners) == pytest.approx(0, abs=1e-6)
    assert image.fid(a, a[::-1], encoder=corners) == pytest.approx(0, abs=1e-6)


def test_kid_by_definition(tiles):
    """The unbiased discrepancy of a cubic kernel, written as loops; subsets are seeded."""
    a, b = tiles
    one, other = features(a, corners), features(b, corners)

    def kernel(x, y):
        return (x @ y / len(x) + 1) ** 3

    n = len(one)
    within = [np.mean([kernel(x[i], x[j]) for i in range(n) for j in range(n) if i != j]) for x in (one, other)]
    across = np.mean([kernel(x, y) for x in one for y in other])
    assert image.kid(a, b, encoder=corners) == pytest.approx(sum(within) - 2 * across, rel=1e-5, abs=1e-12)
    drawn = [image.kid(a, b, encoder=corners, subset_size=4, n_subsets=5, seed=seed) for seed in (0, 0, 1)]
    assert drawn[0] == drawn[1] != drawn[2]


def test_few_images(tiles, caplog):
    """Fewer than two are refused; fewer than features are said to bias FID."""
    a, b = tiles
    for score in (image.fid, image.kid):
        with pytest.raises(ValueError, match="at least two images; these have 1 and 8"):
            score(a[:1], b, encoder=colours)
    with pytest.raises(ValueError, match="asked for are 100 of 1"):
        image.kid(a, b, encoder=colours, subset_size=1)
    with caplog.at_level(logging.WARNING, "sthist"):
        image.fid(a, b, encoder=corners)
        assert not caplog.messages
        image.fid(a[:3], b, encoder=corners)
    assert caplog.messages == ["FID of 3 images and 5 features is biased upwards: it needs more images than features."]


def test_extractor_that_is_none(tiles):
    """Features of another shape, or not finite; weights beside an extractor."""
    a, b = tiles
    with pytest.raises(ValueError, match=r"for 8 images this one gave shape \(8, 3, 48\)"):
        image.fid(a, b, encoder=lambda batch: batch.double().mean(3))
    with pytest.raises(ValueError, match=r"shape \(8, 3\), not all finite"):
        image.kid(a, b, encoder=lambda batch: colours(batch) * np.nan)
    with pytest.raises(ValueError, match="an extractor brings its own"):
        image.fid(a, b, encoder=colours, weights="some.pth")
    with pytest.raises(ValueError, match="either encoder= or weights="):
        image.clip_similarity(a, b, encoder=colours, weights="folder")


def test_extractor_is_evaluated(tiles):
    """A module in training is used without dropout, and left as it was; the user's random numbers too."""

    class Toy(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.drop, self.still = torch.nn.Dropout(), torch.nn.Dropout().eval()

        def forward(self, batch):
            return self.still(self.drop(colours(batch)))

    toy = Toy()
    assert image.fid(*tiles, encoder=toy) == image.fid(*tiles, encoder=colours)
    assert toy.training
    assert toy.drop.training
    assert not toy.still.training


def test_clip_similarity_by_definition(tiles):
    """Cosine of features, pair by pair."""
    a, b = tiles
    one, other = features(a, corners), features(b, corners)
    expected = [x @ y / np.sqrt((x @ x) * (y @ y)) for x, y in zip(one, other, strict=True)]
    np.testing.assert_allclose(image.clip_similarity(a, b, encoder=corners), expected, rtol=1e-9)
    np.testing.assert_allclose(image.clip_similarity(a, a, encoder=corners), 1, rtol=1e-12)
    assert isinstance(image.clip_similarity(a[0], b[0], encoder=corners), float)


# Weights


@pytest.fixture(scope="module")
def alexnet():
    """A backbone of seeded numbers, as torchvision names them; the classifier is left small."""
    rng = torch.Generator().manual_seed(0)
    shapes = {0: (64, 3, 11, 11), 3: (192, 64, 5, 5), 6: (384, 192, 3, 3), 8: (256, 384, 3, 3), 10: (256, 256, 3, 3)}
    state = {}
    for layer, shape in shapes.items():
        state[f"features.{layer}.weight"] = torch.randn(shape, generator=rng) / np.prod(shape[1:]) ** 0.5
        state[f"features.{layer}.bias"] = torch.randn(shape[0], generator=rng) * 0.1
    return state | {"classifier.1.weight": torch.zeros(2, 2)}


def lpips_by_hand(state, a, b):
    """LPIPS after Zhang et al. 2018, with the linear heads that torchmetrics ships."""
    from importlib.resources import files

    path = files("torchmetrics.functional.image") / "lpips_models" / "alex.pth"
    heads = torch.load(str(path), map_location="cpu", weights_only=True)

    def layers(images):
        x = torch.from_numpy(np.moveaxis(images, -1, 1).copy()).float() / 127.5 - 1
        x = (x - torch.tensor([-0.030, -0.088, -0.188])[:, None, None]) / torch.tensor([0.458, 0.448, 0.450])[
            :, None, None
        ]
        for layer, stride, padding in ((0, 4, 2), (3, 1, 2), (6, 1, 1), (8, 1, 1), (10, 1, 1)):
            if layer in {3, 6}:
                x = torch.nn.functional.max_pool2d(x, 3, 2)
            weight, bias = state[f"features.{layer}.weight"], state[f"features.{layer}.bias"]
            x = torch.relu(torch.nn.functional.conv2d(x, weight, bias, stride=stride, padding=padding))
            yield x / torch.sqrt((x**2).sum(1, keepdim=True) + 1e-8)

    total = torch.zeros(len(a))
    for k, (x, y) in enumerate(zip(layers(a), layers(b), strict=True)):
        total += ((x - y) ** 2 * heads[f"lin{k}.model.1.weight"]).sum(1).mean((1, 2))
    return total.numpy()


def test_lpips_by_hand(tiles, alexnet, tmp_path):
    """From a torch file, a safetensors file, and the folder of torch hub."""
    a, b = tiles
    expected = lpips_by_hand(alexnet, a, b)
    path = tmp_path / "alexnet.pth"
    torch.save(alexnet, path)
    before = torch.random.get_rng_state()
    np.testing.assert_allclose(image.lpips(a, b, net="alex", weights=path), expected, rtol=1e-5)
    assert torch.equal(torch.random.get_rng_state(), before)
    assert image.lpips(a[0], a[0], net="alex", weights=path) == 0
    found = tmp_path / "torch" / "hub" / "checkpoints" / "alexnet-owt-7be5be79.pth"
    found.parent.mkdir(parents=True)
    path.rename(found)
    np.testing.assert_allclose(image.lpips(a, b, net="alex"), expected, rtol=1e-5)
    plain = {name.removeprefix("features."): value for name, value in alexnet.items() if "features" in name}
    save_file(plain, tmp_path / "alexnet.safetensors")
    frame = image.compare(
        a, b, metrics=["lpips"], options={"lpips": {"net": "alex", "weights": tmp_path / "alexnet.safetensors"}}
    )
    np.testing.assert_allclose(frame.query("method == 'virtual'")["lpips"], expected, rtol=1e-5)
    with pytest.raises(ValueError, match=r"at least 31 x 31 px; these are \(30, 40\)"):
        image.lpips(a[:, :30], b[:, :30], net="alex")


def test_weights_that_do_not_fit(tiles, alexnet, tmp_path):
    """Nothing is filled in, and nothing left over."""
    path = tmp_path / "weights.pth"

    def refused(content, match):
        torch.save(content, path)
        with pytest.raises(ValueError, match=match):
            image.lpips(*tiles, net="alex", weights=path)

    lacking = {name: value for name, value in alexnet.items() if name != "features.3.bias"}
    refused(lacking, r"missing 1: slice2.3.bias \(192,\)")
    refused(alexnet | {"features.99.weight": torch.zeros(1)}, r"not of this network 1: 99.weight \(1,\)")
    refused(
        alexnet | {"features.0.bias": torch.zeros(3)},
        r"tensors of other shapes 1: .*\(3,\) in the file, \(64,\) in the network",
    )
    refused([1, 2], "holds no weights: .* not a list")
    refused({"a": 1}, "holds no weights")
    refused(subprocess.run, "was not read: it is a pickle of more than tensors")
    path.write_bytes(b"nothing")
    with pytest.raises(ValueError, match="was not read: .* or is damaged"):
        image.lpips(*tiles, net="alex", weights=path)
    (tmp_path / "weights.safetensors").write_bytes(b"nothing at all")
    with pytest.raises(ValueError, match="cannot be read as weights"):
        image.lpips(*tiles, net="alex", weights=tmp_path / "weights.safetensors")
    with pytest.raises(FileNotFoundError, match="no weights file"):
        image.fid(*tiles, weights=tmp_path / "other.pth")
    with pytest.raises(FileNotFoundError, match="There is no folder"):
        image.clip_similarity(*tiles, weights=tmp_path / "clip")
    with pytest.raises(ValueError, match=r"one of \['vgg', 'alex'\], not 'squeeze'"):
        image.lpips(*tiles, net="squeeze")


def test_unavailable(tiles, tmp_path, monkeypatch):
    """Without weights there is no number, and the message says what to fetch and where to put it."""
    folder = str(tmp_path / "torch" / "hub" / "checkpoints")
    for score, name in (
        (image.lpips, "vgg16-397923af.pth"),
        (image.fid, "weights-inception-2015-12-05-6726825d.pth"),
        (image.kid, "weights-inception-2015-12-05-6726825d.pth"),
    ):
        with pytest.raises(image.MetricUnavailable) as caught:
            score(*tiles)
        for part in (name, folder, "https://", "weights=", "Nothing is downloaded"):
            assert part in str(caught.value)
    with pytest.raises(image.MetricUnavailable, match="needs the model 'nobody/nothing'.*weights=.*encoder="):
        image.clip_similarity(*tiles, encoder="nobody/nothing")
    monkeypatch.setitem(sys.modules, "torch_fidelity", None)
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    (tmp_path / "inception.pth").touch()
    with pytest.raises(image.MetricUnavailable, match="torch-fidelity, which is not installed"):
        image.fid(*tiles, weights=tmp_path / "inception.pth")


def test_clip_folder(tiles, tmp_path):
    """A CLIP model that transformers wrote, against itself by hand; a broken one is refused."""
    from transformers import CLIPConfig, CLIPImageProcessor, CLIPModel, CLIPVisionModelWithProjection

    small = {"hidden_size": 16, "intermediate_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2}
    config = CLIPConfig(
        text_config=small | {"vocab_size": 50},
        vision_config=small | {"image_size": 32, "patch_size": 8, "projection_dim": 8},
        projection_dim=8,
    )
    torch.manual_seed(0)
    model = CLIPModel(config).eval()
    model.save_pretrained(tmp_path / "clip")
    processor = CLIPImageProcessor(size={"shortest_edge": 32}, crop_size={"height": 32, "width": 32})
    processor.save_pretrained(tmp_path / "clip")
    a, b = tiles
    tower = CLIPVisionModelWithProjection.from_pretrained(tmp_path / "clip")
    with torch.inference_mode():
        x, y = (
            tower(
                **processor(images=[torch.from_numpy(np.moveaxis(tile, -1, 0)) for tile in images], return_tensors="pt")
            )
            for images in (a, b)
        )
    expected = torch.nn.functional.cosine_similarity(x.image_embeds, y.image_embeds).numpy()
    np.testing.assert_allclose(image.clip_similarity(a, b, weights=tmp_path / "clip"), expected, rtol=1e-5)
    np.testing.assert_allclose(image.clip_similarity(a, b, encoder=str(tmp_path / "clip")), expected, rtol=1e-5)
    state = {name: value for name, value in model.state_dict().items() if "visual_projection" not in name}
    save_file(state, tmp_path / "clip" / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(ValueError, match="lacks 1 weights of the image tower"):
        image.clip_similarity(a, b, weights=tmp_path / "clip")
    state["visual_projection.weight"] = torch.zeros(9, 16)
    save_file(state, tmp_path / "clip" / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(ValueError, match="does not fit CLIP"):
        image.clip_similarity(a, b, weights=tmp_path / "clip")
    (tmp_path / "clip" / "config.json").write_text('{"model_type": "bert"}')
    with pytest.raises(ValueError, match="of type 'bert'"):
        image.clip_similarity(a, b, weights=tmp_path / "clip")


# Tables


def test_compare(tiles):
    """One row per method and tile, the same numbers as the functions give; no tile is its own partner."""
    a, b = tiles
    classes = pd.Categorical(list("sssstttt"), ["t", "s", "unused"])
    frame = image.compare(a, b, classes=classes)
    assert list(frame.columns) == ["method", "tile", "class", "mse", "psnr", "ssim"]
    assert frame["method"].unique().tolist() == ["virtual", "mean colour", "shuffled"]
    for method, part in frame.groupby("method"):
        assert part["tile"].tolist() == list(range(8)), method
        assert part["class"].tolist() == list(classes)
    first = frame[:8]
    for name, score in (("mse", image.mse), ("psnr", image.psnr), ("ssim", image.ssim)):
        np.testing.assert_array_equal(first[name], score(a, b))
    mean = np.broadcast_to(np.round(b.mean((0, 1, 2))).astype(np.uint8), b.shape)
    np.testing.assert_allclose(frame[8:16]["ssim"], image.ssim(mean, b))
    shuffled = frame[16:]["mse"].to_numpy()
    partners = [
        np.flatnonzero([image.mse(x, y) == value for x in a]).tolist() for y, value in zip(b, shuffled, strict=True)
    ]
    assert all(len(found) == 1 and found[0] != i for i, found in enumerate(partners))
    assert sorted(sum(partners, [])) == list(range(8))
    pd.testing.assert_frame_equal(image.compare(a, b, classes=classes, seed=0), frame)
    other = image.compare(a, b, nulls=False, metrics="mse")
    assert list(other.columns) == ["method", "tile", "mse"]
    assert len(other) == 8


def test_summarize(tiles):
    """Mean, sd and n by class and method, in the order of classes; sets as their functions give them."""
    a, b = tiles
    classes = pd.Categorical(["s"] * 3 + ["t"] * 4 + [None], ["t", "s"])
    metrics = ["ssim", "clip", "fid", "kid"]
    frame = image.compare(
        a, b, classes=classes, metrics=metrics, encoder=colours, options={"clip": {"encoder": corners}}
    )
    table = image.summarize(frame)
    assert list(table.columns) == ["class", "method", "n", "ssim", "ssim_sd", "clip", "clip_sd", "fid", "kid"]
    assert table["class"].tolist() == ["t"] * 3 + ["s"] * 3
    assert table["method"].tolist() == ["virtual", "mean colour", "shuffled"] * 2
    row = table.query("`class` == 's' and method == 'virtual'").iloc[0]
    expected = image.ssim(a[:3], b[:3])
    assert row["n"] == 3
    assert row["ssim"] == pytest.approx(expected.mean())
    assert row["ssim_sd"] == pytest.approx(expected.std(ddof=1))
    assert row["clip"] == pytest.approx(image.clip_similarity(a[:3], b[:3], encoder=corners).mean())
    assert row["fid"] == pytest.approx(image.fid(a[:3], b[:3], encoder=colours), abs=1e-9)
    assert row["kid"] == pytest.approx(image.kid(a[:3], b[:3], encoder=colours), abs=1e-9)
    every = image.summarize(frame, groupby=None).set_index("method")
    assert every.loc["virtual", "n"] == 8
    assert every.loc["virtual", "fid"] == pytest.approx(image.fid(a, b, encoder=colours), abs=1e-9)
    assert every.loc["shuffled", "fid"] == pytest.approx(every.loc["virtual", "fid"], abs=1e-9)
    assert every.loc["mean colour", "ssim"] < every.loc["virtual", "ssim"]


def test_scores_of_a_set_stay_with_their_tiles(tiles):
    """Another grouping into classes of the same sizes has not been scored."""
    a, b = tiles
    classes = ["x"] * 3 + ["y"] * (len(a) - 3)
    frame = image.compare(a, b, classes=classes, metrics=["fid"], encoder=colours, nulls=False)
    assert isinstance(image.summarize(frame)["fid"].iloc[0], float)
    turned = frame.assign(**{"class": list(reversed(classes))})
    turned.attrs = frame.attrs
    assert image.summarize(turned)["fid"].tolist() == ["not available"] * 2


def test_sets_belong_to_their_tiles(tiles):
    """Of a part of the tiles, of another grouping, and of a class of one tile there is no FID."""
    frame = image.compare(*tiles, classes=["s"] + ["t"] * 7, metrics=["mse", "fid"], encoder=colours, nulls=False)
    table = image.summarize(frame).set_index("class")
    assert table.loc["s", "fid"] == "not available"
    assert table.loc["t", "fid"] >= 0
    assert "at least two tiles" in table.attrs["not_available"]["fid"]
    assert image.summarize(frame[frame["tile"] > 2], groupby=None)["fid"].tolist() == ["not available"]
    frame["half"] = frame["tile"] % 2
    assert image.summarize(frame, groupby="half")["fid"].tolist() == ["not available"] * 2


def test_not_available(tiles, caplog):
    """A metric without weights is nan in the table, words in the summary, and said once; the others are there."""
    with caplog.at_level(logging.WARNING, "sthist"):
        frame = image.compare(*tiles, classes=list("sssstttt"), metrics=["ssim", "lpips", "fid", "kid"])
    assert [message.split(" is not available")[0] for message in caplog.messages] == ["lpips", "fid", "kid"]
    assert frame["lpips"].isna().all()
    assert frame["ssim"].notna().all()
    table = image.summarize(frame)
    for name in ("lpips", "lpips_sd", "fid", "kid"):
        assert set(table[name]) == {"not available"}
    assert "vgg16-397923af.pth" in table.attrs["not_available"]["lpips"]
    assert set(frame.attrs["not_available"]) == {"lpips", "fid", "kid"}
    with pytest.raises(ValueError, match="lpips is not finite in 8 of 8 tiles. LPIPS .* needs the weights"):
        image.region_tests(frame, "lpips")


def test_tables_refuse(tiles):
    """Unknown metrics and options, classes of another length, a single tile without a partner, missing columns."""
    a, b = tiles
    with pytest.raises(ValueError, match="There is no metric 'rmse'"):
        image.compare(a, b, metrics=["rmse"])
    with pytest.raises(ValueError, match="There is no metric 'lpipps'"):
        image.compare(a, b, options={"lpipps": {}})
    with pytest.raises(TypeError, match="unexpected keyword argument 'peak'"):
        image.compare(a, b, options={"psnr": {"peak": 1}})
    with pytest.raises(ValueError, match="there are 8 tiles and 2 values"):
        image.compare(a, b, classes=["s", "t"])
    with pytest.raises(ValueError, match="nulls=False"):
        image.compare(a[0], b[0])
    assert len(image.compare(a[0], b[0], nulls=False)) == 1
    with pytest.raises(ValueError, match="no column 'class'.*groupby=None"):
        image.summarize(image.compare(a, b))


def test_equal_images_in_the_summary(tiles):
    """An infinite PSNR stays infinite."""
    table = image.summarize(image.compare(tiles[0], tiles[0], nulls=False), groupby=None)
    assert table.loc[0, "psnr"] == np.inf
    assert np.isnan(table.loc[0, "psnr_sd"])


# Tests between regions


@pytest.fixture
def scored():
    rng = np.random.default_rng(1)
    sizes = {"stroma": (30, 0.60), "DCIS": (20, 0.58), "invasive": (25, 0.55)}
    parts = [pd.DataFrame({"class": name, "ssim": rng.normal(mean, 0.03, n)}) for name, (n, mean) in sizes.items()]
    return pd.concat(parts, ignore_index=True)


def test_region_tests_as_in_statsmodels(scored):
    """ANOVA and Tukey's test with unequal numbers of tiles."""
    tests = image.region_tests(scored, "ssim")
    anova = anova_oneway(scored["ssim"], scored["class"], use_var="equal")
    assert (tests.metric, tests.f, tests.p) == ("ssim", pytest.approx(anova.statistic), pytest.approx(anova.pvalue))
    theirs = pairwise_tukeyhsd(scored["ssim"], scored["class"])
    assert list(zip(tests.pairs["a"], tests.pairs["b"], strict=True)) == [
        ("DCIS", "invasive"),
        ("DCIS", "stroma"),
        ("invasive", "stroma"),
    ]
    np.testing.assert_allclose(tests.pairs["difference"], -theirs.meandiffs, rtol=1e-9)
    np.testing.assert_allclose(tests.pairs["p"], theirs.pvalues, atol=1e-5)
    np.testing.assert_allclose(tests.pairs[["low", "high"]], -theirs.confint[:, ::-1], atol=1e-5)


def test_region_tests_of_one_method(scored):
    """Other methods and tiles without a class do not count."""
    both = pd.concat([scored.assign(method="virtual"), scored.assign(method="shuffled", ssim=0.0)], ignore_index=True)
    both.loc[len(both)] = {"class": None, "ssim": 9.0, "method": "virtual"}
    assert image.region_tests(both, "ssim").p == image.region_tests(scored, "ssim").p
    with pytest.raises(ValueError, match="no method 'gan'"):
        image.region_tests(both, "ssim", method="gan")


def test_regions_that_cannot_be_tested(scored):
    """Each with its class or its reason."""
    with pytest.raises(ValueError, match=r"needs at least two; 'class' has \['stroma'\]"):
        image.region_tests(scored[scored["class"] == "stroma"], "ssim")
    with pytest.raises(ValueError, match="Class 'invasive' has one tile only"):
        image.region_tests(scored[:51], "ssim")
    with pytest.raises(ValueError, match="psnr is not finite in 1 of 75 tiles. PSNR of equal images is infinite"):
        image.region_tests(scored.assign(psnr=np.r_[np.inf, np.arange(74)]), "psnr")
    with pytest.raises(ValueError, match="does not vary"):
        image.region_tests(scored.assign(ssim=1.0), "ssim")
    with pytest.raises(ValueError, match="no score 'mse'"):
        image.region_tests(scored, "mse")
    with pytest.raises(ValueError, match="no column 'region'"):
        image.region_tests(scored, "ssim", groupby="region")


# Seams


def test_seam_score_by_loops():
    """Both directions pooled, seams beside seams left out, edges of the image respected; colours are averaged."""
    pixels = np.random.default_rng(0).integers(0, 256, (40, 50, 3)).astype(np.uint8)
    grey = pixels.mean(-1)
    xs, ys, reach = [3, 20, 24, 47], [10], 6
    at, beside = [], []
    for seams, lines in ((xs, grey.T), (ys, grey)):
        near = {s + d for s in seams for d in range(-reach, reach + 1)} - set(seams)
        at += [np.abs(lines[s] - lines[s - 1]) for s in seams]
        beside += [np.abs(lines[s] - lines[s - 1]) for s in near if 1 <= s < len(lines)]
    expected = np.concatenate(at).mean() / np.concatenate(beside).mean()
    assert image.seam_score(pixels, xs, ys, reach=reach) == pytest.approx(expected, rel=1e-12)


def test_seam_score_of_plain_images():
    """Nothing to see is 1; a step between constant tiles is infinitely more than what is beside it."""
    flat = np.full((30, 30), 7, np.uint8)
    assert image.seam_score(flat, [15], [15]) == 1
    flat[:, 15:] = 9
    assert image.seam_score(flat, seams_x=[15]) == np.inf
    assert image.seam_score(flat, seams_y=np.array([15])) == 1


def test_seams_that_are_none():
    """Outside the image, not named, all lines, not integers; pixels that are none."""
    pixels = np.random.default_rng(0).random((20, 30))
    with pytest.raises(ValueError, match=r"A seam of x lies between 1 and 29; \[0, 30\] do not"):
        image.seam_score(pixels, [0, 4, 30])
    with pytest.raises(ValueError, match="A seam of y lies between 1 and 19"):
        image.seam_score(pixels, seams_y=[20])
    with pytest.raises(ValueError, match="has to name a seam"):
        image.seam_score(pixels)
    with pytest.raises(ValueError, match="Every line is a seam"):
        image.seam_score(pixels, range(1, 30))
    with pytest.raises(ValueError, match="reach is at least 1"):
        image.seam_score(pixels, [5], reach=0)
    with pytest.raises(TypeError):
        image.seam_score(pixels, [5.5])
    with pytest.raises(ValueError, match="not finite"):
        image.seam_score(np.where(pixels > 0.9, np.nan, pixels), [5])
    with pytest.raises(ValueError, match=r"has \(3,\)"):
        image.seam_score(np.zeros(3), [1])


# Nuclei


@pytest.fixture
def nuclei():
    """Blobs that lie close, and a second version: moved, some lost, some of its own, other numbers."""
    rng = np.random.default_rng(3)
    y, x = np.mgrid[:90, :110]
    a, b = np.zeros((2, 90, 110), np.int32)
    for k, (cy, cx, r) in enumerate(rng.uniform([0, 0, 3], [90, 110, 8], (40, 3))):
        dy, dx = rng.normal(0, 2, 2)
        if k % 7:
            a[(y - cy) ** 2 + (x - cx) ** 2 < r**2] = 1000 - k
        if k % 5:
            b[(y - cy - dy) ** 2 + (x - cx - dx) ** 2 < r**2] = 3 * k + 1
    return a, b


@pytest.mark.parametrize("min_iou", [0.0, 0.2, 0.5, 0.7])
def test_nuclei_by_loops(nuclei, min_iou):
    """Counts, overlap and shift, with the best matching of every group of overlapping nuclei."""
    from scipy.optimize import linear_sum_assignment

    a, b = nuclei
    ids_a, ids_b = (sorted(set(labels.ravel().tolist()) - {0}) for labels in nuclei)
    iou = np.array([[((a == i) & (b == j)).sum() / ((a == i) | (b == j)).sum() for j in ids_b] for i in ids_a])
    gain = np.where(iou > min_iou, 100 + iou, 0)
    rows, columns = linear_sum_assignment(gain, maximize=True)
    pairs = [(r, c) for r, c in zip(rows, columns, strict=True) if iou[r, c] > min_iou]
    shifts = [
        0.5 * np.linalg.norm(np.argwhere(a == ids_a[r]).mean(0) - np.argwhere(b == ids_b[c]).mean(0)) for r, c in pairs
    ]
    found = image.nucleus_preservation(a, b, mpp=0.5, min_iou=min_iou)
    assert (found.n_a, found.n_b, found.n_matched) == (len(ids_a), len(ids_b), len(pairs))
    assert found.precision == pytest.approx(len(pairs) / len(ids_a))
    assert found.recall == pytest.approx(len(pairs) / len(ids_b))
    assert found.f1 == pytest.approx(2 / (1 / found.precision + 1 / found.recall))
    assert found.mean_iou == pytest.approx(np.mean([iou[r, c] for r, c in pairs]))
    assert found.mean_shift_um == pytest.approx(np.mean(shifts))
    assert found.median_shift_um == pytest.approx(np.median(shifts))


def test_nuclei_alone(nuclei):
    """The same image, renumbered; none in one, in the other, in both; fields as of a dict."""
    a, _ = nuclei
    same = image.nucleus_preservation(a, a * 2, mpp=1)
    assert (same.f1, same.mean_iou, same.mean_shift_um) == (1, 1, 0)
    nothing = np.zeros_like(a)
    for min_iou in (0.5, 0.1):
        lost = image.nucleus_preservation(nothing, a, mpp=1, min_iou=min_iou)
        assert (lost.n_matched, lost.recall, lost.f1) == (0, 0, 0)
        assert np.isnan([lost.precision, lost.mean_iou, lost.mean_shift_um, lost.median_shift_um]).all()
        made_up = image.nucleus_preservation(a, nothing, mpp=1, min_iou=min_iou)
        assert (made_up.precision, made_up.f1) == (0, 0)
        neither = image.nucleus_preservation(nothing, nothing, mpp=1, min_iou=min_iou)
        assert np.isnan([neither.precision, neither.recall, neither.f1]).all()
    assert pd.Series(dict(same))["f1"] == 1
    with pytest.raises(KeyError):
        same["keys"]


def test_half_is_not_more_than_half():
    """An overlap of exactly the threshold does not match: both halves of a nucleus would."""
    whole, halves = np.ones((2, 4), int), np.repeat([[1, 2]], 2, 1).repeat(2, 0)
    assert image.nucleus_preservation(halves, whole, mpp=1).n_matched == 0
    assert image.nucleus_preservation(halves, whole, mpp=1, min_iou=0.4).n_matched == 1


def test_labels_that_are_none(nuclei):
    """Shape, type, sign, scale."""
    a, b = nuclei
    with pytest.raises(ValueError, match=r"these have \(90, 110\) and \(90, 100\)"):
        image.nucleus_preservation(a, b[:, :100], mpp=1)
    for labels in (a.astype(float), a > 0, a[None]):
        with pytest.raises(ValueError, match="labels_b is an image"):
            image.nucleus_preservation(a, labels, mpp=1)
    with pytest.raises(ValueError, match="labels below 0"):
        image.nucleus_preservation(-a, b, mpp=1)
    for arguments in ({"mpp": 0}, {"mpp": np.nan}, {"mpp": 1, "min_iou": 1}, {"mpp": 1, "min_iou": -0.1}):
        with pytest.raises(ValueError, match="mpp is µm per pixel"):
            image.nucleus_preservation(a, b, **arguments)


def test_import_is_light():
    """Nothing heavy before a score is asked for."""
    code = (
        "import sys; import sthist.metrics; from sthist.metrics import image; heavy = {'torch', 'torchmetrics', "
        "'sklearn', 'matplotlib', 'scanpy', 'transformers'}; sys.exit(', '.join(heavy & set(sys.modules)) or 0)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
