"""Finding nuclei: the same however the slide is divided, each once, at the right place and size."""

from __future__ import annotations

import numpy as np
import pytest
import shapely

import sthist
from sthist.pp._nuclei.methods import sample_of, stains_of
from sthist.pp._nuclei.verb import _segmenter, find
from sthist.pp._nuclei.windows import Lattice
from sthist.tiles._images.image import open_he
from sthist.tiles._regions.raster import rasterize

NUCLEUS, TISSUE = (90, 60, 150), (225, 160, 200)


def painted(places: np.ndarray, radii_px: np.ndarray, shape: tuple[int, int] = (300, 340)) -> np.ndarray:
    """An H&E with discs for nuclei; their edges are smooth, as those of a microscope are."""
    y, x = np.mgrid[: shape[0], : shape[1]] + 0.5
    inside = np.zeros(shape)
    for (cx, cy), radius in zip(places, radii_px, strict=True):
        inside = np.maximum(inside, np.clip(radius - np.hypot(x - cx, y - cy) + 0.5, 0, 1))
    rgb = inside[..., None] * np.array(NUCLEUS) + (1 - inside[..., None]) * np.array(TISSUE)
    noise = np.random.default_rng(0).normal(0, 3, (*shape, 1))
    return np.clip(rgb + noise, 0, 255).round().astype(np.uint8)


def slide(rgb: np.ndarray, mpp: float = 0.5):
    return sthist.io.assemble(images={"he": rgb.transpose(2, 0, 1)}, mpp=mpp)


@pytest.fixture(scope="module")
def discs() -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(1)
    grid = np.stack(np.meshgrid(np.arange(25, 320, 40), np.arange(25, 280, 40)), -1).reshape(-1, 2)
    return grid + rng.uniform(-5, 5, grid.shape), rng.uniform(6, 11, len(grid))


@pytest.fixture(scope="module")
def toy():
    return sthist.datasets.toy(size_um=200)


def test_discs_have_their_place_and_size(discs):
    places, radii = discs
    sdata = slide(painted(places, radii))
    sthist.pp.nuclei(sdata)
    found = sdata["nuclei_table"]
    assert len(found) == len(places)
    distance = np.linalg.norm(found.obsm["spatial"][:, None] - places * 0.5, axis=2)
    nearest = distance.argmin(0)
    assert sorted(nearest) == list(range(len(places)))
    assert distance.min(0).max() < 0.5 * 0.5  # half a pixel
    area = found.obs["area_um2"].to_numpy()[nearest]
    assert np.abs(area / (np.pi * (radii * 0.5) ** 2) - 1).max() < 0.12
    assert found.obs["eccentricity"].max() < 0.5


def test_places_are_those_of_a_moved_and_flipped_image(discs):
    places, radii = discs
    sdata = slide(painted(places, radii))
    mirrored = np.array([[-0.5, 0, 700.0], [0, 0.5, 40.0], [0, 0, 1]])
    sthist.pp.align(sdata, "he", to="um", matrix=mirrored, overwrite=True)
    sthist.pp.nuclei(sdata)
    there = places * [-0.5, 0.5] + [700, 40]
    distance = np.linalg.norm(sdata["nuclei_table"].obsm["spatial"][:, None] - there, axis=2)
    assert len(sdata["nuclei_table"]) == len(places)
    assert distance.min(0).max() < 0.25


def test_needles_are_told_from_discs():
    y, x = np.mgrid[:120, :200] + 0.5
    needle = (np.abs(x - 60) < 24) & (np.abs(y - 60) < 5)
    disc = np.hypot(x - 150, y - 60) < 10
    rgb = np.where((needle | disc)[..., None], NUCLEUS, TISSUE).astype(np.uint8)
    sdata = slide(rgb)
    sthist.pp.nuclei(sdata)
    by_place = (
        sdata["nuclei_table"].obs["eccentricity"].to_numpy()[np.argsort(sdata["nuclei_table"].obsm["spatial"][:, 0])]
    )
    # Of a box of sides a and b the moments are as a^2 to b^2.
    assert by_place[0] == pytest.approx(np.sqrt(1 - (10 / 48) ** 2), abs=0.02)
    assert by_place[1] < 0.3


def test_same_nuclei_for_any_blocks(toy):
    he = open_he(toy)
    tiles, on_tissue = sample_of(toy, he, 0.5, 0)
    lattice, vectors = Lattice(he, 0.5), stains_of(tiles[on_tissue])
    method = _segmenter("watershed", None, tiles, 0.5)
    whole, *others = (find(lattice, method, vectors, (10, 400), None, False, block_px=side) for side in (512, 160, 112))
    assert len(whole) > 50
    for other in others:
        assert np.array_equal(whole.rank, other.rank)
        assert all(np.array_equal(whole.facts[name], other.facts[name]) for name in whole.facts)
        assert all(a.equals_exact(b) for a, b in zip(whole.outlines, other.outlines, strict=True))


