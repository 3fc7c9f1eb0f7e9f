"""mclSTExp: tiles, and expression at its place among other spots, in one space, where expression is looked up."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np

from sthist.regression.data.inputs import Tissue
from sthist.regression.data.lattice import array_or_lattice
from sthist.systems.expression.retrieval import RetrievalConfig, RetrievalModel

if TYPE_CHECKING:
    from torch import nn

    from sthist.regression.data.inputs import Inputs
    from sthist.regression.data.targets import Targets
    from sthist.training.rows import SampleRows


@dataclass(frozen=True)
class McLSTExpConfig(RetrievalConfig):
    """Settings of :class:`McLSTExp`, beside those of :class:`sthist.models.RetrievalConfig`.

    Attributes
    ----------
    positions
        Learn of the row and column of spots on their array.
    depth
        Blocks of attention over the spots of a batch; 0 to embed each by itself.
    heads, head_width
        Number and size of attention heads.
    dropout
        Share of units that is left out in training.
    n_positions
        Rows or columns of the largest array; found in training.
    """

    backbone: str = "densenet121"
    k: int = 200
    weighting: Any = "inverse-square"
    positions: bool = True
    depth: int = 2
    heads: int = 8
    head_width: int = 64
    dropout: float = 0.0
    n_positions: int = 0


class McLSTExp(RetrievalModel):
    """mclSTExp (Min et al. 2024): as BLEEP, but a spot's expression is embedded with its place and among other spots.

    Places are rows and columns of the array (``obs["array_row"]``, ``obs["array_col"]``, or those of the lattice that
    spots lie on). A spot's embedding depends on its batch: those that are kept are made in batches like the training's.

    Parameters
    ----------
    config
        Settings.
    weights
        Of a trained model.

    Examples
    --------
    >>> import numpy as np, sthist
    >>> tiles = np.random.default_rng(0).integers(0, 256, (8, 32, 32, 3), dtype=np.uint8)
    >>> config = sthist.models.McLSTExpConfig(backbone="test_resnet", pretrained=False, k=3)
    >>> inputs = {"tiles": tiles, "positions": np.arange(16).reshape(8, 2)}
    >>> model = sthist.models.McLSTExp(config).fit(
    ...     inputs, tiles.mean((1, 2)), training={"epochs": 1, "batch_size": 4}
    ... )
    >>> model.predict(tiles).shape
    (8, 3)
    """

    system: ClassVar[str] = "mclstexp"
    config_class: ClassVar[type] = McLSTExpConfig
    config: McLSTExpConfig
    default_training: ClassVar[dict[str, Any]] = {
        "epochs": 90,
        "batch_size": 128,
        "lr": 1e-4,
        "weight_decay": 1e-3,
        "optimizer": "adam",
        "patience": 10,
        "drop_last": True,
    }

    @property
    def looks_around(self) -> bool:
        """Whether it takes the place of a spot, as it does in training."""
        return bool(self.config.positions) or super().looks_around

    def extra(self, rows: SampleRows) -> dict[str, np.ndarray]:
        """Row and column of each spot, for training alone."""
        if self.is_fitted or not self.config.positions:
            return {}
        places = [
            array_or_lattice(adata, name)[rows.row[rows.sample == number]]
            for number, (adata, name) in enumerate(zip(rows.tables, rows.names, strict=True))
        ]
        return {"positions": np.concatenate(places)}

    def with_expression(self, inputs: Inputs) -> dict[str, np.ndarray]:
        """Row and column of each spot."""
        if not self.config.positions:
            return {}
        arrays: Any = inputs.extra if isinstance(inputs, Tissue) else getattr(inputs, "arrays", {})
        if "positions" not in arrays:
            raise ValueError(
                "mclSTExp is trained with 'positions', (n, 2) rows and columns of the array, beside tiles or "
                "embeddings; McLSTExpConfig(positions=False) does without."
            )
        return {"positions": np.asarray(arrays["positions"], np.int64)}

    def settle(self, inputs: Inputs, targets: Targets, rows: np.ndarray) -> None:
        """How large the array is, beside what all models of this kind need to know."""
        super().settle(inputs, targets, rows)
        positions = self.with_expression(inputs).get("positions", np.empty((0, 2)))
        self.config = replace(self.config, n_positions=int(positions.max()) + 1 if len(positions) else 0)

    def make_head(self, trunk: nn.Module | None, n_outputs: int, mean: Any) -> nn.Module:
        """The network on a trunk, or on stored features."""
        from sthist.nets import McLSTExp as Network

        config = self.config
        return Network(
            trunk,
            config.n_features,
            n_outputs,
            config.n_positions,
            width=config.width,
            depth=config.depth,
            heads=config.heads,
            head_width=config.head_width,
            dropout=config.dropout,
            temperature=config.temperature,
        )
