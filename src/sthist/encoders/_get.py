"""An encoder from its name, or from something of the user's own."""

from __future__ import annotations

import importlib
from pathlib import Path
from typing import TYPE_CHECKING, Any

from sthist import _weights
from sthist._settings import logger
from sthist.encoders._encoder import Encoder, Joined
from sthist.encoders._registry import CARDS, ZOO_NAMES, Card, did_you_mean
from sthist.encoders._transform import Transform
from sthist.tiles import TileSpec

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

    import pandas as pd

    from sthist.encoders._loaders.timm import Loaded
    from sthist.tiles import TileSpec


def available() -> pd.DataFrame:
    """The encoders that are known by name.

    Beside them stand every ``"timm:<name>"`` and ``"open_clip:<name>"``, and functions and modules of your own.

    Returns
    -------
    One row per encoder: ``name``, ``hub_id``, ``dim``, ``px`` and ``mpp`` of the tile that it was trained for (empty
    where any is as good), ``licence``, ``gated`` (as far as is known; the hub decides), ``text`` and ``dense`` (whether
    it embeds texts, and places within a tile) and ``via``, the library that loads it.

    Examples
    --------
    >>> import sthist
    >>> table = sthist.encoders.available().set_index("name")
    >>> int(table.loc["uni", "dim"]), table.loc["uni", "licence"]
    (1024, 'CC-BY-NC-ND-4.0')
    >>> list(table.query("text and not gated and licence == 'MIT'").index)
    ['keep', 'quiltnet']
    """
    import pandas as pd

    from sthist.encoders._loaders import zoo as zoo_loader

    own = Card("", "BSD-3-Clause", "sthist", dense=False)
    known = {"morphology": own} | CARDS
    cards = known | {name: card for name, card in zoo_loader.cards().items() if name not in known}
    rows = [
        {
            "name": name,
            "hub_id": card.hub_id,
            "dim": card.dim,
            "px": None if card.spec is None else card.spec.px,
            "mpp": None if card.spec is None else card.spec.mpp,
            "licence": card.licence,
            "gated": card.gated if card.known else None,
            "text": card.text if card.known else None,
            "dense": card.dense if card.known else None,
            "via": card.via,
        }
        for name, card in cards.items()
    ]
    return pd.DataFrame(rows).astype(
        {"dim": "Int64", "px": "Int64", "mpp": "Float64", "gated": "boolean", "text": "boolean", "dense": "boolean"}
    )


TIMM, OPEN_CLIP = "timm:", "open_clip:"


