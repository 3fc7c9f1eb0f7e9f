"""Samples of HEST-1k."""

from __future__ import annotations

import warnings
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from sthist import scale
from sthist._settings import logger
from sthist.io._files import checks
from sthist.io._parts import spots
from sthist.io._parts.matrix import raw_counts, require_unique, unique_genes
from sthist.io._parts.sample import CELL_RADIUS_UM
from sthist.io._research import hest_parts
from sthist.io._research.hest_table import facts_of, read_record

if TYPE_CHECKING:
    from collections.abc import Collection, Mapping, Sequence

    from anndata import AnnData
    from spatialdata import SpatialData

TABLE: tuple[str, ...] = ("st/{id}.h5ad", "{id}.h5ad")
IMAGE: tuple[str, ...] = ("wsis/{id}.tif", "{id}.tif")
METADATA: tuple[str, ...] = ("metadata/{id}.json", "{id}.json")
# Where a part of a sample lies: in the folders of HEST-1k, or beside its other files.
PARTS: dict[str, tuple[str, ...]] = {
    "nuclei": tuple(
        f"{folder}{{id}}_cellvit_seg.{ending}"
        for ending in ("parquet", "geojson", "geojson.zip")
        for folder in ("cellvit_seg/", "")
    ),
    "tissue": ("tissue_seg/{id}_contours.geojson", "{id}_contours.geojson"),
    "cell_boundaries": tuple(
        f"{folder}{{id}}_xenium_cell_seg.{ending}"
        for ending in ("parquet", "geojson.zip")
        for folder in ("xenium_seg/", "")
    ),
    "nucleus_boundaries": tuple(
        f"{folder}{{id}}_xenium_nucleus_seg.{ending}"
        for ending in ("parquet", "geojson.zip")
        for folder in ("xenium_seg/", "")
    ),
    "transcripts": ("transcripts/{id}_transcripts.parquet", "{id}_transcripts.parquet"),
}
SAVED = "aligned_adata.h5ad"
# In the folder of one sample, as the HEST library saves what it has put together.
SAVED_NAMES: dict[tuple[str, ...], tuple[str, ...]] = {
    TABLE: (SAVED,),
    IMAGE: ("aligned_fullres_HE.tif",),
    METADATA: ("metrics.json", "meta.json"),
    PARTS["nuclei"]: ("cellvit_seg.parquet", "cellvit_seg.geojson"),
    PARTS["tissue"]: ("tissue_contours.geojson",),
    PARTS["cell_boundaries"]: ("he_cell_seg.parquet",),
    PARTS["nucleus_boundaries"]: ("he_nucleus_seg.parquet",),
    PARTS["transcripts"]: ("aligned_transcripts.parquet",),
}
POOLED = {"Xenium", "Visium HD"}  # technologies whose molecules or bins HEST sums up in squares without gaps
SPOT_FIELDS = ("spot_diameter", "inter_spot_dist")
ESTIMATED, EMBEDDED = "pixel_size_um_estimated", "pixel_size_um_embedded"


