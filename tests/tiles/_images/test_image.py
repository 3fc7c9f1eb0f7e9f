"""An image that is opened: what is known of it, by key, by role, and in several elements."""

from __future__ import annotations

import numpy as np
import pytest
import spatialdata as sd
from spatialdata.models import Image2DModel
from spatialdata.transformations import Affine

import sthist
from sthist.tiles import TileReader, TileSpec, open_image, read_region


def element(matrix, *, channels=("DAPI", "PolyT"), dtype=np.uint16, size=(40, 60), scale_factors=None):
    pixels = np.random.default_rng(0).integers(0, 200, (len(channels), *size)).astype(dtype)
    transformations = {} if matrix is None else {"um": Affine(matrix, ("x", "y"), ("x", "y"))}
    return Image2DModel.parse(
        pixels,
        dims=("c", "y", "x"),
        c_coords=list(channels),
        scale_factors=scale_factors,
        transformations=transformations or None,
    )


def placed(x=0.0, mpp=(0.5, 0.5)):
    return np.array([[mpp[0], 0, x], [0, mpp[1], 0], [0, 0, 1]])


def test_what_is_known_of_an_image():
    sdata = sd.SpatialData(images={"stain": element(placed(7.0, (0.5, 0.25)), scale_factors=[2])})
    image = open_image(sdata, "stain")
    assert image.key == "stain"
    assert image.keys == ("stain",)
    assert image.channels == ("DAPI", "PolyT")
    assert image.dtype == np.uint16
    assert not image.is_rgb
    assert image.mpp == (0.5, 0.25)
    assert (image.finest_mpp, image.coarsest_mpp) == (0.25, 0.5)
    assert image.extent_um == (7.0, 0.0, 37.0, 10.0)
    assert [level.factor for level in image.fields[0].levels] == [(1.0, 1.0), (2.0, 2.0)]
    np.testing.assert_array_equal(image.fields[0].to_um, placed(7.0, (0.5, 0.25)))


def test_fields_of_view_are_one_image():
    images = {"left": element(placed()), "right": element(placed(30.0, (0.4, 0.4)))}
    image = open_image(sd.SpatialData(images=images), ["left", "right"])
    assert image.keys == ("left", "right")
    assert image.key == "left"
    assert image.extent_um == (0.0, 0.0, 54.0, 20.0)
    assert (image.finest_mpp, image.coarsest_mpp) == (0.4, 0.5)
    images["right"] = element(placed(30.0), dtype=np.uint8)
    with pytest.raises(ValueError, match="'left' and 'right' do not tile one plane"):
        open_image(sd.SpatialData(images=images), ["left", "right"])


def test_a_role_stands_for_its_image(toy):
    images = {"slide_he": element(placed(), channels=("r", "g", "b"), dtype=np.uint8), "stain": element(placed())}
    sdata = sd.SpatialData(images=images)
    he, nuclear = open_image(sdata, "he"), open_image(sdata, "nuclear")
    assert he.key == "slide_he"
    assert he.is_rgb
    assert nuclear.key == "stain"
    assert nuclear.channels == ("DAPI",)
    assert open_image(sdata, "nuclear", channels=["PolyT"]).channels == ("PolyT",)
    assert open_image(toy, "he").key == "he"


def test_channels_are_chosen_of_what_is_open():
    sdata = sd.SpatialData(images={"stain": element(placed())})
    image = open_image(sdata, "stain")
    spec, centre = TileSpec(10, 20), [[12.0, 9.0]]
    poly_t = TileReader.from_image(image.select(["PolyT"]), spec).read(centre)
    np.testing.assert_array_equal(poly_t, TileReader(sdata, "stain", spec, channels=["PolyT"]).read(centre))
    both = TileReader.from_image(image.select(["PolyT", "DAPI"]), spec).read(centre)
    np.testing.assert_array_equal(both[..., 1], TileReader.from_image(image, spec).read(centre)[..., 0])
    assert image.select(["PolyT", "DAPI"]).select(["DAPI"]).channels == ("DAPI",)
    with pytest.raises(KeyError, match="has no channel 'CD45'"):
        image.select(["CD45"])
    with pytest.raises(ValueError, match="no plane z=1"):
        image.select(z=1)


def test_what_cannot_be_opened():
    sdata = sd.SpatialData(images={"stain": element(placed()), "loose": element(None)})
    with pytest.raises(KeyError, match="No image 'stian'.*Did you mean 'stain'"):
        open_image(sdata, "stian")
    with pytest.raises(ValueError, match="'loose' has no scale"):
        open_image(sdata, "loose")
    sthist.scale.record_mpp(sdata, "stain", "OME metadata", 0.6)
    for call in (open_image, lambda *args: read_region(*args, (0, 0, 10, 10), 1.0)):
        with pytest.raises(ValueError, match="0.5 µm/px .* 0.6 µm/px"):
            call(sdata, "stain")
