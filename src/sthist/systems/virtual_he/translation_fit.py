"""Training of a translation from its pairs to its weights: checks, Lightning, resuming, memory."""

from __future__ import annotations

import dataclasses
import json
import pickle
import signal
import threading
import traceback
from pathlib import Path
from typing import TYPE_CHECKING, Any

import lightning
import torch

from sthist._settings import logger, settings
from sthist.systems.virtual_he.training_module import NotFinite, Translation
from sthist.systems.virtual_he.validation import MODEL, Collapsed, KeepLast, Record, Sanity
from sthist.training.trainer import quiet_and_repeatable, where

if TYPE_CHECKING:
    from sthist.systems.virtual_he.config import TranslationTraining
    from sthist.systems.virtual_he.training_set.pairs import Pairs
    from sthist.systems.virtual_he.translator import Translator

CHECKPOINT = Path("checkpoints") / "last.ckpt"
MAY_DIFFER = ("images_every", "precision", "checkpoint_gradients", "lpips_weights", "clip_weights")
"""Settings of a training that may change when it is resumed, elsewhere or with less memory."""

NOT_OF_THE_NETWORK = ("training", "seed", "provenance", "backbone")
"""Fields of a config that do not say what is trained: weights, and where they are, are compared as such."""


def fit(
    model: Translator,
    pairs: Pairs,
    training: TranslationTraining,
    *,
    validation: Pairs | None,
    folder: Path | None,
    resume: bool,
    device: str | None,
    progress: bool | None,
) -> list[dict[str, float]]:
    """Train the generator of a model in place; arguments are those of :meth:`Translator.fit`.

    Returns one row of figures per epoch.
    """
    _require_pairs(model, pairs, training)
    if validation is not None:
        _require_alike(model, validation)
    device = chosen_device(device)
    checkpoint = None if folder is None else folder / CHECKPOINT
    facts = _facts(model, pairs, training)
    start = _start(checkpoint, facts, resume=resume)
    if folder is not None:
        folder.mkdir(parents=True, exist_ok=True)
    texts = list(dict.fromkeys([*pairs.prompts, *(validation.prompts if validation is not None else ())]))
    with quiet_and_repeatable(training.seed, None):
        module = Translation(model, pairs, training, texts)
        if hasattr(module.generator, "checkpoint_gradients"):
            module.generator.checkpoint_gradients(training.checkpoint_gradients)
        record = Record(folder, validation, training.images_every)
        sanity = Sanity()
        watchers = [sanity, record]
        if checkpoint is not None:
            watchers.append(
                KeepLast(checkpoint, facts, sanity, lambda: _as_trained(model, pairs, training, record.rows))
            )
        trainer = lightning.Trainer(
            **where(device),
            precision=_precision(training.precision, device),
            max_epochs=training.epochs,
            callbacks=watchers,
            reload_dataloaders_every_n_epochs=1,
            default_root_dir=folder,
            logger=False,
            enable_checkpointing=checkpoint is not None,
            enable_progress_bar=settings.progress if progress is None else progress,
            enable_model_summary=False,
            num_sanity_val_steps=0,
        )
        try:
            _run(trainer, module, start)
        except (NotFinite, Collapsed) as error:
            error.args = (f"{error} {_kept(checkpoint)}",)
            raise
        except RuntimeError as error:
            if not _is_of_memory(error):
                raise
            traceback.clear_frames(error.__traceback__)  # they hold what the failed step had made
            module.to(device)  # Lightning has taken it off
            with trainer.precision_plugin.forward_context():
                said = _what_fits(module, pairs.px, training.batch_size)
            msg = f"{said} {_kept(checkpoint)}"
            raise MemoryError(msg) from None
        except BaseException as error:
            error.add_note(_kept(checkpoint))
            raise
        finally:
            module.generator.cpu().eval()
        with torch.no_grad(), module.averaged():
            # What is looked at is what is kept.
            kept = {name: each.detach().clone() for name, each in module._trained()}
        module._put(kept)
    return record.rows


