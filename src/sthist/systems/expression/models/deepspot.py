"""DeepSpot: embeddings of a spot, of its parts and of its neighbours."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np

from sthist import encoders
from sthist.regression.collect import DEFAULT_SPEC, EmbeddingModel
from sthist.regression.data.features import standards
from sthist.regression.data.inputs import Inputs
from sthist.regression.data.lattice import neighbours_of
from sthist.regression.model import PREDICTED_AT_ONCE, NetworkModel, RegressionConfig
from sthist.systems.expression.model import ExpressionModel
from sthist.tiles import TileLoader, TileSpec
from sthist.training.embeddings import tiles_of
from sthist.training.model import weight_hash
from sthist.training.rows import SampleRows

if TYPE_CHECKING:
    from collections.abc import Sequence

    from torch import nn

    from sthist.regression.data.inputs import Batch
    from sthist.regression.data.targets import Targets

PARTS = 3
"""Sub-tiles along each side of a spot's tile."""


@dataclass(frozen=True)
class DeepSpotConfig(RegressionConfig):
    """Settings of :class:`DeepSpot`.

    Attributes
    ----------
    subspots
        Look at 3 x 3 parts of each spot's tile, which are embedded by the same encoder; this needs the image.
    rings
        Rings of neighbouring spots to look at, on whatever lattice they lie: 1 is six neighbours on Visium's hexagons,
        eight on squares. GenST's comparison has 3. 0 for none.
    width
        Units of the network that all embeddings go through.
    members
        Networks of either ensemble.
    dropout, dropout_out
        Share of units, and of predictions, that is left out in training.
    dim
        Dimensions of the embeddings; found in training.
    """

    subspots: bool = True
    rings: int = 1
    width: int = 512
    members: int = 10
    dropout: float = 0.3
    dropout_out: float = 0.1
    dim: int = 0

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.rings < 0:
            raise ValueError(f"rings is {self.rings!r}; it is 0 or more.")
        if self.context_um or self.standardize != "training":
            raise ValueError("DeepSpot sees its neighbours by rings=, and knows neither context_um nor standardize.")


