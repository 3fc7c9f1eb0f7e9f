"""The one trainer: a module and its options to trained weights, resumable, watched, with advice when it fails."""

from __future__ import annotations

import json
import logging
import os
import pickle
import signal
import tempfile
import threading
import traceback
import warnings
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import lightning
import torch

from sthist._disk import full_disk_code, full_disk_explained
from sthist._scratch import temporary_folder
from sthist._settings import logger, settings
from sthist.training.callbacks import (
    MODEL,
    Collapsed,
    CollapseDetector,
    CSVHistory,
    LastCheckpoint,
    NotFinite,
    RepeatableEpochs,
    RestoreBest,
    StopWhenNotFinite,
    TimeBudget,
    WholeCheckpoints,
)
from sthist.training.run_folder import CHECKPOINT, read_history, require_resumable

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from sthist.training.module import TrainingModule
    from sthist.training.options import Training


DEFAULT_THREADS = torch.get_num_threads()
"""Of torch, where nobody has set them."""

SMALL_BATCH = 2**16
"""Pixels of a batch up to which one thread computes it: 16 tiles of 64 px."""

SMALL_NETWORK = 2**25
"""Parameters times rows of a batch of stored embeddings up to which one thread computes it: some milliseconds."""


def train(
    make: Callable[[], TrainingModule],
    options: Training,
    *,
    folder: Path | None = None,
    identity: dict[str, Any] | None = None,
    device: str | None = None,
    progress: bool | None = None,
    threads: int | None = None,
    complaint: Callable[[dict[str, Any]], str] | None = None,
    evaluate: Callable[[Any, int], dict[str, float]] | None = None,
    save_model: Callable[[Path, list[dict[str, float]]], None] | None = None,
) -> tuple[TrainingModule, list[dict[str, float]]]:
    """Train a module, which ``make`` gives; what it draws, too, is a function of the seed.

    With a ``folder``, each epoch leaves a checkpoint, the model so far (``save_model``) and ``metrics.csv`` in it;
    ``identity`` are plain values that say what the training is of, beside its options: a checkpoint of another one is
    not resumed. ``complaint`` says of the outputs of a step what is wrong with them, if anything is; ``evaluate`` gives
    scores of an epoch. ``threads`` are those of torch, by default those of :func:`threads_of`.

    Returns the module, on the CPU, in evaluation mode, with the weights that are to be kept; and the history, one row
    per epoch.
    """
    device = settings.torch_device(device)
    checkpoint = None if folder is None else folder / CHECKPOINT
    identity = json.loads(json.dumps({**(identity or {}), **options.identity()}))
    start = checkpoint_to_resume(folder, identity, resume=options.resume)
    detector = None if complaint is None else CollapseDetector(complaint)
    with _folder_of(folder, options) as place, quiet_and_repeatable(options.seed, threads):
        history = CSVHistory(place, evaluate)
        watchers: list[Any] = [RepeatableEpochs(options.seed), StopWhenNotFinite(), detector, history]
        if options.patience is not None:
            watchers.append(RestoreBest(options.patience))
        if checkpoint is not None and save_model is not None:
            watchers.append(LastCheckpoint(checkpoint, identity, detector, save_model, history))
        if options.max_time is not None:
            watchers.append(TimeBudget(options.max_time))
        module = make()
        if threads is None and device == "cpu":
            torch.set_num_threads(threads_of(module, options))
        if options.checkpoint_gradients:
            checkpoint_gradients(module.kept())
        module.start_average()
        trainer = _trainer(module, options, device, [each for each in watchers if each], folder, progress)
        try:
            with full_disk_explained(folder or Path(tempfile.gettempdir()), "The training has stopped."):
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
                advice = _what_fits(module, options)
            raise MemoryError(f"{advice} {_kept(checkpoint)}") from None
        except BaseException as error:
            if isinstance(error, OSError) and full_disk_code(error) is not None:
                error.strerror = f"{error.strerror} {_kept(checkpoint)}"
            error.add_note(_kept(checkpoint))
            raise
        finally:
            module.cpu().eval()
        module.keep_average()
        # Of several processes, the history is in that which has written it.
        rows = history.rows or ([] if place is None else read_history(place))
    return module, rows


