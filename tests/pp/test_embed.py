"""Embeddings: right, in order, resumable, free the second time."""

from __future__ import annotations

import functools
import shutil

import cluster
import numpy as np
import pytest
import spatialdata as sd
import torch
from PIL import Image
from spatialdata.transformations import Affine, set_transformation

import sthist
from sthist.encoders import Encoder
from sthist.encoders._encoder import own_content
from sthist.tiles import TileReader, TileSpec

SPEC = TileSpec(size_um=32, px=64)


class Quantiles(Encoder):
    """Quantiles of colour; counts the tiles that it sees and fails at one of them."""

    name = "quantiles"

    def __init__(self, spec=None, fail_at=None, levels=(0.1, 0.5, 0.9)):
        self.spec, self.levels = spec, levels
        self.provenance = {"levels": list(levels)}
        self.dim = 3 * len(levels)
        self.seen, self.fail_at = 0, fail_at

    def embed(self, tiles):
        self.seen += len(tiles)
        if self.fail_at is not None and self.seen > self.fail_at:
            msg = "the lights went out"
            raise RuntimeError(msg)
        return np.concatenate(np.quantile(tiles, self.levels, axis=(1, 2)), axis=1).astype(np.float32)


@pytest.fixture
def toy(monkeypatch):
    monkeypatch.setattr("sthist.tiles._blocks.array.RUN", 8)
    sdata = sthist.datasets.toy(size_um=300)
    sthist.pp.tissue(sdata)
    sthist.pp.tiles(sdata, size_um=32, px=64)
    return sdata


@pytest.fixture
def stored(toy, tmp_path):
    toy.write(tmp_path / "toy.zarr")
    return sd.read_zarr(tmp_path / "toy.zarr")


def shift_he(sdata, by_um):
    matrix = [[0.5, 0, by_um], [0, 0.5, 0], [0, 0, 1]]
    set_transformation(sdata["he"], Affine(matrix, ("x", "y"), ("x", "y")), "um")


def expected(sdata, places=None, image="he", encoder=None):
    tiles = TileReader(sdata, image, SPEC, fill=255).read(
        sdata["tiles_table"].obsm["spatial"] if places is None else places
    )
    return (encoder or Quantiles()).embed(tiles)


def test_rows_are_those_of_the_tiles(toy):
    sthist.pp.embed(toy, Quantiles(), progress=False)
    found = toy["tiles_table"].obsm["X_quantiles"]
    assert found.dtype == np.float32
    np.testing.assert_array_equal(found, expected(toy))
    made = toy["tiles_table"].uns["sthist"]["X_quantiles"]
    assert (made["encoder"], made["image"], made["spec"]) == ("quantiles", "he", {"size_um": 32.0, "px": 64})


def test_batches_and_devices_do_not_matter(toy):
    sthist.pp.embed(toy, Quantiles(), batch_size=3, device=["cpu", "cpu"], key_added="X_few", progress=False)
    np.testing.assert_array_equal(toy["tiles_table"].obsm["X_few"], expected(toy))


def test_features_with_names_are_told_and_read_back(stored):
    sthist.pp.embed(stored, "morphology", progress=False)
    table = sd.read_zarr(stored.path)["tiles_table"]
    features = table.uns["X_morphology_features"]
    assert list(features.index) == list(sthist.encoders.morphology_feature_names())
    assert features["meaning"].str.len().gt(0).all()
    tiles = TileReader(stored, "he", SPEC, fill=255).read(table.obsm["spatial"][:3])
    np.testing.assert_array_equal(table.obsm["X_morphology"][:3], sthist.encoders.Morphology(mpp=0.5).embed(tiles))


def test_several_encoders_stand_side_by_side(toy):
    first, second = Quantiles(), Quantiles(levels=(0.25,))
    second.name = "other"
    sthist.pp.embed(toy, [first, second], progress=False)
    found = toy["tiles_table"].obsm["X_quantiles_other"]
    np.testing.assert_array_equal(found, np.hstack([expected(toy), expected(toy, encoder=Quantiles(levels=(0.25,)))]))
    made = toy["tiles_table"].uns["sthist"]["X_quantiles_other"]
    assert made["provenance"]["order"] == ["quantiles", "other"]


