"""A trained generator at work: on its device, with its prompt embedded, called by the engine."""

from __future__ import annotations

import dataclasses
import hashlib
import traceback
from typing import TYPE_CHECKING, Any

import numpy as np

from sthist._settings import logger
from sthist.systems.virtual_he.familiarity import what_is_strange
from sthist.systems.virtual_he.generator import PreparedSection
from sthist.systems.virtual_he.section import TISSUE_MPP, find_tissue
from sthist.tiles import DensityTiles, Overlay, TileReader
from sthist.tiles._molecules.density import Grid, count_transcripts
from sthist.training.batches import as_input, as_tiles

if TYPE_CHECKING:
    from sthist._sample.elements import HighResElements
    from sthist.systems.virtual_he.generator import GeneratorModel
    from sthist.tiles import Image, TileSpec

OVERLAP = 0.25
"""Part of a tile that is blended with the next."""

LOOKED_AT = 48
"""Tiles of a section whose pixels tell it apart from another one, and show whether it is as those of the training."""


MOSTLY_TISSUE = 0.7


def prepare_section(
    model: GeneratorModel,
    elements: HighResElements,
    stain: Image,
    mpp: float,
    *,
    allow_upsampling: bool,
) -> PreparedSection:
    """Make the readers of a section for a model; arguments and errors are those of :meth:`GeneratorModel.prepare`."""
    spec = model.config.spec_at(mpp)
    prompt = model.prompt()
    overlay = _input(model, elements, stain, spec, allow_upsampling=allow_upsampling)
    content = hashlib.blake2b(digest_size=16)
    tissue = _tissue(model, elements, stain, spec, content)
    x0, y0, x1, y1 = stain.extent_um
    places = np.random.default_rng(0).uniform([x0, y0], [x1, y1], (LOOKED_AT, 2))
    seen = overlay.read(places)
    content.update(seen.tobytes())
    usual = model.config.training.get("usual")
    strange = what_is_strange(usual, seen[_inside(tissue, places)], overlay.channels) if usual else ""
    if strange:
        logger.warning("%s", strange)
    device = model.device_name.partition(":")[0]
    facts = {
        "nuclear_stain": {"images": list(elements.nuclear), "channel": elements.nuclear_channel, "z": elements.z},
        **_measured(overlay),
        "n_molecules": 0 if overlay.index is None else len(overlay.index.x),
        "content": content.hexdigest(),
        "prompt": prompt,
        "colours": None if model.config.target == "rgb" else model.stain_colours().to_dict(),
        "weights": model.weights_sha256(),
        "backbone": model.backbone_sha256(),
        # Half precision, or another kernel, is another image by a level here and there.
        "arithmetic": [device, model.chosen_precision(), "compiled" if model.compile else "eager"],
    }
    # On the CPU a network takes all cores, whose threads wait for each other: reading in between holds all of them up.
    threads = 1 if device == "cpu" else None
    readers: Any = [overlay, tissue]
    return PreparedSection(readers, Predict(model), facts, overlap=OVERLAP, concurrent=False, threads=threads)


def _input(
    model: GeneratorModel, elements: HighResElements, stain: Image, spec: TileSpec, *, allow_upsampling: bool
) -> Overlay | DensityTiles:
    """A reader of what the model sees of the section."""
    config = model.config
    how: dict[str, Any] = {
        "image": stain,
        "channel": elements.nuclear_channel,
        "z": elements.z,
        "allow_upsampling": allow_upsampling,
    }
    if config.molecules == "dots":
        # The palette is a part of the model.
        return Overlay(elements.sdata, spec, points=elements.points, seed=0, **how, **config.style())
    if elements.points is None:
        logger.warning("There are no transcripts: the model goes by the nuclear stain alone, as it was trained to.")
    return DensityTiles(elements.sdata, spec, points=elements.points or False, **how, **config.density_style())


