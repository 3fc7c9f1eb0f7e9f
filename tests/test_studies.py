"""Studies of which the data or the weights are not here, on miniatures of both: they run from end to end."""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np
import pytest
import spatialdata as sd
from translating import adapted, clip_folder
from turbo_files import write_backbone

import sthist
from sthist.models import LossWeights
from sthist.tiles import TileSpec

sys.path.insert(0, str(Path(__file__).parents[1] / "studies" / "virtual_he"))
import planes as planes_study
import xenium_pairs

pytestmark = pytest.mark.slow


def test_st2he_on_pairs_of_several_tissues(toy, tmp_path):
    """Adapters on a tiny SD-Turbo, with the losses of upstream but LPIPS; two tissues, of 16 µm tiles."""
    samples = {"breast_1": toy, "lung_1": sd.deepcopy(toy)}
    tissue = {"breast_1": "breast", "lung_1": "lung"}
    (tmp_path / "backbone").mkdir()
    (tmp_path / "clip").mkdir()
    model = adapted(write_backbone(tmp_path / "backbone"), prompts={"breast": "a", "lung": "lung", "": "a lung"})
    training = {
        "epochs": 1,
        "steps_per_epoch": 2,
        "batch_size": 2,
        "perceptual": "structural",
        "losses": LossWeights(perceptual=1.0, text=1.0),
        "clip": "quiltnet",
        "clip_weights": str(clip_folder(tmp_path / "clip")),
        "prompts": {"breast": "a", "lung": "lung"},
        "max_shift_um": None,
        "device": "cpu",
        "progress": False,
    }
    how = {"model": model, "spec": TileSpec(16, 32), "n_tiles": 60, "n_scored": 8, "untold": "a lung"}
    frame = xenium_pairs.compared(samples, tissue, tmp_path / "runs", training=training, **how)
    made = frame[frame.method == "model"]
    assert set(made.variant) == {"all tissues, told which", "a model per tissue", "all tissues, not told"}
    assert made.ssim.notna().all()
    assert set(made["sample"]) == set(samples)
    assert {"mean colour", "beer-lambert"} <= set(frame.method)
    assert {each["metric"] for each in frame.attrs["sets"]} == {"fid"}
    (folder,) = (tmp_path / "runs").glob("a_model_per_tissue*fold0*")
    assert {each.name for each in folder.iterdir()} == set(tissue.values())


def test_neighbouring_planes_train_and_the_centre_tests(toy):
    """Three planes of the toy's stain, each dimmer than the last; its regions are the patterns."""
    stain = np.asarray(sthist.tiles.read_region(toy, "morphology_focus", (0, 0, 400, 400), 0.5))[..., 0]
    stack = np.stack([(stain * share).astype(np.uint16) for share in (1.0, 0.9, 0.8)])[None]
    molecules = toy["transcripts"].compute().rename(columns={"x": "x_um", "y": "y_um"})
    sdata = sthist.io.assemble({"stack": stack}, mpp=0.5, channels={"stack": ["DAPI"]}, points=molecules)
    sdata["regions"] = toy["regions"]
    spec = planes_study.SPEC
    planes_study.SPEC = TileSpec(32, 64)
    try:
        sthist.pp.tissue(sdata)
        how = {"model": "beer-lambert", "encoder": "morphology"}
        tiles = planes_study.tiles_of_planes(sdata, "stack", [0, 1, 2], "regions", **how)
    finally:
        planes_study.SPEC = spec
    assert tiles.obs["z"].value_counts().nunique() == 1
    found = planes_study.compared(tiles, 1)
    by_plane, by_square = found.values()
    assert by_plane
    assert by_square
