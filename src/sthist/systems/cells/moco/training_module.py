"""How MoCo v3 is trained on crops of cells: its options, and what the engine trains."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar, Literal

import numpy as np
import torch

from sthist.nets._cells.augment import CellAugmentation, augment_cells, draw_views
from sthist.nets._cells.moco import LARS, momentum_at, rate_at, spread_of
from sthist.tiles import TileLoader
from sthist.training.module import TrainingModule
from sthist.training.options import Training

if TYPE_CHECKING:
    from collections.abc import Iterator

    from sthist.encoders import Transform
    from sthist.nets._cells.moco import MoCo

Triple = tuple[float, float, float]

PER_BATCH = 256
"""Crops of a batch that the learning rate is stated for."""

COLLAPSED = 0.02
"""Spread of embeddings (see :func:`spread_of`) below which crops are not told apart any more."""


@dataclass(frozen=True)
class MoCoTraining(Training):
    """How :class:`MoCoV3` is trained; as published by default, which takes an accelerator.

    Attributes
    ----------
    epochs, batch_size, weight_decay
        As of :class:`Training`. All other crops of a batch are what a crop is told apart from; where there are fewer
        crops than a batch, all of them are one.
    lr
        Learning rate per 256 crops of a batch.
    optimizer
        ``"lars"``, or ``"adamw"`` with a rate of about 1e-4.
    trust
        Of LARS: what part of its own length a matrix moves by in a step, per learning rate.
    warmup
        Epochs over which the learning rate rises; then it falls along a cosine to 0.
    momentum
        Of the encoder that follows.
    cosine_momentum
        Let it rise to 1 along a cosine.
    temperature
        Of the similarities.
    jitter, blur, erase
        Probabilities that colours change, that a view is blurred, and that a part of it is black.
    rotate
        Turn crops by any angle.
    least_area
        Least part of a view that is enlarged to the whole.
    stain_jitter
        Standard deviation of the factors by which amounts of haematoxylin and eosin are multiplied, such as 0.3;
        0 leaves them.

    Examples
    --------
    >>> import sthist
    >>> sthist.models.MoCoTraining(epochs=20, batch_size=256).lr
    0.6
    """

    epochs: int = 150
    batch_size: int = 4096
    lr: float = 0.6
    weight_decay: float = 1e-6
    optimizer: Literal["lars", "adamw"] = "lars"
    trust: float = 1e-3
    warmup: float = 10.0
    momentum: float = 0.99
    cosine_momentum: bool = False
    temperature: float = 1.0
    jitter: float = 0.8
    blur: float = 0.1
    erase: float = 0.3
    rotate: bool = True
    least_area: float = 0.6
    stain_jitter: float = 0.0

    LEAST: ClassVar[dict[str, int]] = {**Training.LEAST, "batch_size": 2}
    CHOICES: ClassVar[dict[str, tuple[str, ...]]] = {**Training.CHOICES, "optimizer": ("lars", "adamw")}
    # The schedule follows from the number of epochs.
    MAY_DIFFER: ClassVar[tuple[str, ...]] = ("checkpoint_gradients", "precision")

    def __post_init__(self) -> None:
        super().__post_init__()
        for name in ("momentum", "jitter", "blur", "erase"):
            if not 0 <= getattr(self, name) <= 1:
                raise ValueError(f"{name} is {getattr(self, name)!r}; it is from 0 to 1.")
        if not 0 < self.least_area <= 1:
            raise ValueError(f"least_area is {self.least_area!r}; it is a part of the view, above 0 and up to 1.")
        if not self.stain_jitter >= 0 or not self.warmup >= 0:
            raise ValueError(f"stain_jitter is {self.stain_jitter!r} and warmup {self.warmup!r}; neither is negative.")
        if self.patience is not None:
            raise ValueError("patience= is for trainings that are validated; MoCo v3 runs for all of its epochs.")

    def _positive(self) -> tuple[str, ...]:
        return (*super()._positive(), "trust", "temperature")

    @property
    def augmentation(self) -> CellAugmentation:
        """How crops are changed."""
        return CellAugmentation(
            jitter=self.jitter,
            blur=self.blur,
            erase=self.erase,
            rotate=self.rotate,
            least_area=self.least_area,
            stain=self.stain_jitter,
        )


class Crops:
    """Crops in memory, or in a file that is mapped into it, read by their numbers."""

    by_row = True

    def __init__(self, crops: np.ndarray) -> None:
        self.crops = crops
        self.block = max(1, len(crops))  # all are shuffled at once

    def __len__(self) -> int:
        return len(self.crops)

    def order(self, rows: np.ndarray) -> np.ndarray:
        """As they come."""
        return np.arange(len(rows))

    def read(self, rows: np.ndarray) -> np.ndarray:
        """Crops of rows, (n, side, side, 3)."""
        return np.asarray(self.crops[rows])


class MoCoModule(TrainingModule):
    """Trains :class:`sthist.nets.MoCo` on two views of each crop.

    ``source``: crops by row; ``px``, ``transform``: of the views.
    """

    def __init__(self, net: MoCo, source: Any, options: MoCoTraining, px: int, transform: Transform) -> None:
        super().__init__(options)
        self.net, self.source, self.transform, self.px = net, source, transform, px
        self.options: MoCoTraining = options
        self.n_batches = len(source) // options.batch_size
        self.how = options.augmentation
        self.stains = _stains() if options.stain_jitter else None

    def batches(self, epoch: int, device: int, n_devices: int) -> Iterator[Any]:
        """Crops, and what is drawn for their views; a last batch that is not full is left out."""
        options = self.options
        drawn = draw_views(len(self.source), options.seed, epoch)
        loader = TileLoader(
            self.source,
            np.arange(len(self.source)),
            batch_size=options.batch_size,
            shuffle=True,
            seed=options.seed,
            epoch=epoch,
        )
        for rows, crops in loader:
            if len(rows) == options.batch_size:
                share = slice(device, None, n_devices)
                yield torch.from_numpy(np.ascontiguousarray(crops[share])), torch.from_numpy(drawn[rows[share]])

    def kept(self) -> torch.nn.Module:
        """The encoder."""
        return self.net.backbone

    def training_step(self, batch: Any, index: int) -> Any:
        """The loss of two views of each crop."""
        crops, drawn = batch
        momentum = self.options.momentum
        if self.options.cosine_momentum:
            momentum = momentum_at(self._progress(), self.options.epochs, momentum)
        self.net.follow(momentum)
        views = [self._view(crops, drawn[:, view]) for view in range(2)]
        several = self._trainer is not None and self.trainer.world_size > 1
        loss, embedded = self.net(*views, self._keys_of_all if several else None)
        spread = spread_of(embedded)
        self.terms = {"loss": loss.detach(), "embedding_std": spread}
        return {"loss": loss, "embedding_std": spread}

    def trial_step(self, batch_size: int, px: int | None) -> None:
        """Forward and backward pass on noise."""
        side = (px or self.px or 48) * 3 // 2
        crops = torch.randint(0, 256, (batch_size, side, side, 3), dtype=torch.uint8, device=self.device)
        drawn = torch.from_numpy(draw_views(batch_size, 0, 0)).to(self.device)
        views = [self._view(crops, drawn[:, view]) for view in range(2)]
        self.net(*views)[0].backward()

    def configure_optimizers(self) -> Any:
        """LARS or AdamW, of what is trained; the rate is set before each step."""
        options = self.options
        trained = [each for each in self.net.parameters() if each.requires_grad]
        if options.optimizer == "adamw":
            return torch.optim.AdamW(trained, lr=self._rate(), weight_decay=options.weight_decay)
        return LARS(trained, lr=self._rate(), weight_decay=options.weight_decay, trust=options.trust)

    def on_train_batch_start(self, batch: Any, batch_idx: int) -> None:
        """Set the learning rate."""
        for optimizer in self.trainer.optimizers:
            for group in optimizer.param_groups:
                group["lr"] = self._rate()

    def _view(self, crops: Any, drawn: Any) -> Any:
        with torch.no_grad(), torch.autocast(self.device.type, enabled=False):
            views = augment_cells(crops, drawn, int(self.px or 0), self.how, stains=self.stains)
            mean, std = (
                torch.tensor(values, device=views.device)[:, None, None]
                for values in (self.transform.mean, self.transform.std)
            )
            return ((views - mean) / std).contiguous(memory_format=torch.channels_last)

    def _progress(self) -> float:
        """Epochs that are done, with the part of the one that runs."""
        return self.step / self.n_batches

    def _rate(self) -> float:
        options = self.options
        factor = rate_at(self._progress(), min(options.warmup, options.epochs / 2), options.epochs)
        return options.lr * options.batch_size / PER_BATCH * factor

    def _keys_of_all(self, keys: Any) -> tuple[Any, int]:
        """Keys of all devices, and where those of this one begin."""
        everything: Any = self.all_gather(keys)
        return everything.flatten(0, 1), self.global_rank * len(keys)


def complaint(outputs: dict[str, Any]) -> str:
    """What is wrong with the outputs of a step; empty if nothing is."""
    spread = float(outputs["embedding_std"])
    if spread >= COLLAPSED:
        return ""
    return f"crops are not told apart: the standard deviation of their embeddings is {spread:.2g} of what it could be"


def _stains() -> Any:
    """Vectors of haematoxylin and eosin of the built-in reference."""
    from sthist.pp._stain_normalize.reference import StainReference

    return StainReference.default("macenko").stains


def as_source(crops: Any, side: int) -> Any:
    """Crops by row, checked: an array, or a reader of several samples."""
    if not hasattr(crops, "read"):
        crops = crops if isinstance(crops, np.ndarray) else np.asarray(crops)
        if crops.ndim != 4 or crops.shape[1:] != (side, side, 3) or crops.dtype != np.uint8:
            raise ValueError(
                f"Crops are uint8 of shape (n, {side}, {side}, 3), half as wide again as what is embedded, so that "
                f"they can be turned; these are {crops.dtype} of shape {crops.shape}."
            )
        crops = Crops(crops)
    if len(crops) < 2:
        raise ValueError(f"There are {len(crops)} crops; a cell is told apart from others, so at least 2 are needed.")
    return crops


def channel_statistics(source: Any, px: int, rows: np.ndarray) -> tuple[Triple, Triple]:
    """Mean and standard deviation of each channel over all pixels of the middle of crops, from 0 to 1."""
    total, squares, n = np.zeros(3), np.zeros(3), 0
    for start in range(0, len(rows), 1024):
        crops = source.read(rows[start : start + 1024])
        margin = (crops.shape[1] - px) // 2
        pixels = crops[:, margin : margin + px, margin : margin + px].reshape(-1, 3).astype(np.float64) / 255
        total, squares, n = total + pixels.sum(0), squares + (pixels**2).sum(0), n + len(pixels)
    mean = total / n
    std = np.sqrt(np.maximum(squares / n - mean**2, 0))
    r, g, b = mean.tolist()
    x, y, z = np.maximum(std, 1e-3).tolist()
    return (r, g, b), (x, y, z)