@pytest.mark.parametrize("backed", [True, False])
def test_a_run_that_was_stopped_is_continued(toy, tmp_path, backed):
    if backed:
        toy.write(tmp_path / "toy.zarr")
        toy = sd.read_zarr(tmp_path / "toy.zarr")
    with pytest.raises(RuntimeError, match="the lights went out"):
        sthist.pp.embed(toy, Quantiles(fail_at=40), progress=False)
    assert "X_quantiles" not in toy["tiles_table"].obsm
    again = Quantiles()
    sthist.pp.embed(toy, again, progress=False)
    n = toy["tiles_table"].n_obs
    assert n - 40 <= again.seen <= n - 16  # two runs of eight may be under way
    np.testing.assert_array_equal(toy["tiles_table"].obsm["X_quantiles"], expected(toy))
    if backed:
        assert {path.name for path in (tmp_path / "toy.zarr" / ".sthist").iterdir()} <= {".lock"}


def test_the_second_call_is_free(stored):
    sthist.pp.embed(stored, Quantiles(), progress=False)
    again = sd.read_zarr(stored.path)
    sthist.pp.embed(again, Quantiles(fail_at=0), progress=False)


def test_other_input_or_settings_are_another_embedding(toy):
    sthist.pp.embed(toy, Quantiles(), progress=False)
    with pytest.raises(ValueError, match=r"obsm\['X_quantiles'\] already"):
        sthist.pp.embed(toy, Quantiles(levels=(0.5,)), progress=False)
    toy["he"].data = 255 - toy["he"].data
    with pytest.raises(ValueError, match=r"obsm\['X_quantiles'\] already"):
        sthist.pp.embed(toy, Quantiles(), progress=False)
    sthist.pp.embed(toy, Quantiles(), overwrite=True, progress=False)
    np.testing.assert_array_equal(toy["tiles_table"].obsm["X_quantiles"], expected(toy))


def test_a_stopped_run_of_another_image_is_not_continued(stored):
    with pytest.raises(RuntimeError):
        sthist.pp.embed(stored, Quantiles(fail_at=30), progress=False)
    shift_he(stored, 3)
    again = Quantiles()
    sthist.pp.embed(stored, again, outside="nan", progress=False)
    assert again.seen >= np.isfinite(stored["tiles_table"].obsm["X_quantiles"]).all(1).sum()


@pytest.mark.slow
def test_workers_of_a_cluster_make_the_same(stored, tmp_path):
    shutil.copytree(stored.path, tmp_path / "copy.zarr")
    other = sd.read_zarr(tmp_path / "copy.zarr")
    sthist.pp.embed(stored, "morphology", progress=False)
    with cluster.two_workers(tmp_path / "dask") as client:
        sthist.pp.embed(other, "morphology", client=client, progress=False)
    np.testing.assert_array_equal(other["tiles_table"].obsm["X_morphology"], stored["tiles_table"].obsm["X_morphology"])


def test_a_cluster_needs_an_object_on_disk(toy):
    with pytest.raises(ValueError, match="client= needs an object on disk"):
        sthist.pp.embed(toy, Quantiles(), client=object(), progress=False)


def test_nuclei_and_spots(toy):
    sthist.pp.embed(toy, Quantiles(), regions="nucleus_boundaries", spec=SPEC, progress=False)
    table = toy["nucleus_boundaries_table"]
    np.testing.assert_array_equal(table.obsm["X_quantiles"], expected(toy, table.obsm["spatial"]))
    visium = sthist.datasets.toy(kind="visium", size_um=600)
    sthist.pp.embed(visium, Quantiles(spec=SPEC), progress=False)
    places = visium["table"].obsm["spatial"]
    np.testing.assert_array_equal(visium["table"].obsm["X_quantiles"], expected(visium, places))


def test_virtual_he_is_embedded_where_there_is_no_other(toy):
    sthist.tl.virtual_he(toy, progress=False)
    del toy.images["he"]
    del toy.attrs["sthist"]["roles"]["he"]
    sthist.pp.embed(toy, Quantiles(), progress=False)
    assert toy["tiles_table"].uns["sthist"]["X_quantiles"]["image"] == "virtual_he"


def test_several_samples():
    samples = {name: sthist.datasets.toy(kind="visium", size_um=600, seed=seed) for seed, name in enumerate("ab")}
    sthist.pp.embed(samples, Quantiles(spec=SPEC), progress=False)
    for sample in samples.values():
        assert sample["table"].obsm["X_quantiles"].shape == (sample["table"].n_obs, 9)


