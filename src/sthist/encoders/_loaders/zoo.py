"""Encoders of lazyslide-models, an extra: every image and image-text model of it, by its key."""

from __future__ import annotations

from contextlib import contextmanager
from importlib.util import find_spec
from typing import TYPE_CHECKING, Any

from sthist._settings import logger
from sthist._weights import hub
from sthist.encoders._registry import ZOO_NAMES, Card
from sthist.encoders._transform import INTERPOLATIONS, Transform

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from sthist.encoders._loaders.timm import Loaded

PACKAGE = "lazyslide_models"
TASKS = {"vision", "multimodal"}
HUB = "https://huggingface.co/"
FOLDED = {"Compose", "ToImage", "ToDtype", "Resize", "CenterCrop", "Normalize", "ToTensor"}
"""Steps of a transform that mean, deviation and size say as well."""


def cards() -> dict[str, Card]:
    """What is known of the models; names alone where the package is not installed."""
    if not installed():
        return {name: Card("", "see its page", "zoo", known=False) for name in ZOO_NAMES}
    return {name: _card(kind) for name, kind in registry().items() if _is_encoder(kind)}


def installed() -> bool:
    """Whether the package is there, without importing it."""
    import sys

    return PACKAGE in sys.modules or find_spec(PACKAGE) is not None


def load(name: str, weights: Path | None) -> tuple[Card, Loaded]:
    """Have the package load a model; it fetches the weights itself."""
    if not installed():
        raise ImportError(
            f'{name!r} is an encoder of lazyslide-models, which is not installed: pip install "sthist[zoo]".'
        )
    known = registry()
    if name not in known or not _is_encoder(known[name]):
        raise KeyError(
            f"lazyslide-models has no encoder of tiles {name!r}; it has "
            f"{sorted(key for key, kind in known.items() if _is_encoder(kind))}."
        )
    card = _card(known[name])
    model = _made(known[name], card, weights)
    return card, _loaded(model, card)


def load_segmenter(name: str, weights: Path | None) -> Any:
    """Have the package load a model that segments; it fetches the weights itself."""
    kind = registry()[name]
    return _made(kind, _card(kind), weights)


def _made(kind: Any, card: Card, weights: Path | None) -> Any:
    """A model of the package."""
    card.announce("lazyslide-models loads")
    logger.warning("lazyslide-models pins no revision, and some of its models run code from their page.")
    with _asking_network_once(card):
        return kind(**({} if weights is None else {"model_path": str(weights)}))


def registry() -> Any:
    """Every model of the package, by its key."""
    import importlib

    return importlib.import_module(PACKAGE).MODEL_REGISTRY


def _is_encoder(kind: Any) -> bool:
    tasks = kind.task if isinstance(kind.task, (list, tuple)) else [kind.task]
    return hasattr(kind, "encode_image") and any(task.value in TASKS for task in tasks)


def _card(kind: Any) -> Card:
    licence = kind.license if isinstance(kind.license, str) else ", ".join(kind.license or ["see its page"])
    page = kind.hf_url or ""
    return Card(
        page.removeprefix(HUB).strip("/") if page.startswith(HUB) else "",
        licence,
        "zoo",
        gated=bool(kind.is_gated),
        dim=getattr(kind, "encode_dim", None),
        text=hasattr(kind, "encode_text"),
        dense=hasattr(kind, "encode_image_dense"),
    )


def _loaded(model: Any, card: Card) -> Loaded:
    import importlib

    from sthist.encoders._loaders.timm import Loaded
    from sthist.encoders._loaders.zoo_modules import ZooImages, ZooTexts, unchanged

    own = model.get_transform()
    transform = unchanged if own is None else folded(own) or own
    scale: Any = getattr(getattr(model, "model", None), "logit_scale", None)
    return Loaded(
        ZooImages(model),
        transform,
        card.dim,
        ZooTexts(model) if card.text else None,
        float(scale.detach().exp()) if card.text and hasattr(scale, "detach") else None,
        {"lazyslide_models": getattr(importlib.import_module(PACKAGE), "__version__", "?")},
    )


def folded(transform: Any) -> Transform | None:
    """A chain of torchvision as one step on the device; None if it does more than resize and normalise.

    A crop of the centre is left out: the whole tile is embedded.
    """
    steps = {type(step).__name__: step for step in getattr(transform, "transforms", [])}
    if not steps or not steps.keys() <= FOLDED or "Normalize" not in steps:
        return None
    resize, crop, normalise = steps.get("Resize"), steps.get("CenterCrop"), steps["Normalize"]
    sizes = getattr(crop or resize, "size", None)
    size = None if sizes is None else int(sizes if isinstance(sizes, int) else sizes[0])
    interpolation = str(getattr(getattr(resize, "interpolation", None), "value", "bilinear"))
    return Transform(
        tuple(normalise.mean),
        tuple(normalise.std),
        size,
        interpolation if interpolation in INTERPOLATIONS else "bilinear",
    )


@contextmanager
def _asking_network_once(card: Card) -> Iterator[None]:
    """The hub's client in its offline mode where there is no network, which it would try to reach for half a minute."""
    from huggingface_hub import constants
    from huggingface_hub.errors import GatedRepoError, LocalEntryNotFoundError, OfflineModeIsEnabled

    before = constants.HF_HUB_OFFLINE
    online = not hub.is_offline() and hub.reachable()
    constants.HF_HUB_OFFLINE = before or not online
    try:
        yield
    except GatedRepoError as error:
        why = "access is given on request, and your login (`hf auth login`) does not have it yet"
        raise PermissionError(hub.by_hand(card, why)) from error
    except (LocalEntryNotFoundError, OfflineModeIsEnabled) as error:
        raise ConnectionError(hub.by_hand(card, str(error).splitlines()[0])) from error
    except OSError as error:
        if online:
            raise
        why = "the hub cannot be reached, or must not be, and they are not in the cache"
        raise ConnectionError(hub.by_hand(card, why)) from error
    finally:
        constants.HF_HUB_OFFLINE = before