def threads_of(module: TrainingModule, options: Training) -> int:
    """Threads of torch for a training on a CPU: one for small batches, else those that torch has.

    Threads that share little work wait for each other: 4 tiles of 64 px took 1.4 s a step with one thread and 9.4 s
    with two, on two cores that were busy otherwise, and a small network on stored embeddings 3 ms and 190 ms. The
    number decides on the last bits of the weights, so that it follows from the batch alone, and not from how long a
    step takes today: the same seed gives the same weights, also where a training is resumed. What a user has set
    (``OMP_NUM_THREADS``, ``torch.set_num_threads``) is kept to, also where kernels of numba, as scanpy has them, have
    given torch a thread per core.
    """
    for name in ("OMP_NUM_THREADS", "MKL_NUM_THREADS"):
        if os.environ.get(name, "").isdigit():
            return max(1, int(os.environ[name]))
    n_threads = torch.get_num_threads()
    if n_threads not in (DEFAULT_THREADS, os.cpu_count()):  # torch.set_num_threads, by a user
        return n_threads
    rows = module.rows_of_step(options.batch_size)
    if module.px is None:
        small = rows * sum(each.numel() for each in module.parameters()) <= SMALL_NETWORK
    else:
        small = rows * module.px**2 <= SMALL_BATCH
    return 1 if small else n_threads


def _trainer(
    module: TrainingModule,
    options: Training,
    device: str,
    callbacks: list[Any],
    folder: Path | None,
    progress: bool | None,
) -> lightning.Trainer:
    automatic: dict[str, Any] = {}
    if module.automatic_optimization:
        automatic = {"accumulate_grad_batches": options.accumulate, "gradient_clip_val": options.clip_norm}
    return lightning.Trainer(
        **_accelerator(device, options.devices),
        **automatic,
        strategy=options.strategy,
        # Some strategies write checkpoints in parts of their own.
        plugins=None if options.strategy.startswith(("deepspeed", "fsdp", "modelparallel")) else [WholeCheckpoints()],
        precision=lightning_precision(options.precision, device),
        max_epochs=options.epochs,
        callbacks=callbacks,
        default_root_dir=folder,
        logger=options.logger or False,
        log_every_n_steps=1,
        enable_checkpointing=any(isinstance(each, LastCheckpoint) for each in callbacks),
        enable_progress_bar=settings.progress if progress is None else progress,
        enable_model_summary=False,
        num_sanity_val_steps=0,
        use_distributed_sampler=False,
    )


def lightning_precision(precision: str, device: str) -> Any:
    """Lightning's word for a precision."""
    half = device.startswith("cuda") and torch.cuda.is_bf16_supported() if precision == "auto" else precision == "bf16"
    return "bf16-mixed" if half else "32-true"


def checkpoint_gradients(network: Any) -> None:
    """Let a network compute its activations twice in place of keeping them.

    Raises
    ------
    ValueError
        If it cannot.
    """
    for name in ("checkpoint_gradients", "set_grad_checkpointing", "gradient_checkpointing_enable"):
        if hasattr(network, name):
            getattr(network, name)()
            return
    raise ValueError(
        "checkpoint_gradients=True is for networks that can do it, such as ST2HE; this one is small enough without."
    )


