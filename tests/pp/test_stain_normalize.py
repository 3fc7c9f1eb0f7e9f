"""Stain normalisation against the papers' recipes, on real sections, in the reader and as an image."""

from __future__ import annotations

import json
import pickle
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
import spatialdata as sd
from PIL import Image
from realdata import folder
from realdata import picture as picture_of

import sthist
from sthist import stains
from sthist.pp import StainNormalizer, StainReference, stain_normalize
from sthist.tiles import TileReader, TileSpec

HER2ST = ("B4", "C3", "C4", "C5")
SLOW = dict.fromkeys(("C4", "C5"), pytest.mark.slow)  # of one patient with C3
OTHERS = {
    "cmu1": ("he_svs", "CMU-1-Small-Region.svs", 0.499),
    "xenium_breast_crop": ("xenium_breast_rep1", "he_crop_2.4um.png", 2.4),
    "xenium_breast_section": ("xenium_breast_rep1", "he_section_5.8um.png", 5.8),
    "xenium_lung": ("xenium_lung_ncbi858", "NCBI858_he.jpg", 2.125),
    "mouse_brain": ("squidpy_visium", "mouse_brain_crop/he_crop.jpg", 0.73),
}
VECTORS = np.array([[0.65, 0.70, 0.29], [0.17, 0.91, 0.38]])
VECTORS = VECTORS / np.linalg.norm(VECTORS, axis=1, keepdims=True)


