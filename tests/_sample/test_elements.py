"""Finding elements by role."""

from __future__ import annotations

import numpy as np
import pytest
import spatialdata as sd
from hypothesis import given
from hypothesis import strategies as st
from spatialdata.models import Image2DModel

import sthist
from sthist import _sample


def image(channels=1, names=None):
    return Image2DModel.parse(np.zeros((channels, 8, 8), np.uint8), dims=("c", "y", "x"), c_coords=names)


@given(st.text(min_size=1, max_size=30))
def test_safe_key_is_accepted_by_spatialdata(name):
    """Whatever the text, what comes out may name a column."""
    from re import fullmatch

    assert fullmatch(r"[A-Za-z0-9_.-]+", _sample.safe_key(name))


@pytest.mark.parametrize(
    ("images", "found"),
    [
        ({"morphology_focus": image()}, "morphology_focus"),
        (
            {"morphology_focus": image(4, ["DAPI", "ATP1A1/CD45/E-Cadherin", "18S", "AlphaSMA/Vimentin"])},
            "morphology_focus",
        ),
        ({"mosaic": image(2, ["PolyT", "DAPI"]), "he_image": image(3)}, "mosaic"),
        ({"my_hoechst": image(), "he": image(3)}, "my_hoechst"),
    ],
)
def test_nuclear_stain_is_recognised(images, found):
    """By channel, else by name."""
    elements = _sample.find_high_res(sd.SpatialData(images=images))
    assert elements.nuclear == (found,)


def test_channels_of_cytoplasm():
    """Membrane, poly-T and ribosomal channels beside the nuclear one; other markers are not taken for it."""
    names = ["DAPI", "ATP1A1/CD45/E-Cadherin", "18S", "AlphaSMA/Vimentin", "mystery"]
    elements = _sample.find_high_res(sd.SpatialData(images={"stain": image(5, names)}))
    assert elements.nuclear_channel == "DAPI"
    assert elements.cytoplasm_channels == tuple(names[1:4])


def test_unclear_channel():
    """Two nuclear channels, or none."""
    with pytest.raises(ValueError, match="Which channel of image 'stain'"):
        _sample.find_high_res(sd.SpatialData(images={"stain": image(2, ["DAPI", "Hoechst"])}))
    with pytest.raises(ValueError, match="Which channel of image 'dapi'"):
        _sample.find_high_res(sd.SpatialData(images={"dapi": image(2, ["a", "b"])}))


def test_fields_of_view_must_match():
    """Other channels in one of them."""
    sdata = sd.SpatialData(images={"a": image(1, ["DAPI"]), "b": image(1, ["Hoechst"])})
    with pytest.raises(ValueError, match="have different channels: 'a' has"):
        _sample.find_high_res(sdata, image=["a", "b"])


@pytest.mark.parametrize("name", ["he", "HE", "he_image", "sample_he", "H_and_E", "hematoxylin_eosin"])
def test_he_is_recognised(name):
    """By its name; words that contain the letters are not meant."""
    sdata = sd.SpatialData(images={name: image(3), "the_other": image(3)})
    assert _sample.find_he(sdata) == name


def test_results_are_not_taken_for_measurements():
    """A virtual image of whatever name is no H&E, and fields of view are no samples."""
    sdata = sd.SpatialData(images={"he": image(3), "my_he": image(3)})
    sdata.attrs["sthist"] = {"results": {"my_he": {}}}
    assert _sample.find_he(sdata) == "he"
    _sample.require_one_sample(sd.SpatialData(images={"fov-1": image(), "fov-2": image()}))


def test_long_lists_are_cut():
    """An error message stays readable."""
    sdata = sd.SpatialData(images={f"fov_{i:03d}": image() for i in range(20)})
    with pytest.raises(KeyError, match=r"'fov_007' and 12 more\."):
        _sample.get(sdata, "images", "dapi")


def test_an_outline_that_crosses_itself_encloses_what_its_parts_do(caplog):
    """A bow tie of another tool is the two triangles that it is drawn of, for tiles and for within=."""
    import geopandas as gpd
    import shapely
    from spatialdata.models import ShapesModel
    from spatialdata.transformations import Identity

    sdata = sthist.datasets.toy(size_um=300)
    bow = [shapely.Polygon([(50, 50), (250, 250), (250, 50), (50, 250)])]
    parts = [shapely.Polygon([(50, 50), (150, 150), (50, 250)]), shapely.Polygon([(250, 50), (150, 150), (250, 250)])]
    for name, outlines in (("tissue", bow), ("parts", parts)):
        frame = gpd.GeoDataFrame(geometry=outlines)
        sdata[name] = ShapesModel.parse(frame, transformations={"um": Identity()})
    for name in ("tissue", "parts"):
        sthist.pp.tiles(sdata, size_um=16, px=16, regions=name, key_added=f"of_{name}")
    found, expected = (sdata[f"of_{name}_table"] for name in ("tissue", "parts"))
    np.testing.assert_allclose(found.obsm["spatial"], expected.obsm["spatial"])
    np.testing.assert_allclose(found.obs["tissue_fraction"], expected.obs["tissue_fraction"])
    assert _sample.elements.region_geometry(sdata, "tissue").area == pytest.approx(2 * 100 * 200 / 2)
    assert "cross themselves" in caplog.text
    sthist.pp.stain_normalize(sdata)
