"""Where the tissue is, beside what is no stain."""

from __future__ import annotations

import numpy as np
import pytest
import shapely
import spatialdata as sd
from scipy.ndimage import gaussian_filter
from spatialdata.models import Image2DModel
from spatialdata.transformations import Affine, Scale

import sthist
from sthist._imaging.tissue import mask_of_nuclear_stain

MPP, SHAPE = 8.0, (300, 400)
ROWS, COLUMNS = np.mgrid[: SHAPE[0], : SHAPE[1]]
GRAIN = gaussian_filter(np.random.default_rng(0).normal(size=SHAPE), 1.5)
NOISE = np.random.default_rng(1).normal(0, 1, (*SHAPE, 1))
STAIN = np.array([0.25, 0.9, 0.4])
PALE_AT, DARK_AT, RADIUS = (100, 150), (300, 150), 60


def disc(place, radius=RADIUS):
    """A round section around x, y in pixels."""
    return (ROWS - place[1]) ** 2 + (COLUMNS - place[0]) ** 2 < radius**2


def picture(amounts, light=1.0, glass=242.0):
    """Sections of some strength on glass, in some light."""
    density = sum(disc(place)[..., None] * (0.5 + GRAIN[..., None]) * k * STAIN for place, k in amounts.items())
    pixels = np.asarray(glass) * np.exp(-density) * np.broadcast_to(light, SHAPE)[..., None] + NOISE
    return np.clip(pixels, 0, 255).astype(np.uint8)


def outline(pixels, to_um=None):
    """The tissue of a picture."""
    to_um = Scale([MPP, MPP], ("x", "y")) if to_um is None else to_um
    image = Image2DModel.parse(np.moveaxis(pixels, -1, 0), dims=("c", "y", "x"), transformations={"um": to_um})
    sdata = sd.SpatialData(images={"he": image})
    sthist.pp.tissue(sdata)
    return sdata["tissue"].geometry.union_all()


def part_found(tissue, *places):
    """How much of the sections there are is tissue, and how much of the rest of the picture."""
    truth = shapely.union_all([shapely.Point(np.array(place) * MPP).buffer(RADIUS * MPP) for place in places])
    frame = shapely.box(0, 0, SHAPE[1] * MPP, SHAPE[0] * MPP)
    return tissue.intersection(truth).area / truth.area, tissue.difference(truth).area / frame.difference(truth).area


@pytest.mark.parametrize("width", [4, 20, 130])
@pytest.mark.parametrize("colour", [(0, 0, 0), (255, 255, 255), (12, 14, 20), (90, 90, 90)])
def test_a_border_that_was_not_scanned_is_no_tissue(width, colour):
    pixels = picture({PALE_AT: 1.0}, glass=[230, 215, 228])
    pixels[:, SHAPE[1] - width :] = colour
    found, beside = part_found(outline(pixels), PALE_AT)
    assert found > 0.97
    assert beside < 0.01


INKS = {
    "black": (15, 15, 20),
    "dark blue": (15, 20, 70),
    "blue": (20, 60, 160),
    "green": (20, 140, 60),
    "red": (200, 30, 40),
    "orange": (240, 120, 30),
}


@pytest.mark.parametrize("strength", [0.25, 1.0])
@pytest.mark.parametrize("ink", INKS)
def test_ink_is_no_tissue_and_hides_none(ink, strength):
    pixels = picture({PALE_AT: strength})
    pixels[30:45, 250:380] = INKS[ink]
    found, beside = part_found(outline(pixels), PALE_AT)
    assert found > 0.97
    assert beside < 0.01


def test_a_pale_section_is_found_beside_a_dark_one():
    found, beside = part_found(outline(picture({PALE_AT: 0.25, DARK_AT: 1.0})), PALE_AT, DARK_AT)
    assert found > 0.97
    assert beside < 0.02


