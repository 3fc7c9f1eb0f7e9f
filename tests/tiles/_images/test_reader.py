"""Reading tiles: geometry under any affine, chunking, pyramid and size."""

from __future__ import annotations

import dask.array as da
import numpy as np
import pytest
import spatialdata as sd
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from scipy.ndimage import affine_transform, center_of_mass, gaussian_filter
from spatialdata.models import Image2DModel, Image3DModel
from spatialdata.transformations import Affine

from sthist.tiles import TileReader, TileSpec, read_region
from sthist.tiles._images import planes as source_module


def affine(angle=0.0, flip=False, scale=(1.0, 1.0), shear=0.0, shift=(0.0, 0.0)):
    """A (3, 3) matrix of (x, y, 1)."""
    rotation = np.array([[np.cos(angle), -np.sin(angle)], [np.sin(angle), np.cos(angle)]])
    matrix = np.eye(3)
    matrix[:2, :2] = rotation @ np.array([[1, shear], [0, 1]]) @ np.diag([-scale[0] if flip else scale[0], scale[1]])
    matrix[:2, 2] = shift
    return matrix


def as_sdata(pixels, matrix, *, chunks=None, scale_factors=None, name="image"):
    """An object with one image, (c, y, x), registered in um."""
    element = Image2DModel.parse(
        da.from_array(pixels, chunks=(pixels.shape[0], *(chunks or pixels.shape[1:]))),
        dims=("c", "y", "x"),
        scale_factors=scale_factors,
        transformations={"um": Affine(matrix, ("x", "y"), ("x", "y"))},
    )
    return sd.SpatialData(images={name: element})


def smooth_image(height, width, rng, n_channels=1, sigma=12.0):
    """Waves of 8-bit grey, some ten pixels long."""
    noise = rng.standard_normal((n_channels, height, width))
    waves = np.stack([gaussian_filter(plane, sigma, mode="wrap") for plane in noise])
    waves = (waves - waves.min()) / np.ptp(waves)
    return np.round(20 + 235 * waves).astype(np.uint8)


FILL = 7
"""A grey level that :func:`smooth_image` does not have."""


def by_scipy(pixels, matrix, centre, spec):
    """The tile by another road: scipy's spline of order 1, and whether a pixel's centre lies in the image."""
    px_of_um = np.linalg.inv(matrix)
    corner = np.array(centre) - spec.size_um / 2
    # tile (row, column) centres -> um -> image (x, y) -> image indices (row, column)
    to_um = np.array([[spec.mpp, 0, corner[0]], [0, spec.mpp, corner[1]], [0, 0, 1]])
    m = px_of_um @ to_um
    yx = m[1::-1, [1, 0, 2]]
    offset = yx[:, :2] @ [0.5, 0.5] + yx[:, 2] - 0.5
    tile = np.stack(
        [
            affine_transform(
                plane.astype(float), yx[:, :2], offset, output_shape=(spec.px, spec.px), order=1, mode="nearest"
            )
            for plane in pixels
        ],
        -1,
    )
    rows, columns = np.indices((spec.px, spec.px))
    at = np.einsum("ij,jhw->ihw", yx[:, :2], np.stack([rows, columns])) + offset[:, None, None]
    inside = np.all([(c > -0.5) & (c < n - 0.5) for c, n in zip(at, pixels.shape[1:], strict=True)], axis=0)
    return tile, inside


geometry = st.fixed_dictionaries(
    {
        "angle": st.floats(-np.pi, np.pi),
        "flip": st.booleans(),
        "scale": st.tuples(st.floats(0.2, 0.8), st.floats(0.2, 0.8)),
        "shear": st.floats(-0.4, 0.4),
        "shift": st.tuples(st.floats(-500, 500), st.floats(-500, 500)),
    }
)
layout = st.fixed_dictionaries(
    {
        "height": st.integers(120, 331),
        "width": st.integers(120, 331),
        "chunk": st.tuples(st.integers(16, 150), st.integers(16, 150)),
        "n_levels": st.integers(0, 3),
        "px": st.integers(24, 97),
        "mpp": st.floats(0.25, 1.6),
    }
)


