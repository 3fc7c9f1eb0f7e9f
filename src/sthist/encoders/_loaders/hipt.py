"""HIPT: a vision transformer of squares of 256 pixels, and one of what that makes of the squares of a region."""

from __future__ import annotations

import argparse
from typing import TYPE_CHECKING, Any

import torch
from torch import nn

from sthist import _weights
from sthist.encoders._loaders.timm import Loaded
from sthist.encoders._transform import Transform

if TYPE_CHECKING:
    from pathlib import Path

    from sthist._weights.files import Files
    from sthist.encoders._registry import Card

SQUARE, PATCH = 256, 16
"""Sides, in pixels, of what the first transformer sees, and of its tokens."""

FIRST, SECOND = "vit256_small_dino.pth", "vit4k_xs_dino.pth"
SQUARES_AT_ONCE = 32


class HIPT(nn.Module):
    """Both levels of HIPT (Chen et al. 2022), and what iStar takes of them: a feature for each 16 x 16 pixels.

    These are 192 numbers of the region's level, the same for the 16 x 16 tokens of a square, 384 of the square's level,
    and the mean colour.
    """

    def __init__(self) -> None:
        import timm
        from timm.models.vision_transformer import VisionTransformer

        super().__init__()
        self.square: Any = timm.create_model("vit_small_patch16_224", num_classes=0, dynamic_img_size=True)
        self.phi = nn.Sequential(nn.Linear(384, 192), nn.GELU())
        self.region: Any = VisionTransformer(img_size=224, embed_dim=192, depth=6, num_heads=6, num_classes=0)
        self.region.patch_embed = nn.Identity()  # its tokens are squares
        levels = (("region", 192), ("patch", 384))
        self.token_names = [f"{level}_{number}" for level, width in levels for number in range(width)]
        self.token_names += ["red", "green", "blue"]
        self.dim = 192

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        """Embeddings (n, 192) of regions."""
        return self._levels(images)[0][:, 0]

    def tokens(self, images: torch.Tensor) -> torch.Tensor:
        """Features (n, gh, gw, 579) of places of 16 x 16 pixels."""
        found, patches = self._levels(images)
        n, side = len(images), images.shape[-1] // SQUARE
        squares = found[:, 1:].unflatten(1, (side, side)).repeat_interleave(SQUARE // PATCH, dim=1)
        squares = squares.repeat_interleave(SQUARE // PATCH, dim=2)
        # Squares (n, i, j) of patches (y, x): rows are i and y, columns j and x.
        patches = patches.unflatten(0, (n, side, side)).unflatten(3, (SQUARE // PATCH, SQUARE // PATCH))
        patches = patches.permute(0, 1, 3, 2, 4, 5).flatten(3, 4).flatten(1, 2)
        colours = nn.functional.avg_pool2d(images, PATCH).permute(0, 2, 3, 1)
        return torch.cat([squares, patches, colours.to(patches.dtype)], dim=-1)

    def _levels(self, images: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Tokens of regions, the class token first, (n, 1 + k, 192), and of all squares, (n * k, 256, 384)."""
        from timm.layers import resample_abs_pos_embed

        n, side = len(images), images.shape[-1] // SQUARE
        if images.shape[-1] % SQUARE or not side:
            raise ValueError(f"tiles are a whole number of squares of {SQUARE} px")
        squares = images.unflatten(3, (side, SQUARE)).unflatten(2, (side, SQUARE)).permute(0, 2, 4, 1, 3, 5)
        squares = squares.flatten(0, 2)
        tokens = torch.cat([self.square.forward_features(part) for part in squares.split(SQUARES_AT_ONCE)])
        names = self.phi(tokens[:, 0].unflatten(0, (n, side * side)))
        places = resample_abs_pos_embed(self.region.pos_embed, [side, side], num_prefix_tokens=1)
        found = torch.cat([self.region.cls_token.expand(n, -1, -1), names], dim=1) + places
        return self.region.norm(self.region.blocks(found)), tokens[:, 1:]


def load(card: Card, files: Files) -> Loaded:
    """Build the network, and load the files of both levels, which lie beside each other."""
    import timm

    module, facts = HIPT(), {"timm": timm.__version__}
    if files.weights is not None:
        first, second = files.weights.with_name(FIRST), files.weights.with_name(SECOND)
        for path in (first, second):
            if not path.is_file():
                raise FileNotFoundError(f"HIPT has two files of weights, {FIRST} and {SECOND}: there is no {path}.")
        own = {f"square.{name}": value for name, value in _read(first).items()}
        for name, value in _read(second).items():
            own[name if name.startswith("phi.") else f"region.{name}"] = value
        _weights.load_into(module, own, str(files.weights.parent), leave=("region.patch_embed.",))
        facts["sha256"] = "+".join(_weights.sha256(path) for path in (first, second))
    return Loaded(module, Transform((0.5,) * 3, (0.5,) * 3), module.dim, provenance=facts)


def _read(path: Path) -> dict[str, Any]:
    """The teacher's weights without its head, of a checkpoint of DINO, or weights as they are."""
    with torch.serialization.safe_globals([argparse.Namespace]):  # what it was called with lies beside them
        state = _weights.read_file(path)
    state = state.get("teacher", state) if isinstance(state, dict) else state
    if not isinstance(state, dict) or not all(isinstance(value, torch.Tensor) for value in state.values()):
        raise ValueError(f"{str(path)!r} holds no weights of HIPT: tensors by name are expected.")
    names = {name: name.removeprefix("module.").removeprefix("backbone.") for name in state}
    return {short: state[name] for name, short in names.items() if not short.startswith("head.")}
