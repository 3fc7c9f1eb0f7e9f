"""Virtual H&E of the toy section: what is written, how it is found, what is refused."""

from __future__ import annotations

import json
import logging
from pathlib import Path

import geopandas as gpd
import numpy as np
import pytest
import shapely
import spatialdata as sd
from spatialdata.models import Image2DModel, Image3DModel, PointsModel, ShapesModel
from spatialdata.transformations import Affine, Identity, Scale, get_transformation, set_transformation

import sthist
from sthist._scratch import own_folder
from sthist.datasets._toy.section import HE_VECTORS


def pixels(sdata, key="virtual_he"):
    """Level 0 as (3, y, x)."""
    element = sdata[key]
    return (element["scale0"].image if hasattr(element, "children") and element.children else element).to_numpy()


def test_writes_a_registered_image(toy):
    """RGB uint8 at the stain's own resolution, in um and where the stain is."""
    sthist.tl.virtual_he(toy)
    image = pixels(toy)
    assert image.dtype == np.uint8
    assert image.shape == (3, 800, 800)
    for system in ("um", "global"):
        expected, found = (
            get_transformation(toy[key], system).to_affine_matrix(("x", "y"), ("x", "y"))
            for key in ("morphology_focus", "virtual_he")
        )
        np.testing.assert_allclose(found, expected, atol=1e-9)
    result = toy.attrs["sthist"]["results"]["virtual_he"]
    assert result["model"] == "beer-lambert"
    json.dumps(result)


def test_looks_like_the_tissue(toy):
    """Nuclei are blue and dark, RNA-rich cytoplasm is pink, glass is white."""
    sthist.tl.virtual_he(toy)
    image = pixels(toy).astype(float)
    nuclei = sthist.tiles._regions.raster.rasterize(toy["nucleus_boundaries"].geometry, (0, 0), 0.5, (800, 800)) > 0
    cells = sthist.tiles._regions.raster.rasterize(toy["cell_boundaries"].geometry, (0, 0), 0.5, (800, 800)) > 0
    tissue = sthist.tiles._regions.raster.rasterize(toy["regions"].geometry.buffer(40), (0, 0), 0.5, (800, 800)) > 0
    assert image[:, nuclei].mean() < image[:, cells & ~nuclei].mean() - 30
    red, green, blue = image[:, nuclei].mean(1)
    assert blue > red > green
    red, green, blue = image[:, cells & ~nuclei].mean(1)
    assert red > green
    assert (image[:, ~tissue] == 255).all()


def test_haematoxylin_follows_the_stain_and_not_a_shuffled_one(toy):
    """Correlation of darkness with DAPI, beside that with DAPI turned around: the null."""
    sthist.tl.virtual_he(toy)
    red = 255.0 - pixels(toy)[0]
    dapi = toy["morphology_focus"].to_numpy()[0].astype(float)
    assert np.corrcoef(red.ravel(), dapi.ravel())[0, 1] > 0.85
    assert abs(np.corrcoef(red.ravel(), dapi[::-1].ravel())[0, 1]) < 0.3


def test_backed_object_has_it_on_disk(backed):
    """After read_zarr it is there, equal, with its provenance; the rest of the store is as before."""
    before = {kind: sorted(getattr(backed, kind)) for kind in ("images", "points", "shapes", "tables")}
    sthist.tl.virtual_he(backed)
    again = sd.read_zarr(backed.path)
    np.testing.assert_array_equal(pixels(again), pixels(backed))
    assert again.attrs["sthist"]["results"] == backed.attrs["sthist"]["results"]
    assert again.attrs["sthist"]["roles"] == backed.attrs["sthist"]["roles"]
    before["images"] = sorted([*before["images"], "virtual_he"])
    assert {kind: sorted(getattr(again, kind)) for kind in before} == before
    assert again.has_consolidated_metadata()
    assert [path.name for path in (backed.path / ".sthist").iterdir()] == [".lock"]


