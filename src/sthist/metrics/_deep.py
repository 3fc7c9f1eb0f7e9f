"""Scores that look through a network: LPIPS, FID, KID, CLIP."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Literal

import numpy as np

from sthist._settings import logger, settings
from sthist.metrics._networks import clip_extractor, extract, inception_extractor, lpips_network, lpips_of
from sthist.metrics._pixels import pair, scores, stack

Extractor = Callable[[Any], Any]
"""Takes uint8 torch tensors (n, 3, h, w), gives features (n, d)."""


def lpips(a: Any, b: Any, *, net: Literal["vgg", "alex"] = "vgg", weights: Any = None) -> float | np.ndarray:
    """Learned perceptual distance of each pair of images, after Zhang et al. 2018.

    Parameters
    ----------
    a, b
        uint8 images, (n, h, w, 3) or one (h, w, 3).
    net
        The backbone: VGG-16 or AlexNet, trained on ImageNet.
    weights
        State dict of torchvision's ``vgg16`` or ``alexnet``, as ``.pth`` or ``.safetensors``; by default the one in the
        folder of torch hub. The linear heads come with torchmetrics.

    Returns
    -------
    Float64 of shape (n,), or a float for one image. 0 for equal images.

    Raises
    ------
    MetricUnavailable
        If the weights are not on this machine. Nothing is downloaded.
    ValueError
        If the images cannot be compared, or the weights do not fit.

    Examples
    --------
    >>> import numpy as np
    >>> from sthist.metrics import image
    >>> tiles = np.zeros((2, 64, 64, 3), np.uint8)
    >>> image.lpips(tiles, tiles, weights="alexnet.pth", net="alex")  # doctest: +SKIP
    array([0., 0.])
    """
    one, other, single = pair(a, b)
    return scores(lpips_of(lpips_network(net, weights), one, other), single=single)


def fid(a: Any, b: Any, *, encoder: Extractor | None = None, weights: Any = None) -> float:
    """Fréchet distance between the features of two sets of images.

    Parameters
    ----------
    a, b
        uint8 images (n, h, w, 3); the sets may differ in number and in size of images.
    encoder
        A callable or module that takes uint8 torch tensors (n, 3, h, w), on the CPU or a module's own device, and gives
        features (n, d). By default the 2,048 pooled features of Inception-v3, which make this the FID of Heusel et al.
        2017; images are scaled to 299 px with antialiasing.
    weights
        Weights of that Inception, as torch-fidelity distributes them.

    Returns
    -------
    The distance; 0 for equal sets. With fewer images than features it is biased upwards, and a warning is logged.

    Raises
    ------
    MetricUnavailable
        If no extractor is given, and Inception or its weights are not on this machine. Nothing is downloaded.
    ValueError
        If a set has fewer than two images, these are not 8-bit, or the weights do not fit.

    Examples
    --------
    >>> import numpy as np
    >>> from sthist.metrics import image
    >>> tiles = np.random.default_rng(0).integers(0, 256, (40, 16, 16, 3), dtype=np.uint8)
    >>> colour = lambda batch: batch.float().mean((2, 3))
    >>> round(image.fid(tiles, tiles, encoder=colour), 6)
    0.0
    """
    one, other = _two_sets(a, b, "FID")
    network = feature_extractor("FID", encoder, weights)
    features = extract(network, one), extract(network, other)
    warn_biased(min(len(one), len(other)), features[0].shape[1])
    return frechet(*features)


def kid(
    a: Any,
    b: Any,
    *,
    encoder: Extractor | None = None,
    weights: Any = None,
    subset_size: int = 1000,
    n_subsets: int = 100,
    seed: int | None = None,
) -> float:
    """Kernel distance between the features of two sets of images, after Bińkowski et al. 2018.

    The unbiased squared maximum mean discrepancy of a cubic kernel, averaged over random subsets. Other than FID it is
    not biased for few images.

    Parameters
    ----------
    a, b, encoder, weights
        As of :func:`fid`.
    subset_size
        Images of a subset; all, where there are fewer.
    n_subsets
        How many subsets are drawn.
    seed
        Of the subsets; by default that of the settings.

    Returns
    -------
    The mean over subsets; about 0 for sets that are drawn alike, and then as often below 0 as above.

    Raises
    ------
    MetricUnavailable
        If no extractor is given, and Inception or its weights are not on this machine. Nothing is downloaded.
    ValueError
        If a set or subset has fewer than two images, these are not 8-bit, or the weights do not fit.

    Examples
    --------
    >>> import numpy as np
    >>> from sthist.metrics import image
    >>> tiles = np.random.default_rng(0).integers(0, 256, (40, 16, 16, 3), dtype=np.uint8)
    >>> colour = lambda batch: batch.float().mean((2, 3)) / 255
    >>> image.kid(tiles[:20], tiles[20:] // 2, encoder=colour) > image.kid(tiles[:20], tiles[20:], encoder=colour)
    True
    """
    one, other = _two_sets(a, b, "KID")
    network = feature_extractor("KID", encoder, weights)
    features = extract(network, one), extract(network, other)
    return kernel_distance(*features, subset_size=subset_size, n_subsets=n_subsets, seed=seed)


def clip_similarity(
    a: Any, b: Any, *, encoder: Extractor | str | None = None, weights: Any = None
) -> float | np.ndarray:
    """Cosine similarity of the CLIP embeddings of each pair of images.

    Parameters
    ----------
    a, b
        uint8 images, (n, h, w, 3) or one (h, w, 3).
    encoder
        The name of a CLIP model on the Hugging Face hub that is in the local cache, by default
        ``openai/clip-vit-large-patch14``; or a callable or module, as of :func:`fid`.
    weights
        Folder of a CLIP model, as transformers writes it, in place of a name.

    Returns
    -------
    Float64 of shape (n,), or a float for one image, between -1 and 1; 1 for equal images.

    Raises
    ------
    MetricUnavailable
        If the model is not on this machine. Nothing is downloaded.
    ValueError
        If the images cannot be compared, or the model is no CLIP model.

    Examples
    --------
    >>> import numpy as np
    >>> from sthist.metrics import image
    >>> pink, blue = np.full((8, 8, 3), [250, 180, 210], np.uint8), np.full((8, 8, 3), [40, 30, 200], np.uint8)
    >>> colour = lambda batch: batch.float().mean((2, 3))
    >>> round(image.clip_similarity(pink, blue, encoder=colour), 3)
    0.747
    """
    one, other, single = pair(a, b)
    network = clip_extractor(encoder, weights)
    return scores(cosine(extract(network, one), extract(network, other)), single=single)


def feature_extractor(metric: str, encoder: Extractor | None, weights: Any) -> Extractor:
    """The given extractor, or Inception-v3."""
    if encoder is None:
        return inception_extractor(metric, weights)
    if weights is not None:
        raise ValueError("weights are those of the default network; an extractor brings its own. Give one of the two.")
    return encoder


def warn_biased(n: int, n_features: int) -> None:
    """Say that there are too few images for FID."""
    if n < n_features:
        logger.warning(
            "FID of %d images and %d features is biased upwards: it needs more images than features.", n, n_features
        )


def cosine(one: np.ndarray, other: np.ndarray) -> np.ndarray:
    """Cosine of each pair of features; nan where one has no direction."""
    lengths = np.linalg.norm(one, axis=1) * np.linalg.norm(other, axis=1)
    with np.errstate(invalid="ignore"):
        return (one * other).sum(1) / lengths


def frechet(one: np.ndarray, other: np.ndarray) -> float:
    """Fréchet distance between the normal distributions of two sets of features."""
    if max(len(one), len(other)) < one.shape[1]:
        return _frechet_of_few(one, other)
    import torch
    from torchmetrics.image.fid import FrechetInceptionDistance

    as_they_are = torch.nn.Identity()
    as_they_are.num_features = one.shape[1]
    metric = FrechetInceptionDistance(feature=as_they_are)
    metric.update(torch.from_numpy(other), real=True)
    metric.update(torch.from_numpy(one), real=False)
    return max(0.0, float(metric.compute()))


def _frechet_of_few(one: np.ndarray, other: np.ndarray) -> float:
    """The same of fewer images than features, without matrices of features.

    The trace of the square root of the product of two covariances is the sum of the singular values of the product of
    what they are of.
    """
    difference = one.mean(0) - other.mean(0)
    a, b = ((each - each.mean(0)) / np.sqrt(len(each) - 1) for each in (one, other))
    trace = np.linalg.svd(a @ b.T, compute_uv=False).sum()
    return max(0.0, float((difference**2).sum() + (a**2).sum() + (b**2).sum() - 2 * trace))


def kernel_distance(
    one: np.ndarray, other: np.ndarray, *, subset_size: int = 1000, n_subsets: int = 100, seed: int | None = None
) -> float:
    """Squared maximum mean discrepancy between two sets of features, averaged over subsets."""
    import torch
    from torchmetrics.image.kid import poly_mmd

    if subset_size < 2 or n_subsets < 1:
        raise ValueError(
            f"KID needs at least one subset of at least two images; asked for are {n_subsets} of {subset_size}."
        )
    size = min(subset_size, len(one), len(other))
    draws = 1 if size == len(one) == len(other) else n_subsets
    rng = np.random.default_rng(settings.seed if seed is None else seed)
    values = []
    for _ in range(draws):
        a, b = (torch.from_numpy(features[rng.permutation(len(features))[:size]]) for features in (one, other))
        values.append(float(poly_mmd(b, a)))
    return float(np.mean(values))


def _two_sets(a: Any, b: Any, metric: str) -> tuple[np.ndarray, np.ndarray]:
    """Two stacks of at least two images each."""
    one, other = stack(a, "the first"), stack(b, "the second")
    if min(len(one), len(other)) < 2:
        raise ValueError(f"{metric} compares sets of at least two images; these have {len(one)} and {len(other)}.")
    return one, other
