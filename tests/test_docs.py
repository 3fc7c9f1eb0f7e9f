"""Calls of sthist in the README and in the docs are calls that can be made."""

from __future__ import annotations

import ast
import inspect
import json
import re
import runpy
from pathlib import Path

import matplotlib.pyplot as plt
import numpy as np
import pytest
import spatialdata
import tifffile
import vendor
from skimage.transform import resize
from spatialdata.transformations import Identity, Scale, set_transformation

import sthist

ROOT = Path(__file__).parents[1]
BLOCK = re.compile(r"^```python\n(.*?)^```", re.DOTALL | re.MULTILINE)
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]


def calls(source):
    """Each call of something under ``sthist``, with its dotted name."""
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Call) and (name := ast.unparse(node.func)).startswith("sthist."):
            yield name, node


def unbound(name, node):
    """What is wrong with a call, or nothing: a name that does not exist, an argument that it does not take."""
    found = sthist
    for part in name.split(".")[1:]:
        found = getattr(found, part, None)
        if found is None:
            return f"{name} does not exist"
    if any(isinstance(argument, ast.Starred) for argument in node.args) or any(k.arg is None for k in node.keywords):
        return None
    arguments = {keyword.arg: None for keyword in node.keywords}
    try:
        inspect.signature(found).bind(*[None] * len(node.args), **arguments)
    except TypeError as error:
        return f"{ast.unparse(node)}: {error}"
    return None


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_code_blocks(page):
    blocks = BLOCK.findall(page.read_text())
    wrong = [problem for block in blocks for call in calls(block) if (problem := unbound(*call))]
    assert not wrong


def test_your_own_data_has_a_first_line_for_every_reader():
    text = (ROOT / "docs" / "your_data.md").read_text()
    readers = [name for name in sthist.io.__all__ if not name.startswith(("export_", "hest_table"))]
    assert not [name for name in readers if f"sthist.io.{name}(" not in text]


def test_the_walks_of_the_page_for_contributors_are_there():
    walks = (ROOT / "docs" / "contributing.md").read_text().split("## Walks\n")[1].split("\n## ")[0].split("\n### ")[1:]
    assert len(walks) == 3
    for walk in walks:
        stations = re.findall(r"^\| (\d+) \| `(.+?)` \| `(.+?)` \|", walk, re.MULTILINE)
        assert [int(number) for number, _, _ in stations] == list(range(1, len(stations) + 1))
        assert 5 <= len(stations) <= 10
        for _, file, name in stations:
            text = (ROOT / "src" / "sthist" / file).read_text()
            assert re.search(rf"^ *(def|class) {name}\b", text, re.MULTILINE), f"{name} is not in {file}"


def section(title):
    """The code of a section of the page "Your own data"."""
    text = (ROOT / "docs" / "your_data.md").read_text()
    return BLOCK.findall(text.split(f"## {title}\n", 1)[1].split("\n## ", 1)[0])[0]


def cosmx():
    vendor.cosmx_folder(Path("Lung5_Rep1-Flat_files_and_images"), **vendor.cosmx_sample(), mpp=0.12)


def merscope():
    vendor.merscope_folder(Path("region_0"))


def visium():
    vendor.visium_folder(Path("outs"))
    tifffile.imwrite("slide.tif", np.full((600, 700, 3), 200, np.uint8))


def visium_hd():
    vendor.visium_hd_folder(Path("outs"))
    tifffile.imwrite("slide.tif", np.full((400, 400, 3), 200, np.uint8))


def loose_files():
    sdata = sthist.datasets.toy(size_um=200)
    nuclei = resize(
        np.asarray(sdata["morphology_focus"])[0], (1111, 1111), preserve_range=True
    )  # 0.18 µm/px, as the page has it
    tifffile.imwrite("dapi.tif", nuclei.astype(np.uint16))
    molecules = sdata["transcripts"].compute().rename(columns={"x": "x_location", "y": "y_location"})
    molecules.attrs.clear()  # transformations, which parquet does not hold
    molecules.to_parquet("transcripts.parquet")
    cells = sdata["table"]
    cells.obs[["x_centroid", "y_centroid"]] = cells.obsm["spatial"]
    return {"adata": cells}


