"""The three ways to train an annotator, each from rows that train and rows that say when to stop."""

from __future__ import annotations

from copy import deepcopy
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from sthist.systems.annotation.annotator import ENCODER
from sthist.systems.annotation.prompts import sentences, text_vectors

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from sthist.training.batches import Tiles

CLIP_SCALE = 1 / 0.07
"""Where an encoder has no logit scale of its own: that at which CLIP began."""


@dataclass(frozen=True)
class Options:
    """How to train; see :func:`sthist.tl.train_annotator`."""

    epochs: int
    lr: float
    encoder_lr: float
    weight_decay: float
    batch_size: int
    patience: int
    balanced: bool
    device: str


DEFAULTS: dict[str, dict[str, Any]] = {
    "linear": {"epochs": 200, "lr": 1e-2, "encoder_lr": 0.0, "weight_decay": 1e-2, "batch_size": 1024},
    "finetune": {"epochs": 20, "lr": 1e-3, "encoder_lr": 1e-5, "weight_decay": 1e-2, "batch_size": 32},
    "text": {"epochs": 20, "lr": 1e-5, "encoder_lr": 1e-5, "weight_decay": 1e-2, "batch_size": 64},
}
"""Of each mode."""


@dataclass(frozen=True, eq=False)
class Fitted:
    """What training gave."""

    weights: dict[str, np.ndarray]  # of an annotator
    rows: Callable[[np.ndarray], np.ndarray]  # from numbers of rows to their embeddings
    notes: dict[str, Any]  # what there is to say; plain values


class Task:
    """What can be trained on any of its rows; ``described`` says with what, in plain values."""

    described: dict[str, Any] = {}


class LinearTask(Task):
    """A linear layer on standardised embeddings.

    Parameters
    ----------
    features
        (n, d) float32.
    n_classes
        How many.
    options
        How to train.
    """

    def __init__(self, features: np.ndarray, n_classes: int, options: Options) -> None:
        self.features, self.n_classes, self.options = features, n_classes, options

    def fit(self, codes: np.ndarray, rows: np.ndarray, watched: np.ndarray, seed: int) -> Fitted:
        """Train on some rows."""
        import torch

        from sthist.systems.annotation.annotator_training import Epochs, train
        from sthist.systems.annotation.networks import ClassNet

        mean, scale = _standards(self.features[rows])
        inputs = torch.from_numpy((self.features - mean) * scale)
        targets = torch.from_numpy(codes.astype(np.int64))
        options = self.options

        def net() -> ClassNet:
            head = torch.nn.Linear(inputs.shape[1], self.n_classes)
            torch.nn.init.zeros_(head.weight)
            torch.nn.init.zeros_(head.bias)
            weights = _class_weights(codes[rows], self.n_classes, balanced=options.balanced)
            return ClassNet(head, weights, lr=options.lr, weight_decay=options.weight_decay)

        def shuffled(epoch: int) -> Iterator[Any]:
            order = rows[np.random.default_rng([seed, epoch]).permutation(len(rows))]
            return ((inputs[part], targets[part]) for part in _parts(order, options.batch_size))

        made, notes = train(
            net,
            Epochs(shuffled),
            Epochs(lambda _: iter([(inputs[watched], targets[watched])])) if len(watched) else None,
            epochs=options.epochs,
            patience=options.patience,
            device=options.device,
            seed=seed,
            threads=1,
        )
        return Fitted(_head(made) | {"mean": mean, "scale": scale}, lambda wanted: self.features[wanted], notes)


class FinetuneTask(Task):
    """A linear layer on an encoder's embeddings, and then both together.

    Parameters
    ----------
    tiles
        The tiles.
    encoder
        Has ``module`` and ``transform``; stays as it is.
    n_classes, options
        As of :class:`LinearTask`.
    """

    def __init__(self, tiles: Tiles, encoder: Any, n_classes: int, options: Options) -> None:
        self.tiles, self.encoder, self.n_classes, self.options = tiles, encoder, n_classes, options
        before = embedder(deepcopy(encoder.module), encoder.transform, tiles, options)
        # A layer that is random would spoil the encoder before it has learned: it is trained first, alone.
        linear = Options(**DEFAULTS["linear"], patience=10, balanced=options.balanced, device="cpu")
        self.first = LinearTask(before(np.arange(len(tiles))), n_classes, linear)

    def fit(self, codes: np.ndarray, rows: np.ndarray, watched: np.ndarray, seed: int) -> Fitted:
        """Train on some rows."""
        import torch

        from sthist.systems.annotation.annotator_training import state_of, train
        from sthist.systems.annotation.networks import ClassNet

        start, options = self.first.fit(codes, rows, watched, seed).weights, self.options

        def net() -> ClassNet:
            head = torch.nn.Linear(*start["weight"].shape[::-1])
            head.load_state_dict({name: torch.from_numpy(start[name]) for name in ("weight", "bias")})
            return ClassNet(
                head,
                _class_weights(codes[rows], self.n_classes, balanced=options.balanced),
                encoder=_in_training(deepcopy(self.encoder.module)),
                transform=self.encoder.transform,
                mean=start["mean"],
                scale=start["scale"],
                lr=options.lr,
                encoder_lr=options.encoder_lr,
                weight_decay=options.weight_decay,
            )

        def batch(index: np.ndarray, tiles: np.ndarray, _epoch: int) -> tuple[Any, ...]:
            return torch.from_numpy(tiles), torch.from_numpy(codes[index].astype(np.int64))

        made, notes = train(net, *_epochs(self.tiles, rows, watched, batch, options, seed), **_how(options, seed))
        module: Any = made.encoder
        weights = _head(made) | {name: start[name] for name in ("mean", "scale")}
        weights |= {ENCODER + name: value for name, value in state_of(module).items()}
        return Fitted(weights, embedder(module, self.encoder.transform, self.tiles, options), notes)


