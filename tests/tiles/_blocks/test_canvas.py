"""Canvas and map_tiles: what comes in goes out, in whatever pieces."""

from __future__ import annotations

import json

import numpy as np
import pytest
import shapely
import spatialdata as sd
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from spatialdata.transformations import get_transformation

from sthist.tiles import Canvas, TileReader, TileSpec, map_tiles


def picture(height, width, seed=0):
    """Noise: nothing hides a shift or a seam."""
    return np.random.default_rng(seed).integers(0, 256, (3, height, width)).astype(np.uint8)


def copy_through(pixels, folder, *, px, overlap, block_px=512, mpp=0.5, origin=(0.0, 0.0), **kwargs):
    """Read an image in tiles, give them to the canvas as they are, and return its level 0."""
    height, width = pixels.shape[1:]
    matrix = np.array([[mpp, 0, origin[0]], [0, mpp, origin[1]], [0, 0, 1]])
    extent = (*origin, origin[0] + width * mpp, origin[1] + height * mpp)
    reader = TileReader.from_array(pixels, matrix, TileSpec.from_mpp(mpp, px), fill=255)
    canvas = Canvas(folder, "copy", extent_um=extent, mpp=mpp, fingerprint={}, block_px=block_px)
    map_tiles([reader], lambda tiles: tiles, canvas, overlap=overlap, progress=False, **kwargs)
    element = sd.read_zarr(canvas.store)["copy"]
    return canvas, element


def level(element, index=0):
    """Pixels of a pyramid level."""
    if "scale0" not in getattr(element, "children", {}):
        return element.to_numpy()
    return element[f"scale{index}"].image.to_numpy()


@settings(max_examples=15, deadline=None, derandomize=True, suppress_health_check=list(HealthCheck))
@given(
    height=st.integers(1, 1300),
    width=st.integers(1, 1300),
    px=st.sampled_from([64, 96, 131, 256]),
    overlap=st.sampled_from([0.0, 0.1, 0.25, 0.4]),
    origin=st.tuples(st.floats(-1e4, 1e4), st.floats(-1e4, 1e4)),
)
def test_stitching_the_input_back_is_the_identity(height, width, px, overlap, origin, tmp_path_factory):
    """To within a grey level, edges and odd sizes included; beyond the image it is white."""
    pixels = picture(height, width)
    _, element = copy_through(pixels, tmp_path_factory.mktemp("c") / "c", px=px, overlap=overlap, origin=origin)
    back = level(element).astype(int)
    assert np.abs(back[:, :height, :width] - pixels).max() <= 1
    assert (back[:, height:] == 255).all()
    assert (back[:, :, width:] == 255).all()


