"""What turns embeddings into scores of classes: prompts, a trained model, or a function."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    from collections.abc import Sequence

Score = Callable[[np.ndarray], np.ndarray]


@dataclass(frozen=True, eq=False)
class Scorer:
    """Scores of embeddings.

    Attributes
    ----------
    classes
        Names, as they were given.
    score
        (n, d) embeddings to (n, classes) float.
    facts
        JSON values that say what it is.
    spec
        The tile that it was trained for; None where it was not.
    """

    classes: list[str]
    score: Score
    facts: dict[str, Any] = field(default_factory=dict)
    spec: Any = None


def scorer_of(model: Any, encoder: Any, classes: Sequence[str] | None) -> Scorer:
    """The scorer that a ``model=`` argument stands for.

    Parameters
    ----------
    model
        Classes and their phrases; an object with ``predict`` and ``classes``; or a function of embeddings.
    encoder
        The encoder of the images, which embeds the phrases.
    classes
        For prompts and trained models, those to keep, in this order; for a function, its classes.

    Raises
    ------
    KeyError
        If the model has no such class.
    TypeError
        If ``model`` is nothing of the kind, or a function without ``classes``.
    ValueError
        If there is no class, or a class has no phrase.
    """
    if classes is not None and (isinstance(classes, str) or not len(classes)):
        msg = f"classes is {classes!r}; it is a list of names."
        raise ValueError(msg)
    if isinstance(model, Mapping):
        return _of_prompts(model, encoder, classes)
    if hasattr(model, "predict"):
        return _of_model(model, classes)
    if not callable(model):
        msg = (
            f"model is a {type(model).__name__}; it is a mapping of class to phrases, a model with predict and classes, or a function "
            "of embeddings (n, d) that returns scores (n, classes)."
        )
        raise TypeError(msg)
    names = getattr(model, "classes", None) if classes is None else classes
    if names is None:
        msg = "model is a function: name what it scores with classes=[...]."
        raise TypeError(msg)
    name = getattr(model, "__qualname__", type(model).__name__)
    listed = [str(each) for each in names]
    return Scorer(listed, _checked(model, listed), {"model": f"function {name}"})


def _of_prompts(prompts: Mapping[str, Any], encoder: Any, classes: Sequence[str] | None) -> Scorer:
    """Cosine similarity of an embedding to the mean direction of a class's phrases."""
    names = [str(name) for name in (prompts if classes is None else classes)]
    phrases = {str(name): [given] if isinstance(given, str) else list(given) for name, given in prompts.items()}
    _require_known(names, list(phrases))
    for name in names:
        if not phrases[name] or not all(isinstance(text, str) and text.strip() for text in phrases[name]):
            msg = f"Class {name!r} has the phrases {phrases[name]!r}; it needs one or more texts."
            raise ValueError(msg)
    texts = [text for name in names for text in phrases[name]]
    rows = _directions(np.asarray(encoder.embed_text(texts), np.float64))
    ends = np.cumsum([len(phrases[name]) for name in names])
    towards = _directions(np.stack([part.mean(0) for part in np.split(rows, ends[:-1])]))

    def similarity(embeddings: np.ndarray) -> np.ndarray:
        if embeddings.shape[1] != towards.shape[1]:
            msg = (
                f"Images have embeddings of {embeddings.shape[1]} numbers, the prompts of {towards.shape[1]}: these cannot be compared. "
                "Tokens of an image-text model often lie in a space of their own: use mode='crop'."
            )
            raise ValueError(msg)
        return _directions(embeddings.astype(np.float64)) @ towards.T

    return Scorer(names, _checked(similarity, names), {"prompts": {name: phrases[name] for name in names}})


def _of_model(model: Any, classes: Sequence[str] | None) -> Scorer:
    known = [str(name) for name in (model.classes if hasattr(model, "classes") else model.config.classes)]
    names = known if classes is None else [str(name) for name in classes]
    _require_known(names, known)
    columns = [known.index(name) for name in names]
    # One that has trained its encoder takes tiles alone, and embeddings of its own by another name.
    predict = _checked(model.classify if getattr(model, "needs_tiles", False) else model.predict, known)
    facts = {"model": getattr(model, "system", type(model).__name__)}
    return Scorer(names, lambda rows: predict(rows)[:, columns], facts, getattr(model, "spec", None))


def _checked(score: Score, classes: list[str]) -> Score:
    """A function whose answers have one finite score per class for each row."""

    def run(embeddings: np.ndarray) -> np.ndarray:
        scores = np.asarray(score(embeddings), np.float64)
        if scores.ndim == 1 and len(classes) == 1:
            scores = scores[:, None]
        if scores.shape != (len(embeddings), len(classes)):
            msg = f"The model gave scores of shape {scores.shape} for {len(embeddings)} embeddings and the classes {classes}."
            raise ValueError(msg)
        if not np.isfinite(scores).all():
            msg = "The model gave NaN or infinity for an embedding: a score is a finite number."
            raise ValueError(msg)
        return scores

    return run


def _require_known(names: list[str], known: list[str]) -> None:
    if not names:
        msg = "There is no class to score: the mapping is empty."
        raise ValueError(msg)
    for name in names:
        if name not in known:
            msg = f"The model has no class {name!r}; it has {known}."
            raise KeyError(msg)


def _directions(rows: np.ndarray) -> np.ndarray:
    length = np.linalg.norm(rows, axis=1, keepdims=True)
    return rows / np.where(length > 0, length, 1)
