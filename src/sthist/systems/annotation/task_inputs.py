"""What is trained: on stored embeddings, or on tiles with an encoder."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from sthist._settings import logger
from sthist.systems.annotation.prompts import checked_prompts, checked_templates
from sthist.systems.annotation.tasks import FinetuneTask, LinearTask, TextTask, is_constant
from sthist.tiles._spec import same_scale
from sthist.training.embeddings import key_of, table_spec
from sthist.training.model import weight_hash
from sthist.training.rows import Labelled, features_of, pixels_of

if TYPE_CHECKING:
    from sthist.systems.annotation.options import AnnotatorTraining


def linear_task(
    rows: Labelled, encoder: Any, embedding: str | None, options: AnnotatorTraining, device: str
) -> tuple[LinearTask, dict[str, Any]]:
    """A task on stored embeddings, and what an annotator's config says of them."""
    spec = options.spec
    key = embedding or (None if encoder is None else key_of(encoder))
    features, key, origin = features_of(rows, key)
    name = encoder if isinstance(encoder, str) else getattr(encoder, "name", None)
    if None not in (name, origin.encoder) and name != origin.encoder:
        raise ValueError(f"obsm[{key!r}] was made by {origin.encoder!r}, not by encoder={name!r}.")
    if spec is not None and origin.spec is not None and not same_scale(spec, origin.spec):
        raise ValueError(
            f"obsm[{key!r}] is of {origin.spec}, and spec= is {spec}: stored embeddings cannot be of other tiles."
        )
    constant = is_constant(features)
    if constant.all():
        raise ValueError(f"All {len(constant)} features of obsm[{key!r}] are constant: there is nothing to learn from.")
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
    return LinearTask(features, len(rows.classes), options, device), facts


def task_with_tiles(
    rows: Labelled,
    encoder: Any,
    method: str,
    prompts: Any,
    image: str | None,
    options: AnnotatorTraining,
    device: str,
    *,
    progress: bool | None,
) -> tuple[FinetuneTask | TextTask, dict[str, Any]]:
    """A task that trains an encoder, and what an annotator's config says of it."""
    if method == "text":
        prompts = checked_prompts(prompts or {name: name for name in rows.classes}, rows.classes)
        templates = checked_templates(options.templates)
    tiles, spec = pixels_of(rows, encoder, options.spec, image)
    facts = {
        "encoder": encoder.name,
        "encoder_sha256": weight_hash(encoder.provenance),
        "embedding": key_of(encoder),
        "dim": encoder.dim,
        "spec": spec.to_dict(),
    }
    if method == "text":
        return TextTask(tiles, encoder, prompts, templates, options, device, progress=progress), facts
    return FinetuneTask(tiles, encoder, len(rows.classes), options, device, progress=progress), facts


def loaded_encoder(encoder: Any, method: str, device: str | None) -> Any:
    """An encoder, loaded, through which gradients pass."""
    if encoder is None:
        raise ValueError(f"method={method!r} trains an encoder: say which one with encoder=.")
    if isinstance(encoder, str | list | tuple):
        from sthist import encoders

        encoder = encoders.get(encoder, device=device)
    if getattr(encoder, "module", None) is None:
        raise ValueError(
            f"{encoder.name!r} has no module that can be trained; method='linear' takes its stored embeddings."
        )
    return encoder
