"""Encoders that are networks, and functions of the user's own."""

from __future__ import annotations

import warnings
from collections import deque
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import numpy as np

from sthist._settings import logger, settings
from sthist.encoders._encoder import Encoder, checked_rows, checked_tiles
from sthist.encoders._transform import Transform

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator, Sequence

    from sthist.tiles import TileSpec

PRECISIONS = ("float32", "bf16")


class NetworkEncoder(Encoder):
    """An encoder that is a module of torch: float images in, one row per image out.

    The module may have ``tokens`` (images to (n, gh, gw, d)). ``transform`` is a :class:`Transform`, or a function of a
    tensor (n, 3, px, px) of uint8 on the device; ``text`` a module whose ``embed_text`` takes a list of texts.
    """

    def __init__(
        self,
        name: str,
        module: Any,
        transform: Any,
        *,
        spec: TileSpec | None = None,
        dim: int | None = None,
        text: Any = None,
        logit_scale: float | None = None,
        trainable: bool = True,
        device: str | None = None,
        precision: str | None = None,
        compile: bool = False,
        provenance: dict[str, Any] | None = None,
    ) -> None:
        import torch

        self.name, self.spec, self.transform, self._dim = name, spec, transform, dim
        self.device = torch.device(settings.torch_device(device))
        self.precision = chosen_precision(precision, self.device)
        self.network = module.eval().to(self.device, memory_format=torch.channels_last)
        self.module = self.network if trainable else None
        self.text: Any = None if text is None else text.eval().to(self.device)
        self.logit_scale = logit_scale
        self.can_dense, self.can_text = hasattr(module, "tokens"), text is not None
        self.token_names = getattr(module, "token_names", None)
        self._forward = torch.compile(self.network) if compile else self.network
        self.provenance = (provenance or {}) | {
            "transform": transform.to_dict() if isinstance(transform, Transform) else str(transform),
            "precision": self.precision,
            "device": str(self.device),
            "torch": torch.__version__,
        }

    def embed(self, tiles: np.ndarray) -> np.ndarray:
        """Embed a batch of tiles: (n, d) float32."""
        return next(self.embed_batches([tiles]))

    def embed_batches(self, batches: Iterable[np.ndarray]) -> Iterator[np.ndarray]:
        """Embed one batch after another; the next is on the device before the last has come back."""
        running: deque[tuple[Any, int]] = deque()
        for tiles in batches:
            n = len(checked_tiles(tiles))
            running.append((self._run(self._forward, tiles) if n else None, n))
            if len(running) > 1:
                yield self._fetched(*running.popleft())
        if running:
            yield self._fetched(*running.popleft())

    def _fetched(self, rows: Any, n: int) -> np.ndarray:
        weights = self.provenance.get("weights")
        return checked_rows(rows.cpu().numpy(), n, self.name, weights) if n else np.empty((0, self.dim), np.float32)

    def embed_text(self, texts: str | Sequence[str]) -> np.ndarray:
        """Embed texts into the space of the images, as the network gives them: (n, d) float32."""
        if not self.can_text:
            return super().embed_text(texts)
        import torch

        listed = [texts] if isinstance(texts, str) else list(texts)
        if not listed:
            return np.empty((0, self.dim), np.float32)
        with torch.inference_mode(), self._autocast(), evaluating(self.text):
            rows = self.text.embed_text(listed).float().cpu().numpy()
        return checked_rows(rows, len(listed), self.name, self.provenance.get("weights"))

    def dense(self, tiles: np.ndarray) -> np.ndarray:
        """Embed the places within each tile, patch tokens or the last map: (n, gh, gw, d) float32."""
        if not self.can_dense:
            return super().dense(tiles)
        if len(checked_tiles(tiles)) == 0:
            raise ValueError(f"{self.name!r}: there are no tiles to look into.")
        return self._run(self.network.tokens, tiles).cpu().numpy()

    def _run(self, function: Callable[[Any], Any], tiles: Any) -> Any:
        """What a part of the network gives for tiles, float32 on the device, possibly still being computed."""
        import torch

        with torch.inference_mode(), self._autocast(), evaluating(self.network):
            pixels = _upload(tiles, self.device)
            images = self.transform(pixels if isinstance(self.transform, Transform) else pixels.permute(0, 3, 1, 2))
            try:
                rows = function(images)
            except (AssertionError, RuntimeError, ValueError) as error:
                if isinstance(error, torch.OutOfMemoryError):
                    raise
                raise ValueError(self._refusal(tiles.shape[1], error)) from error
            if not isinstance(rows, torch.Tensor):
                what = type(rows).__name__
                raise ValueError(
                    f"{self.name!r} gave a {what} in place of a tensor; wrap it in a module that picks one."
                )
            return rows.float()

    def _refusal(self, px: int, error: Exception) -> str:
        """What a network says of tiles that it does not take, and which it may take."""
        made_for = (getattr(self.network, "pretrained_cfg", None) or {}).get("input_size")
        known = "" if made_for is None else f" It was made for {made_for[-1]} px."
        why = str(error).strip().partition("\n")[0].rstrip(".") or type(error).__name__
        return (
            f"{self.name!r} does not take tiles of {px} px: {why}.{known} Pass tiles that it takes, "
            "spec=sthist.tiles.TileSpec(size_um=..., px=...), or lay such with pp.tiles."
        )

    def _autocast(self) -> Any:
        import torch

        return torch.autocast(self.device.type, dtype=torch.bfloat16, enabled=self.precision == "bf16")