class TextTask(Task):
    """An image-text encoder, trained on pairs of tile and sentence.

    Parameters
    ----------
    tiles, encoder, options
        As of :class:`FinetuneTask`; the encoder embeds texts, too. If it has a module ``text``, that is trained along.
    prompts, templates
        Phrases by class, and the sentences around them.
    """

    def __init__(
        self, tiles: Tiles, encoder: Any, prompts: dict[str, list[str]], templates: tuple[str, ...], options: Options
    ) -> None:
        self.tiles, self.encoder, self.options = tiles, encoder, options
        self.described = {"prompts": prompts, "templates": list(templates)}
        self.sentences, self.sentence_class = sentences(prompts, templates)
        self.n_classes = len(prompts)
        self.vectors = text_vectors(encoder, self.sentences)

    def fit(self, codes: np.ndarray, rows: np.ndarray, watched: np.ndarray, seed: int) -> Fitted:
        """Train on some rows."""
        import torch

        from sthist.systems.annotation.annotator_training import state_of, train
        from sthist.systems.annotation.networks import TextNet

        options, encoder = self.options, self.encoder
        of_class = [np.flatnonzero(self.sentence_class == k) for k in range(self.n_classes)]

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
                _class_weights(codes[rows], self.n_classes, balanced=options.balanced),
                logit_scale=float(getattr(encoder, "logit_scale", None) or CLIP_SCALE),
                lr=options.lr,
                weight_decay=options.weight_decay,
            )

        def batch(index: np.ndarray, tiles: np.ndarray, epoch: int) -> tuple[Any, ...]:
            drawn = [
                int(np.random.default_rng([seed, epoch, int(row), 1]).choice(of_class[codes[row]])) for row in index
            ]
            return torch.from_numpy(tiles), torch.from_numpy(codes[index].astype(np.int64)), torch.tensor(drawn)

        made, notes = train(net, *_epochs(self.tiles, rows, watched, batch, options, seed), **_how(options, seed))
        found: Any = made
        with torch.inference_mode():
            texts = found.classes().numpy()
            scale = float(found.logit_scale())
        weights = {"texts": texts, "logit_scale": np.float32(scale)}
        weights |= {ENCODER + name: value for name, value in state_of(found.encoder).items()}
        return Fitted(weights, embedder(found.encoder, encoder.transform, self.tiles, options), notes)


def embedder(module: Any, transform: Any, tiles: Tiles, options: Options) -> Callable[[np.ndarray], np.ndarray]:
    """A function from numbers of rows to their embeddings, in the order of the numbers."""
    from sthist.systems.annotation.annotator_training import embed_with

    def rows(wanted: np.ndarray) -> np.ndarray:
        embed = embed_with(module, transform, options.device)
        index, found = [], []
        for batch, images in tiles.in_order(wanted, options.batch_size):
            index.append(batch)
            found.append(embed(images))
        place = {int(row): i for i, row in enumerate(np.concatenate(index))}
        return np.concatenate(found)[[place[int(row)] for row in wanted]]

    return rows


def _epochs(
    tiles: Tiles, rows: np.ndarray, watched: np.ndarray, batch: Callable[..., Any], options: Options, seed: int
) -> tuple[Any, Any]:
    """Batches to train on, and to watch, if there are any."""
    from sthist.systems.annotation.annotator_training import Epochs

    size = options.batch_size

    def shuffled(epoch: int) -> Iterator[Any]:
        for index, images in tiles.shuffled(rows, size, seed, epoch):
            yield batch(index, images, epoch)

    def in_order(_epoch: int) -> Iterator[Any]:
        # The sentences that are drawn for these are not used: always those of one epoch.
        return (batch(index, images, 0) for index, images in tiles.in_order(watched, size))

    return Epochs(shuffled), Epochs(in_order) if len(watched) else None


def _in_training(module: Any) -> Any:
    """A module that learns; batch normalisation keeps its statistics, which batches of a few tiles would spoil."""
    module.train().requires_grad_(True)
    for part in module.modules():
        if type(part).__name__.startswith(("BatchNorm", "SyncBatchNorm")):
            part.eval()
    return module


def _how(options: Options, seed: int) -> dict[str, Any]:
    return {"epochs": options.epochs, "patience": options.patience, "device": options.device, "seed": seed}


def _head(net: Any) -> dict[str, np.ndarray]:
    return {name: getattr(net.head, name).detach().numpy().copy() for name in ("weight", "bias")}


def _standards(features: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Mean of each feature, and one over its standard deviation: 0 for constants, which then do not count."""
    mean = features.mean(axis=0, dtype=np.float64)
    deviation = features.std(axis=0, dtype=np.float64)
    constant = is_constant(features)
    return mean.astype(np.float32), np.where(constant, 0, 1 / np.where(constant, 1, deviation)).astype(np.float32)


def is_constant(features: np.ndarray) -> np.ndarray:
    """Which features have one value, but for rounding."""
    spread = features.max(axis=0) - features.min(axis=0)
    return spread <= 1e-6 * np.maximum(np.abs(features).max(axis=0), 1e-30)


def _class_weights(codes: np.ndarray, n_classes: int, *, balanced: bool) -> np.ndarray:
    """Weight of each class in the loss; balanced ones sum to the number of rows."""
    if not balanced:
        return np.ones(n_classes)
    counts = np.bincount(codes, minlength=n_classes)
    return np.where(counts > 0, len(codes) / (n_classes * np.maximum(counts, 1)), 0.0)


def _parts(order: np.ndarray, size: int) -> Iterator[np.ndarray]:
    return (order[start : start + size] for start in range(0, len(order), size))
