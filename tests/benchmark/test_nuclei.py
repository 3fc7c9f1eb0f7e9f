"""Nuclei of images whose nuclei are known to lie somewhere."""

from __future__ import annotations

import numpy as np
import pandas as pd
import pytest
import shapely

import sthist
from sthist._sample.samples import samples_of
from sthist.benchmark import nucleus_preservation, virtual_he
from sthist.benchmark._nuclei import outlined_nuclei
from sthist.benchmark._tiles import shared_tiles


def _moved(sdata, name, shift_um):
    """The real H&E as an image of its own, moved along x."""
    from spatialdata.transformations import Affine, get_transformation, set_transformation

    sdata.images[name] = sdata["he"].copy()
    matrix = get_transformation(sdata["he"], "um").to_affine_matrix(("x", "y"), ("x", "y")).copy()
    matrix[0, 2] += shift_um
    set_transformation(sdata[name], Affine(matrix, ("x", "y"), ("x", "y")), "um")


@pytest.fixture
def laid(toy):
    sthist.pp.tissue(toy)
    sthist.pp.tiles(toy, size_um=64, px=128)
    return toy


@pytest.mark.parametrize("against", ["stain", "vendor", "real", "nucleus_boundaries"])
def test_shifts_are_found(laid, against):
    """Nuclei that were moved by 1.5 µm lie that much off, and overlap less."""
    means = {}
    for shift in (0.0, 1.5):
        _moved(laid, f"moved{shift:g}".replace(".", "_"), shift)
        frame = nucleus_preservation(laid, f"moved{shift:g}".replace(".", "_"), reference=against, min_iou=0.3)
        by = frame.groupby("method")[["nucleus_f1", "nucleus_iou", "nucleus_shift_um"]]
        means[shift] = by.mean().loc["virtual"]
        means[shift]["nucleus_shift_um"] = by.median().loc["virtual", "nucleus_shift_um"]
        assert by.mean().loc["shuffled", "nucleus_f1"] < 0.2
        assert frame.attrs["reference"] == ("nucleus_boundaries" if against == "vendor" else against)
    assert means[0.0].nucleus_f1 > 0.8
    assert means[0.0].nucleus_shift_um < 0.5
    assert means[1.5].nucleus_shift_um == pytest.approx(1.5, abs=0.25)
    assert means[1.5].nucleus_iou < means[0.0].nucleus_iou - 0.1


def test_outlines_become_the_pixels_whose_centres_they_hold(laid):
    """Compared with shapely, pixel by pixel; each nucleus has a label of its own."""
    [(_, shared)] = shared_tiles(samples_of(laid), "tiles", lambda _: ("he",))
    shared = shared.chosen(np.arange(2))
    for centre, labels in zip(shared.centres, outlined_nuclei(laid, "nucleus_boundaries", shared), strict=True):
        x, y = (centre[i] - 32 + (np.arange(128) + 0.5) * 0.5 for i in (0, 1))
        outlines = laid["nucleus_boundaries"].geometry
        inside = shapely.contains_xy(shapely.union_all(outlines.to_numpy()), *np.meshgrid(x, y))
        assert (inside == (labels > 0)).mean() > 0.999
        touching = outlines.intersects(shapely.box(*(centre - 32), *(centre + 32))).sum()
        assert abs(len(np.unique(labels[labels > 0])) - touching) <= 2


def test_no_real_he_is_needed():
    """CosMx brings none: nuclei alone are scored, against a stain in several fields of view."""
    sdata = sthist.datasets.toy("cosmx", size_um=200)
    sthist.tl.virtual_he(sdata)
    sthist.pp.tissue(sdata)
    sthist.pp.tiles(sdata, size_um=48, px=96)
    with pytest.raises(KeyError, match="no H&E image"):
        virtual_he(sdata)
    frame = nucleus_preservation(sdata)
    assert frame[frame.method == "virtual"].nucleus_f1.mean() > 0.8
    assert len(nucleus_preservation(sdata, nulls=False)) == len(frame) / 2
    matched = frame[frame.method == "virtual"].dropna()
    f1 = 2 / (1 / matched.precision + 1 / matched.recall)
    np.testing.assert_allclose(f1, matched.nucleus_f1)


def test_several_samples(laid):
    """Each is scored as if it were alone; fields of the truth are its own."""
    other = sthist.datasets.toy(size_um=300, seed=1)
    sthist.pp.tiles(other, size_um=64, px=128, sampling="fps", n_tiles=6)
    other.shapes["nuclei"] = other["nucleus_boundaries"]
    del other.shapes["nucleus_boundaries"]
    samples = {"a": laid, "b": other}
    frame = nucleus_preservation(samples, "he", reference="vendor", seed=3)
    assert list(frame.columns[:3]) == ["sample", "method", "tile"]
    for name, sdata in samples.items():
        alone = nucleus_preservation(sdata, "he", reference="vendor", seed=3)
        pd.testing.assert_frame_equal(
            frame[frame["sample"] == name].drop(columns="sample").reset_index(drop=True),
            alone.drop(columns="sample"),
            check_dtype=False,
        )
    assert frame.attrs["reference"] == {"a": "nucleus_boundaries", "b": "nuclei"}
    sthist.pp.tiles(other, size_um=48, px=96, sampling="fps", n_tiles=6, overwrite=True)
    with pytest.raises(ValueError, match=r"Tiles 'tiles' of sample 'b' are .*size_um=48.*those of 'a' .*size_um=64"):
        nucleus_preservation(samples, "he")
    del other.images["he"]
    with pytest.raises(KeyError, match="No image 'he'") as raised:
        nucleus_preservation(samples, "he")
    assert raised.value.__notes__ == ["In sample 'b'."]
    with pytest.raises(TypeError, match="Pass the whole sample, not its table"):
        nucleus_preservation({"a": laid, "b": laid["tiles_table"]}, "he")


def test_bad_input(laid):
    with pytest.raises(KeyError, match="No image 'virtual_he'"):
        nucleus_preservation(laid)
    with pytest.raises(KeyError, match="No shapes? 'nuclei'|No shape"):
        nucleus_preservation(laid, "he", reference="nuclei")
    sthist.pp.tiles(laid, size_um=64, px=32, key_added="coarse")
    with pytest.raises(ValueError, match="cannot be told apart at 2 µm/px"):
        nucleus_preservation(laid, "he", regions="coarse")
    laid.shapes["nuclei"] = laid["nucleus_boundaries"]
    with pytest.raises(ValueError, match="Several shapes could be the nuclei: 'nuclei', 'nucleus_boundaries'"):
        nucleus_preservation(laid, "he", reference="vendor")
    del laid.shapes["nuclei"], laid.shapes["nucleus_boundaries"]
    with pytest.raises(KeyError, match="Found no outlines of nuclei"):
        nucleus_preservation(laid, "he", reference="vendor")