def provenance(
    model: Translator, pairs: Pairs, training: TranslationTraining, rows: list[dict[str, float]]
) -> dict[str, Any]:
    """How a model was trained, for its config."""
    before = {"before": model.config.training} if model.config.training else {}
    return training.to_dict() | {"pairs": len(pairs), "final": rows[-1] if rows else {}} | before


def _as_trained(
    model: Translator, pairs: Pairs, training: TranslationTraining, rows: list[dict[str, float]]
) -> Translator:
    """The model that a training has come to."""
    so_far = model.running_on()
    so_far.config = dataclasses.replace(model.config, training=provenance(model, pairs, training, rows))
    return so_far


def chosen_device(device: str | None) -> str:
    """The device of torch that is meant."""
    name = settings.torch_device() if device in (None, "auto") else str(device)
    try:
        torch.empty(0, device=name)
    except (RuntimeError, AssertionError) as error:
        msg = f"device={name!r} is not on this machine: {str(error).splitlines()[0]}"
        raise ValueError(msg) from None
    return name


def _run(trainer: lightning.Trainer, module: Translation, start: Path | None) -> None:
    """Train; Ctrl-C stops it, and not the whole program, as Lightning would."""
    handler = signal.getsignal(signal.SIGINT)
    try:
        trainer.fit(module, ckpt_path=start, weights_only=True)
    except SystemExit:
        if trainer.interrupted:
            raise KeyboardInterrupt from None
        raise
    finally:
        if handler is not None and threading.current_thread() is threading.main_thread():
            signal.signal(signal.SIGINT, handler)


def _require_pairs(model: Translator, pairs: Pairs, training: TranslationTraining) -> None:
    _require_alike(model, pairs)
    if len(pairs) < training.batch_size:
        msg = (
            f"There are {len(pairs)} pairs to train on, fewer than a batch of {training.batch_size}. Lay more tiles, "
            f"or lower batch_size=."
        )
        raise ValueError(msg)
    if training.checkpoint_gradients and not hasattr(model.trainable(), "checkpoint_gradients"):
        msg = "checkpoint_gradients=True is for ST2HE; this generator is small enough without."
        raise ValueError(msg)


def _require_alike(model: Translator, pairs: Pairs) -> None:
    """Refuse pairs that the model is not made for."""
    if pairs.px != model.config.px:
        msg = f"The pairs have {pairs.px} px, the model is for {model.config.spec}."
        raise ValueError(msg)
    unknown = set(pairs.prompts) - set(model.config.prompts.values()) if model.takes_prompts else set()
    if unknown:
        msg = (
            f"Pairs have the prompt {sorted(unknown)[0]!r}, and the model would never be told it; config.prompts is "
            f"{model.config.prompts}."
        )
        raise ValueError(msg)


def _facts(model: Translator, pairs: Pairs, training: TranslationTraining) -> dict[str, Any]:
    """What a training is of, as plain values: a checkpoint of another is not gone on with."""
    # It can go on for longer where nothing depends on its end.
    endless = training.schedule == "constant" and training.weights.adversarial_from == 0
    free = (*MAY_DIFFER, *(["epochs"] if endless else []))
    config = dataclasses.asdict(model.config).items()
    facts = {
        "system": model.system,
        "backbone": model.backbone_sha256(),
        "pairs": getattr(pairs, "fingerprint", len(pairs)),
        **{f"config.{name}": value for name, value in config if name not in NOT_OF_THE_NETWORK},
        **{name: value for name, value in training.to_dict().items() if name not in free},
    }
    return dict(json.loads(json.dumps(facts)))


