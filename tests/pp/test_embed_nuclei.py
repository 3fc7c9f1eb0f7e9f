"""Embeddings of nuclei: 12 µm wherever nothing else is said, and channels brought to what a network expects."""

from __future__ import annotations

import geopandas as gpd
import numpy as np
import pytest
import shapely
import spatialdata as sd
import torch
from spatialdata.models import Image2DModel, ShapesModel
from spatialdata.transformations import Identity, Scale

import sthist
from sthist.encoders import Encoder
from sthist.tiles import TileReader, TileSpec


class Pixels(Encoder):
    """The pixels themselves, seen through a 4 x 4 grid of means."""

    name = "pixels"

    def __init__(self, spec=None):
        self.spec, self.provenance, self.shapes = spec, {"spec": str(spec)}, []

    def embed(self, tiles):
        self.shapes.append(tiles.shape[1:3])
        quarter = tiles.shape[1] // 4
        return tiles.reshape(len(tiles), 4, quarter, 4, quarter, 3).mean((2, 4), dtype=np.float32).reshape(-1, 48)


def slide(mpp, name="nuclei", shift=0.0, centres=((30.0, 30.0), (60.0, 45.0), (2.0, 90.0))):
    """A slide of noise, 96 µm wide, with three nuclei, the last one near its border."""
    side = round(96 / mpp)
    rng = np.random.default_rng(0)
    coarse = rng.integers(40, 200, (3, 12, 12))
    pixels = np.clip(np.kron(coarse, np.ones((side // 12, side // 12))) + shift, 0, 255).astype(np.uint8)
    image = Image2DModel.parse(
        pixels, dims=("c", "y", "x"), c_coords=["r", "g", "b"], transformations={"um": Scale([mpp, mpp], ("x", "y"))}
    )
    frame = gpd.GeoDataFrame(geometry=[shapely.Point(*each).buffer(3) for each in centres])
    return sd.SpatialData(images={"he": image}, shapes={name: ShapesModel.parse(frame, {"um": Identity()})})


@pytest.mark.parametrize("mpp", [0.25, 0.5, 0.8])
def test_nuclei_are_12_um_at_any_resolution(mpp):
    sdata = slide(mpp)
    encoder = Pixels()
    sthist.pp.embed(sdata, encoder, regions="nuclei", progress=False)
    table = sdata["nuclei_table"]
    assert table.uns["sthist"]["X_pixels"]["spec"] == {"size_um": 12.0, "px": 48}
    reader = TileReader(sdata, "he", TileSpec(12.0, 48), fill=255, allow_upsampling=True)
    np.testing.assert_array_equal(table.obsm["X_pixels"], Pixels().embed(reader.read(table.obsm["spatial"])))


def test_what_lies_outside_the_image_is_white():
    sdata = slide(0.5)
    sthist.pp.embed(sdata, Pixels(), regions="nuclei", progress=False)
    near_border = sdata["nuclei_table"].obsm["X_pixels"][2].reshape(4, 4, 3)
    assert (near_border[:, 0] == 255).all()  # from x = -4 to -1 µm
    assert (near_border[:, 2:] < 201).all()  # from x = 2 µm on


@pytest.mark.parametrize(
    ("of_encoder", "size_um"),
    [(TileSpec(112.0, 224), 12.0), (TileSpec(16.0, 64), 16.0)],
    ids=["trained on tissue", "trained on cells"],
)
def test_an_encoder_of_cells_sees_what_it_was_trained_on(of_encoder, size_um):
    sdata = slide(0.5)
    sthist.pp.embed(sdata, Pixels(of_encoder), regions="nuclei", progress=False)
    assert sdata["nuclei_table"].uns["sthist"]["X_pixels"]["spec"]["size_um"] == size_um


def test_morphology_measures_nuclei_in_um():
    sdata = slide(0.5, centres=((30.0, 30.0), (60.0, 45.0)))
    sthist.pp.embed(sdata, "morphology", regions="nuclei", progress=False)
    reader = TileReader(sdata, "he", TileSpec(12.0, 48), fill=255, allow_upsampling=True)
    tiles = reader.read(sdata["nuclei_table"].obsm["spatial"])
    expected = sthist.encoders.get("morphology").embed(tiles, mpp=0.25)
    np.testing.assert_allclose(sdata["nuclei_table"].obsm["X_morphology"], expected, rtol=1e-5)


def test_a_spec_that_is_given_counts():
    sdata = slide(0.5)
    sthist.pp.embed(sdata, Pixels(), regions="nuclei", spec=TileSpec(20.0, 40), progress=False)
    assert sdata["nuclei_table"].uns["sthist"]["X_pixels"]["spec"] == {"size_um": 20.0, "px": 40}


def test_nuclei_of_pp_nuclei_have_any_name():
    sdata = slide(0.5, name="found")
    with pytest.raises(ValueError, match="Nothing says how much tissue"):
        sthist.pp.embed(sdata, Pixels(), regions="found", progress=False)
    sdata.attrs["sthist"] = {"results": {"found": {"call": "pp.nuclei"}}}
    sthist.pp.embed(sdata, Pixels(), regions="found", progress=False)
    assert sdata["found_table"].uns["sthist"]["X_pixels"]["spec"]["px"] == 48


@pytest.mark.parametrize(("mpp", "warned"), [(0.8, False), (1.0, True), (2.0, True)])
def test_coarse_images_are_warned_of(mpp, warned, caplog):
    sthist.pp.embed(slide(mpp), Pixels(), regions="nuclei", progress=False)
    assert ("around a nucleus are" in caplog.text) == warned


class Flat(torch.nn.Module):
    """Mean and standard deviation of the channels of what a network is given."""

    def forward(self, images):
        return torch.cat([images.mean((2, 3)), images.std((2, 3))], 1)


def embedded(sdata, **options):
    encoder = sthist.encoders.get(Flat(), transform={"mean": (0.5, 0.6, 0.7), "std": (0.1, 0.2, 0.3)}, device="cpu")
    sthist.pp.embed(sdata, encoder, regions="nuclei", progress=False, **options)
    return sdata["nuclei_table"].obsm["X_Flat"]


def test_self_gives_slides_of_two_scanners_the_same_channels():
    centres = np.random.default_rng(1).uniform(10, 86, (200, 2))
    one, other = slide(0.5, centres=centres), slide(0.5, centres=centres, shift=40)
    assert np.abs(embedded(one)[:, :3] - embedded(other)[:, :3]).mean() > 0.5
    mine, theirs = (embedded(each, normalizer="self", key_added="X_Flat", overwrite=True) for each in (one, other))
    np.testing.assert_allclose(mine, theirs, atol=0.05)  # of rounding to 8 bits
    np.testing.assert_allclose(mine[:, :3].mean(0), 0, atol=0.1)


def test_self_needs_to_know_what_is_expected():
    with pytest.raises(ValueError, match="'pixels' states none"):
        sthist.pp.embed(slide(0.5), Pixels(), regions="nuclei", normalizer="self", progress=False)
    with pytest.raises(ValueError, match="normalizer is 'mine'; it is 'self'"):
        sthist.pp.embed(slide(0.5), Pixels(), regions="nuclei", normalizer="mine", progress=False)


def test_channels_get_mean_and_spread_of_the_reference():
    rng = np.random.default_rng(0)
    pixels = np.clip(rng.normal([150, 90, 140], [15, 20, 10], (1, 128, 128, 3)), 0, 255).astype(np.uint8)
    white = (255.0,) * 3
    own = sthist.pp.StainReference(
        "channels", white, mean=tuple(pixels.mean((0, 1, 2))), spread=tuple(pixels.std((0, 1, 2)))
    )
    aim = sthist.pp.StainReference("channels", white, mean=(120.0, 110.0, 100.0), spread=(30.0, 10.0, 20.0))
    out = sthist.pp.StainNormalizer(own, aim)(pixels)
    np.testing.assert_allclose(out.mean((0, 1, 2)), [120, 110, 100], atol=0.3)
    np.testing.assert_allclose(out.std((0, 1, 2)), [30, 10, 20], rtol=0.03)
    assert (sthist.pp.StainNormalizer(own, own)(pixels) == pixels).all()
