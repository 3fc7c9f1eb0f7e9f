"""Miniature copies of research data sets: file names, columns and units as they are shipped."""

from __future__ import annotations

import gzip
import json
import zipfile
from typing import TYPE_CHECKING

import anndata as ad
import geopandas as gpd
import numpy as np
import pandas as pd
import shapely
import tifffile
from PIL import Image
from scipy import sparse
from vendor import he_picture

if TYPE_CHECKING:
    from pathlib import Path

STUDY = "A spatial study"


def visium_lattice(px_per_um: float, corner: tuple[float, float] = (40.0, 30.0)) -> pd.DataFrame:
    """6 x 8 spots, 100 µm apart: place on the array, and x, y in pixels."""
    array = [(row, column) for row in range(6) for column in range(row % 2, 16, 2)]
    spots = pd.DataFrame(array, columns=["array_row", "array_col"])
    spots["x"] = spots["array_col"] * 50 * px_per_um + corner[0]
    spots["y"] = spots["array_row"] * 100 * np.sqrt(3) / 2 * px_per_um + corner[1]
    return spots


def square_lattice(step_px: float, shape: tuple[int, int] = (5, 8), corner=(40.0, 30.0)) -> pd.DataFrame:
    """Rows and columns of spots, x and y in pixels."""
    rows, columns = (axis.ravel() for axis in np.meshgrid(*map(np.arange, shape), indexing="ij"))
    spots = pd.DataFrame({"array_row": rows, "array_col": columns})
    spots["x"], spots["y"] = columns * step_px + corner[0], rows * step_px + corner[1]
    return spots


def counts_of(n: int) -> np.ndarray:
    """Number of the spot + 1, and always 3."""
    return np.stack([np.arange(n) + 1, np.full(n, 3)], 1)


GENES = ["COL1A1", "EPCAM"]


# HEST-1k -------------------------------------------------------------------------------------------------------------


def hest_copy(
    root: Path,
    name: str = "TENX1",
    *,
    technology: str = "Visium",
    mpp: float = 2.0,
    parts: bool = False,
    **metadata: object,
) -> pd.DataFrame:
    """One sample of HEST-1k, the spots of which lie on dark squares; and these, with x and y in pixels."""
    spots = visium_lattice(1 / mpp) if technology == "Visium" else square_lattice(pitch_um(technology) / mpp)
    hest_table(root / "st" / f"{name}.h5ad", spots, mpp)
    hest_image(root / "wsis" / f"{name}.tif", he_picture(300, 470, spots[["x", "y"]].astype(int).to_numpy()), mpp)
    hest_metadata(root / "metadata" / f"{name}.json", name, technology, mpp, **metadata)
    if parts:
        hest_parts(root, name)
    return spots


def pitch_um(technology: str) -> float:
    return {"Spatial Transcriptomics": 100.0, "Xenium": 100.0, "Visium HD": 96.0}[technology]


def hest_table(path: Path, spots: pd.DataFrame, mpp: float) -> None:
    """Pixels of the centres in obsm; a small picture for scanpy in uns."""
    path.parent.mkdir(parents=True, exist_ok=True)
    obs = spots[["array_row", "array_col"]].assign(in_tissue=True)
    obs["pxl_col_in_fullres"], obs["pxl_row_in_fullres"] = spots["x"], spots["y"]
    obs.index = [f"{row:03d}x{column:03d}" for row, column in zip(obs["array_row"], obs["array_col"], strict=True)]
    counts = sparse.csr_matrix(counts_of(len(spots)).astype(np.float32))
    table = ad.AnnData(counts, obs=obs, var=pd.DataFrame({"mito": False}, index=GENES))
    table.obsm["spatial"] = spots[["x", "y"]].to_numpy()
    factors = {"spot_diameter_fullres": 55 / mpp, "tissue_downscaled_fullres_scalef": 0.1}
    pictures = {"downscaled_fullres": np.zeros((30, 47, 3), np.uint8)}
    table.uns["spatial"] = {"ST": {"images": pictures, "scalefactors": factors}}
    table.write_h5ad(path)