def get(
    encoder: str | Path | Encoder | Callable[[Any], Any] | Sequence[Any],
    *,
    weights: str | Path | None = None,
    revision: str | None = None,
    device: str | None = None,
    precision: str | None = None,
    compile: bool = False,
    pretrained: bool = True,
    transform: Transform | Mapping[str, Any] | Callable[[Any], Any] | None = None,
    spec: TileSpec | None = None,
    name: str | None = None,
) -> Encoder:
    """Load an encoder.

    Licence and gating are said before anything is fetched. Files that are in the cache of the hub are used without
    asking the network; where there is none, the error comes within a second.

    Parameters
    ----------
    encoder
        ``"morphology"``, which needs no weights; ``"efficientnet-lite0"`` or ``"efficientnet-lite2"``, whose weights of
        ImageNet come with the extra ``imagenet``, or ``"efficientnet-lite0-early"`` for means and standard deviations
        of its early layers, which say more of histology than its last; ``"hipt"``, whose two files of weights have to
        be fetched (``weights``, their folder); a name of :func:`available`; ``"timm:<name>"`` (also
        ``"timm:hf-hub:<owner>/<name>"``); ``"open_clip:<model>/<tag>"`` (also
        ``"open_clip:hf-hub:<owner>/<name>"``); a function from tiles (n, px, px, 3) of uint8 to (n, d); a
        :class:`torch.nn.Module` from float images (n, 3, px, px) to (n, d); an :class:`Encoder`, such as a trained
        :class:`sthist.models.MoCoV3`, or the folder that it was saved to; or a list of these, which is joined in its
        order.
    weights
        A local file (safetensors, or a state dict of torch), or a folder like the hub's with its ``config.json``.
        Nothing is ever unpickled.
    revision
        Branch, tag or commit on the hub; the commit is recorded.
    device
        Of torch; by default :attr:`sthist.settings.device`.
    precision
        ``"auto"`` (bf16 on cuda that has it, float32 elsewhere), ``"float32"`` or ``"bf16"``.
    compile
        Compile the network, which takes a minute and is faster after it.
    pretrained
        False for random weights, for tests.
    transform
        Of a module: a :class:`Transform`, its values, or a function of uint8 tensors (n, 3, px, px). By default pixels
        are normalised as for ImageNet and not resized.
    spec
        The tile that the encoder is for, in place of what is known of it.
    name
        In place of the name, such as for a function without one.

    Returns
    -------
    The encoder.

    Raises
    ------
    KeyError
        If there is no encoder of that name.
    ImportError
        If it is one of lazyslide-models, or its weights come as a package, and that is not installed.
    ConnectionError
        If its weights are not here, and the network is off or away.
    PermissionError
        If one has to ask for access to them first.
    FileNotFoundError
        If ``weights`` does not exist, or the hub has no such model.
    ValueError
        If the weights are of another network, damaged, or a pickle; or the arguments do not go together.

    Examples
    --------
    >>> import numpy as np, sthist
    >>> encoder = sthist.encoders.get("timm:resnet10t", pretrained=False, device="cpu")
    >>> encoder.embed(np.zeros((2, 64, 64, 3), np.uint8)).shape
    (2, 512)
    >>> encoder.key, encoder.can_text
    ('X_timm_resnet10t', False)
    """
    running = {"device": device, "precision": precision, "compile": compile}
    origin = {"weights": weights, "revision": revision, "pretrained": pretrained}
    if isinstance(encoder, (list, tuple)):
        return _joined(encoder, origin | running, transform, spec, name)
    if _is_saved(encoder):
        _refuse(str(encoder), weights=weights, revision=revision)
        encoder = _saved(Path(str(encoder)))
    if not isinstance(encoder, str):
        _refuse(type(encoder).__name__, weights=weights, revision=revision)
        return _own(encoder, transform, spec, name, running)
    if transform is not None:
        raise ValueError(
            f"transform= goes with a module of your own; {encoder!r} has the one that it was trained with."
        )
    if encoder == "morphology":
        _refuse(encoder, weights=weights, revision=revision)
        from sthist.encoders._morphology.encoder import Morphology

        return _renamed(Morphology(spec=spec), name)
    return _named(encoder, origin, spec, name, running)


def _is_saved(encoder: Any) -> bool:
    """Whether an argument is the folder of a model; names that are known come first."""
    if not isinstance(encoder, str | Path) or encoder in CARDS or encoder in ("morphology", *ZOO_NAMES):
        return False
    return isinstance(encoder, Path) or (Path(encoder).expanduser() / "config.json").is_file()


def _saved(folder: Path) -> Encoder:
    """A model of sthist that is an encoder, from its folder."""
    load = importlib.import_module("sthist.models").load  # models stand above encoders, and are loaded by name alone
    model = load(folder.expanduser())
    if not isinstance(model, Encoder):
        raise ValueError(f"{folder} holds a model of system {model.system!r}, which is no encoder.")
    return model


def _named(
    typed: str, origin: dict[str, Any], spec: TileSpec | None, name: str | None, running: dict[str, Any]
) -> Encoder:
    from sthist.encoders._network import NetworkEncoder

    weights = None if origin["weights"] is None else Path(origin["weights"]).expanduser()
    if typed in CARDS or typed.startswith((TIMM, OPEN_CLIP)):
        card = _card(typed, needs_weights=origin["pretrained"] and weights is None)
        if card.package:
            _refuse(typed, revision=origin["revision"])
            if weights is None and origin["pretrained"]:
                from sthist.encoders._loaders import imagenet

                weights = imagenet.packaged(typed, card.package)
        files = _weights.obtain(card, weights, origin["revision"], pretrained=origin["pretrained"])
        loaded, of_files = _load(card, files), files.provenance()
    else:
        card, loaded, of_files = _from_zoo(typed, weights, origin)
    known = {
        "source": card.via,
        "hub_id": card.hub_id or None,
        "licence": card.licence,
        "licence_page": card.page or None,
    }
    return NetworkEncoder(
        name or typed,
        loaded.module,
        loaded.transform,
        spec=spec or card.spec,
        dim=loaded.dim,
        text=loaded.text,
        logit_scale=loaded.logit_scale,
        trainable=card.via != "zoo",
        provenance=known | of_files | loaded.provenance,
        **running,
    )