@settings(max_examples=40, deadline=None, derandomize=True, suppress_health_check=list(HealthCheck))
@given(geometry=geometry, layout=layout, seed=st.integers(0, 2**16))
def test_agrees_with_scipy(geometry, layout, seed):
    """Random affines, chunkings, pyramids and odd sizes: within 2 grey levels, and the same pixels outside."""
    rng = np.random.default_rng(seed)
    # Smooth against the tile's pixels, too: averaging over them is right, and no point sample.
    waves = max(12.0, 5 * layout["mpp"] / min(geometry["scale"]))
    pixels = smooth_image(layout["height"], layout["width"], rng, sigma=waves)
    matrix = affine(**geometry)
    sdata = as_sdata(pixels, matrix, chunks=layout["chunk"], scale_factors=[2] * layout["n_levels"] or None)
    spec = TileSpec.from_mpp(layout["mpp"], layout["px"])
    height, width = pixels.shape[1:]
    positions = rng.uniform(-0.1, 1.1, (4, 2)) * [width, height]
    centres = (np.c_[positions, np.ones(4)] @ matrix.T)[:, :2]
    tiles = TileReader(sdata, "image", spec, fill=FILL, allow_upsampling=True).read(centres)
    for tile, centre in zip(tiles, centres, strict=True):
        expected, inside = by_scipy(pixels, matrix, centre, spec)
        assert ((tile[..., 0] != FILL) != inside).mean() < 0.005  # a centre on the very border falls to either side
        if inside.sum() > 20:
            assert np.abs(tile[inside] - expected[inside]).mean() < 2


@settings(max_examples=15, deadline=None, derandomize=True, suppress_health_check=list(HealthCheck))
@given(geometry=geometry, seed=st.integers(0, 2**16), n_levels=st.integers(0, 3), mpp=st.floats(0.3, 0.9))
def test_markers_land_where_they_were_painted(geometry, seed, n_levels, mpp):
    """The centre of mass of a painted spot, put through the affine, is found within half a tile pixel."""
    rng = np.random.default_rng(seed)
    height, width = rng.integers(250, 400, 2)
    y, x = rng.uniform(80, height - 80), rng.uniform(80, width - 80)
    rows, columns = np.indices((height, width)) + 0.5
    matrix = affine(**geometry)
    spread = 3 * mpp / np.sqrt(abs(np.linalg.det(matrix[:2, :2])))
    spot = 250 * np.exp(-((rows - y) ** 2 + (columns - x) ** 2) / (2 * spread**2))
    sdata = as_sdata(spot[None].astype(np.uint8), matrix, scale_factors=[2] * n_levels or None)
    spec = TileSpec.from_mpp(mpp, 64)
    truth = (matrix @ [x, y, 1])[:2]
    centre = truth + rng.uniform(-6, 6, 2) * mpp
    tile = TileReader(sdata, "image", spec, allow_upsampling=True).read([centre])[0, ..., 0]
    row, column = center_of_mass(tile.astype(float))
    found = centre + (np.array([column, row]) + 0.5 - 32) * mpp
    assert np.abs(found - truth).max() / mpp < 0.5


def test_shift_equivariance():
    """Moving the centre by whole pixels moves the tile by as many."""
    pixels = smooth_image(200, 230, np.random.default_rng(0))
    reader = TileReader(as_sdata(pixels, affine(0.3, scale=(0.5, 0.5))), "image", TileSpec.from_mpp(0.5, 40))
    a, b = reader.read([[10.0, 60.0], [10.0 + 5 * 0.5, 60.0 - 3 * 0.5]])
    np.testing.assert_array_equal(a[:-3, 5:], b[3:, :-5])


def test_identity_is_exact():
    """A tile on the image's own grid is the image's own pixels."""
    pixels = np.random.default_rng(0).integers(0, 65535, (2, 90, 100)).astype(np.uint16)
    sdata = as_sdata(pixels, np.diag([0.25, 0.25, 1]), chunks=(32, 33))
    tile = TileReader(sdata, "image", TileSpec.from_mpp(0.25, 20)).read([[(30 + 10) * 0.25, (50 + 10) * 0.25]])[0]
    np.testing.assert_array_equal(tile, pixels[:, 50:70, 30:50].transpose(1, 2, 0))


def test_downsampling_averages():
    """A checkerboard of single pixels becomes even grey, not a pattern: there is no aliasing."""
    board = (np.indices((256, 256)).sum(0) % 2 * 200).astype(np.uint8)[None]
    for factor in (2, 3, 4.0, 7):
        reader = TileReader(as_sdata(board, np.eye(3)), "image", TileSpec.from_mpp(factor, 16))
        tile = reader.read([[128.0, 128.0]])
        assert np.abs(tile.astype(float) - 100).max() <= (1 if factor % 2 == 0 else 12)


