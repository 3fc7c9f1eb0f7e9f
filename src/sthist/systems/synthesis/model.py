"""C2L-ST: a diffusion model of histology tiles, and what makes it listen to the expression of a few spots."""

from __future__ import annotations

import hashlib
from contextlib import ExitStack
from dataclasses import asdict, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, Self

import numpy as np

from sthist import _store, _weights
from sthist._disk import written_whole
from sthist._messages import several
from sthist._reading import reading
from sthist._settings import logger
from sthist.systems.synthesis.adapter import ADAPTER, C2LAdapter, fill, median_total, require_logarithms
from sthist.systems.synthesis.config import CENTRAL, LOCAL, C2LAdapterConfig, C2LConfig, DiffusionTraining, shape_of
from sthist.systems.synthesis.sampler import Sampler
from sthist.training.model import WEIGHTS, Model, read_weights, write_weights
from sthist.training.options import as_training
from sthist.training.run_folder import read_history, read_tiles, write_tiles

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

    import pandas as pd
    from torch import nn

    from sthist.nets import DiffusionUNet
    from sthist.systems.synthesis.training_module import DiffusionModule

N_HASHED = 64
"""Rows of an array by which a training knows it again."""

CONSTANT = 1e-6
"""Standard deviation up to which a gene is the same in all spots."""


