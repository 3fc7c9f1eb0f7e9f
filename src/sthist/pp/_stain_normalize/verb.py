"""One stain for all sections: measured on a slide, and applied to its tiles or to the whole image."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

from sthist import _store, scale
from sthist._sample.samples import over_samples
from sthist.pp._stain_normalize.normalizer import StainNormalizer
from sthist.pp._stain_normalize.reference import Method, StainReference, Triple, require_method
from sthist.tiles import Canvas, TileReader, TileSpec, map_tiles
from sthist.tiles._images.image import open_he

if TYPE_CHECKING:
    from spatialdata import SpatialData

    from sthist.tiles import Image

WRITE_PX = 512


@over_samples
def stain_normalize(
    data: SpatialData,
    image: str | None = None,
    *,
    method: Method = "macenko",
    reference: Any = None,
    within: Any = None,
    n_tiles: int = 200,
    mpp: float = 1.0,
    white: float | Triple | None = None,
    key_added: str | None = None,
    overwrite: bool = False,
    seed: int | None = None,
    progress: bool | None = None,
) -> StainNormalizer:
    """Measure the stain of an H&E image, and make what brings it to that of a reference.

    One fit for the whole slide, on tiles drawn from its tissue (``shapes["tissue"]`` if there, else found in the
    image); glass does not count. Nothing is written unless there is ``key_added``: the normaliser is applied to tiles
    as they are read, by ``TileReader(..., normalizer=normalizer)``.

    Vahadane's method (sparse dictionaries) is not here: the libraries that have it are archived, experimental, or have
    changed colours with the version of their solver.

    Parameters
    ----------
    data
        One sample, or a mapping of name to sample; the path of a store stands for its sample.
    image
        Key of the H&E image; found where there is one.
    method
        ``"macenko"``: the directions of haematoxylin and eosin in optical density, and the 99th percentile of each
        one's amount. ``"reinhard"``: mean and spread of the colours of the tissue. ``"channels"``: mean and standard
        deviation of red, green and blue of the tissue, for the input of a network (of a :class:`sthist.models.MoCoV3`,
        ``reference=model.reference``).
    reference
        What to bring it to: a :class:`StainReference`, or the path of its JSON file; a SpatialData with one H&E, or an
        (h, w, 3) uint8 array, which are measured in the same way. :meth:`StainReference.default` by default.
    within
        Part of the section to measure: a box (x0, y0, x1, y1) in µm, a polygon in µm, or the key of shapes.
    n_tiles
        How many tiles, 128 pixels wide, to measure at most.
    mpp
        µm per pixel at which they are read; an image that is coarser is read as it is. Compare slides at one
        resolution.
    white
        Grey level of clear glass; by default the median of what is bright outside the tissue, 255 where there is no
        glass.
    key_added
        Write the normalised image under this name, whole, upright in ``um``; nothing is written by default.
    overwrite
        Replace an image of that name.
    seed
        Of the choice of tiles; ``settings.seed`` by default.
    progress
        Show a bar while the image is written; ``settings.progress`` by default.

    Returns
    -------
    The normaliser; of several samples, a mapping of name to normaliser. With ``key_added`` it writes
    ``sdata.images[key_added]`` ((3, y, x) uint8, a pyramid, in the coordinate systems of the image) and
    ``sdata.attrs["sthist"]["results"][key_added]``, also to the store of a backed object; a run that was stopped is
    continued by the same call. The sample's H&E is still the one that was measured: name the other with ``image=`` to
    have it used.

    Raises
    ------
    KeyError
        If there is no such image, or none that could be meant.
    ValueError
        If the image is not RGB of 8 bits, has no scale, or shows no tissue, too few stained pixels or one stain alone;
        if the reference is of another kind or method; if the name is taken.

    References
    ----------
    Macenko et al. 2009, A method for normalizing histology slides for quantitative analysis. Reinhard et al. 2001,
    Color transfer between images. Vahadane et al. 2016, Structure-preserving color normalization and sparse stain
    separation for histological images.

    Examples
    --------
    >>> import sthist
    >>> sdata = sthist.datasets.toy(size_um=300)
    >>> normalizer = sthist.pp.stain_normalize(sdata)
    >>> spec = sthist.tiles.TileSpec(size_um=112, px=224)
    >>> reader = sthist.tiles.TileReader(sdata, "he", spec, normalizer=normalizer)
    >>> reader.read([[150.0, 150.0]]).shape
    (1, 224, 224, 3)
    """
    require_method(method)
    he = open_he(data, image)
    if key_added is not None:
        _store.require_free(data, key_added, "images", overwrite=overwrite)
    how: dict[str, Any] = {"method": method, "n_tiles": n_tiles, "mpp": mpp, "seed": seed}
    target = _resolve(reference, how)
    source = StainReference.fit(data, he.key, within=within, white=white, **how)
    normalizer = StainNormalizer(source, target)
    if key_added is not None:
        _write(data, he, normalizer, key_added, overwrite, progress)
    return normalizer


def _resolve(reference: Any, how: dict[str, Any]) -> StainReference:
    if reference is None:
        return StainReference.default(how["method"])
    if isinstance(reference, str | Path):
        return StainReference.load(reference)
    return reference if isinstance(reference, StainReference) else StainReference.fit(reference, **how)


def _write(
    sdata: SpatialData, he: Image, normalizer: StainNormalizer, key_added: str, overwrite: bool, progress: bool | None
) -> None:
    """Write the normalised image, block by block."""
    mpp = he.finest_mpp
    reader = TileReader.from_image(he, TileSpec.from_mpp(mpp, WRITE_PX), fill=255, allow_upsampling=True)
    systems = scale.other_systems([sdata.images[he.key]])
    fingerprint = {
        "image": he.key,
        "normalizer": normalizer.to_dict(),
        "size": he.fields[0].size,
        "matrix": he.fields[0].to_um.tolist(),
        "systems": {name: matrix.tolist() for name, matrix in systems.items()},
    }
    digest = hashlib.sha256(json.dumps(fingerprint, sort_keys=True).encode()).hexdigest()
    with _store.writing(sdata), _store.workspace(sdata, key_added, digest) as folder:
        _store.require_free_in_store(_store.store_path(sdata), key_added, "images", overwrite=overwrite)
        canvas = Canvas(
            folder, key_added, extent_um=reader.extent_um, mpp=mpp, fingerprint=fingerprint, transformations=systems
        )
        map_tiles([reader], normalizer, canvas, overlap=0.0, concurrent=True, progress=progress)
        made = _store.provenance("pp.stain_normalize", mpp=mpp, **fingerprint)
        _store.publish(sdata, "images", key_added, canvas.store, made)
