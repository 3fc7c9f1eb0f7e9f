"""The ways to train an annotator, each from rows that train and rows that say when to stop."""

from __future__ import annotations

from copy import deepcopy
from typing import TYPE_CHECKING, Any

import numpy as np

from sthist._settings import logger
from sthist.systems.annotation.annotator import ENCODER
from sthist.systems.annotation.linear import Fitted, LinearTask, is_constant
from sthist.systems.annotation.prompts import checked_prompts, checked_templates, sentences, text_vectors
from sthist.tiles._spec import same_scale
from sthist.training.embeddings import key_of, table_spec
from sthist.training.model import weight_hash
from sthist.training.rows import Labelled, features_of, pixels_of
from sthist.training.splits import validation_part

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from sthist.systems.annotation.networks import Feed, Net
    from sthist.systems.annotation.options import AnnotatorTraining
    from sthist.training.batches import Tiles
    from sthist.training.splits import Grouping

CLIP_SCALE = 1 / 0.07
"""Where an encoder has no logit scale of its own: that at which CLIP began."""


class Task:
    """What trains on any of its rows, in epochs; ``described`` says with what, in plain values."""

    described: dict[str, Any] = {}
    options: AnnotatorTraining

    def fit_groups(self, codes: np.ndarray, rows: np.ndarray, grouping: Grouping, part: float) -> Fitted:
        """Train on some rows, of which some groups say when to stop."""
        kept, validation = validation_part(grouping, codes, rows, part, seed=self.options.seed)
        if not len(validation) and part:
            logger.info("No group can be spared to say when to stop: training runs for all epochs.")
        fitted = self.fit(codes, kept, validation)
        fitted.notes["n_validation"] = len(validation)
        return fitted

    def fit(self, codes: np.ndarray, rows: np.ndarray, validation: np.ndarray) -> Fitted:
        """Train on some rows; others say when to stop."""
        raise NotImplementedError


class FinetuneTask(Task):
    """A linear layer on an encoder's embeddings, and then both together.

    ``tiles``: the tiles; ``encoder``: has ``module`` and ``transform``; stays as it is; ``n_classes``: number of
    classes; ``options``, ``device``: how to train, and where; ``progress``: show a progress bar.
    """

    def __init__(
        self,
        tiles: Tiles,
        encoder: Any,
        n_classes: int,
        options: AnnotatorTraining,
        device: str,
        *,
        progress: bool | None,
    ) -> None:
        self.tiles, self.encoder, self.n_classes = tiles, encoder, n_classes
        self.options, self.device, self.progress = options, device, progress
        before = embedder(deepcopy(encoder.module), encoder.transform, tiles, options, device)
        # A layer that is random would spoil the encoder before it has learned: it is trained first, alone.
        self.first = LinearTask(before(np.arange(len(tiles))), n_classes, options)

    def fit(self, codes: np.ndarray, rows: np.ndarray, validation: np.ndarray) -> Fitted:
        """Train on some rows."""
        import torch

        from sthist.systems.annotation.networks import ClassNet, state_of

        folds = [(rows, validation)] if len(validation) else []
        start, options = self.first.fit(codes, rows, folds).weights, self.options

        def batch(index: np.ndarray, tiles: np.ndarray, _epoch: int) -> tuple[Any, ...]:
            return torch.from_numpy(tiles), torch.from_numpy(codes[index].astype(np.int64))

        def net() -> ClassNet:
            head = torch.nn.Linear(*start["weight"].shape[::-1])
            head.load_state_dict({name: torch.from_numpy(start[name]) for name in ("weight", "bias")})
            return ClassNet(
                head,
                _class_weights(codes[rows], self.n_classes, options),
                _feed(self.tiles, rows, validation, batch, options),
                encoder=_in_training(deepcopy(self.encoder.module)),
                transform=self.encoder.transform,
                mean=start["mean"],
                scale=start["scale"],
            )

        trained, notes, history = _train(net, options, self.device, progress=self.progress)
        module: Any = trained.encoder
        weights = _head(trained) | {name: start[name] for name in ("mean", "scale")}
        weights |= {ENCODER + name: value for name, value in state_of(module).items()}
        embeddings = embedder(module, self.encoder.transform, self.tiles, options, self.device)
        return Fitted(weights, embeddings, notes, history)


