"""Networks of timm: by its names, by a hub id, and those of the registry whose weights are in its layout."""

from __future__ import annotations

import math
import sys
from contextlib import suppress
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any

import torch
from torch import nn

from sthist import _weights
from sthist.encoders._registry import Card, did_you_mean
from sthist.encoders._transform import INTERPOLATIONS, Transform

if TYPE_CHECKING:
    from collections.abc import Callable

    from sthist._weights.files import Files

HUB_PREFIX = "hf-hub:"


@dataclass
class Loaded:
    """What a loader gives."""

    module: nn.Module  # images to embeddings; its ``tokens``: to places within them
    transform: Any  # of its input
    dim: int | None = None
    text: nn.Module | None = None  # its ``embed_text`` takes a list of texts
    logit_scale: float | None = None
    provenance: dict[str, Any] = field(default_factory=dict)  # of the library


class TimmImages(nn.Module):
    """A network of timm without its classifier, and how its tokens become one embedding."""

    def __init__(self, trunk: Any, pool: str = "network") -> None:
        super().__init__()
        self.trunk, self.pool = trunk, pool

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        """Embeddings (n, d)."""
        if self.pool == "network":
            return self.trunk(images)
        tokens = self.trunk.forward_features(images)
        if self.pool == "cls":
            return tokens[:, 0]
        return torch.cat([tokens[:, 0], tokens[:, self.trunk.num_prefix_tokens :].mean(1)], dim=-1)

    def tokens(self, images: torch.Tensor) -> torch.Tensor:
        """Embeddings of places (n, gh, gw, d)."""
        last = getattr(self.trunk, "output_fmt", "NCHW") == "NHWC"
        return as_grid(
            self.trunk.forward_features(images), getattr(self.trunk, "num_prefix_tokens", 0), channels_last=last
        )

    @property
    def dim(self) -> int:
        """Size of an embedding."""
        if self.pool == "network":
            return int(getattr(self.trunk, "head_hidden_size", None) or self.trunk.num_features)
        return int(self.trunk.num_features) * (2 if self.pool == "cls+mean" else 1)


class EarlyLayers(nn.Module):
    """The mean and the standard deviation, over the tile, of each channel of a convolutional network's early layers.

    These are the stages after the first down to a sixteenth of the resolution: textures and colours of a few µm, where
    the last layer speaks of things in photographs. Later stages are not computed.
    """

    REDUCTIONS = (4, 8, 16)

    def __init__(self, trunk: Any) -> None:
        super().__init__()
        stages = trunk.feature_info
        self.trunk = trunk
        self.stages = [number for number, stage in enumerate(stages) if stage["reduction"] in self.REDUCTIONS]
        self.dim = 2 * sum(stages[number]["num_chs"] for number in self.stages)

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        """Embeddings (n, d)."""
        maps = self.trunk.forward_intermediates(
            images, indices=self.stages, stop_early=True, intermediates_only=True, output_fmt="NCHW"
        )
        parts = [part for each in maps for part in (each.mean((2, 3)), each.std((2, 3), correction=0))]
        return torch.cat(parts, dim=1)


class Texts(nn.Module):
    """A text tower; its tokenizer is looked for when the first text comes.

    ``embed`` takes the tower and the tokens of ``length`` that such a tokenizer of transformers gives.
    """

    def __init__(
        self, tower: Any, find_tokenizer: Callable[[], Any], length: int, embed: Callable[[Any, Any], torch.Tensor]
    ) -> None:
        super().__init__()
        self.tower, self.find_tokenizer, self.length, self.embed = tower, find_tokenizer, length, embed
        self.tokenizer: Any = None

    def embed_text(self, texts: list[str]) -> torch.Tensor:
        """Embeddings (n, d), not normalised."""
        if self.tokenizer is None:
            self.tokenizer = self.find_tokenizer()
        tokens = self.tokenizer(
            texts, max_length=self.length, padding="max_length", truncation=True, return_tensors="pt"
        )
        return self.embed(self.tower, tokens.to(next(self.tower.parameters()).device))


def as_grid(tokens: Any, prefix: int, *, channels_last: bool = False) -> torch.Tensor:
    """Tokens (n, prefix + g * g, d) or maps (n, d, g, g) as (n, g, g, d)."""
    if isinstance(tokens, torch.Tensor) and tokens.ndim == 4:
        return tokens if channels_last else tokens.permute(0, 2, 3, 1)
    if isinstance(tokens, torch.Tensor) and tokens.ndim == 3:
        side = math.isqrt(tokens.shape[1] - prefix)
        if side * side == tokens.shape[1] - prefix:
            return tokens[:, prefix:].unflatten(1, (side, side))
    shape = tuple(tokens.shape) if isinstance(tokens, torch.Tensor) else type(tokens).__name__
    raise ValueError(f"This network gives no grid of places within a tile, but {shape}.")