def hest(
    path: str | Path,
    ids: str | Sequence[str] | None = None,
    *,
    mpp: float | Mapping[str, float] | None = None,
    image: bool = True,
    parts: Collection[str] | None = None,
) -> SpatialData | dict[str, SpatialData]:
    """Read samples of HEST-1k, in micrometres.

    The scale is HEST's ``pixel_size_um_estimated``, measured on the spots or taken from the vendor's alignment, which
    its authors use, too. ``pixel_size_um_embedded`` is what the original file stated, often a printer's 72 dpi or a
    thumbnail's; where it differs by more than 2 %, both are said.

    Parameters
    ----------
    path
        A local copy of HEST-1k, with ``st``, ``wsis`` and ``metadata``, complete or not; a folder in which these files
        of a sample lie side by side; the folder of a sample that the HEST library has saved (``aligned_adata.h5ad``);
        or the ``.h5ad`` file of a sample.
    ids
        One sample or several, as ``"TENX95"``; by default all that ``path`` has. :func:`sthist.io.hest_table` helps to
        choose.
    mpp
        µm per pixel in place of HEST's, one for all or by sample. Where it contradicts HEST's, both are said.
    image
        Whether to read the H&E; without it, the spots alone are there.
    parts
        Which of ``"nuclei"``, ``"tissue"``, ``"transcripts"``, ``"cell_boundaries"`` and ``"nucleus_boundaries"`` to
        read; by default those that the sample has.

    Returns
    -------
    A SpatialData for one sample (``ids`` is a text, or ``path`` is of one sample), else a mapping of id to SpatialData.
    In memory; H&E and transcripts are read as they are needed. All of it is registered in ``um`` and, in
    full-resolution pixels, in ``global``:

    * ``images["he"]``, with the pyramid of the file;
    * ``tables["table"]``: raw counts (int32), linked to ``shapes["spots"]``, with ``obsm["spatial"]``, (n, 2), the
      centres in µm. Spots are circles; where HEST has pooled molecules or bins (Xenium, Visium HD), they are squares as
      large as they are apart. Rows of such a sample that lie on no lattice are cells: ``shapes["cells"]``;
    * ``shapes["nuclei"]``: CellViT's nuclei with their ``class``; ``shapes["tissue"]``; ``shapes["cell_boundaries"]``
      and ``shapes["nucleus_boundaries"]``: the vendor's; ``points["transcripts"]`` with ``feature_name``;
    * ``attrs["sthist"]["sample"]``: name, patient, batch (the study), organ, technology, species, preservation,
      disease, licence, as of :func:`sthist.io.hest_table`.

    Raises
    ------
    FileNotFoundError
        If a sample, its image or its metadata are missing.
    ImportError
        If the image's compression needs the extra ``wsi``.
    KeyError
        If a file has not the columns or entries it should have.
    ValueError
        If there is no scale; if the spots are so far apart that they contradict it (Visium, Spatial Transcriptomics);
        if more than 5 % of them lie outside of the image; if the counts are not raw; if a barcode is there twice; if a
        file is truncated or empty.

    Notes
    -----
    The layout is that of HEST-1k 1.0 to 1.3 (Jaume et al., NeurIPS 2024; hub id MahmoodLab/hest). The data are licensed
    by those who made them, the collection CC BY-NC-SA 4.0.

    Examples
    --------
    >>> import json, pathlib, tempfile, anndata, numpy as np, sthist
    >>> root = pathlib.Path(tempfile.mkdtemp())
    >>> (root / "st").mkdir(), (root / "metadata").mkdir()
    (None, None)
    >>> spots = anndata.AnnData(np.array([[3.0], [0.0]]), obsm={"spatial": np.array([[100, 200], [300, 200]])})
    >>> spots.write_h5ad(root / "st" / "T1.h5ad")
    >>> facts = {"st_technology": "Visium", "pixel_size_um_estimated": 0.5}
    >>> _ = (root / "metadata" / "T1.json").write_text(json.dumps(facts))
    >>> sdata = sthist.io.hest(root, "T1", image=False)
    >>> sdata["table"].obsm["spatial"].tolist()
    [[50.0, 100.0], [150.0, 100.0]]

    The Visium samples of breast of a whole copy:

    >>> table = sthist.io.hest_table("hest_data")  # doctest: +SKIP
    >>> breast = table.index[(table.organ == "Breast") & (table.technology == "Visium")]  # doctest: +SKIP
    >>> samples = sthist.io.hest("hest_data", breast, parts=["tissue"])  # doctest: +SKIP
    """
    require_parts(parts)
    root, there, alone = _samples(Path(path))
    wanted = spots.chosen(root, ids, there, "st/{}.h5ad")
    given = spots.by_sample(mpp, wanted)
    samples = {name: _read_sample(root, name, given.get(name), image, parts) for name in wanted}
    return samples[wanted[0]] if isinstance(ids, str) or alone else samples


