"""Scores of classes over a slide, as an image."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Literal

import numpy as np

from sthist import _sample, _store
from sthist._sample.samples import over_samples, safe_names
from sthist._scratch import temporary_folder
from sthist._settings import logger, progress_bar
from sthist.encoders import Encoder
from sthist.pp._dense_features.cells import box_of, large_tiles, tissue_cells
from sthist.systems.annotation.heat_maps.sliding_windows import (
    KernelGrid,
    crop_scores,
    dense_scores,
    kernel_sizes,
    mean_over_kernels,
    smooth,
)
from sthist.systems.annotation.scorers import scorer_of
from sthist.tiles import TileReader, TileSpec
from sthist.tiles._images.image import open_he
from sthist.tiles._images.reader import MAX_UPSAMPLING

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

    from spatialdata import SpatialData

    from sthist.tiles import Image

DENSE_PX = 224
"""Side of the tiles whose tokens are pooled, where the encoder has no spec."""


@over_samples
def heatmap(
    data: SpatialData,
    model: Any,
    *,
    encoder: Any = None,
    image: str | None = None,
    spec: TileSpec | None = None,
    stride_um: float | None = None,
    classes: Sequence[str] | None = None,
    templates: Sequence[str] | None = None,
    temperature: float | None = None,
    within: Any = None,
    tissue: str | bool | None = None,
    smooth_um: float | None = None,
    method: Literal["crop", "dense", "auto"] = "crop",
    batch_size: int = 64,
    device: str | None = None,
    key_added: str | None = None,
    overwrite: bool = False,
    progress: bool | None = None,
) -> None:
    """Score a slide class by class with a small kernel that slides over it, and write the scores as an image.

    A kernel of 64 px stops every 16 px; what it sees is embedded and scored. A place of the size of one stride gets the
    mean of the scores of all kernels that cover it, and a Gaussian smooths these. So the map is finer than the kernel,
    and needs no segmentation.

    Parameters
    ----------
    data
        One sample, or a mapping of name to sample; the path of a store stands for its sample.
    model
        What scores an embedding: a mapping of class to phrases, such as ``{"tumour": ["invasive carcinoma"],
        "stroma": ["fibrous stroma", "collagen"]}``, read as :func:`sthist.tl.annotate` reads it (``encoder`` must
        embed texts); a trained classifier, with ``predict`` and ``classes``; or a function of embeddings (n, d) that
        returns (n, classes). Scores of prompts are probabilities: shares among all classes that are described.
    encoder
        Name of an encoder, or an encoder; the model's own by default, where it has one.
    image
        Key of the image, of 8-bit RGB; the H&E by default.
    spec
        What the kernel sees: its side in µm, and the pixels on which it is read, also where the image is coarser. By
        default the tile that the model was trained on (``model.spec``), or 64 px of the image. Its µm per pixel is
        changed a little where a stride would not be whole pixels.
    stride_um
        From kernel to kernel in µm; a quarter of the kernel by default. The kernel is a whole number of strides.
    classes
        Those to write, all by default; for a function, their names.
    templates, temperature
        Of prompts, as in :func:`sthist.tl.annotate`: sentences around the phrases, and what similarities are divided
        by.
    within
        Part of the slide: a box (x0, y0, x1, y1) in µm, a polygon, or the key of shapes.
    tissue
        Key of the outlines of the tissue; by default ``"tissue"``, or what :func:`sthist.pp.tissue` would find. False:
        all is scored.
    smooth_um
        Standard deviation of the Gaussian; one stride by default, 0 for none. What is not tissue counts nowhere.
    method
        ``"crop"`` embeds each kernel by itself. ``"dense"`` embeds large tiles once, and pools the tokens that lie in
        the kernel: much faster, and not the same: tokens see their surroundings, and a model of embeddings need not
        understand them. ``"auto"`` is dense where the encoder has tokens of the size of its embeddings.
    batch_size
        Crops or tiles per batch.
    device
        Where an encoder runs that is loaded by its name, or that the model has trained along; ``settings.device`` by
        default.
    key_added
        Name of the image; ``<class>_heatmap`` by default, ``heatmap`` for several classes.
    overwrite
        Replace an image of that name.
    progress
        Show a progress bar; ``settings.progress`` by default.

    Returns
    -------
    None. Writes, also to the store of a backed object, ``sdata.images[key_added]``: (classes, y, x) float32, one pixel
    per stride, registered in ``um``; NaN where there is no tissue, which plots leave clear and
    :func:`sthist.tl.transfer_labels` takes for "nothing known". Channels are the classes, by names that can be stored;
    what they were called stands in ``sdata.attrs["sthist"]["results"][key_added]["classes"]``.

    Raises
    ------
    KeyError
        If there is no such image, shapes or class.
    TypeError
        If ``model`` is nothing that scores, or there is no encoder.
    ValueError
        If sizes do not fit each other; if the image has no scale, is not RGB, or is too coarse; if there is no tissue;
        if scores are not finite; if the name is taken; if ``method="dense"`` and the encoder has no tokens.

    Examples
    --------
    >>> import numpy as np, sthist
    >>> class Blueness(sthist.encoders.Encoder):
    ...     name = "blueness"
    ...
    ...     def embed(self, tiles):
    ...         return tiles.mean((1, 2), dtype=np.float32) / 255
    >>> sdata = sthist.datasets.toy(size_um=300)
    >>> score = lambda rows: rows[:, 2] - rows[:, 0]
    >>> sthist.tl.heatmap(sdata, score, encoder=Blueness(), classes=["blue"], progress=False)
    >>> sdata["blue_heatmap"].dims, str(sdata["blue_heatmap"].dtype)
    (('c', 'y', 'x'), 'float32')
    """
    _sample.require_one_sample(data)
    he = open_he(data, image)
    encoder = _encoder_of(model, encoder, device)
    if method not in {"crop", "dense", "auto"}:
        raise ValueError(f"method is {method!r}; it is 'crop', 'dense' or 'auto'.")
    if method == "dense" and not encoder.can_dense:
        raise ValueError(f"{_name(encoder)!r} has one embedding per tile and no tokens: use method='crop'.")
    if smooth_um is not None and not (np.isfinite(smooth_um) and smooth_um >= 0):
        raise ValueError(f"smooth_um is {smooth_um!r}; it is a number of µm from 0 on.")
    scorer = scorer_of(model, encoder, classes, templates, temperature)
    channels = safe_names(scorer.classes)
    if len(channels) != len(scorer.classes):
        raise ValueError(f"A class is there twice: {scorer.classes}.")
    key = key_added or (f"{next(iter(channels.values()))}_heatmap" if len(channels) == 1 else "heatmap")
    _store.require_free(data, key, "images", overwrite=overwrite)
    sizes = kernel_sizes(he, scorer.spec, spec, stride_um)
    grid = KernelGrid.over(box_of(data, he, within), *sizes)
    inside = tissue_cells(data, he, (grid.origin_um, grid.stride_um, grid.shape), within, tissue)
    if isinstance(encoder, Encoder):  # a kernel is smaller than the tile of most: that is a warning
        encoder = encoder.at(TileSpec.from_mpp(grid.mpp, grid.kernel_px), strict=False)
    dense = method == "dense" or (method == "auto" and _has_fitting_tokens(encoder))
    sigma = 1.0 if smooth_um is None else smooth_um / grid.stride_um
    reader = _reader(he, grid, encoder, dense=dense, allow_upsampling=spec is not None)
    active = grid.kernels_on(inside)
    logger.info("%d of %d kernels of %g µm lie on tissue.", active.sum(), active.size, grid.kernel_px * grid.mpp)
    with temporary_folder("heatmap-") as folder:
        scores = _array(folder, "scores", (*grid.n_kernels, len(channels)))
        scores[:] = np.nan
        with progress_bar("heatmap", int(active.sum()), progress) as advance:
            run: dict[str, Any] = {"score": scorer.score, "out": scores, "advance": advance}
            if dense:
                dense_scores(reader, grid, active, encoder.dense, batch_size=max(1, batch_size // 4), **run)
            else:
                embed = getattr(encoder, "embed_batches", lambda batches: map(encoder.embed, batches))
                crop_scores(reader, grid, active, embed, batch_size=batch_size, **run)
        values = _array(folder, "means", (len(channels), *grid.shape))
        mean_over_kernels(scores, grid, inside, values)
        if sigma > 0:
            means, values = values, _array(folder, "smoothed", values.shape)
            smooth(means, sigma, values)
        made = _store.provenance(
            "tl.heatmap",
            image=he.key,
            encoder=_name(encoder),
            encoder_provenance=getattr(encoder, "provenance", {}),
            classes={channel: name for name, channel in channels.items()},
            kernel_um=grid.kernel_px * grid.mpp,
            stride_um=grid.stride_um,
            mpp=grid.mpp,
            smooth_um=sigma * grid.stride_um,
            method="dense" if dense else "crop",
            kernels=int(active.sum()),
            **scorer.facts,
        )
        in_memory = _store.store_path(data) is None
        element = _element(np.array(values) if in_memory else values, list(channels.values()), grid)
        _store.add(data, "images", key, element, made, overwrite=overwrite)


def _encoder_of(model: Any, encoder: Any, device: str | None) -> Any:
    """The encoder that is meant, ready to embed."""
    if getattr(model, "needs_tiles", False):
        return _OwnEncoder(model, encoder, device)
    named = getattr(model, "encoder", None) or getattr(getattr(model, "config", None), "encoder", None)
    meant = encoder or named
    if meant is None:
        raise TypeError("Which encoder? Name one with encoder=, such as 'morphology'.")
    if not hasattr(meant, "embed"):
        from sthist import encoders

        meant = encoders.get(meant, device=device)
    if named is not None and hasattr(model, "require_encoder"):
        model.require_encoder(_name(meant))
    return meant


class _OwnEncoder:
    """The encoder that a model has trained along."""

    can_dense = False
    spec = None

    def __init__(self, model: Any, encoder: Any, device: str | None) -> None:
        self.name, self._model = f"{model.config.encoder}, trained", model
        self._prepare: dict[str, Any] = {"encoder": encoder} | ({} if device is None else {"device": device})
        self.provenance = {"source": "trained along with the model"}

    def embed(self, tiles: np.ndarray) -> np.ndarray:
        """Embeddings of the model's own encoder."""
        prepare, self._prepare = self._prepare, {}  # it is prepared once
        return np.asarray(self._model.embed(tiles, **prepare))


