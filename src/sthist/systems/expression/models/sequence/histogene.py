"""HisToGene: pixels of each spot and its place, as one sequence for each slide."""

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
class HisToGeneConfig(SlideConfig):
    """Settings of :class:`HisToGene`, beside those of :class:`sthist.models.SlideConfig`.

    Attributes
    ----------
    width
        Length of what stands for a spot.

    Examples
    --------
    >>> import sthist
    >>> sthist.models.HisToGeneConfig.published(mpp=0.5).spec
    {'size_um': 56.0, 'px': 112}
    """

    width: int = 1024

    @classmethod
    def published(cls, mpp: float, **changes: Any) -> Self:
        """The published inputs: 112 pixels of the slide, 0 to 255 as they are, and tables of 64 rows and columns.

        What is wrong with them: 112 pixels show another piece of tissue on each scanner, so that ``mpp``, the µm/px of
        these slides, has to be said and holds for no others; values of up to 255 drown what is added to them for a
        place, and the first layer has to learn their scale before anything else; tables of 64 end within a Visium slide
        of 78 rows and 128 columns, which is refused here (``n_positions=128`` takes it); and rows and columns count
        spots, not tissue: the same place has other numbers where spots lie closer. The published code also normalises
        counts over the panel's genes alone, and holds out slides of patients that it trains on; here neither is done.

        Parameters
        ----------
        mpp
            µm per pixel of the slides.
        changes
            Other settings.
        """
        published: dict[str, Any] = {
            "spec": TileSpec(PUBLISHED_PX * mpp, PUBLISHED_PX),
            "pixels": "raw",
            "positions": "array",
            "n_positions": PUBLISHED_POSITIONS,
            "max_spots": None,
        }
        return cls(**(published | changes))

    @classmethod
    def small(cls, **changes: Any) -> Self:
        """A network of 2 blocks and half a million parameters on tiles of 32 pixels, for a CPU, with changes."""
        small: dict[str, Any] = {"width": 96, "depth": 2, "heads": 4, "head_width": 24, "hidden": 192}
        return cls(**({"spec": TileSpec(112.0, 32), **small} | changes))


class HisToGene(SlideModel):
    """HisToGene (Pang et al. 2021): the pixels of each spot, its place, and a transformer over all spots of its slide.

    The pixels of a tile go through one linear layer, and what is learned of the spot's row and column is added. A step
    of the training is a slide, or a window of up to ``max_spots`` neighbouring spots; ``batch_size`` is how many of
    these. A slide is predicted as a whole, and as if there were no other. Tiles stay bytes until a few at a time are
    used, and no matrix of all pairs of spots is made.

    It is trained as published, for 100 epochs with a learning rate of 1e-5, but that tiles show a fixed piece of tissue
    (112 µm on 112 pixels), are standardised, turned and mirrored; that tables of rows and columns are as large as the
    slides, and 0 at the start; and that spots which validate say when to stop. :meth:`HisToGeneConfig.published` has
    the published inputs and says what is wrong with them, :meth:`HisToGeneConfig.small` a network for a CPU. Where
    slides are few, 1e-5 learns little: ``training={"lr": 1e-4}``.

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
    >>> model = sthist.models.HisToGene(sthist.models.HisToGeneConfig.small())
    >>> inputs = {"tiles": tiles, "places": places}
    >>> model = model.fit(inputs, tiles.mean((1, 2)), training={"epochs": 1})
    >>> model.predict(inputs).shape
    (9, 3)
    """

    system: ClassVar[str] = "histogene"
    config_class: ClassVar[type] = HisToGeneConfig
    config: HisToGeneConfig
    default_training: ClassVar[dict[str, Any]] = {
        "epochs": 100,
        "batch_size": 1,
        "lr": 1e-5,
        "weight_decay": 0.0,
        "optimizer": "adam",
        "patience": 10,
    }

    @property
    def n_features(self) -> int:
        """Features of a tile by itself."""
        return self.config.width

    def network(self, px: int, n_outputs: int, n_positions: int, **options: Any) -> nn.Module:
        """The network for tiles of so many pixels."""
        from sthist.nets import HisToGene as Network

        return Network(px, n_outputs, n_positions, width=self.config.width, **options)