def _measured(overlay: Overlay | DensityTiles) -> dict[str, Any]:
    """What was measured of the stain, as plain values."""
    if isinstance(overlay, Overlay):
        return {"limits": list(overlay.limits or ())}
    return {"response": dataclasses.asdict(overlay.response)}


def _tissue(model: GeneratorModel, elements: HighResElements, stain: Image, spec: TileSpec, content: Any) -> TileReader:
    """A reader of what part of each pixel is tissue."""
    grid, counts = Grid.over(stain.extent_um, TISSUE_MPP), None
    if elements.points is not None:
        counts, _ = count_transcripts(elements, stain, grid, model.config.min_qv)
    mask, where = find_tissue(elements, stain, grid, counts, content)
    content.update(mask.tobytes())
    return TileReader.from_array(mask[None], where.to_um, spec)


def _inside(tissue: TileReader, places: np.ndarray) -> np.ndarray:
    """Which tiles are tissue for the most part."""
    return tissue.read(places).mean((1, 2, 3)) > MOSTLY_TISSUE


class Predict:
    """What the engine calls, and takes to workers: with the prompt as the generator sees it, and not what embeds it."""

    def __init__(self, model: GeneratorModel) -> None:
        self.model = model

    def __getstate__(self) -> dict[str, Any]:
        return {"model": self.model.with_prompt()}

    def __call__(self, tiles: np.ndarray, tissue: np.ndarray) -> np.ndarray:
        """H&E where there is tissue, and white elsewhere: of glass the model has seen little or nothing."""
        shown = tissue.any(axis=(1, 2, 3))
        out = np.full((*tiles.shape[:3], 3), 255, np.uint8)
        if shown.any():
            made = self.model.predict(tiles[shown], batch_size=len(tiles))
            out[shown] = np.round(255 - (255.0 - made) * tissue[shown].clip(0, 1))
        return out


class RunningGenerator:
    """A generator on a device, with its prompt embedded once."""

    def __init__(self, model: GeneratorModel) -> None:
        import torch

        self.version, self.device, self.input_low = model.version, model.device_name, model.config.input_low
        self.translate = model.translate
        prompts = model.embedded_prompt()
        self.prompts = None if prompts is None else prompts.to(self.device)
        network: Any = model.inference_network().eval().requires_grad_(False)
        self.network: Any = network.to(self.device, memory_format=torch.channels_last)
        if model.compile:
            self.network = torch.compile(self.network)
        self.half = model.chosen_precision() == "bf16"

    def __call__(self, tiles: np.ndarray) -> np.ndarray:
        """H&E of tiles."""
        import torch

        try:
            return self._translated(tiles)
        except torch.OutOfMemoryError as error:
            traceback.clear_frames(error.__traceback__)  # they hold the tensors of the failed pass
        n, px = tiles.shape[:2]
        raise MemoryError(f"{self.device} is out of memory with {n} tiles of {px} px. {self._what_fits(tiles)}")

    def _what_fits(self, tiles: np.ndarray) -> str:
        """The largest half, quarter and so on of a batch that goes through."""
        import torch

        n = len(tiles) // 2
        while n:
            if self.device.startswith("cuda"):
                torch.cuda.empty_cache()
            try:
                self._translated(tiles[:n])
            except torch.OutOfMemoryError as error:
                traceback.clear_frames(error.__traceback__)
                n //= 2
            else:
                return f"batch_size={n} fits."
        return "Not one fits: something else fills it, or the model is too large for it."

    def _translated(self, tiles: np.ndarray) -> np.ndarray:
        import torch

        # inference_mode and autocast are of a thread.
        with torch.inference_mode(), torch.autocast(self.device.partition(":")[0], torch.bfloat16, enabled=self.half):
            images = as_input(torch.from_numpy(np.ascontiguousarray(tiles)).to(self.device), self.input_low)
            images = images.contiguous(memory_format=torch.channels_last)
            prompts = None if self.prompts is None else self.prompts.expand(len(images), -1, -1)
            return as_tiles(self.translate(self.network, images, prompts, None))
