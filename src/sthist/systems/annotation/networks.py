"""Networks of the annotator, and their losses."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any

import lightning
import torch
from torch import nn
from torch.nn.functional import cross_entropy, log_softmax, normalize

from sthist.encoders._transform import Transform

if TYPE_CHECKING:
    import numpy as np

MAX_LOG_SCALE = math.log(100.0)


class Net(lightning.LightningModule):
    """What both networks share: the optimiser, and the mean loss over the rows that are watched."""

    def __init__(self, rates: list[tuple[Any, float]], weight_decay: float) -> None:
        super().__init__()
        self._rates, self._weight_decay = rates, weight_decay
        self.watched_loss = math.nan
        self._sums = torch.zeros(2, dtype=torch.float64)

    def watch(self, *batch: Any) -> tuple[Any, Any]:
        """Sum of the losses of a batch, and of the weights of its rows."""
        raise NotImplementedError

    def configure_optimizers(self) -> Any:
        """AdamW, with a rate for each part."""
        groups = [
            {
                "params": [p for p in part.parameters() if p.requires_grad] if isinstance(part, nn.Module) else [part],
                "lr": rate,
            }
            for part, rate in self._rates
        ]
        return torch.optim.AdamW(_without_copies(groups), weight_decay=self._weight_decay)

    def on_validation_epoch_start(self) -> None:
        """Nothing has been seen yet."""
        self._sums.zero_()

    def validation_step(self, batch: Any, index: int) -> None:
        """Add the losses of a batch."""
        loss, weight = self.watch(*batch)
        self._sums += torch.stack([loss, weight]).double().cpu()

    def on_validation_epoch_end(self) -> None:
        """The mean is known."""
        self.watched_loss = float(self._sums[0] / self._sums[1])


class ClassNet(Net):
    """A linear layer, with or without an encoder before it.

    Parameters
    ----------
    head
        The layer.
    class_weights
        (k,) weights in the loss.
    encoder, transform
        Trained along; None for embeddings that are standardised already.
    mean, scale
        What standardises the encoder's embeddings.
    lr, encoder_lr, weight_decay
        Of the optimiser.
    """

    class_weights: Any
    mean: Any
    scale: Any

    def __init__(
        self,
        head: nn.Linear,
        class_weights: np.ndarray,
        *,
        lr: float,
        weight_decay: float,
        encoder: nn.Module | None = None,
        transform: Any = None,
        mean: np.ndarray | None = None,
        scale: np.ndarray | None = None,
        encoder_lr: float = 0.0,
    ) -> None:
        super().__init__([(head, lr)] + ([] if encoder is None else [(encoder, encoder_lr)]), weight_decay)
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
        inputs, codes = batch
        return cross_entropy(self(inputs), codes, weight=self.class_weights)

    def watch(self, inputs: Any, codes: Any) -> tuple[Any, Any]:
        """The same, as sums."""
        loss = cross_entropy(self(inputs), codes, weight=self.class_weights, reduction="sum")
        return loss, self.class_weights[codes].sum()


class TextNet(Net):
    """An image encoder, and a text encoder or fixed texts, that are brought together.

    Parameters
    ----------
    encoder, transform
        Of images.
    text
        Module whose ``embed_text`` gives (n, d); None for fixed texts.
    vectors
        (m, d) fixed embeddings of the sentences.
    sentences, sentence_class
        All sentences, and their classes.
    class_weights
        (k,) weights in the loss.
    logit_scale
        To begin with.
    lr, weight_decay
        Of the optimiser.
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
        *,
        logit_scale: float,
        lr: float,
        weight_decay: float,
    ) -> None:
        log_scale = nn.Parameter(torch.tensor(math.log(logit_scale), dtype=torch.float32))
        super().__init__([(encoder, lr), (log_scale, lr)] + ([] if text is None else [(text, lr)]), weight_decay)
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
        return prompt_contrastive_loss(logits, codes, self.sentence_class[ids], self.class_weights)

    def on_validation_epoch_start(self) -> None:
        """The texts are the same for all batches."""
        super().on_validation_epoch_start()
        self._classes = self.classes()

    def watch(self, tiles: Any, codes: Any, ids: Any) -> tuple[Any, Any]:
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