def test_an_encoder_is_loaded_once_for_all_samples(monkeypatch):
    loaded = []

    def get(encoder, **options):
        loaded.append(encoder)
        return Quantiles(spec=SPEC)

    monkeypatch.setattr(sthist.encoders._get, "get", get)
    monkeypatch.setattr(sthist.encoders, "get", get, raising=False)
    samples = {name: sthist.datasets.toy(kind="visium", size_um=600, seed=seed) for seed, name in enumerate("ab")}
    with pytest.raises(KeyError, match="No shapes or table 'spot'"):
        sthist.pp.embed(samples, "uni", regions="spot", progress=False)
    assert loaded == []
    sthist.pp.embed(samples, "uni", progress=False)
    assert loaded == ["uni"]


def test_a_folder_of_tiles(tmp_path):
    rng = np.random.default_rng(0)
    pixels = rng.integers(0, 256, (5, 80, 80, 3), np.uint8)
    for i, tile in enumerate(pixels):
        Image.fromarray(tile).save(tmp_path / f"{i}.png")
    tiles = sthist.io.tile_folder(tmp_path, mpp=0.5, labels=None)
    sthist.pp.embed(tiles, Quantiles(), spec=TileSpec(40, 80), progress=False)
    np.testing.assert_allclose(tiles.obsm["X_quantiles"], Quantiles().embed(pixels), atol=1)
    sthist.pp.embed(tiles, Quantiles(fail_at=0), spec=TileSpec(40, 80), progress=False)
    with pytest.raises(ValueError, match="Nothing says how much tissue"):
        sthist.pp.embed(tiles, Quantiles(), key_added="X_other", progress=False)
    with pytest.raises(ValueError, match="An AnnData alone has no pixels"):
        sthist.pp.embed(sthist.datasets.toy(size_um=200)["table"], Quantiles())


def test_another_scale_is_refused_unless_it_is_meant(toy, caplog):
    trained = Quantiles(spec=TileSpec(size_um=64, px=64))
    with pytest.raises(ValueError, match=r"trained on 1 µm/px, the tiles have 0.5. Lay tiles of 32 px"):
        sthist.pp.embed(toy, trained, progress=False)
    sthist.pp.embed(toy, trained, spec=SPEC, progress=False)
    assert "trained on 1 µm/px" in caplog.text


def test_regions_outside_the_image(toy):
    shift_he(toy, 100)
    with pytest.raises(ValueError, match=r"regions of 'tiles_table' lie outside the image 'he'.*outside='nan'"):
        sthist.pp.embed(toy, Quantiles(), progress=False)
    sthist.pp.embed(toy, Quantiles(), outside="nan", progress=False)
    table = toy["tiles_table"]
    lost = np.isnan(table.obsm["X_quantiles"]).all(1)
    np.testing.assert_array_equal(lost, table.obsm["spatial"][:, 0] < 100)
    assert table.uns["sthist"]["X_quantiles"]["n_outside"] == lost.sum()


def test_regions_and_tiles_that_are_not_clear(toy):
    bare = sthist.datasets.toy(size_um=200)
    with pytest.raises(ValueError, match="there are neither tiles nor spots. Pass regions="):
        sthist.pp.embed(bare, Quantiles())
    with pytest.raises(ValueError, match="Nothing says how much tissue a tile of 'nucleus_boundaries' shows"):
        sthist.pp.embed(bare, Quantiles(), regions="nucleus_boundaries")
    sthist.pp.tiles(toy, size_um=64, px=64, key_added="larger")
    with pytest.raises(ValueError, match=r"could be any of \['tiles', 'larger'\]"):
        sthist.pp.embed(toy, Quantiles())
    with pytest.raises(KeyError, match="No shapes or table 'tile'"):
        sthist.pp.embed(toy, Quantiles(), regions="tile")
    with pytest.raises(ValueError, match="outside is 'drop'"):
        sthist.pp.embed(toy, Quantiles(), regions="tiles", outside="drop")


class Scaled:
    """An object that is called."""

    def __init__(self, factor):
        self.factor = factor

    def __call__(self, tiles):
        return tiles.mean((1, 2)) * self.factor

    def method(self, tiles):
        return tiles.mean((1, 2)) * self.factor


class ScaledModule(torch.nn.Module):
    """A network without weights."""

    def __init__(self, factor):
        super().__init__()
        self.factor = factor

    def forward(self, images):
        return images.mean((2, 3)) * self.factor


class ScaledEncoder(Encoder):
    """An encoder that says nothing of itself."""

    name = "scaled"

    def __init__(self, factor):
        self.factor = factor

    def embed(self, tiles):
        return np.float32(tiles.mean((1, 2)) * self.factor)