class C2L(Model):
    """A diffusion model of histology tiles that is trained once, and adapted to the expression of a few spots.

    The central model has seen H&E alone. The adapter, of about a million parameters, is trained on tiles and expression
    of one site while the central model stays as it is, and is a file of its own; it holds the names of the genes, and
    mean and standard deviation of each over the spots, and what all of them sum up to.
    :func:`sthist.tl.train_central` and :func:`sthist.tl.adapt_local` train them, :func:`sthist.tl.synthesize` makes
    tiles of a sample's expression.

    Parameters
    ----------
    config
        What the central model is.
    weights
        Arrays of the U-Net by name.
    adapter
        What makes it listen to expression; None for the central model alone.

    Attributes
    ----------
    history
        Figures of each epoch of its last training: ``loss``.
    spots
        Spots that it was adapted to, a frame of ``sample`` and ``instance_id``, that lies beside the weights in a
        folder, not in the adapter; None where that is not known.

    References
    ----------
    C2L-ST: central-to-local adaptation of a diffusion model; the U-Net is that of denoising-diffusion-pytorch 2.3.

    Examples
    --------
    >>> import numpy as np, sthist
    >>> tiles = np.random.default_rng(0).integers(0, 256, (8, 16, 16, 3), np.uint8)
    >>> quick = {"epochs": 1, "steps_per_epoch": 2, "batch_size": 4}
    >>> central = sthist.models.C2L(sthist.models.C2LConfig(px=16, dim=8, multipliers=(1, 2)))
    >>> central = central.fit(tiles, training=quick, device="cpu", progress=False)
    >>> expression = np.random.default_rng(1).random((8, 3))
    >>> local = central.adapt(tiles, expression, ["A", "B", "C"], training=quick, device="cpu", progress=False)
    >>> local.generate(expression[:2], steps=2, device="cpu").shape
    (2, 16, 16, 3)
    """

    system: ClassVar[str] = "c2l"
    config_class: ClassVar[type] = C2LConfig
    config: C2LConfig

    def __init__(
        self,
        config: C2LConfig | None = None,
        weights: Mapping[str, Any] | None = None,
        adapter: C2LAdapter | None = None,
    ) -> None:
        super().__init__(config)
        self.weights = {name: np.asarray(value) for name, value in (weights or {}).items()}
        self.adapter = adapter
        self.history: list[dict[str, float]] = []
        self.spots: pd.DataFrame | None = None
        self._sha256: str | None = None

    def _about(self) -> list[str]:
        """Tiles and network; of how many tiles it has learned; what its adapter listens to."""
        tiles = self.config.training.get("tiles")
        trained = (
            "not trained"
            if not self.is_fitted
            else "trained"
            if tiles is None
            else (f"trained on {several(tiles, 'tile')}")
        )
        adapter = "no adapter" if self.adapter is None else f"with a {self.adapter!r}"
        return [f"tiles of {self.config.spec.text}", trained, adapter]

    @property
    def is_fitted(self) -> bool:
        """Whether the central model was trained."""
        return bool(self.weights)

    @property
    def central(self) -> C2L:
        """The model without its adapter."""
        return type(self)(self.config, self.weights)

    @property
    def sha256(self) -> str:
        """Checksum of the weights of the central model."""
        if self._sha256 is None:
            self._sha256 = _weights.sha256_of(self.unet())
        return self._sha256

    def unet(self) -> DiffusionUNet:
        """The U-Net of the central model, on the CPU.

        Raises
        ------
        ValueError
            If it was not trained.
        """
        if not self.is_fitted:
            raise ValueError("This C2L was not trained: tl.train_central does it.")
        unet = _fresh_unet(self.config)
        fill(unet, self.weights, "The central model")
        return unet.eval()

    def with_adapter(self, adapter: C2LAdapter | str | Path | None) -> C2L:
        """The central model with an adapter.

        Parameters
        ----------
        adapter
            Or the path of its file; None for the central model alone.

        Raises
        ------
        ValueError
            If it belongs to another central model.
        """
        if isinstance(adapter, str | Path):
            adapter = C2LAdapter.load(adapter)
        if adapter is not None and adapter.config.central != self.sha256:
            raise ValueError(
                f"The adapter belongs to a central model with checksum {adapter.config.central[:12]}…, and this one "
                f"has {self.sha256[:12]}…: load that one, or adapt this one with tl.adapt_local."
            )
        other = type(self)(self.config, self.weights, adapter)
        other._sha256 = self._sha256
        return other

    def fit(
        self,
        tiles: np.ndarray,
        *,
        folder: str | Path | None = None,
        training: DiffusionTraining | Mapping[str, Any] | None = None,
        device: str | None = None,
        progress: bool | None = None,
    ) -> Self:
        """Train the central model; weights that it has are trained on.

        Parameters
        ----------
        tiles
            (n, px, px, 3) uint8 in memory or mapped from a file, cut as ``config.spec`` says.
        folder
            Where, after each epoch, a checkpoint, the model so far and ``metrics.csv`` are written, to go on from with
            ``training={"resume": True}``; and the model at the end.
        training
            How, or a mapping of fields over the defaults of the model's shape.
        device
            Of torch; ``settings.device`` by default.
        progress
            Show a bar; ``settings.progress`` by default.

        Returns
        -------
        The model, trained, without an adapter. On a CPU the same seed gives the same weights, also when it was resumed.

        Raises
        ------
        ValueError
            If tiles are of another size or none, or the checkpoint is of another training.
        FileExistsError
            If there is a checkpoint, and ``resume`` is not set.
        FloatingPointError
            If the loss is no finite number; the last good epoch is kept.
        """
        from sthist.systems.synthesis.training_module import DiffusionModule

        options = as_training(DiffusionTraining, training, CENTRAL[shape_of(self.config)])
        self._require_tiles(tiles)
        began = self.sha256 if self.is_fitted else None

        def make() -> DiffusionModule:
            unet = self.unet() if self.is_fitted else _fresh_unet(self.config)
            return DiffusionModule(unet.train(), tiles, options)

        def trained(module: DiffusionModule, history: list[dict[str, float]]) -> C2L:
            facts = self._facts("C2L.fit", len(tiles), options, history)
            before = {"before": self.config.training} if self.config.training else {}
            model = type(self)(replace(self.config, training=facts | before), _arrays(module.kept()))
            model.history = history
            return model

        identity = {"began": began, "tiles": _fingerprint(tiles), **self._shape()}
        model = _train(make, trained, options, identity, folder, device, progress)
        self.config, self.weights, self.history = model.config, model.weights, model.history
        self.adapter = self.spots = self._sha256 = None
        return self

    def adapt(
        self,
        tiles: np.ndarray,
        expression: np.ndarray,
        genes: Sequence[str],
        *,
        described: str = "log-normalised expression",
        latent: int = 128,
        where: str = "all",
        spots: pd.DataFrame | None = None,
        folder: str | Path | None = None,
        training: DiffusionTraining | Mapping[str, Any] | None = None,
        device: str | None = None,
        progress: bool | None = None,
    ) -> C2L:
        """Train an adapter on tiles and their expression; the central model stays as it is.

        Parameters
        ----------
        tiles
            (n, px, px, 3) uint8, cut as ``config.spec`` says.
        expression
            (n, genes), log-normalised.
        genes
            Their names.
        described
            What was normalised, and how: a model that is given expression that says otherwise refuses it.
        latent
            Numbers that expression is projected to.
        where
            The blocks that are modulated: ``"all"``, or ``"mid+up"``.
        spots
            What the rows are, a frame of ``sample`` and ``instance_id``, which the model keeps.
        folder, training, device, progress
            As of :meth:`fit`.

        Returns
        -------
        A model of the same central weights, with the adapter.

        Raises
        ------
        ValueError
            If there are other numbers of tiles, rows and genes than of each other; if expression looks like counts, is
            negative or not finite; if the model was not trained.
        """
        from sthist.nets import GeneAdapter
        from sthist.systems.synthesis.training_module import DiffusionModule

        options = as_training(DiffusionTraining, training, LOCAL[shape_of(self.config)])
        self._require_tiles(tiles)
        expression = require_logarithms(expression, len(genes))
        if len(expression) != len(tiles):
            raise ValueError(f"There are {len(tiles)} tiles and {len(expression)} rows of expression.")
        mean, std = expression.mean(0, np.float64), expression.std(0, dtype=np.float64)
        constant = std <= CONSTANT
        if constant.all():
            raise ValueError(
                f"All {len(genes)} genes are the same in all {len(tiles)} spots: nothing tells them apart."
            )
        if len(tiles) < options.batch_size:
            logger.info(
                "%d tiles are fewer than batch_size=%d: a batch has them more than once, each time with other noise.",
                len(tiles),
                options.batch_size,
            )
        config = C2LAdapterConfig(
            genes=tuple(map(str, genes)),
            mean=tuple(mean.tolist()),
            std=tuple(np.where(constant, 1.0, std).tolist()),
            total=median_total(expression),
            expression=described,
            latent=latent,
            where=where,  # type: ignore[arg-type]
            central=self.sha256,
        )
        conditions = C2LAdapter(config, {}).standardized(expression)
        unet = self.unet()

        def make() -> DiffusionModule:
            adapter = GeneAdapter(len(genes), unet.sites, latent, where)
            return DiffusionModule(unet, tiles, options, adapter, conditions)

        def trained(module: DiffusionModule, history: list[dict[str, float]]) -> C2L:
            facts = self._facts("C2L.adapt", len(tiles), options, history)
            model = self.with_adapter(C2LAdapter(replace(config, training=facts), _arrays(module.kept())))
            model.history, model.spots = history, spots
            return model

        identity = {
            "adapter": {name: each for name, each in asdict(config).items() if name != "training"},
            "tiles": _fingerprint(tiles),
            "expression": _fingerprint(conditions),
            **self._shape(),
        }
        model = _train(make, trained, options, identity, folder, device, progress)
        if _weights.sha256_of(unet) != config.central:
            raise RuntimeError("The central model has changed while its adapter was trained. Please report this.")
        return model

    def generate(
        self,
        expression: np.ndarray | int,
        *,
        guidance: float = 3.0,
        steps: int = 250,
        seed: int | None = None,
        numbers: Sequence[int] | np.ndarray | None = None,
        batch_size: int = 32,
        device: str | None = None,
        precision: str = "auto",
        compile: bool = False,
    ) -> np.ndarray:
        """Make tiles.

        Parameters
        ----------
        expression
            (n, genes), log-normalised as that of the adaptation, in the order of ``adapter.config.genes``; NaN where a
            gene was not measured, for which its mean is taken. Or a number of tiles that the central model makes.
        guidance
            How much of what expression changes is put on: 0 for the central model, 1 for what was learned, more to
            overstate it.
        steps
            Of DDIM, from 1 to 1000.
        seed
            ``settings.seed`` by default.
        numbers
            Numbers of the tiles, from 0 in turn by default: seed and number say the noise that a tile is made of,
            whatever others are made with it.
        batch_size
            Tiles at a time.
        device
            Of torch; ``settings.device`` by default.
        precision
            ``"auto"`` (bf16 on cuda devices that have it, float32 elsewhere), ``"float32"`` or ``"bf16"``.
        compile
            Compile the U-Net, which takes a minute and is faster after it.

        Returns
        -------
        (n, px, px, 3) uint8.

        Raises
        ------
        ValueError
            If guidance is negative, there is no adapter to listen to expression, or expression looks like counts.
        """
        make = self.sampler(guidance, steps, seed=seed, device=device, precision=precision, compile=compile)
        if isinstance(expression, int | np.integer):
            conditions, n = None, int(expression)
        else:
            conditions = self.conditions(expression)
            n = len(conditions)
        places = np.arange(n) if numbers is None else np.asarray(numbers)
        if len(places) != n:
            raise ValueError(f"There are {len(places)} numbers of {n} tiles.")
        out = np.empty((n, self.config.px, self.config.px, 3), np.uint8)
        for start in range(0, n, batch_size):
            part = slice(start, start + batch_size)
            out[part] = make(None if conditions is None else conditions[part], places[part])
        return out

    def conditions(self, expression: np.ndarray) -> np.ndarray:
        """Expression as the adapter takes it: standardised, after its checks.

        Parameters
        ----------
        expression
            As of :meth:`generate`.
        """
        if self.adapter is None:
            raise ValueError("This is a central model, which knows no genes: adapt it with tl.adapt_local.")
        return self.adapter.standardized(require_logarithms(expression, len(self.adapter.config.genes), may_lack=True))

    def sampler(
        self,
        guidance: float,
        steps: int,
        *,
        seed: int | None = None,
        device: str | None = None,
        precision: str = "auto",
        compile: bool = False,
    ) -> Sampler:
        """What makes tiles of conditions, with the networks on a device; arguments are those of :meth:`generate`.

        Parameters
        ----------
        guidance, steps, seed, device, precision, compile
            As of :meth:`generate`.
        """
        unet = self.unet()
        adapter = None if self.adapter is None else self.adapter.module(unet.sites)
        return Sampler(unet, adapter, self.config.px, guidance, steps, seed, device, precision, compile)

    def save(self, folder: str | Path) -> None:
        """Write ``config.json``, ``model.safetensors`` and, if there is an adapter, ``adapter.safetensors``.

        Parameters
        ----------
        folder
            Where to; is made. ``tiles.csv`` says which spots the adapter was trained on.
        """
        self.unet()  # whether there is something to save
        folder = Path(folder)
        with ExitStack() as together:  # they take their places when all are whole
            write_weights(together.enter_context(written_whole(folder / WEIGHTS)), self.weights)
            if self.adapter is not None:
                self.adapter._write(together.enter_context(written_whole(folder / ADAPTER)))
            if self.spots is not None:
                write_tiles(folder, self.spots)
            super().save(folder)
            if self.adapter is None:
                (folder / ADAPTER).unlink(missing_ok=True)

    @classmethod
    def _from_folder(cls, folder: Path, config: dict[str, Any]) -> Self:
        model = cls(cls.config_class(**config), read_weights(folder))
        with reading(folder / WEIGHTS):
            model.unet()
        if (folder / ADAPTER).exists():
            adapter = C2LAdapter.load(folder / ADAPTER)
            with reading(folder / ADAPTER):
                model = model.with_adapter(adapter)  # type: ignore[assignment]
                adapter.module(_fresh_unet(model.config).sites)
            model.spots = read_tiles(folder)
        model.history = read_history(folder)
        return model

    def _require_tiles(self, tiles: np.ndarray) -> None:
        px = self.config.px
        if tiles.dtype != np.uint8 or tiles.shape[1:] != (px, px, 3) or len(tiles) == 0:
            raise ValueError(
                f"Tiles are {tiles.dtype} of shape {tiles.shape}; this model takes uint8 of shape (n, {px}, {px}, 3), "
                f"of {self.config.size_um:g} µm."
            )

    def _shape(self) -> dict[str, Any]:
        """The config, but for its history, for the identity of a training."""
        facts = asdict(replace(self.config, training={}))
        return {"system": self.system, **{f"config.{name}": value for name, value in facts.items()}}

    def _facts(self, call: str, n: int, options: DiffusionTraining, history: list[dict[str, float]]) -> dict[str, Any]:
        return _store.provenance(call, tiles=n, options=options.to_dict(), final=history[-1] if history else {})