def test_in_memory_object_has_it_and_can_be_written(toy, tmp_path, caplog):
    """The canvas lies in the scratch folder, which the log says, until the object is written."""
    with caplog.at_level(logging.INFO, "sthist"):
        sthist.tl.virtual_he(toy)
    assert str(sthist.settings.scratch_dir) in caplog.text
    made_in_memory = pixels(toy)
    toy.write(tmp_path / "out.zarr")
    backed = sd.read_zarr(tmp_path / "out.zarr")
    np.testing.assert_array_equal(pixels(backed), made_in_memory)
    sthist.tl.virtual_he(backed, overwrite=True)
    np.testing.assert_array_equal(pixels(backed), made_in_memory)


def test_existing_image_is_not_overwritten(backed):
    """Unless asked to; another name is free. In memory and on disk."""
    for sdata in (sd.deepcopy(backed), backed):
        sthist.tl.virtual_he(sdata)
        with pytest.raises(ValueError, match=r"images\['virtual_he'\] exists. Pass overwrite=True"):
            sthist.tl.virtual_he(sdata)
        first = pixels(sdata)
        sthist.tl.virtual_he(sdata, overwrite=True)
        np.testing.assert_array_equal(pixels(sdata), first)
        dark = sthist.models.BeerLambert(sthist.models.BeerLambertConfig(haematoxylin=(0.5, 3.0)))
        sthist.tl.virtual_he(sdata, dark, overwrite=True)
        assert pixels(sdata).mean() < first.mean()
        sthist.tl.virtual_he(sdata, key_added="second")
        np.testing.assert_array_equal(pixels(sdata, "second"), first)
    np.testing.assert_array_equal(pixels(sd.read_zarr(backed.path), "virtual_he"), pixels(backed))


def test_name_of_another_element_is_refused(toy):
    """Also in other case, and of another kind."""
    for key in ("HE", "transcripts", "Table"):
        with pytest.raises(ValueError, match="is taken by"):
            sthist.tl.virtual_he(toy, key_added=key)


def test_a_part_is_a_part_of_the_whole(toy):
    """A box gives the same pixels as the whole image has there."""
    sthist.tl.virtual_he(toy)
    sthist.tl.virtual_he(toy, within=(100.3, 50.0, 299.8, 250.0), key_added="part")
    part = pixels(toy, "part")
    assert part.shape == (3, 400, 400)
    np.testing.assert_array_equal(part, pixels(toy)[:, 100:500, 200:600])


def test_within_a_polygon_or_shapes(toy):
    """White outside of it, the whole image's pixels inside."""
    sthist.tl.virtual_he(toy)
    whole = pixels(toy)
    circle = shapely.Point(200, 200).buffer(80)
    toy.shapes["spot"] = ShapesModel.parse(
        gpd.GeoDataFrame({"radius": [80.0]}, geometry=[shapely.Point(200, 200)]), transformations={"um": Identity()}
    )
    for key, within in (("a", circle), ("b", "spot")):
        sthist.tl.virtual_he(toy, within=within, key_added=key)
        part = pixels(toy, key)
        y0 = x0 = 240
        assert (part[:, :20, :20] == 255).all()
        np.testing.assert_array_equal(part[:, 100:220, 100:220], whole[:, y0 + 100 : y0 + 220, x0 + 100 : x0 + 220])


@pytest.mark.parametrize(
    ("within", "error", "message"),
    [
        ((900, 900, 950, 950), ValueError, "outside the nuclear stain"),
        ((10, 10, 10, 50), ValueError, "has no area"),
        ((1, 2, 3), ValueError, "neither a box"),
        ("nowhere", KeyError, "No shape 'nowhere' in this object. It has shapes"),
        (shapely.Polygon([(0, 0), (9, 9), (9, 0), (0, 9)]), ValueError, "crosses itself"),
    ],
)
def test_bad_regions(toy, within, error, message):
    """Say what is wrong."""
    with pytest.raises(error, match=message):
        sthist.tl.virtual_he(toy, within=within)