@pytest.mark.parametrize("chunks", [(7, 500), (64, 64), (500, 13), (500, 500)])
def test_chunks_and_order_do_not_matter(chunks, tmp_path):
    """The same tiles whatever the chunks, in memory or on zarr, in whatever order they are asked for."""
    rng = np.random.default_rng(1)
    pixels = rng.integers(0, 255, (3, 301, 287)).astype(np.uint8)
    matrix = affine(0.5, flip=True, scale=(0.4, 0.6))
    spec = TileSpec.from_mpp(0.7, 33)
    centres = (np.c_[rng.uniform(0, 300, (90, 2)), np.ones(90)] @ matrix.T)[:, :2]
    expected = TileReader(as_sdata(pixels, matrix), "image", spec).read(centres)
    as_sdata(pixels, matrix, chunks=chunks).write(tmp_path / "s.zarr")
    reader = TileReader(sd.read_zarr(tmp_path / "s.zarr"), "image", spec)
    order = rng.permutation(90)
    np.testing.assert_array_equal(reader.read(centres[order]), expected[order])


def test_each_chunk_is_decoded_once(tmp_path, monkeypatch):
    """Overlapping windows over a rotated image load every chunk of zarr once, and without dask."""
    pixels = np.random.default_rng(1).integers(0, 255, (1, 512, 512)).astype(np.uint8)
    as_sdata(pixels, affine(0.2), chunks=(64, 64)).write(tmp_path / "s.zarr")
    reader = TileReader(sd.read_zarr(tmp_path / "s.zarr"), "image", TileSpec.from_mpp(1.0, 50))
    loaded = []
    original = source_module.Planes.load
    monkeypatch.setattr(
        source_module.Planes,
        "load",
        lambda self, row, first, stop: (
            loaded.extend((row, c) for c in range(first, stop)) or original(self, row, first, stop)
        ),
    )
    x0, y0, x1, y1 = reader.extent_um
    reader.read(np.random.default_rng(0).uniform([x0, y0], [x1, y1], (500, 2)))
    assert len(loaded) == len(set(loaded)) == 64
    assert type(reader.image.fields[0].levels[0].planes._data).__module__.startswith("zarr")


def test_scattered_tiles_do_not_fill_the_memory():
    """Chunks of a group never take more than half of the cache, and none is decoded twice for it."""
    loads = []

    def block(block_info=None):
        loads.append(block_info[None]["chunk-location"])
        return np.full((1, 256, 256), 7, np.uint8)

    lazy = da.map_blocks(
        block, chunks=((1,), (256,) * 8, (256,) * 8), dtype=np.uint8, meta=np.empty((0, 0, 0), np.uint8)
    )
    element = Image2DModel.parse(
        lazy, dims=("c", "y", "x"), transformations={"um": Affine(np.eye(3), ("x", "y"), ("x", "y"))}
    )
    sdata = sd.SpatialData(images={"image": element})
    reader = TileReader(sdata, "image", TileSpec.from_mpp(1, 16), cache_bytes=8 * 256**2)
    centres = (np.stack(np.meshgrid(np.arange(8), np.arange(8)), -1).reshape(-1, 2) + 0.5) * 256
    assert (reader.read(centres) == 7).all()
    assert len(loads) == len(set(loads)) == 64
    windows = [view.windows(centres) for view in reader._views]
    groups = list(reader._groups(windows))
    assert max(len(chunks[0]) for _, chunks in groups) == 4
    assert sum(len(group) for group, _ in groups) == 64


def test_changed_image_is_not_read_from_the_store(tmp_path):
    """An image that was computed on after reading is read as it is now."""
    pixels = np.full((1, 64, 64), 10, np.uint8)
    as_sdata(pixels, np.eye(3)).write(tmp_path / "s.zarr")
    sdata = sd.read_zarr(tmp_path / "s.zarr")
    image = sdata["image"] + np.uint8(5)
    sdata.images["bright"] = Image2DModel.parse(
        image.data, dims=("c", "y", "x"), transformations={"um": Affine(np.eye(3), ("x", "y"), ("x", "y"))}
    )
    assert TileReader(sdata, "bright", TileSpec.from_mpp(1, 8)).read([[32, 32]]).max() == 15