class DeepSpot(EmbeddingModel, NetworkModel, ExpressionModel):
    """DeepSpot: an ensemble on the embeddings of a spot, of its parts and of its neighbours, in whatever order.

    Embeddings are those of ``obsm``, as other models take them; parts of tiles are embedded when it is trained or
    applied. Neighbours are all regions of the table within so many rings.

    Parameters
    ----------
    config
        Settings.
    weights
        Of a trained model.

    Examples
    --------
    >>> import numpy as np, sthist
    >>> rng = np.random.default_rng(0)
    >>> batch = {"spot": rng.normal(size=(60, 4)), "subspots": rng.normal(size=(60, 9, 4))}
    >>> config = sthist.models.DeepSpotConfig(rings=0, width=8, members=3)
    >>> model = sthist.models.DeepSpot(config)
    >>> model = model.fit(batch, batch["subspots"].sum(1), training={"epochs": 2})
    >>> model.predict(batch).shape
    (60, 4)
    """

    system: ClassVar[str] = "deepspot"
    config_class: ClassVar[type] = DeepSpotConfig
    config: DeepSpotConfig
    default_training: ClassVar[dict[str, Any]] = {
        "epochs": 100,
        "batch_size": 128,
        "lr": 1e-3,
        "weight_decay": 1e-6,
        "optimizer": "adamw",
        "patience": 10,
    }

    @property
    def looks_around(self) -> bool:
        """Whether it takes more of a spot than its own tile: neighbours, or finer parts."""
        return True

    def collect(
        self,
        rows: SampleRows,
        *,
        embedding: str | Sequence[str] | None = None,
        image: str | None = None,
        device: str | None = None,
        progress: bool | None = None,
    ) -> Inputs:
        """Embeddings of all regions of the tables, who is whose neighbour, and embeddings of the parts of tiles."""
        everything = _all_rows(rows)
        stored = super().collect(everything, embedding=embedding, image=image, device=device, progress=progress)
        features = stored.take(np.arange(len(stored)))["spot"]
        starts = np.cumsum([0, *(adata.n_obs for adata in everything.tables)])
        own = starts[:-1][rows.sample] + rows.row
        parts = self._parts(rows, features.shape[1], image, device) if self.config.subspots else None
        around = _neighbours(everything, starts, self.config.rings)[own] if self.config.rings else None
        return Surroundings(features, own, around, parts)

    def _parts(self, rows: SampleRows, dim: int, image: str | None, device: str | None) -> np.ndarray:
        """Embeddings of the parts of tiles, (n, 9, d) float32."""
        names = [made["encoder"] for made in self.config.encoders]
        if None in names:
            raise ValueError(
                f"What made obsm[{self.config.embeddings[names.index(None)]!r}] is not recorded, so that parts of "
                "tiles cannot be embedded alike. Make it with pp.embed, or do without: DeepSpotConfig(subspots=False)."
            )
        encoder = encoders.get(names if len(names) > 1 else names[0], device=device)
        known = "+".join(filter(None, (made["sha256"] for made in self.config.encoders)))
        own = weight_hash(encoder.provenance)
        if known and own and known != own:
            raise ValueError(f"{encoder.name!r} has the weights {own} here; the embeddings were made with {known}.")
        spec = self.spec or encoder.spec or DEFAULT_SPEC
        part = TileSpec(spec.size_um / PARTS, max(1, round(spec.px / PARTS)))
        steps = (np.arange(PARTS) - (PARTS - 1) / 2) * part.size_um
        offsets = np.stack(np.meshgrid(steps, steps), -1).reshape(-1, 2)
        found = np.empty((len(rows), PARTS**2, dim), np.float32)
        for number, (sample, adata, name) in enumerate(zip(rows.samples, rows.tables, rows.names, strict=True)):
            mine = np.flatnonzero(rows.sample == number)
            advice = "Embed coarser tiles, or do without their parts: DeepSpotConfig(subspots=False)."
            reader, places = tiles_of(sample.data, adata, part, image, name, coarser=advice)
            if places.ndim == 1:
                raise ValueError(f"{name} lists files, which have no parts: DeepSpotConfig(subspots=False).")
            centres = (places[rows.row[mine], None] + offsets).reshape(-1, 2)
            flat = np.empty((len(centres), dim), np.float32)
            try:
                for index, tiles in TileLoader(reader, centres, batch_size=PREDICTED_AT_ONCE // 4):
                    flat[index] = encoder.embed(tiles)
            except ValueError as error:
                raise ValueError(
                    f"Parts of the tiles of {name}, of {part.px} px, cannot be embedded with {encoder.name!r}: {error} "
                    "Embed tiles of more pixels, or do without: DeepSpotConfig(subspots=False)."
                ) from error
            found[mine] = flat.reshape(len(mine), PARTS**2, dim)
        return found

    def settle(self, inputs: Inputs, targets: Targets, rows: np.ndarray) -> None:
        """The size of an embedding, and what standardises it; and that all is there that it looks at."""
        first = inputs.take(rows[:1])
        needed = ["spot", *["subspots"] * self.config.subspots]
        needed += ["neighbours", "neighbour_mask"] * (self.config.rings > 0)
        missing = [name for name in needed if name not in first]
        if missing:
            raise ValueError(
                f"DeepSpot takes {needed}; there is no {missing[0]!r}. DeepSpotConfig(subspots=False, rings=0) looks "
                "at the spot alone."
            )
        features = np.concatenate([batch["spot"] for _, batch in inputs.in_order(rows, PREDICTED_AT_ONCE)])
        self.config = replace(self.config, dim=features.shape[1])
        self._standards = standards(features)

    def make_net(self, n_outputs: int, mean: np.ndarray, scale: np.ndarray) -> nn.Module:
        """The network, with embeddings standardised before it."""
        import torch

        from sthist.nets import DeepSpot as Network

        config = self.config
        net = Network(
            config.dim,
            n_outputs,
            width=config.width,
            members=config.members,
            dropout=config.dropout,
            dropout_out=config.dropout_out,
            subspots=config.subspots,
            neighbours=config.rings > 0,
            mean=torch.from_numpy(mean),
            scale=torch.from_numpy(scale),
        )
        return self.standardized(net, config.dim)


class Surroundings(Inputs):
    """Embeddings of rows, of their neighbours, which are looked up when a batch is made, and of their parts."""

    def __init__(
        self, features: np.ndarray, own: np.ndarray, around: np.ndarray | None, parts: np.ndarray | None
    ) -> None:
        self.features = features  # (m, d) of all regions
        self.own = own  # (n,) which of them the rows are
        self.around = around  # (n, k) and which their neighbours; -1 for none
        self.parts = parts  # (n, 9, d)

    def __len__(self) -> int:
        return len(self.own)

    def take(self, rows: np.ndarray) -> Batch:
        """The arrays of some rows."""
        batch = {"spot": self.features[self.own[rows]]}
        if self.parts is not None:
            batch["subspots"] = self.parts[rows]
        if self.around is not None:
            around = self.around[rows]
            batch["neighbours"], batch["neighbour_mask"] = self.features[np.maximum(around, 0)], around >= 0
        return batch


def _all_rows(rows: SampleRows) -> SampleRows:
    """All rows of the same tables."""
    sizes = [adata.n_obs for adata in rows.tables]
    sample, row = np.repeat(np.arange(len(sizes)), sizes), np.concatenate([np.arange(n) for n in sizes])
    return SampleRows(rows.samples, rows.tables, rows.names, sample, row)


def _neighbours(rows: SampleRows, starts: np.ndarray, rings: int) -> np.ndarray:
    """Numbers of the neighbours of all regions, (m, k); -1 where there is none."""
    tables = []
    for start, adata, name in zip(starts, rows.tables, rows.names, strict=False):
        if "spatial" not in adata.obsm:
            raise KeyError(f"rings={rings} needs the places of rows in µm, and {name} has no obsm['spatial'].")
        found = neighbours_of(np.asarray(adata.obsm["spatial"], np.float64)[:, :2], rings)
        tables.append(np.where(found >= 0, found + start, -1))
    wide = max(table.shape[1] for table in tables)
    return np.concatenate([np.pad(table, ((0, 0), (0, wide - table.shape[1])), constant_values=-1) for table in tables])