def require_parts(parts: Collection[str] | None) -> None:
    """Refuse other parts than those of :data:`PARTS`."""
    if parts is not None and (isinstance(parts, str) or set(parts) - set(PARTS)):
        raise ValueError(f"parts= is {parts!r}; it is a list of some of {list(PARTS)}.")


def _samples(path: Path) -> tuple[Path, list[str], bool]:
    """The folder, the samples that it has, and whether it is of one sample."""
    if path.is_file() and path.suffix == ".h5ad":
        if path.name == SAVED:
            return path.parent, [path.resolve().parent.name], True
        return path.parent.parent if path.parent.name == "st" else path.parent, [path.stem], True
    if not path.is_dir():
        raise FileNotFoundError(
            f"There is no folder {path}. Give a local copy of HEST-1k, with st, wsis and metadata, or a sample's .h5ad "
            "file."
        )
    if (path / SAVED).is_file():
        return path, [path.resolve().name], True
    beside = sorted(file.stem for file in path.glob("*.h5ad"))
    return path, sorted(file.stem for file in path.glob("st/*.h5ad")) or beside, False


def _find(root: Path, name: str, places: tuple[str, ...]) -> Path | None:
    saved = (root / SAVED).is_file()
    names = SAVED_NAMES[places] if saved else [place.format(id=name) for place in places]
    return next((root / place for place in names if (root / place).is_file()), None)


def _read_sample(root: Path, name: str, mpp: float | None, image: bool, parts: Collection[str] | None) -> SpatialData:
    metadata, record = read_record(root, name, _find(root, name, METADATA))
    size, source = _scale(metadata, record, mpp)
    file = _require(root, name, TABLE)
    slide_file = _require(root, name, IMAGE) if image else None
    table, px = _read_table(file)
    kind, size_px = _form(file, metadata, record, _pitch(record, table, px), size, mpp)
    slide = None
    if slide_file is not None:
        slide = spots.read_slide_image(slide_file, size, source, mpp)
        spots.require_inside(file, "obsm['spatial']", px, slide_file, slide[0])
    sdata = spots.build_sample(table, px, size, source, size_px=size_px, kind=kind, he=slide)
    _add_parts(sdata, root, name, parts)
    scale.register_system(sdata, "global", np.diag([size, size, 1.0]))
    spots.record_sample(sdata, name, **facts_of(record))
    return sdata


def _require(root: Path, name: str, places: tuple[str, ...]) -> Path:
    file = _find(root, name, places)
    if file is None:
        hint = " Download it, or leave the H&E out with image=False." if places is IMAGE else ""
        raise FileNotFoundError(
            f"{root} has not all of sample {name!r}: there is no {places[0].format(id=name)}.{hint}"
        )
    return file


def _scale(path: Path, record: dict[str, Any], mpp: float | None) -> tuple[float, str]:
    """The µm per pixel, and who states it; what contradicts it is said."""
    others = [EMBEDDED]
    if mpp is not None:
        size, source = scale.agreed_mpp(str(path), {}, mpp, ""), "the argument mpp="
        others = [ESTIMATED, EMBEDDED]
    else:
        if ESTIMATED in record and record[ESTIMATED] is None:
            raise ValueError(
                f"{path}: {ESTIMATED!r} is empty ({EMBEDDED!r} is {record.get(EMBEDDED)!r}); give the µm per pixel "
                "with mpp=."
            )
        size, source = checks.require_number(path, record, ESTIMATED), f"{ESTIMATED} of {path.name}"
    for name in others:
        value = record.get(name)
        if isinstance(value, int | float) and abs(value / size - 1) > scale.TOLERANCE:
            logger.warning("%s: %s is %.4g µm/px, %s %.4g µm/px; the latter is taken.", path, name, value, source, size)
    return size, source


