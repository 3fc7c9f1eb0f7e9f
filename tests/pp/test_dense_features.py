"""Maps of features: each cell has that of what it shows, written out of core, resumed, and not made twice."""

from __future__ import annotations

import numpy as np
import pytest
import spatialdata as sd

import sthist
from sthist.encoders import Encoder
from sthist.tiles import TileReader, TileSpec, read_region


class Means(Encoder):
    """Mean of each channel of a window, and as tokens those of squares of 8 px; fails at one of its calls."""

    name = "means"
    can_dense = True

    def __init__(self, fail_at=None):
        self.provenance, self.calls, self.fail_at = {}, 0, fail_at

    def _count(self):
        self.calls += 1
        if self.calls == self.fail_at:
            raise RuntimeError("the lights went out")

    def embed(self, tiles):
        self._count()
        return tiles.mean((1, 2), dtype=np.float32)

    def dense(self, tiles):
        self._count()
        n, px = tiles.shape[:2]
        return tiles.reshape(n, px // 8, 8, px // 8, 8, 3).mean((2, 4), dtype=np.float32)


def values(sdata, key="means_features"):
    element = sdata[key]
    assert element.dtype == np.float16
    return np.asarray(element.data).astype(float)


@pytest.fixture
def toy():
    """Noise, 300 µm wide, at 0.5 µm/px."""
    from spatialdata.models import Image2DModel
    from spatialdata.transformations import Scale

    pixels = np.random.default_rng(0).integers(0, 256, (3, 600, 600), dtype=np.uint8)
    place = {"um": Scale([0.5, 0.5], ("x", "y"))}
    return sd.SpatialData({"he": Image2DModel.parse(pixels, dims=("c", "y", "x"), transformations=place)})


def of_cells(sdata, stride: float, n: int) -> np.ndarray:
    """Mean colours of the cells, straight from the image of 0.5 µm/px."""
    px = int(stride / 0.5)
    pixels = read_region(sdata, "he", (0, 0, n * stride, n * stride), 0.5, fill=255)
    return pixels.reshape(n, px, n, px, 3).mean((1, 3)).transpose(2, 0, 1)


@pytest.mark.parametrize("overlap", [0.0, 0.25, 0.4])
def test_tokens_lie_where_they_are_of(toy, overlap):
    """A token of 4 µm stands for itself: cells of 4 and of 8 µm are their means, however tiles overlap."""
    for stride in (4.0, 8.0):
        how = {"stride_um": stride, "spec": TileSpec(32, 64), "overlap": overlap, "tissue": False}
        sthist.pp.dense_features(toy, Means(), **how, overwrite=True, progress=False)
        n = int(300 // stride)
        np.testing.assert_allclose(values(toy)[:, :n, :n], of_cells(toy, stride, n), rtol=2e-3)


def test_windows_are_around_their_cells(toy):
    """Of any size, also beyond the image, where it is white."""
    spec = TileSpec(23.0, 46)
    sthist.pp.dense_features(toy, Means(), stride_um=10, spec=spec, method="crop", tissue=False, progress=False)
    found = values(toy)
    assert found.shape == (3, 30, 30)
    cells = np.array([[0, 0], [3, 7], [29, 29], [12, 0]])  # row, column
    centres = (cells[:, ::-1] + 0.5) * 10
    tiles = TileReader(toy, "he", spec, fill=255).read(centres)
    np.testing.assert_allclose(found[:, cells[:, 0], cells[:, 1]], tiles.mean((1, 2)).T, rtol=2e-3)


def test_what_is_no_tissue_is_left_out(toy):
    import geopandas as gpd
    import shapely
    from spatialdata.models import ShapesModel
    from spatialdata.transformations import Identity

    outline = shapely.Point(140, 160).buffer(101)
    toy["tissue"] = ShapesModel.parse(gpd.GeoDataFrame(geometry=[outline]), transformations={"um": Identity()})
    sthist.pp.dense_features(toy, Means(), stride_um=10, within=(0, 0, 150, 300), progress=False)
    known = np.isfinite(values(toy))
    assert known.shape == (3, 30, 15)
    assert (known == known[0]).all()
    y, x = np.mgrid[:30, :15]
    expected = shapely.contains_xy(outline, (x + 0.5) * 10, (y + 0.5) * 10)
    np.testing.assert_array_equal(known[0], expected)


def test_a_stopped_call_is_continued_and_a_finished_one_not_repeated(toy, tmp_path, monkeypatch):
    monkeypatch.setattr("sthist.pp._dense_features.verb.CHUNK", 16)
    monkeypatch.setattr("sthist.pp._dense_features.verb.BLOCK", 16)
    toy.write(tmp_path / "s.zarr")
    how = {"stride_um": 5.0, "method": "crop", "spec": TileSpec(5, 10), "tissue": False, "progress": False}
    sthist.pp.dense_features(toy, Means(), **how, key_added="whole")
    with pytest.raises(RuntimeError, match="lights"):
        sthist.pp.dense_features(toy, Means(fail_at=60), **how)
    rest = Means()
    sthist.pp.dense_features(toy, rest, **how)
    n_calls = Means()
    sthist.pp.dense_features(toy, n_calls, **how, key_added="again")
    assert 0 < rest.calls < n_calls.calls
    again = sd.read_zarr(tmp_path / "s.zarr")
    np.testing.assert_array_equal(values(again), values(again, "whole"))
    idle = Means(fail_at=3)  # it is asked for the size of an embedding
    sthist.pp.dense_features(again, idle, **how)
    with pytest.raises(ValueError, match="exists"):
        sthist.pp.dense_features(again, Means(), **(how | {"stride_um": 6.0}))


def test_named_features_are_channels(toy):
    sthist.pp.dense_features(toy, "morphology", stride_um=30, within=(100, 100, 190, 160), tissue=False, progress=False)
    assert sd.models.get_channel_names(toy["morphology_features"])[0] == "background_share"
    assert toy["morphology_features"].shape == (183, 2, 3)
    made = toy.attrs["sthist"]["results"]["morphology_features"]
    assert (made["encoder"], made["stride_um"], made["method"]) == ("morphology", 30.0, "crop")


def test_what_does_not_fit(toy):
    for change, message in (
        ({"stride_um": 0}, "stride_um is 0"),
        ({"method": "all"}, "method is 'all'"),
        ({"encoder": "morphology", "method": "dense"}, "no tokens"),
        ({"within": (900, 900, 990, 990)}, "does not lie on the image"),
        ({"spec": None, "stride_um": 0.1, "method": "crop"}, "Pass spec="),
    ):
        how = {"encoder": Means(), "stride_um": 10.0, "tissue": False, "progress": False} | change
        with pytest.raises(ValueError, match=message):
            sthist.pp.dense_features(toy, how.pop("encoder"), **how)