def test_nuclei_do_not_lie_on_each_other_and_match_the_truth(toy):
    sdata = toy.subset(["he", "nucleus_boundaries"])
    sthist.pp.nuclei(sdata)
    outlines = sdata["nuclei"].geometry.to_numpy()
    assert shapely.is_valid(outlines).all()
    assert shapely.area(shapely.union_all(outlines)) > 0.99 * shapely.area(outlines).sum()
    true = sdata["nucleus_boundaries"].geometry
    labels = [
        rasterize(each, (0, 0), 0.5, (400, 400), np.arange(1, len(each) + 1)).astype(int) for each in (outlines, true)
    ]
    assert sthist.metrics.image.nucleus_preservation(*labels, mpp=0.5).f1 > 0.8


def test_parts_of_a_slide(discs):
    places, radii = discs
    sdata = slide(painted(places, radii))
    sthist.pp.nuclei(sdata, within=(0, 0, 60, 150))
    assert len(sdata["nuclei"]) == (places[:, 0] * 0.5 < 60).sum()
    sthist.pp.nuclei(sdata, within=shapely.box(60, 0, 1000, 1000), key_added="rest")
    assert len(sdata["nuclei"]) + len(sdata["rest"]) == len(places)
    sthist.pp.nuclei(sdata, min_area_um2=float(np.pi * (9 * 0.5) ** 2), key_added="large")
    assert 0 < len(sdata["large"]) < len(places)


def test_tissue_restricts(toy):
    sdata = toy.subset(["he"])
    sthist.pp.tissue(sdata, within=(0, 0, 120, 120))
    sthist.pp.nuclei(sdata)
    sthist.pp.nuclei(sdata, tissue=False, key_added="all")
    inside = shapely.intersects_xy(shapely.union_all(sdata["tissue"].geometry), *sdata["all_table"].obsm["spatial"].T)
    assert 0 < len(sdata["nuclei"]) == inside.sum() < len(sdata["all"])


def test_a_function_labels(discs):
    places, radii = discs
    rgb = painted(places, radii)

    def dark(pixels: np.ndarray) -> np.ndarray:
        from scipy.ndimage import label

        assert pixels.dtype == np.uint8
        return label(pixels[..., 0] < 150)[0]

    sdata = slide(rgb)
    sthist.pp.nuclei(sdata, method=dark)
    assert len(sdata["nuclei"]) == len(places)
    assert sdata.attrs["sthist"]["results"]["nuclei"]["method"].endswith("dark")


@pytest.mark.parametrize(
    ("answer", "message"),
    [
        (lambda pixels: np.zeros((3, 3), int), "of shape"),
        (lambda pixels: pixels[..., 0] / 2, "float64"),
        (lambda pixels: np.full(pixels.shape[:2], -1), "-1"),
        (lambda pixels: np.zeros(pixels.shape[:2], int), "Found no nuclei"),
    ],
)
def test_answers_of_a_function_are_checked(toy, answer, message):
    with pytest.raises(ValueError, match=message):
        sthist.pp.nuclei(toy, method=answer)


def test_written_and_read(discs, tmp_path):
    import spatialdata as sd

    places, radii = discs
    sdata = slide(painted(places, radii))
    sdata.write(tmp_path / "slide.zarr")
    sthist.pp.nuclei(tmp_path / "slide.zarr")
    back = sd.read_zarr(tmp_path / "slide.zarr")
    table = back["nuclei_table"]
    assert table.shape == (len(places), 0)
    assert back["nuclei"].index.tolist() == table.obs["instance_id"].tolist()
    centroid = back["nuclei"].geometry.centroid
    assert np.allclose(table.obsm["spatial"], np.c_[centroid.x, centroid.y])
    assert np.allclose(table.obs["area_um2"], back["nuclei"].geometry.area)


def test_coarse_images(discs, caplog):
    places, radii = discs
    sdata = slide(painted(places / 2, radii / 2, (150, 170)), mpp=1.0)
    sthist.pp.nuclei(sdata)
    assert "1 µm/px" in caplog.text
    assert "12 µm around it 12" in caplog.text
    assert len(sdata["nuclei"]) > 0.9 * len(places)
    with pytest.raises(ValueError, match=r"1\.6 µm/px"):
        sthist.pp.nuclei(slide(painted(places / 2, radii / 2, (150, 170)), mpp=1.6))


def test_bad_input(toy):
    for wrong, message in (
        ({"method": "cellpos"}, "cellpos"),
        ({"min_area_um2": 500.0}, "min_area_um2"),
        ({"mpp": 2.0}, "mpp"),
        ({"key_added": "he"}, "taken"),
        ({"within": (1e4, 1e4, 2e4, 2e4)}, "no nuclei"),
    ):
        with pytest.raises(ValueError, match=message):
            sthist.pp.nuclei(toy, **wrong)
    with pytest.raises(KeyError, match="tissu"):
        sthist.pp.nuclei(toy, tissue="tissu")
    with pytest.raises(KeyError, match="hee"):
        sthist.pp.nuclei(toy, "hee")
    with pytest.raises(ValueError, match="no H&E"):
        sthist.pp.nuclei(toy, "morphology_focus")


def test_nothing_on_an_empty_slide():
    with pytest.raises(ValueError, match="Found no nuclei"):
        sthist.pp.nuclei(slide(np.full((200, 200, 3), 240, np.uint8)))