class TextTask(Task):
    """An image-text encoder, trained on pairs of tile and sentence.

    ``tiles``, ``encoder``, ``options``, ``device``, ``progress``: as of :class:`FinetuneTask`; the encoder embeds
    texts, too. If it has a module ``text``, that is trained along; ``prompts``, ``templates``: phrases by class, and
    the sentences around them.
    """

    def __init__(
        self,
        tiles: Tiles,
        encoder: Any,
        prompts: dict[str, list[str]],
        templates: tuple[str, ...],
        options: AnnotatorTraining,
        device: str,
        *,
        progress: bool | None,
    ) -> None:
        self.tiles, self.encoder = tiles, encoder
        self.options, self.device, self.progress = options, device, progress
        self.described = {"prompts": prompts, "templates": list(templates)}
        self.sentences, self.sentence_class = sentences(prompts, templates)
        self.n_classes = len(prompts)
        self.vectors = text_vectors(encoder, self.sentences)

    def fit(self, codes: np.ndarray, rows: np.ndarray, validation: np.ndarray) -> Fitted:
        """Train on some rows."""
        import torch

        from sthist.systems.annotation.networks import TextNet, state_of

        options, encoder = self.options, self.encoder
        of_class = [np.flatnonzero(self.sentence_class == k) for k in range(self.n_classes)]

        def sentence(row: int, epoch: int) -> int:
            return int(np.random.default_rng([options.seed, epoch, row, 1]).choice(of_class[codes[row]]))

        def batch(index: np.ndarray, tiles: np.ndarray, epoch: int) -> tuple[Any, ...]:
            drawn = torch.tensor([sentence(int(row), epoch) for row in index])
            return torch.from_numpy(tiles), torch.from_numpy(codes[index].astype(np.int64)), drawn

        def net() -> TextNet:
            # Copied together: towers that share parameters go on sharing them.
            module, text = deepcopy((encoder.module, getattr(encoder, "text", None)))
            return TextNet(
                _in_training(module),
                encoder.transform,
                None if text is None else _in_training(text),
                self.vectors,
                self.sentences,
                self.sentence_class,
                _class_weights(codes[rows], self.n_classes, options),
                _feed(self.tiles, rows, validation, batch, options),
                logit_scale=float(getattr(encoder, "logit_scale", None) or CLIP_SCALE),
            )

        trained, notes, history = _train(net, options, self.device, progress=self.progress)
        with torch.inference_mode():
            texts = trained.classes().numpy()
            scale = float(trained.logit_scale())
        weights = {"texts": texts, "logit_scale": np.float32(scale)}
        weights |= {ENCODER + name: value for name, value in state_of(trained.encoder).items()}
        embeddings = embedder(trained.encoder, encoder.transform, self.tiles, options, self.device)
        return Fitted(weights, embeddings, notes, history)


def _train(
    net: Callable[[], Net],
    options: AnnotatorTraining,
    device: str,
    *,
    progress: bool | None,
) -> tuple[Any, dict[str, Any], list[dict[str, float]]]:
    """A trained network; and the epoch of its weights, its validation loss and the history."""
    from sthist.training.trainer import train

    module, history = train(net, options, device=device, progress=progress)
    epoch, loss = module.best or (len(history), None)
    return module, {"epochs": epoch, "validation_loss": loss}, history


def embedder(
    module: Any, transform: Any, tiles: Tiles, options: AnnotatorTraining, device: str
) -> Callable[[np.ndarray], np.ndarray]:
    """A function from numbers of rows to their embeddings, in the order of the numbers."""
    from sthist.systems.annotation.networks import embed_with

    def embeddings(rows: np.ndarray) -> np.ndarray:
        embed = embed_with(module, transform, device)
        index, values = [], []
        for batch, images in tiles.in_order(rows, options.batch_size):
            index.append(batch)
            values.append(embed(images))
        place = {int(row): i for i, row in enumerate(np.concatenate(index))}
        return np.concatenate(values)[[place[int(row)] for row in rows]]

    return embeddings


def _feed(
    tiles: Tiles, rows: np.ndarray, validation: np.ndarray, batch: Callable[..., Any], options: AnnotatorTraining
) -> Feed:
    """Batches of an epoch, and those that validate, if there are any."""
    from sthist.systems.annotation.networks import Feed

    size = options.batch_size

    def shuffled(epoch: int) -> Iterator[Any]:
        for index, images in tiles.shuffled(rows, size, options.seed, epoch):
            yield batch(index, images, epoch)

    def in_order() -> Iterator[Any]:
        # The sentences that are drawn for these are not used: always those of one epoch.
        return (batch(index, images, 0) for index, images in tiles.in_order(validation, size))

    return Feed(options, shuffled, in_order if len(validation) else None)


def _in_training(module: Any) -> Any:
    """A module that learns; batch normalisation keeps its statistics, which batches of a few tiles would spoil."""
    module.train().requires_grad_(True)
    for part in module.modules():
        if type(part).__name__.startswith(("BatchNorm", "SyncBatchNorm")):
            part.eval()
    return module


def _head(net: Any) -> dict[str, np.ndarray]:
    return {name: getattr(net.head, name).detach().numpy().copy() for name in ("weight", "bias")}


def _class_weights(codes: np.ndarray, n_classes: int, options: AnnotatorTraining) -> np.ndarray:
    """Weight of each class in the loss; balanced ones sum to the number of rows."""
    if options.class_weights is None:
        return np.ones(n_classes)
    counts = np.bincount(codes, minlength=n_classes)
    return np.where(counts > 0, len(codes) / (n_classes * np.maximum(counts, 1)), 0.0)


def linear_task(
    rows: Labelled, encoder: Any, embedding: str | None, options: AnnotatorTraining
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
    return LinearTask(features, len(rows.classes), options), facts


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
