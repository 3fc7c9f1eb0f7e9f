"""A section as a trained model sees it: transcripts on its stain, and where it is tissue."""

from __future__ import annotations

import hashlib
from typing import TYPE_CHECKING, Any

import numpy as np

from sthist.systems.virtual_he.inference import Predict
from sthist.systems.virtual_he.sampling import TISSUE_MPP
from sthist.systems.virtual_he.section import find_tissue
from sthist.tiles import Overlay, TileReader
from sthist.tiles._molecules.density import Grid, count_transcripts
from sthist.training.model import Stainer

if TYPE_CHECKING:
    from sthist._sample.elements import HighResElements
    from sthist.systems.virtual_he.translator import Translator

OVERLAP = 0.25
"""Part of a tile that is blended with the next."""

LOOKED_AT = 16
"""Tiles of a section whose pixels tell it apart from another one."""


def prepare_section(
    model: Translator,
    elements: HighResElements,
    extent_um: tuple[float, float, float, float],
    mpp: float,
    *,
    allow_upsampling: bool,
) -> Stainer:
    """Make the readers of a section for a model; arguments and errors are those of :meth:`Translator.prepare`."""
    spec = model.config.spec
    if abs(mpp / spec.mpp - 1) > 1e-6:
        msg = f"mpp is {mpp:.4g}; this model has learned histology at {spec.mpp:.4g} µm/px, and makes no other."
        raise ValueError(msg)
    prompt = model.prompt()
    overlay = Overlay(
        elements.sdata,
        spec,
        image=list(elements.nuclear),
        channel=elements.nuclear_channel,
        points=elements.points,
        z=elements.z,
        seed=0,  # the palette is a part of the model
        allow_upsampling=allow_upsampling,
        **model.config.style(),
    )
    content = hashlib.blake2b(digest_size=16)
    tissue = _tissue(model, elements, extent_um, content)
    x0, y0, x1, y1 = extent_um
    places = np.random.default_rng(0).uniform([x0, y0], [x1, y1], (LOOKED_AT, 2))
    content.update(overlay.read(places).tobytes())
    device = model.device_name.partition(":")[0]
    facts = {
        "nuclear_stain": {"images": list(elements.nuclear), "channel": elements.nuclear_channel, "z": elements.z},
        "limits": list(overlay.limits or ()),
        "n_molecules": 0 if overlay.index is None else len(overlay.index.x),
        "content": content.hexdigest(),
        "prompt": prompt,
        "weights": model.weights_sha256(),
        "backbone": model.backbone_sha256(),
        # Half precision, or another kernel, is another image by a level here and there.
        "arithmetic": [device, model.chosen_precision(), "compiled" if model.compile else "eager"],
    }
    # On the CPU a network takes all cores, whose threads wait for each other: reading in between holds all of them up.
    threads = 1 if device == "cpu" else None
    readers: Any = [overlay, tissue]
    return Stainer(readers, Predict(model), facts, overlap=OVERLAP, concurrent=False, threads=threads)


def _tissue(
    model: Translator, elements: HighResElements, extent_um: tuple[float, float, float, float], content: Any
) -> TileReader:
    """A reader of what part of each pixel is tissue."""
    grid, counts = Grid.over(extent_um, TISSUE_MPP), None
    if elements.points is not None:
        counts, _ = count_transcripts(elements, grid, model.config.min_qv)
    mask, where = find_tissue(elements, extent_um, grid, counts, content)
    content.update(mask.tobytes())
    return TileReader.from_array(mask[None], where.to_um, model.config.spec)