LIGHTS = {
    "from the left": 0.65 + 0.35 * COLUMNS / SHAPE[1],
    "from the middle": 1 - 0.22 * ((COLUMNS / 200 - 1) ** 2 + (ROWS / 150 - 1) ** 2),
    "in strips": np.where(COLUMNS // 50 % 2 == 0, 1.0, 0.85),
}


@pytest.mark.parametrize("light", LIGHTS)
def test_uneven_light_is_no_tissue(light):
    found, beside = part_found(outline(picture({PALE_AT: 0.4}, LIGHTS[light])), PALE_AT)
    assert found > 0.95
    assert beside < 0.02


def test_dust_is_no_tissue():
    pixels, rng = picture({PALE_AT: 0.4}), np.random.default_rng(2)
    for _ in range(40):
        pixels[disc((rng.integers(200, 400), rng.integers(0, 300)), rng.integers(1, 6))] = rng.integers(20, 90)
    found, beside = part_found(outline(pixels), PALE_AT)
    assert found > 0.97
    assert beside < 0.01


@pytest.mark.parametrize("ink", ["black", "blue", "red"])
def test_ink_alone_is_refused(ink):
    pixels = picture({PALE_AT: 0.0})
    pixels[30:90, 250:380] = INKS[ink]
    with pytest.raises(ValueError, match="Found no tissue"):
        outline(pixels)


def test_holes_are_what_tissue_encloses():
    """A gap of 0.009 mm² is closed inside of a section, and stays open at the border of the picture."""
    pixels = picture({PALE_AT: 1.0, (200, 299): 1.0})
    pixels[144:156, 94:106] = pixels[288:, 194:206] = 242
    tissue = outline(pixels)
    assert tissue.contains(shapely.Point(100 * MPP, 150 * MPP))
    assert not tissue.contains(shapely.Point(200 * MPP, 297 * MPP))


def turned(degrees):
    """Registered with a rotation."""
    c, s = MPP * np.cos(np.deg2rad(degrees)), MPP * np.sin(np.deg2rad(degrees))
    return Affine(np.array([[c, -s, 2000.0], [s, c, 0.0], [0.0, 0.0, 1.0]]), ("x", "y"), ("x", "y"))


@pytest.mark.parametrize("degrees", [2, 20, 45, 90])
def test_a_rotation_changes_no_area(degrees):
    pixels = picture({PALE_AT: 1.0}, glass=[230, 215, 228])
    area = np.pi * (RADIUS * MPP) ** 2
    assert abs(outline(pixels, turned(degrees)).area / area - 1) < 0.05


def test_a_rotation_changes_no_background_of_a_nuclear_stain():
    """A stain whose background is above zero: what is filled beside it is darker."""
    rng = np.random.default_rng(3)
    nuclei = gaussian_filter((disc(PALE_AT) & (rng.random(SHAPE) < 0.3)).astype(float), 1.0)
    pixels = (500 + 3000 * nuclei + rng.normal(0, 10, SHAPE)).clip(0).astype(np.uint16)[None]
    areas = []
    for degrees in (0, 5, 45):
        image = Image2DModel.parse(
            pixels, dims=("c", "y", "x"), transformations={"um": turned(degrees)}, c_coords=["dapi"]
        )
        sdata = sd.SpatialData(images={"dapi": image})
        sthist.pp.tissue(sdata, image="dapi")
        areas.append(sdata["tissue"].area_um2.sum())
    assert np.ptp(areas) < 0.05 * areas[0]
    assert abs(areas[0] / (np.pi * (RADIUS * MPP) ** 2) - 1) < 0.2


@pytest.mark.parametrize("size_um", [300, 400])
def test_a_section_that_ends_near_the_frame_grows_no_horns(size_um):
    """The virtual H&E is blank where the real one is: at the frame, which the toy's tissue does not reach."""
    sdata = sthist.datasets.toy(size_um=size_um)
    sthist.tl.virtual_he(sdata, progress=False)
    stained = []
    for key in ("virtual_he", "he"):
        pixels = sthist.tiles.read_region(sdata, key, (0, 0, size_um, size_um), mpp=1.0, fill=255)
        stained.append(gaussian_filter(sthist.stains.optical_density(pixels)[..., 1], 4) > 0.1)
    frame = np.ones_like(stained[0])
    frame[2:-2, 2:-2] = False
    virtual, real = stained
    assert real[frame].mean() == 0
    assert virtual[frame].mean() < 0.02
    assert (virtual & ~real).mean() < 0.03
    assert (real & ~virtual).mean() < 0.05


def test_a_section_that_the_frame_cuts_reaches_it():
    """Molecules up to the border leave no white rim there."""
    rng = np.random.default_rng(0)
    shape, counts = (100, 100), np.zeros((100, 100))
    nuclei = rng.integers(0, 100, (60, 2))
    counts[tuple(nuclei.T)] = 1
    stain = gaussian_filter(counts, 1.0) * 4000 + rng.normal(100, 3, shape)
    density = gaussian_filter(rng.poisson(0.5, shape).astype(np.float32), 1.5)
    assert mask_of_nuclear_stain(stain, 4.0, density).mean() > 0.99
