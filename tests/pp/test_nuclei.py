"""Finding nuclei: the same however the slide is divided, each once, at the right place and size."""

from __future__ import annotations

import numpy as np
import pytest
import shapely

import sthist
from sthist.pp._nuclei.methods import Called, sample_of, stains_of
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
    sthist.pp.nuclei(sdata, method="watershed")
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
    sthist.pp.nuclei(sdata, method="watershed")
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
    sthist.pp.nuclei(sdata, method="watershed")
    by_place = (
        sdata["nuclei_table"].obs["eccentricity"].to_numpy()[np.argsort(sdata["nuclei_table"].obsm["spatial"][:, 0])]
    )
    # Of a box of sides a and b the moments are as a^2 to b^2.
    assert by_place[0] == pytest.approx(np.sqrt(1 - (10 / 48) ** 2), abs=0.02)
    assert by_place[1] < 0.3


@pytest.mark.parametrize("name", ["small", "watershed"])
def test_same_nuclei_for_any_blocks(toy, name):
    he = open_he(toy)
    tiles, on_tissue = sample_of(toy, he, 0.5, 0)
    lattice, vectors = Lattice(he, 0.5), stains_of(tiles[on_tissue])
    whole, *others = (
        find(lattice, _segmenter(name, None, None, None, tiles, 0.5), vectors, (10, 400), None, False, block_px=side)
        for side in (512, 160, 112)
    )
    assert len(whole) > 50
    for other in others:
        assert np.array_equal(whole.rank, other.rank)
        assert all(np.array_equal(whole.facts[name], other.facts[name]) for name in whole.facts)
        assert all(a.equals_exact(b) for a, b in zip(whole.outlines, other.outlines, strict=True))


@pytest.mark.parametrize("method", ["small", "watershed"])
def test_nuclei_do_not_lie_on_each_other_and_match_the_truth(toy, method):
    sdata = toy.subset(["he", "nucleus_boundaries"])
    sthist.pp.nuclei(sdata, method=method)
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
    sthist.pp.nuclei(sdata, method="watershed", within=(0, 0, 60, 150))
    assert len(sdata["nuclei"]) == (places[:, 0] * 0.5 < 60).sum()
    sthist.pp.nuclei(sdata, method="watershed", within=shapely.box(60, 0, 1000, 1000), key_added="rest")
    assert len(sdata["nuclei"]) + len(sdata["rest"]) == len(places)
    sthist.pp.nuclei(sdata, method="watershed", min_area_um2=float(np.pi * (9 * 0.5) ** 2), key_added="large")
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
    sthist.pp.nuclei(tmp_path / "slide.zarr", method="watershed")
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
    sthist.pp.nuclei(sdata, method="watershed")
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


@pytest.fixture(scope="module")
def painted_slide(discs):
    return slide(painted(*discs))


