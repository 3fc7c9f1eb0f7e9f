"""A trained model over a whole section: its place, its seams, what it is told, and runs that stop."""

from __future__ import annotations

import shutil

import numpy as np
import pytest
import spatialdata as sd
import torch
from cluster import two_workers
from flat import train_virtual_he
from translating import pairs, pix2pix, small

import sthist
from sthist.models import BeerLambert
from sthist.tiles._images.image import pyramid

SPEC = {"size_um": 32.0, "px": 32}


@pytest.fixture(autouse=True)
def _quiet():
    threads, progress = torch.get_num_threads(), sthist.settings.progress
    torch.set_num_threads(1)
    sthist.settings.progress = False
    yield
    torch.set_num_threads(threads)
    sthist.settings.progress = progress


def pixels(sdata, key="virtual_he"):
    """The finest level of an image, (3, y, x)."""
    return pyramid(sdata[key])[0].to_numpy()


@pytest.fixture(scope="module")
def model():
    """Trained on tiles of another toy section."""
    torch.set_num_threads(1)
    sdata = sthist.datasets.toy(size_um=400, seed=1)
    training = {"epochs": 1, "steps_per_epoch": 150, "batch_size": 4, "lr": 2e-3}
    losses = sthist.models.LossWeights(l2=4, perceptual=1, text=0, adversarial=0)
    return train_virtual_he(
        sdata, pix2pix(**SPEC), n_tiles=100, losses=losses, progress=False, device="cpu", **training
    )


def test_a_section(model, toy):
    """Where the stain lies, like the real H&E, and without seams."""
    sthist.tl.virtual_he(toy, model)
    assert pixels(toy).shape == (3, 400, 400)  # 400 µm at the model's 1 µm/px
    assert sthist.scale.resolve_mpp(toy, "virtual_he") == pytest.approx((1.0, 1.0))
    sthist.pp.tissue(toy)
    sthist.pp.tiles(toy, size_um=64, px=64)
    frame = sthist.benchmark.virtual_he(toy, nuclei=False)
    psnr = frame.groupby("method")["psnr"].mean()
    assert psnr["virtual"] > max(psnr["mean colour"], psnr["shuffled"]) + 3
    assert frame.attrs["seam"]["ratio"] == pytest.approx(1, abs=0.1)
    made = toy.attrs["sthist"]["results"]["virtual_he"]
    assert (made["model"], made["device"], made["overlap"]) == ("pix2pix", "cpu", 0.25)
    assert made["section"]["weights"] == model.weights_sha256()


def test_side_by_side_has_seams(model, toy, monkeypatch):
    """The seam score sees what blending takes away."""
    monkeypatch.setattr("sthist.systems.virtual_he.inference.OVERLAP", 0.0)
    box = (0, 0, 240, 240)
    sthist.tl.virtual_he(toy, model, within=box)
    from sthist.benchmark._virtual_he import seam_of

    side_by_side = seam_of(toy, "virtual_he")["ratio"]
    monkeypatch.undo()
    sthist.tl.virtual_he(toy, model, within=box, overwrite=True)
    assert seam_of(toy, "virtual_he")["ratio"] < side_by_side


def test_a_part_is_the_same_part_of_the_whole(model, toy):
    sthist.tl.virtual_he(toy, model, within=(0, 0, 300, 300))
    sthist.tl.virtual_he(toy, model, within=(96, 120, 230, 250), key_added="part")
    whole = pixels(toy)[:, 120:250, 96:230]
    part = pixels(toy, "part")
    inner = slice(None), slice(32, -32), slice(32, -32)  # tiles on the border lie elsewhere
    assert np.abs(part[inner].astype(int) - whole[inner]).mean() < 3


def test_stopped_and_gone_on(backed, monkeypatch, tmp_path):
    """The same call does what is left and gives the same image."""
    monkeypatch.setattr("sthist.tiles._blocks.canvas.BLOCK_PX", 512)
    model = pix2pix()
    shutil.copytree(backed.path, tmp_path / "whole.zarr")
    whole = sd.read_zarr(tmp_path / "whole.zarr")
    calls, predict = [], type(model).predict

    def counted(self, tiles, **kwargs):
        calls.append(len(tiles))
        if len(calls) == fails_at:
            msg = "the lights went out"
            raise RuntimeError(msg)
        return predict(self, tiles, **kwargs)

    monkeypatch.setattr(type(model), "predict", counted)
    fails_at = None
    sthist.tl.virtual_he(whole, model)
    n_whole = len(calls)
    fails_at = n_whole + n_whole * 3 // 4
    with pytest.raises(RuntimeError, match="lights"):
        sthist.tl.virtual_he(backed, model)
    assert "virtual_he" not in sd.read_zarr(backed.path)
    done = len(calls)
    sthist.tl.virtual_he(backed, model)
    assert 0 < len(calls) - done < n_whole
    np.testing.assert_array_equal(pixels(sd.read_zarr(backed.path)), pixels(whole))