def test_coarse_level_is_used_only_where_it_fits():
    """Odd sizes may displace a pyramid level; then a finer one is read."""
    even = as_sdata(np.zeros((1, 512, 512), np.uint8), np.eye(3), scale_factors=[2, 2])
    reader = TileReader(even, "image", TileSpec.from_mpp(4.0, 16))
    assert reader._views[0].planes.width == 128
    odd = as_sdata(np.zeros((1, 511, 509), np.uint8), np.eye(3), scale_factors=[2, 2])
    reader = TileReader(odd, "image", TileSpec.from_mpp(4.0, 16))
    assert reader._views[0].planes.width > 128


def test_images_that_tile_one_plane_read_as_one():
    """Four fields of view give what the whole image gives, without a seam."""
    pixels = smooth_image(200, 240, np.random.default_rng(3), 2)
    whole = as_sdata(pixels, affine(scale=(0.5, 0.5)))
    fields = sd.SpatialData()
    for row in (0, 1):
        for column in (0, 1):
            part = pixels[:, row * 100 : row * 100 + 100, column * 120 : column * 120 + 120]
            fields.images[f"fov_{row}{column}"] = as_sdata(
                part, affine(scale=(0.5, 0.5), shift=(column * 60, row * 50))
            )["image"]
    spec = TileSpec.from_mpp(0.5, 60)
    keys = sorted(fields.images)
    reader = TileReader(fields, keys, spec)
    assert reader.extent_um == (0, 0, 120, 100)
    centres = np.random.default_rng(0).integers(15, 85, (20, 2)).astype(float)
    np.testing.assert_array_equal(reader.read(centres), TileReader(whole, "image", spec).read(centres))
    rough = TileSpec.from_mpp(0.73, 60)
    a, b = (TileReader(s, k, rough).read(centres).astype(int) for s, k in ((fields, keys), (whole, "image")))
    assert np.abs(a - b).max() <= 4


def test_stack_projection_and_plane():
    """A stack is projected by maximum unless a plane, or the mean, is asked for."""
    stack = np.zeros((1, 3, 20, 20), np.uint8)
    stack[0, 0], stack[0, 1], stack[0, 2] = 10, 50, 30
    element = Image3DModel.parse(
        stack, dims=("c", "z", "y", "x"), transformations={"um": Affine(np.eye(3), ("x", "y"), ("x", "y"))}
    )
    sdata = sd.SpatialData(images={"stack": element})
    spec = TileSpec.from_mpp(1, 4)
    assert (TileReader(sdata, "stack", spec).read([[10, 10]]) == 50).all()
    assert (TileReader(sdata, "stack", spec, projection="mean").read([[10, 10]]) == 30).all()
    assert (TileReader(sdata, "stack", spec, z=2).read([[10, 10]]) == 30).all()
    with pytest.raises(ValueError, match=r"no plane z=3: it has 3 \(0 to 2\)"):
        TileReader(sdata, "stack", spec, z=3)


@pytest.mark.parametrize("dtype", [np.uint8, np.uint16, np.int16, np.float32, np.float64])
def test_dtypes(dtype):
    """Any number type is read, rounded where it is an integer."""
    pixels = (np.arange(64 * 64).reshape(1, 64, 64) % 120).astype(dtype)
    tile = TileReader(as_sdata(pixels, affine(0.1)), "image", TileSpec.from_mpp(1, 10)).read([[30, 30]])
    assert tile.dtype == dtype
    assert 0 <= tile.min() <= tile.max() <= 119


def test_channels_are_chosen_by_name(toy):
    """In the order asked for."""
    spec = TileSpec.from_mpp(0.5, 8)
    tile = TileReader(toy, "he", spec, channels=["b", "r"]).read([[200, 200]])
    rgb = TileReader(toy, "he", spec).read([[200, 200]])
    np.testing.assert_array_equal(tile, rgb[..., [2, 0]])
    with pytest.raises(KeyError, match="no channel 'DAPI'"):
        TileReader(toy, "he", spec, channels=["DAPI"])


