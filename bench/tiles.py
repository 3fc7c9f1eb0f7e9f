"""Reading tiles of a rotated H&E on zarr: sthist, spatialdata's loader, and slicing zarr tile by tile.

Run ``python bench/tiles.py [--json FILE]``. An 8192 x 8192 image at 0.25 µm/px under a rotation of 7 degrees, tiles of
112 µm at 224 px that lie in it side by side, 2 threads. The pixels are those of the toy sample's H&E with grain.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import tempfile
import time
import warnings
from pathlib import Path

import numpy as np
import spatialdata as sd
from spatialdata.models import Image2DModel, ShapesModel
from spatialdata.transformations import Affine, Identity

import sthist

SIDE, MPP, ANGLE = 8192, 0.25, np.deg2rad(7)
SPEC = sthist.tiles.TileSpec(size_um=112.0, px=224)
MATRIX = np.diag([MPP, MPP, 1]) @ np.array(
    [[np.cos(ANGLE), -np.sin(ANGLE), 0], [np.sin(ANGLE), np.cos(ANGLE), 0], [0, 0, 1]]
)


def pixels() -> np.ndarray:
    """An H&E of 8192 x 8192: the toy section, four times, with the grain of a scanner."""
    he = sthist.datasets.toy(size_um=2048.0, mpp=0.5)["he"]["scale0"].image.to_numpy()
    grain = np.random.default_rng(0).normal(0, 3, (3, 4096, 4096))
    return np.tile(np.clip(he + grain, 0, 255).astype(np.uint8), (1, 2, 2))


def centres() -> np.ndarray:
    """Tiles side by side that lie wholly in the image."""
    corners = np.array([[0, 0, 1], [SIDE, 0, 1], [SIDE, SIDE, 1], [0, SIDE, 1]]) @ MATRIX.T
    (x0, y0), (x1, y1) = corners[:, :2].min(0), corners[:, :2].max(0)
    grid = np.stack(np.meshgrid(np.arange(x0 + 56, x1, 112.0), np.arange(y0 + 56, y1, 112.0)), -1).reshape(-1, 2)
    in_pixels = (np.c_[grid, np.ones(len(grid))] @ np.linalg.inv(MATRIX).T)[:, :2]
    return grid[((in_pixels > 260) & (in_pixels < SIDE - 260)).all(1)]


def read_with_sthist(sdata: sd.SpatialData, where: np.ndarray) -> np.ndarray:
    """A fresh reader: nothing is cached."""
    return sthist.tiles.TileReader(sdata, "he", SPEC).read(where)


def slices(sdata: sd.SpatialData, where: np.ndarray):
    """What one writes by hand: the bounding box of each tile out of zarr, and where it lies in the image."""
    import zarr

    array = zarr.open_array(Path(sdata.path) / "images" / "he" / "s0", mode="r")
    corners = np.array([[-1, -1], [1, -1], [-1, 1], [1, 1]]) * SPEC.size_um / 2
    for centre in where:
        in_px = np.c_[centre + corners, np.ones(4)] @ np.linalg.inv(MATRIX).T
        (x0, y0), (x1, y1) = np.floor(in_px[:, :2].min(0)).astype(int) - 1, np.ceil(in_px[:, :2].max(0)).astype(int) + 2
        yield centre, array[:, y0:y1, x0:x1], np.array([[1, 0, x0], [0, 1, y0], [0, 0, 1.0]])


def read_by_slicing(sdata: sd.SpatialData, where: np.ndarray) -> np.ndarray:
    """Slicing zarr, and one warp by scikit-image."""
    from skimage.transform import AffineTransform, warp

    half = np.array([[1, 0, 0.5], [0, 1, 0.5], [0, 0, 1]])
    tiles = []
    for (x, y), region, offset in slices(sdata, where):
        tile_to_um = np.array([[SPEC.mpp, 0, x - SPEC.size_um / 2], [0, SPEC.mpp, y - SPEC.size_um / 2], [0, 0, 1]])
        to_index = np.linalg.inv(MATRIX @ offset @ half) @ tile_to_um @ half
        image = region.transpose(1, 2, 0)
        warped = warp(image, AffineTransform(to_index), output_shape=(224, 224), order=1, preserve_range=True)
        tiles.append(np.round(warped).astype(np.uint8))
    return np.stack(tiles)


def read_by_slicing_and_fast_warp(sdata: sd.SpatialData, where: np.ndarray) -> np.ndarray:
    """Slicing zarr, and one warp by sthist's own kernel, so that the reading alone differs."""
    return np.concatenate(
        [
            sthist.tiles.TileReader.from_array(region, MATRIX @ offset, SPEC).read(centre)
            for centre, region, offset in slices(sdata, where)
        ]
    )