def test_other_weights_take_over_none_of_the_blocks(backed, monkeypatch):
    """A run that was stopped is not gone on with by another model of the same sizes."""
    monkeypatch.setattr("sthist.tiles._blocks.canvas.BLOCK_PX", 512)
    calls, predict = [], sthist.models.Pix2Pix.predict

    def counted(self, tiles, **kwargs):
        calls.append(len(tiles))
        if len(calls) == 60:
            msg = "the lights went out"
            raise RuntimeError(msg)
        return predict(self, tiles, **kwargs)

    monkeypatch.setattr(sthist.models.Pix2Pix, "predict", counted)
    with pytest.raises(RuntimeError, match="lights"):
        sthist.tl.virtual_he(backed, pix2pix())
    stopped = len(calls)
    other = pix2pix()
    with torch.no_grad():
        other.generator.up[-1][1].bias += 0.5
    sthist.tl.virtual_he(backed, other)
    first = len(calls)
    sthist.tl.virtual_he(backed, other, key_added="anew")
    assert first - stopped == len(calls) - first
    np.testing.assert_array_equal(pixels(backed), pixels(backed, "anew"))


@pytest.mark.slow  # test_distributed.py has the built-in model there
def test_on_a_cluster(backed, tmp_path):
    """Workers of their own processes make the same image."""
    model = pix2pix()
    sthist.tl.virtual_he(backed, model, key_added="here")
    with two_workers(tmp_path) as client:
        sthist.tl.virtual_he(backed, model, key_added="there", client=client)
    here, there = (pixels(backed, key).astype(int) for key in ("here", "there"))
    assert np.abs(here - there).max() <= 1


def test_tissue_decides(toy):
    model = small(**SPEC, prompts={"lung": "This is lung", "skin": "This is skin"})
    model.fit(pairs(prompts=["This is lung", "This is skin"] * 4), training=model.training(epochs=1, steps_per_epoch=1))
    box = (0, 0, 64, 64)
    with pytest.raises(KeyError, match="say which one this is with tissue="):
        sthist.tl.virtual_he(toy, model, within=box)
    for tissue in ("lung", "skin"):
        sthist.tl.virtual_he(toy, model, tissue=tissue, key_added=tissue, within=box)
    assert not np.array_equal(*(pixels(toy, tissue) for tissue in ("lung", "skin")))
    assert toy.attrs["sthist"]["results"]["skin"]["section"]["prompt"] == "This is skin"
    both = {"a": toy, "b": sd.deepcopy(toy)}
    sthist.tl.virtual_he(both, model, tissue={"a": "skin", "b": "lung"}, key_added="told", within=box)
    assert np.array_equal(pixels(both["a"], "told"), pixels(toy, "skin"))
    assert np.array_equal(pixels(both["b"], "told"), pixels(toy, "lung"))
    with pytest.raises(KeyError, match="tissue= says nothing of 1 samples, such as 'b'"):
        sthist.tl.virtual_he(both, model, tissue={"a": "skin"}, within=box)
    with pytest.raises(KeyError, match="knows no tissue 'lnug'"):
        sthist.tl.virtual_he(both, model, tissue={"a": "skin", "b": "lnug"}, key_added="late", within=box)
    assert "late" not in toy  # said before the first is made
    with pytest.raises(ValueError, match="tissue= is by sample, and one section is given"):
        sthist.tl.virtual_he(toy, model, tissue={"a": "skin"}, within=box)


class TestRefused:
    def test_another_scale(self, model, toy):
        with pytest.raises(ValueError, match=r"mpp is 0\.5; this model has learned histology at 1 µm/px"):
            sthist.tl.virtual_he(toy, model, mpp=0.5)

    def test_what_is_for_the_other_model(self, model, toy):
        with pytest.raises(ValueError, match="stain_reference= is for the model 'beer-lambert'"):
            sthist.tl.virtual_he(toy, model, stain_reference=(toy, "he"))
        with pytest.raises(ValueError, match="tissue= is for networks"):
            sthist.tl.virtual_he(toy, BeerLambert(), tissue="lung")

    def test_no_transcripts(self, model, toy):
        del toy.points["transcripts"]
        with pytest.raises(KeyError, match="No transcripts to draw"):
            sthist.tl.virtual_he(toy, model)
        sthist.tl.virtual_he(toy, small(**SPEC, mode="none"), within=(0, 0, 64, 64))

    def test_no_such_model(self, toy):
        with pytest.raises(FileNotFoundError, match="Models that come with the package are"):
            sthist.tl.virtual_he(toy, "st2he-smal")
