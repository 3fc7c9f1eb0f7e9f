"""The built-in encoder: stains, colours, texture and nuclei of a tile as named numbers, without weights."""

from __future__ import annotations

import re
from concurrent.futures import ThreadPoolExecutor
from functools import cache
from typing import TYPE_CHECKING, Any

import numpy as np

from sthist._settings import settings
from sthist.encoders._encoder import Encoder, checked_tiles
from sthist.encoders._morphology.features import Stains, describe
from sthist.tiles._spec import TileSpec

if TYPE_CHECKING:
    from collections.abc import Sequence

SMALLEST_PX = 16
REVISION = 1
"""Counted up whenever a number of the encoder changes, so that a model knows which features it was fitted to."""

STAIN_VECTORS = ((0.5626, 0.7201, 0.4062), (0.2159, 0.8012, 0.5581))
"""Haematoxylin and eosin of the reference slide that stain normalisation after Macenko et al. 2009 commonly aims at."""

FAMILIES = {
    r"background_share": "square root of the share of pixels that are no tissue: mean optical density up to 0.15",
    r"(haematoxylin|eosin|density)_(mean|sd|q\d\d)": "amount of stain, or mean optical density (base e), over tissue: "
    "ln(1 + amount / 0.05)",
    r"haematoxylin_share_(mean|sd|q\d\d)": "haematoxylin / (haematoxylin + eosin) of a tissue pixel, 0 to 1",
    r"(haematoxylin|eosin|density|red|green|blue)_skewness": "skewness s over tissue, as sign(s) ln(1 + |s|)",
    r"(haematoxylin|eosin|density)_centre_to_rim": "mean of tissue in the tile's inner half (a circle) "
    "minus that outside, both as ln(1 + amount / 0.05)",
    r"haematoxylin_to_eosin": "haematoxylin_mean minus eosin_mean: about the logarithm of their ratio",
    r"haematoxylin_eosin_correlation": "Pearson, -1 to 1, over tissue",
    r"(red|green|blue)_(mean|sd|q\d\d)": "grey level / 255 over tissue",
    r"(red|green|blue)_mean_with_background": "grey level / 255 over the whole tile",
    r"texture_\d+um_(haematoxylin|eosin)_contrast": "ln(1 + c / 0.05), c the standard deviation of what a "
    "(1, 2, 1) / 4 smoothing takes away on a grid of that many µm",
    r"texture_\d+um_(haematoxylin|eosin)_sd": "ln(1 + s / 0.05), s the standard deviation on that grid",
    r"texture_\d+um_haematoxylin_skewness": "skewness s of that detail (dark or pale dots), as sign(s) ln(1 + |s|)",
    r"texture_\d+um_haematoxylin_neighbour_correlation": "correlation of neighbours on that grid, -1 to 1",
    r"texture_\d+um_coherence": "how much one direction prevails in haematoxylin around each grid point, 0 to 1",
    r"texture_\d+um_alignment": "how much one direction prevails in the whole tile, 0 to 1",
    r"texture_\d+um_haematoxylin_eosin_correlation": "Pearson, -1 to 1, on that grid",
    r"texture_\d+um_emptiness": "mean of exp(-density / 0.15) over grid squares: gaps of that size and fat, 0 to 1",
    r"texture_\d+um_pattern_\d": "square root of the share of a local binary pattern of haematoxylin: 0 to 8 are that "
    "many darker neighbours in one run, 9 several runs",
    r"sqrt_nuclei_(density|small_round|large|elongated)_per_mm2": "square root of nuclei per mm² of tile; small and "
    "round: under 45 µm², eccentricity under 0.75; large: over 80 µm²; elongated: eccentricity over 0.9",
    r"sqrt_nuclei_density_in_tissue_per_mm2": "square root of nuclei per mm² of tissue",
    r"nuclei_(area|small_round|large|elongated)_share": "share of the tile's area, or of its nuclei",
    r"nuclei_area_um2_(q10|median|q90)": "ln of the area in µm²",
    r"nuclei_distance_um_(q10|median|q90)": "ln(1 + µm) from a nucleus to the nearest other",
    r"nuclei_(eccentricity|roundness)_(q10|median|q90)": "0 to 1; roundness is 4 pi area / perimeter²",
    r"nuclei_(haematoxylin|eosin)_(q10|median|q90)": "mean stain in a nucleus: ln(1 + amount / 0.05)",
    r"nuclei_chromatin_(q10|median|q90)": "standard deviation s of haematoxylin in a nucleus: ln(1 + s / 0.05)",
    r"nuclei_to_between_haematoxylin": "nuclei_haematoxylin_median minus between_nuclei_haematoxylin_mean",
    r"nuclei_alignment": "1 where all nuclei lie one way, 0 where they lie anyhow",
    r"nuclei_unevenness": "standard deviation over mean of the numbers of nuclei in 3 x 3 squares",
    r"between_nuclei_(haematoxylin|eosin)_(mean|sd)": "stain of the tissue between nuclei: ln(1 + amount / 0.05)",
}
"""Pattern of names to unit, transformation and meaning."""


@cache
def morphology_feature_names() -> tuple[str, ...]:
    """Names of the features of the ``morphology`` encoder, in order.

    They do not depend on the size or resolution of the tiles; :class:`Morphology` says what they mean.

    Examples
    --------
    >>> from sthist.encoders import morphology_feature_names
    >>> morphology_feature_names()[:3]
    ('background_share', 'haematoxylin_mean', 'haematoxylin_sd')
    """
    blank = np.full((SMALLEST_PX, SMALLEST_PX, 3), 255, np.uint8)
    return tuple(describe(blank, 1.0, Stains.of(STAIN_VECTORS, 255.0)))


