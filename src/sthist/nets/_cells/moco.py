"""MoCo v3 in plain torch: two encoders, of which one follows the other, their loss, and LARS."""

from __future__ import annotations

import math
from contextlib import suppress
from copy import deepcopy
from typing import TYPE_CHECKING, Any, Literal

import torch
from torch import nn
from torch.nn.functional import cross_entropy, normalize

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

WIDTHS = (64, 128, 256, 512)

Stem = Literal["standard", "small"]


def cell_backbone(name: str = "resnet50", *, width: float = 1.0, stem: Stem = "standard") -> nn.Module:
    """A residual network of timm with random weights, from images (n, 3, px, px) to embeddings (n, d).

    Parameters
    ----------
    name
        Of timm: ``"resnet18"``, ``"resnet50"``, ``"resnet10t"``, ...
    width
        Factor of the numbers of channels.
    stem
        ``"standard"``: 7 x 7 pixels in steps of 2 and a maximum over 2 x 2, as for photographs: a crop of 48 px is
        12 x 12 places after it. ``"small"``: 3 x 3 in steps of 1 and no maximum, which keeps detail and costs 16 times
        as much.

    Raises
    ------
    ValueError
        If there is no such network, it is no residual network, or there is no such stem.
    """
    import timm
    from timm.models.resnet import ResNet

    if stem not in ("standard", "small"):
        raise ValueError(f"stem is {stem!r}; it is 'standard' or 'small'.")
    if not (math.isfinite(width) and width > 0):
        raise ValueError(f"width is {width!r}; a positive number is needed.")
    sizes: dict[str, Any] = {}
    if width != 1:
        sizes["channels"] = tuple(max(8, round(width * each)) for each in WIDTHS)
        sizes["stem_width"] = max(4, round(width * WIDTHS[0] / 2))  # where a stem has several layers; others keep 64
    if not timm.is_model(name):
        raise ValueError(f"timm has no network {name!r}; 'resnet18' and 'resnet50' are residual networks.")
    network: Any = None
    with suppress(TypeError):  # of networks that take no such sizes
        network = timm.create_model(name, pretrained=False, num_classes=0, **sizes)
    if not isinstance(network, ResNet):
        raise ValueError(f"{name!r} is no residual network of timm, such as 'resnet18' or 'resnet50'.")
    if stem == "small":
        stem_layers: Any = network
        if isinstance(network.conv1, nn.Conv2d):
            conv = nn.Conv2d(3, network.conv1.out_channels, 3, padding=1, bias=False)
            nn.init.kaiming_normal_(conv.weight, mode="fan_out", nonlinearity="relu")
            stem_layers.conv1 = conv
        else:
            stem_layers.conv1[0].stride = (1, 1)
        stem_layers.maxpool = nn.Identity()
    return network  # type: ignore[no-any-return]


class MoCo(nn.Module):
    """Momentum contrast, version 3: an encoder learns to tell each image from all others of the batch.

    Two views of an image should be alike: a query, from encoder, projector and predictor, and a key, from an encoder
    and projector whose weights follow slowly and take no gradient.

    Parameters
    ----------
    backbone
        From images to embeddings (n, d); its ``num_features`` is d.
    hidden, dim
        Widths of projector and predictor, and of what is compared.
    temperature
        Of the similarities.

    References
    ----------
    Chen, Xie and He 2021, An empirical study of training self-supervised vision transformers.
    """

    def __init__(self, backbone: nn.Module, *, hidden: int = 4096, dim: int = 256, temperature: float = 1.0) -> None:
        super().__init__()
        features: Any = backbone.num_features
        self.backbone, self.temperature = backbone, temperature
        self.projector = _mlp(features, hidden, dim, last_norm=True)
        self.predictor = _mlp(dim, hidden, dim, last_norm=False)
        self.key_backbone, self.key_projector = deepcopy(self.backbone), deepcopy(self.projector)
        self.key_backbone.requires_grad_(False)
        self.key_projector.requires_grad_(False)

    @torch.no_grad()
    def follow(self, momentum: float) -> None:
        """Let the weights of the keys' encoder be ``momentum`` times themselves plus the rest of the other's."""
        for keys, base in ((self.key_backbone, self.backbone), (self.key_projector, self.projector)):
            for own, other in zip(keys.parameters(), base.parameters(), strict=True):
                own.lerp_(other, 1 - momentum)

    def forward(self, first: Any, second: Any, gather: Callable[[Any], tuple[Any, int]] | None = None) -> Any:
        """The loss of two views, (n, 3, px, px) each, and the embeddings of the first.

        ``gather`` gives keys of all devices, and where those of this one begin.
        """
        embedded = self.backbone(first)
        queries = [self.predictor(self.projector(each)) for each in (embedded, self.backbone(second))]
        with torch.no_grad():
            keys = [self.key_projector(self.key_backbone(each)) for each in (first, second)]
        loss = sum(
            contrastive_loss(query, *((key, 0) if gather is None else gather(key)), temperature=self.temperature)
            for query, key in zip(queries, keys[::-1], strict=True)
        )
        return loss, embedded


