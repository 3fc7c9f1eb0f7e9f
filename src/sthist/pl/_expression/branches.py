"""What the image branch of a model makes of tiles."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Protocol

import numpy as np

from sthist._sample.verbs import verb
from sthist._settings import settings
from sthist._tables.find import find_expression
from sthist._tables.rows import centroids_um, rows_of
from sthist.pl._base import finish, panel_axes, pictures
from sthist.tiles import TileReader, TileSpec
from sthist.tiles._images.image import open_he

if TYPE_CHECKING:
    from pathlib import Path

    from matplotlib.axes import Axes
    from spatialdata import SpatialData

TILE_INCHES = 1.5


class Reconstructs(Protocol):
    """A trained model with an image branch, such as :class:`sthist.models.GenST`."""

    @property
    def spec(self) -> TileSpec | None:
        """The tiles that it is for."""

    def reconstruct(self, tiles: Any) -> np.ndarray:
        """Tiles (n, px, px, 3) of uint8, there and back."""


@verb
def reconstructions(
    sdata: SpatialData,
    model: Reconstructs,
    *,
    n: int = 6,
    regions: str | None = None,
    image: str | None = None,
    seed: int | None = None,
    axes: Any = None,
    save: str | Path | None = None,
) -> list[Axes]:
    """Draw tiles above what the image branch of a model makes of them.

    What is lost on the way is nothing that the coefficients of its atoms say: a branch that gives back the colour and
    no nuclei sees the colour alone. Over each pair stands the root of its mean squared difference, in grey levels of
    0 to 255.

    Parameters
    ----------
    sdata
        One sample, or the path of its store.
    model
        A :class:`sthist.models.GenST` or :class:`sthist.models.CLIP`.
    n
        How many tiles, drawn at random.
    regions
        Key of shapes, or of their table, around which tiles are read; by default those of the table of genes.
    image
        Key of the H&E.
    seed
        Of the drawing; ``settings.seed`` by default.
    axes
        Axes to draw on: those of the tiles, and then those of the reconstructions.
    save
        File to save the figure to.

    Returns
    -------
    The axes: tiles first, then reconstructions.

    Raises
    ------
    KeyError
        If there are no such regions, or no H&E.
    ValueError
        If ``n`` is not positive, or the model has no size of tiles.
    TypeError
        If the model has no image branch.

    Examples
    --------
    >>> import numpy as np, sthist
    >>> sdata = sthist.datasets.toy("visium", size_um=900)
    >>> tiles = np.random.default_rng(0).integers(0, 256, (8, 32, 32, 3), dtype=np.uint8)
    >>> config = sthist.models.GenSTConfig(
    ...     backbone="test_resnet", pretrained=False, spec=sthist.tiles.TileSpec(size_um=64, px=32)
    ... )
    >>> model = sthist.models.GenST(config)
    >>> model = model.fit(tiles, tiles.mean((1, 2)), training={"epochs": 1, "batch_size": 4})
    >>> len(sthist.pl.reconstructions(sdata, model, n=3))
    6
    """
    if not hasattr(model, "reconstruct"):
        raise TypeError(f"{type(model).__name__} has no image branch; models 'genst' and 'clip' have one.")
    if n < 1:
        raise ValueError(f"n is {n!r}; it is a whole number from 1 on.")
    tiles = _some_tiles(sdata, model, n, regions, image, settings.seed if seed is None else seed)
    made = model.reconstruct(tiles)
    errors = np.sqrt(((tiles.astype(np.float64) - made) ** 2).mean(axis=(1, 2, 3)))
    names = [f"tile {number}" for number in range(len(tiles))] + ["reconstruction"] * len(tiles)
    drawn = panel_axes(len(names), len(tiles), (TILE_INCHES, TILE_INCHES + 0.25), axes, names)
    shown, how = pictures(np.concatenate([tiles, made]))
    for ax, picture in zip(drawn, shown, strict=True):
        ax.imshow(picture, **how)
        ax.set(xticks=[], yticks=[])
    for ax, error in zip(drawn[: len(tiles)], errors, strict=True):
        ax.set_title(f"RMSE {error:.0f}", fontsize="small")
    drawn[0].set_ylabel("tile")
    drawn[len(tiles)].set_ylabel("reconstruction")
    return finish(drawn, save)


def _some_tiles(
    sdata: SpatialData, model: Reconstructs, n: int, regions: str | None, image: str | None, seed: int
) -> np.ndarray:
    """Tiles (n, px, px, 3) of uint8 around regions that are drawn at random."""
    if model.spec is None:
        raise ValueError("The size of the model's tiles in µm is not known: it was trained on arrays without spec=.")
    key = regions if regions is not None else find_expression(sdata, None)[0]
    centres = centroids_um(sdata, rows_of(sdata, str(key)))
    chosen = np.sort(np.random.default_rng(seed).permutation(len(centres))[:n])
    reader = TileReader.from_image(open_he(sdata, image), model.spec, fill=255)
    return np.asarray(reader.read(centres[chosen]))