def test_image_smaller_than_a_tile():
    """Its pixels stand in the middle, the rest is filled."""
    sdata = as_sdata(np.full((1, 10, 10), 9, np.uint8), np.eye(3))
    tile = TileReader(sdata, "image", TileSpec.from_mpp(1, 30), fill=200).read([[5, 5]])[0, ..., 0]
    assert (tile[10:20, 10:20] == 9).all()
    assert (tile == 200).sum() == 30 * 30 - 100
    single = as_sdata(np.full((1, 1, 1), 9, np.uint8), affine(0.3))
    assert (TileReader(single, "image", TileSpec.from_mpp(0.2, 9), allow_upsampling=True).read([[0.3, 0.6]]) == 9).any()


def test_nan_pixels_are_an_error():
    """With the place."""
    pixels = np.ones((1, 50, 50), np.float32)
    pixels[0, 20, 20] = np.nan
    reader = TileReader(as_sdata(pixels, np.eye(3)), "image", TileSpec.from_mpp(1, 8))
    assert reader.read([[40, 40]]).max() == 1
    with pytest.raises(ValueError, match="'image' has NaN pixels near x=20.0, y=20.0"):
        reader.read([[20, 20]])


def test_too_coarse_image_is_refused():
    """With both numbers and the way out."""
    sdata = as_sdata(np.zeros((1, 50, 50), np.uint8), np.diag([2.0, 2.0, 1.0]))
    with pytest.raises(ValueError, match=r"has 2 µm/px, but tiles of 0.5 µm/px .* allow_upsampling=True"):
        TileReader(sdata, "image", TileSpec.from_mpp(0.5, 8))
    assert TileReader(sdata, "image", TileSpec.from_mpp(0.5, 8), allow_upsampling=True).read([[50, 50]]).shape == (
        1,
        8,
        8,
        1,
    )


def test_image_without_scale():
    """Says how to give it."""
    sdata = sd.SpatialData(images={"image": Image2DModel.parse(np.zeros((1, 9, 9), np.uint8))})
    with pytest.raises(ValueError, match="has no scale: give it once with pp.set_scale"):
        TileReader(sdata, "image", TileSpec.from_mpp(0.5, 8))


def test_images_of_different_kind_do_not_tile_one_plane():
    """Other channels or another type are refused."""
    sdata = as_sdata(np.zeros((1, 9, 9), np.uint8), np.eye(3))
    sdata.images["other"] = as_sdata(np.zeros((1, 9, 9), np.uint16), np.eye(3))["image"]
    with pytest.raises(ValueError, match="do not tile one plane"):
        TileReader(sdata, ["image", "other"], TileSpec.from_mpp(1, 8))


def test_read_region_is_the_image_at_any_size(toy):
    """Shape, extent and mean colour."""
    fine, coarse = (read_region(toy, "he", (100, 100, 300, 200), mpp, fill=255) for mpp in (0.5, 5.0))
    assert fine.shape == (200, 400, 3)
    assert coarse.shape == (20, 40, 3)
    means = fine.reshape(20, 10, 40, 10, 3).mean((1, 3))
    assert np.abs(coarse.mean((0, 1)) - means.mean((0, 1))).max() < 1
    assert np.corrcoef(coarse.ravel(), means.ravel())[0, 1] > 0.95


@pytest.mark.parametrize(
    "bad", [{"size_um": 0, "px": 8}, {"size_um": np.nan, "px": 8}, {"size_um": 8, "px": 0}, {"size_um": 8, "px": 2.5}]
)
def test_spec_is_checked(bad):
    """Sizes are positive, pixels whole."""
    with pytest.raises(ValueError, match="TileSpec"):
        TileSpec(**bad)


@pytest.mark.parametrize("angle", [0.0, 0.03, 0.7, np.pi / 2])
@pytest.mark.parametrize("scale", [(1.0, 1.0), (0.37, 0.5)])
def test_what_is_filled_is_not_seen(angle, scale):
    """Pixels that hold the image's values, and those that lie on it."""
    pixels = smooth_image(60, 80, np.random.default_rng(0))
    sdata = as_sdata(pixels, affine(angle, True, scale, shift=(11.3, 4.1)))
    reader = TileReader(sdata, "image", TileSpec(10.0, 16), fill=FILL, allow_upsampling=True)
    x0, y0, x1, y1 = reader.extent_um
    centres = np.random.default_rng(1).uniform([x0 - 8, y0 - 8], [x1 + 8, y1 + 8], (60, 2))
    filled, seen = reader.read(centres)[..., 0] == FILL, reader.seen(centres)
    assert 0.1 < seen.mean() < 0.95
    np.testing.assert_array_equal(seen, ~filled)