def hest_image(path: Path, picture: np.ndarray, mpp: float) -> None:
    """A generic TIFF in tiles, with a pyramid and resolution tags in centimetres."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with tifffile.TiffWriter(path) as file:
        for step in (1, 2):
            options = {"tile": (64, 64), "photometric": "rgb", "compression": "deflate", "metadata": None}
            resolution = (1e4 / (mpp * step),) * 2
            level = np.ascontiguousarray(picture[::step, ::step])
            file.write(level, subfiletype=int(step > 1), resolution=resolution, resolutionunit="CENTIMETER", **options)


def hest_record(name: str, technology: str, mpp: float, **changed: object) -> dict[str, object]:
    """One row of HEST's table of metadata."""
    diameter, step = {"Visium": (55.0, 100.0), "Spatial Transcriptomics": (50.0, 100.0)}.get(technology, (None, None))
    return {
        "dataset_title": STUDY,
        "id": name,
        "image_filename": f"{name}.tif",
        "organ": "Breast",
        "disease_state": "Cancer",
        "oncotree_code": "IDC",
        "species": "Homo sapiens",
        "patient": "Patient 1",
        "st_technology": technology,
        "license": "CC BY 4.0",
        "inter_spot_dist": step,
        "spot_diameter": diameter,
        "preservation_method": "FFPE",
        "pixel_size_um_embedded": mpp,
        "pixel_size_um_estimated": mpp,
        "tissue": "Breast",
        "disease_comment": None,
        "subseries": "S1",
    } | changed


def hest_metadata(path: Path, name: str, technology: str, mpp: float, **changed: object) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(hest_record(name, technology, mpp, **changed)))


def squares(centres: list[tuple[float, float]], half: float = 5.0) -> list[shapely.Polygon]:
    return [shapely.box(x - half, y - half, x + half, y + half) for x, y in centres]


def hest_parts(root: Path, name: str) -> None:
    """Nuclei, tissue, the vendor's cells and nuclei, transcripts; all in pixels of the H&E."""
    for folder in ("cellvit_seg", "tissue_seg", "xenium_seg", "transcripts"):
        (root / folder).mkdir(exist_ok=True)
    nuclei = gpd.GeoDataFrame(
        {"class": ["Neoplastic", "Neoplastic", "Connective"], "cell_id": range(3)},
        geometry=squares([(40, 30), (90, 30), (140, 30)]),
    )
    nuclei.to_parquet(root / "cellvit_seg" / f"{name}_cellvit_seg.parquet")
    (root / "tissue_seg" / f"{name}_contours.geojson").write_text(json.dumps(tissue_contours()))
    cells = gpd.GeoDataFrame(
        geometry=squares([(40, 30), (90, 30)], 12.0), index=pd.Index([b"aaaa-1", b"bbbb-1"], name="cell_id")
    )
    cells.to_parquet(root / "xenium_seg" / f"{name}_xenium_cell_seg.parquet")
    cells.to_parquet(root / "xenium_seg" / f"{name}_xenium_nucleus_seg.parquet")
    transcripts(root / "transcripts" / f"{name}_transcripts.parquet")


def transcripts(path: Path, **changed: object) -> None:
    """Names as bytes, as Xenium's first versions write them."""
    columns = {
        "transcript_id": range(4),
        "cell_id": [b"aaaa-1", b"aaaa-1", b"bbbb-1", b"UNASSIGNED"],
        "overlaps_nucleus": [1, 0, 1, 0],
        "feature_name": [b"EPCAM", b"COL1A1", b"EPCAM", b"EPCAM"],
        "qv": 40.0,
        "he_x": [40.0, 42.0, 90.0, 300.0],
        "he_y": [30.0, 31.0, 30.0, 200.0],
    } | changed
    pd.DataFrame({key: value for key, value in columns.items() if value is not None}).to_parquet(path)


def tissue_contours() -> dict[str, object]:
    """As geopandas writes them, with a hole."""
    ring = [[10, 10], [400, 10], [400, 260], [10, 260], [10, 10]]
    hole = [[200, 100], [220, 100], [220, 120], [200, 120], [200, 100]]
    geometry = {"type": "Polygon", "coordinates": [ring, hole]}
    feature = {"type": "Feature", "properties": {"tissue_id": 0}, "geometry": geometry}
    crs = {"type": "name", "properties": {"name": "urn:ogc:def:crs:OGC:1.3:CRS84"}}
    return {"type": "FeatureCollection", "crs": crs, "features": [feature]}