def test_nuclei_that_are_known(painted_slide, discs, tmp_path, caplog):
    import json

    import geopandas as gpd

    places, radii = discs
    circles = shapely.buffer(shapely.points(places * 0.5), radii * 0.5)
    bow_tie = shapely.Polygon([(10, 5), (20, 15), (20, 5), (10, 15)])
    frame = gpd.GeoDataFrame(geometry=[*circles, bow_tie, shapely.Point(3, 3)])
    frame.index = [f"cell{i}" for i in range(len(frame))]
    sthist.pp.nuclei(painted_slide, method=frame, key_added="from_frame")
    table = painted_slide["from_frame_table"]
    assert table.obs["source_id"].tolist() == frame.index[:-1].tolist()
    assert "cross themselves" in caplog.text
    assert "no area" in caplog.text
    assert painted_slide["from_frame"].is_valid.all()
    area = table.obs["area_um2"].to_numpy()
    assert np.allclose(area[:-1], shapely.area(circles))
    assert area[-1] == pytest.approx(50)  # two triangles of 10 by 5
    # The discs are of haematoxylin; the bow tie lies partly on them, and has less.
    assert table.obs["haematoxylin"].iloc[:-1].min() > table.obs["haematoxylin"].iloc[-1]

    cells = [{"contour": (np.array(each.exterior.coords[:-1]) * 2).tolist(), "type": 1} for each in circles]
    (tmp_path / "cells.json").write_text(json.dumps({"wsi_metadata": {}, "cells": cells}))
    features = [
        {
            "type": "Feature",
            "properties": {},
            "geometry": {"type": "Polygon", "coordinates": [[*c["contour"], c["contour"][0]]]},
        }
        for c in cells
    ]
    (tmp_path / "cells.geojson").write_text(json.dumps({"type": "FeatureCollection", "features": features}))
    for source, key in ((tmp_path / "cells.json", "a"), (str(tmp_path / "cells.geojson"), "b"), ("a", "c")):
        sthist.pp.nuclei(painted_slide, method=source, key_added=key)
        assert np.allclose(painted_slide[f"{key}_table"].obs["area_um2"], shapely.area(circles))
        assert np.allclose(painted_slide[f"{key}_table"].obsm["spatial"], places * 0.5, atol=1e-6)

    (tmp_path / "broken.json").write_text(json.dumps({"cells": [{"contour": [[1, 2]]}]}))
    with pytest.raises(ValueError, match=r"cells\[0\]"):
        sthist.pp.nuclei(painted_slide, method=tmp_path / "broken.json", key_added="d")
    with pytest.raises(FileNotFoundError):
        sthist.pp.nuclei(painted_slide, method="none.geojson", key_added="d")
    with pytest.raises(ValueError, match="None of the"):
        sthist.pp.nuclei(painted_slide, method=frame.translate(1e4).to_frame("geometry"), key_added="d")
    with pytest.raises(ValueError, match="no outlines with an area; they are Point"):
        sthist.pp.nuclei(painted_slide, method=frame.iloc[-1:], key_added="d")


def dark_labels(rgb):
    from scipy.ndimage import label

    return label(np.asarray(rgb)[..., 0] < 150)[0]


class FakeInstanSeg:
    def __init__(self, model, device=None, verbosity=1):
        assert model == "brightfield_nuclei"

    def eval_small_image(self, image, pixel_size, return_image_tensor, target):
        import torch

        assert (pixel_size, return_image_tensor, target) == (0.5, False, "nuclei")
        return torch.from_numpy(dark_labels(image))[None, None].float()


class FakeCellpose:
    def __init__(self, gpu, device, **chosen):
        assert not gpu
        assert set(chosen) <= {"pretrained_model"}

    def eval(self, image):
        return dark_labels(image), [], []


class FakeZoo:
    license, is_gated, hf_url = "MIT", False, None

    def __init__(self, model_path=None):
        self.device = None

    def to(self, device):
        self.device = device
        return self

    def get_transform(self):
        return None

    def segment(self, pixels):
        from types import SimpleNamespace

        return SimpleNamespace(instance_map=dark_labels(pixels[0].permute(1, 2, 0).numpy())[None])


@pytest.fixture
def packages(monkeypatch):
    import sys
    from types import ModuleType

    for name, facts in {
        "instanseg": {"InstanSeg": FakeInstanSeg},
        "cellpose.models": {"CellposeModel": FakeCellpose},
        "cellpose": {},
        "lazyslide_models": {"MODEL_REGISTRY": {"nulite": FakeZoo}},
    }.items():
        module = ModuleType(name)
        vars(module).update(facts)
        monkeypatch.setitem(sys.modules, name, module)
    sys.modules["cellpose"].models = sys.modules["cellpose.models"]
    monkeypatch.setattr("sthist._weights.hub.reachable", lambda: False)


@pytest.mark.parametrize("method", ["instanseg", "cellpose", "nulite"])
def test_networks_of_other_packages(packages, painted_slide, discs, method):
    sthist.pp.nuclei(painted_slide, method=method, device="cpu", key_added=f"by_{method}")
    centres = painted_slide[f"by_{method}_table"].obsm["spatial"]
    assert len(centres) == len(discs[0])
    assert np.linalg.norm(centres[:, None] - discs[0] * 0.5, axis=2).min(0).max() < 0.3


