"""Micrometres: one resolver, sources that must agree."""

from __future__ import annotations

import numpy as np
import pytest
import spatialdata as sd
from spatialdata.models import Image2DModel, PointsModel
from spatialdata.transformations import Affine, Identity, Scale

import sthist
from sthist import scale


@pytest.fixture
def plain():
    """What spatialdata-io gives of a Xenium-like run: global is pixels, molecules are in µm."""
    import pandas as pd

    dapi = Image2DModel.parse(np.zeros((1, 40, 60), np.uint8), transformations={"global": Identity()})
    turned = Affine(np.array([[0, -2, 60], [2, 0, 0], [0, 0, 1]]), ("x", "y"), ("x", "y"))
    he = Image2DModel.parse(np.zeros((3, 30, 20), np.uint8), transformations={"global": turned})
    frame = pd.DataFrame({"x": [2.0], "y": [4.0], "gene": ["A"]})
    points = PointsModel.parse(frame, feature_key="gene", transformations={"global": Scale([4.0, 4.0], ("x", "y"))})
    return sd.SpatialData(images={"dapi": dapi, "he": he}, points={"transcripts": points})


def test_set_scale_brings_the_whole_sample_along(plain):
    """The molecules' µm are their own again; the H&E, turned and twice as coarse, follows."""
    sthist.pp.set_scale(plain, "dapi", mpp=0.25)
    assert scale.resolve_mpp(plain, "dapi") == (0.25, 0.25)
    assert scale.resolve_mpp(plain, "he") == (0.5, 0.5)
    np.testing.assert_allclose(scale.matrix_to(plain["transcripts"]), np.eye(3))
    np.testing.assert_allclose(scale.matrix_to(plain["he"]) @ [0, 0, 1], [15, 0, 1])


def test_scale_of_the_other_image_gives_the_same(plain):
    """It does not matter of which image the scale is known."""
    sthist.pp.set_scale(plain, "he", mpp=0.5)
    assert scale.resolve_mpp(plain, "dapi") == (0.25, 0.25)


def test_two_scales_that_disagree(plain):
    """More than 2 % is an error that shows both; overwrite= settles it; less is rounding."""
    scale.record_mpp(plain, "dapi", "OME PhysicalSizeX", 0.2125)
    with pytest.raises(
        ValueError, match=r"disagree by 17.6%: 0.2125 µm/px \(OME PhysicalSizeX\) and 0.25 µm/px \(the argument"
    ):
        sthist.pp.set_scale(plain, "dapi", mpp=0.25)
    sthist.pp.set_scale(plain, "dapi", mpp=0.2126)
    assert scale.resolve_mpp(plain, "dapi")[0] == pytest.approx(0.2126)
    with pytest.raises(ValueError, match="disagree"):
        sthist.pp.set_scale(plain, "dapi", mpp=0.5)
    sthist.pp.set_scale(plain, "dapi", mpp=0.5, overwrite=True)
    assert scale.resolve_mpp(plain, "dapi") == (0.5, 0.5)


@pytest.mark.parametrize("mpp", [0, -1.0, np.nan, np.inf])
def test_no_scale_at_all(plain, mpp):
    """A number it must be."""
    with pytest.raises(ValueError, match="are a positive number"):
        sthist.pp.set_scale(plain, "dapi", mpp=mpp)


def test_unknown_names(plain):
    """Image and coordinate system."""
    with pytest.raises(KeyError, match="No image 'dapy'.*Did you mean 'dapi'"):
        sthist.pp.set_scale(plain, "dapy", mpp=0.5)
    with pytest.raises(KeyError, match=r"not registered in 'space', but in \['global'\]"):
        sthist.pp.set_scale(plain, "dapi", mpp=0.5, coordinate_system="space")


def test_no_source_and_stretched_pixels(plain):
    """Nothing is guessed."""
    with pytest.raises(ValueError, match="has no scale: give it once with pp.set_scale"):
        scale.resolve_mpp(plain, "dapi")
    stretched = Scale([1.0, 1.5], ("x", "y"))
    plain.images["odd"] = Image2DModel.parse(np.zeros((1, 9, 9), np.uint8), transformations={"global": stretched})
    with pytest.raises(ValueError, match=r"disagree by 50.0%: 1 µm/px \(along x\) and 1.5 µm/px \(along y\)"):
        sthist.pp.set_scale(plain, "odd", mpp=0.5)


def test_resolution_tags_give_way_to_an_argument(tmp_path, caplog):
    """They are a printer's as often as a microscope's; other sources are not overruled."""
    import tifffile

    tifffile.imwrite(
        tmp_path / "x.tif", np.zeros((40, 40, 3), np.uint8), resolution=(2400, 2400), resolutionunit="INCH"
    )
    sdata = sthist.io.slide(tmp_path / "x.tif", mpp=0.5)
    assert sthist.scale.resolve_mpp(sdata, "he") == (0.5, 0.5)
    assert "says 10.58 µm/px; 0.5 is taken" in caplog.text


def test_one_side_cannot_make_up_for_the_other():
    """1 x 0.25 µm/px is not 0.5."""
    sdata = sthist.datasets.toy(size_um=100)
    from spatialdata.transformations import Scale, set_transformation

    set_transformation(sdata["he"], Scale([1.0, 0.25], ("x", "y")), to_coordinate_system="um")
    assert sthist.scale.resolve_mpp(sdata, "he") == (1.0, 0.25)
    sthist.scale.record_mpp(sdata, "he", "OME PhysicalSizeX", 0.5)
    with pytest.raises(ValueError, match="disagree"):
        sthist.scale.resolve_mpp(sdata, "he")
