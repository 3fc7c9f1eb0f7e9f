"""One step of training a translation, as Lightning takes it."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from sthist._settings import logger
from sthist.systems.virtual_he.training_loop.losses import AdversarialLoss, Reconstruction, image_text
from sthist.systems.virtual_he.training_loop.validation import nothing_learned
from sthist.systems.virtual_he.training_set.pairs import Batches, order_of
from sthist.training.batches import as_input
from sthist.training.callbacks import NotFinite
from sthist.training.module import TrainingModule

if TYPE_CHECKING:
    from torch import nn

    from sthist.systems.virtual_he.config import TranslationTraining
    from sthist.systems.virtual_he.generator import GeneratorModel
    from sthist.systems.virtual_he.training_set.pairs import Pairs

NOISE = 2


class TranslationModule(TrainingModule):
    """A generator and its discriminator, trained in turn on one forward pass of the generator per batch.

    ``model``: whose generator is trained; ``pairs``: to train on; ``options``: how; ``prompts``: the distinct prompts,
    also of the pairs that validate.
    """

    options: TranslationTraining

    def __init__(self, model: GeneratorModel, pairs: Pairs, options: TranslationTraining, prompts: list[str]) -> None:
        super().__init__(options)
        self.automatic_optimization = False
        self.pairs, self.px = pairs, pairs.px
        self.input_low = model.config.input_low
        self.translate = model.translate
        generator: Any = model.trainable()
        if hasattr(generator, "checkpoint_gradients"):
            generator.checkpoint_gradients(options.checkpoint_gradients)  # also off again
        self.generator = generator
        self.prompts = prompts
        self.vectors: Any
        self.register_buffer("vectors", model.prompt_vectors(prompts), persistent=False)
        self.reconstruction, self.judge = losses_of(options, prompts, pairs.px, model.config.in_channels)

    def kept(self) -> nn.Module:
        """The generator."""
        return self.generator

    def batches(self, epoch: int, device: int, n_devices: int) -> Batches:
        """Batches of pairs, read ahead."""
        options = self.options
        order = order_of(len(self.pairs), options.batch_size, options.steps_per_epoch, options.seed, epoch)
        return Batches(self.pairs, order[:, device::n_devices], (options.seed, epoch))

    def configure_optimizers(self) -> list[Any]:
        """One of the generator and one of the discriminator."""
        options = self.options
        settings: dict[str, Any] = {"betas": (options.beta1, 0.999), "weight_decay": options.weight_decay}
        trained = [each for each in self.generator.parameters() if each.requires_grad]
        optimizers = [torch.optim.AdamW(trained, lr=options.lr, **settings)]
        if self.judge is not None:
            optimizers.append(torch.optim.AdamW(self.judge.parameters(), lr=options.lr_discriminator, **settings))
        return optimizers

    def on_train_epoch_start(self) -> None:
        """Let dropout and normalisation layers learn."""
        self.generator.train()

    def training_step(self, batch: Any, index: int) -> dict[str, Any]:
        """Train on a batch; what was made is given back to be checked."""
        options = self.options
        rows, inputs, targets = batch
        inputs, real, codes = self.tensors(inputs, targets, [self.pairs.prompts[row] for row in rows])
        judged = self.judge is not None and self.step >= options.weights.adversarial_from * options.steps
        loss, self.terms, fake = self.loss_of(inputs, real, codes, self._noise(inputs, index), judged=judged)
        optimizers = self.optimizers()
        optimizers = optimizers if isinstance(optimizers, list) else [optimizers]
        last = (index + 1) % options.accumulate == 0
        self._descend(loss, optimizers[0], options.lr, last=last)
        if judged:
            self.terms["discriminator"] = self.judge.discriminator_loss(inputs, fake, real)  # type: ignore[union-attr]
            weighted = options.weights.adversarial * self.terms["discriminator"]
            self._descend(weighted, optimizers[1], options.lr_discriminator, last=last)
        self.terms = {name: term.detach() for name, term in self.terms.items()}
        return {"fake": fake.detach(), "real": real}

    def loss_of(
        self, inputs: torch.Tensor, real: torch.Tensor, codes: torch.Tensor, noise: Any = None, *, judged: bool
    ) -> tuple[Any, dict[str, torch.Tensor], torch.Tensor]:
        """Loss of the generator, its terms, and what it made, by one forward pass."""
        weights = self.options.weights
        fake = self.translate(self.generator, inputs, self.vectors_of(codes), noise)
        terms = self.reconstruction(fake, real, codes)
        if judged:
            terms["adversarial"] = self.judge.generator_loss(inputs, fake)  # type: ignore[union-attr]
        return sum(getattr(weights, name) * term for name, term in terms.items()), terms, fake

    def tensors(self, inputs: np.ndarray, targets: np.ndarray, prompts: list[str]) -> tuple[torch.Tensor, ...]:
        """Input, real image, and number of its prompt, on the device."""
        images, real = (torch.from_numpy(np.ascontiguousarray(tiles)).to(self.device) for tiles in (inputs, targets))
        codes = torch.tensor([self.prompts.index(prompt) for prompt in prompts], device=self.device)
        return as_input(images, self.input_low), as_input(real, -1.0), codes

    def vectors_of(self, codes: torch.Tensor) -> torch.Tensor | None:
        """Embeddings of prompts by number; None where the generator takes none."""
        return None if self.vectors is None else self.vectors[codes]

    def on_train_end(self) -> None:
        """Warn where not even what was trained on is predicted."""
        warning = nothing_learned(self) if self.trainer.is_global_zero else ""
        if warning:
            logger.warning("%s", warning)

    def trial_step(self, batch_size: int, px: int | None) -> None:
        """Forward and backward pass on noise."""
        side = px or self.pairs.px
        channels = getattr(self.pairs, "channels", 3)
        images = torch.rand(batch_size, channels, side, side, device=self.device)
        codes = torch.zeros(batch_size, dtype=torch.long, device=self.device)
        if px == self.pairs.px:
            real = images[:, :1].expand(-1, 3, -1, -1)
            loss, _, fake = self.loss_of(images, real, codes, judged=self.judge is not None)
            if self.judge is not None:
                loss = loss + self.judge.discriminator_loss(images, fake, real)
        else:  # terms may be for larger tiles; the generator takes by far the most
            loss = self.translate(self.generator, images, self.vectors_of(codes), None).mean()
        loss.backward()

    def _noise(self, inputs: torch.Tensor, index: int) -> torch.Tensor | None:
        shape_of = getattr(self.generator, "latent_shape", None)
        if not self.options.sample_posterior or shape_of is None:
            return None
        random = np.random.default_rng([self.options.seed, NOISE, self.current_epoch, index])
        return torch.from_numpy(random.standard_normal(shape_of(inputs), np.float32)).to(self.device)

    def _descend(self, loss: Any, optimizer: Any, lr: float, *, last: bool) -> None:
        """Add up gradients and, at the end of the accumulation, take a step."""
        self.manual_backward(loss / self.options.accumulate)
        if not last:
            return
        (group,) = optimizer.param_groups
        group["lr"] = lr * self.options.lr_factor(self.step)
        norm = torch.nn.utils.clip_grad_norm_(group["params"], self.options.clip_norm)
        if not torch.isfinite(norm):
            raise NotFinite(self.step, {"gradient": float(norm)})
        optimizer.step()
        optimizer.zero_grad()


def losses_of(
    options: TranslationTraining, prompts: list[str], px: int, in_channels: int = 3
) -> tuple[Reconstruction, AdversarialLoss | None]:
    """The terms of a training's loss; one image-text network serves all that ask for it.

    Raises
    ------
    ConnectionError, PermissionError, FileNotFoundError
        If weights cannot be had.
    ValueError
        If tiles are too small.
    """
    weights = options.weights
    judged_by_clip = weights.adversarial and options.discriminator == "clip"
    encoder = image_text(options) if weights.text or judged_by_clip else None
    judge = AdversarialLoss(options, px, encoder, in_channels=in_channels) if weights.adversarial else None
    return Reconstruction(options, prompts, px, encoder), judge
