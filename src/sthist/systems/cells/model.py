"""sCellST: expression of single cells, learned from spots that are the mean of their cells."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, ClassVar, Literal, Self, get_args

import numpy as np

from sthist._settings import logger
from sthist.regression.collect import EmbeddingModel
from sthist.regression.model import PREDICTED_AT_ONCE, NetworkModel, RegressionConfig, placed
from sthist.regression.trust.familiarity import MOST_REFERENCES
from sthist.systems.cells.bags import Bags, Embeddings, as_bags
from sthist.systems.cells.targets import CellTargets, as_cell_targets, log_of_counts
from sthist.tiles import TileSpec
from sthist.training.rows import stored_features

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence
    from pathlib import Path

    from torch import nn

    from sthist.regression.data.inputs import Inputs
    from sthist.regression.data.targets import Targets
    from sthist.training.rows import SampleRows

Loss = Literal["mse", "nb-mean", "nb-total"]

SCALE, LIBRARY = "scaler.scale", "library.median"
"""Among the weights: what each training slide's logarithms were divided by, and its median total."""

VALIDATION = 0.2
"""Part of the spots that says when to stop, as published."""


@dataclass(frozen=True)
class SCellSTConfig(RegressionConfig):
    """Settings of :class:`SCellST`.

    Attributes
    ----------
    standardize
        ``"training"``: embeddings are standardised by mean and standard deviation of the training cells; ``"sample"``:
        each slide by its own, which takes away how it was stained and scanned; ``"none"``: they are left, as published.
    loss
        ``"mse"``: squared error of log-normalised expression; ``"nb-mean"``, ``"nb-total"``: negative binomial of raw
        counts, by its mean or by its total count (:class:`sthist.nets.CellNetwork`).
    scaling
        ``"slide"``: logarithms of each gene are divided by the range from their least to their 95th percentile on the
        slide, so that all genes weigh much the same; ``"all"``: on all slides together; None leaves them. A gene
        that every spot has is nowhere 0, and divided slide by slide its level differs between slides: ``"all"`` or None
        is for such. Of the negative binomial it means nothing.
    filter_genes
        Train on genes of at least 200 counts that are seen in a tenth of the spots, without those called ``"MT-"``, and
        on spots of 20 counts; of cells, on genes that 5 have. Genes that are asked for by name stay in any case.
    widths
        Units of each hidden layer.
    dropout
        Part of them that is left out in training.
    limit
        Standard deviations from the mean beyond which a standardised feature does not go; None for no limit, as
        published. Of nuclei some have features 70 deviations off, such as the stain of a fold: one of them spoils its
        spot, and the error by which a training is stopped.
    dim
        Dimensions of the embeddings; found in training.
    """

    standardize: Literal["training", "sample", "none"] = "training"  # type: ignore[assignment]
    loss: Loss = "mse"
    scaling: Literal["slide", "all"] | None = "slide"
    filter_genes: bool = True
    widths: tuple[int, ...] = (256, 256, 256)
    dropout: float = 0.1
    limit: float | None = 5.0
    dim: int = 0

    STANDARDS: ClassVar[tuple[str, ...]] = ("training", "sample", "none")

    def __post_init__(self) -> None:
        super().__post_init__()
        object.__setattr__(self, "widths", tuple(self.widths))
        if self.loss not in get_args(Loss):
            raise ValueError(f"loss is {self.loss!r}; it is one of {list(get_args(Loss))}.")
        if self.scaling not in ("slide", "all", None):
            raise ValueError(f"scaling is {self.scaling!r}; it is 'slide', 'all' or None.")
        if not 0 <= self.dropout < 1:
            raise ValueError(f"dropout is {self.dropout!r}; it is a part, from 0 to less than 1.")
        if self.limit is not None and not self.limit > 0:
            raise ValueError(f"limit is {self.limit!r}; it is a number of standard deviations above 0, or None.")
        if self.context_um or self.smooth_um is not None:
            raise ValueError("SCellST looks at each cell by itself, and knows neither context_um nor smooth_um.")