def decompress_all(sdata: sd.SpatialData, where: np.ndarray) -> None:
    """The limit: every chunk that the tiles touch decompressed once on two threads, and nothing else."""
    from concurrent.futures import ThreadPoolExecutor

    reader = sthist.tiles.TileReader(sdata, "he", SPEC)
    (view,) = reader._views
    chunks = set().union(*view.chunks(view.windows(where)))
    with ThreadPoolExecutor(2) as pool:
        list(pool.map(lambda chunk: view.planes.load(chunk[0], chunk[1], chunk[1] + 1), sorted(chunks)))


def read_with_spatialdata(sdata: sd.SpatialData, where: np.ndarray) -> list[np.ndarray]:
    """Spatialdata's own loader, rasterizing to the tile's pixels."""
    from spatialdata.dataloader import ImageTilesDataset

    loader = ImageTilesDataset(
        sdata,
        regions_to_images={"spots": "he"},
        regions_to_coordinate_systems={"spots": "um"},
        tile_dim_in_units=SPEC.size_um,
        rasterize=True,
        rasterize_kwargs={"target_width": SPEC.px},
        transform=lambda tile: next(iter(tile.images.values())).to_numpy(),
    )
    return [loader[i] for i in range(len(where))]


def with_spots(sdata: sd.SpatialData, where: np.ndarray) -> sd.SpatialData:
    """The spots that spatialdata's loader goes by."""
    import geopandas as gpd

    frame = gpd.GeoDataFrame({"radius": 56.0}, geometry=gpd.points_from_xy(*where.T), index=np.arange(len(where)))
    sdata.shapes["spots"] = ShapesModel.parse(frame, transformations={"um": Identity()})
    return sdata


def seconds_per_tile(read, sdata: sd.SpatialData, where: np.ndarray, repeats: int) -> float:
    """The median of a few runs."""
    times = []
    for _ in range(repeats):
        start = time.perf_counter()
        read(sdata, where)
        times.append((time.perf_counter() - start) / len(where))
    return float(np.median(times))


def main() -> None:
    """Time all, print and save."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()
    warnings.simplefilter("ignore")
    sthist.settings.threads = 2
    image, where = pixels(), centres()
    some = where[np.random.default_rng(0).permutation(len(where))[:64]]
    rows = []
    for chunk in (256, 512, 1024):
        with tempfile.TemporaryDirectory() as folder:
            element = Image2DModel.parse(
                image,
                dims=("c", "y", "x"),
                chunks=(3, chunk, chunk),
                transformations={"um": Affine(MATRIX, ("x", "y"), ("x", "y"))},
            )
            sd.SpatialData(images={"he": element}).write(Path(folder) / "he.zarr")
            sdata = sd.read_zarr(Path(folder) / "he.zarr")
            read_with_sthist(sdata, where[:8])  # compiles
            ours = seconds_per_tile(read_with_sthist, sdata, where, 5)
            sliced = seconds_per_tile(read_by_slicing, sdata, some, 3)
            alone = seconds_per_tile(read_by_slicing_and_fast_warp, sdata, some, 3)
            theirs = seconds_per_tile(read_with_spatialdata, with_spots(sdata, some), some, 2)
            limit = seconds_per_tile(decompress_all, sdata, where, 3)
            again = seconds_per_tile(read_with_sthist, sdata, where, 5)
        ours = float(np.mean([ours, again]))
        rows.append(
            {
                "chunk_px": chunk,
                "sthist_ms": 1e3 * ours,
                "decompressing_alone_ms": 1e3 * limit,
                "zarr_slicing_skimage_ms": 1e3 * sliced,
                "zarr_slicing_fast_warp_ms": 1e3 * alone,
                "ImageTilesDataset_ms": 1e3 * theirs,
                "share_of_decompressing_alone": limit / ours,
                "over_zarr_slicing_skimage": sliced / ours,
                "over_zarr_slicing_fast_warp": alone / ours,
                "over_ImageTilesDataset": theirs / ours,
            }
        )
        print({key: round(value, 2) for key, value in rows[-1].items()}, flush=True)
    result = {
        "command": "python bench/tiles.py",
        "machine": f"{platform.machine()}, {os.cpu_count()} cores, Python {platform.python_version()}",
        "tiles": len(where),
        "rows": rows,
    }
    if options.json is not None:
        options.json.write_text(json.dumps(result, indent=2) + "\n")


if __name__ == "__main__":
    main()
