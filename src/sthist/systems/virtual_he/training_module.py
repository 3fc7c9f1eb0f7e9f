"""One step of training a translation, as Lightning takes it."""

from __future__ import annotations

import math
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import lightning
import numpy as np
import torch

from sthist.systems.virtual_he.generator import as_input
from sthist.systems.virtual_he.losses import Judge, Reconstruction, image_text
from sthist.systems.virtual_he.training_set.pairs import Batches, order_of

if TYPE_CHECKING:
    from collections.abc import Iterator

    from torch import nn

    from sthist.systems.virtual_he.config import TranslationTraining
    from sthist.systems.virtual_he.training_set.pairs import Pairs
    from sthist.systems.virtual_he.translator import Translator

NOISE, OURS = 2, "sthist"


class Translation(lightning.LightningModule):
    """A generator and its judge, trained in turn on one forward pass of the generator per batch.

    Order, augmentation and noise are functions of seed, epoch and place; the random states that all else draws from are
    set anew when an epoch begins. A training that is resumed at the end of an epoch goes on as if it had not been
    stopped.

    Parameters
    ----------
    model
        Whose generator is trained.
    pairs
        To train on.
    training
        How.
    texts
        The distinct prompts, also of the pairs that it is watched on.
    """

    def __init__(self, model: Translator, pairs: Pairs, training: TranslationTraining, texts: list[str]) -> None:
        super().__init__()
        self.automatic_optimization = False
        self.strict_loading = False
        self.training_config, self.pairs = training, pairs
        self.input_low = model.config.input_low
        self.translate = model.translate
        self.generator: Any = model.trainable()
        self.texts = texts
        self.vectors: Any
        self.register_buffer("vectors", model.prompt_vectors(texts), persistent=False)
        self.reconstruction, self.judge = losses_of(training, texts, pairs.px)
        self.frozen = {name for name, each in self.generator.named_parameters() if not each.requires_grad}
        self.step = 0
        self.averages = {name: each.detach().clone() for name, each in self._trained()} if training.ema else {}

    def train_dataloader(self) -> Batches:
        """The batches of the epoch."""
        training = self.training_config
        batches = (training.batch_size, training.steps_per_epoch)
        order = order_of(len(self.pairs), *batches, training.seed, self.current_epoch)
        return Batches(self.pairs, order, (training.seed, self.current_epoch))

    def configure_optimizers(self) -> list[Any]:
        """One of the generator and one of the judge."""
        training = self.training_config
        options: dict[str, Any] = {"betas": (training.beta1, 0.999), "weight_decay": training.weight_decay}
        optimizers = [torch.optim.AdamW([each for _, each in self._trained()], lr=training.lr, **options)]
        if self.judge is not None:
            optimizers.append(torch.optim.AdamW(self.judge.parameters(), lr=training.lr_discriminator, **options))
        return optimizers

    def on_train_epoch_start(self) -> None:
        """Set random states that dropout and augmentation draw from."""
        state = np.random.SeedSequence([self.training_config.seed, self.current_epoch]).generate_state(1)
        torch.manual_seed(int(state[0]))
        self.generator.train()

    def training_step(self, batch: Any, index: int) -> dict[str, Any]:
        """Train on a batch; what was seen and made is given back for the watchers."""
        training, weights = self.training_config, self.training_config.weights
        rows, seen, histology = batch
        inputs, real, codes = self.tensors(seen, histology, [self.pairs.prompts[row] for row in rows])
        judged = self.judge is not None and self.step >= weights.adversarial_from * training.steps
        loss, parts, fake = self.loss_of(inputs, real, codes, self._noise(inputs, index), judged=judged)
        self._require_finite(loss, parts)
        optimizers = self.optimizers()
        optimizers = optimizers if isinstance(optimizers, list) else [optimizers]
        step = (index + 1) % training.accumulate == 0
        self._descend(loss, optimizers[0], training.lr, step=step)
        if judged:
            parts["discriminator"] = self.judge.discriminator_loss(inputs, fake, real)  # type: ignore[union-attr]
            self._require_finite(parts["discriminator"], parts)
            self._descend(parts["discriminator"], optimizers[1], training.lr_discriminator, step=step)
        if self.averages and step:
            self._average()
        self.step += 1
        return {
            "parts": {name: part.detach() for name, part in parts.items()},
            "fake": fake.detach(),
            "real": real,
        }

    def loss_of(
        self, inputs: torch.Tensor, real: torch.Tensor, codes: torch.Tensor, noise: Any = None, *, judged: bool
    ) -> tuple[Any, dict[str, torch.Tensor], torch.Tensor]:
        """What the generator loses, its terms, and what it made, by one forward pass."""
        weights = self.training_config.weights
        fake = self.translate(self.generator, inputs, self.vectors_of(codes), noise)
        parts = self.reconstruction(fake, real, codes)
        if judged:
            parts["adversarial"] = self.judge.generator_loss(inputs, fake)  # type: ignore[union-attr]
        return sum(getattr(weights, name) * part for name, part in parts.items()), parts, fake

    def tensors(self, inputs: np.ndarray, targets: np.ndarray, prompts: list[str]) -> tuple[torch.Tensor, ...]:
        """Input, real image, and number of its prompt, on the device."""
        seen, real = (torch.from_numpy(np.ascontiguousarray(tiles)).to(self.device) for tiles in (inputs, targets))
        codes = torch.tensor([self.texts.index(prompt) for prompt in prompts], device=self.device)
        return as_input(seen, self.input_low), as_input(real, -1.0), codes

    @contextmanager
    def averaged(self) -> Iterator[nn.Module]:
        """The generator for looking at, with the running mean of its weights if there is one."""
        last = {name: each.detach().clone() for name, each in self._trained()} if self.averages else {}
        training = self.generator.training
        try:
            self._put(self.averages)
            yield self.generator.eval()
        finally:
            self._put(last)
            self.generator.train(training)

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Keep what changes: the backbone of an adapted generator is in its own file."""
        left_out = {f"generator.{name}" for name in self.frozen}
        state = checkpoint["state_dict"]
        checkpoint["state_dict"] = {name: value for name, value in state.items() if name not in left_out}
        checkpoint[OURS] = {"step": self.step, "averages": self.averages}

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Go on from there."""
        self.step = int(checkpoint[OURS]["step"])
        self._put(checkpoint[OURS]["averages"], into=self.averages)

    def vectors_of(self, codes: torch.Tensor) -> torch.Tensor | None:
        """Embeddings of prompts by number; None where the generator takes none."""
        return None if self.vectors is None else self.vectors[codes]

    def _noise(self, inputs: torch.Tensor, index: int) -> torch.Tensor | None:
        shape_of = getattr(self.generator, "latent_shape", None)
        if not self.training_config.sample_posterior or shape_of is None:
            return None
        random = np.random.default_rng([self.training_config.seed, NOISE, self.current_epoch, index])
        return torch.from_numpy(random.standard_normal(shape_of(inputs), np.float32)).to(self.device)

    def _descend(self, loss: Any, optimizer: Any, lr: float, *, step: bool) -> None:
        """Add up gradients and, at the end of the accumulation, take a step."""
        self.manual_backward(loss / self.training_config.accumulate)
        if not step:
            return
        (group,) = optimizer.param_groups
        group["lr"] = lr * self.training_config.lr_factor(self.step)
        norm = torch.nn.utils.clip_grad_norm_(group["params"], self.training_config.clip_norm)
        if not torch.isfinite(norm):
            raise NotFinite(self.step, {"gradient": float(norm)})
        optimizer.step()
        optimizer.zero_grad()

    def _require_finite(self, loss: Any, parts: dict[str, torch.Tensor]) -> None:
        if not torch.isfinite(loss):
            raise NotFinite(self.step, {name: float(part) for name, part in parts.items()})

    def _trained(self) -> list[tuple[str, Any]]:
        return [(name, each) for name, each in self.generator.named_parameters() if each.requires_grad]

    @torch.no_grad()
    def _average(self) -> None:
        # A short memory at first, so that the mean is not of weights that had learned nothing.
        decay = min(self.training_config.ema, (1 + self.step) / (10 + self.step))
        for name, each in self._trained():
            self.averages[name] = self.averages[name].to(each.device).lerp_(each.detach(), 1 - decay)

    @torch.no_grad()
    def _put(self, values: dict[str, torch.Tensor], into: dict[str, Any] | None = None) -> None:
        own = dict(self._trained()) if into is None else into
        for name, value in values.items():
            own[name].copy_(value)


def losses_of(training: TranslationTraining, texts: list[str], px: int) -> tuple[Reconstruction, Judge | None]:
    """The terms of a training's loss; one image-text network serves all that ask for it."""
    weights = training.weights
    judged_by_clip = weights.adversarial and training.discriminator == "clip"
    encoder = image_text(training) if weights.text or judged_by_clip else None
    judge = Judge(training, px, encoder) if weights.adversarial else None
    return Reconstruction(training, texts, px, encoder), judge


class NotFinite(FloatingPointError):
    """The loss or its gradient is no number.

    Parameters
    ----------
    step
        At which it was seen, before the weights were changed.
    values
        By term.
    """

    def __init__(self, step: int, values: dict[str, float]) -> None:
        shown = ", ".join(f"{name} {value:.4g}" for name, value in values.items())
        bad = [name for name, value in values.items() if not math.isfinite(value)] or ["their sum"]
        super().__init__(f"At step {step} the loss is no finite number, by {' and '.join(bad)} ({shown}).")
