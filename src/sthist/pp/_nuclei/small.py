"""The small network that comes with the package, asked for squares of the image's lattice, each of them once."""

from __future__ import annotations

import threading
from functools import lru_cache, partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from sthist import _weights
from sthist._imaging.local_nuclei import REACH_UM, climbed
from sthist._settings import settings
from sthist.pp._nuclei.windows import BLOCK_PX, Window
from sthist.tiles._images.planes import ChunkCache

if TYPE_CHECKING:
    from sthist.nets import NucleusUNet
    from sthist.pp._nuclei.windows import Lattice

SHIPPED = Path(__file__).parent / "published" / "nuclei-small"
WEIGHTS = "model.safetensors"
MPP = 0.5  # what it was trained at
SQUARE_PX, MARGIN_PX = BLOCK_PX // 3, 64
RISE = 0.12
"""How much deeper the middle of a nucleus is than its waist, of the depth of a whole nucleus."""

CACHE_BYTES = 128 * 2**20  # two rows of squares of a slide of 3 cm


class Small:
    """Labels of what the network takes for nuclei, parted at their waists."""

    reach_um, exact, concurrent = REACH_UM, True, True

    def __init__(self, network: NucleusUNet, device: str | None = None, mpp: float | None = None) -> None:
        import torch

        self.mpp: float | None = mpp or MPP
        self._network = network.to(torch.device(settings.torch_device(device)))
        self._squares = ChunkCache(CACHE_BYTES)
        # One at a time: the network itself uses all cores.
        self._alone = threading.Lock()

    def __call__(self, rgb: np.ndarray, seen: np.ndarray, window: Window, lattice: Lattice) -> np.ndarray:
        relief = np.empty(window.shape, np.float32)
        for row in range(window.y0 // SQUARE_PX, -(-window.y1 // SQUARE_PX)):
            for column in range(window.x0 // SQUARE_PX, -(-window.x1 // SQUARE_PX)):
                square = Window(*(SQUARE_PX * k for k in (row, column, row + 1, column + 1)))
                part = self._squares.get((row, column), partial(self._relief_of, square, lattice))
                shared = _overlap(square, window)
                relief[_within(shared, window)] = part[_within(shared, square)]
        return climbed(relief, (relief >= 0) & seen, RISE)

    def _relief_of(self, square: Window, lattice: Lattice) -> np.ndarray:
        """Depth in the nuclei of a square, -1 outside of them; its margin is always the same, and so is the answer."""
        image, window = Window(0, 0, *lattice.shape), square.grown(MARGIN_PX)
        if min(_overlap(square, image).shape) <= 0:
            return np.full(square.shape, -1, np.float16)
        rgb, seen = lattice.read(window)
        if not seen.any():
            return np.full(square.shape, -1, np.float16)
        # Beyond the border of the image the network sees it mirrored: white would be an edge.
        there = _overlap(window, image)
        beyond = ((there.y0 - window.y0, window.y1 - there.y1), (there.x0 - window.x0, window.x1 - there.x1), (0, 0))
        rgb = np.pad(rgb[_within(there, window)], beyond, mode="symmetric")
        with self._alone:
            logits, depth = answer(self._network, rgb)
        relief = np.where(logits > 0, np.maximum(depth, 0), -1).astype(np.float16)
        return relief[MARGIN_PX:-MARGIN_PX, MARGIN_PX:-MARGIN_PX]


def answer(network: NucleusUNet, rgb: np.ndarray) -> np.ndarray:
    """What the network says of pixels (h, w, 3): logits and depth, (2, h, w)."""
    import torch

    parameter = next(network.parameters())
    with torch.inference_mode():
        pixels = torch.from_numpy(rgb).to(parameter.device).permute(2, 0, 1)[None].float() / 255
        told: np.ndarray = network(pixels)[0].float().cpu().numpy()
    return told


def file_of(weights: str | Path | None = None) -> Path:
    """The file of weights that a file or folder stands for, by default that which comes with the package."""
    return _weights.find(SHIPPED if weights is None else Path(weights).expanduser(), (WEIGHTS,))


def trained(weights: str | Path | None = None) -> NucleusUNet:
    """The network with those weights."""
    path = file_of(weights)
    return _trained(path, _weights.sha256(path))


@lru_cache(maxsize=2)
def _trained(path: Path, digest: str) -> NucleusUNet:
    from sthist.nets import NucleusUNet

    state: dict[str, Any] = _weights.read(path)
    first = state.get("first.0.weight")
    network = NucleusUNet(16 if first is None else len(first))
    _weights.load_into(network, {name: value.float() for name, value in state.items()}, path)
    return network.eval()


def _overlap(a: Window, b: Window) -> Window:
    """What two windows share; its sides are not above 0 where they share nothing."""
    return Window(max(a.y0, b.y0), max(a.x0, b.x0), min(a.y1, b.y1), min(a.x1, b.x1))


def _within(part: Window, whole: Window) -> tuple[slice, slice]:
    """Where a part of a window lies in its array."""
    return slice(part.y0 - whole.y0, part.y1 - whole.y0), slice(part.x0 - whole.x0, part.x1 - whole.x0)
