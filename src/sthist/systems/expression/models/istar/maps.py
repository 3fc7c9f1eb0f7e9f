"""The expression of all superpixels of a slide, as an image with a channel per gene."""

from __future__ import annotations

import hashlib
import json
import threading
from typing import TYPE_CHECKING, Any

import numpy as np

from sthist import _sample, _store, scale
from sthist._sample.elements import region_geometry
from sthist._settings import settings
from sthist.regression.model import plain_config
from sthist.regression.write import SCORES
from sthist.tiles import Canvas
from sthist.tiles._blocks.estimate import require_bytes
from sthist.tiles._blocks.resumable import BlockWorker
from sthist.tiles._blocks.run import run_pending
from sthist.tiles._images.image import pyramid
from sthist.tiles._regions.raster import rasterize

if TYPE_CHECKING:
    from spatialdata import SpatialData

    from sthist.systems.expression.models.istar.model import IStar
    from sthist.systems.expression.models.istar.superpixels import FeatureMap
    from sthist.tiles._blocks.canvas import Block

CHUNK = (32, 128)
"""Genes of a chunk, and its side in superpixels, which is also that of a block."""

AT_ONCE = 1024
"""Superpixels that the networks see at a time."""

LARGEST = 65504
"""Of float16."""


class MapWorker(BlockWorker):
    """Predicts the superpixels of blocks: (genes, h, w) float16, NaN where there are no features."""

    _of_process = "_turn"

    def __init__(self, model: IStar, cells: FeatureMap, inside: np.ndarray | None, device: str) -> None:
        self.model, self.cells, self.inside, self.device = model, cells, inside, device
        self.net = model.net.to(device).eval()
        self._turn = self._open()

    def _open(self) -> Any:
        return threading.Lock()

    def compute(self, block: Block) -> np.ndarray:
        """Log expression of a block."""
        shape = (block.y1 - block.y0, block.x1 - block.x0)
        out = np.full((len(self.model.genes), *shape), np.nan, np.float16)
        inside = np.ones(shape, bool) if self.inside is None else self.inside[block.y0 : block.y1, block.x0 : block.x1]
        if not inside.any():
            return out
        boxes = self.model.config.boxes
        features, known = self.cells.smoothed((block.y0, block.y1), (block.x0, block.x1), boxes)
        ys, xs = np.nonzero(known & inside)
        for start in range(0, len(ys), AT_ONCE):
            y, x = ys[start : start + AT_ONCE], xs[start : start + AT_ONCE]
            out[:, y, x] = self._predicted(features[:, y, x].T).T
        return out

    def _predicted(self, features: np.ndarray) -> np.ndarray:
        """Log expression of superpixels (n, d), (n, genes); features are rounded as those of spots are."""
        import torch

        rounded = torch.from_numpy(features.clip(-LARGEST, LARGEST).astype(np.float16))
        with self._turn, torch.inference_mode():
            net: Any = self.net
            found = net.net.superpixels(net.standard({"cells": rounded.to(self.device)})["cells"])
            if self.model.config.average == "expression":
                found = torch.log1p(found)
            return found.cpu().numpy().clip(-LARGEST, LARGEST)  # type: ignore[no-any-return]


def write_map(
    data: SpatialData,
    model: IStar,
    *,
    image: str | None,
    within: Any,
    key_added: str | None,
    device: str | None,
    overwrite: bool,
    progress: bool | None,
) -> None:
    """Predict a slide and write ``images["<model>_expression"]``, block by block."""
    if not hasattr(data, "images"):
        raise ValueError(f"{type(model).__name__} makes a map of a slide: give the SpatialData, not an AnnData.")
    _sample.require_one_sample(data)
    key = _store.check_name(key_added or f"{model.system}_expression")
    _store.require_free(data, key, "images", overwrite=overwrite)
    if not model.config.encoders:
        raise ValueError(f"This {type(model).__name__} was trained on arrays: nothing says of which map they are.")
    known = model.config.encoders[0]
    model.require_map(data, known["key"], known["encoder"] or model.config.encoder, image, device, progress)
    cells = model.feature_map(data, known["key"], "the sample")
    stride, (height, width) = cells.stride_um, cells.shape
    x0, y0 = cells.origin_um.tolist()
    extent = (x0, y0, x0 + width * stride, y0 + height * stride)
    systems = scale.other_systems([data.images[known["key"]]])
    where = settings.torch_device(device)
    facts = {
        "sha256": model.sha256,
        "features": _content(data, known["key"]),
        "within": None if within is None else region_geometry(data, within).wkt,
        "systems": {name: matrix.tolist() for name, matrix in systems.items()},
    }
    digest = hashlib.sha256(json.dumps([facts, extent], sort_keys=True).encode()).hexdigest()
    with _store.writing(data):
        _store.require_free_in_store(_store.store_path(data), key, "images", overwrite=overwrite)
        with _store.workspace(data, key, digest) as folder:
            canvas = Canvas(
                folder,
                key,
                extent_um=extent,
                mpp=stride,
                fingerprint=facts,
                transformations=systems,
                block_px=CHUNK[1],
                channels=model.genes,
                dtype="float16",
                chunk=(min(CHUNK[0], len(model.genes)), CHUNK[1]),
            )
            inside = None
            if within is not None:
                inside = rasterize([region_geometry(data, within)], cells.origin_um, stride, canvas.shape) > 0
                if not inside.any():
                    raise ValueError(f"within={within!r} does not lie on images[{known['key']!r}].")
            worker = MapWorker(model, cells, inside, where)
            left = sum(canvas.amount(block) for block in canvas.pending()) * 1e6
            require_bytes(key, canvas.folder, 2.0 * 4 / 3 * left * len(model.genes) * _share_known(cells))
            run_pending(worker, canvas, progress=progress, threads=2)
            canvas.finish()
            scores = {name: model.config.report[name] for name in SCORES if name in model.config.report}
            made = _store.provenance(
                "tl.expression",
                model=model.called,
                sha256=model.sha256,
                settings=plain_config(model),
                trained=model.config.training,
                scores=scores,
                features=known["key"],
                image=image,
                device=where,
            )
            _store.publish(data, "images", key, canvas.store, made)
    model.net.cpu()


def _content(sdata: SpatialData, key: str) -> str:
    """What tells a map of features from any other: how it was made, or, where nothing says so, what it holds."""
    made = sdata.attrs.get("sthist", {}).get("results", {}).get(key, {})
    if made.get("digest"):
        return str(made["digest"])
    values = pyramid(sdata.images[key])[0].data[0].compute(scheduler="synchronous")
    return hashlib.blake2b(np.ascontiguousarray(values).tobytes(), digest_size=16).hexdigest()


def _share_known(cells: FeatureMap) -> float:
    """What part of a map has features."""
    first = cells.values[0]
    first = first.compute(scheduler="synchronous") if hasattr(first, "compute") else first
    return float(np.isfinite(first).mean())
