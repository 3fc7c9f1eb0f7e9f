"""Public in-situ sections, downloaded once and read as samples."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from sthist._settings import logger
from sthist.datasets import _sources
from sthist.datasets._files import first, folder_with, unpacked

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from spatialdata import SpatialData

HE, HE_ALIGNMENT = "*_he_image.ome.tif", "*_he_imagealignment.csv"
XENIUM_FILES = ("experiment.xenium", "cells.parquet", "transcripts.parquet", "cell_feature_matrix.h5", "cells.zarr.zip")
XENIUM_ENDINGS = ("_boundaries.parquet", "gene_panel.json", "metrics_summary.csv", "morphology_mip.ome.tif")
COSMX_FOLDERS = ("CellComposite", "CellLabels")


def xenium_breast(path: str | Path | None = None, **kwargs: Any) -> SpatialData:
    """Xenium section of human breast cancer with H&E (10x Genomics; Janesick et al. 2023).

    Replicate 1 of the preview data, with the H&E made after it and its alignment. About 10 GB; CC BY 4.0.

    Parameters
    ----------
    path
        The output folder, if you have it: it is read as :func:`sthist.io.xenium` does, and nothing is downloaded.
    kwargs
        Passed on to :func:`sthist.io.xenium`, such as ``he`` and ``he_alignment``.

    Returns
    -------
    What :func:`sthist.io.xenium` gives: a SpatialData in micrometres.

    Raises
    ------
    ConnectionError
        If the network fails, or :attr:`sthist.settings.offline` is set and the files are not in the cache; it says
        which files to put where by hand.
    OSError
        If there is not enough space.

    Notes
    -----
    Downloads lie in the folder ``datasets`` of :attr:`sthist.settings.cache_dir`. Of the archive, what the reader
    needs is unpacked; after that, the archive may be deleted.

    Examples
    --------
    >>> import sthist
    >>> sdata = sthist.datasets.xenium_breast()  # doctest: +SKIP
    """
    return _xenium("breast", path, kwargs)


def _section(tissue: str, what: str) -> Callable[..., SpatialData]:
    """The function of a section whose H&E is not part of the download."""

    def section(path: str | Path | None = None, **kwargs: Any) -> SpatialData:
        return _xenium(tissue, path, kwargs)

    section.__name__ = section.__qualname__ = f"xenium_{tissue}"
    section.__doc__ = f"""Xenium section of human {what} (10x Genomics, CC BY 4.0).

    A training tissue of ST2HE. The H&E is read if you have put it, by hand, beside the download: what has to lie where
    is logged. Result and errors are those of :func:`xenium_breast`.

    Parameters
    ----------
    path
        The output folder, if you have it.
    kwargs
        Passed on to :func:`sthist.io.xenium`.

    Examples
    --------
    >>> import sthist
    >>> sdata = sthist.datasets.xenium_{tissue}("outs", he="he.ome.tif", he_alignment="he.csv")  # doctest: +SKIP
    """
    return section


xenium_lung = _section("lung", "lung cancer: immuno-oncology panel and custom genes")
xenium_pancreas = _section("pancreas", "pancreatic ductal adenocarcinoma: immuno-oncology panel")
xenium_brain = _section("brain", "glioblastoma: immuno-oncology panel and custom genes")
xenium_liver = _section("liver", "liver cancer: multi-tissue panel")


def cosmx_nsclc(sample: str = "Lung5_Rep1", path: str | Path | None = None, **kwargs: Any) -> SpatialData:
    """CosMx section of non-small-cell lung cancer (NanoString; He et al. 2022).

    Parameters
    ----------
    sample
        ``"Lung5_Rep1"`` to ``"Lung5_Rep3"``, ``"Lung6"``, ``"Lung9_Rep1"``, ``"Lung9_Rep2"``, ``"Lung12"`` or
        ``"Lung13"``.
    path
        The folder of flat files and images, if you have it: nothing is downloaded.
    kwargs
        Passed on to :func:`sthist.io.cosmx`.

    Returns
    -------
    What :func:`sthist.io.cosmx` gives: a SpatialData in micrometres.

    Raises
    ------
    ConnectionError
        If the files cannot be had; it says which files to put where by hand.
    ValueError
        If there is no such sample, or the archive is damaged.

    Examples
    --------
    >>> import sthist
    >>> sdata = sthist.datasets.cosmx_nsclc("Lung9_Rep1")  # doctest: +SKIP
    """
    from sthist import io

    if sample not in _sources.COSMX:
        raise ValueError(f"sample= is {sample!r}; it is one of {', '.join(_sources.COSMX)}.")
    if path is not None:
        return io.cosmx(path, **kwargs)
    files = unpacked(_sources.COSMX[sample], _is_of_cosmx)
    return io.cosmx(folder_with(files, "*_exprMat_file.csv*"), **kwargs)


def _xenium(tissue: str, path: str | Path | None, kwargs: dict[str, Any]) -> SpatialData:
    from sthist import io

    if path is not None:
        return io.xenium(path, **kwargs)
    source = _sources.XENIUM[tissue]
    folder = folder_with(unpacked(source, _is_of_xenium), "experiment.xenium")
    if "he" not in kwargs:
        files = {"he": first(source.folder, HE), "he_alignment": first(source.folder, HE_ALIGNMENT)}
        if None not in files.values():
            kwargs = files | kwargs
        else:
            msg = "%s is read without its H&E: to have it, get %s and %s from %s and put both into %s."
            logger.info(msg, source.title, HE, HE_ALIGNMENT, source.homepage, source.folder)
    return io.xenium(folder, **kwargs)


def _is_of_xenium(member: str) -> bool:
    name = member.rpartition("/")[2]
    return name in XENIUM_FILES or name.endswith(XENIUM_ENDINGS) or "morphology_focus" in member


def _is_of_cosmx(member: str) -> bool:
    *folders, name = member.split("/")
    tables = name.endswith((".csv", ".csv.gz")) and "polygons" not in name
    return not name.startswith("._") and (tables or bool(set(folders) & set(COSMX_FOLDERS)))
