"""How pixels become the input of a network: resized where they have to be, and normalised, on the device."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from functools import lru_cache
from typing import Any

IMAGENET_MEAN, IMAGENET_STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
CLIP_MEAN, CLIP_STD = (0.48145466, 0.4578275, 0.40821073), (0.26862954, 0.26130258, 0.27577711)
INTERPOLATIONS = ("bilinear", "bicubic")


@dataclass(frozen=True)
class Transform:
    """Mean, standard deviation and side of what a network takes.

    The whole tile is resized, and never cropped: a tile of 112 µm gives an embedding of 112 µm.

    Parameters
    ----------
    mean, std
        Of each channel, for pixels between 0 and 1; the default is that of ImageNet.
    size
        Side of the network's input in pixels; None for a network that takes any.
    interpolation
        ``"bicubic"`` or ``"bilinear"``; antialiased.

    Raises
    ------
    ValueError
        If a value cannot be used.

    Examples
    --------
    >>> import sthist, torch
    >>> transform = sthist.encoders.Transform(size=4)
    >>> transform(torch.zeros(2, 8, 8, 3, dtype=torch.uint8)).shape
    torch.Size([2, 3, 4, 4])
    """

    mean: tuple[float, ...] = IMAGENET_MEAN
    std: tuple[float, ...] = IMAGENET_STD
    size: int | None = None
    interpolation: str = "bicubic"

    def __post_init__(self) -> None:
        for name in ("mean", "std"):
            values = tuple(float(value) for value in getattr(self, name))
            if len(values) != 3 or (name == "std" and min(values) <= 0):
                raise ValueError(
                    f"Transform: {name} is {values}; it takes three {'positive ' if name == 'std' else ''}numbers."
                )
            object.__setattr__(self, name, values)
        if self.interpolation not in INTERPOLATIONS:
            raise ValueError(f"Transform: interpolation is one of {INTERPOLATIONS}, not {self.interpolation!r}.")

    def __call__(self, tiles: Any) -> Any:
        """Prepare tiles for a network, where they are.

        Returns tensor (n, 3, size, size) of float32, channels last in memory.
        """
        import torch

        images = tiles.permute(0, 3, 1, 2)  # channels last, without moving a byte
        if self.size is not None and tiles.shape[1] != self.size:
            images = torch.nn.functional.interpolate(
                images.float(), size=(self.size, self.size), mode=self.interpolation, antialias=True
            ).clamp_(0, 255)
        scale, shift = _constants(self, tiles.device)
        return torch.addcmul(shift, images, scale)

    def to_dict(self) -> dict[str, Any]:
        """Plain values, for JSON."""
        return {name: list(value) if isinstance(value, tuple) else value for name, value in asdict(self).items()}


@lru_cache(maxsize=64)
def _constants(transform: Transform, device: Any) -> tuple[Any, Any]:
    """Scale and shift of a pixel value, on the device: copied there once."""
    import torch

    with torch.inference_mode(False):
        mean, std = (torch.tensor(values).reshape(1, 3, 1, 1) for values in (transform.mean, transform.std))
        return (1 / (255 * std)).to(device), (-mean / std).to(device)
