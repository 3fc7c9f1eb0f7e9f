"""Nuclei by models of other people's packages, which are extras."""

from __future__ import annotations

from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from sthist._settings import settings
from sthist.pp._nuclei.methods import Called

if TYPE_CHECKING:
    from collections.abc import Callable

MPP = 0.5  # what these models were trained at, or scale to
PACKAGES = {"instanseg": "instanseg-torch", "cellpose": "cellpose"}
INSTANSEG = "brightfield_nuclei"


def other(method: str, weights: str | Path | None, device: str | None, mpp: float | None) -> Called | None:
    """The model of that name as a segmenter; None where there is no such name."""
    path = None if weights is None else _existing(weights)
    if method == "instanseg":
        _require(method)
        return Called(_instanseg(path, device, mpp or MPP), mpp or MPP)
    if method == "cellpose":
        _require(method)
        return Called(_cellpose(path, device), mpp or MPP)
    model = _of_zoo(method, path, device)
    return None if model is None else Called(model, mpp or MPP)


def names_of_zoo() -> list[str]:
    """Models of lazyslide-models that segment; none where it is not installed."""
    from sthist.encoders._loaders import zoo

    if not zoo.installed():
        return []
    return sorted(name for name, kind in zoo.registry().items() if hasattr(kind, "segment"))


def _existing(weights: str | Path) -> Path:
    path = Path(weights).expanduser()
    if not path.exists():
        raise FileNotFoundError(f"There is no weights file {str(path)!r}.")
    return path


def _require(module: str) -> None:
    import sys

    if module not in sys.modules and find_spec(module) is None:
        raise ImportError(
            f'method={module!r} needs {PACKAGES[module]}, which is not installed: pip install "sthist[seg]".'
        )


def _instanseg(path: Path | None, device: str | None, mpp: float) -> Callable[[np.ndarray], np.ndarray]:
    import torch
    from instanseg import InstanSeg  # type: ignore[import-not-found,unused-ignore]

    model: Any = INSTANSEG if path is None else torch.jit.load(str(path), map_location="cpu")
    network = InstanSeg(model, device=settings.torch_device(device), verbosity=0)

    def segment(rgb: np.ndarray) -> np.ndarray:
        labels = network.eval_small_image(rgb, mpp, return_image_tensor=False, target="nuclei")
        return np.asarray(labels, np.int64).reshape(-1, *rgb.shape[:2])[0]

    return segment


def _cellpose(path: Path | None, device: str | None) -> Callable[[np.ndarray], np.ndarray]:
    import torch
    from cellpose import models  # type: ignore[import-not-found,unused-ignore]

    where = torch.device(settings.torch_device(device))
    chosen = {} if path is None else {"pretrained_model": str(path)}
    network = models.CellposeModel(gpu=where.type != "cpu", device=where, **chosen)
    return lambda rgb: np.asarray(network.eval(rgb)[0], np.int64)


def _of_zoo(name: str, path: Path | None, device: str | None) -> Callable[[np.ndarray], np.ndarray] | None:
    import torch

    from sthist.encoders._loaders import zoo

    if name not in names_of_zoo():
        return None
    where = settings.torch_device(device)
    model = zoo.load_segmenter(name, path).to(where)
    transform = model.get_transform()

    def segment(rgb: np.ndarray) -> np.ndarray:
        pixels = torch.from_numpy(rgb.transpose(2, 0, 1).copy()) if transform is None else transform(rgb)
        out = model.segment(pixels[None].to(where))
        if out.instance_map is None:
            raise ValueError(f"{name!r} tells kinds of tissue, not single nuclei; choose another of {names_of_zoo()}.")
        return np.asarray(torch.as_tensor(out.instance_map).cpu(), np.int64).reshape(rgb.shape[:2])

    return segment