def test_coarser_and_finer(toy, caplog):
    """mpp= gives other sizes, with a warning where that is much finer than the stain."""
    sthist.tl.virtual_he(toy, mpp=1.0, key_added="coarse")
    assert pixels(toy, "coarse").shape == (3, 400, 400)
    assert "finer than what it shows" not in caplog.text
    sthist.tl.virtual_he(toy, mpp=0.25, within=(100, 100, 120, 120), key_added="fine")
    assert "0.5 µm/px, and the image would have 0.25 µm/px: more than 1.5 times finer" in caplog.text
    assert pixels(toy, "fine").shape == (3, 80, 80)


def test_saved_model(toy, tmp_path):
    """A path works as the model itself does."""
    model = sthist.models.BeerLambert().fit((toy, "he"))
    model.save(tmp_path / "model")
    sthist.tl.virtual_he(toy, model)
    sthist.tl.virtual_he(toy, tmp_path / "model", key_added="loaded")
    np.testing.assert_array_equal(pixels(toy), pixels(toy, "loaded"))


def test_stain_reference_moves_the_colours(toy):
    """An array, an image of an object, or the object; the stain vectors are the reference's, and so is its strength."""
    he = toy["he"].to_numpy().transpose(1, 2, 0)
    model = sthist.models.BeerLambert().fit(toy)
    truth = HE_VECTORS / np.linalg.norm(HE_VECTORS, axis=1, keepdims=True)
    for found, true in zip((model.config.haematoxylin_vector, model.config.eosin_vector), truth, strict=True):
        assert np.rad2deg(np.arccos(np.dot(found, true))) < 6
    sthist.tl.virtual_he(toy, stain_reference=toy, key_added="object")
    sthist.tl.virtual_he(toy, stain_reference=(toy, "he"), key_added="key")
    np.testing.assert_array_equal(pixels(toy, "object"), pixels(toy, "key"))
    sthist.tl.virtual_he(toy, stain_reference=he, key_added="array")
    assert np.abs(pixels(toy, "array").astype(int) - pixels(toy, "object")).mean() < 3
    darker = (255 * (he / 255.0) ** 2).astype(np.uint8)
    sthist.tl.virtual_he(toy, stain_reference=darker, key_added="darker")
    assert pixels(toy, "darker").mean() < pixels(toy, "array").mean() - 10


@pytest.mark.parametrize(
    ("reference", "message"),
    [
        (np.zeros((50, 50), np.uint8), r"shape \(50, 50\)"),
        (np.zeros((50, 50, 1), np.uint8), "1 channels of uint8; three colours"),
        (np.zeros((50, 50, 3), np.uint16), "3 channels of uint16"),
        (np.full((50, 50, 3), 255, np.uint8), "shows no tissue"),
    ],
)
def test_bad_references(toy, reference, message):
    """One channel where three are needed, 16 bits, blank glass."""
    with pytest.raises(ValueError, match=message):
        sthist.tl.virtual_he(toy, stain_reference=reference)


def test_cells_stand_in_for_molecules(toy, caplog):
    """Over outlines and over centroids; without cells the nuclear stain alone; the log says which."""
    del toy.points["transcripts"]
    with caplog.at_level(logging.INFO, "sthist"):
        sthist.tl.virtual_he(toy)
    assert "counts of cells" in caplog.text
    outlines = toy["cell_boundaries"]
    points = gpd.GeoDataFrame({"radius": 5.0}, geometry=outlines.geometry.centroid, index=outlines.index)
    toy.shapes["centroids"] = ShapesModel.parse(points, transformations={"um": Identity()})
    table = toy["table"].copy()
    table.obs["region"] = "centroids"
    table.obs["region"] = table.obs["region"].astype("category")
    table.uns["spatialdata_attrs"]["region"] = "centroids"
    toy.tables["by_centroid"] = table
    sthist.tl.virtual_he(toy, table="by_centroid", key_added="by_centroids")
    pinkness = {}
    for key in ("virtual_he", "by_centroids"):
        image = pixels(toy, key).astype(float)
        duct = sthist.tiles._regions.raster.rasterize(
            toy["regions"].geometry[toy["regions"].label == "duct"], (0, 0), 0.5, (800, 800)
        )
        pinkness[key] = image[0] - image[1], duct > 0
    for difference, duct in pinkness.values():
        assert difference[duct].mean() > difference[~duct].mean() + 5
    for name in list(toy.tables):
        del toy.tables[name]
    caplog.clear()
    with caplog.at_level(logging.INFO, "sthist"):
        sthist.tl.virtual_he(toy, key_added="alone")
    assert "nothing but the tissue" in caplog.text


