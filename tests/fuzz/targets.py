"""What is fuzzed: miniatures of what every reader and loader takes, and what is read of them as plain numbers.

``TARGETS`` maps a name to a :class:`Target`. Its ``make`` writes a whole input into a folder, its ``read`` gives the
facts that must not change in silence: counts, coordinates, scale and pixels, as arrays by name.
"""

from __future__ import annotations

import json
import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd
import research
import tifffile
from PIL import Image
from vendor import cosmx_folder, cosmx_sample, he_picture, merscope_folder, visium_folder, visium_hd_folder

import sthist

if TYPE_CHECKING:
    from collections.abc import Callable

    Facts = dict[str, Any]

ENDS = ("png", "jpg", "tif", "bmp")
SLIDES = ("tiles.tif", "ome.ome.tif", "strips.tif", "whole.tif", "he.png", "he.jpg")
DRAWN = ("drawn.geojson", "gz.geojson.gz", "zipped.geojson.zip", "selection.csv")
SAVED = Path(__file__).parents[1] / "models" / "saved"


@dataclass(frozen=True)
class Target:
    """A reader or loader."""

    make: Callable[[Path], Any]
    read: Callable[[Path], Any]
    weight: int = 1  # how often it is drawn, relative to others


def facts(sdata: Any) -> Facts:
    """Counts, coordinates, scales and pixels of a SpatialData."""
    from spatialdata.transformations import get_transformation
    from xarray import DataTree

    found: Facts = {}
    for kind, name, element in sdata.gen_elements():
        if kind == "tables":
            found |= table_facts(f"{name}.", element)
            continue
        for system, transformation in get_transformation(element, get_all=True).items():
            try:
                matrix = transformation.to_affine_matrix(("x", "y"), ("x", "y"))
            except ValueError:
                matrix = np.zeros(0)
            found[f"{name}.scale.{system}"] = np.asarray(matrix)
        if kind in {"images", "labels"}:
            level = next(iter(element["scale0"].data_vars.values())) if isinstance(element, DataTree) else element
            found[f"{name}.pixels"] = np.asarray(level.data)
        elif kind == "shapes":
            found[f"{name}.coordinates"] = element.geometry.get_coordinates().to_numpy()
            found[f"{name}.index"] = element.index.astype(str).to_numpy(str)
            if "radius" in element:
                found[f"{name}.coordinates.radius"] = element["radius"].to_numpy()
        else:
            if element.npartitions > 20:  # an oversize table, which is read when it is needed
                found[f"{name}.coordinates"] = np.array([element.npartitions])
                continue
            frame = element.compute()
            found[f"{name}.coordinates"] = frame[["x", "y"]].to_numpy()
            genes = [column for column in ("gene", "feature_name", "target") if column in frame]
            if genes:
                found[f"{name}.counts.genes"] = frame[genes[0]].astype(str).to_numpy(str)
    return found


def table_facts(prefix: str, table: Any) -> Facts:
    """Counts, names and places of an AnnData."""
    found: Facts = {f"{prefix}names": np.array([*map(str, table.obs_names)])}
    if table.X is not None:
        dense = table.X.toarray() if hasattr(table.X, "toarray") else np.asarray(table.X)
        found[f"{prefix}counts"] = dense
        found[f"{prefix}counts.genes"] = np.array([*map(str, table.var_names)])
    if "spatial" in table.obsm:
        found[f"{prefix}coordinates"] = np.asarray(table.obsm["spatial"])
    if "mpp" in table.obs:
        found[f"{prefix}scale"] = table.obs["mpp"].to_numpy()
    return found


# Vendors -------------------------------------------------------------------------------------------------------------