def checkpoint_to_resume(folder: Path | None, identity: dict[str, Any], *, resume: bool) -> Path | None:
    """The checkpoint to go on from, or None to begin; refuses one of another training."""
    require_resumable(folder, resume=resume)
    if folder is None or not resume:
        return None
    checkpoint = folder / CHECKPOINT
    if not checkpoint.exists():
        logger.info("There is no checkpoint in %s yet; the training begins.", checkpoint.parent)
        return None
    try:
        kept = torch.load(checkpoint, map_location="cpu", weights_only=True)["callbacks"][LastCheckpoint.state_key]
    except (pickle.UnpicklingError, RuntimeError, EOFError, KeyError, TypeError) as error:
        raise ValueError(
            f"{checkpoint} is no checkpoint of this package, or damaged: {type(error).__name__}. Remove it to begin "
            "anew."
        ) from error
    different = [name for name, value in identity.items() if kept.get(name) != value]
    if different:
        values = ", ".join(f"{name} {kept.get(name)!r}, not {identity[name]!r}" for name in different[:3])
        longer = (
            " Schedule and losses depend on its end: to go on for longer, load the model and train it on in "
            "another folder."
            if "epochs" in different
            else ""
        )
        raise ValueError(f"{checkpoint} is of another training, with {values}.{longer}")
    return checkpoint


def _accelerator(device: str, devices: int) -> dict[str, Any]:
    """Arguments of Lightning's trainer for a device of torch."""
    kind, _, number = device.partition(":")
    accelerator = {"cuda": "gpu"}.get(kind, kind)
    return {"accelerator": accelerator, "devices": [int(number)] if number and kind == "cuda" else devices}


@contextmanager
def _folder_of(folder: Path | None, options: Training) -> Iterator[Path | None]:
    """The folder of a run; several processes without one share their history in a temporary one."""
    if folder is not None:
        folder.mkdir(parents=True, exist_ok=True)
        yield folder
    elif options.devices > 1:
        with temporary_folder("training-") as temporary:
            yield temporary
    else:
        yield None


@contextmanager
def quiet_and_repeatable(seed: int, threads: int | None = None) -> Iterator[None]:
    """Train without messages, as a function of a seed; random states and settings of torch are as they were afterwards.

    Lightning's advice is for its own users. ``threads`` are those of torch, by default as many as it has.
    """
    loggers = [logging.getLogger(name) for name in ("lightning.pytorch", "lightning.fabric", "lightning")]
    levels = [each.level for each in loggers]
    strict = torch.are_deterministic_algorithms_enabled(), torch.is_deterministic_algorithms_warn_only_enabled()
    n_threads = torch.get_num_threads()
    try:
        for each in loggers:
            each.setLevel(logging.ERROR)
        with torch.random.fork_rng(), warnings.catch_warnings():
            warnings.simplefilter("ignore")
            torch.manual_seed(seed)
            torch.set_num_threads(threads or n_threads)
            torch.use_deterministic_algorithms(True, warn_only=True)
            yield
    finally:
        torch.set_num_threads(n_threads)
        torch.use_deterministic_algorithms(strict[0], warn_only=strict[1])
        for each, level in zip(loggers, levels, strict=True):
            each.setLevel(level)


def _run(trainer: lightning.Trainer, module: TrainingModule, start: Path | None) -> None:
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


def _what_fits(module: TrainingModule, options: Training) -> str:
    """Which smaller batch, or tile, leaves room for a step."""
    px, batch_size = module.px, options.batch_size
    problem = f"The device is out of memory with batch_size={batch_size}" + (f" and tiles of {px} px." if px else ".")
    for batch in _halves(batch_size // 2):
        if _fits(module, batch, px):
            return (
                f"{problem} batch_size={batch} fits; accumulate={-(-batch_size // batch)} makes steps of as many tiles."
            )
    for side in _halves((px or 0) // 2):
        if _fits(module, 1, side):
            return (
                f"{problem} Not one tile of that size fits; one of {side} px does. checkpoint_gradients=True saves "
                "memory, too."
            )
    return f"{problem} Nothing smaller fits either: something else fills it."


def _halves(n: int) -> list[int]:
    return [n >> i for i in range(n.bit_length())] if n else []


def _fits(module: TrainingModule, batch_size: int, px: int | None) -> bool:
    """Whether a step with noise goes through."""
    module.zero_grad()
    if module.device.type == "cuda":
        torch.cuda.empty_cache()
    try:
        module.trial_step(batch_size, px)
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
