"""Hist2Cell: tiles of spots, of their neighbours and of their slide."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, ClassVar, Literal

import numpy as np

from sthist.regression.backbones import at_once
from sthist.regression.data.graph import Graph, WholeSlides, as_graph, neighbours_of_rows
from sthist.regression.data.inputs import Arrays
from sthist.regression.model import RegressionModel, placed
from sthist.regression.pooled import PooledConfig, PooledModel
from sthist.systems.composition.model import CompositionModel

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from torch import nn

    from sthist.regression.data.inputs import Batch, Inputs
    from sthist.regression.data.targets import Targets
    from sthist.training.rows import SampleRows


@dataclass(frozen=True)
class Hist2CellConfig(PooledConfig):
    """Settings of :class:`Hist2Cell`, beside those of :class:`sthist.models.PooledConfig`.

    Attributes
    ----------
    heads, head_width
        Number and size of attention heads.
    depth
        Blocks of the transformer, which sees all spots of a slide that are there.
    hidden
        Units of the layers that predict.
    dropout
        Share of the transformer's units that is left out in training.
    norm
        What the features of neighbourhoods are normalised by: ``"node"`` each by itself, the published ``"batch"`` by
        mean and deviation of all that is in the batch.
    attention
        Whether the transformer sees ``"slide"``, the spots of one slide, or the published ``"batch"``, those of all
        slides that the batch has spots of.
    loss
        Whether the error is that of all ``"nodes"`` of a batch that train, as published, or of its ``"centres"`` alone,
        without their neighbours.
    """

    backbone: str = "resnet18"
    heads: int = 8
    head_width: int = 32
    depth: int = 3
    hidden: int = 1024
    dropout: float = 0.3
    norm: Literal["node", "batch"] = "node"
    attention: Literal["slide", "batch"] = "slide"
    loss: Literal["nodes", "centres"] = "nodes"

    def __post_init__(self) -> None:
        super().__post_init__()
        choices = {"norm": ("node", "batch"), "attention": ("slide", "batch"), "loss": ("nodes", "centres")}
        for name, known in choices.items():
            if getattr(self, name) not in known:
                raise ValueError(f"{name} is {getattr(self, name)!r}; it is one of {list(known)}.")


class Hist2Cell(CompositionModel, PooledModel):
    """Hist2Cell (Zhao et al. 2024): a ResNet-18, graph attention to a spot's neighbours, a transformer over its slide.

    A batch is so many spots and all within two steps of them, each tile of which goes through the backbone once.
    Neighbours are next to each other on the array (``obs["array_row"]``, ``obs["array_col"]``), or on the lattice that
    the spots lie on. A slide is predicted as a whole, and as if there were no other. ``frozen=True`` keeps the backbone
    as it is and trains the rest on its features, in minutes without an accelerator.

    It is trained as published, but that tiles are turned and mirrored, and that spots which validate say when to stop.
    The published mixing of what is in a batch is ``Hist2CellConfig(norm="batch", attention="batch")``.

    Parameters
    ----------
    config
        Settings.
    weights
        Of a trained model.

    Examples
    --------
    >>> import numpy as np, sthist
    >>> tiles = np.random.default_rng(0).integers(0, 256, (9, 32, 32, 3), dtype=np.uint8)
    >>> places = 100 * np.stack(np.divmod(np.arange(9), 3), axis=1)  # in µm
    >>> config = sthist.models.Hist2CellConfig(backbone="test_resnet", pretrained=False)
    >>> model = sthist.models.Hist2Cell(config)
    >>> inputs = {"tiles": tiles, "places": places}
    >>> model = model.fit(inputs, tiles.mean((1, 2)) / 255, training={"epochs": 1})
    >>> model.predict(inputs).shape
    (9, 3)
    """

    system: ClassVar[str] = "hist2cell"
    config_class: ClassVar[type] = Hist2CellConfig
    config: Hist2CellConfig
    default_training: ClassVar[dict[str, Any]] = {
        "epochs": 20,
        "batch_size": 16,
        "lr": 1e-4,
        "lr_end": 1e-5,
        "weight_decay": 1e-4,
        "optimizer": "adam",
        "patience": 5,
    }

    def collect(
        self,
        rows: SampleRows,
        *,
        embedding: str | Sequence[str] | None = None,
        image: str | None = None,
        device: str | None = None,
        progress: bool | None = None,
    ) -> Inputs:
        """Readers of the tiles, or features of a frozen backbone, and who is whose neighbour."""
        around = neighbours_of_rows(rows)
        inputs = super().collect(rows, embedding=embedding, image=image, device=device, progress=progress)
        return Graph(inputs, around, rows.sample, only_centres=self._only_centres)

    @property
    def _only_centres(self) -> bool:
        return self.config.loss == "centres"

    def make_head(self, trunk: nn.Module | None, n_outputs: int, mean: Any) -> nn.Module:
        """The network on a trunk, or on stored features."""
        from sthist.nets import Hist2Cell as Network

        names = ("heads", "head_width", "depth", "hidden", "dropout", "norm", "attention")
        options: dict[str, Any] = {name: getattr(self.config, name) for name in names}
        return Network(trunk, self.config.n_features, n_outputs, mean=mean, **options)

    def _fit(
        self,
        inputs: Inputs,
        targets: Targets,
        rows: np.ndarray,
        watched: np.ndarray,
        options: Any,
        where: dict[str, Any],
    ) -> None:
        graph = as_graph(inputs, only_centres=self._only_centres)
        super()._fit(graph, targets, rows, watched, options, where)

    def encoded(
        self, inputs: Inputs, rows: np.ndarray, *, batch_size: int, device: str | None = None
    ) -> tuple[Inputs, dict[str, np.ndarray]]:
        """Features in place of tiles, of all regions of the slides that some are of."""
        graph = as_graph(inputs)
        if not len(rows) or self._knows_features(graph.take(rows[:1])):
            return graph, {}
        nodes = graph.whole_slides(rows)
        features = np.zeros((len(graph), self.config.n_features), np.float32)
        found = self.run(_features, graph, nodes, batch_size=at_once(batch_size, device), device=device)
        features[nodes] = placed(found, nodes)
        return replace(graph, inputs=Arrays({"spot": features})), {}

    def _knows_features(self, batch: Batch) -> bool:
        """Whether inputs are features of tiles; if they are not, they have to be tiles."""
        n = self.config.n_features
        found = batch["spot"].shape[1] if "spot" in batch else None
        if found not in (None, n) or (found is None and self.config.frozen):
            given = "tiles" if found is None else f"{found} features"
            raise ValueError(f"This Hist2Cell was trained on {n} features of each spot, 'spot'; these are {given}.")
        return found is not None

    def representation(self, inputs: Inputs, rows: np.ndarray, *, device: str | None = None) -> np.ndarray:
        """Features of the trunk, or those that are stored, (n, d) float32."""
        if len(rows) and self._knows_features(inputs.take(rows[:1])):
            return RegressionModel.representation(self, inputs, rows, device=device)
        return super().representation(inputs, rows, device=device)

    def _predict(
        self, inputs: Inputs, rows: np.ndarray, batch_size: int, device: str | None
    ) -> Iterator[tuple[np.ndarray, np.ndarray]]:
        """Slide by slide, of which tiles go through the backbone so many at a time."""
        known: Any = self.encoded(inputs, rows, batch_size=batch_size, device=device)[0]
        slides = WholeSlides(known.inputs, known.around, known.slide)
        for nodes, values in self.run(_prediction, slides, rows, batch_size=batch_size, device=device):
            wanted = np.isin(nodes, rows)
            yield nodes[wanted], values[wanted]


def _features(net: Any, batch: dict[str, Any]) -> Any:
    return net.features(batch)


def _prediction(net: Any, batch: dict[str, Any]) -> Any:
    return net(batch)
