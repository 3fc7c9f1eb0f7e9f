"""What a newcomer types on the first day: ten short scripts, each of which makes a figure and says nothing alarming."""

from __future__ import annotations

import logging
import os
import runpy
import warnings
from pathlib import Path

import matplotlib.pyplot as plt
import numpy as np
import pytest
from realdata import folder

SCRIPTS = sorted((Path(__file__).parent / "first_day").glob("*.py"))
NEEDS = {
    "cohort": ("xenium_ileum_tiny", ["outs", "outs_2"]),
    "xenium_folder": ("xenium_ileum_tiny", ["outs"]),
    "cosmx_loose_files": (
        "cosmx_lung12",
        ["fov2_composite.jpg", "fov2_transcripts.parquet", "fov2_cell_labels.tif"],
    ),
    "merscope_loose_files": ("merscope_mouse_brain", ["dapi_z0.jpg", "polyT_z0.jpg", "transcripts.parquet"]),
    "slide_to_clusters": ("he_svs", ["CMU-1-Small-Region.svs"]),
    "spots_to_ranked_genes": ("her2st", ["C3.jpg", "C3_counts.h5ad"]),
}
"""Real data that a script finds beside it; the others draw their own."""

LINES = 8


def test_there_are_ten_of_them():
    assert len(SCRIPTS) == 10
    assert set(NEEDS) <= {script.stem for script in SCRIPTS}


@pytest.mark.parametrize("script", SCRIPTS, ids=lambda script: script.stem)
def test_it_is_short_beside_its_imports(script):
    code = [
        line for line in script.read_text().splitlines() if line.strip() and not line.startswith(("import ", "from "))
    ]
    assert len(code) <= LINES


@pytest.mark.parametrize("script", SCRIPTS, ids=lambda script: script.stem)
def test_it_runs_without_a_warning_and_shows_something(script, tmp_path, monkeypatch, caplog):
    if script.stem in NEEDS:
        name, files = NEEDS[script.stem]
        for file in files:
            os.symlink(folder(name) / file.removesuffix("_2"), tmp_path / file)
    monkeypatch.chdir(tmp_path)
    with warnings.catch_warnings(record=True) as seen, caplog.at_level(logging.WARNING):
        warnings.resetwarnings()  # as Python has it for a script: what only developers act on is hidden
        for hidden in (DeprecationWarning, PendingDeprecationWarning, ImportWarning, ResourceWarning):
            warnings.simplefilter("ignore", hidden)
        runpy.run_path(str(script), run_name="__main__")
    plt.close("all")
    assert [str(each.message) for each in seen] == []
    assert [record.getMessage() for record in caplog.records if record.levelno >= logging.WARNING] == []
    pixels = plt.imread(tmp_path / "figure.png")[..., :3]
    assert min(pixels.shape[:2]) > 300
    assert len(np.unique((pixels * 15).astype(int).reshape(-1, 3), axis=0)) > 30  # no empty canvas
    keep = os.environ.get("STHIST_KEEP_FIGURES")
    if keep:
        (Path(keep) / f"{script.stem}.png").write_bytes((tmp_path / "figure.png").read_bytes())
