"""Networks of the annotator, and their losses."""

from __future__ import annotations

import math
from abc import abstractmethod
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
import torch
from torch import nn
from torch.nn.functional import cross_entropy, log_softmax, normalize

from sthist.encoders._transform import Transform
from sthist.training.module import TrainingModule

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

    from sthist.systems.annotation.options import AnnotatorTraining

MAX_LOG_SCALE = math.log(100.0)


class Feed(NamedTuple):
    """What a network is trained on, and how."""

    options: AnnotatorTraining
    batches: Callable[[int], Iterable[Any]]  # from the number of an epoch to its batches
    validation: Callable[[], Iterable[Any]] | None  # gives the batches that validate; None for none


class Net(TrainingModule):
    """What both networks share: batches, the optimiser, and the mean loss over the rows that validate.

    ``rates`` are parts and their learning rates.
    """

    def __init__(self, feed: Feed, rates: list[tuple[Any, float]]) -> None:
        super().__init__(feed.options)
        self.feed, self._rates = feed, rates
        self._sums = torch.zeros(2, dtype=torch.float64)

    def batches(self, epoch: int, device: int, n_devices: int) -> Iterable[Any]:
        """The batches; of several devices, each has its share of each."""
        batches = self.feed.batches(epoch + 1)  # rows are drawn for epochs that are counted from 1
        if n_devices == 1:
            return batches
        return (tuple(part[device::n_devices] for part in batch) for batch in batches)

    def validation_batches(self, device: int, n_devices: int) -> Iterable[Any]:
        """The batches that validate, all on each device."""
        return [] if self.feed.validation is None else self.feed.validation()

    def trial_step(self, batch_size: int, px: int | None) -> None:
        """Forward and backward pass on a batch of black tiles of the first class."""
        tiles = torch.zeros(batch_size, px or 1, px or 1, 3, dtype=torch.uint8, device=self.device)
        codes = torch.zeros(batch_size, dtype=torch.long, device=self.device)
        loss: Any = self.training_step((tiles, codes, codes), 0)
        loss.backward()

    @abstractmethod
    def summed_loss(self, *batch: Any) -> tuple[Any, Any]:
        """Sum of the losses of a batch, and of the weights of its rows."""

    def configure_optimizers(self) -> Any:
        """AdamW, with a rate for each part."""
        groups = [
            {
                "params": [p for p in part.parameters() if p.requires_grad] if isinstance(part, nn.Module) else [part],
                "lr": rate,
            }
            for part, rate in self._rates
        ]
        return torch.optim.AdamW(_without_copies(groups), weight_decay=self.options.weight_decay)

    def on_validation_epoch_start(self) -> None:
        """Begin the sums anew."""
        self._sums.zero_()

    def validation_step(self, batch: Any, index: int) -> None:
        """Add the losses of a batch."""
        loss, weight = self.summed_loss(*batch)
        self._sums += torch.stack([loss, weight]).double().cpu()

    def on_validation_epoch_end(self) -> None:
        """Log the mean."""
        self.log("validation_loss", self._sums[0] / self._sums[1])


class ClassNet(Net):
    """A linear layer, with or without an encoder before it.

    ``head``: the layer; ``class_weights``: (k,) weights in the loss; ``encoder``, ``transform``: trained along; None
    for embeddings that are standardised already; ``mean``, ``scale``: what standardises the encoder's embeddings.
    """

    class_weights: Any
    mean: Any
    scale: Any

    def __init__(
        self,
        head: nn.Linear,
        class_weights: np.ndarray,
        feed: Feed,
        *,
        encoder: nn.Module | None = None,
        transform: Any = None,
        mean: np.ndarray | None = None,
        scale: np.ndarray | None = None,
    ) -> None:
        rates = [(head, feed.options.lr)] + ([] if encoder is None else [(encoder, feed.options.encoder_lr)])
        super().__init__(feed, rates)
        self.head, self.encoder, self.transform = head, encoder, transform
        self.register_buffer("class_weights", torch.as_tensor(class_weights, dtype=torch.float32))
        if mean is not None and scale is not None:
            self.register_buffer("mean", torch.as_tensor(mean, dtype=torch.float32))
            self.register_buffer("scale", torch.as_tensor(scale, dtype=torch.float32))

    def forward(self, inputs: Any) -> Any:
        """Logits of embeddings (n, d) or tiles (n, px, px, 3)."""
        if self.encoder is not None:
            inputs = (self.encoder(prepared(inputs, self.transform)) - self.mean) * self.scale
        return self.head(inputs)

    def training_step(self, batch: Any, index: int) -> Any:
        """The weighted loss."""
        inputs, codes, *_ = batch
        loss = cross_entropy(self(inputs), codes, weight=self.class_weights)
        self.terms = {"loss": loss.detach()}
        return loss

    def summed_loss(self, inputs: Any, codes: Any) -> tuple[Any, Any]:
        """The same, as sums."""
        loss = cross_entropy(self(inputs), codes, weight=self.class_weights, reduction="sum")
        return loss, self.class_weights[codes].sum()


