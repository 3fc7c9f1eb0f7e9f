"""Samples of HEST-1k."""

from __future__ import annotations

import warnings
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from sthist import _sample, scale
from sthist._faults import fault_in
from sthist._reading import reader
from sthist._settings import logger
from sthist.io._annotations.objects import read_features, read_geometry
from sthist.io._files import checks
from sthist.io._files.images import size_px
from sthist.io._parts import spots
from sthist.io._parts.matrix import raw_counts, unique_genes
from sthist.io._parts.outlines import read_geoparquet
from sthist.io._parts.points import molecules
from sthist.io._parts.sample import CELL_RADIUS_UM
from sthist.io._research.hest_table import facts_of, read_record

if TYPE_CHECKING:
    from collections.abc import Collection, Mapping, Sequence

    import geopandas as gpd
    from anndata import AnnData
    from spatialdata import SpatialData


def _places(folder: str, name: str, *endings: str) -> tuple[str, ...]:
    """Where a file of a sample may lie: in its folder of HEST-1k, or beside the sample's other files."""
    return tuple(f"{where}{{id}}{name}.{ending}" for ending in endings for where in (f"{folder}/", ""))


TABLE = _places("st", "", "h5ad")
IMAGE = _places("wsis", "", "tif")
METADATA = _places("metadata", "", "json")
PARTS = {
    "nuclei": _places("cellvit_seg", "_cellvit_seg", "parquet", "geojson", "geojson.zip"),
    "tissue": _places("tissue_seg", "_contours", "geojson"),
    "cell_boundaries": _places("xenium_seg", "_xenium_cell_seg", "parquet", "geojson.zip"),
    "nucleus_boundaries": _places("xenium_seg", "_xenium_nucleus_seg", "parquet", "geojson.zip"),
    "transcripts": _places("transcripts", "_transcripts", "parquet"),
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
GENE = "feature_name"
PLACES = ("he_x", "he_y")  # columns of the transcripts in pixels of the H&E
KEPT = ["cell_id", "overlaps_nucleus", "qv"]
ESTIMATED, EMBEDDED = "pixel_size_um_estimated", "pixel_size_um_embedded"


@reader
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
    names = spots.chosen(root, ids, there, "st/{}.h5ad")
    scales = spots.by_sample(mpp, names)
    samples = {name: _read_sample(root, name, scales.get(name), image, parts) for name in names}
    return samples[names[0]] if isinstance(ids, str) or alone else samples


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
    beside = [file.stem for file in checks.files_like(path, "*.h5ad")]
    return path, [file.stem for file in checks.files_like(path, "st/*.h5ad")] or beside, False


def _find(root: Path, name: str, places: tuple[str, ...]) -> Path | None:
    saved = (root / SAVED).is_file()
    names = SAVED_NAMES[places] if saved else [place.format(id=name) for place in places]
    return next((root / place for place in names if checks.is_there(root / place)), None)


def _read_sample(root: Path, name: str, mpp: float | None, image: bool, parts: Collection[str] | None) -> SpatialData:
    metadata, record = read_record(root, name, _find(root, name, METADATA))
    size, source = _scale(metadata, record, mpp)
    file = _require(root, name, TABLE)
    slide_file = _require(root, name, IMAGE) if image else None
    table, px = _read_table(file)
    legacy = record.get("st_technology") == "Spatial Transcriptomics"
    pitch = spots.array_pitch(table.obs_names, px) if legacy else spots.spot_pitch(px)
    kind, size_px = _form(file, metadata, record, pitch, size, mpp)
    slide = spots.read_slide_image(slide_file, size, source, mpp, file, "obsm['spatial']", px)
    facts = facts_of(record)
    sdata = spots.build_sample(name, table, px, size, source, size_px=size_px, kind=kind, he=slide, **facts)
    for part, places in PARTS.items():
        if parts is not None and part not in parts:
            continue
        part_file = _find(root, name, places)
        if part_file is None:
            if parts is not None:
                logger.warning("%s has no %s of sample %r.", root, part, name)
        elif part == "transcripts":
            _add_transcripts(sdata, part_file)
        else:
            _add_outlines(sdata, part, part_file)
    scale.register_system(sdata, "global", np.diag([size, size, 1.0]))
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
    if mpp is not None:
        size, source = scale.agreed_mpp(str(path), {}, mpp, ""), "the argument mpp="
    elif ESTIMATED in record and record[ESTIMATED] is None:
        raise ValueError(
            f"{path}: {ESTIMATED!r} is empty ({EMBEDDED!r} is {record.get(EMBEDDED)!r}); give the µm per pixel with "
            "mpp=."
        )
    else:
        size, source = checks.require_number(path, record, ESTIMATED), f"{ESTIMATED} of {path.name}"
    for name in (ESTIMATED, EMBEDDED):
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
            checks.require_hdf5(path)
            stored = ad.read_h5ad(path)
        except (KeyError, TypeError, AttributeError) as error:  # of another HDF5 file, or one that lacks a part
            raise ValueError(
                f"{path} holds no table of counts as anndata writes it: {error}.{fault_in(path, error)} Copy the file "
                "again."
            ) from None
    checks.require_rows(path, stored.n_obs, "spots (rows of obs)")
    checks.require_unique(path, stored.obs_names, "barcode")
    if "spatial" not in stored.obsm:
        raise KeyError(
            f"{path} has no obsm['spatial'], the spots' centres in pixels; its obsm has {list(stored.obsm)}."
        )
    px = spots.require_positions(path, "obsm['spatial']", stored.obsm["spatial"], stored.obs_names)
    counts = raw_counts(path, stored.X, stored.obs_names, stored.var_names, "X")
    # Nothing else is kept: uns holds a small picture and factors that fit pixels, not µm.
    var = stored.var.set_axis(unique_genes(path, stored.var_names), axis=0)
    return ad.AnnData(counts, obs=stored.obs.copy(), var=var), px


def _form(
    path: Path, metadata: Path, record: dict[str, Any], pitch: float | None, mpp: float, argument: float | None
) -> tuple[str, float]:
    """Whether the rows are round spots, squares or cells, and how large they are in pixels."""
    technology = record.get("st_technology")
    if not isinstance(technology, str | None):
        raise ValueError(
            f"{metadata}: 'st_technology' is {technology!r:.80}; it should be a name. Copy the file again."
        )
    if technology in POOLED:
        if pitch is not None:
            return "squares", pitch
        logger.info("%s: the rows lie on no lattice; they are taken for cells.", path)
        return "cells", 2 * CELL_RADIUS_UM / mpp
    diameter, step = _spot_size(metadata, record)
    if pitch is not None and abs(pitch * mpp / step - 1) > scale.TOLERANCE:
        apart = (
            f"{path}: neighbouring spots of obsm['spatial'] are {pitch:.4g} px apart, which should be {step:g} µm; "
            f"that is {step / pitch:.4g} µm/px"
        )
        if argument is None:
            raise ValueError(f"{apart}, but {ESTIMATED} of {metadata} is {mpp:.4g}. Give the right one with mpp=.")
        logger.warning("%s; mpp=%.4g is taken.", apart, mpp)
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


def _add_outlines(sdata: SpatialData, name: str, path: Path) -> None:
    """Polygons of a file as shapes, in pixels."""
    from spatialdata.models import ShapesModel
    from spatialdata.transformations import Identity

    frame = read_geoparquet(path) if path.suffix == ".parquet" else _read_geojson(path)
    geometry = frame.geometry
    keep = (geometry.geom_type.isin(["Polygon", "MultiPolygon"]) & ~geometry.is_empty).to_numpy()
    if not keep.any():
        raise ValueError(
            f"{path} has no polygons in its {len(frame)} features. Copy the file again, or leave it out with parts=."
        )
    if not keep.all():
        logger.warning("%s: %d of %d features are no polygons; they are left out.", path, int((~keep).sum()), len(keep))
    sdata.shapes[name] = ShapesModel.parse(frame[keep], transformations={"global": Identity()})


def _read_geojson(path: Path) -> gpd.GeoDataFrame:
    """Polygons with their class, or with the piece of tissue that they are of."""
    import geopandas as gpd

    rows = [row for number, feature in enumerate(read_features(path)) for row in _rows(path, number, feature)]
    if not rows:
        raise ValueError(f"{path} has no polygons: 'features' is empty.")
    return gpd.GeoDataFrame(rows, geometry="geometry")


def _rows(path: Path, number: int, feature: dict[str, Any]) -> list[dict[str, Any]]:
    """The polygons of a feature: one each of a class of nuclei; of a piece of tissue, one without its holes."""
    import shapely

    properties = feature.get("properties") or {}
    if not isinstance(feature.get("geometry"), dict):
        raise KeyError(f"{path}: feature {number} has no 'geometry'. Is the file truncated?")
    geometry = read_geometry(path, f"'geometry' of feature {number}", feature["geometry"])
    classified = properties.get("classification")
    name = classified.get("name") if isinstance(classified, dict) else None
    if "hole" in properties:  # the older files, where some of the polygons are holes of the others
        parts = np.asarray(geometry.geoms)
        hole = np.zeros(len(parts), bool)
        hole[properties["hole"]] = True
        tissue = shapely.union_all(parts[~hole]).difference(shapely.union_all(parts[hole]))
        return [{"tissue_id": name, "geometry": tissue}]
    if name is not None:
        return [{"class": str(name), "geometry": part} for part in shapely.get_parts(geometry)]
    return [{**properties, "geometry": geometry}]


def _add_transcripts(sdata: SpatialData, path: Path) -> None:
    """Molecules as points in pixels of the H&E, read when needed."""
    from spatialdata.transformations import Identity

    needed = checks.Needed(path.name, numeric=PLACES, gene=GENE)
    width, height = size_px(sdata.images["he"]) if "he" in sdata.images else (0, 0)
    box = (0.0, 0.0, float(width), float(height)) if width else None
    sdata.points["transcripts"] = molecules(path, needed, {"global": Identity()}, kept=KEPT, within=box)
    _sample.set_role(sdata, "transcripts", {"points": "transcripts", "gene": GENE})