def _start(checkpoint: Path | None, facts: dict[str, Any], *, resume: bool) -> Path | None:
    """The checkpoint to go on from."""
    if checkpoint is None:
        if resume:
            msg = "resume=True needs folder=, in which the training has left its checkpoints."
            raise ValueError(msg)
        return None
    if not checkpoint.exists():
        if resume:
            logger.info("There is no checkpoint in %s yet; the training begins.", checkpoint.parent)
        return None
    if not resume:
        msg = f"{checkpoint} is there already: pass resume=True to go on from it, or another folder=."
        raise FileExistsError(msg)
    try:
        kept = torch.load(checkpoint, map_location="cpu", weights_only=True)["callbacks"]["KeepLast"]
    except (pickle.UnpicklingError, RuntimeError, EOFError, KeyError, TypeError) as error:
        msg = (
            f"{checkpoint} is no checkpoint of this package, or damaged: {type(error).__name__}. Remove it to begin "
            f"anew."
        )
        raise ValueError(msg) from error
    different = [name for name, value in facts.items() if kept.get(name) != value]
    if different:
        said = ", ".join(f"{name} {kept.get(name)!r}, not {facts[name]!r}" for name in different[:3])
        longer = (
            " Schedule and losses depend on its end: to go on for longer, load the model and train it on in another "
            "folder."
        )
        msg = f"{checkpoint} is of another training, with {said}.{longer if 'epochs' in different else ''}"
        raise ValueError(msg)
    return checkpoint


def _precision(precision: str, device: str) -> Any:
    if precision != "auto":
        return precision
    return "bf16-mixed" if device.startswith("cuda") and torch.cuda.is_bf16_supported() else "32-true"


def _kept(checkpoint: Path | None) -> str:
    """What is left of a training that has stopped."""
    if checkpoint is None:
        return "Nothing of this training was kept; with folder= the last good epoch is."
    if checkpoint.exists():
        return (
            f"The last good epoch is kept: resume=True goes on from {checkpoint}, "
            f"sthist.models.load({str(checkpoint.with_name(MODEL))!r}) reads its model."
        )
    return "No epoch was kept yet."


def _what_fits(module: Translation, px: int, batch_size: int) -> str:
    """Which smaller batch, or tile, leaves room for a step."""
    said = f"The device is out of memory with batch_size={batch_size} and tiles of {px} px."
    for batch in _halves(batch_size // 2):
        if _fits(module, batch, px):
            return f"{said} batch_size={batch} fits; accumulate={-(-batch_size // batch)} makes steps of as many tiles."
    for side in _halves(px // 2):
        if _fits(module, 1, side):
            return (
                f"{said} Not one tile of that size fits; one of {side} px does. checkpoint_gradients=True saves "
                f"memory, too."
            )
    return f"{said} Nothing smaller fits either: something else fills it."


def _halves(n: int) -> list[int]:
    return [n >> i for i in range(n.bit_length())] if n else []


def _fits(module: Translation, batch: int, px: int) -> bool:
    """Whether a step with noise goes through."""
    images = torch.rand(batch, 3, px, px, device=module.device)
    codes = torch.zeros(batch, dtype=torch.long, device=module.device)
    module.zero_grad()
    if module.device.type == "cuda":
        torch.cuda.empty_cache()
    try:
        if px == module.pairs.px:
            loss, _, fake = module.loss_of(images, images, codes, judged=module.judge is not None)
            if module.judge is not None:
                loss = loss + module.judge.discriminator_loss(images, fake, images)
        else:  # terms may be for larger tiles; the generator takes by far the most
            loss = module.translate(module.generator, images, module.vectors_of(codes), None).mean()
        loss.backward()
    except (RuntimeError, ValueError) as error:
        if isinstance(error, RuntimeError) and not _is_of_memory(error):
            raise
        return False  # too large, or too small for the network
    finally:
        module.zero_grad()
    return True


def _is_of_memory(error: RuntimeError) -> bool:
    """Whether a device, or the allocator of the CPU, is out of memory."""
    return isinstance(error, torch.OutOfMemoryError) or "can't allocate memory" in str(error)
