"""What readers share: the H&E, cells and spots, tables that are linked to them, and the roles of a sample."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from sthist import _alignment, _sample, _store, scale
from sthist._imaging.colours import require_rgb8
from sthist._reading import reader
from sthist._settings import logger
from sthist.io._files.checks import files_like, require_argument, require_unique
from sthist.io._files.images import LooseImage, image_element, read_image

if TYPE_CHECKING:
    from collections.abc import Mapping

    import pandas as pd
    from anndata import AnnData
    from spatialdata import SpatialData

LINK = ("region", "instance_id")  # columns of a table: the shapes, and the name of the row among them
CELL_RADIUS_UM = 5.0  # of a cell that has neither outline nor area


@reader
def slide(path: str | Path, mpp: float | None = None, *, key_added: str = "he") -> SpatialData:
    """An H&E slide alone, as a SpatialData in micrometres.

    TIFF and what is built on it (OME-TIFF, SVS, NDPI, SCN) is read as it is needed, with the pyramid of the file; PNG
    and JPEG are read whole.

    Parameters
    ----------
    path
        TIFF, OME-TIFF, SVS, PNG or JPEG.
    mpp
        µm per pixel. Not needed where the file states it (OME metadata, Aperio's description, resolution tags).
    key_added
        Name of the image.

    Returns
    -------
    A SpatialData with ``images[key_added]``, (3, y, x) uint8, registered in ``um`` and, in pixels, in ``global``.

    Raises
    ------
    FileNotFoundError
        If there is no such file.
    ImportError
        If the slide's compression needs the extra ``wsi``.
    ValueError
        If the file is no image or truncated, has other than three colours of 8 bits, states no µm/px and none is given,
        or states another one.

    Examples
    --------
    >>> import tempfile, pathlib, numpy as np, sthist
    >>> from PIL import Image
    >>> path = pathlib.Path(tempfile.mkdtemp()) / "slide.png"
    >>> Image.fromarray(np.full((40, 60, 3), 240, np.uint8)).save(path)
    >>> sdata = sthist.io.slide(path, mpp=0.5)
    >>> sthist.tiles.read_region(sdata, "he", (0, 0, 30, 20), mpp=1.0).shape
    (20, 30, 3)
    """
    from spatialdata import SpatialData
    from spatialdata.transformations import Identity

    loose = read_he(path, key_added)
    stated = scale.trusted(loose.mpp, mpp)
    size = scale.agreed_mpp(f"image {key_added!r}", stated, mpp, f"{path} states no µm per pixel; give it with mpp=.")
    sdata = SpatialData()
    sdata.images[key_added] = image_element(loose, {"global": Identity()}, name=key_added)
    for source, value in stated.items():
        scale.record_mpp(sdata, key_added, source, value)
    scale.register(sdata, key_added, size)
    _sample.set_role(sdata, "he", {"image": key_added})
    return sdata


def require_he(folder: Path, he: Any, alignment: Any, *, aligned: bool = False) -> None:
    """Check the arguments of an H&E that is laid on a sample, before the sample is read."""
    if he is None and alignment is None:
        return
    if he is None:
        raise ValueError("he_alignment= says where an H&E lies; give the image, too, with he=.")
    if alignment is None:
        files = [file for part in ("image", "_he_*") for file in files_like(folder, f"*{part}alignment*.csv")]
        names = sorted({file.name for file in files})
        names = [name for name in names if "if_imagealignment" not in name]  # of the immunofluorescence
        hint = f" The folder has {', '.join(names)}; is it that one?" if names else ""
        if aligned or names:
            raise ValueError(
                f"Where does the H&E {he} lie? Give its 3 x 3 matrix or landmarks with he_alignment=.{hint}"
            )
    else:
        _alignment.read_alignment(alignment)
    if isinstance(he, str | Path):
        require_argument(he, "he")


def attach_he(
    sdata: SpatialData,
    source: Any,
    *,
    name: str = "he",
    alignment: Any = None,
    to: str | None = None,
    coordinate_system: str | None = None,
    mpp: float | None = None,
) -> None:
    """Add an H&E to a sample in memory, registered by its alignment, which ``attrs`` keep as ``pp.align`` does.

    Without an alignment it lies in a system of its own until it gets one. Nothing is added where ``source`` is None.
    """
    from spatialdata.transformations import Identity

    if source is None:
        return
    place = _alignment.Alignment(np.eye(3)) if alignment is None else _alignment.read_alignment(alignment)
    if name in sdata.images:
        raise ValueError(f"There is an image {name!r} already; register it with pp.align, or give another name.")
    loose = read_he(source, name)
    # A system of its own until it is aligned: an element is always registered somewhere.
    sdata.images[name] = image_element(loose, {f"{name}_px": Identity()}, name=name)
    # Its place tells its scale: what no microscope has, or ``mpp`` contradicts, does not count.
    for stated, value in scale.sensible(scale.trusted(loose.mpp, mpp), f"image {name!r}").items():
        scale.record_mpp(sdata, name, stated, value)
    if alignment is None and coordinate_system is None:
        _sample.set_role(sdata, "he", {"image": name})
        logger.warning(
            f"Nothing says where the H&E lies, and it has no place in 'um' yet: pp.align(sdata, {name!r}, "
            "matrix='auto') finds it."
        )
        return
    try:
        facts = _alignment.align(sdata, name, place, coordinate_system if alignment is None else to)
    except (KeyError, ValueError):
        del sdata.images[name]
        sdata.attrs["sthist"].get("mpp", {}).pop(name, None)
        raise
    _sample.set_role(sdata, "he", {"image": name})
    if alignment is not None:
        records = sdata.attrs["sthist"].setdefault("alignment", {})
        records[name] = _store.provenance("he_alignment", **facts)
        _alignment.log_residuals(name, facts)


def read_he(source: Any, name: str) -> LooseImage:
    """An image file or array that is three colours of 8 bits."""
    loose = read_image(source, name)
    what = f"Image {name!r} ({source if isinstance(source, str | Path) else 'array'})"
    if "z" in loose.dims:
        raise ValueError(f"{what} is no H&E: it has several planes; three colours of uint8 are needed.")
    require_rgb8(what, loose.pixels.shape[0], loose.pixels.dtype)
    return loose


def circles(centres: np.ndarray, radius: Any, names: Any, transformations: Mapping[str, Any]) -> Any:
    """Round shapes, by name."""
    import geopandas as gpd
    from spatialdata.models import ShapesModel

    frame = gpd.GeoDataFrame({"radius": radius}, geometry=gpd.points_from_xy(*centres.T), index=names)
    return ShapesModel.parse(frame, transformations=dict(transformations))


def link_table(table: AnnData, shapes: str, names: Any = None, *, keys: tuple[str, str] = LINK) -> AnnData:
    """A table whose rows are shapes, by the name of each."""
    import pandas as pd
    from spatialdata.models import TableModel

    table.obs[keys[0]] = pd.Categorical([shapes] * table.n_obs)
    table.obs[keys[1]] = table.obs_names.to_numpy() if names is None else names
    table.uns.pop("spatialdata_attrs", None)
    return TableModel.parse(table, region=shapes, region_key=keys[0], instance_key=keys[1])


def record_nuclear(sdata: SpatialData, image: str | None = None) -> _sample.HighResElements:
    """Record which image is the nuclear stain, and give it with the transcripts and cells that go with it."""
    elements = _sample.find_high_res(sdata, image=image)
    cytoplasm = list(elements.cytoplasm_channels)
    role = {"images": list(elements.nuclear), "channel": elements.nuclear_channel, "cytoplasm": cytoplasm}
    _sample.set_role(sdata, "nuclear", role)
    return elements


def record_high_res(sdata: SpatialData, stain: str) -> None:
    """Record which elements are the nuclear stain, the transcripts and the cells."""
    elements = record_nuclear(sdata, stain)
    if elements.points is not None:
        _sample.set_role(sdata, "transcripts", {"points": elements.points, "gene": elements.gene})
    if elements.table is not None:
        _sample.set_role(sdata, "cells", {"table": elements.table})


def match_cells(
    counts: Path, counted: pd.Index, metadata: Path, cells: pd.Index, *, by: str, no_cells: np.ndarray | None = None
) -> np.ndarray:
    """Rows of the counts by cell of the metadata, -1 where it has none; what one of the files lacks is said."""
    require_unique(counts, counted, "cell", by)
    require_unique(metadata, cells, "cell", by)
    rows = counted.get_indexer(cells)
    if not (rows >= 0).any():
        raise ValueError(
            f"{counts} has no counts of the cells in {metadata.name}, by {by}: their names are like {counted[0]!r} and "
            f"{cells[0]!r}. Are both files of one sample?"
        )
    if (rows < 0).any():
        n = int((rows < 0).sum())
        logger.warning("%d of %d cells of %s have no counts in %s; they are left out.", n, len(rows), metadata, counts)
    surplus = ~counted.isin(cells) & (True if no_cells is None else ~no_cells)
    if surplus.any():
        logger.warning(
            f"{surplus.sum()} of {len(counted)} cells of {counts} are not in {metadata}, such as "
            f"{counted[surplus][0]!r}; they are left out."
        )
    return np.asarray(rows)