def _name(encoder: Any) -> str:
    return str(getattr(encoder, "name", type(encoder).__name__))


def _has_fitting_tokens(encoder: Any) -> bool:
    if not encoder.can_dense:
        return False
    blank = np.full((1, DENSE_PX, DENSE_PX, 3), 255, np.uint8)
    return bool(encoder.dense(blank).shape[-1] == encoder.embed(blank).shape[-1])


def _reader(he: Image, grid: KernelGrid, encoder: Any, *, dense: bool, allow_upsampling: bool) -> TileReader:
    """A reader of what is embedded: blocks of kernels, or the large tiles whose tokens are pooled."""
    spec = TileSpec.from_mpp(grid.mpp, 256)
    if dense:
        spec = large_tiles(grid.stride_um, encoder.spec, TileSpec.from_mpp(grid.mpp, DENSE_PX))
    if abs(spec.mpp / grid.mpp - 1) > 0.02:
        logger.info("Tokens are of tiles of %g µm at %.4g µm/px.", spec.size_um, spec.mpp)
    if he.coarsest_mpp > MAX_UPSAMPLING * spec.mpp and not allow_upsampling:
        raise ValueError(
            f"{he.key!r} has {he.coarsest_mpp:.4g} µm/px, and the model or encoder is for {spec.mpp:.4g} µm/px: more "
            f"than {MAX_UPSAMPLING} times finer than what it shows. Pass spec= to go on."
        )
    return TileReader.from_image(he, spec, fill=255, allow_upsampling=True)


def _array(folder: Path, name: str, shape: tuple[int, ...]) -> np.ndarray:
    """An array of float32 that lies on disk, and in memory as far as it is being used."""
    return np.lib.format.open_memmap(f"{folder}/{name}.npy", mode="w+", dtype=np.float32, shape=shape)


def _element(values: np.ndarray, channels: list[str], grid: KernelGrid) -> Any:
    import dask.array as da
    from spatialdata.models import Image2DModel
    from spatialdata.transformations import Affine

    side, (x0, y0) = grid.stride_um, grid.origin_um
    matrix = np.array([[side, 0, x0], [0, side, y0], [0, 0, 1]])
    return Image2DModel.parse(
        da.from_array(values, chunks=(len(channels), 512, 512)),
        dims=("c", "y", "x"),
        c_coords=channels,
        transformations={_sample.UM: Affine(matrix, ("x", "y"), ("x", "y"))},
    )