class SCellST(EmbeddingModel, NetworkModel):
    """sCellST: a network from the embedding of a cell to its expression, trained on spots, which are means of cells.

    It is trained on embeddings of cells, such as those of nuclei on 12 µm of tissue, and on the expression of the spots
    that they lie in (:class:`Bags`); or, where each cell was measured, on these. It predicts every cell, also of slides
    of which there is no more than the H&E.

    Trained as published but for two things: embeddings are standardised and limited (``standardize="none"`` leaves
    them), and the last layer begins at the mean of each gene. Size factors of the negative binomial are totals over
    their median.

    Parameters
    ----------
    config
        Settings.
    weights
        Of a trained model.

    References
    ----------
    Chadoutaud et al. 2026, Nature Communications.

    Examples
    --------
    >>> import numpy as np, sthist
    >>> rng = np.random.default_rng(0)
    >>> cells, spot = rng.normal(size=(300, 4)), rng.integers(0, 60, 300)
    >>> bags = sthist.models.Bags(cells, spot, spots=60)
    >>> expression = rng.random((60, 2))
    >>> model = sthist.models.SCellST().fit(bags, expression, training={"epochs": 2, "patience": None})
    >>> model.predict(bags).shape, model.predict(cells).shape
    ((60, 2), (300, 2))
    """

    system: ClassVar[str] = "scellst"
    config_class: ClassVar[type] = SCellSTConfig
    config: SCellSTConfig
    output: ClassVar[str] = "gene"
    default_spec: ClassVar[TileSpec] = TileSpec(12.0, 48)
    default_training: ClassVar[dict[str, Any]] = {
        "epochs": 400,
        "batch_size": 128,
        "lr": 1e-4,
        "weight_decay": 1e-2,
        "optimizer": "adamw",
        "patience": 20,
    }

    def __init__(self, config: Any = None, weights: Any = None) -> None:
        super().__init__(config, weights)
        self._beside: dict[str, np.ndarray] = {}  # what is kept among the weights that is none of the network's

    @property
    def genes(self) -> tuple[str, ...]:
        """The genes that it predicts, in the order of the columns."""
        return tuple(self.config.outputs)

    def fit(
        self,
        inputs: Any,
        targets: Any,
        *,
        rows: np.ndarray | None = None,
        watched: np.ndarray | None = None,
        library: Any = None,
        training: Any = None,
        folder: str | Path | None = None,
        device: str | None = None,
        progress: bool | None = None,
    ) -> Self:
        """Train on arrays, or on what reads them.

        Parameters
        ----------
        inputs
            A :class:`Bags`, spots and the embeddings of their cells; or embeddings of cells (n, d), each of which has
            targets of its own.
        targets
            (n, genes) of spots, or of cells: an array, sparse or not, a data frame or an AnnData, whose columns name
            the genes. Log-normalised expression, or raw counts for the negative binomial.
        rows
            Numbers of the rows to train on; by default all that do not validate. Spots without cells are left out.
        watched
            Numbers of the rows whose loss says when to stop, if ``patience`` is set (as it is by default); by default a
            fifth of them, drawn by the seed.
        library
            (n,) total counts of each row, over more genes than the targets have; for the negative binomial.
        training
            A :class:`sthist.models.RegressionTraining`, or a mapping of its fields over the model's defaults.
        folder
            Where it keeps its history and, after each epoch, itself.
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
            If rows are missing, inputs and targets differ in number or are NaN, or the negative binomial is given what
            are no counts.
        """
        bags = self._prepared(inputs)
        wanted = as_cell_targets(targets, self.config.loss, self.config.scaling, library)
        options = self.options(training)
        given = watched is not None
        watched = np.empty(0, int) if watched is None else np.asarray(watched)
        rows = np.setdiff1d(np.arange(len(bags)), watched) if rows is None else np.asarray(rows)
        empty = int((bags.size[rows] == 0).sum() + (bags.size[watched] == 0).sum())
        if empty:
            logger.warning("%d of %d spots have no cells, and are left out.", empty, len(rows) + len(watched))
        rows, watched = rows[bags.size[rows] > 0], watched[bags.size[watched] > 0]
        if options.patience is not None and not given:
            drawn = np.random.default_rng(options.seed).permutation(len(rows))[: round(VALIDATION * len(rows))]
            rows, watched = np.delete(rows, drawn), rows[np.sort(drawn)]
        if not len(watched):
            options = replace(options, patience=None)
        return super().fit(
            bags,
            wanted,
            rows=rows,
            watched=watched,
            training=options,
            folder=folder,
            device=device,
            progress=progress,
        )

    def predict(self, inputs: Any, *, batch_size: int = PREDICTED_AT_ONCE, device: str | None = None) -> np.ndarray:
        """Predict all genes of each cell, or of each spot as the mean over its cells.

        Parameters
        ----------
        inputs
            Embeddings of cells (n, d), or a :class:`Bags`.
        batch_size
            Cells, or spots, at a time.
        device
            Of torch; ``settings.device`` by default.

        Returns
        -------
        (n, genes) float32, at least 0, in the units of the training: scaled logarithms (:meth:`to_log` makes logarithms
        of them), or mean counts at the median total. NaN for spots without cells.

        Raises
        ------
        ValueError
            If the model was not trained, or on embeddings of another length.
        """
        bags = self._prepared(inputs)
        rows = np.flatnonzero(bags.size)
        found = np.full((len(bags), len(self.config.outputs)), np.nan, np.float32)
        found[rows] = placed(self.predict_batches(bags, rows, batch_size=batch_size, device=device), rows)
        return found

    def predict_batches(
        self, inputs: Inputs, rows: np.ndarray, *, batch_size: int = PREDICTED_AT_ONCE, device: str | None = None
    ) -> Iterator[tuple[np.ndarray, np.ndarray]]:
        """Rows and what is predicted of them, batch after batch."""
        if self.is_fitted and inputs.features.dim != self.config.dim:  # type: ignore[attr-defined]
            raise ValueError(
                f"This SCellST was trained on embeddings of {self.config.dim} dimensions, and these have "
                f"{inputs.features.dim}. Are they of the same encoder?"  # type: ignore[attr-defined]
            )
        yield from super().predict_batches(inputs, rows, batch_size=batch_size, device=device)

    def to_log(self, values: np.ndarray) -> np.ndarray:
        """Predictions as logarithms of normalised expression, log(1 + 1e4 y / total).

        Of several training slides, each of which was scaled by itself, it is their mean scale that is taken back.

        Parameters
        ----------
        values
            (n, genes) of :meth:`predict`.

        Returns
        -------
        (n, genes) float32.
        """
        if LIBRARY in self.weights:
            return log_of_counts(values, float(np.exp(np.log(self.weights[LIBRARY]).mean())))
        if SCALE in self.weights:
            return np.asarray(values * self.weights[SCALE].mean(axis=0), np.float32)
        return np.asarray(values, np.float32)

    def collect(
        self,
        rows: SampleRows,
        *,
        embedding: str | Sequence[str] | None = None,
        image: str | None = None,
        device: str | None = None,
        progress: bool | None = None,
    ) -> Bags:
        """Embeddings of cells, each a bag of its own; made where there are none and the sample has an image."""
        self._settle_embeddings(rows, embedding, image, device, progress)
        found = [stored_features(rows, key) for key in self.config.embeddings]
        self._require_origins(tuple(origin for _, _, origin in found), rows)
        tables = tuple(zip(*(tables for tables, _, _ in found), strict=True))
        return self._prepared(Bags(Embeddings(tables, rows.sample, rows.row)))

    def _prepared(self, inputs: Any) -> Bags:
        """Bags whose embeddings are standardised by slide, where the settings ask for it."""
        bags = as_bags(inputs)
        own = self.config.standardize == "sample" and bags.features.standards is None
        return bags.standardised() if own else bags

    def settle(self, inputs: Inputs, targets: Targets, rows: np.ndarray) -> None:
        """The size of an embedding, and what standardises it."""
        assert isinstance(inputs, Bags)
        self.config = replace(self.config, dim=inputs.features.dim)
        if self.config.standardize == "training":
            self._standards = inputs.features.standards_of(inputs.cells_of(rows))

    def make_net(self, n_outputs: int, mean: np.ndarray, scale: np.ndarray) -> nn.Module:
        """The network, with embeddings limited before it, and standardised where the training's standards are taken."""
        import torch

        from sthist.nets import CellNetwork

        config = self.config
        net = CellNetwork(
            config.dim,
            n_outputs,
            widths=config.widths,
            dropout=config.dropout,
            loss=config.loss,
            mean=torch.from_numpy(mean),
        )
        limit = math.inf if config.limit is None else config.limit
        return net if config.standardize == "none" else self.standardized(net, config.dim, limit)

    def _fit(
        self,
        inputs: Inputs,
        targets: Targets,
        rows: np.ndarray,
        watched: np.ndarray,
        options: Any,
        where: dict[str, Any],
    ) -> None:
        assert isinstance(inputs, Bags)
        assert isinstance(targets, CellTargets)
        there = {SCALE: targets.scale, LIBRARY: targets.library}
        self._beside = {name: values for name, values in there.items() if values is not None}
        if targets.size_factor is not None:
            inputs = inputs.with_size_factors(targets.size_factor)
        super()._fit(inputs, targets, rows, watched, options, where)

    def _keep(self, net: nn.Module, history: list[dict[str, float]]) -> None:
        super()._keep(net, history)
        self.weights |= self._beside

    def representation(self, inputs: Inputs, rows: np.ndarray, *, device: str | None = None) -> np.ndarray:
        """Embeddings of cells, (n, d) float32, or of spots the mean over their cells."""
        assert isinstance(inputs, Bags)
        features = np.asarray(inputs.features.take(inputs.cells_of(rows)), np.float32)
        size = inputs.size[rows]
        if (size == 1).all():
            return features
        return np.add.reduceat(features, np.cumsum(size) - size, axis=0) / size[:, None]

    def references(
        self, inputs: Inputs, rows: np.ndarray, *, seed: int, device: str | None = None
    ) -> tuple[np.ndarray, np.ndarray]:
        """Embeddings of some cells of the rows, and in which of the rows each lies: it is cells that are predicted."""
        assert isinstance(inputs, Bags)
        cells, place = inputs.cells_of(rows), np.repeat(np.arange(len(rows)), inputs.size[rows])
        some = np.sort(np.random.default_rng([seed, len(cells)]).permutation(len(cells))[:MOST_REFERENCES])
        return np.asarray(inputs.features.take(cells[some]), np.float32), place[some]
