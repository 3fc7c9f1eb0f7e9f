"""Predictors of numbers from histology: what all of them share, and those that are networks."""

from __future__ import annotations

import copy
import hashlib
import math
from abc import abstractmethod
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, Literal, Self

import numpy as np

from sthist._disk import written_whole
from sthist._messages import several
from sthist._reading import reading
from sthist._settings import settings
from sthist.regression.data.inputs import as_inputs
from sthist.regression.data.targets import as_targets
from sthist.tiles._spec import TileSpec
from sthist.training.model import WEIGHTS, Model, read_weights, write_weights
from sthist.training.options import as_training

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence

    import pandas as pd
    from torch import nn

    from sthist.regression.data.inputs import Inputs
    from sthist.regression.data.targets import Targets
    from sthist.regression.module import RegressionTraining
    from sthist.training.rows import SampleRows

NET = "net."
"""Before the names of a network's weights."""

PREDICTED_AT_ONCE = 1024


@dataclass(frozen=True)
class RegressionConfig:
    """What a predictor is, but for its weights. Training fills in what is not set here.

    Attributes
    ----------
    outputs
        What it predicts, such as genes, in the order of the columns.
    embeddings
        Keys of the embeddings in ``obsm`` that it takes, one after the other; none for a model of tiles.
    encoders
        What made each of them: ``encoder``, ``sha256`` and ``spec``, where it is known.
    context_um
        Standard deviations, in µm, of Gaussian means of the embeddings around each region, which it takes beside the
        region's own.
    standardize
        ``"training"``: embeddings are standardised by mean and standard deviation of the training rows; ``"sample"``:
        each sample by its own, which takes away how it was stained and scanned, and also what it truly has more of.
    smooth_um
        Standard deviation, in µm, of a Gaussian mean over neighbouring regions of what was predicted; None for none.
    spec
        ``size_um`` and ``px`` of the tiles; None where they are not known.
    training
        How it was trained; plain values.
    report
        How well it does on what it was not trained on, by output; plain values.
    """

    outputs: tuple[str, ...] = ()
    embeddings: tuple[str, ...] = ()
    encoders: tuple[Any, ...] = ()
    context_um: tuple[float, ...] = ()
    standardize: Literal["training", "sample"] = "training"
    smooth_um: float | None = None
    spec: dict[str, Any] | None = None
    training: dict[str, Any] = field(default_factory=dict)
    report: dict[str, Any] = field(default_factory=dict)

    STANDARDS: ClassVar[tuple[str, ...]] = ("training", "sample")

    def __post_init__(self) -> None:
        for name in ("outputs", "embeddings", "encoders", "context_um"):
            value = getattr(self, name)
            object.__setattr__(self, name, (value,) if isinstance(value, str | int | float) else tuple(value))
        if self.standardize not in self.STANDARDS:
            raise ValueError(f"standardize is {self.standardize!r}; it is one of {list(self.STANDARDS)}.")
        for name, sizes in (("context_um", self.context_um), ("smooth_um", (self.smooth_um,))):
            if any(each is not None and not (np.isfinite(each) and each > 0) for each in sizes):
                raise ValueError(f"{name} is {getattr(self, name)!r}; sizes are positive, in µm.")
        if isinstance(self.spec, TileSpec):
            object.__setattr__(self, "spec", self.spec.to_dict())


