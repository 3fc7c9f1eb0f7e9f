"""Importing sthist is cheap and loads nothing heavy; every public name exists and says what it does."""

from __future__ import annotations

import ast
import importlib
import inspect
import json
import subprocess
import sys
import tomllib
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


def test_no_array_of_a_store_is_unpickled(tmp_path):
    """Arrays may name pickle as their codec; whatever version of numcodecs may be installed refuses it."""
    import numcodecs
    import zarr
    from numcodecs.errors import UnsafeDecodeError
    from packaging.requirements import Requirement

    root = Path(__file__).parents[1]
    needed = tomllib.loads((root / "pyproject.toml").read_text())["project"]["dependencies"]
    (versions,) = (Requirement(text).specifier for text in needed if text.startswith("numcodecs"))
    # As its release notes have it: fixed in these, and no others of their lines.
    assert [version in versions for version in ("0.16.5", "0.16.6", "0.17.0", "0.17.1")] == [False, True, False, True]
    assert numcodecs.__version__ in versions
    array = zarr.create_array(
        tmp_path / "a", shape=(1,), dtype="int64", zarr_format=2, filters=[numcodecs.Pickle()], compressors=None
    )
    chunk = tmp_path / "a" / "0"
    mark = tmp_path / "mark"
    chunk.write_bytes(f"cos\nmkdir\n(S'{mark}'\ntR.".encode())
    with pytest.raises(UnsafeDecodeError, match="disabled"):
        array[:]
    assert not mark.exists()
