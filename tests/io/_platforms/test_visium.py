"""Visium and Visium HD: the scale, the spots and bins, the H&E; and folders that are damaged."""

from __future__ import annotations

import json
import logging
import shutil

import h5py
import numpy as np
import pandas as pd
import pytest
import spatialdata as sd
import tifffile
import vendor
from PIL import Image
from realdata import folder as real_folder
from spatialdata.transformations import get_transformation

import sthist
from sthist import scale
from sthist.io import visium, visium_hd
from sthist.io._platforms.visium import finish


@pytest.fixture
def folder(tmp_path):
    """Spots 50 px apart: 2 µm per pixel."""
    return vendor.visium_folder(tmp_path / "outs")[0]


@pytest.fixture
def hd(tmp_path):
    """Bins of 8 and 16 µm at 0.5 µm per pixel."""
    return vendor.visium_hd_folder(tmp_path / "outs")


@pytest.mark.parametrize("header", [False, True])
def test_spots_land_on_their_pictures(tmp_path, header):
    """µm come from the lattice; spots of 55 µm lie on the dark squares of every picture."""
    path, frame = vendor.visium_folder(tmp_path / "outs", header=header)
    sdata = visium(path, image=path / "he.png")
    for _, name, element in sdata.gen_spatial_elements():
        assert "um" in get_transformation(element, get_all=True), name
    mpp = scale.resolve_mpp(sdata, "he")[0]
    assert mpp == pytest.approx(2, rel=0.005)
    assert scale.resolve_mpp(sdata, "visium_hires_image")[0] == pytest.approx(2 * mpp)
    table = sdata["table"]
    expected = frame.loc[table.obs_names, ["pxl_col_in_fullres", "pxl_row_in_fullres"]] * mpp
    np.testing.assert_allclose(table.obsm["spatial"], expected)
    np.testing.assert_array_equal(table[:, "COL1A1"].X.toarray().ravel(), np.arange(48) + 1)
    spots = sd.transform(sdata["visium"], to_coordinate_system="um")
    np.testing.assert_allclose(spots.radius, 27.5)
    np.testing.assert_allclose(np.c_[spots.geometry.x, spots.geometry.y], table.obsm["spatial"])
    for image in ("he", "visium_hires_image", "visium_lowres_image"):
        xy = np.c_[table.obsm["spatial"], np.ones(48)] @ np.linalg.inv(scale.matrix_to(sdata[image]))[:2].T
        columns, rows = np.floor(xy).astype(int).T
        assert (sdata[image].to_numpy()[1][rows, columns] == 60).all()
    assert sdata.attrs["sthist"]["roles"] == {
        "spots": {"table": "table", "shapes": "visium"},
        "he": {"image": "he"},
    }
    sdata.write(tmp_path / "out.zarr")
    again = sd.read_zarr(tmp_path / "out.zarr")
    np.testing.assert_array_equal(again["table"].obsm["spatial"], table.obsm["spatial"])


def test_names_and_pictures(tmp_path, caplog):
    """The sample is named after its matrix; a black picture is passed over."""
    path, _ = vendor.visium_folder(tmp_path / "outs", prefix="Heart_", black_hires=True)
    with caplog.at_level(logging.WARNING, "sthist"):
        sdata = visium(path)
    assert "'Heart_hires_image' is of one colour" in caplog.text
    assert sdata.attrs["sthist"]["roles"]["he"] == {"image": "Heart_lowres_image"}
    assert sdata["table"].uns["spatialdata_attrs"]["region"] == "Heart"


def test_another_he(folder, tmp_path):
    """Laid on full-resolution pixels by its matrix."""
    Image.fromarray(np.full((50, 60, 3), 90, np.uint8)).save(tmp_path / "he2.png")
    sdata = visium(folder, he=tmp_path / "he2.png", he_alignment=[[4, 0, 8], [0, 4, 12], [0, 0, 1]])
    mpp = scale.resolve_mpp(sdata, "visium_hires_image")[0] / 2
    np.testing.assert_allclose(
        scale.matrix_to(sdata["he"]), np.diag([mpp, mpp, 1]) @ [[4, 0, 8], [0, 4, 12], [0, 0, 1]]
    )