def make_xenium(path: Path) -> None:
    """4 x 4 cells of 10 µm at 0.2125 µm/px, in the layout of version 3."""
    import zarr
    from spatialdata_io.readers.xenium import cell_id_str_from_prefix_suffix_uint32
    from vendor import write_10x_matrix

    path.mkdir(parents=True)
    mpp, n, side = 0.2125, 4, 40
    specs = {"analysis_sw_version": "xenium-3.0.0", "pixel_size": mpp, "num_cells": n * n, "run_name": "mini"}
    specs |= {"major_version": 7, "region_name": "mini", "panel_name": "mini"}
    (path / "experiment.xenium").write_text(json.dumps(specs))
    prefix = np.arange(100, 100 + n * n, dtype=np.uint32)
    ids = cell_id_str_from_prefix_suffix_uint32(prefix, np.ones(n * n, np.uint32))
    rows, columns = (axis.ravel() for axis in np.meshgrid(np.arange(n), np.arange(n), indexing="ij"))
    centres = (np.c_[columns, rows] + 0.5) * side * mpp
    mask = np.zeros((n * side, n * side), np.uint32)
    for i, (row, column) in enumerate(zip(rows, columns, strict=True)):
        mask[row * side + 10 : row * side + 30, column * side + 10 : column * side + 30] = i + 1
    store = zarr.storage.ZipStore(path / "cells.zarr.zip", mode="w")
    root = zarr.create_group(store, zarr_format=2)
    root.create_array("cell_id", data=np.c_[prefix, np.ones(n * n, np.uint32)])
    names = ["cell_centroid_x", "cell_centroid_y", "cell_area", "z_level"]
    summary = root.create_array("cell_summary", data=np.c_[centres, np.full(n * n, 18.0), np.zeros(n * n)])
    summary.attrs["column_names"] = names
    for number in ("0", "1"):
        root.create_array(f"masks/{number}", data=mask)
        root.create_array(f"polygon_sets/{number}/cell_index", data=np.arange(n * n, dtype=np.uint32))
    root.attrs["spatial_units"] = "microns"
    store.close()
    frame = pd.DataFrame({"cell_id": ids, "x_centroid": centres[:, 0], "y_centroid": centres[:, 1]})
    frame = frame.assign(transcript_counts=3, cell_area=18.0, nucleus_area=18.0)
    frame.to_parquet(path / "cells.parquet", index=False)
    write_10x_matrix(
        path / "cell_feature_matrix.h5", np.c_[np.arange(n * n) + 1, np.full(n * n, 2)], list(ids), ["A", "B"]
    )
    square = np.array([[-1, -1], [1, -1], [1, 1], [-1, 1], [-1, -1]]) * 10 * mpp
    vertices = (centres[:, None] + square).reshape(-1, 2)
    outlines = {"cell_id": np.repeat(ids, 5), "vertex_x": vertices[:, 0], "vertex_y": vertices[:, 1]}
    outlines["label_id"] = np.repeat(np.arange(1, n * n + 1), 5)
    for kind in ("cell", "nucleus"):
        pd.DataFrame(outlines).to_parquet(path / f"{kind}_boundaries.parquet", index=False)
    molecules = {"transcript_id": np.arange(48, dtype=np.uint64), "cell_id": np.tile(ids, 3)}
    molecules |= {"x_location": np.tile(centres[:, 0], 3), "y_location": np.tile(centres[:, 1], 3)}
    molecules |= {"z_location": 1.0, "qv": 40.0, "overlaps_nucleus": np.uint8(1)}
    molecules["feature_name"] = np.where(np.arange(48) % 3, "A", "B")
    pd.DataFrame(molecules).astype({"x_location": "f4", "y_location": "f4"}).to_parquet(
        path / "transcripts.parquet", index=False
    )
    (path / "morphology_focus").mkdir()
    sizes = {"axes": "YX", "PhysicalSizeX": mpp, "PhysicalSizeY": mpp, "Channel": {"Name": ["DAPI"]}}
    picture = (mask > 0).astype(np.uint16) * 5000 + 100
    name = "morphology_focus/morphology_focus_0000.ome.tif"
    tifffile.imwrite(path / name, picture, ome=True, metadata=sizes, tile=(64, 64), compression="zlib")