def scaled(tiles, factor):
    return tiles.mean((1, 2)) * factor


FACTOR = 1.0


def scaled_by_a_global(tiles):
    return tiles.mean((1, 2)) * FACTOR


def by_a_global(factor):
    globals()["FACTOR"] = factor
    return scaled_by_a_global


OWN = {
    "closure": lambda k: lambda tiles: tiles.mean((1, 2)) * k,
    "default": lambda k: lambda tiles, k=k: tiles.mean((1, 2)) * k,
    "code": lambda k: eval(f"lambda tiles: tiles.mean((1, 2)) * {k}"),
    "array": lambda k: functools.partial(scaled, factor=np.full(3, k)),
    "nested": lambda k: lambda tiles: [scaled(tiles, factor) for factor in [k]][0],
    "global": by_a_global,
    "partial": lambda k: functools.partial(scaled, factor=k),
    "object": Scaled,
    "method": lambda k: Scaled(k).method,
    "module": ScaledModule,
    "encoder": ScaledEncoder,
    "joined": lambda k: [Scaled(k), Scaled(2 * k)],
}


@pytest.mark.parametrize("kind", OWN)
def test_another_function_of_the_same_name_is_another(toy, kind):
    """Twice the function gives twice the numbers with overwrite=True, and is refused without."""
    make, found = OWN[kind], []
    for k in (1.0, 2.0):
        if found:
            with pytest.raises(ValueError, match="already"):
                sthist.pp.embed(toy, make(k), key_added="X", progress=False)
        sthist.pp.embed(toy, make(k), key_added="X", overwrite=True, progress=False)
        found.append(toy["tiles_table"].obsm["X"])
    np.testing.assert_allclose(found[1], 2 * found[0], rtol=1e-5)


@pytest.mark.parametrize("kind", [kind for kind in OWN if kind != "global"])
def test_the_same_function_made_again_is_the_same(kind):
    first, again = (sthist.encoders.get(OWN[kind](3.0)) for _ in range(2))
    assert own_content(first) == own_content(again)
    assert own_content(first) != own_content(sthist.encoders.get(OWN[kind](4.0)))


def test_what_cannot_be_told_is_always_another(tmp_path):
    with open(tmp_path / "x", "w") as file:
        encoder = sthist.encoders.get(lambda tiles: (tiles.mean((1, 2)), file)[0])
        assert own_content(encoder) != own_content(encoder)


def test_overwriting_computes_anew(toy):
    sthist.pp.embed(toy, Quantiles(), progress=False)
    again = Quantiles()
    sthist.pp.embed(toy, again, overwrite=True, progress=False)
    assert again.seen == toy["tiles_table"].n_obs


def test_another_normalizer_is_another_embedding(toy):
    for k in (1, 2):
        sthist.pp.embed(toy, Quantiles(), normalizer=lambda tiles, k=k: tiles // k, overwrite=k > 1, progress=False)
        if k == 1:
            before = toy["tiles_table"].obsm["X_quantiles"]
            with pytest.raises(ValueError, match="already"):
                sthist.pp.embed(toy, Quantiles(), normalizer=lambda tiles: tiles // 2, progress=False)
    assert (toy["tiles_table"].obsm["X_quantiles"] < 0.6 * before).all()


def test_rows_whose_shape_was_taken_away_have_no_embedding(caplog):
    """The others keep theirs, as if the rows were not there."""
    sdata = sthist.datasets.toy(size_um=200)
    sthist.pp.tissue(sdata)
    sthist.pp.tiles(sdata, size_um=32, px=32)
    sthist.pp.embed(sdata, "morphology", key_added="X_all", progress=False)
    sdata["tiles"] = sdata["tiles"].iloc[5:]
    sthist.pp.embed(sdata, "morphology", key_added="X_rest", progress=False)
    assert "5 of the" in caplog.text
    table = sdata["tiles_table"]
    kept = table.obs["instance_id"].isin(sdata["tiles"].index).to_numpy()
    assert (~kept).sum() == 5
    assert np.isnan(table.obsm["X_rest"][~kept]).all()
    np.testing.assert_allclose(table.obsm["X_rest"][kept], table.obsm["X_all"][kept], rtol=1e-5)
    table.obs["n"] = np.arange(table.n_obs, dtype=float)
    (ax,) = sthist.pl.score_map(sdata, "n")
    assert ax.get_images()[-1].get_clim()[0] == 5