def _read_table(path: Path) -> tuple[AnnData, np.ndarray]:
    """Raw counts by spot, and the spots' centres in pixels."""
    import anndata as ad

    with checks.reading(path), warnings.catch_warnings():
        # Both are seen to below; the third is said of files of older versions of anndata.
        warnings.filterwarnings("ignore", "(Observation|Variable) names are not unique", UserWarning)
        warnings.filterwarnings("ignore", category=ad.OldFormatWarning)
        try:
            stored = ad.read_h5ad(path)
        except (KeyError, TypeError, AttributeError) as error:  # of another HDF5 file, or one that lacks a part
            raise ValueError(
                f"{path} holds no table of counts as anndata writes it: {error}. Copy the file again."
            ) from None
    checks.require_rows(path, stored.n_obs, "spots (rows of obs)")
    require_unique(path, stored.obs_names, "barcode")
    if "spatial" not in stored.obsm:
        raise KeyError(
            f"{path} has no obsm['spatial'], the spots' centres in pixels; its obsm has {list(stored.obsm)}."
        )
    px = spots.require_positions(path, "obsm['spatial']", stored.obsm["spatial"], stored.obs_names)
    counts = raw_counts(path, stored.X, stored.obs_names, stored.var_names, "X")
    # Nothing else is kept: uns holds a small picture and factors that fit pixels, not µm.
    var = stored.var.set_axis(unique_genes(path, stored.var_names), axis=0)
    return ad.AnnData(counts, obs=stored.obs.copy(), var=var), px


def _pitch(record: dict[str, Any], table: AnnData, px: np.ndarray) -> float | None:
    """Distance between neighbours in pixels; None where the rows lie on no lattice."""
    legacy = record.get("st_technology") == "Spatial Transcriptomics"
    return spots.array_pitch(table.obs_names, px) if legacy else spots.spot_pitch(px)


def _form(
    path: Path, metadata: Path, record: dict[str, Any], pitch: float | None, mpp: float, given: float | None
) -> tuple[str, float]:
    """Whether the rows are round spots, squares or cells, and how large they are in pixels."""
    if record.get("st_technology") in POOLED:
        if pitch is not None:
            return "squares", pitch
        logger.info("%s: the rows lie on no lattice; they are taken for cells.", path)
        return "cells", 2 * CELL_RADIUS_UM / mpp
    diameter, step = _spot_size(metadata, record)
    if pitch is not None and abs(pitch * mpp / step - 1) > scale.TOLERANCE:
        found = (
            f"{path}: neighbouring spots of obsm['spatial'] are {pitch:.4g} px apart, which should be {step:g} µm; "
            f"that is {step / pitch:.4g} µm/px"
        )
        if given is None:
            raise ValueError(f"{found}, but {ESTIMATED} of {metadata} is {mpp:.4g}. Give the right one with mpp=.")
        logger.warning("%s; mpp=%.4g is taken.", found, mpp)
    return "circles", diameter / mpp


def _spot_size(path: Path, record: dict[str, Any]) -> tuple[float, float]:
    """Diameter of the spots and distance between them, in µm."""
    usual = dict(zip(SPOT_FIELDS, spots.SPOTS_UM.get(str(record.get("st_technology")), ()), strict=False))
    stated = {name: record[name] for name in SPOT_FIELDS if record.get(name) is not None}
    diameter, step = (checks.require_number(path, record | usual | stated, name) for name in SPOT_FIELDS)
    if diameter > step:  # as for NCBI759 of HEST 1.1
        logger.warning(
            f"{path}: spots of {diameter:g} µm cannot be {step:g} µm apart; spot_diameter and inter_spot_dist are "
            "taken for exchanged."
        )
        return step, diameter
    return diameter, step


def _add_parts(sdata: SpatialData, root: Path, name: str, parts: Collection[str] | None) -> None:
    for part, places in PARTS.items():
        if parts is not None and part not in parts:
            continue
        file = _find(root, name, places)
        if file is None:
            if parts is not None:
                logger.warning("%s has no %s of sample %r.", root, part, name)
        elif part == "transcripts":
            hest_parts.add_transcripts(sdata, file)
        else:
            hest_parts.add_outlines(sdata, part, file)