def contrastive_loss(queries: Any, keys: Any, start: int = 0, *, temperature: float = 1.0) -> Any:
    """InfoNCE of queries (n, d) and keys (m, d), times 2T: the key of query i is i + ``start``, all others are not."""
    similar = normalize(queries, dim=1) @ normalize(keys, dim=1).T / temperature
    return 2 * temperature * cross_entropy(similar, start + torch.arange(len(queries), device=queries.device))


def spread_of(embedded: Any) -> Any:
    """Standard deviation of embeddings (n, d) of length 1, times the root of d: 1 where they point anywhere, 0 for one.

    It is the mean over dimensions.
    """
    return normalize(embedded.detach().float(), dim=1).std(dim=0, correction=0).mean() * embedded.shape[1] ** 0.5


def _mlp(n_in: int, hidden: int, n_out: int, *, last_norm: bool) -> nn.Sequential:
    layers: list[nn.Module] = [nn.Linear(n_in, hidden, bias=False), nn.BatchNorm1d(hidden), nn.ReLU(inplace=True)]
    layers.append(nn.Linear(hidden, n_out, bias=False))
    if last_norm:
        layers.append(nn.BatchNorm1d(n_out, affine=False))
    return nn.Sequential(*layers)


class LARS(torch.optim.Optimizer):
    """Layer-wise adaptive rates: each matrix moves in proportion to its own length (You et al. 2017).

    Biases and the parameters of norms, which have one dimension, move as by plain gradient descent with momentum, and
    do not decay.
    """

    def __init__(
        self,
        params: Iterable[Any],
        lr: float,
        *,
        weight_decay: float = 1e-6,
        momentum: float = 0.9,
        trust: float = 1e-3,
    ) -> None:
        super().__init__(params, {"lr": lr, "weight_decay": weight_decay, "momentum": momentum, "trust": trust})

    @torch.no_grad()
    def step(self, closure: Callable[[], Any] | None = None) -> Any:  # type: ignore[override]
        """One step."""
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        for group in self.param_groups:
            for each in group["params"]:
                if each.grad is None:
                    continue
                change = each.grad
                if each.ndim > 1:
                    change = change.add(each, alpha=group["weight_decay"])
                    length, moved = torch.linalg.vector_norm(each), torch.linalg.vector_norm(change)
                    trusted = group["trust"] * length / torch.where(moved > 0, moved, torch.ones_like(moved))
                    change = change * torch.where((length > 0) & (moved > 0), trusted, torch.ones_like(trusted))
                state = self.state[each]
                if "velocity" not in state:
                    state["velocity"] = torch.zeros_like(each)
                state["velocity"].mul_(group["momentum"]).add_(change)
                each.add_(state["velocity"], alpha=-group["lr"])
        return loss


def rate_at(progress: float, warmup: float, total: float) -> float:
    """Factor of the learning rate: rises evenly over ``warmup`` epochs, then falls along a cosine to 0 at ``total``."""
    if progress < warmup:
        return progress / warmup
    return 0.5 * (1 + math.cos(math.pi * (progress - warmup) / max(total - warmup, 1e-9)))


def momentum_at(progress: float, total: float, momentum: float) -> float:
    """Momentum that rises along a cosine from its first value to 1 at the end."""
    return 1 - 0.5 * (1 + math.cos(math.pi * progress / total)) * (1 - momentum)
