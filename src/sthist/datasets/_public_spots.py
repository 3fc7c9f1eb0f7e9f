"""Public sets of spots, single cells and tiles, downloaded once or read from your copy."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

from sthist._settings import logger
from sthist.datasets import _sources
from sthist.datasets._download import fetch
from sthist.datasets._files import first, folder_with, from_hub, unpacked

if TYPE_CHECKING:
    from collections.abc import Sequence

    from anndata import AnnData
    from spatialdata import SpatialData

STNET_COLUMNS = ["patient", "replicate", "count_matrix", "spot_coordinates", "histology_image", "tumor_annotation"]
HER2ST_FOLDERS = ("/ST-cnts/", "/ST-imgs/", "/ST-spotfiles/", "/lbl/")


def her2st(
    sections: str | Sequence[str] | None = None, path: str | Path | None = None, *, image: bool = True
) -> SpatialData | dict[str, SpatialData]:
    """HER2-positive breast cancer, legacy Spatial Transcriptomics with H&E (Andersson et al. 2021; CC BY 4.0).

    Parameters
    ----------
    sections
        One or several of ``"A1"`` to ``"H3"``; by default all 36. The letter is the patient, who is named
        ``"her2st: A"``, so that no other study's A is taken for the same.
    path
        A copy of the repository or of its folder ``data``, if you have it: nothing is downloaded.
    image
        Whether to read the H&E, which are read whole.

    Returns
    -------
    What :func:`sthist.io.legacy_st` gives if ``sections`` is a text, else a mapping of section to that. Pathologist's
    labels are in ``obs["label"]`` where the study has them.

    Raises
    ------
    ConnectionError
        If the files cannot be had; it says which files to put where by hand.
    FileNotFoundError
        If there is no such section.

    Examples
    --------
    >>> import sthist
    >>> samples = sthist.datasets.her2st(["A1", "B1"])  # doctest: +SKIP
    """
    from sthist import io
    from sthist.io._parts.spots import chosen

    root = Path(path) if path is not None else unpacked(_sources.HER2ST, _is_of_her2st)
    counts = {file.name.split(".")[0]: file for file in sorted(root.rglob("ST-cnts/*.tsv*"))}
    samples = {}
    for name in chosen(root, sections, list(counts), "ST-cnts/{}.tsv.gz"):
        picture = first(root, f"ST-imgs/*/{name}/*.jpg")
        if picture is None:
            logger.info("her2st: %s has no H&E of section %s.", root, name)
        samples[name] = io.legacy_st(
            counts[name],
            spots=first(root, f"ST-spotfiles/{name}_selection.tsv*") or root / f"ST-spotfiles/{name}_selection.tsv",
            image=picture if image else None,
            labels=first(root, f"lbl/{name}_labeled_coordinates.tsv"),
            name=name,
            patient=f"her2st: {name[0]}",
            batch="her2st",
        )
    return samples[sections] if isinstance(sections, str) else samples


def stnet(
    sections: str | Sequence[str] | None = None, path: str | Path | None = None, *, image: bool = True
) -> SpatialData | dict[str, SpatialData]:
    """Breast cancer, legacy Spatial Transcriptomics with H&E, the data of ST-Net (He et al. 2020; CC BY 4.0).

    Parameters
    ----------
    sections
        One or several, as ``"BC23287_C1"``, patient and replicate; by default all 68.
    path
        The unpacked files with ``metadata.csv``, if you have them: nothing is downloaded.
    image
        Whether to read the H&E, which are read whole.

    Returns
    -------
    What :func:`sthist.io.legacy_st` gives if ``sections`` is a text, else a mapping of section to that;
    ``obs["label"]`` is tumour or not.

    Raises
    ------
    ConnectionError
        If the files cannot be had; it says which files to put where by hand.
    FileNotFoundError
        If there is no such section.

    Examples
    --------
    >>> import sthist
    >>> sdata = sthist.datasets.stnet("BC23287_C1")  # doctest: +SKIP
    """
    from sthist import io
    from sthist.io._files.checks import read_csv
    from sthist.io._parts.spots import chosen

    root = folder_with(Path(path) if path is not None else unpacked(_sources.STNET), "metadata.csv")
    table = read_csv(root / "metadata.csv", STNET_COLUMNS, dtype=str, keep_default_na=False)
    rows = {f"{row['patient']}_{row['replicate']}": row for row in table.to_dict("records")}
    samples = {
        name: io.legacy_st(
            root / rows[name]["count_matrix"],
            spots=root / rows[name]["spot_coordinates"],
            image=root / rows[name]["histology_image"] if image else None,
            labels=root / rows[name]["tumor_annotation"] if rows[name]["tumor_annotation"] else None,
            name=name,
            patient=rows[name]["patient"],
            batch="stnet",
        )
        for name in chosen(root / "metadata.csv", sections, list(rows), "patient and replicate {}")
    }
    return samples[sections] if isinstance(sections, str) else samples


def hest(
    ids: str | Sequence[str], path: str | Path | None = None, **kwargs: Any
) -> SpatialData | dict[str, SpatialData]:
    """Samples of HEST-1k, from the hub (Jaume et al. 2024; CC BY-NC-SA 4.0, given on request).

    It holds sections of other public sets, such as her2st and ST-Net, under other names: do not train on one and
    evaluate on the other.

    Parameters
    ----------
    ids
        One sample or several, as ``"TENX95"``.
    path
        A copy, if you have it: nothing is downloaded.
    kwargs
        Passed on to :func:`sthist.io.hest`. What ``parts`` and ``image`` leave out is not downloaded.

    Returns
    -------
    What :func:`sthist.io.hest` gives: a SpatialData if ``ids`` is a text, else a mapping of id to SpatialData.

    Raises
    ------
    PermissionError
        If you have not been given access, or are not logged in.
    ConnectionError
        If the network fails, or :attr:`sthist.settings.offline` is set and the files are not in the cache.

    Examples
    --------
    >>> import sthist
    >>> samples = sthist.datasets.hest(["TENX95", "NCBI785"], parts=["tissue"])  # doctest: +SKIP
    """
    from sthist import io
    from sthist.io._research.hest import IMAGE, METADATA, PARTS, TABLE, require_parts

    if path is None:
        require_parts(kwargs.get("parts"))
        parts = PARTS if kwargs.get("parts") is None else kwargs["parts"]
        where = [*TABLE, *METADATA, *(IMAGE if kwargs.get("image", True) else ())]
        where += [pattern for part in parts for pattern in PARTS[part]]
        # A copy of the same outlines as text is several times as large.
        where = [pattern for pattern in where if "/" in pattern and not pattern.endswith(("seg.geojson", ".zip"))]
        path = from_hub("hest", ids, where, "*.csv")
    return io.hest(path, ids, **kwargs)


def stimage(
    ids: str | Sequence[str], path: str | Path | None = None, **kwargs: Any
) -> SpatialData | dict[str, SpatialData]:
    """Slides of STimage-1K4M, from the hub (Chen et al. 2024).

    Parameters
    ----------
    ids
        One slide or several, as ``"Human_Breast_Andersson_10142021_ST_A1"``.
    path
        A copy, if you have it: nothing is downloaded.
    kwargs
        Passed on to :func:`sthist.io.stimage`.

    Returns
    -------
    What :func:`sthist.io.stimage` gives: a SpatialData if ``ids`` is a text, else a mapping of slide to SpatialData.

    Raises
    ------
    PermissionError
        If you have not been given access, or are not logged in.
    ConnectionError
        If the network fails, or :attr:`sthist.settings.offline` is set and the files are not in the cache.

    Examples
    --------
    >>> import sthist
    >>> sdata = sthist.datasets.stimage("Human_Breast_Andersson_10142021_ST_A1")  # doctest: +SKIP
    """
    from sthist import io

    if path is None:
        where = ["*/coord/{id}_coord.csv", "*/gene_exp/{id}_count.csv", "annotation/{id}_anno.csv"]
        where += ["*/image/{id}.png"] * bool(kwargs.get("image", True))
        path = from_hub("stimage", ids, where, "meta/*.csv")
    return io.stimage(path, ids, **kwargs)


def single_cell_reference(tissue: str, path: str | Path | None = None, *, backed: bool = False) -> AnnData:
    """Annotated single cells that cell types of spots can be estimated with.

    Parameters
    ----------
    tissue
        ``"lung"`` (Madissoon et al. 2022) or ``"breast"`` (Human Breast Cell Atlas, Kumar et al. 2023), the references
        of Hist2Cell. That of the breast has no lasting address: get it as h5ad from the page that the error names.
    path
        The h5ad file, if you have it: nothing is downloaded.
    backed
        Whether to leave the counts in the file.

    Returns
    -------
    The file's AnnData, cells x genes.

    Raises
    ------
    FileNotFoundError
        If the reference has to be got by hand; it says where.
    ValueError
        If there is no reference of that tissue.

    Examples
    --------
    >>> import sthist
    >>> cells = sthist.datasets.single_cell_reference("lung", backed=True)  # doctest: +SKIP
    """
    import anndata as ad

    if tissue not in _sources.REFERENCES:
        raise ValueError(f"tissue= is {tissue!r}; it is one of {', '.join(_sources.REFERENCES)}.")
    source = _sources.REFERENCES[tissue]
    if path is None and not source.files:
        raise FileNotFoundError(f"{source.describe()} Download the h5ad of all cells there, and give it as path=.")
    return ad.read_h5ad(fetch(source)[0] if path is None else path, backed="r" if backed else None)


def bracs(path: str | Path | None = None, mpp: float = 0.25, **kwargs: Any) -> Any:
    """Regions of breast tumours with one of seven labels, H&E (Brancati et al. 2022); given to those who register.

    Parameters
    ----------
    path
        Your copy, such as ``BRACS_RoI/latest_version``. Without it, the error says how to get one.
    mpp
        µm per pixel: the slides were scanned at 40x.
    kwargs
        Passed on to :func:`sthist.io.tile_folder`.

    Returns
    -------
    What :func:`sthist.io.tile_folder` gives.

    Raises
    ------
    FileNotFoundError
        If there is no such folder; it says how to get the data.

    Examples
    --------
    >>> import sthist
    >>> tiles = sthist.datasets.bracs("BRACS_RoI/latest_version")  # doctest: +SKIP
    """
    return _walled("bracs", path, mpp, kwargs)


def spider(path: str | Path | None = None, mpp: float = 0.5, **kwargs: Any) -> Any:
    """Tiles of several organs with labels, H&E (SPIDER, Nechaev et al. 2025); given on request.

    Parameters
    ----------
    path
        Your copy of one organ. Without it, the error says how to get one.
    mpp
        µm per pixel: the tiles are of 20x.
    kwargs
        Passed on to :func:`sthist.io.tile_folder`.

    Returns
    -------
    What :func:`sthist.io.tile_folder` gives.

    Raises
    ------
    FileNotFoundError
        If there is no such folder; it says how to get the data.

    Examples
    --------
    >>> import sthist
    >>> tiles = sthist.datasets.spider("spider/SPIDER-breast")  # doctest: +SKIP
    """
    return _walled("spider", path, mpp, kwargs)


def _walled(name: str, folder: str | Path | None, mpp: float, kwargs: dict[str, Any]) -> Any:
    from sthist import io

    source, steps = _sources.WALLED[name]
    if folder is None or not Path(folder).is_dir():
        what = "" if folder is None else f"{folder} is no folder. "
        raise FileNotFoundError(
            f"{what}{source.describe()} It cannot be downloaded without you. {steps} Then: "
            f"sthist.datasets.{name}(folder)."
        )
    return io.tile_folder(folder, mpp=mpp, **kwargs)


def _is_of_her2st(member: str) -> bool:
    return any(folder in member for folder in HER2ST_FOLDERS)
