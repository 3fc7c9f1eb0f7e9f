"""Classes described in words: prompts, templates around them, and how alike a tile and a class are."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import numpy as np

from sthist._settings import logger

if TYPE_CHECKING:
    from collections.abc import Sequence

TEMPLATES = (
    "{}.",
    "an H&E image of {}.",
    "a haematoxylin and eosin stained section of {}.",
    "histology of {}.",
    "a histopathology image that shows {}.",
    "a microscope view of {}.",
    "a tile of a whole-slide image with {}.",
    "{} under the microscope.",
    "{}, H&E stain.",
    "a pathology slide: {}.",
    "tissue with {}.",
    "a high-power field of {}.",
)
"""Sentences around a phrase, for tiles of H&E; a class is the mean over all of them, so that no wording decides."""

CLIP_TEMPERATURE = 0.01
"""Of CLIP as it was trained; taken where a model does not say its own."""


def checked_prompts(prompts: Mapping[Any, Any], classes: Sequence[Any] | None = None) -> dict[str, list[str]]:
    """Phrases by class, as text, in the order of ``classes`` if that is given."""
    if not isinstance(prompts, Mapping) or not prompts:
        raise ValueError(
            "Prompts are a mapping of class to phrases that is not empty, such as {'tumour': ['invasive carcinoma']}, "
            f"not {prompts!r}."
        )
    known = {str(name): [value] if isinstance(value, str) else list(value) for name, value in prompts.items()}
    for name, phrases in known.items():
        if not phrases or any(not isinstance(phrase, str) or not phrase.strip() for phrase in phrases):
            raise ValueError(
                f"The prompts of class {name!r} are {phrases!r}; each class needs phrases that are not blank."
            )
    owner: dict[str, str] = {}
    for name, phrases in known.items():
        for phrase in phrases:
            other = owner.setdefault(" ".join(phrase.casefold().split()), name)
            if other != name:
                raise ValueError(
                    f"Classes {other!r} and {name!r} share the prompt {phrase!r}: nothing could tell them apart."
                )
    if classes is None:
        return known
    names = [str(name) for name in classes]
    missing, more = [n for n in names if n not in known], [n for n in known if n not in names]
    if missing or more:
        fault = f"no prompts for the classes {missing}" if missing else f"prompts for {more}, which are no classes"
        raise ValueError(f"There are {fault}; the classes are {names}, the prompts are of {list(known)}.")
    return {name: known[name] for name in names}


def checked_templates(templates: Sequence[str] | None) -> tuple[str, ...]:
    """Templates as they are given, each with one place for a phrase; by default :data:`TEMPLATES`."""
    if templates is None:
        return TEMPLATES
    listed = (templates,) if isinstance(templates, str) else tuple(templates)
    for template in listed or ("",):
        if not isinstance(template, str) or template.count("{}") != 1:
            raise ValueError(
                "A template is a sentence with one {} for the phrase, such as 'an H&E image of {}.', not "
                f"{template!r}."
            )
    return listed


def sentences(prompts: Mapping[str, Sequence[str]], templates: Sequence[str]) -> tuple[list[str], np.ndarray]:
    """Every phrase in every template, and the place of its class."""
    texts = [
        (template.replace("{}", phrase), k)
        for k, phrases in enumerate(prompts.values())
        for phrase in phrases
        for template in templates
    ]
    return [text for text, _ in texts], np.array([k for _, k in texts], np.int64)


def text_vectors(encoder: Any, texts: Sequence[str]) -> np.ndarray:
    """Embeddings of texts, (n, d) float32, as the encoder gives them."""
    embed_text = getattr(encoder, "embed_text", None)
    if embed_text is None:
        raise ValueError(
            f"{getattr(encoder, 'name', encoder)!r} embeds images only: prompts need an image-text model, such as "
            "'conch'."
        )
    vectors = np.asarray(embed_text(list(texts)), np.float32)
    if vectors.shape[:1] != (len(texts),) or vectors.ndim != 2 or not np.isfinite(vectors).all():
        raise ValueError(
            f"{encoder.name!r} gave shape {vectors.shape}, or NaN, for {len(texts)} texts; one finite row each is "
            "needed."
        )
    return vectors


def class_vectors(vectors: np.ndarray, codes: np.ndarray) -> np.ndarray:
    """Mean direction of the texts of each class, (k, d), of length 1."""
    unit = normalised(vectors)
    return normalised(np.stack([unit[codes == k].mean(axis=0) for k in range(int(codes.max()) + 1)]))


def normalised(rows: np.ndarray) -> np.ndarray:
    """Rows of length 1, float32; rows of zeros stay."""
    rows = np.asarray(rows, np.float32)
    length = np.linalg.norm(rows, axis=1, keepdims=True)
    return rows / np.where(length > 0, length, 1)


def softmax(logits: np.ndarray) -> np.ndarray:
    """Probabilities of rows of logits, float32."""
    shifted = np.asarray(logits, np.float64)
    shifted = np.exp(shifted - shifted.max(axis=1, keepdims=True))
    return (shifted / shifted.sum(axis=1, keepdims=True)).astype(np.float32)


def chosen_temperature(temperature: float | None, encoder: Any) -> float:
    """What similarities are divided by before the softmax: given, or the model's own."""
    if temperature is None:
        scale = getattr(encoder, "logit_scale", None)
        if scale is None:
            logger.info("%r has no logit scale; similarities are divided by %g.", encoder.name, CLIP_TEMPERATURE)
            return CLIP_TEMPERATURE
        return 1 / float(scale)
    if not (np.isfinite(temperature) and temperature > 0):
        raise ValueError(f"temperature is {temperature!r}; it is a positive number, such as 0.01.")
    return float(temperature)
