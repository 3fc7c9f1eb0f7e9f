"""The page in a real browser: tiles arrive, it moves, colours, answers a click, and is saved."""

from __future__ import annotations

import io
import json
import shutil
import time
from urllib.parse import unquote

import numpy as np
import pytest
from PIL import Image

import sthist

CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
EVIL = '<img src=x onerror="window.evil=1">'


@pytest.fixture(scope="module")
def browser():
    driver = pytest.importorskip("playwright.sync_api", reason="playwright drives the browser: pip install playwright")
    if CHROMIUM is None:
        pytest.skip("there is no Chromium on this machine")
    with driver.sync_playwright() as playwright:
        opened = playwright.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
        yield opened
        opened.close()


@pytest.fixture
def page(browser):
    """A page of 1,200 x 700 pixels, whose errors and requests are kept."""
    context = browser.new_context(viewport={"width": 1200, "height": 700}, accept_downloads=True)
    opened = context.new_page()
    opened.problems, opened.asked = [], []
    opened.on("pageerror", lambda error: opened.problems.append(str(error)))
    opened.on("console", lambda line: line.type == "error" and opened.problems.append(line.text))
    opened.on("request", lambda request: opened.asked.append(request.url))
    yield opened
    assert opened.problems == []
    context.close()


def whole(page):
    """Wait until all tiles in view are there."""
    page.wait_for_timeout(300)
    page.wait_for_selector('#stage[data-whole="true"]', timeout=60_000)


def stage(page):
    """What the panels show, as pixels."""
    return np.asarray(Image.open(io.BytesIO(page.locator("#stage").screenshot())).convert("RGB")).astype(int)


def hash_of(page):
    """The state in the address."""
    page.wait_for_timeout(500)
    parts = dict(part.split("=", 1) for part in page.url.split("#")[1].split("&"))
    return float(parts["mpp"]), json.loads(unquote(parts["show"]))


def test_a_walk_through_a_slide(page, toy, tmp_path):
    """Tiles arrive soon and few are asked for; zooming, a gene, a click, the link and the picture work."""
    with sthist.pl.view(toy, open_browser=False) as viewer:
        sthist_only = viewer.url
        start = time.perf_counter()
        page.goto(viewer.url)
        whole(page)
        assert time.perf_counter() - start < 30  # with kernels that have to be compiled
        assert len(page.asked) < 40
        assert all(url.startswith((sthist_only, "data:", "blob:")) for url in page.asked)
        first = stage(page)
        assert first.std() > 20
        assert page.locator(".panel").count() == 2

        before, _ = hash_of(page)
        page.mouse.move(500, 350)
        for _ in range(4):
            page.mouse.wheel(0, -300)
            page.wait_for_timeout(100)
        whole(page)
        after, _ = hash_of(page)
        assert after < before / 2
        left, right = (
            page.evaluate(f"document.querySelectorAll('.panel .scale span')[{i}].textContent") for i in (0, 1)
        )
        assert left == right
        assert left.endswith("µm")

        page.fill("#find-colour", "EPC")
        page.wait_for_selector(".found li >> text=EPCAM")
        plain = stage(page)
        page.keyboard.press("Enter")
        page.wait_for_selector(".bar")
        whole(page)
        assert (np.abs(stage(page) - plain).max(axis=2) > 40).mean() > 0.02
        _, state = hash_of(page)
        assert state["color"] == {
            "kind": "gene",
            "name": "EPCAM",
            "layer": None,
            "cmap": None,
            "vmin": None,
            "vmax": None,
        }

        middle = toy["table"].obsm["spatial"].mean(axis=0)
        cell = int(np.argmin(np.hypot(*(toy["table"].obsm["spatial"] - middle).T)))
        x, y = toy["table"].obsm["spatial"][cell]
        page.goto(f"{viewer.url}#x={x}&y={y}&mpp=0.1&show={json.dumps(state)}")
        page.reload()
        whole(page)
        box = page.locator(".panel").first.bounding_box()
        page.mouse.click(box["x"] + box["width"] / 2, box["y"] + box["height"] / 2)
        page.wait_for_selector("#facts table")
        facts = page.inner_text("#facts")
        assert "cell_type" in facts
        assert "EPCAM" in facts
        assert page.locator(".panel svg polygon").count() >= 2

        shown = stage(page)
        page.goto("about:blank")
        page.goto(f"{viewer.url}#x={x}&y={y}&mpp=0.1&show={json.dumps(state)}")
        whole(page)
        again = stage(page)
        assert (np.abs(again - shown).max(axis=2) > 40).mean() < 0.05  # but for the outline of what was clicked

        with page.expect_download() as download:
            page.click("#save")
        download.value.save_as(tmp_path / "view.png")
        saved = np.asarray(Image.open(tmp_path / "view.png").convert("RGB")).astype(int)
        assert saved.shape[0] == again.shape[0]
        assert saved.shape[1] > again.shape[1]  # with its legend
        part = saved[:, : again.shape[1]]
        assert (np.abs(part - again).max(axis=2) < 40).mean() > 0.9


def test_molecules_swipe_and_channels(page, toy):
    with sthist.pl.view(toy, genes=["COL1A1"], open_browser=False) as viewer:
        page.goto(viewer.url)
        whole(page)
        with_dots = stage(page)
        page.click("button[title=Remove]")
        whole(page)
        assert (np.abs(stage(page) - with_dots).max(axis=2) > 40).mean() > 0.002
        page.click("text=Swipe")
        whole(page)
        half = stage(page)
        divider = page.locator("#divider").bounding_box()
        page.mouse.move(divider["x"] + 5, 300)
        page.mouse.down()
        page.mouse.move(divider["x"] + 200, 300, steps=4)
        page.mouse.up()
        whole(page)
        assert (np.abs(stage(page) - half).max(axis=2) > 40).mean() > 0.02
        page.click("text=Stacked")
        whole(page)
        assert page.locator(".panel").count() == 1
        assert page.evaluate("document.querySelector('.panel .title').textContent").count("+") == 1


def test_names_are_text(page, toy):
    """A class, a gene and an element whose names are markup are shown as they are."""
    names = toy["table"].obs["cell_type"].cat.categories
    toy["table"].obs["cell_type"] = toy["table"].obs["cell_type"].cat.rename_categories({names[0]: EVIL})
    toy["table"].var_names = [EVIL, *toy["table"].var_names[1:]]
    with sthist.pl.view(toy, "cell_type", open_browser=False) as viewer:
        page.goto(viewer.url)
        whole(page)
        assert EVIL in page.inner_text(".classes")
        page.fill("#find-colour", "onerror")
        page.wait_for_selector(".found li >> text=onerror")
        page.keyboard.press("Enter")
        page.wait_for_selector(".bar")
        box = page.locator(".panel").first.bounding_box()
        page.mouse.click(box["x"] + box["width"] / 2, box["y"] + box["height"] / 2)
        page.wait_for_timeout(500)
        assert EVIL in page.inner_text("#side")
        assert page.evaluate("window.evil") is None
        assert page.locator("#side img").count() == 0


def test_a_store_that_changes_is_said(page, backed):
    import spatialdata as sd

    with sthist.pl.view(backed.path, open_browser=False) as viewer:
        page.goto(viewer.url)
        whole(page)
        other = sd.read_zarr(backed.path)
        other["more"] = other["table"].copy()
        other.write_element("more")
        page.wait_for_selector("#banner button", timeout=20_000)
        assert "has changed" in page.inner_text("#banner")
        page.click("#banner button")
        page.wait_for_selector("option[value=more]", state="attached")
        assert page.is_hidden("#banner")
        whole(page)