def test_real_heart():
    """Spots of the real section lie on tissue; its hires picture, all black in the source, is not the H&E."""
    sdata = visium(real_folder("squidpy_visium") / "human_heart_100spots")
    assert sdata.attrs["sthist"]["roles"]["he"] == {"image": "visium_lowres_image"}
    table = sdata["table"]
    assert table.X.sum() == 932
    # 100 µm of the lattice and the spot diameter of 65 µm that Space Ranger states are two views of one scale.
    factors = json.loads(
        (real_folder("squidpy_visium") / "human_heart_100spots/spatial/scalefactors_json.json").read_text()
    )
    mpp = scale.resolve_mpp(sdata, "visium_lowres_image")[0] * factors["tissue_lowres_scalef"]
    assert mpp == pytest.approx(65 / factors["spot_diameter_fullres"], rel=0.01)
    from scipy.spatial import KDTree

    distance = KDTree(table.obsm["spatial"]).query(table.obsm["spatial"], k=2)[0][:, 1]
    assert distance.min() == pytest.approx(100, rel=0.01)
    image = sdata["visium_lowres_image"]
    assert image.sizes["c"] == 3
    xy = np.c_[table.obsm["spatial"], np.ones(100)] @ np.linalg.inv(scale.matrix_to(image))[:2].T
    columns, rows = np.floor(xy).astype(int).T
    pixels = image.to_numpy()
    glass = np.median(pixels[:, :, [0, -1]])
    assert np.mean(pixels[1][rows, columns]) < glass - 20


def test_bins_land_on_their_picture(hd, tmp_path):
    """microns_per_pixel places bins, counts and the marked bin of the picture."""
    sdata = visium_hd(hd, bin_size=None)
    assert sorted(sdata.tables) == ["square_008um", "square_016um"]
    for _, name, element in sdata.gen_spatial_elements():
        assert "um" in get_transformation(element, get_all=True), name
    table = sdata["square_008um"]
    expected = np.c_[table.obs["array_col"], table.obs["array_row"]] * 8 + 4 + np.array([20, 12]) * 0.5
    np.testing.assert_allclose(table.obsm["spatial"], expected)
    np.testing.assert_array_equal(table[:, "COL1A1"].X.toarray().ravel(), np.arange(64) + 1)
    squares = sd.transform(sdata["visium_hd_square_016um"], to_coordinate_system="um")
    np.testing.assert_allclose(squares.area, 256)
    np.testing.assert_allclose(squares.geometry.iloc[0].bounds, [10, 6, 26, 22])
    full = sthist.tiles.read_region(sdata, "visium_hd_full_image", (10, 6, 18, 14), mpp=0.5)
    assert full.shape == (16, 16, 3)
    np.testing.assert_array_equal(full[8, 8], [120, 60, 140])
    assert sdata.attrs["sthist"]["roles"] == {
        "spots": {"table": "square_008um", "shapes": "visium_hd_square_008um"},
        "he": {"image": "visium_hd_full_image"},
    }
    sdata.write(tmp_path / "out.zarr")


def test_hd_with_its_image_elsewhere(tmp_path):
    """The default is bins of 8 µm; nothing warns of a missing image that was given."""
    path = vendor.visium_hd_folder(tmp_path / "outs", prefix="Mouse_", full=False)
    Image.fromarray(vendor.he_picture(160, 180, np.array([[28, 20]]))).save(tmp_path / "he.png")
    sdata = visium_hd(path, image=tmp_path / "he.png")
    assert list(sdata.tables) == ["square_008um"]
    assert sdata["square_008um"].uns["spatialdata_attrs"]["region"] == "Mouse_square_008um"
    assert scale.resolve_mpp(sdata, "he") == pytest.approx((0.5, 0.5))
    with pytest.warns(UserWarning, match="No full resolution image found"):
        assert visium_hd(path).attrs["sthist"]["roles"]["he"] == {"image": "Mouse_hires_image"}


def cut(name, share=0.5):
    def damage(path):
        file = path / name
        file.write_bytes(file.read_bytes()[: int(share * file.stat().st_size)])

    return damage


def remove(name):
    return lambda path: (path / name).unlink()


def write(name, text):
    return lambda path: (path / name).write_text(text)


def positions(change):
    def damage(path):
        file = path / "spatial" / "tissue_positions_list.csv"
        change(pd.read_csv(file, header=None, dtype=str)).to_csv(file, header=False, index=False)

    return damage