class FunctionEncoder(Encoder):
    """A function of the user's own: tiles (n, px, px, 3) of uint8 in, an array or a tensor (n, d) out."""

    def __init__(self, name: str, function: Callable[[np.ndarray], Any], *, spec: TileSpec | None = None) -> None:
        self.name, self.function, self.spec = name, function, spec
        origin = f"{getattr(function, '__module__', '?')}.{getattr(function, '__qualname__', type(function).__name__)}"
        self.provenance = {"source": "callable", "callable": origin}

    def embed(self, tiles: np.ndarray) -> np.ndarray:
        """Embed a batch of tiles: (n, d) float32."""
        if len(checked_tiles(tiles)) == 0:
            return np.empty((0, self.dim), np.float32)
        rows = self.function(tiles)
        if hasattr(rows, "detach"):
            rows = rows.detach().float().cpu()
        return checked_rows(np.asarray(rows, dtype=np.float32), len(tiles), self.name)


def chosen_precision(precision: str | None, device: Any) -> str:
    """The precision that is meant: bf16 where the device has it, float32 elsewhere, or what was asked for."""
    import torch

    if precision in (None, "auto"):
        return "bf16" if device.type == "cuda" and torch.cuda.is_bf16_supported() else "float32"
    if precision not in PRECISIONS:
        raise ValueError(f"There is no precision {precision!r}; there are 'auto', 'float32' and 'bf16'.")
    return str(precision)


@contextmanager
def evaluating(module: Any) -> Iterator[None]:
    """A module without dropout and with fixed statistics, and as it was afterwards: training may be going on."""
    training = [part for part in module.modules() if part.training] if module.training else []
    if training:
        logger.debug("An encoder in training embeds as it would after it.")
        module.eval()
    try:
        yield
    finally:
        for part in training:
            part.training = True


def _upload(tiles: Any, device: Any) -> Any:
    """Tiles as a tensor of uint8 on the device; the copy to an accelerator goes on in the background."""
    import torch

    if not isinstance(tiles, torch.Tensor):
        with warnings.catch_warnings():
            # A read-only array is only read here.
            warnings.filterwarnings("ignore", message="The given NumPy array is not writable")
            tiles = torch.from_numpy(np.ascontiguousarray(tiles))
    if device.type == "cuda" and tiles.device.type == "cpu":
        tiles = tiles.pin_memory()
    return tiles.to(device, non_blocking=True)
