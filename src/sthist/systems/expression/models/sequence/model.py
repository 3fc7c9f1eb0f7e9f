"""What models on whole slides share: which spots are seen together, where they lie, and predictions of whole slides."""

from __future__ import annotations

from abc import abstractmethod
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, ClassVar, Literal

import numpy as np

from sthist._messages import plain
from sthist.encoders import Transform
from sthist.regression.collect import TileModel
from sthist.regression.data.features import finite_centres_of
from sthist.regression.data.inputs import Arrays
from sthist.regression.data.lattice import array_or_lattice, array_places
from sthist.regression.data.sequences import Sequences, WholeSlides, as_arrays
from sthist.regression.model import PREDICTED_AT_ONCE, NetworkModel, RegressionConfig, RegressionModel, placed
from sthist.systems.expression.model import ExpressionModel
from sthist.tiles import TileSpec

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from torch import nn

    from sthist.regression.data.inputs import Inputs
    from sthist.regression.data.targets import Targets
    from sthist.training.rows import SampleRows

PUBLISHED_PX, PUBLISHED_POSITIONS = 112, 64


@dataclass(frozen=True)
class SlideConfig(RegressionConfig):
    """Settings of models that see the spots of a slide as one sequence.

    Attributes
    ----------
    depth
        Blocks of attention.
    heads, head_width
        Number and size of attention heads.
    hidden
        Units between both layers of a block.
    dropout
        Share of units that is left out in training.
    max_spots
        Spots of a sequence; a slide of more is cut into windows of neighbours, other ones in each epoch, which do not
        see each other. None for whole slides, whatever they take.
    positions
        What row and column of a spot are: ``"array"``, those of its array (``obs["array_row"]``, ``obs["array_col"]``,
        or of the lattice that spots lie on); ``"um"``, its place from the slide's corner in steps of ``position_um``,
        the same for spots, tiles and nuclei of any lattice; None to learn nothing of places.
    position_um
        Step of positions in µm.
    n_positions
        Rows, or columns, of the largest slide that it is to know; by default those of the training's samples. A slide
        with more is refused.
    pixels
        ``"standardized"`` by ImageNet's mean and deviation, or ``"raw"``, from 0 to 255.
    n_known, tile_px
        Size of the tables of rows and columns, and side of the tiles; found in training.
    """

    depth: int = 8
    heads: int = 16
    head_width: int = 64
    hidden: int = 2048
    dropout: float = 0.1
    max_spots: int | None = 5000
    positions: Literal["array", "um"] | None = "array"
    position_um: float = 100.0
    n_positions: int | None = None
    pixels: Literal["standardized", "raw"] = "standardized"
    n_known: int = 0
    tile_px: int = 0

    def __post_init__(self) -> None:
        super().__post_init__()
        for name, known in (("positions", ("array", "um", None)), ("pixels", ("standardized", "raw"))):
            if getattr(self, name) not in known:
                raise ValueError(f"{name} is {getattr(self, name)!r}; it is one of {list(known)}.")
        for name in ("max_spots", "n_positions"):
            if getattr(self, name) is not None and getattr(self, name) < 1:
                raise ValueError(f"{name} is {getattr(self, name)!r}; it is 1 or more, or None.")
        if not self.position_um > 0:
            raise ValueError(f"position_um is {self.position_um!r}; it is positive, in µm.")
        if self.context_um or self.standardize != "training":
            raise ValueError("A model of whole slides sees what is around a spot; it has no context_um or standardize.")


