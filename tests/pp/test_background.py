"""Tiles and spots that show more glass than tissue: a slide of which every pixel is known."""

from __future__ import annotations

import logging

import geopandas as gpd
import numpy as np
import pytest
import spatialdata as sd
from shapely import Point
from spatialdata.models import Image2DModel, ShapesModel
from spatialdata.transformations import Identity, Scale

import sthist

TISSUE, GLASS, GREY, BLACK = (200, 120, 160), (240, 238, 242), (150, 148, 151), (0, 0, 0)
SIZE = 40


def slide(places, right=GLASS, mpp=1.0):
    """Tissue left of x = 200 µm and something else right of it, 400 µm wide; spots at places in µm."""
    n = int(400 / mpp)
    pixels = np.empty((3, n, n), np.uint8)
    pixels[:, :, : n // 2] = np.array(TISSUE)[:, None, None]
    pixels[:, :, n // 2 :] = np.array(right)[:, None, None]
    image = Image2DModel.parse(pixels, dims=("c", "y", "x"), transformations={"um": Scale([mpp, mpp], ("x", "y"))})
    frame = gpd.GeoDataFrame({"radius": np.full(len(places), 20.0)}, geometry=[Point(*place) for place in places])
    return sd.SpatialData(
        images={"he": image}, shapes={"spots": ShapesModel.parse(frame, transformations={"um": Identity()})}
    )


def marked(sdata, **options):
    sthist.pp.background(sdata, regions="spots", **{"size_um": SIZE, "mpp": 1.0, **options})
    obs = sdata["spots_table"].obs
    return obs["background"].tolist(), obs["background_fraction"].to_numpy()


def test_parts_are_those_of_the_pixels():
    """A square of 40 µm at x has the part (x + 20 - 200) / 40 on the glass."""
    x = np.array([100, 190, 200, 205, 216, 300])
    found, fraction = marked(slide([(each, 200) for each in x]))
    np.testing.assert_allclose(fraction, np.clip((x - 180) / 40, 0, 1))
    assert found == [False, False, False, True, True, True]  # half is not more than half


@pytest.mark.parametrize("mpp", [0.5, 2.0])
def test_pixels_of_the_image_do_not_matter(mpp):
    """Finer or coarser than it is looked at."""
    x = np.array([100, 190, 210, 300])
    _, fraction = marked(slide([(each, 200) for each in x], mpp=mpp))
    np.testing.assert_allclose(fraction, np.clip((x - 180) / 40, 0, 1), atol=0.026)


def test_what_is_filled_is_no_glass(caplog):
    """At the border of the image those pixels count that there are; beyond it nothing is known."""
    places = [(0, 200), (5, 0), (400, 200), (395, 400), (450, 200)]
    with caplog.at_level(logging.INFO, "sthist"):
        found, fraction = marked(slide(places))
    np.testing.assert_array_equal(fraction, [0, 0, 1, 1, np.nan])
    assert found == [False, False, True, True, False]
    assert "2 of the 5 regions of 'spots' are background; 1 lie outside of the image" in caplog.text


@pytest.mark.parametrize(
    ("colour", "options", "expected"),
    [
        (GLASS, {}, True),
        (GREY, {}, True),  # saturation 3 / 151
        (BLACK, {}, True),
        (GREY, {"max_saturation": 0}, False),
        (GREY, {"max_saturation": 0.0198}, False),
        (GREY, {"max_saturation": 0.0199}, True),
        (GLASS, {"max_saturation": 0}, True),
        (GLASS, {"max_saturation": 0, "min_brightness": 238}, False),
        (GLASS, {"max_saturation": 0, "min_brightness": 237}, True),
        ((255, 225, 235), {}, True),
        ((255, 215, 235), {}, False),  # pale pink
    ],
)
def test_thresholds(colour, options, expected):
    assert marked(slide([(300, 200), (100, 200)], colour), **options)[0] == [expected, False]


def test_the_largest_part():
    sdata = slide([(190, 200), (210, 200)])
    assert marked(sdata, max_background=0.2)[0] == [True, True]
    assert marked(sdata, max_background=0.8, overwrite=True)[0] == [False, False]


def test_of_laid_tiles():
    """The size is theirs; the part that is no tissue is that of their outlines."""
    sdata = slide([(1, 1)])
    outline = gpd.GeoDataFrame(geometry=[Point(200, 200).buffer(150)])
    sdata.shapes["tissue"] = ShapesModel.parse(outline, transformations={"um": Identity()})
    sthist.pp.tiles(sdata, size_um=30, px=60)
    sthist.pp.background(sdata)
    table = sdata["tiles_table"]
    x = table.obsm["spatial"][:, 0]
    np.testing.assert_allclose(table.obs["background_fraction"], np.clip((x - 185) / 30, 0, 1), atol=1 / 15)
    assert table.uns["sthist"]["background"]["spec"]["size_um"] == 30


@pytest.mark.parametrize("stored", [True, False])
def test_dropped_rows(stored, tmp_path):
    """Of the table, in one step with the columns; embedding goes on with what is left."""
    sdata = slide([(100, 100), (300, 100), (100, 300), (450, 100)])
    if stored:
        sdata.write(tmp_path / "s.zarr")
        sdata = sd.read_zarr(tmp_path / "s.zarr")
    sthist.pp.background(sdata, regions="spots", size_um=SIZE, drop=True)
    for each in (sdata, sd.read_zarr(tmp_path / "s.zarr")) if stored else (sdata,):
        table = each["spots_table"]
        assert table.obs["instance_id"].tolist() == [0, 2, 3]
        assert not table.obs["background"].any()
        assert table.uns["sthist"]["background"]["n_background"] == 1
        assert len(each["spots"]) == 4
    spec = sthist.tiles.TileSpec(40, 40)
    sthist.pp.embed(sdata, "morphology", regions="spots", spec=spec, outside="nan", progress=False)
    assert np.isfinite(sdata["spots_table"].obsm["X_morphology"]).all(axis=1).tolist() == [True, True, False]


def test_of_several_samples():
    samples = {"one": slide([(100, 200)]), "other": slide([(300, 200)])}
    sthist.pp.background(samples, regions="spots", size_um=SIZE)
    assert [each["spots_table"].obs["background"].tolist() for each in samples.values()] == [[False], [True]]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"min_brightness": 256}, "min_brightness is 256; it is from 0 to 255"),
        ({"max_saturation": -0.1}, "max_saturation is -0.1"),
        ({"max_background": np.nan}, "max_background is nan"),
        ({"mpp": 0}, "mpp is 0"),
        ({"size_um": -4}, "size_um is -4"),
        ({"drop": True, "max_background": 0.0, "max_saturation": 1.0}, "All 2 regions of 'spots' are background"),
    ],
)
def test_arguments_that_cannot_be_meant(options, message):
    sdata = slide([(300, 200), (100, 200)])
    with pytest.raises(ValueError, match=message):
        marked(sdata, **options)
    assert not sdata.tables


def test_a_slide_that_lies_elsewhere():
    with pytest.raises(ValueError, match="All 1 regions of 'spots' lie outside of the image 'he'"):
        marked(slide([(900, 900)]))