def someone_elses():
    """The toy, without a word of micrometres."""
    sdata = sthist.datasets.toy(size_um=200)
    image, points = sdata["morphology_focus"], sdata["transcripts"]
    set_transformation(image, {"global": Identity()}, set_all=True)
    set_transformation(points, {"global": Scale([2, 2], ("x", "y"))}, set_all=True)
    spatialdata.SpatialData(images={"image": image}, points={"transcripts": points}).write("section.zarr")
    return {"spatialdata": spatialdata}


def annotated():
    sdata = sthist.datasets.toy(size_um=200)
    sthist.tl.virtual_he(sdata)
    sthist.pp.tissue(sdata)
    sthist.pp.tiles(sdata, size_um=16, px=32)
    sthist.io.export_geojson(sdata, "regions", "annotations.geojson", image="virtual_he", label="label")
    return {"sdata": sdata}


@pytest.mark.parametrize(
    ("title", "prepare"),
    [
        ("CosMx", cosmx),
        ("MERSCOPE", merscope),
        ("Visium", visium),
        ("Visium HD", visium_hd),
        ("Loose files", loose_files),
        ("Someone else's SpatialData", someone_elses),
        ("A pathologist's annotation", annotated),
    ],
)
def test_the_lines_run(title, prepare, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    exec(section(title), {"sthist": sthist} | (prepare() or {}))
    plt.close("all")


def test_a_wrong_call_is_found():
    (name, node), *_ = calls("sthist.pp.tiles(sdata, size=3)")
    assert "unexpected keyword argument 'size'" in unbound(name, node)
    (name, node), *_ = calls("sthist.pp.tile(sdata)")
    assert unbound(name, node) == "sthist.pp.tile does not exist"


@pytest.mark.parametrize("page", ["expression", "expression_ranking"])
def test_figures_of_expression_models_are_those_of_the_study(page):
    ranking = runpy.run_path(str(ROOT / "studies" / "expression" / "ranking.py"))
    text = (ROOT / "docs" / f"{page}.md").read_text()
    assert ranking["filled"](text, page) == text


def test_figures_of_virtual_he_are_those_of_the_studies():
    pages = runpy.run_path(str(ROOT / "studies" / "virtual_he" / "pages.py"))
    text = pages["PAGE"].read_text()
    assert pages["filled"](text) == text


def test_figures_of_maps_finer_than_spots_are_those_of_the_study():
    rows = {}
    for row in json.loads((ROOT / "studies" / "results" / "superresolution.json").read_text())["rows"]:
        if row["genes"] == "50 most variable":
            rows.setdefault((row["arm"], row["data"], row["view"], row["square_um"]), row)
    columns = [("between spots", 16, "pearson"), ("between spots", 32, "pearson"), ("between spots", 16, "within_spot")]
    columns.append(("other half", 16, "pearson"))
    arms = {
        "spot, spread evenly": "spread evenly",
        "interpolation, the best at spots left out": "interpolation",
        "interpolation, the best on the truth": "interpolation, best on the truth",
        "iStar, features of other places (turned by 180°)": "iStar small, morphology, turned",
        "iStar": "iStar small, morphology",
        "ridge on the same features": "ridge, morphology_16",
        "iStar, and what it misses at the spots, interpolated": "iStar small, morphology + residuals",
    }
    lines = (ROOT / "docs" / "expression.md").read_text().splitlines()
    sections = ("xenium breast", "visium hd kidney")
    for name, arm in arms.items():
        (line,) = [each for each in lines if each.startswith(f"| {name} | ") and each.count("|") == 6]
        cells = [cell.strip(" *") for cell in line.split("|")[2:6]]
        assert sum(map(bool, cells)) >= 3
        for cell, (view, side, score) in zip(cells, columns, strict=True):
            for value, data in zip(cell.split(" / ") if cell else (), sections, strict=False):
                assert abs(float(value) - rows[arm, data, view, side][score]) <= 0.00501, (name, view, side, data)
