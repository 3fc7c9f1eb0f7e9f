"""The small network of :func:`sthist.pp.nuclei`: predicted on squares of the image's lattice, each of them once."""

from __future__ import annotations

from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from sthist._imaging.local_nuclei import climbed
from sthist.pp._nuclei.windows import Window
from sthist.tiles._images.planes import ChunkCache

if TYPE_CHECKING:
    from sthist.pp._nuclei.windows import Lattice

FOLDER = Path(__file__).parents[2] / "_data" / "nuclei"
MPP = 0.5
SQUARE_PX, MARGIN_PX = 512, 64
FROM, RISE = 0.5, 0.12
"""Probability from which on a pixel is nucleus; and how much deeper than a waist a nucleus is, of its whole depth."""

CACHE_BYTES = 128 * 2**20


class Small:
    """What the network says of a slide, as labels of a window."""

    reach_um, exact, concurrent = 16.0, True, True

    def __init__(self, folder: Path = FOLDER, device: str | None = None) -> None:
        self.mpp: float | None = MPP
        self._folder, self._device = folder, device
        self._squares = ChunkCache(CACHE_BYTES)

    def __call__(self, rgb: np.ndarray, seen: np.ndarray, window: Window, lattice: Lattice) -> np.ndarray:
        said = np.zeros((2, *window.shape), np.float32)
        for row in range(window.y0 // SQUARE_PX, -(-window.y1 // SQUARE_PX)):
            for column in range(window.x0 // SQUARE_PX, -(-window.x1 // SQUARE_PX)):
                place = (row, column)
                square = self._squares.get(place, lambda place=place: self._predicted(place, lattice))
                y, x = row * SQUARE_PX - window.y0, column * SQUARE_PX - window.x0
                low_y, low_x = max(0, -y), max(0, -x)
                part = square[:, low_y : window.shape[0] - y, low_x : window.shape[1] - x]
                said[:, y + low_y : y + low_y + part.shape[1], x + low_x : x + low_x + part.shape[2]] = part
        mask = (said[0] > 0) & seen
        return climbed(said[1], mask, RISE)

    def _predicted(self, place: tuple[int, int], lattice: Lattice) -> np.ndarray:
        """The answer for a square, (2, px, px): always with the same margin, so that it is always the same."""
        import torch

        y, x = place[0] * SQUARE_PX, place[1] * SQUARE_PX
        rgb, seen = lattice.read(Window(y, x, y + SQUARE_PX, x + SQUARE_PX).grown(MARGIN_PX))
        if not seen.any():
            return np.full((2, SQUARE_PX, SQUARE_PX), -1, np.float16)
        network = _network(self._folder, self._device)
        pixels = torch.from_numpy(rgb).to(next(network.parameters()).device)
        with torch.inference_mode():
            out = network(pixels.permute(2, 0, 1)[None].float() / 255)[0]
        inner = slice(MARGIN_PX, -MARGIN_PX)
        said = out[:, inner, inner].float().cpu().numpy()
        said[0] -= np.log(FROM / (1 - FROM))
        return said.astype(np.float16)


@lru_cache(maxsize=2)
def _network(folder: Path, device: str | None) -> Any:
    import json

    import torch
    from safetensors.torch import load_file

    from sthist._settings import settings
    from sthist.nets import NucleusUNet

    facts = json.loads((folder / "small.json").read_text())
    network = NucleusUNet(int(facts["width"]))
    weights = load_file(folder / "small.safetensors")
    network.load_state_dict({name: each.float() for name, each in weights.items()}, strict=False)
    return network.eval().to(torch.device(settings.torch_device(device)), memory_format=torch.channels_last)