def qupath_features(groups: dict[str, list[shapely.Polygon]], **properties: object) -> list[dict[str, object]]:
    """One feature for each class, as CellViT writes them for QuPath."""
    return [
        {
            "type": "Feature",
            "id": f"1-id-{name}",
            "geometry": {
                "type": "MultiPolygon",
                "coordinates": [[list(map(list, polygon.exterior.coords))] for polygon in polygons],
            },
            "properties": {"objectType": "annotation", "classification": {"name": name}} | properties,
        }
        for name, polygons in groups.items()
    ]


def zipped_geojson(path: Path, features: list[dict[str, object]]) -> None:
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr(path.name.removesuffix(".zip"), json.dumps(features))


# STimage-1K4M --------------------------------------------------------------------------------------------------------


def stimage_copy(
    root: Path, name: str = "Human_Breast_ST_A1", *, technology: str = "ST", mpp: float = 2.0, meta: bool = True
) -> pd.DataFrame:
    """One slide, the spots of which lie on dark squares; and these, with xaxis and yaxis in pixels."""
    if technology == "ST":
        spots = square_lattice(200 / mpp, (3, 4))
        names = [f"{x + 7}x{y + 10}" for x, y in zip(spots["array_col"], spots["array_row"], strict=True)]
        radius = 50 / mpp
    elif technology == "Visium":
        spots = visium_lattice(1 / mpp)
        names, radius = [f"ACGT{i:04d}-1" for i in range(len(spots))], 32.5 / mpp
    else:
        spots = square_lattice(16 / mpp, (10, 12))
        names, radius = [f"s_016um_{i:05d}-1" for i in range(len(spots))], 8 / mpp
    folder = root / technology
    for part in ("coord", "gene_exp", "image"):
        (folder / part).mkdir(parents=True, exist_ok=True)
    index = pd.Index([f"{name}_{spot}" for spot in names])
    coord = pd.DataFrame({"yaxis": spots["y"].to_numpy(), "xaxis": spots["x"].to_numpy(), "r": radius}, index=index)
    coord.to_csv(folder / "coord" / f"{name}_coord.csv")
    counts = pd.DataFrame(counts_of(len(spots)), index=index, columns=GENES)
    counts.iloc[::-1].to_csv(folder / "gene_exp" / f"{name}_count.csv")
    picture = he_picture(300, 470, coord[["xaxis", "yaxis"]].astype(int).to_numpy())
    Image.fromarray(picture).save(folder / "image" / f"{name}.png")
    if meta:
        (root / "meta").mkdir(exist_ok=True)
        row = {"slide": name, "species": "human", "tissue": "breast", "pmid": "34650042", "tech": technology}
        pd.DataFrame([row]).to_csv(root / "meta" / "meta_all_gene.csv", index=False)
    return coord


# Legacy Spatial Transcriptomics --------------------------------------------------------------------------------------


def legacy_array(mpp: float = 2.0) -> pd.DataFrame:
    """Spots 200 µm apart, each a little off its place: x, y, new_x, new_y, pixel_x, pixel_y."""
    rng = np.random.default_rng(0)
    x, y = (axis.ravel() for axis in np.meshgrid(np.arange(7, 11), np.arange(12, 15)))
    new = np.c_[x, y] + rng.normal(0, 0.002, (len(x), 2))
    frame = pd.DataFrame({"x": x, "y": y, "new_x": new[:, 0].round(3), "new_y": new[:, 1].round(3)})
    frame["pixel_x"] = ((new[:, 0] - 6.5) * 200 / mpp).round(2)
    frame["pixel_y"] = ((new[:, 1] - 11.5) * 200 / mpp).round(2)
    return frame