def card_of(name: str) -> Card:
    """What timm knows of one of its networks, or of one on the hub."""
    import timm

    if name.startswith(HUB_PREFIX):
        hub_id = name.removeprefix(HUB_PREFIX)
        return Card(hub_id, "see its page", "timm", transform=Transform(size=224))
    architecture = name.split(".")[0]
    if not timm.is_model(architecture):
        raise KeyError(f"timm has no network {name!r}.{did_you_mean(name, timm.list_models(), 'timm:')}")
    try:
        described = timm.get_pretrained_cfg(name)
    except RuntimeError as error:
        raise KeyError(
            f"timm has no weights {name!r}; for {architecture!r} it has {timm.list_pretrained(f'{architecture}.*')}."
        ) from error
    hub_id = (described.hf_hub_id if described is not None else None) or ""
    tag = described.tag if described is not None else None
    if hub_id == "timm/":
        hub_id = f"timm/{architecture}.{tag}" if tag else ""
    file = getattr(described, "hf_hub_filename", None)
    return Card(
        hub_id,
        getattr(described, "license", None) or "see its page",
        "timm",
        transform=transform_of(described.to_dict() if described is not None else {}, Transform(size=224)),
        architecture=architecture,
        files=(file,) if file else Card("", "", "").files,
    )


def transform_of(described: dict[str, Any], default: Transform) -> Transform:
    """The transform that a description of timm asks for."""
    interpolation = described.get("interpolation")
    return Transform(
        described.get("mean") or default.mean,
        described.get("std") or default.std,
        (described.get("input_size") or (3, default.size, default.size))[-1],
        interpolation if interpolation in INTERPOLATIONS else default.interpolation,
    )


def load(card: Card, files: Files) -> Loaded:
    """Build a network as its card and the folder of its weights describe it, and load them."""
    import timm

    described = files.config()
    architecture = described.get("architecture", card.architecture)
    if not isinstance(architecture, str):
        raise ValueError(f"{files.folder}/config.json: 'architecture' is {architecture!r}; it should be a name.")
    if not architecture:
        raise ValueError(
            f"Nothing says what the architecture of {card.hub_id!r} is: it needs the config.json of its page, or "
            "weights=."
        )
    if not timm.is_model(architecture):
        raise KeyError(
            f"This version of timm ({timm.__version__}) has no architecture {architecture!r}, which "
            f"{files.folder}/config.json asks for."
        )
    arguments = with_layers(card.arguments | described.get("model_args", {})) | {"num_classes": 0}
    trunk = timm.create_model(architecture, pretrained=False, **arguments)
    if files.weights is not None:
        fill(trunk, _weights.read(files.weights), files)
    module = EarlyLayers(trunk) if card.pool == "early" else TimmImages(trunk, card.pool)
    transform = card.transform
    if not card.arguments:  # what the registry says of a network is checked, its config.json may be stale
        transform = transform_of(described.get("pretrained_cfg", described), transform)
    return Loaded(module, sized(transform, trunk), module.dim, provenance={"timm": timm.__version__})


def with_layers(arguments: dict[str, Any]) -> dict[str, Any]:
    """Arguments in which layers that are given by name are classes."""
    from timm import layers

    def layer(value: Any) -> Callable[..., nn.Module] | Any:
        return getattr(layers, value, None) or getattr(nn, value) if isinstance(value, str) else value

    return {name: layer(value) if name.endswith("_layer") else value for name, value in arguments.items()}


def sized(transform: Transform, trunk: Any) -> Transform:
    """The transform with the side that a vision transformer was built for."""
    size = getattr(getattr(trunk, "patch_embed", None), "img_size", None)
    return transform if size is None else replace(transform, size=int(size[0]))


def fill(trunk: Any, state: dict[str, Any], files: Files) -> None:
    """Load weights as they are or, where they do not fit, as timm converts them; a classifier is left out."""
    classifier = trunk.pretrained_cfg.get("classifier") or ()
    heads = tuple(f"{name}." for name in ((classifier,) if isinstance(classifier, str) else classifier))
    own = trunk.state_dict()
    fits = all(name in state and state[name].shape == value.shape for name, value in own.items())
    convert = getattr(sys.modules[type(trunk).__module__], "checkpoint_filter_fn", None)
    if not fits and convert is not None:
        # Of a layout that timm does not know either, load_into says how it differs.
        with suppress(KeyError, RuntimeError, ValueError, AttributeError, IndexError, AssertionError):
            state = convert(dict(state), trunk)
    _weights.load_into(trunk, state, str(files.weights), leave=heads)