class TextNet(Net):
    """An image encoder, and a text encoder or fixed texts, that are brought together.

    ``encoder``, ``transform``: of images; ``text``: module whose ``embed_text`` gives (n, d); None for fixed texts;
    ``vectors``: (m, d) fixed embeddings of the sentences; ``sentences``, ``sentence_class``: all sentences, and their
    classes; ``class_weights``: (k,) weights in the loss;
    ``logit_scale``: factor of the similarities to begin with.
    """

    vectors: Any
    sentence_class: Any
    class_weights: Any

    def __init__(
        self,
        encoder: nn.Module,
        transform: Any,
        text: nn.Module | None,
        vectors: np.ndarray,
        sentences: list[str],
        sentence_class: np.ndarray,
        class_weights: np.ndarray,
        feed: Feed,
        *,
        logit_scale: float,
    ) -> None:
        lr = feed.options.lr
        log_scale = nn.Parameter(torch.tensor(math.log(logit_scale), dtype=torch.float32))
        super().__init__(feed, [(encoder, lr), (log_scale, lr)] + ([] if text is None else [(text, lr)]))
        self.encoder, self.transform, self.log_scale = encoder, transform, log_scale
        self.text: Any = text
        self.sentences = sentences
        self.register_buffer("vectors", torch.as_tensor(vectors, dtype=torch.float32))
        self.register_buffer("sentence_class", torch.as_tensor(sentence_class))
        self.register_buffer("class_weights", torch.as_tensor(class_weights, dtype=torch.float32))
        self._classes: Any = None

    def images(self, tiles: Any) -> Any:
        """Embeddings of tiles, of length 1."""
        return normalize(self.encoder(prepared(tiles, self.transform)).float(), dim=1)

    def texts(self, ids: Any) -> Any:
        """Embeddings of sentences by number, of length 1."""
        if self.text is None:
            return normalize(self.vectors[ids], dim=1)
        return normalize(self.text.embed_text([self.sentences[i] for i in ids.tolist()]).float(), dim=1)

    def classes(self) -> Any:
        """Mean direction of the sentences of each class."""
        ids = torch.arange(len(self.sentences), device=self.sentence_class.device)
        units = torch.cat([self.texts(part) for part in ids.split(256)])
        n_classes = len(self.class_weights)
        means = [units[self.sentence_class == k].mean(dim=0) for k in range(n_classes)]
        return normalize(torch.stack(means), dim=1)

    def logit_scale(self) -> Any:
        """What cosine similarities are multiplied by."""
        return self.log_scale.clamp(max=MAX_LOG_SCALE).exp()

    def training_step(self, batch: Any, index: int) -> Any:
        """The contrastive loss of tiles and their sentences."""
        tiles, codes, ids = batch
        ids = ids.unique()
        logits = self.logit_scale() * self.images(tiles) @ self.texts(ids).T
        loss = prompt_contrastive_loss(logits, codes, self.sentence_class[ids], self.class_weights)
        self.terms = {"loss": loss.detach()}
        return loss

    def on_validation_epoch_start(self) -> None:
        """The texts are the same for all batches."""
        super().on_validation_epoch_start()
        self._classes = self.classes()

    def summed_loss(self, tiles: Any, codes: Any, ids: Any) -> tuple[Any, Any]:
        """The loss of naming the class."""
        logits = self.logit_scale() * self.images(tiles) @ self._classes.T
        loss = cross_entropy(logits, codes, weight=self.class_weights, reduction="sum")
        return loss, self.class_weights[codes].sum()


def prompt_contrastive_loss(logits: Any, image_class: Any, text_class: Any, class_weights: Any) -> Any:
    """CLIP's loss where several images share a text.

    All that belong together are positives, none of them a negative.
    """
    positive = (image_class[:, None] == text_class[None]).to(logits.dtype)
    weights = class_weights[image_class].to(logits.dtype)
    to_texts = -(log_softmax(logits, dim=1) * positive).sum(dim=1) / positive.sum(dim=1)
    shares = positive / positive.sum(dim=0).clamp(min=1)
    to_images = -(log_softmax(logits, dim=0) * shares).sum(dim=0)
    return ((to_texts * weights).sum() / weights.sum() + to_images.mean()) / 2


def prepared(tiles: Any, transform: Any) -> Any:
    """Tiles (n, px, px, 3) of uint8 as an encoder's module takes them."""
    return transform(tiles) if isinstance(transform, Transform) else transform(tiles.permute(0, 3, 1, 2))


def _without_copies(groups: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Each parameter in the first group that has it."""
    seen: set[int] = set()
    for group in groups:
        group["params"] = [p for p in group["params"] if id(p) not in seen and not seen.add(id(p))]  # type: ignore[func-returns-value]
    return [group for group in groups if group["params"]]


def embed_with(module: nn.Module, transform: Any, device: str | None = None) -> Callable[[np.ndarray], np.ndarray]:
    """A function from tiles to embeddings, of a module that is trained no more."""
    module = module.eval() if device is None else module.eval().to(device)
    where = next((parameter.device for parameter in module.parameters()), torch.device("cpu"))

    def embed(tiles: np.ndarray) -> np.ndarray:
        with torch.inference_mode():
            images = prepared(torch.from_numpy(np.array(tiles)).to(where), transform)
            return module(images).float().cpu().numpy()

    return embed


def state_of(module: nn.Module) -> dict[str, np.ndarray]:
    """Weights of a module as arrays."""
    return {
        name: (value.float() if value.is_floating_point() else value).detach().cpu().numpy().copy()
        for name, value in module.state_dict().items()
    }


def state_from(module: nn.Module, state: dict[str, np.ndarray]) -> None:
    """Put weights into a module."""
    try:
        module.load_state_dict({name: torch.from_numpy(np.array(value)) for name, value in state.items()})
    except RuntimeError as error:
        raise ValueError(
            f"The encoder has another architecture than the one that was trained: {str(error)[:300]}"
        ) from None
