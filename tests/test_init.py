"""Importing sthist is cheap and loads nothing heavy; every public name exists and says what it does."""

from __future__ import annotations

import ast
import importlib
import inspect
import json
import subprocess
import sys
from pathlib import Path

import pytest

import sthist

HEAVY = [
    "torch",
    "timm",
    "open_clip",
    "diffusers",
    "lightning",
    "torchmetrics",
    "scanpy",
    "squidpy",
    "sklearn",
    "matplotlib.pyplot",
]
SUBMODULES = ["benchmark", "datasets", "encoders", "io", "metrics", "models", "pl", "pp", "scale", "stains", "tiles"]
SUBMODULES += ["tl"]


def test_import_loads_nothing_heavy():
    """None of the modules that take seconds, beyond what spatialdata itself loads."""
    code = (
        "import json, sys, spatialdata; before = set(sys.modules); import sthist\n"
        f"print(json.dumps([m for m in {list(HEAVY)} if m in set(sys.modules) - before]))"
    )
    out = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert json.loads(out.stdout) == []
    code = f"import json, sys, sthist; print(json.dumps([m for m in {list(HEAVY)} if m in sys.modules]))"
    out = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert json.loads(out.stdout) == []


def public_functions():
    for name in SUBMODULES:
        module = importlib.import_module(f"sthist.{name}")
        names = getattr(module, "__all__", None) or [
            n
            for n, f in vars(module).items()
            if inspect.isfunction(f) and f.__module__ == module.__name__ and n[0] != "_"
        ]
        for function in (name for name in names if not inspect.ismodule(getattr(module, name))):
            yield f"{name}.{function}", getattr(module, function)


@pytest.mark.parametrize(("name", "thing"), list(public_functions()))
def test_public_names_are_documented(name, thing):
    """What it does, each parameter by name, and an example or the source of one."""
    doc = inspect.getdoc(thing)
    assert doc, name
    if inspect.isfunction(thing):
        for parameter in inspect.signature(thing).parameters.values():
            assert parameter.name in doc, f"{name}: {parameter.name}"


def test_the_api_page_lists_every_public_name():
    """What is not documented is not there for a user."""
    page = (Path(__file__).parents[1] / "docs" / "api.md").read_text()
    missing = [name for name, _ in public_functions() if f"   {name}\n" not in page]
    assert missing == []


def private_imports(text: str) -> list[str]:
    """Names imported from a private module that a public namespace exports, each with where it is public."""
    namespaces = [f"sthist.{name}" for name in (*SUBMODULES, "metrics.image", "nets")]
    # The name alone would not do: two modules may use one name for different things.
    public = {
        (name, id(getattr(module, name))): module.__name__
        for module in map(importlib.import_module, namespaces)
        for name in dir(module)
        if name[0] != "_" and not inspect.ismodule(getattr(module, name))
    }
    reachable = []
    for node in ast.walk(ast.parse(text)):
        source = getattr(node, "module", None) or ""
        if isinstance(node, ast.ImportFrom) and source.startswith("sthist.") and source not in namespaces:
            module = importlib.import_module(source)
            keys = [(alias.name, id(getattr(module, alias.name, None))) for alias in node.names]
            reachable += [f"{source}.{key[0]} is {public[key]}.{key[0]}" for key in keys if key in public]
    return reachable


def test_tests_enter_by_public_names():
    """Where a name is public, tests import it as a user does, so that a private module can move."""
    assert private_imports("from sthist.tiles._spec import TileSpec") == [
        "sthist.tiles._spec.TileSpec is sthist.tiles.TileSpec"
    ]
    folder = Path(__file__).parent
    files = {str(path.relative_to(folder)): private_imports(path.read_text()) for path in folder.rglob("*.py")}
    assert {name: imports for name, imports in files.items() if imports} == {}


def test_everything_announced_is_there():
    """dir() and __all__ hold no name that cannot be had."""
    for name in sthist.__all__:
        assert getattr(sthist, name) is not None


def test_typed():
    """Type checkers read our annotations."""
    from importlib.resources import files

    assert (files("sthist") / "py.typed").is_file()