def factors(change, name="spatial/scalefactors_json.json"):
    def damage(path):
        (path / name).write_text(json.dumps(change(json.loads((path / name).read_text()))))

    return damage


def no_barcodes(path):
    with h5py.File(path / "filtered_feature_bc_matrix.h5", "a") as file:
        del file["matrix/barcodes"]


MATRIX, POSITIONS = "filtered_feature_bc_matrix.h5", "spatial/tissue_positions_list.csv"
DAMAGES = {
    "no matrix": (remove(MATRIX), FileNotFoundError, f"no Visium folder: it has no {MATRIX}"),
    "no positions": (remove(POSITIONS), FileNotFoundError, f"has no {POSITIONS} and no spatial/tissue_positions.csv"),
    "no scale factors": (
        remove("spatial/scalefactors_json.json"),
        FileNotFoundError,
        "it has no spatial/scalefactors_json.json",
    ),
    "truncated matrix": (cut(MATRIX), ValueError, f"{MATRIX} cannot be read: .*Is it truncated"),
    "matrix without barcodes": (no_barcodes, KeyError, f"{MATRIX} has no matrix/barcodes"),
    "empty matrix": (
        lambda path: vendor.write_10x_matrix(path / MATRIX, np.zeros((0, 2)), [], ["A", "B"]),
        ValueError,
        f"{MATRIX} has no barcodes",
    ),
    "truncated json": (cut("spatial/scalefactors_json.json"), ValueError, "scalefactors_json.json cannot be read"),
    "json of another kind": (
        write("spatial/scalefactors_json.json", "[1, 2]"),
        ValueError,
        "scalefactors_json.json holds no JSON object",
    ),
    "scale factor missing": (
        factors(lambda content: {name: value for name, value in content.items() if name != "tissue_hires_scalef"}),
        KeyError,
        "scalefactors_json.json has no 'tissue_hires_scalef'",
    ),
    "scale factor is text": (
        factors(lambda content: content | {"tissue_lowres_scalef": "small"}),
        ValueError,
        "'tissue_lowres_scalef' is 'small'; it should be a positive number",
    ),
    "too few columns": (positions(lambda frame: frame[[0, 1, 2]]), KeyError, "has 3 columns without names"),
    "text for a position": (
        positions(lambda frame: frame.replace({4: {frame[4][5]: "top"}})),
        ValueError,
        "tissue_positions_list.csv: column 'pxl_row_in_fullres' should hold numbers",
    ),
    "empty positions": (cut(POSITIONS, 0), ValueError, "tissue_positions_list.csv has no rows"),
    "spot without position": (
        positions(lambda frame: frame[frame[0] != "ACGT0007-1"]),
        ValueError,
        "1 of 48 spots of .* have no position in .*, the first of them 'ACGT0007-1'",
    ),
    "barcode with two positions": (
        positions(lambda frame: pd.concat([frame, frame[frame[0] == "ACGT0007-1"]])),
        ValueError,
        "tissue_positions_list.csv has barcode 'ACGT0007-1' more than once",
    ),
    "rows and columns exchanged": (
        positions(lambda frame: frame[[0, 1, 3, 2, 4, 5]]),
        ValueError,
        "Are the columns of rows and columns exchanged",
    ),
    "spots of a line": (
        positions(lambda frame: frame.assign(**{"2": "0"}).pipe(lambda f: f[[0, 1, "2", 3, 4, 5]])),
        ValueError,
        "needs at least 3 spots that are not on one line",
    ),
    "spots in disorder": (
        positions(lambda frame: frame.assign(y=frame[4].astype(int) + 60 * (frame.index % 2))[[0, 1, 2, 3, "y", 5]]),
        ValueError,
        r"tissue_positions_list.csv: the spots lie .* µm off the lattice of Visium",
    ),
    "truncated picture": (
        cut("spatial/tissue_hires_image.png"),
        ValueError,
        "tissue_hires_image.png cannot be read: the picture ends before it is complete",
    ),
}


@pytest.mark.parametrize("damage", DAMAGES)
def test_damaged_folder(folder, damage):
    """The message names the file and what is wrong with it."""
    break_it, error, message = DAMAGES[damage]
    break_it(folder)
    with pytest.raises(error, match=message):
        visium(folder)