def test_a_plane_of_a_stack(toy):
    """One plane, or the maximum of all; a plane that is not there is an error."""
    dapi = toy["morphology_focus"].to_numpy()
    left = np.where(np.indices(dapi.shape)[2] < 400, dapi, 100).astype(np.uint16)
    toy.images["stack"] = Image3DModel.parse(
        np.stack([left, dapi], axis=1),
        dims=("c", "z", "y", "x"),
        c_coords=["DAPI"],
        transformations={"um": Scale([0.5, 0.5], ("x", "y"))},
    )
    sthist.tl.virtual_he(toy)
    sthist.tl.virtual_he(toy, image="stack", key_added="projected")
    sthist.tl.virtual_he(toy, image={"stack": 0}, key_added="left")
    np.testing.assert_array_equal(pixels(toy, "projected"), pixels(toy))
    assert pixels(toy, "left")[0, :, 420:].min() > pixels(toy)[0, :, 420:].min() + 50
    with pytest.raises(ValueError, match=r"Image 'stack' has no plane z=2: it has 2 \(0 to 1\)"):
        sthist.tl.virtual_he(toy, image={"stack": 2}, key_added="none")


def test_cytoplasm_channel_is_used(toy):
    """A poly-T channel shows in the eosin, pixel by pixel."""
    dapi = toy["morphology_focus"].to_numpy()[0]
    stripes = (np.indices(dapi.shape)[1] // 20 % 2 * 4000).astype(np.uint16)
    toy.images["stain"] = Image2DModel.parse(
        np.stack([dapi, stripes]),
        dims=("c", "y", "x"),
        c_coords=["DAPI", "PolyT"],
        transformations={"um": Scale([0.5, 0.5], ("x", "y"))},
    )
    del toy.images["morphology_focus"]
    toy.attrs["sthist"]["roles"].pop("nuclear")
    sthist.tl.virtual_he(toy)
    green = pixels(toy)[1].astype(float)
    tissue = sthist.tiles._regions.raster.rasterize(toy["regions"].geometry.buffer(-10), (0, 0), 0.5, (800, 800)) > 0
    assert green[tissue & (stripes > 0)].mean() < green[tissue & (stripes == 0)].mean() - 15


def test_tissue_shapes_are_respected(toy):
    """Paper-white outside of shapes["tissue"]."""
    half = gpd.GeoDataFrame(geometry=[shapely.box(0, 0, 200, 400)])
    toy.shapes["tissue"] = ShapesModel.parse(half, transformations={"um": Identity()})
    sthist.tl.virtual_he(toy)
    assert (pixels(toy)[:, :, 420:] == 255).all()
    assert pixels(toy)[:, :, :400].mean() < 250


@pytest.mark.parametrize("angle", [0.0, 0.4])
def test_rotated_stain(toy, angle):
    """The stain may be turned against um: the image lies where the nuclei are."""
    cos, sin = np.cos(angle), np.sin(angle)
    turn = np.array([[cos, -sin, 130], [sin, cos, -70], [0, 0, 1.0]])
    for name in ("morphology_focus", "transcripts"):
        matrix = turn @ sthist.scale.matrix_to(toy[name])
        set_transformation(toy[name], Affine(matrix, ("x", "y"), ("x", "y")), "um")
    sthist.tl.virtual_he(toy)
    matrix = sthist.scale.matrix_to(toy["virtual_he"])
    centres = np.c_[toy["table"].obsm["spatial"], np.ones(toy["table"].n_obs)] @ turn.T @ np.linalg.inv(matrix).T
    columns, rows = centres[:, :2].astype(int).T
    image = pixels(toy)
    assert image[0, rows, columns].mean() < image[0][image[0] < 255].mean() - 40


def test_fields_of_view_are_one_image(toy):
    """A list of images that tile the plane gives what the whole image gives."""
    sthist.tl.virtual_he(toy)
    dapi = toy["morphology_focus"].to_numpy()
    for row in (0, 1):
        for column in (0, 1):
            toy.images[f"fov_{row}{column}"] = Image2DModel.parse(
                dapi[:, row * 400 : row * 400 + 400, column * 400 : column * 400 + 400],
                dims=("c", "y", "x"),
                c_coords=["DAPI"],
                transformations={
                    "um": Affine(
                        np.array([[0.5, 0, 200 * column], [0, 0.5, 200 * row], [0, 0, 1]]), ("x", "y"), ("x", "y")
                    )
                },
            )
    fields = [f"fov_{row}{column}" for row in (0, 1) for column in (0, 1)]
    sthist.tl.virtual_he(toy, image=fields, key_added="from_fields")
    np.testing.assert_array_equal(pixels(toy, "from_fields"), pixels(toy))


def test_unlinked_or_ambiguous_elements(toy):
    """Missing and ambiguous elements: what there is, and the argument that decides."""
    with pytest.raises(KeyError, match="No image 'morfology_focus'.*Did you mean 'morphology_focus'"):
        sthist.tl.virtual_he(toy, image="morfology_focus")
    with pytest.raises(KeyError, match="has no channel 'Hoechst'"):
        sthist.tl.virtual_he(toy, channel="Hoechst")
    with pytest.raises(KeyError, match="No point 'molecules'"):
        sthist.tl.virtual_he(toy, points="molecules")
    toy.attrs["sthist"]["roles"].pop("nuclear")
    toy.images["other"] = toy["morphology_focus"]
    with pytest.raises(
        ValueError, match="Several images could be the nuclear stain: 'morphology_focus', 'other'.*image="
    ):
        sthist.tl.virtual_he(toy)
    for name in ("other", "morphology_focus"):
        del toy.images[name]
    with pytest.raises(KeyError, match="Found no nuclear stain. It has images 'he'"):
        sthist.tl.virtual_he(toy)


def test_stain_without_scale_or_with_two(toy):
    """How to give it; both numbers."""
    from spatialdata.transformations import remove_transformation

    sthist.scale.record_mpp(toy, "morphology_focus", "pixel_size of experiment.xenium", 0.2125)
    with pytest.raises(
        ValueError, match=r"disagree by 135.3%: 0.2125 µm/px \(pixel_size .*\) and 0.5 µm/px \(its transf"
    ):
        sthist.tl.virtual_he(toy)
    remove_transformation(toy["morphology_focus"], "um")
    with pytest.raises(ValueError, match="has no scale: give it once with pp.set_scale"):
        sthist.tl.virtual_he(toy)


def test_transcripts_without_genes(toy):
    """The columns, and how to name one."""
    toy.attrs["sthist"]["roles"].pop("transcripts")
    frame = toy["transcripts"].compute()[["x", "y", "qv"]]
    del toy.points["transcripts"]
    toy.points["transcripts"] = PointsModel.parse(frame, transformations={"um": Identity()})
    with pytest.raises(ValueError, match=r"name no gene column: their columns are \['x', 'y', 'qv'\]"):
        sthist.tl.virtual_he(toy)


def with_points(sdata, scale, shift=0.0):
    matrix = np.array([[scale, 0, shift], [0, scale, shift], [0, 0, 1]])
    set_transformation(sdata["transcripts"], Affine(matrix, ("x", "y"), ("x", "y")), "um")


def test_transcripts_elsewhere_or_in_another_unit(toy):
    """Pixels declared as µm, µm taken for pixels, another place: both boxes and the guess."""
    with_points(toy, 2.0)
    with pytest.raises(ValueError, match="lie outside the nuclear stain.*look like pixels of 0.5 µm declared as µm"):
        sthist.tl.virtual_he(toy)
    with_points(toy, 0.5)
    with pytest.warns(UserWarning, match="are they µm that were taken for pixels of 0.5 µm"):
        sthist.tl.virtual_he(toy, key_added="small")
    with_points(toy, 1.0, shift=5000.0)
    with pytest.raises(ValueError, match="100% of the transcripts 'transcripts' lie outside"):
        sthist.tl.virtual_he(toy)


def test_no_good_transcripts(toy):
    """All below the threshold: said, with the threshold."""
    frame = toy["transcripts"].compute()
    frame["qv"] = np.float32(5)
    del toy.points["transcripts"]
    toy.points["transcripts"] = PointsModel.parse(frame, feature_key="feature_name", transformations={"um": Identity()})
    with pytest.raises(ValueError, match="None of the .* transcripts .* qv >= 20"):
        sthist.tl.virtual_he(toy)


@pytest.mark.parametrize("value", [0, 77])
def test_empty_tissue(toy, value):
    """A blank stain and no molecules."""
    toy.images["blank"] = Image2DModel.parse(
        np.full((1, 100, 100), value, np.uint16),
        dims=("c", "y", "x"),
        c_coords=["DAPI"],
        transformations={"um": Scale([0.5, 0.5], ("x", "y"))},
    )
    del toy.points["transcripts"]
    del toy.tables["table"]
    with pytest.raises(ValueError, match="Found no tissue in the nuclear stain 'blank', channel 'DAPI'"):
        sthist.tl.virtual_he(toy, image="blank")


def test_nan_in_the_stain(toy):
    """The image and the place."""
    dapi = toy["morphology_focus"].to_numpy().astype(np.float32)
    dapi[0, 400, 400] = np.nan
    toy.images["float"] = Image2DModel.parse(
        dapi, dims=("c", "y", "x"), c_coords=["DAPI"], transformations={"um": Scale([0.5, 0.5], ("x", "y"))}
    )
    with pytest.raises(ValueError, match="Image 'float' has NaN pixels near"):
        sthist.tl.virtual_he(toy, image="float")


def test_stain_smaller_than_a_tile_and_of_8_bits(toy):
    """Both work: 8, 16 and 32 bits give nearly the same picture."""
    dapi = toy["morphology_focus"].to_numpy()[:, 300:420, 300:400]
    results = []
    del toy.points["transcripts"]
    del toy.tables["table"]
    for name, image in (
        ("u8", (dapi / 24).clip(0, 255).astype(np.uint8)),
        ("u16", dapi),
        ("f32", dapi.astype(np.float32)),
    ):
        toy.images[name] = Image2DModel.parse(
            image, dims=("c", "y", "x"), c_coords=["DAPI"], transformations={"um": Scale([0.5, 0.5], ("x", "y"))}
        )
        sthist.tl.virtual_he(toy, image=name, key_added=f"he_{name}")
        results.append(pixels(toy, f"he_{name}").astype(int))
    assert results[0].shape == (3, 120, 100)
    assert np.abs(results[1] - results[2]).max() <= 1
    assert np.abs(results[0] - results[1]).mean() < 8


def test_concatenated_objects_are_refused(toy):
    """Two samples in one plane."""
    both = sd.concatenate({"a": toy, "b": sd.deepcopy(toy)})
    with pytest.raises(ValueError, match=r"several samples put together by spatialdata.concatenate \('a', 'b'\)"):
        sthist.tl.virtual_he(both)


def test_unlinked_cells(toy, caplog):
    """A table whose cells are nowhere: an error where it was asked for, else said in the log and left aside."""
    del toy.points["transcripts"]
    del toy.shapes["cell_boundaries"]
    del toy.shapes["nucleus_boundaries"]
    with pytest.raises(
        ValueError, match="is linked to 'cell_boundaries', and no shapes are its cells. It has shapes 'regions'"
    ):
        sthist.tl.virtual_he(toy, table="table")
    with caplog.at_level(logging.INFO, "sthist"):
        sthist.tl.virtual_he(toy)
    assert "no shapes are theirs" in caplog.text
    assert "nothing but the tissue" in caplog.text


def test_tables_without_counts_are_no_cells():
    """pp.tiles makes a table; it is not taken for cells."""
    toy = sthist.datasets.toy(size_um=200)
    frame = toy["transcripts"].compute().rename(columns={"x": "x_um", "y": "y_um"})
    sdata = sthist.io.assemble({"dapi": toy["morphology_focus"].to_numpy()}, mpp=0.5, points=frame)
    sthist.pp.tissue(sdata)
    sthist.pp.tiles(sdata, size_um=50, px=100)
    sthist.tl.virtual_he(sdata)
    with pytest.raises(ValueError, match="Table 'tiles_table' has no counts"):
        sthist._sample.elements.cell_counts(sdata, "tiles_table")


def test_corrected_input_is_another_section():
    """Molecules turned upside down have the same number and quantiles; their image is not the old one."""
    toy = sthist.datasets.toy(size_um=300)
    dapi = toy["morphology_focus"].to_numpy()
    frame = toy["transcripts"].compute().rename(columns={"x": "x_um", "y": "y_um"})
    images = []
    for molecules in (frame, frame.assign(y_um=300 - frame.y_um)):
        sdata = sthist.io.assemble({"dapi": dapi}, mpp=0.5, points=molecules)
        sthist.tl.virtual_he(sdata)
        images.append(pixels(sdata).astype(int))
    assert np.abs(images[0] - images[1]).mean() > 1


def test_equal_objects_in_memory_have_images_of_their_own(toy):
    """What one does with its file does not reach the other."""
    import shutil

    other = sd.deepcopy(toy)
    for sdata in (toy, other):
        sthist.tl.virtual_he(sdata)
    before = pixels(toy)
    (mine,), (theirs,) = (
        {Path(f).parents[1] for f in sd.get_dask_backing_files(s["virtual_he"])} for s in (toy, other)
    )
    assert mine != theirs
    shutil.rmtree(theirs)
    np.testing.assert_array_equal(pixels(toy), before)
    left = {path.name for path in own_folder().iterdir() if path.suffix != ".zarr"}
    assert left == {"lock"}


def test_other_channel_than_recorded(toy):
    """A channel of cytoplasm may be asked for as the nuclear one."""
    dapi = toy["morphology_focus"].to_numpy()[0]
    sdata = sthist.io.assemble({"stain": np.stack([dapi, dapi[::-1]])}, mpp=0.5, channels={"stain": ["DAPI", "PolyT"]})
    sthist.tl.virtual_he(sdata, channel="PolyT")
    levels = sdata.attrs["sthist"]["results"]["virtual_he"]["section"]["stain_levels"]
    assert list(levels) == ["PolyT"]


@pytest.mark.parametrize("dtype", [">u2", "float16", "int32"])
def test_unusual_number_types(toy, dtype):
    """Big-endian files, half floats, wide integers: the same picture."""
    dapi = (toy["morphology_focus"].to_numpy() // 4).astype(np.uint16)
    results = []
    for pixel_type in (np.uint16, dtype):
        sdata = sthist.io.assemble({"dapi": dapi.astype(pixel_type)}, mpp=0.5)
        sthist.tl.virtual_he(sdata)
        results.append(pixels(sdata).astype(int))
    assert np.abs(results[0] - results[1]).max() <= 2


def test_a_speck_of_tissue(toy):
    """In the corner of an empty field."""
    dapi = toy["morphology_focus"].to_numpy().copy()
    dapi[:, 60:] = dapi[:, :, 60:] = 0
    dapi[0, 20:40, 20:40] = np.random.default_rng(0).integers(2000, 4000, (20, 20))
    sdata = sthist.io.assemble({"dapi": dapi}, mpp=0.5)
    sthist.tl.virtual_he(sdata)
    assert pixels(sdata)[:, 20:40, 20:40].mean() < 200
    assert (pixels(sdata)[:, 200:, 200:] == 255).all()


def test_older_stores_are_refused(backed):
    """A store of zarr format 2 has no zarr.json: it is read, and not written to."""
    (backed.path / "zarr.json").rename(backed.path / ".zgroup")
    with pytest.raises(ValueError, match="has the older zarr format 2.*write"):
        sthist.tl.virtual_he(backed)


def test_reference_is_for_the_built_in_model(toy, tmp_path):
    """And an unknown model is no model."""
    with pytest.raises(FileNotFoundError, match="No model in"):
        sthist.tl.virtual_he(toy, tmp_path)
