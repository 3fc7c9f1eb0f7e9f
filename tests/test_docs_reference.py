"""Reference pages show the type of each parameter, and a returned type above the sentence that tells of it."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

pytest.importorskip("sphinx")

DOCS = Path(__file__).parents[1] / "docs"

# In a process of its own: names that modules import for annotations alone are put into them.
SECTIONS = """
import inspect, json, sys
sys.path[:0] = [sys.argv[1] + "/_ext", sys.argv[1]]
import argument_tables, reference_pages
reference_pages.complete_annotations()
pages = {}
for name, thing in argument_tables.public_functions():
    lines = inspect.getdoc(thing).split("\\n")
    reference_pages.add_types(None, "class" if inspect.isclass(thing) else "function", name, thing, None, lines)
    sections = dict(reference_pages.numpydoc_sections(lines))
    headers = {title: [line for line in body if line and line[0] != " "] for title, body in sections.items()}
    pages[name] = {"parameters": list(inspect.signature(thing).parameters), **headers}
print(json.dumps(pages))
"""


@pytest.fixture(scope="module")
def pages():
    command = [sys.executable, "-c", SECTIONS, str(DOCS)]
    return json.loads(subprocess.run(command, capture_output=True, text=True, check=True).stdout.splitlines()[-1])


def test_every_parameter_has_its_type(pages):
    listed = {
        f"{name}: {header}"
        for name, page in pages.items()
        for header in page.get("Parameters", ())
        if " : " not in header
    }
    assert not listed
    for name, page in pages.items():
        if "Parameters" in page:
            names = [header.split(" : ")[0].lstrip("*") for header in page["Parameters"]]
            assert sorted(names) == sorted(page["parameters"]), name


def test_what_is_returned_is_a_type_or_nothing(pages):
    assert sum("Returns" in page for page in pages.values()) > 100
    for name, page in pages.items():
        assert len(page.get("Returns", ":")) == 1, name
    assert pages["pl.roc"]["Returns"] == ["~matplotlib.axes._axes.Axes"]
    assert pages["pp.tissue"]["Returns"] == [":"]


def test_types_of_a_call(pages):
    """As its annotations have them."""
    found = dict(header.split(" : ") for header in pages["pl.roc"]["Parameters"])
    assert found["classes"] == "~collections.abc.Sequence[str] | None"
    assert found["save"] == "str | ~pathlib.Path | None"