def test_wrong_arguments(folder):
    """A scale that contradicts the lattice; two H&E images; one that is not there."""
    with pytest.raises(ValueError, match=r"disagree by .*lattice of the spots"):
        visium(folder, mpp=0.5)
    with pytest.raises(ValueError, match="image= and he= are both given"):
        visium(folder, image=folder / "he.png", he=folder / "he.png")
    with pytest.raises(FileNotFoundError, match="image=: there is no file"):
        visium(folder, image=folder / "nowhere.tif")


def test_a_smaller_copy_for_the_full_image(folder):
    """The spots would lie beyond its edge."""
    with pytest.raises(
        ValueError, match=r"image=: \d+% of the spots lie outside of .*hires_image.png, which has 230 x 140"
    ):
        visium(folder, image=folder / "spatial/tissue_hires_image.png")


def test_a_row_without_a_shape(folder):
    """The last shape is not taken for it."""
    sdata = visium(folder)
    sdata.shapes["visium"] = sdata.shapes["visium"].iloc[1:]
    with pytest.raises(
        ValueError, match="1 of 48 rows of table 'table' have no shape in 'visium', such as 'ACGT0000-1'"
    ):
        finish(sdata, "visium", 2.0, "test", {"table": "visium"})


def test_hd_bin_of_numpy(hd):
    """What comes out of an array."""
    assert list(visium_hd(hd, bin_size=np.int64(16)).tables) == ["square_016um"]


def test_hd_image_that_states_its_scale(hd):
    """It is kept, and has to agree with the bins."""
    file = hd / "microscope_image" / "tissue.tif"
    pixels = tifffile.imread(file)
    tifffile.imwrite(file, pixels, photometric="rgb", resolution=(20000, 20000), resolutionunit="CENTIMETER")
    recorded = scale.recorded_mpp(visium_hd(hd), "visium_hd_full_image")
    assert recorded["TIFF XResolution of tissue.tif"] == 0.5
    tifffile.imwrite(file, pixels, photometric="rgb", resolution=(40000, 40000), resolutionunit="CENTIMETER")
    with pytest.raises(
        ValueError, match=r"'visium_hd_full_image' disagree by 100.0%: 0.25 µm/px \(TIFF XResolution of tis"
    ):
        visium_hd(hd)


def emptied(hd):
    """Where the folder of the full-resolution image was."""
    shutil.rmtree(hd / "microscope_image")
    return hd / "microscope_image"


def in_place_of(make):
    """Something else where the full-resolution image of Visium HD lies."""

    def damage(hd):
        file = hd / "microscope_image" / "tissue.tif"
        content = file.read_bytes()
        file.unlink()
        make(file, content)

    return damage


@pytest.mark.parametrize(
    ("damage", "error", "message"),
    [
        (
            in_place_of(lambda file, _: file.mkdir()),
            IsADirectoryError,
            r"full-resolution image: .*tif is a folder",
        ),
        (
            in_place_of(lambda file, _: file.symlink_to("nowhere")),
            FileNotFoundError,
            r"tissue.tif is a link",
        ),
        (in_place_of(lambda file, all_: file.write_bytes(all_[:900])), ValueError, r"tissue.tif is truncated"),
        (
            in_place_of(lambda file, _: file.write_bytes(b"II*\0no")),
            ValueError,
            r"tissue.tif is no TIFF|tissue.tif cannot",
        ),
        (in_place_of(lambda file, _: file.write_text("")), ValueError, r"tissue.tif"),
        (
            lambda hd: (shutil.rmtree(hd / "microscope_image"), (hd / "microscope_image").touch()),
            ValueError,
            r"no folder",
        ),
    ],
    ids=["folder", "link", "truncated", "no directory", "empty", "no folder"],
)
def test_hd_image_that_is_none(hd, damage, error, message):
    """It is refused with its name, not passed over."""
    damage(hd)
    with pytest.raises(error, match=message):
        visium_hd(hd)