class SlideModel(TileModel, NetworkModel, ExpressionModel):
    """Base of models on whole slides; a subclass gives its network and the tokens' settings."""

    config: SlideConfig
    default_tiles: ClassVar[TileSpec] = TileSpec(112.0, PUBLISHED_PX)
    n_neighbours: ClassVar[int] = 0

    @property
    def looks_around(self) -> bool:
        """Whether it takes more of a spot than its own tile: its slide, and its place there."""
        return True

    @abstractmethod
    def network(self, px: int, n_outputs: int, n_positions: int, **options: Any) -> nn.Module:
        """The network for tiles of so many pixels; ``options`` are what both kinds take."""

    def collect(
        self,
        rows: SampleRows,
        *,
        embedding: str | Sequence[str] | None = None,
        image: str | None = None,
        device: str | None = None,
        progress: bool | None = None,
    ) -> Inputs:
        """Readers of the tiles, and where in its slide each spot is."""
        places = finite_centres_of(rows, type(self).__name__)
        positions = self._positions_of(rows)
        tiles = super().collect(rows, embedding=embedding, image=image, device=device, progress=progress)
        return self._sequences(tiles, {"places": places, "slide": rows.sample, "positions": positions})

    def _positions_of(self, rows: SampleRows) -> np.ndarray | None:
        """Row and column of each spot, by the rule of the config; refuses slides that are larger than its tables."""
        if self.config.positions is None:
            return None
        found = np.empty((len(rows), 2), np.int64)
        for number, (adata, name) in enumerate(zip(rows.tables, rows.names, strict=True)):
            mine = rows.sample == number
            if self.config.positions == "array":
                found[mine] = array_or_lattice(adata, name)[rows.row[mine]]
            else:
                places = np.asarray(adata.obsm["spatial"], np.float64)[:, :2]
                found[mine] = ((places[rows.row[mine]] - np.nanmin(places, axis=0)) // self.config.position_um).astype(
                    np.int64
                )
            self._require_known(found[mine], name)
        return found

    def _require_known(self, positions: np.ndarray, name: str) -> None:
        known = self.config.n_known or self.config.n_positions
        high = int(positions.max(initial=0))
        if known is None or high < known:
            return
        larger = f"{type(self.config).__name__}(n_positions={high + 1})"
        raise ValueError(
            f"Rows or columns of {name} go up to {high}, and this model knows 0 to {known - 1}. Train {larger}, which "
            "learns nothing of what lies beyond its slides, or without places: positions=None."
        )

    def _sequences(self, inputs: Inputs, arrays: dict[str, Any] | None = None) -> Sequences:
        """Inputs by slide: as they are, with what is known beside them, or of arrays."""
        if isinstance(inputs, Sequences):
            return inputs
        if arrays is None:
            inputs, arrays = as_arrays(inputs, type(self).__name__)
            if self.config.positions is None:
                arrays.pop("positions", None)
            elif "positions" in arrays:
                self._require_known(np.asarray(arrays["positions"]), "'positions'")
            else:
                arrays["positions"] = self._positions_from(arrays["places"], arrays["slide"])
        positions = arrays.get("positions")
        return Sequences(
            inputs,
            arrays["slide"],
            np.asarray(arrays["places"], np.float64),
            None if positions is None else np.asarray(positions, np.int64),
            self.config.max_spots,
            self.n_neighbours,
        )

    def _positions_from(self, places: np.ndarray, slide: np.ndarray) -> np.ndarray:
        """Row and column of spots that come as arrays, by the rule of the config."""
        found = np.empty((len(places), 2), np.int64)
        for number in np.unique(slide):
            mine, name = slide == number, f"slide {plain(number)}"
            if self.config.positions == "array":
                found[mine] = array_places(places[mine].astype(np.float64), name)
            else:
                found[mine] = (places[mine] - places[mine].min(axis=0)) // self.config.position_um
            self._require_known(found[mine], name)
        return found

    def settle(self, inputs: Inputs, targets: Targets, rows: np.ndarray) -> None:
        """How large the slides are, and the tiles."""
        tiles = inputs.take(rows[:1]).get("tiles")
        if tiles is None:
            raise ValueError(f"{type(self).__name__} takes 'tiles' (n, px, px, 3) of uint8, not embeddings.")
        assert isinstance(inputs, Sequences)
        positions = inputs.positions
        n_known = 0 if positions is None else self.config.n_positions or int(positions.max(initial=0)) + 1
        self.config = replace(self.config, n_known=n_known, tile_px=tiles.shape[1])

    def make_net(self, n_outputs: int, mean: np.ndarray, scale: np.ndarray) -> nn.Module:
        """A network of new weights."""
        import torch

        config, imagenet = self.config, Transform()
        options: dict[str, Any] = {name: getattr(config, name) for name in ("depth", "heads", "head_width", "hidden")}
        options["pixels"] = (imagenet.mean, imagenet.std) if config.pixels == "standardized" else None
        options |= {"dropout": config.dropout, "mean": torch.from_numpy(mean)}
        return self.network(config.tile_px, n_outputs, config.n_known, **options)

    def transform(self, tiles: Any) -> Any:
        """Tiles as they are: the network takes bytes, and makes numbers of a few at a time."""
        return tiles

    def unfitted(self) -> Any:
        """A copy of the same settings that was not trained."""
        return type(self)(replace(super().unfitted().config, n_known=0, tile_px=0))

    def _fit(
        self,
        inputs: Inputs,
        targets: Targets,
        rows: np.ndarray,
        watched: np.ndarray,
        options: Any,
        where: dict[str, Any],
    ) -> None:
        self.config = replace(self.config, n_known=0)  # of an earlier training
        sequences = self._sequences(inputs)
        try:
            super()._fit(sequences, targets, rows, watched, options, where)
        except MemoryError as error:
            raise MemoryError(
                f"{error} A batch is batch_size slides, or windows of up to max_spots={self.config.max_spots} spots: "
                f"fewer take less, {type(self.config).__name__}(max_spots={max(1, sequences.longest // 2)})."
            ) from None

    def encoded(
        self, inputs: Inputs, rows: np.ndarray, *, batch_size: int, device: str | None = None
    ) -> tuple[Inputs, dict[str, np.ndarray]]:
        """What the last layers take, and features of the tiles, of all regions of the slides that some are of."""
        if isinstance(inputs, Arrays) and "hidden" in inputs.arrays:
            return inputs, {}
        known = self._sequences(inputs)
        if not len(rows):
            return known, {}
        slides = WholeSlides(**{name: getattr(known, name) for name in Sequences.__dataclass_fields__})
        nodes = known.whole_slides(rows)
        values = placed(self.run(_seen, slides, nodes, batch_size=batch_size, device=device), nodes)
        width = values.shape[1] - self.n_features
        found = np.zeros((len(known), values.shape[1]), np.float32)
        found[nodes] = values
        return Arrays({"hidden": found[:, :width], "spot": found[:, width:]}), {}

    @property
    @abstractmethod
    def n_features(self) -> int:
        """Features of a tile by itself."""

    def representation(self, inputs: Inputs, rows: np.ndarray, *, device: str | None = None) -> np.ndarray:
        """Features of tiles by themselves, (n, d) float32."""
        if isinstance(inputs, Arrays) and "spot" in inputs.arrays:
            return RegressionModel.representation(self, inputs, rows, device=device)
        found = self.run(_features, self._sequences(inputs), rows, batch_size=PREDICTED_AT_ONCE, device=device)
        return placed(found, rows)

    def _predict(
        self, inputs: Inputs, rows: np.ndarray, batch_size: int, device: str | None
    ) -> Iterator[tuple[np.ndarray, np.ndarray]]:
        """Slides as wholes, of which some rows are asked for."""
        known = self.encoded(inputs, rows, batch_size=batch_size, device=device)[0]
        if len(rows):
            yield from self.run(_head, known, rows, batch_size=batch_size, device=device)


def _seen(net: Any, batch: dict[str, Any]) -> Any:
    import torch

    features = net.features(batch)
    return torch.cat([net.among_all(features, batch), features], dim=1)


def _features(net: Any, batch: dict[str, Any]) -> Any:
    return net.features(batch)


def _head(net: Any, batch: dict[str, Any]) -> Any:
    return net.head(batch["hidden"])
