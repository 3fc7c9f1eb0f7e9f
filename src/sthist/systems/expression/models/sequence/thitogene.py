"""THItoGene: capsules of each spot's tile, its slide, and its neighbours."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar, Self

from sthist.systems.expression.models.sequence.model import (
    PUBLISHED_POSITIONS,
    PUBLISHED_PX,
    SlideConfig,
    SlideModel,
)
from sthist.tiles import TileSpec

if TYPE_CHECKING:
    from torch import nn


@dataclass(frozen=True)
class THItoGeneConfig(SlideConfig):
    """Settings of :class:`THItoGene`, beside those of :class:`sthist.models.SlideConfig`.

    Attributes
    ----------
    neighbours
        Nearest spots that the graph joins to each, with all that are as far as the last of them: 4 on squares, 6 on
        hexagons. A spot of a slide with fewer has those that there are.
    own
        Add what a spot is by itself to what it gathers from its neighbours.
    channels
        Of the five convolutions; the last a multiple of 8.
    capsules, capsule_width
        Number and length of the capsules that stand for a tile.
    graph_heads, graph_widths
        Heads of the first layer of graph attention, and units of each; units of the second.
    head_hidden
        Units between the graph and the genes.

    Examples
    --------
    >>> import sthist
    >>> sthist.models.THItoGeneConfig.published(mpp=0.5).own
    False
    """

    depth: int = 4
    dropout: float = 0.2
    neighbours: int = 4
    own: bool = True
    channels: tuple[int, ...] = (16, 32, 64, 64, 128)
    capsules: int = 20
    capsule_width: int = 64
    graph_heads: int = 8
    graph_widths: tuple[int, ...] = (1024, 512)
    head_hidden: int = 1024

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.neighbours < 1:
            raise ValueError(f"neighbours is {self.neighbours!r}; it is 1 or more.")
        for name, n in (("channels", 5), ("graph_widths", 2)):
            object.__setattr__(self, name, tuple(getattr(self, name)))
            if len(getattr(self, name)) != n:
                raise ValueError(f"{name} is {getattr(self, name)}; it is {n} numbers.")

    @classmethod
    def published(cls, mpp: float, **changes: Any) -> Self:
        """The published inputs: 112 pixels of the slide, tables of 64 rows and columns, ``own=False``.

        What is wrong with them: 112 pixels show another piece of tissue on each scanner, so that ``mpp``, the µm/px of
        these slides, has to be said and holds for no others; tables of 64 end within a Visium slide of 78 rows and 128
        columns, which is refused here (``n_positions=128`` takes it), and count spots, not tissue; and what the graph
        hands on to a spot is its neighbours' alone, so that its own tile reaches its prediction only by way of others.
        Four nearest spots on hexagons, of which six are as near, are four at random in the published code; here they
        are all six.

        Parameters
        ----------
        mpp
            µm per pixel of the slides.
        changes
            Other settings.
        """
        published: dict[str, Any] = {
            "spec": TileSpec(PUBLISHED_PX * mpp, PUBLISHED_PX),
            "positions": "array",
            "n_positions": PUBLISHED_POSITIONS,
            "own": False,
            "max_spots": None,
        }
        return cls(**(published | changes))

    @classmethod
    def small(cls, **changes: Any) -> Self:
        """A network of 2 blocks and 0.2 million parameters on tiles of 48 pixels, for a CPU, with changes."""
        small: dict[str, Any] = {"depth": 2, "heads": 4, "head_width": 16, "hidden": 128, "head_hidden": 64}
        small |= {"channels": (8, 16, 16, 16, 32), "capsules": 6, "capsule_width": 16, "dropout": 0.1}
        small |= {"graph_heads": 2, "graph_widths": (64, 64)}
        return cls(**({"spec": TileSpec(112.0, 48), **small} | changes))


class THItoGene(SlideModel):
    """THItoGene (Jia et al. 2024): capsules of each tile, a transformer over the slide, and attention to neighbours.

    A convolution that follows its input, four others and capsules see each tile; capsules and what is learned of row
    and column, side by side, go through a transformer over all spots of the slide, and then through two layers of graph
    attention over the nearest of each. Steps, windows of a slide and predictions are as of :class:`HisToGene`; nothing
    is normalised over a batch.

    It is trained as published, for 300 epochs with a learning rate of 1e-5, but that tiles show a fixed piece of tissue
    (112 µm on 112 pixels), are turned and mirrored, that what a spot is by itself is added to what it gathers from its
    neighbours, and that spots which validate say when to stop. Without that (``own=False``) no spot is told from those
    around it. The published depth is 4 for her2st, and 8 for others. :meth:`THItoGeneConfig.published` has the
    published inputs and says what is wrong with them, :meth:`THItoGeneConfig.small` a network for a CPU. Where slides
    are few, 1e-5 learns little: ``training={"lr": 1e-4}``.

    Parameters
    ----------
    config
        Settings.
    weights
        Of a trained model.

    Examples
    --------
    >>> import numpy as np, sthist
    >>> tiles = np.random.default_rng(0).integers(0, 256, (9, 48, 48, 3), dtype=np.uint8)
    >>> places = 100 * np.stack(np.divmod(np.arange(9), 3), axis=1)  # in µm
    >>> model = sthist.models.THItoGene(sthist.models.THItoGeneConfig.small())
    >>> inputs = {"tiles": tiles, "places": places}
    >>> model = model.fit(inputs, tiles.mean((1, 2)), training={"epochs": 1})
    >>> model.predict(inputs).shape
    (9, 3)
    """

    system: ClassVar[str] = "thitogene"
    config_class: ClassVar[type] = THItoGeneConfig
    config: THItoGeneConfig
    default_training: ClassVar[dict[str, Any]] = {
        "epochs": 300,
        "batch_size": 1,
        "lr": 1e-5,
        "weight_decay": 0.0,
        "optimizer": "adam",
        "patience": 10,
    }

    @property
    def n_neighbours(self) -> int:  # type: ignore[override]
        """Nearest spots that the graph joins to each."""
        return self.config.neighbours

    @property
    def n_features(self) -> int:
        """Features of a tile by itself."""
        return self.config.capsules * self.config.capsule_width

    def network(self, px: int, n_outputs: int, n_positions: int, **options: Any) -> nn.Module:
        """The network for tiles of so many pixels."""
        from sthist.nets import THItoGene as Network

        names = ("own", "channels", "capsules", "capsule_width", "graph_heads", "graph_widths", "head_hidden")
        own: dict[str, Any] = {name: getattr(self.config, name) for name in names}
        return Network(px, n_outputs, n_positions, **own, **options)