class RegressionModel(Model):
    """Base of the predictors: ``fit`` and ``predict`` on arrays, ``save`` and ``load``.

    Attributes
    ----------
    weights
        Arrays by name.
    history
        Numbers of each epoch of its training.
    """

    config_class: ClassVar[type] = RegressionConfig
    config: Any
    beside: ClassVar[tuple[str, ...]] = ()
    """Keys in ``obsm`` of what :meth:`encoded` gives, with ``{}`` for the name of the prediction."""
    default_training: ClassVar[dict[str, Any]] = {}

    def __init__(self, config: Any = None, weights: Mapping[str, np.ndarray] | None = None) -> None:
        super().__init__(config)
        self.weights: dict[str, np.ndarray] = dict(weights or {})
        self.history: list[dict[str, float]] = []

    @property
    def adds_up(self) -> bool:
        """Whether what is predicted of two regions adds up to that of both."""
        return False

    @property
    def called(self) -> str:
        """What tables and figures call it."""
        return self.system

    @property
    def spec(self) -> TileSpec | None:
        """The tiles that it is for."""
        return None if self.config.spec is None else TileSpec(**self.config.spec)

    @property
    def looks_around(self) -> bool:
        """Whether it takes more of a region than its own tile, such as its neighbours or its place."""
        return bool(self.config.context_um)

    @property
    def scores(self) -> pd.DataFrame:
        """How well each output was predicted where it was held out, a row per output."""
        import pandas as pd

        columns = {name: values for name, values in self.config.report.items() if isinstance(values, list)}
        return pd.DataFrame(columns, index=pd.Index(self.config.outputs, dtype=object)).astype(
            {name: float for name, values in columns.items() if any(value is None for value in values)}
        )

    @property
    def sha256(self) -> str:
        """Checksum of the weights."""
        content = hashlib.sha256()
        for name in sorted(self.weights):
            content.update(name.encode() + np.ascontiguousarray(self.weights[name]).tobytes())
        return content.hexdigest()

    @property
    def is_fitted(self) -> bool:
        """Whether it has been trained."""
        return bool(self.config.outputs) and bool(self.weights)

    def fit(
        self,
        inputs: Any,
        targets: Any,
        *,
        rows: np.ndarray | None = None,
        watched: np.ndarray | None = None,
        training: Any = None,
        folder: str | Path | None = None,
        device: str | None = None,
        progress: bool | None = None,
    ) -> Self:
        """Train on arrays, or on what reads them.

        Parameters
        ----------
        inputs
            Embeddings (n, d), tiles (n, px, px, 3) of uint8, or a mapping of name to array, as the model takes them.
        targets
            (n, outputs), dense, sparse or a data frame, whose columns name the outputs.
        rows
            Numbers of the rows to train on; by default all that do not validate.
        watched
            Numbers of the rows whose loss says when to stop, if ``patience`` is set.
        training
            A :class:`sthist.models.RegressionTraining`, or a mapping of its fields over the model's defaults.
        folder
            Where a network keeps its history and, after each epoch, itself.
        device
            Of torch; ``settings.device`` by default.
        progress
            Show a bar; ``settings.progress`` by default.

        Returns
        -------
        The model itself.

        Raises
        ------
        ValueError
            If rows are missing, or inputs and targets differ in number, are NaN, or are of another kind than it takes.
        """
        found, wanted = as_inputs(inputs), as_targets(targets)
        if len(found) != len(wanted):
            raise ValueError(f"There are {len(found)} rows of inputs and {len(wanted)} of targets.")
        watched = np.empty(0, int) if watched is None else np.asarray(watched)
        rows = np.setdiff1d(np.arange(len(found)), watched) if rows is None else np.asarray(rows)
        if len(rows) < 2:
            raise ValueError(f"There are {len(rows)} rows to train on; at least 2 are needed.")
        self.config = replace(self.config, outputs=wanted.names)
        options = self.options(training)
        where = {"folder": None if folder is None else Path(folder), "device": device, "progress": progress}
        self._fit(found, wanted, rows, watched, options, where)
        return self

    def options(self, training: Any) -> RegressionTraining:
        """How it is trained: what is given, over its defaults."""
        from sthist.regression.module import RegressionTraining

        return as_training(RegressionTraining, training, self.default_training)

    def predict(self, inputs: Any, *, batch_size: int = PREDICTED_AT_ONCE, device: str | None = None) -> np.ndarray:
        """Predict all outputs of each row.

        Parameters
        ----------
        inputs
            As of :meth:`fit`.
        batch_size
            Rows at a time.
        device
            Of torch; ``settings.device`` by default.

        Returns
        -------
        (n, outputs) float32.

        Raises
        ------
        ValueError
            If the model was not trained, or takes other inputs.
        """
        found = as_inputs(inputs)
        rows = np.arange(len(found))
        return placed(self.predict_batches(found, rows, batch_size=batch_size, device=device), rows)

    def predict_batches(
        self, inputs: Inputs, rows: np.ndarray, *, batch_size: int = PREDICTED_AT_ONCE, device: str | None = None
    ) -> Iterator[tuple[np.ndarray, np.ndarray]]:
        """Rows and what is predicted of them, batch after batch, in the order in which they are read."""
        if not self.is_fitted:
            raise ValueError(f"This {type(self).__name__} was not trained yet: call fit, or a verb that trains it.")
        yield from self._predict(inputs, rows, batch_size, device)

    output: ClassVar[str] = "output"
    """What it predicts one or several of."""

    def _about(self) -> list[str]:
        """Outputs, tiles and embeddings; of how many regions it has learned; how well."""
        config = self.config
        what = several(len(config.outputs), self.output) if config.outputs else f"no {self.output}s yet"
        tiles = "" if self.spec is None else f", tiles of {self.spec.text}"
        taken = f", from {' and '.join(config.embeddings)}" if config.embeddings else ""
        return [f"{what}{tiles}{taken}", self._trained_on(), *self._how_well()]

    def _trained_on(self) -> str:
        if not self.is_fitted:
            return "not trained"
        rows, samples = self.config.training.get("n_rows"), self.config.training.get("samples")
        if rows is None or samples is None:
            return "trained on arrays"
        return f"trained on {several(rows, 'region')} of {several(len(samples), 'sample')}"

    def _how_well(self) -> list[str]:
        pearson, trusted = (self.config.report.get(name) for name in ("pearson", "trusted"))
        if not self.is_fitted or not pearson or not trusted:
            return []
        known = [each for each in pearson if each is not None and np.isfinite(each)]
        median = f", median Pearson {np.median(known):.2f} where held out" if known else ""
        return [f"{sum(map(bool, trusted))} of {len(trusted)} trusted{median}"]

    def unfitted(self) -> Self:
        """A copy of the same settings that was not trained."""
        return type(self)(replace(self.config, training={}, report={}))

    def representation(self, inputs: Inputs, rows: np.ndarray, *, device: str | None = None) -> np.ndarray:
        """Features that say how alike regions are, (n, d) float32: the embeddings, by default."""
        return placed(((part, batch["spot"]) for part, batch in inputs.in_order(rows, PREDICTED_AT_ONCE)), rows)

    def references(
        self, inputs: Inputs, rows: np.ndarray, *, seed: int, device: str | None = None
    ) -> tuple[np.ndarray, np.ndarray]:
        """Features of the training that others are compared with, (m, d), and which of the rows each belongs to."""
        return self.representation(inputs, rows, device=device), np.arange(len(rows))

    def amounts(self, inputs: Inputs, rows: np.ndarray) -> np.ndarray | None:
        """How many of the training's regions rows are as large as, (n,), of a model whose predictions add up."""
        return None

    def encoded(
        self, inputs: Inputs, rows: np.ndarray, *, batch_size: int, device: str | None = None
    ) -> tuple[Inputs, dict[str, np.ndarray]]:
        """Inputs that are quicker to predict from than to read again, and what goes to ``obsm``; as they are."""
        return inputs, {}

    @abstractmethod
    def collect(
        self,
        rows: SampleRows,
        *,
        embedding: str | Sequence[str] | None = None,
        image: str | None = None,
        device: str | None = None,
        progress: bool | None = None,
    ) -> Inputs:
        """What it takes of rows of samples. The first call settles what is to be the same ever after."""

    @abstractmethod
    def _fit(
        self,
        inputs: Inputs,
        targets: Targets,
        rows: np.ndarray,
        watched: np.ndarray,
        options: RegressionTraining,
        where: dict[str, Any],
    ) -> None:
        """Train, and keep weights and history."""

    @abstractmethod
    def _predict(
        self, inputs: Inputs, rows: np.ndarray, batch_size: int, device: str | None
    ) -> Iterator[tuple[np.ndarray, np.ndarray]]:
        """Rows and their predictions."""

    def save(self, folder: str | Path) -> None:
        """Write ``config.json`` and ``model.safetensors``.

        Parameters
        ----------
        folder
            Where to; is made.
        """
        with written_whole(Path(folder) / WEIGHTS) as partial:
            write_weights(partial, self.weights)
            super().save(folder)  # they take their places together

    @classmethod
    def _from_folder(cls, folder: Path, config: dict[str, Any]) -> Self:
        weights = read_weights(folder)
        with reading(folder / WEIGHTS):
            model = cls(cls.config_class(**config), weights)
            model._require_weights()
        return model

    def _require_weights(self) -> None:
        """Refuse weights that do not fit the config."""


