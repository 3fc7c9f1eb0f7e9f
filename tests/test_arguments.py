"""One vocabulary: what an argument is called, how many there are, and which verbs have to have one."""

from __future__ import annotations

import inspect
import sys
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parents[1] / "docs"))
import argument_tables

FUNCTIONS = dict(argument_tables.public_functions())
VERBS = {name: found for name, found in FUNCTIONS.items() if name.startswith(("pp.", "tl."))}
NO_SAMPLE = {"pl.training_history", "pp.GeneMatch", "pp.GenePanel", "pp.StainNormalizer", "pp.StainReference"}
"""Classes among the verbs."""

OWNS = {
    "within": (
        "pp.aggregate pp.embed pp.stain_normalize pp.tiles pp.tissue pl.alignment pl.cells pl.overlay pl.score_map "
        "pl.virtual_he tiles.map_tiles tl.annotate tl.heatmap tl.train_annotator tl.train_virtual_he tl.virtual_he"
    ),
    "seed": (
        "benchmark.ablate_virtual_he benchmark.annotation_transfer benchmark.cross_validate_virtual_he "
        "benchmark.nucleus_preservation benchmark.virtual_he datasets.simulate_hrst datasets.toy metrics.image.compare "
        "metrics.image.kid pl.tiles pp.align pp.stain_normalize pp.tiles tiles.Overlay tiles.TileLoader "
        "tiles.export_pairs tiles.farthest_points tl.colocalization tl.niches tl.virtual_he"
    ),
    "device": (
        "benchmark.annotation_transfer encoders.get pp.embed tl.annotate tl.heatmap tl.train_annotator "
        "tl.train_virtual_he tl.virtual_he"
    ),
    "batch_size": "pp.embed tiles.TileLoader tiles.map_tiles tl.annotate tl.heatmap tl.virtual_he",
    "progress": (
        "pp.embed pp.stain_normalize pp.tiles tiles.map_tiles tl.annotate tl.heatmap tl.train_annotator "
        "tl.train_virtual_he tl.virtual_he"
    ),
    "client": "pp.embed tiles.map_tiles tl.virtual_he",
    "overwrite": (
        "io.export_geojson io.export_ome_tiff io.export_xenium_explorer io.read_annotations pp.aggregate pp.align "
        "pp.background pp.embed pp.genes pp.label_regions pp.set_scale pp.stain_normalize pp.tiles pp.tissue pp.tma "
        "tl.annotate tl.colocalization tl.heatmap tl.niches tl.pool_topk tl.transfer_labels tl.virtual_he"
    ),
    "allow_upsampling": "tiles.TileReader tiles.Overlay",
    "precision": "encoders.get pp.embed",
}
"""Calls for which an argument means something."""


def arguments(found):
    """Parameters by name."""
    return inspect.signature(found).parameters


@pytest.mark.parametrize("name", FUNCTIONS)
def test_names_are_those_of_the_vocabulary(name):
    unknown = set(arguments(FUNCTIONS[name])) - set(argument_tables.meanings())
    assert not unknown, f"{sorted(unknown)} of {name}: take a name of docs/arguments.csv, or add a line there."


@pytest.mark.parametrize("name", FUNCTIONS)
def test_no_call_has_more_than_can_be_read(name):
    assert len(arguments(FUNCTIONS[name])) <= (15 if name.startswith("tl.train_") else 18)


@pytest.mark.parametrize("name", sorted(set(VERBS) - NO_SAMPLE))
def test_what_is_worked_on_comes_first(name):
    first, *rest = arguments(VERBS[name]).values()
    takes_one = first.annotation == "SpatialData" and not hasattr(VERBS[name], "__wrapped__")  # no mapping of samples
    assert first.name == ("sdata" if takes_one else "data")
    by_place = [each.name for each in rest if each.kind is each.POSITIONAL_OR_KEYWORD]
    assert len(by_place) <= 3, f"{by_place} of {name} can be given by place"


@pytest.mark.parametrize("name", [name for name in FUNCTIONS if name.split(".")[0] in {"pp", "tl", "pl", "benchmark"}])
def test_a_sample_is_called_data_or_sdata(name):
    first = next(iter(arguments(FUNCTIONS[name])), None)
    assert first in {"data", "sdata", "frame", "labels"} or name in NO_SAMPLE


@pytest.mark.parametrize("argument", OWNS)
def test_verbs_have_what_means_something_to_them(argument):
    missing = [name for name in OWNS[argument].split() if argument not in arguments(FUNCTIONS[name])]
    assert not missing


@pytest.mark.parametrize("name", [name for name in FUNCTIONS if name.startswith("pl.")])
def test_figures_are_axes(name):
    if name == "pl.view":  # a page in the browser
        return
    assert inspect.signature(FUNCTIONS[name]).return_annotation in {"Axes", "list[Axes]"}


def test_meanings_are_said_once():
    lines = (Path(argument_tables.__file__).parent / "arguments.csv").read_text().splitlines()[1:]
    names = [line.split(",", 1)[0] for line in lines]
    assert names == sorted(set(names))