def make_assemble(path: Path) -> None:
    """An H&E, molecules and outlines as loose files."""
    path.mkdir(parents=True)
    Image.fromarray(he_picture(100, 120, np.array([[30, 40], [80, 60]]))).save(path / "he.png")
    Image.fromarray(np.full((100, 120), 90, np.uint8)).save(path / "dapi.jpg")
    xy = np.random.default_rng(0).uniform(5, 45, (60, 2))
    genes = np.where(np.arange(60) % 2, "A", "B")
    pd.DataFrame({"x_um": xy[:, 0], "y_um": xy[:, 1], "gene": genes}).to_parquet(path / "points.parquet", index=False)
    square = np.array([[-3, -3], [3, -3], [3, 3], [-3, 3]])
    vertices = (np.array([[10, 10], [30, 30]])[:, None] + square).reshape(-1, 2)
    outlines = {"cell_id": np.repeat(["a", "b"], 4), "x_um": vertices[:, 0], "y_um": vertices[:, 1]}
    pd.DataFrame(outlines).to_parquet(path / "cells.parquet", index=False)


def read_assemble(path: Path) -> Facts:
    import anndata as ad

    obs = pd.DataFrame({"x_um": [10.0, 30.0], "y_um": [10.0, 30.0]}, index=["a", "b"])
    return facts(
        sthist.io.assemble(
            {"he": path / "he.png", "dapi": path / "dapi.jpg"},
            mpp=0.5,
            points=path / "points.parquet",
            table=ad.AnnData(np.ones((2, 2), np.float32), obs=obs, var=pd.DataFrame(index=["A", "B"])),
            cells=path / "cells.parquet",
        )
    )


def make_slide(path: Path) -> None:
    """One slide in five forms: tiles and strips, OME and plain, BigTIFF, PNG."""
    path.mkdir(parents=True)
    picture = he_picture(150, 230, np.array([[40, 40], [120, 90], [200, 60]]))
    research.hest_image(path / "tiles.tif", picture, 0.5)
    sizes = {"axes": "YXS", "PhysicalSizeX": 0.5, "PhysicalSizeY": 0.5}
    with tifffile.TiffWriter(path / "ome.ome.tif", ome=True, bigtiff=True) as file:
        options = {"tile": (64, 64), "photometric": "rgb"}
        file.write(picture, subifds=1, metadata=sizes, **options)
        file.write(np.ascontiguousarray(picture[::2, ::2]), subfiletype=1, **options)
    resolution = {"resolution": (20000, 20000), "resolutionunit": "CENTIMETER"}
    tifffile.imwrite(path / "strips.tif", picture, photometric="rgb", rowsperstrip=16, compression="zlib", **resolution)
    tifffile.imwrite(path / "whole.tif", picture, photometric="rgb", **resolution)
    Image.fromarray(picture).save(path / "he.png")
    Image.fromarray(picture).save(path / "he.jpg", quality=90)


def read_slide(path: Path) -> Facts:
    return {
        f"{file.name}.{name}": value
        for file in (path / name for name in SLIDES)
        for name, value in facts(sthist.io.slide(file, mpp=0.5)).items()
    }


def make_annotations(path: Path) -> None:
    """QuPath's objects, plain, .gz and .zip, and selections."""
    import gzip

    path.mkdir(parents=True)
    groups = {"tumour": research.squares([(40, 30), (90, 60)]), "stroma": research.squares([(60, 40)])}
    features = research.qupath_features(groups, objectType="annotation", name="one", measurements={"area": 12.5})
    text = json.dumps({"type": "FeatureCollection", "features": features})
    (path / "drawn.geojson").write_text(text)
    (path / "gz.geojson.gz").write_bytes(gzip.compress(text.encode()))
    research.zipped_geojson(path / "zipped.geojson.zip", features)
    ring = ["a,10,10", "a,30,10", "a,30,30", "a,10,30", "a,10,10"]
    (path / "selection.csv").write_text("\n".join(["#Selection names: a", "Selection,X,Y", *ring]) + "\n")


