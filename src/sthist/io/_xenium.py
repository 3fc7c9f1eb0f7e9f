"""Xenium folders."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

from sthist import _elements, scale

if TYPE_CHECKING:
    from spatialdata import SpatialData


def xenium(path: str | Path, **kwargs: Any) -> SpatialData:
    """Read the output folder of a Xenium run, in micrometres.

    :func:`spatialdata_io.xenium` reads it; this adds the coordinate system ``um``, in which every element is
    registered, and records which image is the nuclear stain, which is H&E, and which points are the transcripts.

    Parameters
    ----------
    path
        The folder, with ``experiment.xenium``.
    kwargs
        Passed on to :func:`spatialdata_io.xenium`.

    Returns
    -------
    A SpatialData in memory.

    Raises
    ------
    FileNotFoundError
        If there is no such folder, or it has no ``experiment.xenium``.
    ValueError
        If ``experiment.xenium`` states no pixel size, or the image's metadata another one.

    Examples
    --------
    >>> import sthist
    >>> sdata = sthist.io.xenium("outs")  # doctest: +SKIP
    >>> sthist.tl.virtual_he(sdata)  # doctest: +SKIP
    """
    import spatialdata_io

    specs = Path(path) / "experiment.xenium"
    if not specs.exists():
        msg = f"{path} is no Xenium folder: it has no experiment.xenium."
        raise FileNotFoundError(msg)
    pixel_size = json.loads(specs.read_text()).get("pixel_size")
    if not isinstance(pixel_size, int | float) or pixel_size <= 0:
        msg = f"{specs} states no pixel size in µm (pixel_size is {pixel_size!r})."
        raise ValueError(msg)
    sdata = spatialdata_io.xenium(path, **kwargs)
    stain = next((name for name in ("morphology_focus", "morphology_mip") if name in sdata.images), None)
    if stain is None:
        msg = f"{path} gave no morphology image ({_elements.describe('images', sdata.images)}); sthist needs the nuclear stain."
        raise ValueError(msg)
    scale.record_mpp(sdata, stain, "pixel_size of experiment.xenium", float(pixel_size))
    for stated, value in _stated_by_image(Path(path), stain).items():
        scale.record_mpp(sdata, stain, stated, value)
    scale.register(sdata, stain, float(pixel_size))
    elements = _elements.find_high_res(sdata, image=stain)
    _elements.set_role(
        sdata,
        "nuclear",
        {"images": [stain], "channel": elements.nuclear_channel, "cytoplasm": list(elements.cytoplasm_channels)},
    )
    if elements.points is not None:
        _elements.set_role(sdata, "transcripts", {"points": elements.points, "gene": elements.gene})
    if elements.table is not None:
        _elements.set_role(sdata, "cells", {"table": elements.table})
    he = [name for name in sdata.images if _elements.HE_NAMES.search(name)]
    if len(he) == 1:
        _elements.set_role(sdata, "he", {"image": he[0]})
    return sdata


def _stated_by_image(folder: Path, stain: str) -> dict[str, float]:
    """µm/px in the metadata of the vendor's morphology image."""
    import tifffile

    from sthist.io._images import ome_scale_and_channels

    files = [*sorted((folder / stain).glob("*.ome.tif")), folder / f"{stain}.ome.tif"]
    for file in files:
        if file.exists():
            with tifffile.TiffFile(file) as tiff:
                return ome_scale_and_channels(tiff)[0]
    return {}
