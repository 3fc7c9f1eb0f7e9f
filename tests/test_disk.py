"""Files are written whole or not at all, also where the disk is full."""

from __future__ import annotations

import errno
import os
from pathlib import Path

import matplotlib.pyplot as plt
import pytest

import sthist
from sthist._disk import put_folder, written_whole

FULL = Path("/dev/full")
pytestmark = pytest.mark.skipif(not FULL.exists(), reason="needs /dev/full, a device that is always full")


def fill_up(path):
    """Let what is written beside a file go to a disk that is full."""
    partial = path.with_name(f"{path.stem}.partial{path.suffix}")
    partial.parent.mkdir(parents=True, exist_ok=True)
    partial.symlink_to(FULL)


def _figure(sdata, path):
    sthist.pl.virtual_he(sdata, key="he", panels=["virtual"], save=path)
    plt.close("all")


WRITERS = {
    "he.ome.tif": lambda sdata, path: sthist.io.export_ome_tiff(sdata, "he", path, overwrite=True),
    "cells.geojson": lambda sdata, path: sthist.io.export_geojson(
        sdata, "cell_boundaries", path, image="he", overwrite=True
    ),
    "groups.csv": lambda sdata, path: sthist.io.export_xenium_explorer(sdata, path, group="cell_type", overwrite=True),
    "figure.png": _figure,
    "config.json": lambda _, path: sthist.models.BeerLambert().save(path.parent),
}


@pytest.mark.parametrize("name", WRITERS)
def test_a_full_disk(toy, tmp_path, name):
    """The error says which disk and what to do; the file of before is as it was; then the same call goes through."""
    path = tmp_path / "sub" / name
    fill_up(path)
    with pytest.raises(OSError, match=r"The disk of .*sub is full .* is not written\. Make room there"):
        WRITERS[name](toy, path)
    assert list(path.parent.iterdir()) == []
    WRITERS[name](toy, path)
    before = path.read_bytes()
    assert before
    fill_up(path)
    with pytest.raises(OSError, match=r"is as it was\. Make room there"):
        WRITERS[name](toy, path)
    assert [file.name for file in path.parent.iterdir()] == [name]
    assert path.read_bytes() == before


def test_an_error_half_way(tmp_path):
    path = tmp_path / "file.txt"
    for content, error in (("whole", None), ("torn", ValueError)):
        try:
            with written_whole(path) as partial:
                partial.write_text(content[:2])
                if error is not None:
                    raise error
                partial.write_text(content)
        except ValueError:
            pass
    assert path.read_text() == "whole"
    assert list(tmp_path.iterdir()) == [path]


def test_links_modes_and_pipes_stay(tmp_path):
    """What a link leads to is replaced, not the link; a file keeps who may read it."""
    real, link = tmp_path / "real.txt", tmp_path / "link.txt"
    real.write_text("old")
    real.chmod(0o640)
    link.symlink_to(real)
    with written_whole(link) as partial:
        partial.write_text("new")
    assert link.is_symlink()
    assert (real.read_text(), real.stat().st_mode & 0o777) == ("new", 0o640)
    with written_whole(Path("/dev/null")) as partial:
        assert partial == Path("/dev/null")


@pytest.mark.parametrize("exchange", [True, False])
def test_a_folder_takes_the_place_of_another(tmp_path, monkeypatch, exchange):
    if not exchange:
        monkeypatch.setattr("sthist._disk.exchange", lambda *_: False)
    for content in ("first", "second"):
        fresh = tmp_path / "fresh"
        fresh.mkdir()
        (fresh / "file").write_text(content)
        put_folder(fresh, tmp_path / "kept")
        assert (tmp_path / "kept" / "file").read_text() == content
        assert [each.name for each in tmp_path.iterdir()] == ["kept"]


def test_pairs_go_on_where_the_disk_was_full(toy, tmp_path):
    """Tiles that a call had written when it stopped are not in the way of the next one, others are."""
    sthist.pp.tiles(toy, size_um=64, px=32, sampling="fps", n_tiles=6)
    folder = tmp_path / "pairs"
    fill_up(folder / "train_B" / "3.png")
    with pytest.raises(OSError, match=r"3\.png is not written\. Make room there"):
        sthist.tiles.export_pairs(toy, folder, prompt="H&E", test_fraction=0)
    assert list((folder / "train_A").iterdir())
    (folder / "test_A" / "own0.png").touch()  # of somebody else
    with pytest.raises(FileExistsError, match="is there already"):
        sthist.tiles.export_pairs(toy, folder, prompt="H&E", test_fraction=0, prefix="own")
    sthist.tiles.export_pairs(toy, folder, prompt="H&E", test_fraction=0)
    assert len(list((folder / "train_A").iterdir())) == len(list((folder / "train_B").iterdir())) == 6
    assert not [path for path in folder.rglob("*") if path.name.startswith(".") or ".partial" in path.name]
    with pytest.raises(FileExistsError, match="is there already"):
        sthist.tiles.export_pairs(toy, folder, prompt="H&E", test_fraction=0)


def full(*_):
    """As safetensors has it, which writes beside the file itself."""
    from safetensors import SafetensorError

    raise SafetensorError(f"Error while serializing: I/O error: {os.strerror(errno.ENOSPC)} (os error 28)")


@pytest.mark.parametrize("name", ["model.safetensors", "config.json"])
def test_a_model_is_saved_whole_or_stays(tmp_path, monkeypatch, name):
    """Its config is never beside the weights of another one."""
    models = [
        sthist.models.Pix2Pix(sthist.models.Pix2PixConfig(size_um=32, px=32, width=4, max_width=8, depth=3, seed=seed))
        for seed in (0, 1)
    ]
    models[0].save(tmp_path)
    before = {path.name: path.read_bytes() for path in tmp_path.iterdir()}
    assert sorted(before) == ["config.json", "model.safetensors"]
    with monkeypatch.context() as patch:
        if name == "config.json":
            fill_up(tmp_path / name)
        else:
            patch.setattr("safetensors.torch.save_file", full)
        with pytest.raises(OSError, match=rf"{name} is as it was\. Make room there"):
            models[1].save(tmp_path)
    assert {path.name: path.read_bytes() for path in tmp_path.iterdir()} == before
    models[1].save(tmp_path)
    assert sthist.models.load(tmp_path).config.seed == 1
