"""Miniature folders in the layouts of the vendors: file names, columns and units as they write them."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING

import geopandas as gpd
import h5py
import numpy as np
import pandas as pd
import tifffile
from PIL import Image
from scipy import sparse
from shapely.geometry import MultiPolygon

if TYPE_CHECKING:
    from pathlib import Path


def write_10x_matrix(path: Path, counts: np.ndarray, barcodes: list[str], genes: list[str]) -> None:
    """A cells x genes matrix as Space Ranger stores it."""
    matrix = sparse.csc_matrix(counts.T)
    with h5py.File(path, "w") as file:
        file.attrs["chemistry_description"] = "Spatial 3' v1"
        file.attrs["library_ids"] = np.array([b"miniature"])
        file.attrs["software_version"] = "spaceranger-2.0.0"
        group = file.create_group("matrix")
        group["barcodes"] = np.array(barcodes, "S")
        group["data"] = matrix.data.astype(np.int32)
        group["indices"], group["indptr"] = matrix.indices.astype(np.int64), matrix.indptr.astype(np.int64)
        group["shape"] = np.array(matrix.shape, np.int32)
        features = group.create_group("features")
        features["id"] = np.array([f"ENSG{i:011d}" for i in range(len(genes))], "S")
        features["name"] = np.array(genes, "S")
        for name, value in (("feature_type", "Gene Expression"), ("genome", "GRCh38")):
            features[name] = np.array([value] * len(genes), "S")


# CosMx ---------------------------------------------------------------------------------------------------------------


def cosmx_folder(
    path: Path,
    stain: np.ndarray,
    molecules: pd.DataFrame,
    cells: pd.DataFrame,
    labels: np.ndarray,
    *,
    mpp: float,
    grid: tuple[int, int] = (2, 2),
    y_up: bool = True,
    compress: bool = False,
    grey: bool = False,
    suffix: str = "png",
    first_px: tuple[int, int] = (1000, 2000),
    area_um2: bool = True,
) -> Path:
    """One field, seen from the top, cut into fields of view as CosMx exports them.

    ``molecules`` and ``cells`` hold ``x`` and ``y`` in pixels of the field, rows downwards; ``labels`` holds the row
    number + 1 of ``cells``. Global coordinates begin at ``first_px``, with y upwards. Local ones have y upwards from
    the lower edge of a picture, as in the public data (``y_up``), or downwards from the upper one, as AtoMx exports
    them.
    """
    n_rows, n_columns = grid
    height, width = stain.shape[0] // n_rows, stain.shape[1] // n_columns
    for directory in ("CellComposite", "CellLabels"):
        (path / directory).mkdir(parents=True)
    fields = {}
    for i in range(n_rows):
        for j in range(n_columns):
            fields[i * n_columns + j + 1] = (i * height, j * width)
    total = stain.shape[0]
    tables: dict[str, list[pd.DataFrame]] = {"exprMat": [], "metadata": [], "tx": []}
    positions = []
    for fov, (top, left) in fields.items():
        window = (slice(top, top + height), slice(left, left + width))

        def local_and_global(frame, top=top, left=left):
            down = frame["y"] - top
            return (
                frame["x"] - left,
                height - down if y_up else down,
                frame["x"] + first_px[0],
                total - frame["y"] + first_px[1],
            )

        def here(frame, top=top, left=left):
            return frame[frame["x"].between(left, left + width - 1e-9) & frame["y"].between(top, top + height - 1e-9)]

        part = here(cells)
        ids = np.arange(1, len(part) + 1)
        x, y, x_global, y_global = (np.round(values).astype(int) for values in local_and_global(part))
        meta = {
            "fov": fov,
            "Area": part["Area"].to_numpy(),
            "CenterX_local_px": x.to_numpy(),
            "CenterY_local_px": y.to_numpy(),
            "CenterX_global_px": x_global.to_numpy(),
            "CenterY_global_px": y_global.to_numpy(),
            "Mean.B2M/CD298": 7.0,
            "cell_ID": ids,
            "cell_id": [f"c_1_{fov}_{cell}" for cell in ids],
        }
        if area_um2:
            meta["Area.um2"] = part["Area"].to_numpy() * mpp**2
        tables["metadata"].append(pd.DataFrame(meta))
        counts = part[[name for name in part if name not in {"x", "y", "Area"}]]
        background = pd.DataFrame({name: [3] for name in counts} | {"fov": [fov], "cell_ID": [0]})
        counts = counts.assign(fov=fov, cell_ID=ids)
        order = ["fov", "cell_ID", *[name for name in counts if name not in {"fov", "cell_ID"}]]
        tables["exprMat"].append(pd.concat([background, counts])[order])
        part = here(molecules)
        x, y, x_global, y_global = local_and_global(part)
        tx = {
            "fov": fov,
            "cell_ID": 0,
            "x_local_px": x.round(3),
            "y_local_px": y.round(3),
            "x_global_px": x_global.round(3),
            "y_global_px": y_global.round(3),
            "z": 3,
            "target": part["gene"],
            "CellComp": "None",
        }
        tables["tx"].append(pd.DataFrame(tx))
        edge = total - top - height if y_up else total - top
        positions.append([fov, left + first_px[0], edge + first_px[1]])
        of_cell = np.zeros(labels.max() + 1, np.uint16)
        of_cell[here(cells).index.to_numpy() + 1] = ids
        tifffile.imwrite(path / "CellLabels" / f"CellLabels_F{fov:03d}.tif", of_cell[labels[window]])
        picture = stain[window] if grey else np.stack([stain[window] // 3, stain[window] // 5, stain[window]], -1)
        Image.fromarray(picture).save(path / "CellComposite" / f"CellComposite_F{fov:03d}.{suffix}")
    ending = ".csv.gz" if compress else ".csv"
    for name, parts in tables.items():
        pd.concat(parts).to_csv(path / f"Mini_{name}_file{ending}", index=False)
    frame = pd.DataFrame(positions, columns=["FOV" if compress else "fov", "x_global_px", "y_global_px"])
    if compress:
        frame[["x_global_mm", "y_global_mm"]] = frame[["x_global_px", "y_global_px"]] * mpp / 1000
    frame.to_csv(path / f"Mini_fov_positions_file{ending}", index=False)
    return path


def cosmx_sample(size: int = 80) -> dict:
    """Arguments of :func:`cosmx_folder`: bright squares with a molecule and a cell in the middle of each."""
    stain = np.full((size, size), 10, np.uint8)
    labels = np.zeros((size, size), np.uint16)
    rng = np.random.default_rng(0)
    rows = []
    for y in range(6, size - 4, 10):
        for x in range(6, size - 4, 10):
            stain[y : y + 3, x : x + 3] = rng.integers(150, 250)
            labels[y - 2 : y + 5, x - 2 : x + 5] = len(rows) + 1
            rows.append({"x": x + 1.5, "y": y + 1.5, "Area": 49, "GAPDH": len(rows) + 1, "KRT8": 2})
    cells = pd.DataFrame(rows)
    molecules = cells[["x", "y"]].assign(gene=np.where(np.arange(len(cells)) % 2, "GAPDH", "KRT8"))
    return {"stain": stain, "molecules": molecules, "cells": cells, "labels": labels}


# MERSCOPE ------------------------------------------------------------------------------------------------------------


def merscope_folder(
    path: Path,
    *,
    size: int = 96,
    mpp: float = 0.108,
    origin_um: tuple[float, float] = (-50.0, 120.0),
    planes: tuple[int, ...] = (2, 3),
    stains: tuple[str, ...] = ("PolyT", "DAPI", "Cellbound1"),
) -> tuple[Path, pd.DataFrame]:
    """A region with bright squares, each a cell with one molecule per plane in its middle.

    And these molecules in µm.
    """
    images = path / "images"
    images.mkdir(parents=True)
    matrix = [[1 / mpp, 0, -origin_um[0] / mpp], [0, 1 / mpp, -origin_um[1] / mpp], [0, 0, 1]]
    np.savetxt(images / "micron_to_mosaic_pixel_transform.csv", matrix, delimiter=" ")
    corners = [(x, y) for y in range(8, size - 8, 16) for x in range(8, size - 8, 16)]
    for i, stain in enumerate(stains):
        for z in planes:
            mosaic = np.full((size, size), 100 + i, np.uint16)
            for number, (x, y) in enumerate(corners):
                mosaic[y : y + 3, x : x + 3] = 10_000 + 1000 * z + 100 * i + number
            tifffile.imwrite(images / f"mosaic_{stain}_z{z}.tif", mosaic)
    centres = (np.array(corners) + 1.5) * mpp + origin_um
    ids = [str(1234567890100000 + 7 * number) for number in range(len(corners))]
    molecules = pd.DataFrame(
        {
            "barcode_id": 4,
            "global_x": np.repeat(centres[:, 0], len(planes)),
            "global_y": np.repeat(centres[:, 1], len(planes)),
            "global_z": np.tile(np.array(planes, float), len(centres)),
            "x": 1.0,
            "y": 2.0,
            "fov": 0,
            "gene": np.where(np.arange(len(centres) * len(planes)) % 2, "Slc17a7", "Blank-1"),
        }
    )
    molecules.to_csv(path / "detected_transcripts.csv")
    genes = {"Slc17a7": np.arange(len(ids)) + 1, "Gad1": 2, "Blank-1": 1}
    pd.DataFrame(genes, index=pd.Index(ids, name="cell")).to_csv(path / "cell_by_gene.csv")
    meta = {"fov": 0, "volume": 300.0, "center_x": centres[:, 0], "center_y": centres[:, 1]}
    pd.DataFrame(meta, index=pd.Index(ids, name="EntityID")).to_csv(path / "cell_metadata.csv")
    outlines = [MultiPolygon([point.buffer(0.6)]) for point in gpd.points_from_xy(*centres.T)]
    frame = pd.DataFrame({"ID": range(len(ids)), "EntityID": np.array(ids, np.int64), "Type": "cell", "ZLevel": 1.5})
    parts = [gpd.GeoDataFrame(frame.assign(ZIndex=z), geometry=outlines).rename_geometry("Geometry") for z in (0, 1)]
    pd.concat(parts).to_parquet(path / "cell_boundaries.parquet")
    return path, molecules


# Visium --------------------------------------------------------------------------------------------------------------


def visium_folder(
    path: Path,
    *,
    px_per_um: float = 0.5,
    corner_px: tuple[float, float] = (40.0, 30.0),
    header: bool = False,
    black_hires: bool = False,
    prefix: str = "",
) -> tuple[Path, pd.DataFrame]:
    """A 6 x 8 lattice of spots with a dark square under each in both pictures.

    And the positions, rows of which are spots.
    """
    spatial = path / "spatial"
    spatial.mkdir(parents=True)
    array = [(row, column) for row in range(6) for column in range(row % 2, 16, 2)]
    spots = pd.DataFrame(array, columns=["array_row", "array_col"])
    spots["x"] = spots["array_col"] * 50 * px_per_um + corner_px[0]
    spots["y"] = spots["array_row"] * 100 * np.sqrt(3) / 2 * px_per_um + corner_px[1]
    barcodes = [f"ACGT{i:04d}-1" for i in range(len(spots))]
    frame = pd.DataFrame(
        {
            "barcode": barcodes,
            "in_tissue": 1,
            "array_row": spots["array_row"],
            "array_col": spots["array_col"],
            "pxl_row_in_fullres": spots["y"].round().astype(int),
            "pxl_col_in_fullres": spots["x"].round().astype(int),
        }
    )
    name = "tissue_positions.csv" if header else "tissue_positions_list.csv"
    frame.iloc[::-1].to_csv(spatial / name, header=header, index=False)
    counts = np.stack([np.arange(len(spots)) + 1, np.full(len(spots), 3)], 1)
    write_10x_matrix(path / f"{prefix}filtered_feature_bc_matrix.h5", counts, barcodes, ["COL1A1", "EPCAM"])
    factors = {"tissue_hires_scalef": 0.5, "tissue_lowres_scalef": 0.25}
    content = factors | {"spot_diameter_fullres": 65 * px_per_um, "fiducial_diameter_fullres": 105 * px_per_um}
    (spatial / "scalefactors_json.json").write_text(json.dumps(content))
    full = he_picture(280, 460, frame[["pxl_col_in_fullres", "pxl_row_in_fullres"]].to_numpy())
    Image.fromarray(full).save(path / "he.png")
    for kind, step in (("hires", 2), ("lowres", 4)):
        picture = np.zeros_like(full[::step, ::step]) if black_hires and kind == "hires" else full[::step, ::step]
        Image.fromarray(picture).save(spatial / f"tissue_{kind}_image.png")
    return path, frame.set_index("barcode")


def he_picture(height: int, width: int, spots: np.ndarray, half: int = 6) -> np.ndarray:
    """A pale picture with a dark square around each of the points."""
    picture = np.full((height, width, 3), 230, np.uint8)
    for x, y in spots:
        picture[max(0, y - half) : y + half, max(0, x - half) : x + half] = (120, 60, 140)
    return picture


def visium_hd_folder(
    path: Path, *, mpp: float = 0.5, bins_um: tuple[int, ...] = (8, 16), prefix: str = "", full: bool = True
) -> Path:
    """A square of 64 µm that begins at pixel (20, 12), in bins of several sizes, and its pictures."""
    metadata = {"hd_layout_json": json.dumps({"file_format": "1.0", "transform": np.eye(3).ravel().tolist()})}
    path.mkdir(parents=True)
    with h5py.File(path / f"{prefix}feature_slice.h5", "w") as file:
        file.attrs["metadata_json"] = json.dumps(metadata)
    for size in bins_um:
        folder = path / "binned_outputs" / f"square_{size:03d}um"
        spatial = folder / "spatial"
        spatial.mkdir(parents=True)
        n = 64 // size
        rows, columns = (axis.ravel() for axis in np.meshgrid(np.arange(n), np.arange(n), indexing="ij"))
        barcodes = [f"s_{size:03d}um_{row:05d}_{column:05d}-1" for row, column in zip(rows, columns, strict=True)]
        frame = pd.DataFrame(
            {
                "barcode": barcodes,
                "in_tissue": 1,
                "array_row": rows,
                "array_col": columns,
                "pxl_row_in_fullres": (rows + 0.5) * size / mpp + 12,
                "pxl_col_in_fullres": (columns + 0.5) * size / mpp + 20,
            }
        )
        frame.to_parquet(spatial / "tissue_positions.parquet", index=False)
        counts = np.stack([np.arange(len(frame)) + 1, np.full(len(frame), 2)], 1)
        write_10x_matrix(folder / "filtered_feature_bc_matrix.h5", counts, barcodes, ["COL1A1", "EPCAM"])
        content = {
            "tissue_hires_scalef": 0.5,
            "tissue_lowres_scalef": 0.25,
            "spot_diameter_fullres": size / mpp,
            "bin_size_um": float(size),
            "microns_per_pixel": mpp,
            "fiducial_diameter_fullres": 165.0 / mpp,
        }
        (spatial / "scalefactors_json.json").write_text(json.dumps(content))
    picture = he_picture(160, 180, np.array([[28, 20]]))
    (path / "spatial").mkdir()
    for kind, step in (("hires", 2), ("lowres", 4)):
        Image.fromarray(picture[::step, ::step]).save(path / "spatial" / f"tissue_{kind}_image.png")
    if full:
        (path / "microscope_image").mkdir()
        tifffile.imwrite(path / "microscope_image" / "tissue.tif", picture, photometric="rgb")
    return path