def test_hd_image_that_breaks_later(hd):
    """Its pixels are read when needed."""
    file = hd / "microscope_image" / "tissue.tif"
    tifffile.imwrite(file, tifffile.imread(file), photometric="rgb", tile=(64, 64), compression="zlib")
    with tifffile.TiffFile(file) as opened:
        start, n = opened.pages[0].dataoffsets[0], opened.pages[0].databytecounts[0]
    content = bytearray(file.read_bytes())
    content[start : start + n] = b"\x55" * n
    file.write_bytes(content)
    image = visium_hd(hd)["visium_hd_full_image"]
    with pytest.raises(ValueError, match=r"tissue.tif cannot be decoded at \(x, y\) = \(0, 0\) of level 0"):
        image["scale0"].image.to_numpy()


BIN = "binned_outputs/square_008um"
HD_DAMAGES = {
    "no slice": (remove("feature_slice.h5"), FileNotFoundError, "no Visium HD folder: it has no feature_slice.h5"),
    "truncated slice": (cut("feature_slice.h5"), ValueError, "feature_slice.h5 cannot be read"),
    "slice of something else": (
        lambda path: shutil.copy(path / BIN / MATRIX, path / "feature_slice.h5"),
        KeyError,
        "feature_slice.h5 has no attribute metadata_json",
    ),
    **{
        f"a slice that says {text!r}": (
            lambda path, text=text: h5py.File(path / "feature_slice.h5", "a").attrs.__setitem__("metadata_json", text),
            KeyError,
            "feature_slice.h5 has no attribute metadata_json with hd_layout_json",
        )
        for text in ("", "{", "[]", '{"hd_layout_json": 5}', 5)
    },
    "no bins": (
        lambda path: shutil.rmtree(path / BIN),
        FileNotFoundError,
        r"has no bins of \[8\] µm; it has \[16\]: choose with bin_size=",
    ),
    "no positions": (
        remove(f"{BIN}/spatial/tissue_positions.parquet"),
        FileNotFoundError,
        "it has no tissue_positions.parquet",
    ),
    "truncated positions": (
        cut(f"{BIN}/spatial/tissue_positions.parquet"),
        ValueError,
        "tissue_positions.parquet cannot be read",
    ),
    "text for a position": (
        lambda path: (
            pd.read_parquet(path / BIN / "spatial/tissue_positions.parquet")
            .assign(pxl_row_in_fullres="top")
            .to_parquet(path / BIN / "spatial/tissue_positions.parquet", index=False)
        ),
        ValueError,
        "tissue_positions.parquet: column 'pxl_row_in_fullres' holds .*string; it should hold numbers",
    ),
    "bin without position": (
        lambda path: pd.read_parquet(path / BIN / "spatial/tissue_positions.parquet")[1:].to_parquet(
            path / BIN / "spatial/tissue_positions.parquet", index=False
        ),
        ValueError,
        "1 of 64 bins of .* have no position in .*, the first of them 's_008um_00000_00000-1'",
    ),
    "no scale": (
        factors(lambda content: content | {"microns_per_pixel": None}, f"{BIN}/spatial/scalefactors_json.json"),
        ValueError,
        "'microns_per_pixel' is None; it should be a positive number",
    ),
    "scale of another sample": (
        factors(lambda content: content | {"microns_per_pixel": 0.25}, f"{BIN}/spatial/scalefactors_json.json"),
        ValueError,
        "bin_size_um is 8 and spot_diameter_fullres 16 px, which are 0.5 µm per pixel",
    ),
    "truncated matrix": (cut(f"{BIN}/{MATRIX}"), ValueError, f"square_008um/{MATRIX} cannot be read"),
}


@pytest.mark.parametrize("damage", HD_DAMAGES)
def test_damaged_hd_folder(hd, damage):
    """The message names the file and what is wrong with it."""
    break_it, error, message = HD_DAMAGES[damage]
    break_it(hd)
    with pytest.raises(error, match=message):
        visium_hd(hd)


def test_a_picture_whose_checksum_is_wrong(tmp_path):
    """Pillow shows such a PNG with other pixels, and without a word."""
    path, _ = vendor.visium_folder(tmp_path / "outs")
    picture = next((path / "spatial").glob("*hires_image.png"))
    content = bytearray(picture.read_bytes())
    content[content.index(b"IDAT") + 20] ^= 1
    picture.write_bytes(content)
    with pytest.raises(ValueError, match=r"hires_image\.png is damaged: the checksum"):
        visium(path)