def _fresh_unet(config: C2LConfig) -> DiffusionUNet:
    from sthist.nets import DiffusionUNet

    return DiffusionUNet(config.dim, config.multipliers)


def _arrays(module: nn.Module) -> dict[str, np.ndarray]:
    return {name: value.detach().cpu().numpy().copy() for name, value in module.state_dict().items()}


def _fingerprint(values: np.ndarray) -> list[Any]:
    """By what a training knows an array again: its shape, and some of its rows."""
    some = values[np.unique(np.linspace(0, len(values) - 1, N_HASHED).astype(int))]
    return [list(values.shape), hashlib.blake2b(np.ascontiguousarray(some).tobytes(), digest_size=16).hexdigest()]


def _train(
    make: Callable[[], DiffusionModule],
    trained: Callable[[DiffusionModule, list[dict[str, float]]], C2L],
    options: DiffusionTraining,
    identity: dict[str, Any],
    folder: str | Path | None,
    device: str | None,
    progress: bool | None,
) -> C2L:
    """Train a module, and give the model that is made of it, which also lies in the folder."""
    from sthist.training.trainer import train

    path = None if folder is None else Path(folder)
    modules: list[DiffusionModule] = []

    def made() -> DiffusionModule:
        modules.append(make())
        return modules[-1]

    _, history = train(
        made,
        options,
        folder=path,
        identity=identity,
        device=device,
        progress=progress,
        save_model=lambda place, history: trained(modules[-1], history).save(place),
    )
    model = trained(modules[-1], history)
    if path is not None:
        model.save(path)
    return model
