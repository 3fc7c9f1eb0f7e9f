"""What messages advise: arguments that exist, and calls that work."""

from __future__ import annotations

import ast
import dataclasses
import inspect
import re
from pathlib import Path

import numpy as np
import pytest

import sthist
from sthist.tiles import TileSpec

ROOMS = (
    *("benchmark", "datasets", "encoders", "io", "metrics", "models", "pl"),
    *("pp", "nets", "scale", "stains", "tiles", "tl"),
)

OF_OTHERS = {
    *("region", "region_key", "instance_key", "feature_key"),  # spatialdata's models
    *(
        "aligned_images",
        "cells_table",
        "counts_file",
        "fullres_image_file",
        "vpt_outputs",
    ),  # spatialdata-io's readers, through ours
    *("text_tower", "x", "y"),  # of open_clip; and places
    *("charset", "src", "width", "height", "style", "href", "target", "rel"),  # of HTTP and HTML, in the viewer
    *("use_raw", "drop", "weights_only", "bytes"),  # scanpy, pandas, torch, the header of a download
}
"""Arguments of other packages that messages name."""

ARGUMENT = re.compile(r"(?<![\w.\[\"'{-])([a-z][a-z_0-9]*)=(?!=)")


def arguments():
    """Names of the arguments of all that is public, and of the settings."""
    names = {field.name for field in dataclasses.fields(sthist.settings)}

    def add(thing):
        if inspect.isclass(thing) or callable(thing):
            names.update(inspect.signature(thing).parameters)

    for room in ROOMS:
        module = getattr(sthist, room)
        for name in module.__all__ if hasattr(module, "__all__") else dir(module):
            thing = getattr(module, name)
            if inspect.isclass(thing):
                for member in (getattr(thing, each) for each in dir(thing) if not each.startswith("_")):
                    if inspect.isfunction(member) or inspect.ismethod(member):
                        add(member)
            if inspect.isfunction(thing) or inspect.isclass(thing):
                add(thing)
    return names


def messages(tree):
    """Texts of a module that are no docstrings."""
    described = {id(node.value) for node in ast.walk(tree) if isinstance(node, ast.Expr)}
    for node in ast.walk(tree):
        if isinstance(node, ast.Constant) and isinstance(node.value, str) and id(node) not in described:
            yield node.lineno, node.value


def test_messages_name_arguments_that_exist():
    known = arguments() | OF_OTHERS
    unknown = [
        f"{path}:{line}: {name}="
        for path in sorted(Path(sthist.__file__).parent.rglob("*.py"))
        for line, text in messages(ast.parse(path.read_text(encoding="utf-8")))
        for name in ARGUMENT.findall(text)
        if name not in known
    ]
    assert not unknown


def test_a_coarse_image_is_embedded_as_the_message_says(toy):
    sthist.pp.tissue(toy)
    sthist.pp.tiles(toy, size_um=100, px=200)
    with pytest.raises(ValueError, match="more than 1.5 times finer") as caught:
        sthist.pp.embed(toy, "morphology", image="he", regions="tiles", spec=TileSpec(100, 1000))
    assert "allow_upsampling" not in str(caught.value)
    advice = re.search(r"Pass spec=sthist\.tiles\.TileSpec\((\d+), (\d+)\), or coarser\.$", str(caught.value))
    spec = TileSpec(*map(int, advice.groups()))
    assert spec.mpp == pytest.approx(sthist.tiles.open_image(toy, "he").mpp[0], rel=0.02)
    sthist.pp.embed(toy, "morphology", image="he", regions="tiles", spec=spec, progress=False)
    assert np.isfinite(toy["tiles_table"].obsm["X_morphology"]).all()


@pytest.mark.parametrize("name", ["beer-lambert", "beer_lambert", "Beer-Lambert"])
def test_models_by_name(toy, name):
    assert sthist.models.load(name).system == "beer-lambert"
    sthist.tl.virtual_he(toy, name, within=(0, 0, 60, 60))
    assert "virtual_he" in toy.images


def test_other_spellings_of_names():
    assert sthist.models.load("ST2HE_small").system == "st2he"
    with pytest.raises(FileNotFoundError, match=r"come with the package are \['beer-lambert', 'st2he-small'\]"):
        sthist.models.load("beerlambert")
    with pytest.raises((KeyError, ValueError), match="(?i)nuclear|H&E"):  # the name is known, the data is not
        sthist.tl.train_virtual_he(sthist.datasets.toy(size_um=300, kind="visium"), "SD_Turbo")