def test_packages_that_are_not_there(painted_slide):
    for method in ("instanseg", "cellpose"):
        with pytest.raises(ImportError, match=r"sthist\[seg\]"):
            sthist.pp.nuclei(painted_slide, method=method, key_added="e")
    with pytest.raises(ValueError, match=r"sthist\[zoo\]"):
        sthist.pp.nuclei(painted_slide, method="nulite", key_added="e")
    with pytest.raises(ValueError, match="weights="):
        sthist.pp.nuclei(painted_slide, method="watershed", weights="a.pt", key_added="e")
    with pytest.raises(FileNotFoundError, match="none.pt"):
        sthist.pp.nuclei(painted_slide, method="cellpose", weights="none.pt", key_added="e")


def test_what_two_blocks_find_is_counted_once(painted_slide, discs):
    """A function that sees each window a little differently: its nuclei differ between blocks by a rim."""
    calls = []

    def shaky(rgb):
        calls.append(1)
        return dark_labels(np.clip(rgb.astype(int) + (20 if len(calls) % 2 else -20), 0, 255))

    he = open_he(painted_slide)
    found = find(Lattice(he, 0.5), Called(shaky), np.eye(2, 3), (10, 400), None, False, block_px=64)
    assert len(calls) > 10
    assert len(found) == len(discs[0])


def test_weights_of_the_small_network(painted_slide, tmp_path):
    import torch
    from safetensors.torch import load_file, save_file

    from sthist.nets import NucleusUNet
    from sthist.pp._nuclei.small import SHIPPED

    state = load_file(SHIPPED / "model.safetensors")
    save_file(state, tmp_path / "copy.safetensors")
    sthist.pp.nuclei(painted_slide, method="small", key_added="shipped")
    sthist.pp.nuclei(painted_slide, method="small", weights=tmp_path / "copy.safetensors", key_added="copied")
    assert painted_slide["copied"].geometry.equals(painted_slide["shipped"].geometry)

    # One of another width, which takes nothing for nucleus.
    mine = NucleusUNet(width=4)
    torch.nn.init.constant_(mine.last.bias, -100.0)
    save_file(mine.state_dict(), tmp_path / "mine.safetensors")
    with pytest.raises(ValueError, match="Found no nuclei"):
        sthist.pp.nuclei(painted_slide, method="small", weights=tmp_path / "mine.safetensors", key_added="mine")

    (tmp_path / "text.safetensors").write_text("none")
    save_file({"a": torch.zeros(1)}, tmp_path / "other.safetensors")
    save_file(state | {"last.bias": torch.full_like(state["last.bias"], torch.nan)}, tmp_path / "nan.safetensors")
    for name, error, message in (
        ("missing", FileNotFoundError, "missing"),
        ("text", ValueError, "cannot be read as weights"),
        ("other", ValueError, "weights of another network"),
        ("nan", ValueError, "'last.bias' holds NaN"),
    ):
        with pytest.raises(error, match=message):
            sthist.pp.nuclei(painted_slide, method="small", weights=tmp_path / f"{name}.safetensors", key_added="e")


def test_the_small_network_sees_nuclei_that_the_border_cuts():
    """Beyond the border it sees the image mirrored: half a disc is one nucleus of half the area."""
    places, radii = np.stack([np.arange(30, 330, 50), np.zeros(6)], 1), np.full(6, 9.0)
    sdata = slide(painted(places, radii))
    sthist.pp.nuclei(sdata, method="small")
    found = sdata["nuclei_table"]
    assert len(found) == len(places)
    assert np.abs(np.sort(found.obsm["spatial"][:, 0]) - places[:, 0] * 0.5).max() < 0.5
    assert np.abs(found.obs["area_um2"] / (np.pi * (9 * 0.5) ** 2 / 2) - 1).max() < 0.25