class Morphology(Encoder):
    """Named features of an H&E tile: stains, colours, texture at 1 to 16 µm, and nuclei; no weights, no randomness.

    Every feature reads a tile by itself, is the same for the tile rotated by 90 degrees or flipped (up to rounding),
    and is finite: a tile without tissue gives 0 except for its background share and the colours with background, one
    without nuclei gives 0 for all that is measured of nuclei. Stains and colours are those of tissue pixels, so that a
    gap in the tile changes little but ``background_share``. Skewed numbers are stored as logarithms or square roots, so
    that a linear model can take them; they still want to be standardised.

    Textures are measured on grids of 1, 2, 4, 8 and 16 µm. A grid is never finer than the tile's own pixels nor coarser
    than a fifth of the tile: a scale that a tile cannot show repeats the nearest one that it can. Nuclei are looked for
    on pixels of 0.75 µm, or the tile's own where those are coarser; above 1.5 µm per pixel they cannot be told apart,
    and their features are 0.

    Parameters
    ----------
    mpp
        µm per pixel of the tiles; by default that of ``spec``.
    spec
        Tiles that the encoder is meant for where nothing else is said.
    stain_vectors
        (2, 3) colours of haematoxylin and eosin, such as :func:`sthist.stains.macenko` finds them. The default is a
        common reference, the same for every slide.
    white
        Grey level of unstained glass.

    Raises
    ------
    ValueError
        If ``mpp`` or ``white`` is not positive, or the stain vectors are not two different colours.

    Examples
    --------
    >>> import sthist
    >>> from sthist.encoders import Morphology
    >>> sdata = sthist.datasets.toy(size_um=300)
    >>> tiles = sthist.tiles.TileReader(sdata, "he", sthist.tiles.TileSpec(112, 224)).read([[150, 150], [100, 200]])
    >>> Morphology(mpp=0.5).embed(tiles).shape
    (2, 183)
    """

    name = "morphology"

    def __init__(
        self,
        *,
        mpp: float | None = None,
        spec: TileSpec | None = None,
        stain_vectors: Sequence[Sequence[float]] | np.ndarray = STAIN_VECTORS,
        white: float = 255.0,
    ) -> None:
        self.spec = spec or TileSpec(size_um=112.0, px=224)
        self.mpp = _positive("mpp", self.spec.mpp if mpp is None else mpp)
        self.white = _positive("white", white)
        self.stain_vectors = _checked_vectors(stain_vectors)
        self.feature_names = list(morphology_feature_names())
        self.dim = len(self.feature_names)
        self._stains = Stains.of(self.stain_vectors, self.white)

    @property
    def provenance(self) -> dict[str, Any]:  # type: ignore[override]
        """What decides the numbers, as plain values."""
        return {
            "source": "sthist",
            "revision": REVISION,
            "licence": "BSD-3-Clause",
            "mpp": self.mpp,
            "stain_vectors": self.stain_vectors.tolist(),
            "white": self.white,
        }

    def at(self, spec: TileSpec, *, strict: bool = True) -> Morphology:
        """The encoder for tiles of a spec: it measures in µm, at any µm/px.

        Parameters
        ----------
        spec, strict
            As of :meth:`Encoder.at`.
        """
        return Morphology(spec=spec, stain_vectors=self.stain_vectors, white=self.white)

    def feature_meaning(self, name: str) -> str:
        """Unit, transformation and meaning of a feature.

        Examples
        --------
        >>> from sthist.encoders import Morphology
        >>> Morphology().feature_meaning("nuclei_area_um2_median")
        'ln of the area in µm²'
        """
        if name not in morphology_feature_names():
            raise KeyError(f"The morphology encoder has no feature {name!r}; see morphology_feature_names().")
        return next(text for pattern, text in FAMILIES.items() if re.fullmatch(pattern, name))

    def embed(self, tiles: np.ndarray, mpp: float | None = None) -> np.ndarray:
        """Features of tiles.

        Parameters
        ----------
        tiles
            (n, px, px, 3) uint8, of at least 16 pixels a side.
        mpp
            µm per pixel of these tiles; by default the encoder's.

        Returns
        -------
        Float32 of shape (n, dim).

        Raises
        ------
        ValueError
            If the tiles are no such array or ``mpp`` is not positive.
        """
        tiles = _checked_tiles(tiles)
        scale = self.mpp if mpp is None else _positive("mpp", mpp)
        out = np.empty((len(tiles), self.dim), np.float32)

        def fill(i: int) -> None:
            out[i] = list(describe(tiles[i], scale, self._stains).values())

        with ThreadPoolExecutor(settings.threads) as pool:
            list(pool.map(fill, range(len(tiles))))
        return out


def _positive(name: str, value: float) -> float:
    if not (np.isfinite(value) and value > 0):
        raise ValueError(f"{name} is {value!r}; it must be a positive number.")
    return float(value)


def _checked_vectors(vectors: Any) -> np.ndarray:
    array = np.array(vectors, np.float64)
    if array.shape != (2, 3) or not np.isfinite(array).all() or np.linalg.matrix_rank(array, tol=1e-3) < 2:
        raise ValueError(
            f"stain_vectors are two different colours, (2, 3): haematoxylin and eosin; these are {array.tolist()}."
        )
    return array


def _checked_tiles(tiles: Any) -> np.ndarray:
    tiles = np.ascontiguousarray(checked_tiles(tiles))
    if tiles.shape[1] < SMALLEST_PX:
        raise ValueError(
            f"The morphology encoder takes tiles of {SMALLEST_PX} pixels a side or more; these have {tiles.shape[1]}."
        )
    return tiles