class NetworkModel(RegressionModel):
    """A predictor that is a network of torch, trained by the engine.

    A subclass gives the network (:meth:`make_net`), and, for tiles, how they are normalised (``transform``).
    """

    _net: nn.Module | None = None
    _standards: tuple[np.ndarray, np.ndarray] | None = None  # of embeddings of the training rows

    @abstractmethod
    def make_net(self, n_outputs: int, mean: np.ndarray, scale: np.ndarray) -> nn.Module:
        """A network of new weights, by the number of outputs, their means and standard deviations."""

    def standardized(self, net: nn.Module, dim: int, limit: float = math.inf) -> nn.Module:
        """A network with embeddings of so many dimensions standardised before it, as those of the training rows."""
        import torch

        from sthist.nets import Standardized

        mean, deviation = self._standards or (np.zeros(dim, np.float32), np.ones(dim, np.float32))
        return Standardized(net, torch.from_numpy(mean), torch.from_numpy(deviation), limit)

    def transform(self, tiles: Any) -> Any:
        """Tiles (n, px, px, 3) of uint8 as the network takes them."""
        return tiles

    def augment(self, batch: dict[str, Any], rows: np.ndarray, seed: int, epoch: int) -> dict[str, Any]:
        """A batch that trains, changed as a function of rows, seed and epoch; tiles are turned and mirrored before."""
        return batch

    def settle(self, inputs: Inputs, targets: Targets, rows: np.ndarray) -> None:
        """What has to be known of the training rows before there can be a network, such as the size of an embedding."""

    def after_training(self, inputs: Inputs, targets: Targets, rows: np.ndarray, device: str) -> None:
        """What is to be kept of the training rows, such as the keys of a retrieval."""

    @property
    def net(self) -> nn.Module:
        """The trained network, in evaluation mode."""
        if self._net is None:
            import torch

            n = len(self.config.outputs)
            with torch.random.fork_rng(devices=[]):
                net = self.make_net(n, np.zeros(n, np.float32), np.ones(n, np.float32))
            state = {
                name.removeprefix(NET): torch.from_numpy(np.array(value))
                for name, value in self.weights.items()
                if name.startswith(NET)
            }
            try:
                net.load_state_dict(state)
            except RuntimeError as error:
                raise ValueError(f"The weights are of another network than the config says: {error!s:.300}") from None
            self._net = net.eval()
        return self._net

    def _fit(
        self,
        inputs: Inputs,
        targets: Targets,
        rows: np.ndarray,
        watched: np.ndarray,
        options: RegressionTraining,
        where: dict[str, Any],
    ) -> None:
        from sthist.regression.module import Feed, RegressionModule
        from sthist.training.trainer import train

        self.settle(inputs, targets, rows)
        mean, scale = targets.statistics(rows)
        feed = Feed(inputs, targets, rows, watched, self.transform, self.augment)
        px = (
            self.spec.px if self.spec is not None and "tiles" in inputs.take(rows[:1]) else None
        )  # embeddings have none

        def make() -> RegressionModule:
            return RegressionModule(self.make_net(len(targets.names), mean, scale), feed, options, px)

        def save(folder: Path, history: list[dict[str, float]]) -> None:
            partly = copy.copy(self)
            partly._keep(module_of[-1].kept(), history)
            partly.save(folder)

        module_of: list[Any] = []

        def made() -> RegressionModule:
            module_of.append(make())
            return module_of[-1]  # type: ignore[no-any-return]

        content = hashlib.blake2b(targets.dense(rows[:64]).tobytes() + rows.tobytes(), digest_size=8).hexdigest()
        identity = {"system": self.system, "outputs": len(targets.names), "rows": content}
        module, history = train(made, options, identity=identity, save_model=save, **where)
        self._keep(module.kept(), history)
        self.after_training(inputs, targets, rows, settings.torch_device(where["device"]))

    def _keep(self, net: nn.Module, history: list[dict[str, float]]) -> None:
        """Take over the weights of a network."""
        self._net, self.history = net, list(history)
        self.weights = {NET + name: value.detach().cpu().numpy().copy() for name, value in net.state_dict().items()}

    def _predict(
        self, inputs: Inputs, rows: np.ndarray, batch_size: int, device: str | None
    ) -> Iterator[tuple[np.ndarray, np.ndarray]]:
        yield from self.run(lambda net, batch: net(batch), inputs, rows, batch_size=batch_size, device=device)

    def run(
        self, function: Any, inputs: Inputs, rows: np.ndarray, *, batch_size: int, device: str | None
    ) -> Iterator[tuple[np.ndarray, np.ndarray]]:
        """Rows and what a function of network and batch gives for them, (n, ...) float32."""
        import torch

        from sthist.regression.module import on_device

        where = torch.device(settings.torch_device(device))
        net = self.net.to(where).eval()
        try:
            with torch.inference_mode():
                for part, batch in inputs.in_order(rows, batch_size):
                    arrays = {name: torch.from_numpy(np.ascontiguousarray(each)) for name, each in batch.items()}
                    yield part, function(net, on_device(arrays, where, self.transform)).float().cpu().numpy()
        finally:
            net.cpu()

    def _require_weights(self) -> None:
        _ = self.net


def placed(batches: Iterator[tuple[np.ndarray, np.ndarray]], rows: np.ndarray) -> np.ndarray:
    """Batches of rows, in whatever order they come, as one array in the order of the rows."""
    order = np.argsort(rows, kind="stable")
    values: np.ndarray | None = None
    for part, found in batches:
        if values is None:
            values = np.empty((len(rows), *found.shape[1:]), np.float32)
        values[order[np.searchsorted(rows[order], part)]] = found
    return np.empty((0, 0), np.float32) if values is None else values


def plain_config(model: RegressionModel) -> dict[str, Any]:
    """The settings of a model as plain values, without its outputs, training and report."""
    kept = asdict(model.config)
    return {name: value for name, value in kept.items() if name not in ("outputs", "training", "report")}
