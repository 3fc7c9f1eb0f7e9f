"""Networks that tiles go through first: by name, pretrained or from scratch, trained along or frozen."""

from __future__ import annotations

import copy
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np

from sthist.encoders import Transform
from sthist.encoders import get as get_encoder
from sthist.encoders._registry import CARDS, ZOO_NAMES
from sthist.regression.collect import TileModel
from sthist.regression.model import NetworkModel, RegressionConfig

if TYPE_CHECKING:
    from collections.abc import Iterator

    from torch import nn

    from sthist.regression.data.inputs import Inputs
    from sthist.regression.data.targets import Targets

TILES_AT_ONCE = 64
"""Tiles that a CPU predicts at a time, at most: more take memory, and no less time."""

INITIAL = ("source", "hub_id", "licence", "weights", "revision", "sha256", "pretrained")
"""What of an encoder's provenance says how a network was initialised."""


@dataclass(frozen=True)
class BackboneConfig(RegressionConfig):
    """Settings of a model whose tiles go through a network of somebody else's first.

    Attributes
    ----------
    backbone
        Name of a network of timm, ``"resnet50"``, or of an encoder, ``"efficientnet-lite0"`` (whose weights of ImageNet
        come with the extra ``imagenet``) or ``"timm:<name>"``.
    pretrained
        Begin with its published weights; False for random ones.
    backbone_weights
        Local file with such weights, in place of the hub.
    normalization
        Mean and standard deviation of the pixels that it takes; found in training.
    n_features
        Channels of what it gives; found in training.
    initial
        What it began with: source, licence and checksum of its weights, and whether they were pretrained; found in
        training.
    """

    backbone: str = "resnet50"
    pretrained: bool = True
    backbone_weights: str | None = None
    normalization: dict[str, Any] = field(default_factory=dict)
    n_features: int = 0
    initial: dict[str, Any] = field(default_factory=dict)


class BackboneModel(TileModel, NetworkModel):
    """A model of tiles whose network begins with a backbone.

    ``maps``: whether it takes the backbone's features at each place of a tile, (b, c, h / 32, w / 32), not their mean.
    """

    config: BackboneConfig
    maps: ClassVar[bool] = False
    _started: nn.Module | None = None

    def settle(self, inputs: Inputs, targets: Targets, rows: np.ndarray) -> None:
        """Load the backbone, and see what it takes and gives."""
        import torch

        self.weights, self._net = {}, None
        with torch.random.fork_rng(devices=[]):
            encoder = load_backbone(self.config)
        self._started = as_trunk(encoder.module, maps=self.maps)
        tiles = inputs.take(rows[:1]).get("tiles")
        if tiles is None:
            raise ValueError(f"{type(self).__name__} takes tiles (n, px, px, 3) of uint8, not embeddings.")
        images = torch.from_numpy(np.ascontiguousarray(tiles))
        transform = replace(encoder.transform, size=None)  # tiles have the size that the model is for
        with torch.inference_mode():
            try:
                found = self._started.eval()(transform(images))
            except (AssertionError, RuntimeError, ValueError):  # a transformer that takes one size alone
                transform = encoder.transform
                found = self._started(transform(images))
        initial = {fact: encoder.provenance[fact] for fact in INITIAL if fact in encoder.provenance}
        self.config = replace(
            self.config, normalization=transform.to_dict(), n_features=found.shape[1], initial=initial
        )

    def trunk(self) -> nn.Module:
        """The backbone: with published weights at the start of a training, else with random ones."""
        if self._started is not None and self.config.pretrained:
            return copy.deepcopy(self._started)
        return as_trunk(load_backbone(replace(self.config, pretrained=False)).module, maps=self.maps)

    def transform(self, tiles: Any) -> Any:
        """Tiles (n, px, px, 3) of uint8 as the backbone takes them."""
        return Transform(**self.config.normalization)(tiles)

    def _keep(self, net: nn.Module, history: list[dict[str, float]]) -> None:
        super()._keep(net, history)
        self._started = None

    def _predict(
        self, inputs: Inputs, rows: np.ndarray, batch_size: int, device: str | None
    ) -> Iterator[tuple[np.ndarray, np.ndarray]]:
        yield from super()._predict(inputs, rows, at_once(batch_size, device), device)


def at_once(batch_size: int, device: str | None) -> int:
    """Tiles at a time: what is asked for, but no more than a CPU has use for."""
    from sthist._settings import settings

    return min(batch_size, TILES_AT_ONCE) if settings.torch_device(device) == "cpu" else batch_size


def encoder_name(backbone: str) -> str:
    """A backbone as encoders are called: a network of timm, unless it is known by its name."""
    known = ":" in backbone or backbone in (*CARDS, *ZOO_NAMES, "morphology")
    return backbone if known else f"timm:{backbone}"


def load_backbone(config: BackboneConfig) -> Any:
    """The encoder of a config; an error of weights that cannot be had says what can be."""
    name = encoder_name(config.backbone)
    weights = config.backbone_weights if config.pretrained else None
    try:
        encoder = get_encoder(name, weights=weights, pretrained=config.pretrained, device="cpu", precision="float32")
    except (ConnectionError, PermissionError) as error:
        error.add_note(
            'backbone="efficientnet-lite0" needs no hub (extra imagenet); backbone_weights= takes a local file; '
            "pretrained=False begins from scratch."
        )
        raise
    if getattr(encoder, "module", None) is None or not isinstance(encoder.transform, Transform):
        raise ValueError(f"{config.backbone!r} is no network that can be trained along; take its embeddings: pp.embed.")
    return encoder


def as_trunk(module: nn.Module, *, maps: bool) -> nn.Module:
    """A network of images to pooled features (b, c), or to a map of them (b, c, h, w)."""
    if not maps:
        return module
    if not hasattr(module, "tokens"):
        raise ValueError(f"{type(module).__name__} gives one embedding of a tile, and none of the places within it.")
    from sthist.nets import FeatureMap

    return FeatureMap(module)