def read_annotations(path: Path) -> Facts:
    found: Facts = {}
    for file in (path / name for name in DRAWN):
        sdata = sthist.io.slide(np.full((80, 120, 3), 200, np.uint8), mpp=0.5)
        sthist.io.read_annotations(sdata, file, image="he")
        found |= {f"{file.name}.{name}": value for name, value in facts(sdata).items() if "annotations" in name}
        found[f"{file.name}.label"] = sdata["annotations"]["label"].astype(str).to_numpy(str)
    return found


def make_alignment(path: Path) -> None:
    """A matrix, landmarks, and Xenium Explorer's zip."""
    import zipfile

    path.mkdir(parents=True)
    matrix = "2.0,0.1,30\n-0.1,2.0,20\n0,0,1\n"
    points = np.array([[0, 0], [50, 10], [10, 70], [60, 60]])
    fixed = points @ np.array([[2.0, 0.1], [-0.1, 2.0]]).T + [30, 20]
    rows = [",".join(map(str, [*a.tolist(), *b.tolist()])) for a, b in zip(fixed, points, strict=True)]
    keypoints = "\n".join(["fixedX,fixedY,alignmentX,alignmentY", *rows]) + "\n"
    (path / "matrix.csv").write_text(matrix)
    (path / "keypoints.csv").write_text(keypoints)
    with zipfile.ZipFile(path / "alignment.zip", "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("matrix.csv", matrix)
        archive.writestr("keypoints.csv", keypoints)


def read_alignment(path: Path) -> Facts:
    found = {}
    for file in (path / name for name in ("alignment.zip", "keypoints.csv", "matrix.csv")):
        sdata = sthist.io.assemble(
            {"dapi": np.zeros((200, 250), np.uint8), "he": np.full((80, 90, 3), 200, np.uint8)},
            mpp={"dapi": 0.25, "he": 0.5},
        )
        argument = "landmarks" if file.name.startswith("keypoints") else "matrix"
        sthist.pp.align(sdata, "he", to="dapi", overwrite=True, **{argument: file})
        found[f"{file.name}.scale"] = sthist.scale.matrix_to(sdata["he"])
    return found


# Research ------------------------------------------------------------------------------------------------------------


def make_hest(path: Path) -> None:
    research.hest_copy(path, parts=True)


def read_hest(path: Path) -> Facts:
    return facts(sthist.io.hest(path, "TENX1"))


def read_stimage(path: Path) -> Facts:
    return facts(sthist.io.stimage(path, "Human_Breast_ST_A1"))


def make_legacy(path: Path) -> None:
    research.her2st_files(path)
    research.stnet_files(path)


def read_legacy(path: Path) -> Facts:
    found = {}
    for name, files in {
        "her2st": ("A1.tsv.gz", "A1_selection.tsv", "A1_HE.jpg", "A1_labeled_coordinates.tsv"),
        "stnet": ("BC1_C1_stdata.tsv.gz", "spots_BC1_C1.csv.gz", "HE_BC1_C1.jpg", "BC1_C1_Coords.tsv.gz"),
    }.items():
        counts, spots, image, labels = (path / file for file in files)
        sdata = sthist.io.legacy_st(counts, spots=spots, image=image, labels=labels)
        found |= {f"{name}.{key}": value for key, value in facts(sdata).items()}
    return found


def make_tiles(path: Path) -> None:
    rng = np.random.default_rng(0)
    for i, name in enumerate(("tumour/a.png", "tumour/b.jpg", "stroma/c.tif", "stroma/d.bmp", "fat/e.webp")):
        (path / name).parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(rng.integers(0, 255, (40 + i, 40, 3), np.uint8)).save(path / name)
    rows = "\n".join(f"{name}.{end},{kind}" for name, end, kind in zip("abcd", ENDS, "xxyy", strict=True))
    (path / "table.csv").write_text(f"file,label\n{rows}\n")


def read_tiles(path: Path) -> Facts:
    tiles = sthist.io.tile_folder(path, mpp=0.5, labels=path / "table.csv")
    found = table_facts("", tiles) | {"size.coordinates": tiles.obs[["height", "width"]].to_numpy()}
    reader = sthist.tiles.FolderReader(tiles, sthist.tiles.TileSpec(size_um=10, px=20))
    found["label"] = tiles.obs["label"].astype(str).to_numpy(str)
    found["pixels"] = reader.read(np.arange(tiles.n_obs))
    return found


def make_run(path: Path) -> None:
    path.mkdir(parents=True)
    visium_folder(path / "outs")
    (path / "samples.csv").write_text("sample,path,platform,patient\ns1,outs,visium,P1\ns2,outs,visium,P2\n")


def read_run(path: Path) -> Facts:
    from sthist.cli.batch import read_tasks

    tasks = read_tasks(path / "samples.csv", "pp.tissue", path / "out", {})
    return {
        f"{i}.names": np.array([task.sample, task.path, task.platform, str(task.facts)]) for i, task in enumerate(tasks)
    }


# Models --------------------------------------------------------------------------------------------------------------


def copied(name: str) -> Callable[[Path], None]:
    return lambda path: shutil.copytree(SAVED / name, path) and None


def read_annotator(path: Path) -> Facts:
    annotator = sthist.models.load(path)
    rows = np.random.default_rng(0).normal(size=(5, 4)).astype(np.float32)
    found = {"scale.spec": np.array(str(annotator.spec)), "names": np.array(annotator.config.classes)}
    return found | {"predictions": annotator.predict(rows), "report": np.array(str(annotator.report))}


def read_pix2pix(path: Path) -> Facts:
    model = sthist.models.load(path)
    state = {name: value.numpy() for name, value in model.trainable().state_dict().items()}
    return {"scale.spec": np.array(str(model.config.spec))} | state


def make_beer_lambert(path: Path) -> None:
    sthist.models.BeerLambert().save(path)


def read_beer_lambert(path: Path) -> Facts:
    return {"scale.config": np.array(str(sthist.models.load(path).config))}


def make_encoder(path: Path) -> None:
    """Weights of a small network beside its description, as the hub has them."""
    import torch
    from safetensors.torch import save_file

    path.mkdir(parents=True)
    torch.manual_seed(0)
    import timm

    network = timm.create_model("test_vit", num_classes=0)
    save_file(network.state_dict(), path / "model.safetensors")
    config = {"architecture": "test_vit", "num_classes": 0}
    (path / "config.json").write_text(json.dumps(config))


def read_encoder(path: Path) -> Facts:
    encoder = sthist.encoders.get("timm:test_vit", weights=path)
    tiles = np.full((1, 160, 160, 3), 128, np.uint8)
    return {"predictions": np.asarray(encoder.embed(tiles))}


TARGETS = {
    "xenium": Target(make_xenium, lambda path: facts(sthist.io.xenium(path)), 3),
    "cosmx": Target(
        lambda path: cosmx_folder(path, mpp=0.12, **cosmx_sample(40)), lambda path: facts(sthist.io.cosmx(path)), 2
    ),
    "merscope": Target(lambda path: merscope_folder(path), lambda path: facts(sthist.io.merscope(path)), 2),
    "visium": Target(
        lambda path: visium_folder(path), lambda path: facts(sthist.io.visium(path, image=path / "he.png")), 2
    ),
    "visium_hd": Target(
        lambda path: visium_hd_folder(path, bins_um=(16,)),
        lambda path: facts(sthist.io.visium_hd(path, bin_size=16)),
        2,
    ),
    "hest": Target(make_hest, read_hest, 3),
    "stimage": Target(lambda path: research.stimage_copy(path), read_stimage),
    "legacy_st": Target(make_legacy, read_legacy, 2),
    "tile_folder": Target(make_tiles, read_tiles),
    "slide": Target(make_slide, read_slide, 3),
    "assemble": Target(make_assemble, read_assemble, 2),
    "annotations": Target(make_annotations, read_annotations, 2),
    "alignment": Target(make_alignment, read_alignment),
    "samples": Target(make_run, read_run),
    "annotator": Target(copied("annotator"), read_annotator, 2),
    "pix2pix": Target(copied("pix2pix"), read_pix2pix, 2),
    "beer_lambert": Target(make_beer_lambert, read_beer_lambert),
    "encoder": Target(make_encoder, read_encoder),
}