def _card(typed: str, *, needs_weights: bool) -> Card:
    """What is known of an encoder of our own, of timm, or of open_clip."""
    if typed in CARDS:
        card = CARDS[typed]
        if card.package:
            return card
    elif typed.startswith(TIMM):
        from sthist.encoders._loaders import timm as timm_loader

        card = timm_loader.card_of(typed.removeprefix(TIMM))
    else:
        from sthist.encoders._loaders import open_clip as open_clip_loader

        card = open_clip_loader.card_of(typed.removeprefix(OPEN_CLIP), needs_tag=needs_weights)
    if needs_weights and not card.hub_id:
        raise ValueError(
            f"{typed!r} has no weights on the hub: pass weights=, a file that you have, or pretrained=False."
        )
    return card


def _load(card: Card, files: _weights.Files) -> Loaded:
    """Build a network and load its weights; only the library that it needs is imported."""
    module, function = ("transformers", "load_keep") if card.via == "keep" else (card.via, "load")
    if card.package:
        module = "imagenet"
    loaded: Loaded = getattr(importlib.import_module(f"sthist.encoders._loaders.{module}"), function)(card, files)
    return loaded


def _from_zoo(typed: str, weights: Path | None, origin: dict[str, Any]) -> tuple[Card, Loaded, dict[str, Any]]:
    """An encoder of lazyslide-models, and the checksum of its weights."""
    from sthist.encoders._loaders import zoo as zoo_loader

    if typed not in ZOO_NAMES and not (zoo_loader.installed() and typed in zoo_loader.cards()):
        raise KeyError(
            f"There is no encoder {typed!r}.{did_you_mean(typed, [*CARDS, 'morphology', *ZOO_NAMES])} There are "
            f"'morphology', {', '.join(map(repr, CARDS))}, 'timm:<name>', 'open_clip:<model>/<tag>', and those that "
            "sthist.encoders.available() lists."
        )
    if origin["revision"] is not None or not origin["pretrained"]:
        raise ValueError(
            f"{typed!r} is loaded by lazyslide-models, which takes neither revision= nor pretrained=False."
        )
    if weights is not None:
        _weights.find(weights)
    card, loaded = zoo_loader.load(typed, weights)
    of_files = {"weights": None if weights is None else weights.name, "revision": None, "pretrained": True}
    return card, loaded, of_files | {"sha256_of_tensors": _weights.sha256_of(loaded.module)}


def _own(encoder: Any, transform: Any, spec: TileSpec | None, name: str | None, running: dict[str, Any]) -> Encoder:
    """An encoder, a module or a function of the user's own."""
    if isinstance(encoder, Encoder):
        return _renamed(encoder.on(**running), name)
    import torch

    from sthist.encoders._network import FunctionEncoder, NetworkEncoder

    named = name or getattr(encoder, "__name__", None) or type(encoder).__name__
    if isinstance(encoder, torch.nn.Module):
        if transform is None:
            transform = Transform()
            logger.info(
                "%s: pixels are normalised as for ImageNet and not resized; say otherwise with transform=.", named
            )
        elif isinstance(transform, dict):
            transform = Transform(**transform)
        origin = {"source": "module", "module": f"{type(encoder).__module__}.{type(encoder).__qualname__}"}
        origin["sha256_of_tensors"] = _weights.sha256_of(encoder)
        return NetworkEncoder(named, encoder, transform, spec=spec, provenance=origin, **running)
    if not callable(encoder):
        raise ValueError(f"An encoder is a name, a function, a torch module or a list of these, not {encoder!r}.")
    if transform is not None:
        raise ValueError(
            f"{named!r} is a function of tiles and prepares them itself; transform= goes with a torch module."
        )
    return FunctionEncoder(named, encoder, spec=spec)


def _joined(
    encoders: Sequence[Any], arguments: dict[str, Any], transform: Any, spec: TileSpec | None, name: str | None
) -> Encoder:
    of_one = [argument for argument in ("weights", "revision") if arguments[argument] is not None]
    if of_one or transform is not None:
        raise ValueError(
            f"{of_one or ['transform']} belong to one encoder: load each with get(), and pass the list of them."
        )
    running = {argument: arguments[argument] for argument in ("device", "precision", "compile")}
    parts = [
        part.on(**running) if isinstance(part, Encoder) else get(part, spec=spec, **arguments) for part in encoders
    ]
    return _renamed(parts[0] if len(parts) == 1 else Joined(parts), name)


def _renamed(encoder: Encoder, name: str | None) -> Encoder:
    if name is not None:
        encoder.name = name
    return encoder


def _refuse(what: str, **arguments: Any) -> None:
    passed = [f"{name}=" for name, value in arguments.items() if value is not None]
    if passed:
        raise ValueError(f"{' and '.join(passed)} do not go with {what!r}, which is given as it is.")