def test_pyramid_is_means_of_two_by_two(tmp_path):
    """On a size padded to a multiple of 2 to the number of levels, each level registered where it lies."""
    pixels = picture(2500, 1031)
    canvas, element = copy_through(pixels, tmp_path / "c", px=256, overlap=0.0)
    assert canvas.layout.n_levels == 2
    assert canvas.shape == (2500, 1032)
    for index in (1, 2):
        fine, coarse = level(element, index - 1).astype(int), level(element, index)
        assert fine.shape[1:] == tuple(2 * n for n in coarse.shape[1:])
        sums = fine[:, ::2, ::2] + fine[:, 1::2, ::2] + fine[:, ::2, 1::2] + fine[:, 1::2, 1::2]
        np.testing.assert_array_equal(coarse, (sums + 2) // 4)
        scale = get_transformation(element[f"scale{index}"].image, "um").to_affine_matrix(("x", "y"), ("x", "y"))
        np.testing.assert_allclose(np.diag(scale)[:2], 0.5 * 2**index)


def test_block_size_does_not_change_an_unblended_image(tmp_path):
    """Blocks are a matter of work, not of pixels."""
    pixels = picture(1100, 1500)
    a = level(copy_through(pixels, tmp_path / "a", px=128, overlap=0.0, block_px=512)[1])
    b = level(copy_through(pixels, tmp_path / "b", px=128, overlap=0.0, block_px=1024)[1])
    np.testing.assert_array_equal(a, b)


def test_blocks_agree_where_tiles_cross_them(tmp_path):
    """Tiles on a border are computed for each block: blending knows no blocks."""
    pixels = picture(1100, 1100)

    def run(name, block_px):
        matrix = np.diag([0.5, 0.5, 1])
        reader = TileReader.from_array(pixels, matrix, TileSpec.from_mpp(0.5, 128), fill=255)
        canvas = Canvas(tmp_path / name, "i", extent_um=(0, 0, 550, 550), mpp=0.5, fingerprint={}, block_px=block_px)
        # A model whose tiles differ: each is brightened by its own mean.
        map_tiles(
            [reader],
            lambda tiles: (tiles * 0.5 + tiles.mean((1, 2, 3), keepdims=True) * 0.5).astype(np.uint8),
            canvas,
            overlap=0.25,
            batch_size=3,
        )
        return level(sd.read_zarr(canvas.store)["i"])

    np.testing.assert_array_equal(run("a", 512), run("b", 1536))


def test_polygon_leaves_the_rest_white(tmp_path):
    """And blocks that it does not touch are not computed."""
    pixels = np.full((3, 1200, 1200), 90, np.uint8)
    calls = []
    matrix = np.diag([0.5, 0.5, 1])
    reader = TileReader.from_array(pixels, matrix, TileSpec.from_mpp(0.5, 256))
    canvas = Canvas(tmp_path / "c", "i", extent_um=(0, 0, 600, 600), mpp=0.5, fingerprint={}, block_px=512)
    triangle = shapely.Polygon([(10, 10), (240, 10), (10, 240)])
    map_tiles([reader], lambda t: calls.append(len(t)) or t, canvas, overlap=0.0, within=triangle)
    back = level(sd.read_zarr(canvas.store)["i"])
    assert sum(calls) == 4  # one block of 2 x 2 tiles
    assert (back[:, 30, 30] == 90).all()
    assert (back[:, 300, 300] == 255).all()
    assert back[0, :512, :512].size - (back[0] == 90).sum() == pytest.approx(512**2 - 230**2 / 2 / 0.25, rel=0.01)


def test_a_canvas_of_other_settings_is_not_continued(tmp_path):
    """Its folder is made anew."""
    canvas = Canvas(tmp_path / "c", "i", extent_um=(0, 0, 500, 500), mpp=0.5, fingerprint={"a": 1}, block_px=512)
    canvas.write(canvas.blocks()[0], np.zeros((3, 512, 512), np.uint8))
    again = Canvas(tmp_path / "c", "i", extent_um=(0, 0, 500, 500), mpp=0.5, fingerprint={"a": 1}, block_px=512)
    assert len(again.pending()) == len(again.blocks()) - 1
    other = Canvas(tmp_path / "c", "i", extent_um=(0, 0, 500, 500), mpp=0.5, fingerprint={"a": 2}, block_px=512)
    assert len(other.pending()) == len(other.blocks())
    (tmp_path / "c" / "manifest.json").write_text("{ half a manif")
    assert len(Canvas(tmp_path / "c", "i", extent_um=(0, 0, 500, 500), mpp=0.5, fingerprint={"a": 2}).pending()) == 1


def test_an_error_in_a_block_is_raised_and_the_rest_kept(tmp_path):
    """Done blocks stay done."""
    pixels = picture(1500, 1500)
    reader = TileReader.from_array(pixels, np.diag([0.5, 0.5, 1]), TileSpec.from_mpp(0.5, 512))
    canvas = Canvas(tmp_path / "c", "i", extent_um=(0, 0, 750, 750), mpp=0.5, fingerprint={}, block_px=512)
    seen = []

    def fails(tiles):
        seen.append(1)
        if len(seen) == 4:
            msg = "out of luck"
            raise RuntimeError(msg)
        return tiles

    with pytest.raises(RuntimeError, match="out of luck"):
        map_tiles([reader], fails, canvas, overlap=0.0)
    assert 0 < len(canvas.pending()) < len(canvas.blocks())
    assert json.loads((tmp_path / "c" / "manifest.json").read_text())["block_px"] == 512


@pytest.mark.parametrize("overlap", [-0.1, 0.5, 1.0])
def test_overlap_is_less_than_half(overlap, tmp_path):
    """Raised-cosine ramps of more than half a tile would meet."""
    with pytest.raises(ValueError, match="overlap is"):
        copy_through(picture(10, 10), tmp_path / "c", px=8, overlap=overlap)


def test_blocks_hold_whole_chunks(tmp_path):
    """Or two of them would write one chunk."""
    with pytest.raises(ValueError, match="multiple of 512"):
        Canvas(tmp_path / "c", "i", extent_um=(0, 0, 9, 9), mpp=1.0, fingerprint={}, block_px=600)


def test_a_canvas_of_numbers_is_nan_where_nothing_is_known(tmp_path):
    """Any channels of float16; levels are means of what is known, block by block and channel by channel."""
    names = ["a", "b", "c"]
    canvas = Canvas(
        tmp_path / "c",
        "map",
        extent_um=(0, 0, 1200 * 8, 100 * 8),
        mpp=8.0,
        fingerprint={},
        block_px=64,
        channels=names,
        dtype="float16",
        chunk=(2, 64),
    )
    values = np.random.default_rng(0).integers(0, 100, (3, *canvas.shape)).astype(np.float16)
    values[:, 20:40, 100:900] = np.nan
    values[:, 64:, 64:128] = np.nan
    for block in canvas.pending():
        canvas.write(block, values[:, block.y0 : block.y1, block.x0 : block.x1])
    canvas.finish()
    element = sd.read_zarr(canvas.store)["map"]
    assert sd.models.get_channel_names(element) == names
    np.testing.assert_array_equal(level(element), values)
    parts = values.astype(float).reshape(3, canvas.shape[0] // 2, 2, canvas.shape[1] // 2, 2)
    with np.errstate(invalid="ignore"):
        expected = np.nansum(parts, axis=(2, 4)) / np.isfinite(parts).sum(axis=(2, 4))
    np.testing.assert_allclose(level(element, 1), expected, rtol=1e-3)
    assert level(element, 1).dtype == np.float16
