"""MoCo v3 on crops of cells: a model that is an encoder."""

from __future__ import annotations

import copy
import hashlib
import math
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, Literal, Self

import numpy as np

from sthist import _store, _weights
from sthist._disk import written_whole
from sthist._messages import several
from sthist._reading import reading
from sthist._settings import logger
from sthist.encoders import Encoder, Transform
from sthist.tiles import TileSpec
from sthist.training.model import WEIGHTS, Model, read_weights, write_weights
from sthist.training.options import as_training
from sthist.training.run_folder import read_history

if TYPE_CHECKING:
    from collections.abc import Mapping

    from torch import nn

    from sthist.encoders._network import NetworkEncoder
    from sthist.pp import StainReference
    from sthist.systems.cells.moco.training_module import MoCoTraining


MARGIN = 1.5
"""Side of a crop that can be turned by any angle, in sides of what is embedded: more than the root of 2."""

N_MEASURED = 20_000
"""Crops that mean and standard deviation of the channels are of, at most."""

N_HASHED = 64


@dataclass(frozen=True)
class MoCoV3Config:
    """What a :class:`MoCoV3` is, but for its weights.

    Attributes
    ----------
    size_um, px
        Tissue around the middle of a nucleus, and pixels that it is sampled to: a multiple of 4.
    backbone
        A residual network of timm, without its last layer.
    width
        Factor of its numbers of channels.
    stem
        Its first layer: ``"standard"``, which leaves 12 x 12 places of 48 x 48 pixels, or ``"small"``, which leaves all
        of them and takes 16 times as long.
    hidden, dim
        Widths of projector and predictor, and of what is compared while it is trained.
    mean, std
        Of each channel of the crops that it was trained on, from 0 to 1; None before.
    training
        How it was trained; plain values.

    Examples
    --------
    >>> import sthist
    >>> sthist.models.MoCoV3Config(backbone="resnet18", width=0.5).crop_spec
    TileSpec(size_um=18.0, px=72)
    """

    size_um: float = 12.0
    px: int = 48
    backbone: str = "resnet50"
    width: float = 1.0
    stem: Literal["standard", "small"] = "standard"
    hidden: int = 4096
    dim: int = 256
    mean: tuple[float, float, float] | None = None
    std: tuple[float, float, float] | None = None
    training: dict[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        if not (isinstance(self.px, int) and self.px >= 8 and self.px % 4 == 0):
            raise ValueError(f"px is {self.px!r}; a multiple of 4 from 8 on is needed, so that crops have a middle.")
        for name in ("size_um", "width"):
            if not (math.isfinite(getattr(self, name)) and getattr(self, name) > 0):
                raise ValueError(f"{name} is {getattr(self, name)!r}; a positive number is needed.")
        for name in ("hidden", "dim"):
            if not (isinstance(getattr(self, name), int) and getattr(self, name) >= 1):
                raise ValueError(f"{name} is {getattr(self, name)!r}; a whole number from 1 on is needed.")
        if (self.mean is None) != (self.std is None):
            raise ValueError("mean and std of the channels go together; one of them is None.")
        if self.mean is not None and self.std is not None:
            Transform(self.mean, self.std)  # its checks

    @property
    def spec(self) -> TileSpec:
        """What is embedded."""
        return TileSpec(self.size_um, self.px)

    @property
    def crop_spec(self) -> TileSpec:
        """What it is trained on: half as wide again, so that crops can be turned."""
        return TileSpec(MARGIN * self.size_um, round(MARGIN * self.px))


class MoCoV3(Model, Encoder):
    """An encoder of cells that has learned, without labels, to know a crop of a nucleus again: MoCo v3.

    It is an encoder like any other: ``sthist.pp.embed(sdata, model, regions="nuclei")`` writes ``obsm["X_moco_v3"]``,
    and so does the folder that it was saved to. :func:`sthist.tl.train_cell_encoder` trains it.

    Parameters
    ----------
    config
        What it is.
    weights
        Arrays of the backbone by name.

    Attributes
    ----------
    history
        Figures of each epoch of its training: ``loss``, and ``embedding_std``, the standard deviation of normalised
        embeddings over the crops of a batch, 1 where they point anywhere and 0 where all are the same (a collapse).

    References
    ----------
    Chen, Xie and He 2021, An empirical study of training self-supervised vision transformers. Chadoutaud et al. 2026,
    sCellST, whose augmentations it has.

    Examples
    --------
    >>> import numpy as np, sthist
    >>> crops = np.random.default_rng(0).integers(0, 256, (32, 24, 24, 3), np.uint8)
    >>> config = sthist.models.MoCoV3Config(px=16, backbone="resnet10t", width=0.125, hidden=32, dim=16)
    >>> model = sthist.models.MoCoV3(config)
    >>> model = model.fit(crops, training={"epochs": 1, "batch_size": 16}, device="cpu", progress=False)
    >>> model.embed(crops[:2, 4:20, 4:20]).shape, model.key
    ((2, 64), 'X_moco_v3')
    """

    system: ClassVar[str] = "moco-v3"
    config_class: ClassVar[type] = MoCoV3Config
    config: MoCoV3Config

    def __init__(self, config: MoCoV3Config | None = None, weights: Mapping[str, Any] | None = None) -> None:
        super().__init__(config)
        self.name = "moco_v3"
        self.weights = {name: np.asarray(value) for name, value in (weights or {}).items()}
        self.history: list[dict[str, float]] = []
        self._running: dict[tuple[Any, ...], NetworkEncoder] = {}

    def _about(self) -> list[str]:
        """Tiles, network, and of how many crops it has learned."""
        crops = self.config.training.get("crops")
        trained = (
            "not trained"
            if not self.is_fitted
            else "trained"
            if crops is None
            else (f"trained on {several(crops, 'crop')} of nuclei")
        )
        return [f"{self.config.backbone} on {self.spec.text} around a nucleus", trained]

    @property
    def is_fitted(self) -> bool:
        """Whether it was trained."""
        return bool(self.weights) and self.config.mean is not None

    @property
    def spec(self) -> TileSpec:  # type: ignore[override]
        """What it embeds: the tissue around the middle of a nucleus."""
        return self.config.spec

    @property
    def transform(self) -> Transform:  # type: ignore[override]
        """How pixels become the input of the network: by mean and standard deviation of the crops it was trained on."""
        self._require_fitted()
        mean, std = self.config.mean, self.config.std
        return Transform(mean or (), std or (), self.config.px, "bilinear")

    @property
    def module(self) -> nn.Module:  # type: ignore[override]
        """The network."""
        return self.on().network  # type: ignore[no-any-return]

    @property
    def provenance(self) -> dict[str, Any]:  # type: ignore[override]
        """How it was made, with the checksum of its weights."""
        return self.on().provenance

    @property
    def reference(self) -> StainReference:
        """Mean and spread of the channels of the crops that it was trained on.

        ``normalizer = sthist.pp.stain_normalize(slide, method="channels", reference=model.reference)`` brings the
        tissue of a slide to them; ``sthist.pp.embed(slide, model, regions="nuclei", normalizer="self")`` the crops.
        """
        from sthist.pp._stain_normalize.reference import of_channels

        mean, std = (255 * np.array(each) for each in (self.transform.mean, self.transform.std))
        return of_channels(mean, std, "crops that MoCo v3 was trained on")

    def backbone(self) -> nn.Module:
        """A network of its shape, with random weights."""
        from sthist.nets import cell_backbone

        return cell_backbone(self.config.backbone, width=self.config.width, stem=self.config.stem)

    def on(self, device: str | None = None, precision: str | None = None, compile: bool = False) -> NetworkEncoder:
        """The encoder on a device.

        Parameters
        ----------
        device, precision, compile
            As of :func:`sthist.encoders.get`.

        Raises
        ------
        ValueError
            If it was not trained.
        """
        import torch

        from sthist.encoders._network import NetworkEncoder

        self._require_fitted()
        key = (device, precision, compile)
        if key not in self._running:
            network = self.backbone()
            network.load_state_dict({name: torch.from_numpy(np.array(value)) for name, value in self.weights.items()})
            shape = asdict(replace(self.config, training={}))
            origin = {
                "source": self.system,
                "sha256": _weights.sha256_of(network),
                "config": {name: list(value) if isinstance(value, tuple) else value for name, value in shape.items()},
            }
            options: dict[str, Any] = {"device": device, "precision": precision, "compile": compile}
            self._running[key] = NetworkEncoder(
                self.name, network, self.transform, spec=self.spec, provenance=origin, **options
            )
        return self._running[key]

    def embed(self, tiles: np.ndarray) -> np.ndarray:
        """Embed crops.

        Parameters
        ----------
        tiles
            (n, px, px, 3) uint8; of other pixels than ``spec.px`` they are resized.

        Returns
        -------
        (n, d) float32.
        """
        return self.on().embed(tiles)

    def fit(
        self,
        crops: Any,
        *,
        folder: str | Path | None = None,
        training: MoCoTraining | Mapping[str, Any] | None = None,
        device: str | None = None,
        progress: bool | None = None,
    ) -> Self:
        """Train anew, from random weights.

        Parameters
        ----------
        crops
            (n, side, side, 3) uint8 in memory or mapped from a file, cut as ``config.crop_spec`` says (18 µm on 72 px):
            the middle of each crop is the middle of a nucleus. Or what reads crops by row, such as tiles of several
            samples: ``len(crops)``, ``read(rows)`` and ``order(rows)``, with ``by_row = True``.
        folder
            Where, after each epoch, a checkpoint, the model so far and ``metrics.csv`` are written, to go on from with
            ``training={"resume": True}``; and the model at the end.
        training
            A :class:`MoCoTraining`, or a mapping of its fields over the defaults.
        device
            Of torch; ``settings.device`` by default.
        progress
            Show a bar; ``settings.progress`` by default.

        Returns
        -------
        The model, trained. On a CPU the same seed gives the same weights, also when it was resumed.

        Raises
        ------
        ValueError
            If crops are of another size or fewer than two, or the checkpoint is of another training.
        FileExistsError
            If there is a checkpoint, and ``resume`` is not set.
        FloatingPointError
            If the loss is no finite number; the last good epoch is kept.
        RuntimeError
            If the embeddings have collapsed: all crops look the same to it.
        """
        from sthist.nets import MoCo
        from sthist.systems.cells.moco.training_module import (
            MoCoModule,
            MoCoTraining,
            as_source,
            channel_statistics,
            complaint,
        )
        from sthist.training.trainer import train

        options = as_training(MoCoTraining, training, {})
        source = as_source(crops, self.config.crop_spec.px)
        if options.batch_size > len(source):
            fewer = len(source) // options.devices * options.devices
            logger.info("There are %d crops, fewer than batch_size=%d: all are one.", len(source), options.batch_size)
            options = replace(options, batch_size=fewer)
        path = None if folder is None else Path(folder)
        measured = np.unique(np.linspace(0, len(source) - 1, N_MEASURED).astype(int))
        mean, std = channel_statistics(source, self.config.px, measured)
        fresh = type(self)(replace(self.config, mean=mean, std=std, training={}))
        modules: list[MoCoModule] = []

        def make() -> MoCoModule:
            net = MoCo(
                fresh.backbone(), hidden=fresh.config.hidden, dim=fresh.config.dim, temperature=options.temperature
            )
            modules.append(MoCoModule(net, source, options, fresh.config.px, Transform(mean, std)))
            return modules[-1]

        def keep(model: MoCoV3, history: list[dict[str, float]]) -> None:
            final = history[-1] if history else {}
            facts = _store.provenance("MoCoV3.fit", crops=len(source), options=options.to_dict(), final=final)
            model.config = replace(fresh.config, training=facts)
            state = modules[-1].kept().state_dict()
            model.weights = {name: value.detach().cpu().numpy().copy() for name, value in state.items()}
            model.history, model._running, model._dim = history, {}, None

        def save_model(place: Path, history: list[dict[str, float]]) -> None:
            so_far = copy.copy(fresh)
            keep(so_far, history)
            so_far.save(place)

        some = source.read(np.unique(np.linspace(0, len(source) - 1, N_HASHED).astype(int)))
        identity = {
            "system": self.system,
            "crops": [len(source), hashlib.blake2b(np.ascontiguousarray(some).tobytes(), digest_size=16).hexdigest()],
            **{f"config.{name}": value for name, value in asdict(replace(fresh.config, training={})).items()},
        }
        _, history = train(
            make,
            options,
            folder=path,
            identity=identity,
            device=device,
            progress=progress,
            complaint=complaint,
            save_model=save_model,
        )
        keep(self, history)
        if path is not None:
            self.save(path)
        return self

    def save(self, folder: str | Path) -> None:
        """Write ``config.json`` and ``model.safetensors``.

        Parameters
        ----------
        folder
            Where to; is made.
        """
        self._require_fitted()
        with written_whole(Path(folder) / WEIGHTS) as partial:
            write_weights(partial, self.weights)
            super().save(folder)  # they take their places together

    @classmethod
    def _from_folder(cls, folder: Path, config: dict[str, Any]) -> Self:
        weights, path = read_weights(folder), folder / WEIGHTS
        with reading(path):
            model = cls(cls.config_class(**config), weights)
            model._require_weights(path)
        model.history = read_history(folder)
        return model

    def _require_weights(self, path: Path) -> None:
        """Refuse weights that are not those of the backbone."""
        state = self.backbone().state_dict()
        wrong = [name for name in state if name not in self.weights or self.weights[name].shape != state[name].shape]
        more = sorted(set(self.weights) - set(state))
        if wrong or more:
            raise ValueError(
                f"{path}: the weights are not those of {self.config.backbone!r} of width {self.config.width:g} with a "
                f"{self.config.stem} stem, as config.json says, first at {(wrong or more)[0]!r}. Do both files belong "
                "together?"
            )

    def _require_fitted(self) -> None:
        if not self.is_fitted:
            raise ValueError(
                "This MoCoV3 was not trained yet: call fit, or tl.train_cell_encoder, or load one with models.load."
            )
