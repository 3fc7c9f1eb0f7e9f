"""From nuclei of slides to an encoder, and back to embeddings of nuclei."""

from __future__ import annotations

import numpy as np
import pytest
import spatialdata as sd

import sthist
from sthist.models import MoCoV3Config
from sthist.tiles import TileReader, TileSpec

TINY = MoCoV3Config(px=16, backbone="resnet10t", width=0.125, hidden=32, dim=16)
QUICK = {"epochs": 1, "batch_size": 16}
KEY = "nucleus_boundaries"


@pytest.fixture(scope="module")
def slide():
    return sthist.datasets.toy(size_um=200)


@pytest.fixture
def seen(monkeypatch):
    """The crops that a model is trained on."""
    found = []
    fit = sthist.models.MoCoV3.fit

    def fit_and_keep(self, crops, **options):
        found.append(np.array(crops))
        return fit(self, crops, **options)

    monkeypatch.setattr(sthist.models.MoCoV3, "fit", fit_and_keep)
    return found


def train(data, **options):
    arguments = {"cells": KEY, "training": QUICK, "device": "cpu", "progress": False, **options}
    return sthist.tl.train_cell_encoder(data, TINY, **arguments)


def whole_crops(slide):
    """Crops of all nuclei of which all 18 µm lie on the slide, which is turned."""
    places = np.c_[slide.shapes[KEY].geometry.centroid.x, slide.shapes[KEY].geometry.centroid.y]
    places = places @ matrix(slide, KEY)[:2, :2].T + matrix(slide, KEY)[:2, 2]
    corners = places[:, None] + [[-9, -9], [9, -9], [9, 9], [-9, 9]]
    pixels = np.concatenate([corners, np.ones((len(corners), 4, 1))], 2) @ np.linalg.inv(matrix(slide, "he")).T
    inside = ((pixels[..., :2] >= 0) & (pixels[..., :2] < slide["he"].shape[-1])).all((1, 2))
    reader = TileReader(slide, "he", TileSpec(18.0, 24), fill=255, allow_upsampling=True)
    return reader.read(places[inside])


def matrix(slide, key):
    return sd.transformations.get_transformation(slide[key], "um").to_affine_matrix(("x", "y"), ("x", "y"))


def same_set(one, other):
    return sorted(each.tobytes() for each in one) == sorted(each.tobytes() for each in other)


def test_crops_are_18_um_around_each_nucleus_that_is_whole(slide, seen):
    model = train(slide)
    assert same_set(seen[0], whole_crops(slide))
    assert len(seen[0]) < len(slide[KEY])
    sthist.pp.embed(slide, model, regions=KEY, progress=False)
    table = slide[f"{KEY}_table"]
    assert table.obsm["X_moco_v3"].shape == (len(slide[KEY]), 64)
    assert table.uns["sthist"]["X_moco_v3"]["spec"] == {"size_um": 12.0, "px": 16}
    assert table.uns["sthist"]["X_moco_v3"]["provenance"]["sha256"] == model.provenance["sha256"]


def test_many_crops_lie_in_a_file(slide, seen, monkeypatch):
    in_memory = train(slide)
    monkeypatch.setattr("sthist.training.crops.IN_MEMORY", 1000)
    on_disk = train(slide)
    assert np.array_equal(*seen)
    assert all(np.array_equal(on_disk.weights[name], value) for name, value in in_memory.weights.items())


def test_max_cells_are_drawn_from_all_samples(slide, seen):
    other = sthist.datasets.toy(size_um=200, seed=3)
    train({"a": slide, "b": other}, max_cells=30, training={**QUICK, "seed": 2})
    assert len(seen[0]) == 30
    of_first = {each.tobytes() for each in whole_crops(slide)}
    assert 5 < sum(each.tobytes() in of_first for each in seen[0]) < 25


def test_samples_that_test_are_not_looked_at(slide, seen):
    other = sthist.datasets.toy(size_um=200, seed=3)
    train({"a": slide, "b": other}, split={"a": "test", "b": "train"})
    assert same_set(seen[0], whole_crops(other))


def test_part_of_a_slide(slide, seen):
    train(slide, within=(0, 0, 100, 200))
    assert 2 <= len(seen[0]) < 0.7 * len(whole_crops(slide))


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        ({"split": {"a": "train", "c": "test"}}, KeyError, "split= names 'c'; the samples are"),
        ({"split": {"a": "train"}}, KeyError, "does not say what sample 'b' is for"),
        ({"split": {"a": "train", "b": "left out"}}, ValueError, "has 'left out' for 'b'"),
        ({"split": {"a": "test", "b": "test"}}, ValueError, "No sample trains"),
        ({"max_cells": 1}, ValueError, "max_cells is 1"),
        ({"cells": "nuclei"}, KeyError, "No shapes or table 'nuclei'"),
        ({"training": {"resume": True}}, ValueError, "resume=True needs folder="),
        ({"training": {"epoch": 3}}, TypeError, "no setting 'epoch'"),
    ],
)
def test_what_cannot_be_meant(slide, options, error, message):
    with pytest.raises(error, match=message):
        train({"a": slide, "b": sthist.datasets.toy(size_um=100, seed=3)}, **options)


def test_models_that_there_are_not(slide):
    with pytest.raises(ValueError, match="model is 'simclr'; it is 'moco-v3'"):
        sthist.tl.train_cell_encoder(slide, "simclr", cells=KEY)
    with pytest.raises(TypeError, match="An AnnData has no pixels"):
        train(slide["table"])


def test_nuclei_outside_the_image(slide):
    moved = sthist.datasets.toy(size_um=100, seed=4)
    shapes = moved[KEY].copy()
    shapes.geometry = shapes.geometry.translate(5000, 0)
    moved[KEY] = shapes
    with pytest.raises(ValueError, match="lies 9 µm or more inside the image 'he'"):
        train(moved)
