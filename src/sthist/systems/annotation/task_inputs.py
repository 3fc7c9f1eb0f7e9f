"""What is trained: on stored embeddings, or on tiles with an encoder."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from sthist._settings import logger, settings
from sthist.systems.annotation.prompts import checked_prompts, checked_templates
from sthist.systems.annotation.tasks import DEFAULTS, FinetuneTask, LinearTask, Options, TextTask, is_constant
from sthist.tiles._spec import same_scale
from sthist.training.embeddings import key_of, table_spec
from sthist.training.model import weight_hash
from sthist.training.rows import Labelled, features_of, pixels_of

if TYPE_CHECKING:
    from sthist.tiles import TileSpec


def linear_task(
    rows: Labelled, encoder: Any, embedding: str | None, spec: TileSpec | None, options: Options
) -> tuple[LinearTask, dict[str, Any]]:
    """A task on stored embeddings, and what an annotator's config says of them."""
    key = embedding or (None if encoder is None else key_of(encoder))
    features, key, origin = features_of(rows, key)
    name = encoder if isinstance(encoder, str) else getattr(encoder, "name", None)
    if None not in (name, origin.encoder) and name != origin.encoder:
        msg = f"obsm[{key!r}] was made by {origin.encoder!r}, not by encoder={name!r}."
        raise ValueError(msg)
    if spec is not None and origin.spec is not None and not same_scale(spec, origin.spec):
        msg = f"obsm[{key!r}] is of {origin.spec}, and spec= is {spec}: stored embeddings cannot be of other tiles."
        raise ValueError(msg)
    constant = is_constant(features)
    if constant.all():
        msg = f"All {len(constant)} features of obsm[{key!r}] are constant: there is nothing to learn from."
        raise ValueError(msg)
    if constant.any():
        logger.warning(
            "%d of %d features of obsm[%r] are constant, and dropped.", int(constant.sum()), len(constant), key
        )
    found = origin.spec or spec or table_spec(rows.tables[0])
    facts = {
        "encoder": origin.encoder or name or key.removeprefix("X_"),
        "encoder_sha256": origin.sha256 or weight_hash(getattr(encoder, "provenance", None)),
        "embedding": key,
        "dim": features.shape[1],
        "spec": None if found is None else found.to_dict(),
    }
    return LinearTask(features, len(rows.classes), options), facts


def task_with_tiles(
    rows: Labelled, encoder: Any, spec: TileSpec | None, image: str | None, words: Any, options: Options
) -> tuple[FinetuneTask | TextTask, dict[str, Any]]:
    """A task that trains an encoder, and what an annotator's config says of it.

    ``words`` are prompts and templates, if any.
    """
    if words is not None:
        prompts = checked_prompts(words[0] or {name: name for name in rows.classes}, rows.classes)
        templates = checked_templates(words[1])
    tiles, spec = pixels_of(rows, encoder, spec, image)
    facts = {
        "encoder": encoder.name,
        "encoder_sha256": weight_hash(encoder.provenance),
        "embedding": key_of(encoder),
        "dim": encoder.dim,
        "spec": spec.to_dict(),
    }
    if words is not None:
        return TextTask(tiles, encoder, prompts, templates, options), facts
    return FinetuneTask(tiles, encoder, len(rows.classes), options), facts


def loaded_encoder(encoder: Any, mode: str, device: str | None) -> Any:
    """An encoder, loaded, through which gradients pass."""
    if encoder is None:
        msg = f"mode={mode!r} trains an encoder: say which one with encoder=."
        raise ValueError(msg)
    if isinstance(encoder, str | list | tuple):
        from sthist import encoders

        encoder = encoders.get(encoder, device=device)
    if getattr(encoder, "module", None) is None:
        msg = f"{encoder.name!r} has no module that can be trained; mode='linear' takes its stored embeddings."
        raise ValueError(msg)
    return encoder


def chosen_options(
    mode: str, given: dict[str, Any], patience: int, class_weights: str | None, device: str | None
) -> Options:
    """Options of a mode: its own, changed where something was given."""
    chosen = DEFAULTS[mode] | {name: value for name, value in given.items() if value is not None}
    for name, value in (chosen | {"patience": patience}).items():
        least = (
            0
            if name in {"weight_decay", "encoder_lr"}
            else 1
            if name in {"epochs", "batch_size", "patience"}
            else 1e-12
        )
        if not (np.isfinite(value) and value >= least):
            msg = f"{name} is {value!r}; it is a number from {least:g} on."
            raise ValueError(msg)
    where = settings.torch_device() if device in (None, "auto") else str(device)
    return Options(**chosen, patience=patience, balanced=class_weights == "balanced", device=where)


def require_arguments(mode: str, class_weights: Any, validation: float, prompts: Any, templates: Any) -> None:
    """Refuse arguments that cannot be, before anything is read."""
    if mode not in DEFAULTS:
        msg = f"mode is {mode!r}; it is one of {list(DEFAULTS)}."
        raise ValueError(msg)
    if class_weights not in {"balanced", None}:
        msg = f"class_weights is {class_weights!r}; it is 'balanced' or None."
        raise ValueError(msg)
    if not 0 <= validation < 1:
        msg = f"validation is {validation!r}; it is a part of the rows, from 0 to less than 1."
        raise ValueError(msg)
    if mode != "text" and (prompts is not None or templates is not None):
        msg = f"prompts= and templates= go with mode='text', not {mode!r}."
        raise ValueError(msg)
