"""A trained generator at work: on its device, with its prompt embedded, called by the engine."""

from __future__ import annotations

import traceback
from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    from sthist.systems.virtual_he.translator import Translator


class Predict:
    """What the engine calls, and takes to workers: with the prompt as the generator sees it, and not what embeds it."""

    def __init__(self, model: Translator) -> None:
        self.model = model

    def __getstate__(self) -> dict[str, Any]:
        return {"model": self.model.told()}

    def __call__(self, tiles: np.ndarray, tissue: np.ndarray) -> np.ndarray:
        """H&E where there is tissue, and white elsewhere: of glass the model has seen little or nothing."""
        shown = tissue.any(axis=(1, 2, 3))
        out = np.full_like(tiles, 255)
        if shown.any():
            made = self.model.predict(tiles[shown], batch_size=len(tiles))
            out[shown] = np.round(255 - (255.0 - made) * tissue[shown].clip(0, 1))
        return out


class Running:
    """A generator on a device, with its prompt embedded once."""

    def __init__(self, model: Translator) -> None:
        import torch

        self.version, self.device, self.input_low = model._version[0], model.device_name, model.config.input_low
        self.translate = model.translate
        prompts = model.prompt_vectors([model.prompt()]) if model._told is None else model._told
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
            return self._made(tiles)
        except torch.OutOfMemoryError as error:
            traceback.clear_frames(error.__traceback__)  # they hold what the failed pass had made
        n, px = tiles.shape[:2]
        msg = f"{self.device} is out of memory with {n} tiles of {px} px. {self._what_fits(tiles)}"
        raise MemoryError(msg)

    def _what_fits(self, tiles: np.ndarray) -> str:
        """The largest half, quarter and so on of a batch that goes through."""
        import torch

        n = len(tiles) // 2
        while n:
            if self.device.startswith("cuda"):
                torch.cuda.empty_cache()
            try:
                self._made(tiles[:n])
            except torch.OutOfMemoryError as error:
                traceback.clear_frames(error.__traceback__)
                n //= 2
            else:
                return f"batch_size={n} fits."
        return "Not one fits: something else fills it, or the model is too large for it."

    def _made(self, tiles: np.ndarray) -> np.ndarray:
        import torch

        from sthist.systems.virtual_he.training_module import as_input, as_tiles

        # inference_mode and autocast are of a thread.
        with torch.inference_mode(), torch.autocast(self.device.partition(":")[0], torch.bfloat16, enabled=self.half):
            images = as_input(torch.from_numpy(np.ascontiguousarray(tiles)).to(self.device), self.input_low)
            images = images.contiguous(memory_format=torch.channels_last)
            prompts = None if self.prompts is None else self.prompts.expand(len(images), -1, -1)
            return as_tiles(self.translate(self.network, images, prompts, None))
