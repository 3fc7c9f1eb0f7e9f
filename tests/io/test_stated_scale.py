"""What files state of their scale in odd ways, or wrongly; and images that are spread over files."""

from __future__ import annotations

import numpy as np
import pytest
import tifffile
import vendor
from realdata import folder

import sthist
from sthist import scale

GREY = np.zeros((256, 384, 3), np.uint8)


def aperio(path, text):
    about = f"Aperio Image Library v11.0\r\n384x256 [0,0 384x256] (128x128) RGB|AppMag = 20|MPP = {text}|Left = 1"
    tifffile.imwrite(path, GREY, photometric="rgb", tile=(128, 128), description=about, metadata=None)
    return path


@pytest.mark.parametrize(
    ("text", "mpp"), [("0,500000", 0.5), ("1,9", 1.9), ("4.99e-1", 0.499), (" 0.2501 ", 0.2501), ("0.5", 0.5)]
)
def test_a_number_is_read_as_scanners_write_it(tmp_path, text, mpp):
    """With a decimal comma, and with an exponent."""
    sdata = sthist.io.slide(aperio(tmp_path / "slide.svs", text))
    assert scale.resolve_mpp(sdata, "he") == pytest.approx((mpp, mpp))


@pytest.mark.parametrize("text", ["0", ".", "", "unknown", "-0.5", "1.2.3", "1,234,5"])
def test_what_is_no_scale_gives_way_to_the_argument(tmp_path, caplog, text):
    """And is refused without one."""
    path = aperio(tmp_path / "slide.svs", text)
    with pytest.raises(ValueError, match=r"is .* \(MPP of the Aperio description\).*Give the right one with mpp="):
        sthist.io.slide(path)
    assert scale.resolve_mpp(sthist.io.slide(path, mpp=0.5), "he") == (0.5, 0.5)
    assert "MPP of the Aperio description says" in caplog.text


@pytest.mark.parametrize("size", [0.0, -1.61736e9, float("nan"), float("inf"), 352.78])
def test_nonsense_of_ome_metadata(tmp_path, caplog, size):
    """What is known otherwise wins, with a word: the argument, a matrix, and the frame of a vendor."""
    path = tmp_path / "slide.ome.tif"
    metadata = {"axes": "YXS", "PhysicalSizeX": size, "PhysicalSizeY": size}
    tifffile.imwrite(path, GREY, photometric="rgb", metadata=metadata)
    assert scale.resolve_mpp(sthist.io.slide(path, mpp=0.5), "he") == (0.5, 0.5)
    sdata = sthist.io.assemble({"he": path}, matrices={"he": np.diag([0.5, 0.5, 1])})
    assert scale.resolve_mpp(sdata, "he") == (0.5, 0.5)
    spots, _ = vendor.visium_folder(tmp_path / "outs", header=True)  # 2 µm per pixel
    assert scale.resolve_mpp(sthist.io.visium(spots, he=path, he_alignment=np.eye(3)), "he") == pytest.approx(
        (2, 2), rel=0.01
    )
    assert caplog.text.count("OME PhysicalSizeX says") == 3


def test_resolution_tags_of_the_image_of_a_folder(tmp_path, caplog):
    """The user's scale is that of the spots; the tags are wrong."""
    path, _ = vendor.visium_folder(tmp_path / "outs", header=True)
    image = np.zeros((280, 460, 3), np.uint8)
    tags = {"resolution": (40000, 40000), "resolutionunit": "CENTIMETER"}
    tifffile.imwrite(path / "he.tif", image, photometric="rgb", **tags)
    with pytest.raises(ValueError, match=r"0.25 µm/px \(TIFF XResolution\)"):
        sthist.io.visium(path, image=path / "he.tif")
    sdata = sthist.io.visium(path, image=path / "he.tif", mpp=2.0)
    assert scale.resolve_mpp(sdata, "he") == pytest.approx((2, 2), rel=0.01)
    assert "TIFF XResolution says 0.25 µm/px; 2 is taken" in caplog.text


def write_set(path, names=("DAPI", "18S"), prefix="morphology_focus_"):
    """An image whose channels are spread over files that name each other."""
    files = [f"{prefix}{number:04d}.ome.tif" for number in range(len(names))]
    uuids = [f"urn:uuid:00000000-0000-0000-0000-00000000000{number}" for number in range(len(names))]
    channels = "".join(f'<Channel ID="Channel:{k}" Name="{name}" SamplesPerPixel="1"/>' for k, name in enumerate(names))
    where = "".join(
        f'<TiffData FirstC="{k}" PlaneCount="1"><UUID FileName="{files[k]}">{uuids[k]}</UUID></TiffData>'
        for k in range(len(names))
    )
    for number, file in enumerate(files):
        xml = (
            f'<OME xmlns="http://www.openmicroscopy.org/Schemas/OME/2016-06" UUID="{uuids[number]}"><Image '
            'ID="Image:0"><Pixels ID="Pixels:0" DimensionOrder="XYZCT" Type="uint16" SizeX="384" SizeY="256" SizeZ="1" '
            f'SizeC="{len(names)}" SizeT="1" PhysicalSizeX="0.2125" PhysicalSizeY="0.2125">{channels}{where}</Pixels>'
            "</Image></OME>"
        )
        pixels = np.full((256, 384), 100 * (number + 1), np.uint16)
        tifffile.imwrite(path / file, pixels, description=xml, metadata=None, tile=(128, 128))
    return [path / file for file in files]


@pytest.mark.parametrize("missing", [0, 1])
def test_a_file_of_a_set_is_missing(tmp_path, missing):
    """Its channel is not black: the file is named, also where it was renamed."""
    files = write_set(tmp_path)
    image = sthist.io.assemble({"image": files[missing]})["image"]
    assert {str(c): int(image.sel(c=c).max()) for c in image.c.to_numpy()} == {"DAPI": 100, "18S": 200}
    files[missing].rename(tmp_path / "renamed.ome.tif")
    with pytest.raises(ValueError, match=f"1 of its 2 planes are not there; they should be in {files[missing].name}"):
        sthist.io.assemble({"image": files[1 - missing]})


def test_a_file_of_the_stains_of_a_xenium_folder_is_missing(tmp_path):
    """The same in a vendor's reader."""
    import shutil

    path = shutil.copytree(folder("xenium_ileum_tiny") / "outs", tmp_path / "outs")
    shutil.rmtree(path / "morphology_focus")
    (path / "morphology_focus").mkdir()
    files = write_set(path / "morphology_focus", ("DAPI", "ATP1A1", "18S", "alphaSMA"))
    files[2].unlink()
    with pytest.raises(ValueError, match="1 of its 4 planes are not there; they should be in morphology_focus_0002"):
        sthist.io.xenium(path)