def her2st_files(folder: Path, mpp: float = 2.0, name: str = "A1") -> tuple[dict[str, Path], pd.DataFrame]:
    """A section as her2st ships it, with one spot that is not selected and one that has no counts."""
    folder.mkdir(parents=True, exist_ok=True)
    spots = legacy_array(mpp)
    spots["selected"] = 1
    spots.loc[1, "selected"] = 0
    files = {
        "counts": folder / f"{name}.tsv.gz",
        "spots": folder / f"{name}_selection.tsv",
        "image": folder / f"{name}_HE.jpg",
        "labels": folder / f"{name}_labeled_coordinates.tsv",
    }
    names = [f"{x}x{y}" for x, y in zip(spots["x"], spots["y"], strict=True)]
    counts = pd.DataFrame(counts_of(len(spots)), index=names, columns=GENES)
    counts.drop(index=names[2]).to_csv(files["counts"], sep="\t")
    spots.to_csv(files["spots"], sep="\t", index=False)
    picture = he_picture(320, 460, spots[["pixel_x", "pixel_y"]].astype(int).to_numpy())
    Image.fromarray(picture).save(files["image"], quality=95)
    labels = pd.DataFrame({"Row.names": names, "x": spots["new_x"], "y": spots["new_y"]})
    labels["label"] = np.where(np.arange(len(labels)) % 2, "invasive cancer", "undetermined")
    labels.loc[len(labels)] = ["10x3", np.nan, np.nan, np.nan]
    labels.to_csv(files["labels"], sep="\t", index=False, na_rep="NA")
    return files, spots.set_index(pd.Index(names))


def stnet_files(folder: Path, mpp: float = 2.0, name: str = "BC1_C1") -> tuple[dict[str, Path], pd.DataFrame]:
    """A section as ST-Net ships it.

    Counts of spots that are not under the tissue, and labels with a header that is shifted.
    """
    folder.mkdir(parents=True, exist_ok=True)
    spots = legacy_array(mpp)
    names = [f"{x}x{y}" for x, y in zip(spots["x"], spots["y"], strict=True)]
    files = {
        "counts": folder / f"{name}_stdata.tsv.gz",
        "spots": folder / f"spots_{name}.csv.gz",
        "image": folder / f"HE_{name}.jpg",
        "labels": folder / f"{name}_Coords.tsv.gz",
    }
    genes = ["ENSG00000108821", "ENSG00000119888"]
    counts = pd.DataFrame(counts_of(len(names) + 1), index=[*names, "30x30"], columns=genes)
    counts.to_csv(files["counts"], sep="\t")
    pd.DataFrame({"X": spots["pixel_x"].to_numpy(), "Y": spots["pixel_y"].to_numpy()}, index=names).to_csv(
        files["spots"]
    )
    picture = he_picture(320, 460, spots[["pixel_x", "pixel_y"]].astype(int).to_numpy())
    Image.fromarray(picture).save(files["image"], quality=95)
    lines = ["xcoord\tycoord\tlab\ttumor"]
    lines += [
        f"C1_{x}_{y}\t{new_x}\t{new_y}\tL{i}\t{'tumor' if i % 2 else 'non'}"
        for i, (x, y, new_x, new_y) in enumerate(spots[["x", "y", "new_x", "new_y"]].itertuples(index=False))
    ]
    with gzip.open(files["labels"], "wt", newline="") as file:
        file.write("\r".join(lines) + "\r")
    return files, spots.set_index(pd.Index(names))


def her2st_from(table: ad.AnnData, folder: Path) -> dict[str, Path]:
    """The files that her2st ships, from a table of this section that has kept all that they say."""
    folder.mkdir(parents=True, exist_ok=True)
    section = str(table.uns["section"])
    obs = table.obs
    names = [f"{x}x{y}" for x, y in zip(obs["array_x"], obs["array_y"], strict=True)]
    frame = pd.DataFrame(table.X.toarray(), index=names, columns=table.var_names)
    files = {"counts": folder / f"{section}.tsv.gz", "spots": folder / f"{section}_selection.tsv"}
    frame.to_csv(files["counts"], sep="\t", compression={"method": "gzip", "compresslevel": 1})
    renamed = {"array_x": "x", "array_y": "y", "array_x_adj": "new_x", "array_y_adj": "new_y"}
    spots = obs[[*renamed, "pixel_x", "pixel_y"]].rename(columns=renamed).assign(selected=1)
    spots.to_csv(files["spots"], sep="\t", index=False)
    return files
