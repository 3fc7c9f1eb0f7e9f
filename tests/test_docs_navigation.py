"""What people look for is near to the front page, every page is in the sidebar, and the gallery has every plot."""

from __future__ import annotations

import re
import runpy
import tomllib
from pathlib import Path

import matplotlib.pyplot as plt
import pytest
from PIL import Image

import sthist

ROOT = Path(__file__).parents[1]
DOCS = ROOT / "docs"
PYTHON = re.compile(r"^```python\n(.*?)^```", re.DOTALL | re.MULTILINE)
TOCTREE = re.compile(r"^```\{toctree\}\n(.*?)^```", re.DOTALL | re.MULTILINE)


def page(name):
    return (DOCS / f"{name}.md").read_text()


def in_toctree(text):
    """Pages that a page has below it in the sidebar."""
    lines = [line for tree in TOCTREE.findall(text) for line in tree.splitlines()]
    return [line for line in lines if line and line[0] != ":"]


def links(text):
    """Pages that a reader of a page can go to with one click: what it links to, and what it has in the sidebar."""
    found = re.findall(r"\]\(([\w/]+)(?:\.md|\.ipynb)(?:#[\w-]+)?\)", text)
    return [*found, *re.findall(r"^:link: (\w+)$", text, re.MULTILINE), *in_toctree(text)]


def clicks(wanted):
    """How many clicks lead from the front page to a page that has the text."""
    reached, seen = ["index"], set()
    for n in range(10):
        if any(wanted in page(name) for name in reached):
            return n
        seen |= set(reached)
        further = {each for name in reached for each in links(page(name))}
        reached = sorted(each for each in further - seen if (DOCS / f"{each}.md").exists())
    return None


@pytest.mark.parametrize(
    "wanted",
    ["```bash\npip install -e .\n", 'sthist.io.cosmx("', "| `familiarity` | `obs` | how usual"],
    ids=["the install line", "the reader for CosMx", "the meaning of familiarity"],
)
def test_within_two_clicks(wanted):
    assert clicks(wanted) is not None
    assert clicks(wanted) <= 2


def test_a_page_that_nothing_leads_to_is_not_found():
    assert clicks("this sentence stands on no page") is None


def test_every_page_is_in_the_sidebar_once():
    pages = {path.stem for path in DOCS.glob("*.md")}
    notebooks = {f"generated/tutorials/{path.stem}" for path in (ROOT / "tutorials").glob("*.ipynb")}
    listed = [each for name in sorted(pages) for each in in_toctree(page(name))]
    assert sorted(listed) == sorted((pages - {"index"}) | notebooks)


def test_every_link_leads_to_a_section_or_a_file():
    """Of links between pages; the build checks them again, with those of docstrings."""
    wrong = []
    for path in sorted(DOCS.glob("*.md")):
        for target, anchor in re.findall(r"\]\(([^)#:\s]*)(?:#([^)\s]+))?\)", path.read_text()):
            file = path.parent / target if target else path
            if target.startswith("generated/tutorials/"):
                file = ROOT / target.removeprefix("generated/")
            if not file.exists():
                wrong.append((path.name, target))
            elif anchor and file.suffix == ".md" and anchor not in anchors(file.read_text()):
                wrong.append((path.name, target, anchor))
    assert not wrong


def anchors(text):
    """Anchors of headings, as GitHub makes them, and those that a page sets."""
    titles = re.findall(r"^#{1,3} (.+)$", text, re.MULTILINE)
    made = {re.sub(r"[^\w\- ]", "", title.lower()).replace(" ", "-") for title in titles}
    return made | set(re.findall(r"^\(([\w-]+)\)=$", text, re.MULTILINE))


def test_the_tutorials_page_says_what_each_notebook_runs_on():
    for path in sorted((ROOT / "tutorials").glob("*.ipynb")):
        (row,) = [line for line in page("tutorials").splitlines() if line.startswith("| [") and path.name in line]
        assert ("**real**" in row) == ("STHIST_TEST_DATA" in path.read_text()), path.name


def test_the_install_page_has_every_extra_and_what_it_brings():
    extras = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["optional-dependencies"]
    rows = re.findall(r"^\| `(\w+)` \| .+ \| (.+) \|$", page("install"), re.MULTILINE)
    listed = {name: re.findall(r"`([\w-]+)`", brings) for name, brings in rows}
    names = {name: [re.match(r"[\w-]+", each)[0] for each in brought] for name, brought in extras.items()}
    (everything,) = extras["dev"]
    names["dev"] = ["sthist", *re.search(r"\[(.+)\]", everything)[1].split(",")]
    assert listed == names


def test_first_steps_run(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    space = {}
    for block in PYTHON.findall(page("first_steps")):
        exec(block, space)
        plt.close("all")
    assert "virtual_he" in space["sdata"].images
    assert "ridge_familiarity" in space["new"]["table"].obs


GALLERY = runpy.run_path(str(DOCS / "_ext" / "gallery.py"))


def test_the_gallery_has_every_plot_and_its_figure():
    drawn = [name for name, _ in GALLERY["blocks"]() if name]
    assert sorted([*drawn, "view"]) == sorted(sthist.pl.__all__)  # the viewer is no figure: its screenshots are below
    assert "view_swipe.jpg" in page("gallery")
    for name in drawn:
        assert f"```{{image}} _static/plots/{name}.jpg\n" in page("gallery")
        figure = GALLERY["FIGURES"] / f"{name}.jpg"
        assert figure.stat().st_size < 100_000, name
        with Image.open(figure) as picture:
            assert picture.width > 300, name


def test_the_gallery_draws_its_figures(tmp_path, monkeypatch):
    """Its first ones; what draws them is the code on the page."""
    monkeypatch.setattr(sthist.settings, "progress", False)
    assert GALLERY["draw"](tmp_path, "tiles") == ["virtual_he", "alignment", "overlay", "tiles"]
    with Image.open(tmp_path / "tiles.jpg") as made, Image.open(GALLERY["FIGURES"] / "tiles.jpg") as kept:
        assert made.size == kept.size