def picture(name: str) -> tuple[np.ndarray, float]:
    """Pixels of a real H&E and their µm per pixel; her2st's at a quarter of their resolution, as JPEG decodes it."""
    if name in HER2ST:
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(Image, "MAX_IMAGE_PIXELS", None)
            opened = Image.open(folder("her2st") / f"{name}.jpg")
            full = opened.size[0]
            opened.draft("RGB", (full // 4, full // 4))
            pixels = np.asarray(opened)
        return pixels, 0.688 * full / pixels.shape[1]
    where, file, mpp = OTHERS[name]
    if file.endswith(".svs"):
        import tifffile

        return tifffile.imread(folder(where) / file, key=0), mpp
    return np.asarray(Image.open(folder(where) / file).convert("RGB")), mpp


def slide(pixels: np.ndarray, mpp: float = 1.0) -> sd.SpatialData:
    return sthist.io.assemble({"he": np.ascontiguousarray(pixels.transpose(2, 0, 1))}, mpp=mpp)


def macenko_2009(rgb: np.ndarray, glass: tuple[float, ...]) -> np.ndarray:
    """The paper's recipe, step by step: OD, threshold 0.15, plane of the two largest directions, robust extremes."""
    od = -np.log(np.clip(rgb.reshape(-1, 3).astype(float), 1, None) / np.asarray(glass))
    od = od[np.all(od >= 0.15, axis=1)]
    values, directions = np.linalg.eig(np.cov(od, rowvar=False))
    first, second = (directions[:, i] for i in np.argsort(values)[::-1][:2])
    first = first * np.sign(first.sum())
    phi = np.arctan2(od @ second, od @ first)
    ends = [np.cos(a) * first + np.sin(a) * second for a in np.percentile(phi, [1, 99])]
    return np.array(sorted(ends, key=lambda end: -end[0]))  # haematoxylin takes more red


def degrees(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    return np.rad2deg(np.arccos(np.clip((np.asarray(a) * np.asarray(b)).sum(-1), -1, 1)))


def lab_statistics(pixels: np.ndarray, glass: tuple[float, ...]) -> np.ndarray:
    """Mean and spread of the colours of stained pixels, in CIE's L*a*b*, which no part of the package uses."""
    from skimage.color import rgb2lab

    flat = pixels.reshape(-1, 3)
    stained = (stains.optical_density(flat, np.array(glass)) > 0.15).any(1)
    lab = rgb2lab(flat[stained][None])[0]
    return np.concatenate([lab.mean(0), lab.std(0)])


@pytest.fixture(scope="module")
def her2st_pair():
    found = {name: picture(name) for name in ("B4", "C3")}
    return {name: (pixels, slide(pixels, mpp)) for name, (pixels, mpp) in found.items()}


@pytest.fixture
def stained():
    """A made-up section: nuclei, cytoplasm and glass, of known vectors; and the glass around it."""
    rng = np.random.default_rng(0)
    amounts = rng.gamma(1.2, 0.4, (400, 400, 2)) * [1.0, 0.7]
    amounts[:40, :, 0], amounts[40:80, :, 1] = 0.01, 0.01
    rgb = stains.to_rgb(amounts, VECTORS, white=np.array([240.0, 236, 241]))
    rgb = np.pad(rgb, ((100, 100), (100, 100), (0, 0)))
    glass = (rgb == 0).all(-1)
    rgb[glass] = rng.normal([240, 236, 241], 1.0, (glass.sum(), 3)).round().astype(np.uint8)
    return rgb


@pytest.mark.parametrize("name", [*(pytest.param(name, marks=SLOW.get(name, ())) for name in HER2ST), *OTHERS])
def test_vectors_as_by_the_papers_recipe(name):
    """Within 5 degrees of ten lines of numpy over the whole picture, at its own resolution."""
    pixels, mpp = picture(name)
    if name == "cmu1":
        pixels = pixels[:, :1700]  # the right edge of this section is inked blue
    found = stain_normalize(slide(pixels, mpp), mpp=mpp).source
    assert degrees(found.stains, macenko_2009(pixels, found.white)).max() < 5
    assert all(180 <= level <= 255 for level in found.white)


def test_pale_tissue_is_not_taken_for_glass():
    """An image without glass, much of which is pale cytoplasm: of all its tissue, 13 % was brighter than its glass."""
    path = folder("brecahad_tumor_nuclei") / "images" / "breast_10038.jpg"
    pixels = picture_of(path).transpose(1, 2, 0)
    assert StainReference.fit(slide(pixels, 0.25)).white == (255, 255, 255)
    assert min(StainReference.fit(np.ascontiguousarray(pixels)).white) > 240


def test_a_reference_knows_the_mean_of_its_stains(stained):
    """Mean amounts are of the stained pixels; a reference without them stays one."""
    found = StainReference.fit(stained)
    assert found.mean_amounts == pytest.approx(np.array([1.2 * 0.4, 1.2 * 0.4 * 0.7]), rel=0.25)
    without = found.to_dict()
    del without["mean_amounts"]
    assert StainReference.from_dict(without).mean_amounts is None
    with pytest.raises(ValueError, match="mean_amounts is"):
        StainReference.from_dict(without | {"mean_amounts": [0.2, float("nan")]})


@pytest.mark.parametrize("method", ["macenko", "reinhard"])
@pytest.mark.parametrize("name", ["cmu1", "xenium_lung"])
def test_the_reference_maps_to_itself(name, method):
    """A slide that is normalised to its own stain stays as it is, within a grey level."""
    pixels, mpp = picture(name)
    sdata = slide(pixels, mpp)
    reference = StainReference.fit(sdata, method=method)
    normalized = stain_normalize(sdata, method=method, reference=reference)(pixels)
    assert np.abs(normalized.astype(int) - pixels).max() <= 1


@pytest.mark.parametrize("method", ["macenko", "reinhard"])
def test_every_colour_maps_to_itself(method, stained):
    """Also those that no tissue has."""
    reference = StainReference.fit(stained, method=method)
    colours = np.random.default_rng(1).integers(0, 256, (200, 200, 3)).astype(np.uint8)
    assert np.abs(StainNormalizer(reference, reference)(colours).astype(int) - colours).max() <= 1


@pytest.mark.parametrize("method", ["macenko", pytest.param("reinhard", marks=pytest.mark.slow)])
def test_two_patients_come_closer(her2st_pair, method):
    """Mean and spread of the tissue's colours in L*a*b*, of sections of two patients.

    In one reference and in each other's.
    """
    fits = {name: stain_normalize(sdata, method=method) for name, (_, sdata) in her2st_pair.items()}
    crops = {name: pixels[::4, ::4] for name, (pixels, _) in her2st_pair.items()}

    def apart(b4: np.ndarray, c3: np.ndarray) -> float:
        glass = [fits[name].source.white for name in ("B4", "C3")]
        difference = lab_statistics(b4, glass[0]) - lab_statistics(c3, glass[1])
        return float(np.linalg.norm(difference))

    before = apart(crops["B4"], crops["C3"])
    in_default = apart(*(fits[name](crops[name]) for name in ("B4", "C3")))
    onto_c3 = StainNormalizer(fits["B4"].source, fits["C3"].source)
    assert in_default < 0.9 * before
    assert apart(onto_c3(crops["B4"]), crops["C3"]) < 0.9 * before


@pytest.mark.parametrize("method", ["macenko", pytest.param("reinhard", marks=pytest.mark.slow)])
def test_blank_tiles_stay(her2st_pair, method):
    """White, the slide's own glass with its noise, ST2HE's blank grey on white glass, and the black around a scan."""
    glass_of = {}
    for name, (pixels, sdata) in her2st_pair.items():
        normalizer = stain_normalize(sdata, method=method)
        glass_of[name] = normalizer.source.white
        noisy = np.random.default_rng(0).normal(normalizer.source.white, 3, (64, 64, 3)).round().astype(np.uint8)
        for blank in (np.full((64, 64, 3), 255, np.uint8), noisy, np.zeros((64, 64, 3), np.uint8)):
            assert (normalizer(blank) == blank).all()
        assert (normalizer(pixels[:64, :64]) == pixels[:64, :64]).mean() > 0.99  # a corner without tissue
    assert glass_of["B4"] != glass_of["C3"]
    white = StainReference.from_dict(StainReference.default(method).to_dict() | {"white": (255, 255, 255)})
    grey = np.full((8, 8, 3), 231, np.uint8)
    assert (StainNormalizer(white, StainReference.default(method))(grey) == grey).all()


@pytest.mark.parametrize("mixture", [(1, 0), (0, 1), (0.6, 0.4)])
@pytest.mark.parametrize("glass", [(255, 255, 255), (225, 225, 225), (200, 190, 205)])
def test_no_halo(glass, mixture):
    """From glass to tissue, brightness falls without a step back, however unlike the two slides' glass."""
    source = StainReference("macenko", (225, 225, 225), vectors=VECTORS.tolist(), amounts=(2.0, 1.0))
    reference = StainReference("macenko", glass, vectors=VECTORS.tolist(), amounts=(2.0, 1.0))
    ramp = stains.to_rgb(np.linspace(0, 2, 1000)[:, None] * mixture, VECTORS, white=225.0)
    brightness = StainNormalizer(source, reference)(ramp[None])[0].mean(-1)
    assert (brightness - np.minimum.accumulate(brightness)).max() <= 1  # of rounding
    assert np.abs(np.diff(brightness)).max() <= 2


def test_known_stain_becomes_the_other(stained):
    """Amounts of known stains are moved to the reference's vectors, strength and glass.

    What the formula of both gives.
    """
    white, other = np.array([240.0, 236, 241]), np.array([250.0, 250, 250])
    theirs = np.array([[0.55, 0.75, 0.36], [0.2, 0.8, 0.56]])
    theirs = theirs / np.linalg.norm(theirs, axis=1, keepdims=True)
    source = StainReference("macenko", tuple(white), vectors=VECTORS.tolist(), amounts=(2.0, 1.0))
    reference = StainReference("macenko", tuple(other), vectors=theirs.tolist(), amounts=(1.0, 1.5))
    amounts = np.random.default_rng(0).uniform([0.3, 0.3], [1.2, 0.8], (50, 50, 2))
    made = StainNormalizer(source, reference)(stains.to_rgb(amounts, VECTORS, white=white))
    truth = stains.to_rgb(amounts * [0.5, 1.5], theirs, white=other)
    assert np.abs(made.astype(int) - truth).max() <= 3  # of rounding to 8 bits before
    fitted = StainReference.fit(stained)
    assert degrees(fitted.stains, VECTORS).max() < 3
    np.testing.assert_allclose(fitted.white, white, atol=1)


def test_reinhard_as_by_the_papers_recipe(stained):
    """Where a pixel changes in full: to l alpha beta by the printed matrices, centred, scaled, and back."""
    normalizer = stain_normalize(
        slide(stained), method="reinhard", reference="of itself, but paler" and _paler(stained)
    )
    lms = np.array([[0.3811, 0.5783, 0.0402], [0.1967, 0.7244, 0.0782], [0.0241, 0.1288, 0.8444]])
    lab = np.diag(1 / np.sqrt([3, 6, 2])) @ [[1, 1, 1], [1, 1, -2], [1, -1, 0]]
    dark = stained[(stains.optical_density(stained, np.array(normalizer.source.white)) > 0.8).any(-1)]
    there = np.log(np.maximum(dark, 1) @ lms.T) @ lab.T
    source, target = normalizer.source, normalizer.reference
    moved = (there - source.mean) / source.spread * target.spread + target.mean
    back = np.exp(moved @ np.linalg.inv(lab).T) @ np.linalg.inv(lms).T
    assert np.abs(normalizer(dark[None])[0] - np.clip(back, 0, 255)).max() < 1


def _paler(rgb: np.ndarray) -> StainReference:
    fit = StainReference.fit(rgb, method="reinhard").to_dict()
    return StainReference.from_dict(fit | {"mean": (np.array(fit["mean"]) + [0.2, 0.01, -0.01]).tolist()})


@pytest.mark.parametrize("method", ["macenko", "reinhard"])
def test_reader_applies_it(toy, method):
    """A reader with a normaliser reads what the normaliser makes of the reader's tiles, also outside the image."""
    normalizer = stain_normalize(toy, method=method)
    spec = TileSpec(64, 128)
    centres = np.random.default_rng(0).uniform(-10, 410, (20, 2))
    plain, lazy = (TileReader(toy, "he", spec, fill=255, normalizer=each) for each in (None, normalizer))
    tiles = plain.read(centres)
    made = lazy.read(centres)
    np.testing.assert_array_equal(made, normalizer(tiles))
    assert (made != tiles).mean() > 0.2
    coarse = TileSpec(64, 32)
    np.testing.assert_array_equal(lazy.at(coarse).read(centres), normalizer(plain.at(coarse).read(centres)))
    np.testing.assert_array_equal(pickle.loads(pickle.dumps(lazy)).read(centres), made)
    loader = sthist.tiles.TileLoader(lazy, centres, batch_size=6)
    for index, batch in loader:
        np.testing.assert_array_equal(batch, made[index])


def test_reader_of_arrays_and_what_it_refuses(toy, stained):
    to_um = np.diag([0.5, 0.5, 1.0])
    array = np.ascontiguousarray(stained.transpose(2, 0, 1))
    invert = TileReader.from_array(array, to_um, TileSpec(50, 100), normalizer=lambda tiles: 255 - tiles)
    np.testing.assert_array_equal(invert.read([[100, 100]])[0], 255 - stained[150:250, 150:250])
    with pytest.raises(ValueError, match="normalizer= is for three channels of uint8"):
        TileReader(toy, "morphology_focus", TileSpec(64, 64), normalizer=lambda tiles: tiles)


@pytest.mark.parametrize("method", ["macenko", "reinhard"])
def test_written_image_equals_what_is_read_lazily(backed, method):
    """Pixel by pixel where both have the image's own resolution; it is there after read_zarr, and it is not the H&E."""
    normalizer = stain_normalize(backed, method=method, key_added="he_normalized", progress=False)
    again = sd.read_zarr(backed.path)
    spec = TileSpec(64, 128)
    lazily = TileReader(backed, "he", spec, fill=255, normalizer=normalizer)
    corners = np.random.default_rng(0).integers(0, 600, (20, 2)) * 0.5 + lazily.extent_um[:2]
    centres = corners + spec.size_um / 2
    lazy = lazily.read(centres)
    for sdata in (backed, again):
        np.testing.assert_array_equal(TileReader(sdata, "he_normalized", spec).read(centres), lazy)
        assert sthist._sample.elements.find_he(sdata) == "he"
    made = again.attrs["sthist"]["results"]["he_normalized"]
    assert made["call"] == "pp.stain_normalize"
    assert StainNormalizer.from_dict(made["normalizer"]) == normalizer
    with pytest.raises(ValueError, match="exists"):
        stain_normalize(backed, key_added="he_normalized")
    onto_itself = stain_normalize(backed, "he_normalized", method=method)
    assert onto_itself.source.origin.startswith("images['he_normalized']")


def test_a_run_that_was_stopped_is_continued(backed, monkeypatch):
    """The second call finds the blocks of the first, and gives the same image as a run that was not stopped."""
    from sthist.pp._stain_normalize import verb

    whole = sd.deepcopy(backed)
    stain_normalize(whole, key_added="normal", progress=False)
    publish = verb._store.publish

    def stop(*args, **kwargs):
        raise KeyboardInterrupt

    monkeypatch.setattr(verb._store, "publish", stop)
    with pytest.raises(KeyboardInterrupt):
        stain_normalize(backed, key_added="normal", progress=False)
    assert "normal" not in sd.read_zarr(backed.path).images
    monkeypatch.setattr(verb._store, "publish", publish)
    monkeypatch.setattr(StainNormalizer, "__call__", stop)  # nothing is left to be done
    stain_normalize(backed, key_added="normal", progress=False)
    np.testing.assert_array_equal(_level0(backed), _level0(whole))


def _level0(sdata: sd.SpatialData) -> np.ndarray:
    from sthist.tiles._images.image import pyramid

    return pyramid(sdata["normal"])[0].to_numpy()


def test_registered_slide(stained):
    """An image that is turned and scaled is fitted alike, and written upright in all its coordinate systems."""
    from spatialdata.transformations import Affine, get_transformation, set_transformation

    sdata = slide(stained)
    straight = stain_normalize(sdata).source
    turned = np.array([[0, -1.0, 700], [1.0, 0, 30], [0, 0, 1.0]])
    set_transformation(sdata["he"], Affine(turned, ("x", "y"), ("x", "y")), "um")
    set_transformation(sdata["he"], Affine(np.diag([2.0, 2.0, 1]), ("x", "y"), ("x", "y")), "pixels")
    found = stain_normalize(sdata, key_added="normal", progress=False)
    assert degrees(found.source.stains, straight.stains).max() < 1
    spec = TileSpec(64, 64)
    lazy = TileReader(sdata, "he", spec, normalizer=found).read([[450, 380]])
    np.testing.assert_array_equal(TileReader(sdata, "normal", spec).read([[450, 380]]), lazy)
    to_pixels = get_transformation(sdata["normal"], "pixels").to_affine_matrix(("x", "y"), ("x", "y"))
    to_um = get_transformation(sdata["normal"], "um").to_affine_matrix(("x", "y"), ("x", "y"))
    np.testing.assert_allclose(to_pixels, np.diag([2.0, 2, 1]) @ np.linalg.inv(turned) @ to_um)


def test_pickle_threads_and_shapes(stained):
    normalizer = stain_normalize(slide(stained))
    tiles = np.stack([stained[100:200, 100:200], stained[200:300, 200:300]])
    made = normalizer(tiles)
    copy = pickle.loads(pickle.dumps(normalizer))
    assert copy == normalizer
    assert hash(copy) == hash(normalizer)
    np.testing.assert_array_equal(copy(tiles), made)
    np.testing.assert_array_equal(normalizer(tiles[1]), made[1])
    np.testing.assert_array_equal(normalizer(tiles[:, ::-1]), made[:, ::-1])  # not contiguous
    with ThreadPoolExecutor(4) as pool:
        for result in pool.map(pickle.loads(pickle.dumps(normalizer)), [tiles] * 8):
            np.testing.assert_array_equal(result, made)
    assert normalizer(tiles[:0]).shape == (0, 100, 100, 3)
    for wrong in (tiles.astype(float), tiles[..., :2], tiles[0, 0]):
        with pytest.raises(ValueError, match="Tiles are"):
            normalizer(wrong)


@pytest.mark.parametrize("method", ["macenko", "reinhard", "channels"])
def test_files(stained, tmp_path, method):
    """References and normalisers are the same after a JSON file, which holds plain values."""
    reference = StainReference.fit(stained, method=method)
    reference.save(tmp_path / "reference.json")
    assert StainReference.load(tmp_path / "reference.json") == reference
    normalizer = stain_normalize(slide(stained), method=method, reference=tmp_path / "reference.json")
    assert normalizer.reference == reference
    normalizer.save(tmp_path / "normalizer.json")
    assert StainNormalizer.load(tmp_path / "normalizer.json") == normalizer
    assert json.loads(json.dumps(normalizer.to_dict())) == normalizer.to_dict()


def test_references_of_every_kind(stained):
    """An array and a sample that hold the same pixels are about the same reference.

    Nothing is drawn anew with a seed.
    """
    sdata = slide(stained)
    by_array, by_sample = (stain_normalize(sdata, reference=each).reference for each in (stained, slide(stained)))
    assert degrees(by_array.stains, by_sample.stains).max() < 1
    assert stain_normalize(sdata).reference == StainReference.default()
    assert stain_normalize(sdata, seed=3, n_tiles=2) == stain_normalize(sdata, seed=3, n_tiles=2)
    assert stain_normalize(sdata, seed=3, n_tiles=2).source != stain_normalize(sdata, seed=4, n_tiles=2).source
    assert stain_normalize(sdata, white=255).source.white == (255, 255, 255)


def test_several_samples(stained):
    """A mapping of name to normaliser, each of its own slide."""
    paler = (255 - (255 - stained.astype(float)) * 0.8).astype(np.uint8)
    samples = {"a": slide(stained), "b": slide(paler)}
    found = stain_normalize(samples)
    assert {name: each.source for name, each in found.items()} == {
        name: stain_normalize(each).source for name, each in samples.items()
    }
    assert found["a"].source != found["b"].source


def test_within_and_outlines_of_the_tissue(stained):
    """What is measured is the tissue that was outlined, and what lies within a region of it."""
    left, right = stained.copy(), stained
    left[:, 300:] = 255 - (255 - left[:, 300:]) // 2  # the right half has faded
    sdata = slide(left)
    strong, faded = (stain_normalize(sdata, within=box).source for box in ((0, 0, 300, 600), (300, 0, 600, 600)))
    assert strong.amounts[0] > 1.5 * faded.amounts[0]
    sthist.pp.tissue(sdata)
    outlined = stain_normalize(sdata).source
    assert faded.amounts[0] < outlined.amounts[0] <= 1.05 * strong.amounts[0]
    assert degrees(outlined.stains, StainReference.fit(right).stains).max() < 10


def test_bad_images(stained, toy):
    grey = stained.copy()
    grey[:] = grey.mean(-1, keepdims=True)
    blank = np.full((300, 300, 3), 240, np.uint8)
    one = stains.to_rgb(np.random.default_rng(0).gamma(1.2, 0.5, (300, 300, 1)) * [1.0, 0.0], VECTORS)
    cases = {
        "Found no tissue": blank,
        "shows one stain only": one,
        "three colours of uint8 are needed": np.zeros((50, 50, 4), np.uint8),
        "3 channels of float64": np.full((50, 50, 3), np.nan),
    }
    for message, pixels in cases.items():
        with pytest.raises(ValueError, match=message):
            StainReference.fit(pixels)
    for method in ("macenko", "reinhard"):
        with pytest.raises(ValueError, match="Found no tissue"):
            stain_normalize(slide(grey), method=method)
    with pytest.raises(ValueError, match="Found no tissue in image 'he'"):
        stain_normalize(slide(blank))
    with pytest.raises(ValueError, match="is no H&E: it has"):
        stain_normalize(toy, "morphology_focus")
    with pytest.raises(KeyError, match="No image 'hee'"):
        stain_normalize(toy, "hee")
    with pytest.raises(ValueError, match="Found no tissue .* within"):
        stain_normalize(slide(stained), within=(0, 0, 40, 40))
    speck = np.full((300, 300, 3), 250, np.uint8)
    speck[100:104, 100:105] = 120
    sdata = slide(speck)
    sdata.shapes["tissue"] = _box(0, 0, 300, 300)
    with pytest.raises(ValueError, match=r"Only \d+ of .* pixels .* are stained"):
        stain_normalize(sdata)


def _box(*bounds: float):
    import geopandas as gpd
    import shapely
    from spatialdata.models import ShapesModel
    from spatialdata.transformations import Identity

    return ShapesModel.parse(gpd.GeoDataFrame(geometry=[shapely.box(*bounds)]), transformations={"um": Identity()})


def test_bad_arguments(stained, tmp_path):
    sdata = slide(stained)
    with pytest.raises(ValueError, match=r"there are 'macenko', 'reinhard', 'channels'\. Vahadane's is left out"):
        stain_normalize(sdata, method="vahadane")
    with pytest.raises(ValueError, match="method is 'none'"):
        StainReference.default("none")
    with pytest.raises(ValueError, match="the reference by 'reinhard'"):
        stain_normalize(sdata, reference=StainReference.default("reinhard"))
    with pytest.raises(TypeError, match="not on int"):
        stain_normalize(sdata, reference=7)
    with pytest.raises(ValueError, match="n_tiles is 0"):
        stain_normalize(sdata, n_tiles=0)
    with pytest.raises(ValueError, match="mpp nan"):
        stain_normalize(sdata, mpp=np.nan)
    with pytest.raises(ValueError, match="white is 300"):
        stain_normalize(sdata, white=300)
    with pytest.raises(ValueError, match="are for a SpatialData"):
        StainReference.fit(stained, within=(0, 0, 1, 1))
    with pytest.raises(FileNotFoundError):
        stain_normalize(sdata, reference=tmp_path / "none.json")


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("{", "cannot be read"),
        ("[1, 2]", "does not say what it is"),
        ('{"white": [255, 255, 255]}', "does not say what it is"),
        ('{"sthist": "stain normaliser", "version": 1}', "it is a stain normaliser"),
        ('{"sthist": "stain reference", "version": 9}', "later version"),
        ('{"sthist": "stain reference", "version": 1, "method": "macenko"}', "not the values of"),
        ('{"sthist": "stain reference", "version": 1, "method": "macenko", "white": [NaN, 1, 1]}', "finite numbers"),
        ('{"sthist": "stain reference", "version": 1, "method": "macenko", "white": [1, 1, 1]}', "vectors is None"),
        ('{"sthist": "stain reference", "version": 1, "method": "x", "white": [1, 1, 1]}', "method is 'x'"),
    ],
)
def test_bad_files(tmp_path, text, message):
    (tmp_path / "reference.json").write_text(text)
    with pytest.raises(ValueError, match=message):
        StainReference.load(tmp_path / "reference.json")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"vectors": [[1, 1, 1], [0.2159, 0.8012, 0.5581]]}, "length 1"),
        ({"amounts": [0, 1]}, "positive"),
        ({"amounts": [float("inf"), 1]}, "finite"),
        ({"white": [255, 255]}, "3 finite numbers"),
        ({"white": "white"}, "3 finite numbers"),
    ],
)
def test_bad_numbers(change, message):
    with pytest.raises(ValueError, match=message):
        StainReference.from_dict(StainReference.default().to_dict() | change)
