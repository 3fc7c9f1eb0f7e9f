"""Stain algebra: optical density, stain vectors, concentrations (Beer-Lambert)."""

from __future__ import annotations

import numpy as np

__all__ = ["concentrations", "macenko", "optical_density", "ruderman_lab", "to_rgb"]

TISSUE_OD = 0.15
"""Optical density (base e) below which a pixel counts as background when stain vectors are estimated."""

RGB_TO_LMS = np.array([[0.3811, 0.5783, 0.0402], [0.1967, 0.7244, 0.0782], [0.0241, 0.1288, 0.8444]])
"""Responses of the eye's long, middle and short cones to red, green and blue (Reinhard et al. 2001)."""

LMS_TO_LAB = np.diag([3**-0.5, 6**-0.5, 2**-0.5]) @ np.array([[1, 1, 1], [1, 1, -2], [1, -1, 0]])
"""Logarithms of the cones' responses to lightness, yellow against blue, and red against green (Ruderman et al.

1998).
"""


def optical_density(rgb: np.ndarray, white: float | np.ndarray = 255.0) -> np.ndarray:
    """Optical density, -ln(I / I0), of 8-bit pixels.

    Parameters
    ----------
    rgb
        Grey levels 0 to 255, any shape ending in 3.
    white
        Grey level of unstained glass, I0.

    Returns
    -------
    Float32 of the same shape, not negative.

    Examples
    --------
    >>> import numpy as np
    >>> from sthist.stains import optical_density
    >>> optical_density(np.array([255, 255 / np.e, 255 / np.e**2])).round(3).tolist()
    [0.0, 1.0, 2.0]
    """
    return np.maximum(-np.log(np.maximum(np.asarray(rgb, np.float32), 1.0) / white), 0.0).astype(np.float32)


def macenko(rgb: np.ndarray, *, white: float | np.ndarray = 255.0, percentile: float = 1.0) -> np.ndarray:
    """Haematoxylin and eosin vectors of an H&E image, after Macenko et al. 2009.

    Optical densities of stained pixels are projected on the plane of their two main directions; the robust extremes of
    the angle in that plane are the stains.

    Parameters
    ----------
    rgb
        Pixels, any shape ending in 3.
    white
        Grey level of unstained glass.
    percentile
        Percentile that counts as the extreme angle, and 100 minus it.

    Returns
    -------
    Float64 of shape (2, 3): unit vectors of haematoxylin (first) and eosin.

    Raises
    ------
    ValueError
        If fewer than 100 pixels are stained.

    Examples
    --------
    >>> import numpy as np
    >>> from sthist import stains
    >>> truth = np.array([[0.65, 0.70, 0.29], [0.07, 0.99, 0.11]])
    >>> amounts = np.random.default_rng(0).gamma(1.0, 0.5, (20000, 2)) * [[1, 0.6]]
    >>> rgb = stains.to_rgb(amounts, truth / np.linalg.norm(truth, axis=1, keepdims=True))
    >>> np.abs(stains.macenko(rgb, percentile=0.1) @ np.linalg.pinv(truth)).argmax(1).tolist()
    [0, 1]
    """
    density = optical_density(rgb, white).reshape(-1, 3)
    density = density[(density > TISSUE_OD).all(1)].astype(np.float64)
    if len(density) < 100:
        raise ValueError(
            f"Only {len(density)} pixels are stained (optical density above {TISSUE_OD} in all channels); stain "
            "vectors need at least 100. Is this an H&E image with 8-bit RGB pixels?"
        )
    _, directions = np.linalg.eigh(np.cov(density.T))
    plane = directions[:, [2, 1]] * np.where(directions[:, [2, 1]].sum(0) < 0, -1, 1)
    projected = density @ plane
    angles = np.arctan2(projected[:, 1], projected[:, 0])
    extremes = np.percentile(angles, [percentile, 100 - percentile])
    vectors = np.stack([plane @ [np.cos(angle), np.sin(angle)] for angle in extremes])
    vectors = np.maximum(vectors, 0)
    vectors /= np.linalg.norm(vectors, axis=1, keepdims=True)
    # Haematoxylin is blue-violet: it absorbs the larger share of red.
    return vectors[np.argsort(-vectors[:, 0] / vectors.sum(1))]


def concentrations(rgb: np.ndarray, vectors: np.ndarray, *, white: float | np.ndarray = 255.0) -> np.ndarray:
    """Least-squares amount of each stain in each pixel.

    Parameters
    ----------
    rgb
        Pixels, any shape ending in 3.
    vectors
        (2, 3) stain vectors.
    white
        Grey level of unstained glass.

    Returns
    -------
    Float32, the shape of ``rgb`` with 2 (haematoxylin, eosin) in place of 3, not negative.

    Examples
    --------
    >>> import numpy as np
    >>> from sthist import stains
    >>> vectors = np.array([[0.8, 0.6, 0.0], [0.0, 0.6, 0.8]])
    >>> stains.concentrations(stains.to_rgb(np.array([[0.5, 0.25]]), vectors, dtype=float), vectors).round(3).tolist()
    [[0.5, 0.25]]
    """
    inverse = np.linalg.pinv(np.asarray(vectors, np.float64)).astype(np.float32)
    return np.maximum(optical_density(rgb, white) @ inverse, 0.0)


def to_rgb(
    amounts: np.ndarray, vectors: np.ndarray, *, white: float | np.ndarray = 255.0, dtype: type = np.uint8
) -> np.ndarray:
    """The colour of stain amounts: I0 exp(-amounts @ vectors).

    Parameters
    ----------
    amounts
        Any shape ending in 2: haematoxylin, eosin.
    vectors
        (2, 3) stain vectors.
    white
        Grey level of unstained glass.
    dtype
        ``uint8`` is rounded; a float type is not.

    Returns
    -------
    The shape of ``amounts`` with 3 in place of 2.

    Examples
    --------
    >>> import numpy as np
    >>> from sthist import stains
    >>> stains.to_rgb(np.zeros((1, 2)), np.eye(2, 3)).tolist()
    [[255, 255, 255]]
    """
    rgb = white * np.exp(-np.asarray(amounts, np.float32) @ np.asarray(vectors, np.float32))
    return np.clip(np.round(rgb), 0, 255).astype(np.uint8) if dtype is np.uint8 else rgb.astype(dtype)


def ruderman_lab(rgb: np.ndarray) -> np.ndarray:
    """The decorrelated colours l, alpha, beta of Ruderman et al. 1998, in which Reinhard et al. 2001 transfer colour.

    They are not CIE's L*a*b*. Logarithms are natural, of responses to grey levels from 0 to 255, as HistomicsTK has
    them.

    Parameters
    ----------
    rgb
        Grey levels 0 to 255, any shape ending in 3.

    Returns
    -------
    Float64 of the same shape.

    References
    ----------
    Ruderman, Cronin and Chiao 1998, Statistics of cone responses to natural images; Reinhard, Ashikhmin, Gooch and
    Shirley 2001, Color transfer between images.

    Examples
    --------
    >>> import numpy as np
    >>> from sthist import stains
    >>> darker, lighter = stains.ruderman_lab(np.array([[100, 80, 120], [200, 160, 240]]))
    >>> np.abs(lighter - darker).round(3).tolist()  # twice the light is sqrt(3) ln 2 more of l, and no other hue
    [1.201, 0.0, 0.0]
    """
    lms = np.maximum(np.asarray(rgb, np.float64), 1.0) @ RGB_TO_LMS.T
    return np.log(lms) @ LMS_TO_LAB.T
