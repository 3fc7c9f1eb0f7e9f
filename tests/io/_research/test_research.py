"""HEST-1k, STimage-1K4M and legacy Spatial Transcriptomics: where the spots are, at what scale, and whose they are."""

from __future__ import annotations

import csv
import json
import logging

import anndata as ad
import numpy as np
import pandas as pd
import pytest
import research
import shapely
import spatialdata as sd
from realdata import folder as real_folder
from realdata import picture as real_picture
from spatialdata.transformations import get_transformation

import sthist
from sthist import scale
from sthist._sample.samples import samples_of
from sthist.io._parts.matrix import read_matrix
from sthist.io._parts.spots import fit_lattice, spot_pitch


def colours_at_spots(sdata, table="table"):
    """Green of the H&E under the centres, by way of µm."""
    image = sdata["he"]
    pixels = (image["scale0"]["image"] if hasattr(image, "children") else image).to_numpy()
    xy = np.c_[sdata[table].obsm["spatial"], np.ones(sdata[table].n_obs)] @ np.linalg.inv(scale.matrix_to(image))[:2].T
    columns, rows = np.floor(xy).astype(int).T
    return pixels[1][rows, columns]


def require_sound(sdata, tmp_path):
    """All of it is in µm, the table is linked, and it comes back from a store."""
    for _, name, element in sdata.gen_spatial_elements():
        assert "um" in get_transformation(element, get_all=True), name
    table = sdata["table"]
    region = table.uns["spatialdata_attrs"]["region"]
    shapes = sd.transform(sdata[region], to_coordinate_system="um").loc[table.obs["instance_id"]]
    np.testing.assert_allclose(np.c_[shapes.centroid.x, shapes.centroid.y], table.obsm["spatial"])
    sdata.write(tmp_path / "out.zarr")
    again = sd.read_zarr(tmp_path / "out.zarr")
    np.testing.assert_array_equal(again["table"].obsm["spatial"], table.obsm["spatial"])
    assert again.attrs["sthist"] == sdata.attrs["sthist"]


# HEST-1k -------------------------------------------------------------------------------------------------------------


def test_hest_visium(tmp_path):
    """Spots of 55 µm lie on the dark squares; the study makes the patient's name one."""
    spots = research.hest_copy(tmp_path)
    sdata = sthist.io.hest(tmp_path, "TENX1")
    table = sdata["table"]
    np.testing.assert_allclose(table.obsm["spatial"], spots[["x", "y"]] * 2)
    np.testing.assert_array_equal(table[:, "COL1A1"].X.toarray().ravel(), np.arange(48) + 1)
    assert table.X.dtype == np.int32
    assert (colours_at_spots(sdata) == 60).all()
    circles = sd.transform(sdata["spots"], to_coordinate_system="um")
    np.testing.assert_allclose(circles.radius, 27.5)
    assert scale.resolve_mpp(sdata, "he") == pytest.approx((2, 2))
    roles = {"he": {"image": "he"}, "spots": {"table": "table", "shapes": "spots"}}
    assert sdata.attrs["sthist"]["roles"] == roles
    facts = sdata.attrs["sthist"]["sample"]
    assert facts["patient"] == "A spatial study: Patient 1"
    assert facts["batch"] == "A spatial study"
    assert (facts["name"], facts["organ"], facts["technology"]) == ("TENX1", "Breast", "Visium")
    assert (facts["preservation"], facts["licence"], facts["oncotree"]) == ("FFPE", "CC BY 4.0", "IDC")
    assert "disease_comment" not in facts
    assert samples_of(sdata)[0].patient == facts["patient"]
    require_sound(sdata, tmp_path)


@pytest.mark.parametrize(("technology", "side"), [("Xenium", 100), ("Visium HD", 96)])
def test_hest_pools_are_squares(tmp_path, technology, side):
    """As large as they are apart, whatever the metadata say of bins of 2 µm."""
    research.hest_copy(tmp_path, technology=technology, inter_spot_dist=2, spot_diameter=2)
    sdata = sthist.io.hest(tmp_path, "TENX1")
    squares = sd.transform(sdata["spots"], to_coordinate_system="um")
    np.testing.assert_allclose(squares.area, side**2)
    require_sound(sdata, tmp_path)


@pytest.mark.parametrize("technology", ["Xenium", "Visium HD"])
def test_hest_cells(tmp_path, caplog, technology):
    """Rows of a pooled sample that lie on no lattice are cells, not spots as small as the bins of the metadata."""
    research.hest_copy(tmp_path, technology=technology, inter_spot_dist=2, spot_diameter=2)
    cells = pd.DataFrame(np.random.default_rng(0).uniform(20, 280, (40, 2)), columns=["x", "y"])
    cells["array_row"], cells["array_col"] = range(40), 0
    research.hest_table(tmp_path / "st" / "TENX1.h5ad", cells, 2.0)
    with caplog.at_level(logging.INFO, "sthist"):
        sdata = sthist.io.hest(tmp_path, "TENX1")
    assert "lie on no lattice; they are taken for cells" in caplog.text
    assert sdata.attrs["sthist"]["roles"]["cells"] == {"table": "table"}
    np.testing.assert_allclose(sd.transform(sdata["cells"], to_coordinate_system="um").radius, 5)
    require_sound(sdata, tmp_path)


def test_hest_parts(tmp_path):
    """Nuclei with their class, tissue with its hole, the vendor's cells, transcripts with text for bytes; all in µm."""
    research.hest_copy(tmp_path, technology="Xenium", parts=True)
    sdata = sthist.io.hest(tmp_path, "TENX1")
    assert sorted(sdata.shapes) == ["cell_boundaries", "nuclei", "nucleus_boundaries", "spots", "tissue"]
    um = {name: sd.transform(sdata[name], to_coordinate_system="um") for name in sdata.shapes}
    assert sdata["nuclei"]["class"].tolist() == ["Neoplastic", "Neoplastic", "Connective"]
    np.testing.assert_allclose(um["nuclei"].area, 400)
    np.testing.assert_allclose(um["nuclei"].centroid.x, [80, 180, 280])
    np.testing.assert_allclose(um["tissue"].area, 4 * (390 * 250 - 20 * 20))
    assert sdata["cell_boundaries"].index.tolist() == ["aaaa-1", "bbbb-1"]
    points = sd.transform(sdata["transcripts"], to_coordinate_system="um").compute()
    np.testing.assert_allclose(points[["x", "y"]], [[80, 60], [84, 62], [180, 60], [600, 400]])
    assert points["feature_name"].tolist() == ["EPCAM", "COL1A1", "EPCAM", "EPCAM"]
    assert points["cell_id"].tolist() == ["aaaa-1", "aaaa-1", "bbbb-1", "UNASSIGNED"]
    assert sdata["transcripts"]["feature_name"].cat.known
    assert sdata.attrs["sthist"]["roles"]["transcripts"] == {"points": "transcripts", "gene": "feature_name"}
    require_sound(sdata, tmp_path)
    alone = sthist.io.hest(tmp_path, "TENX1", parts=["tissue"], image=False)
    assert sorted(alone.shapes) == ["spots", "tissue"]
    assert not alone.points
    assert not alone.images
    with pytest.raises(ValueError, match="parts= is 'tissue'; it is a list of some of"):
        sthist.io.hest(tmp_path, "TENX1", parts="tissue")


def test_hest_geojson(tmp_path):
    """Nuclei of a zip, one feature for each class; tissue of the older kind, holes among the polygons."""
    research.hest_copy(tmp_path, parts=True)
    (tmp_path / "cellvit_seg" / "TENX1_cellvit_seg.parquet").unlink()
    nuclei = {"Connective": research.squares([(50, 60)]), "Dead": research.squares([(90, 60), (99, 99)])}
    research.zipped_geojson(
        tmp_path / "cellvit_seg" / "TENX1_cellvit_seg.geojson.zip", research.qupath_features(nuclei)
    )
    old = research.qupath_features({"0": [shapely.box(0, 0, 100, 100), shapely.box(20, 20, 30, 30)]}, hole=[1])
    (tmp_path / "tissue_seg" / "TENX1_contours.geojson").write_text(json.dumps(old))
    sdata = sthist.io.hest(tmp_path, "TENX1")
    assert sdata["nuclei"]["class"].tolist() == ["Connective", "Dead", "Dead"]
    np.testing.assert_allclose(sdata["nuclei"].centroid.x, [50, 90, 99])
    assert sdata["tissue"].area.tolist() == [100 * 100 - 10 * 10]
    assert sdata["tissue"]["tissue_id"].tolist() == ["0"]


def test_hest_scales_that_contradict(tmp_path, caplog):
    """The estimate counts, as for HEST's authors, and both are said; mpp= counts before all."""
    research.hest_copy(tmp_path, pixel_size_um_embedded=0.3527)
    with caplog.at_level(logging.WARNING, "sthist"):
        sdata = sthist.io.hest(tmp_path, "TENX1")
    assert "pixel_size_um_embedded is 0.3527 µm/px, pixel_size_um_estimated of TENX1.json 2 µm/px" in caplog.text
    assert scale.resolve_mpp(sdata, "he") == pytest.approx((2, 2))
    research.hest_metadata(tmp_path / "metadata" / "TENX1.json", "TENX1", "Visium", 1.0)
    with pytest.raises(
        ValueError, match=r"are 50 px apart, which should be 100 µm; that is 2 µm/px, but pixel_size_um_est.* is 1\."
    ):
        sthist.io.hest(tmp_path, "TENX1")
    caplog.clear()
    with caplog.at_level(logging.WARNING, "sthist"):
        sdata = sthist.io.hest(tmp_path, "TENX1", mpp={"TENX1": 2.0})
    assert "pixel_size_um_estimated is 1 µm/px, the argument mpp= 2 µm/px; the latter is taken" in caplog.text
    assert scale.resolve_mpp(sdata, "he") == pytest.approx((2, 2))


def test_hest_nothing_known(tmp_path):
    """NaN in the metadata is as nothing: the technology tells the size of the spots; no fact is NaN."""
    unknown = dict.fromkeys(("spot_diameter", "inter_spot_dist", "pixel_size_um_embedded", "patient"), float("nan"))
    research.hest_copy(tmp_path, **unknown)
    sdata = sthist.io.hest(tmp_path, "TENX1")
    np.testing.assert_allclose(sd.transform(sdata["spots"], to_coordinate_system="um").radius, 27.5)
    assert "patient" not in sdata.attrs["sthist"]["sample"]
    require_sound(sdata, tmp_path)


def test_hest_exchanged_spot_sizes(tmp_path, caplog):
    """HEST 1.1 says of some sections that spots of 150 µm are 110 µm apart."""
    research.hest_copy(tmp_path, technology="Spatial Transcriptomics", inter_spot_dist=50, spot_diameter=100)
    with caplog.at_level(logging.WARNING, "sthist"):
        sdata = sthist.io.hest(tmp_path, "TENX1")
    assert "spot_diameter and inter_spot_dist are taken for exchanged" in caplog.text
    np.testing.assert_allclose(sd.transform(sdata["spots"], to_coordinate_system="um").radius, 25)


def test_hest_several(tmp_path):
    """A mapping for several or all; one sample for a text or a sample's own file."""
    for name in ("TENX1", "NCBI2"):
        research.hest_copy(tmp_path, name)
    assert list(sthist.io.hest(tmp_path, image=False)) == ["NCBI2", "TENX1"]
    assert list(sthist.io.hest(tmp_path, ["TENX1"], image=False)) == ["TENX1"]
    sdata = sthist.io.hest(tmp_path / "st" / "NCBI2.h5ad")
    assert sdata.attrs["sthist"]["sample"]["name"] == "NCBI2"
    with pytest.raises(FileNotFoundError, match=r"no sample 'TENX2' \(st/TENX2.h5ad\).* Did you mean 'TENX1'"):
        sthist.io.hest(tmp_path, "TENX2")


def test_hest_saved_sample(tmp_path):
    """The folder of one sample as the HEST library saves it, and files that lie side by side."""
    spots = research.hest_copy(tmp_path / "copy", parts=True)
    saved, flat = tmp_path / "mine", tmp_path / "flat"
    saved.mkdir()
    flat.mkdir()
    for source, name in (
        ("st/TENX1.h5ad", "aligned_adata.h5ad"),
        ("wsis/TENX1.tif", "aligned_fullres_HE.tif"),
        ("metadata/TENX1.json", "metrics.json"),
        ("transcripts/TENX1_transcripts.parquet", "aligned_transcripts.parquet"),
    ):
        content = (tmp_path / "copy" / source).read_bytes()
        (saved / name).write_bytes(content)
        (flat / source.rpartition("/")[2]).write_bytes(content)
    for sdata in (sthist.io.hest(saved), sthist.io.hest(flat, "TENX1")):
        assert "transcripts" in sdata.points
        np.testing.assert_allclose(sdata["table"].obsm["spatial"], spots[["x", "y"]] * 2)
    assert sthist.io.hest(saved).attrs["sthist"]["sample"]["name"] == "mine"


def test_hest_table(tmp_path):
    """Newest table first; a patient of two studies is two; a table of samples for other verbs."""
    rows = [
        research.hest_record("A", "Visium", 0.5),
        research.hest_record("B", "Xenium", 0.2125, dataset_title="Another", organ="Lung"),
        research.hest_record("C", "Visium", 0.7, patient=None),
    ]
    pd.DataFrame(rows[:1]).to_csv(tmp_path / "HEST_v1_1_0.csv", index=False)
    pd.DataFrame(rows).to_csv(tmp_path / "HEST_v1_10_0.csv", index=False)
    table = sthist.io.hest_table(tmp_path)
    assert table.index.tolist() == ["A", "B", "C"]
    assert table["patient"].tolist()[:2] == ["A spatial study: Patient 1", "Another: Patient 1"]
    assert table["patient"].isna().tolist() == [False, False, True]
    assert table.index[(table.organ == "Lung") & (table.mpp < 0.3)].tolist() == ["B"]
    assert table.columns[:5].tolist() == ["patient", "batch", "organ", "tissue", "technology"]
    assert {"species", "preservation", "disease", "licence", "mpp_embedded"} <= set(table)
    sample = samples_of({"B": ad.AnnData(np.ones((1, 1)))}, table)[0]
    assert (sample.patient, sample.batch) == ("Another: Patient 1", "Another")
    assert sthist.io.hest_table(tmp_path / "HEST_v1_1_0.csv").index.tolist() == ["A"]
    for row in rows:
        research.hest_metadata(tmp_path / "other" / "metadata" / f"{row['id']}.json", "", "", 0.0, **row)
    from_json = sthist.io.hest_table(tmp_path / "other")
    assert from_json["mpp"].tolist() == [0.5, 0.2125, 0.7]
    assert from_json["mpp"].dtype == float
    assert from_json.index.tolist() == ["A", "B", "C"]
    assert from_json.reset_index()["id"].tolist() == ["A", "B", "C"]  # no second column of that name


def test_hest_metadata_of_the_table(tmp_path):
    """A sample without its own metadata has those of the table."""
    research.hest_copy(tmp_path)
    (tmp_path / "metadata" / "TENX1.json").unlink()
    pd.DataFrame([research.hest_record("TENX1", "Visium", 2.0)]).to_csv(tmp_path / "HEST_v1_3_0.csv", index=False)
    sdata = sthist.io.hest(tmp_path, "TENX1")
    assert scale.resolve_mpp(sdata, "he") == pytest.approx((2, 2))
    assert sdata.attrs["sthist"]["sample"]["organ"] == "Breast"


def test_hest_genes_twice(tmp_path, caplog):
    """They get a number, and it is said."""
    research.hest_copy(tmp_path)
    file = tmp_path / "st" / "TENX1.h5ad"
    table = ad.read_h5ad(file)
    table.var_names = ["EPCAM", "EPCAM"]
    table.write_h5ad(file)
    sdata = sthist.io.hest(tmp_path, "TENX1", image=False)
    assert sdata["table"].var_names.tolist() == ["EPCAM", "EPCAM-1"]
    assert "has 1 genes more than once, such as 'EPCAM'" in caplog.text


def test_real_xenium_lung_in_the_layout_of_hest(tmp_path):
    """The cells of a HEST sample lie on its tissue, at the µm per pixel that HEST gives, 0.2125, ten times reduced."""
    data = real_folder("xenium_lung_ncbi858")
    cells = ad.read_h5ad(data / "NCBI858_cells.h5ad")
    (tmp_path / "st").mkdir()
    cells.write_h5ad(tmp_path / "st" / "NCBI858.h5ad")
    pixels = real_picture(data / "NCBI858_he.jpg").transpose(1, 2, 0)
    research.hest_image(tmp_path / "wsis" / "NCBI858.tif", pixels, 2.125)
    research.hest_metadata(tmp_path / "metadata" / "NCBI858.json", "NCBI858", "Xenium", 2.125, patient="Patient 24")
    sdata = sthist.io.hest(tmp_path, "NCBI858")
    np.testing.assert_allclose(sdata["table"].obsm["spatial"], cells.obsm["spatial_um"])
    assert (sdata["table"].X != cells.X).nnz == 0
    assert np.median(colours_at_spots(sdata)) < np.percentile(pixels[..., 1], 50) - 20  # tissue is darker than air
    require_sound(sdata, tmp_path)


# STimage-1K4M --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("technology", "radius"), [("ST", 50), ("Visium", 27.5)])
def test_stimage(tmp_path, technology, radius):
    """Spots lie with their centres at xaxis and yaxis.

    The scale is that of the lattice, not of Space Ranger's spots of 65 µm.
    """
    coord = research.stimage_copy(tmp_path, technology=technology)
    sdata = sthist.io.stimage(tmp_path, "Human_Breast_ST_A1")
    table = sdata["table"]
    assert scale.resolve_mpp(sdata, "he")[0] == pytest.approx(2, rel=1e-3)
    np.testing.assert_allclose(table.obsm["spatial"], coord[["xaxis", "yaxis"]] * 2, rtol=1e-3)
    np.testing.assert_array_equal(table[:, "COL1A1"].X.toarray().ravel(), np.arange(len(coord)) + 1)
    assert (colours_at_spots(sdata) == 60).all()
    np.testing.assert_allclose(sd.transform(sdata["spots"], to_coordinate_system="um").radius, radius)
    assert table.obs_names[0] == {"ST": "7x10", "Visium": "ACGT0000-1"}[technology]
    facts = {"name": "Human_Breast_ST_A1", "batch": "pmid 34650042", "source": "STimage-1K4M", "technology": technology}
    facts |= {"species": "human", "tissue": "breast", "pmid": "34650042"}
    assert sdata.attrs["sthist"]["sample"] == facts
    require_sound(sdata, tmp_path)


def test_stimage_several(tmp_path):
    """A mapping over all technologies; Visium HD needs its scale, the others may do without metadata."""
    research.stimage_copy(tmp_path, "A", meta=False)
    research.stimage_copy(tmp_path, "B", technology="Visium", meta=False)
    research.stimage_copy(tmp_path, "C", technology="VisiumHD", meta=False)
    with pytest.raises(ValueError, match="bins of Visium HD may be of 2, 8 or 16 µm"):
        sthist.io.stimage(tmp_path)
    samples = sthist.io.stimage(tmp_path, mpp={"C": 2.0}, image=False)
    assert list(samples) == ["A", "B", "C"]
    squares = sd.transform(samples["C"]["spots"], to_coordinate_system="um")
    np.testing.assert_allclose(squares.area, 16**2)
    assert list(sthist.io.stimage(tmp_path / "Visium")) == ["B"]
    assert samples["A"].attrs["sthist"]["sample"] == {"name": "A", "source": "STimage-1K4M", "technology": "ST"}


def test_stimage_labels(tmp_path):
    """By spot, where somebody has labelled the slide."""
    coord = research.stimage_copy(tmp_path)
    (tmp_path / "annotation").mkdir()
    labels = pd.DataFrame({"V2": ["tumour", "stroma"]}, index=coord.index[[3, 0]])
    labels.to_csv(tmp_path / "annotation" / "Human_Breast_ST_A1_anno.csv")
    obs = sthist.io.stimage(tmp_path, "Human_Breast_ST_A1")["table"].obs
    assert obs["label"].tolist()[:4] == ["stroma", np.nan, np.nan, "tumour"]


def test_labels_of_other_spots_are_said(tmp_path, caplog):
    """No label is lost silently."""
    research.stimage_copy(tmp_path)
    (tmp_path / "annotation").mkdir()
    labels = pd.DataFrame({"V2": ["tumour", "stroma"]}, index=["7x10", "8x10"])
    labels.to_csv(tmp_path / "annotation" / "Human_Breast_ST_A1_anno.csv")
    with caplog.at_level(logging.WARNING, "sthist"):
        sdata = sthist.io.stimage(tmp_path, "Human_Breast_ST_A1")
    assert "_anno.csv labels none of the 12 spots: its names are like '7x10', not 'Human_" in caplog.text
    assert sdata["table"].obs["label"].isna().all()
    require_sound(sdata, tmp_path)
    files, _ = research.her2st_files(tmp_path / "section")
    files["labels"].write_text("x\ty\tlabel\n")
    with caplog.at_level(logging.WARNING, "sthist"):
        sthist.io.legacy_st(**files)
    assert "A1_labeled_coordinates.tsv labels none of the 10 spots: it has no labels" in caplog.text


def test_stimage_scales_that_contradict(tmp_path, caplog):
    """Spots of GSE144239 are 150 µm apart, their r was that of 200 µm: refused, until mpp= decides."""
    research.stimage_copy(tmp_path)
    file = tmp_path / "ST" / "coord" / "Human_Breast_ST_A1_coord.csv"
    coord = pd.read_csv(file, index_col=0)
    coord.assign(r=45.13).to_csv(file)
    with pytest.raises(ValueError, match=r"disagree by .*: 1\.108 µm/px \(r of .*, 50 µm\) and 2 µm/px \(spots 200 µm"):
        sthist.io.stimage(tmp_path, "Human_Breast_ST_A1")
    with caplog.at_level(logging.WARNING, "sthist"):
        sdata = sthist.io.stimage(tmp_path, "Human_Breast_ST_A1", mpp=1.5)
    assert "2 µm/px (spots 200 µm apart" in caplog.text
    assert "1.108 µm/px (r of" in caplog.text
    assert scale.resolve_mpp(sdata, "he") == pytest.approx((1.5, 1.5))


# Legacy Spatial Transcriptomics --------------------------------------------------------------------------------------


@pytest.mark.parametrize("dialect", ["her2st", "stnet"])
def test_legacy_st(tmp_path, dialect):
    """Both dialects: spots on their squares, the scale of the array, labels by place."""
    files, spots = getattr(research, f"{dialect}_files")(tmp_path)
    sdata = sthist.io.legacy_st(**files, patient="P1", batch="a study")
    table = sdata["table"]
    kept = spots.drop(index=spots.index[[1, 2]]) if dialect == "her2st" else spots
    assert table.obs_names.tolist() == kept.index.tolist()
    mpp = scale.resolve_mpp(sdata, "he")[0]
    assert mpp == pytest.approx(2, rel=0.005)
    np.testing.assert_allclose(table.obsm["spatial"], kept[["pixel_x", "pixel_y"]] * mpp)
    expected = np.flatnonzero(spots.index.isin(kept.index)) + 1
    np.testing.assert_array_equal(table.X.toarray()[:, 0], expected)
    assert (np.abs(colours_at_spots(sdata).astype(int) - 60) < 15).all()  # JPEG
    np.testing.assert_allclose(sd.transform(sdata["spots"], to_coordinate_system="um").radius, 50)
    odd = {"her2st": "invasive cancer", "stnet": "tumor"}[dialect]
    assert ((table.obs["label"] == odd) == (expected % 2 == 0)).all()
    sample = {"name": {"her2st": "A1", "stnet": "BC1_C1"}[dialect], "patient": "P1", "batch": "a study"}
    assert sdata.attrs["sthist"]["sample"] == sample | {"technology": "Spatial Transcriptomics"}
    assert table.obs["array_x"].tolist() == kept["x"].tolist()
    require_sound(sdata, tmp_path)


def test_legacy_st_genes_as_rows(tmp_path):
    """The table may lie on its side, and have a header without the name of the first column, as R writes it."""
    files, _ = research.her2st_files(tmp_path)
    upright = sthist.io.legacy_st(**files)["table"]
    frame = pd.read_csv(files["counts"], sep="\t", index_col=0)
    frame.index = [f"A1_{name}" for name in frame.index]
    text = frame.T.to_csv(sep="\t").removeprefix("\t")
    files["counts"] = tmp_path / "A1.tsv"
    files["counts"].write_text(text)
    turned = sthist.io.legacy_st(**files)["table"]
    assert turned.obs_names.tolist() == upright.obs_names.tolist()
    assert (turned.X != upright.X).nnz == 0
    assert turned.var_names.tolist() == research.GENES


def test_legacy_st_scale(tmp_path, caplog):
    """A given scale is checked; other distances are arguments; scales along x and y that differ are said."""
    files, spots = research.her2st_files(tmp_path)
    with pytest.raises(ValueError, match=r"disagree by 1\d\.\d%: 2 µm/px .* and 2\.3 µm/px"):
        sthist.io.legacy_st(**files, mpp=2.3)
    sdata = sthist.io.legacy_st(**files, pitch_um=150.0, spot_diameter_um=110.0)
    assert scale.resolve_mpp(sdata, "he")[0] == pytest.approx(1.5, rel=0.005)
    np.testing.assert_allclose(sd.transform(sdata["spots"], to_coordinate_system="um").radius, 55)
    spots.assign(pixel_y=spots["pixel_y"] * 1.1).to_csv(files["spots"], sep="\t", index=False)
    with pytest.raises(ValueError, match=r"give 2\.?\d* µm/px along x of the array and 1\.8\d* along y \(\d+\.\d%\)"):
        sthist.io.legacy_st(**files)
    with caplog.at_level(logging.WARNING, "sthist"):
        sdata = sthist.io.legacy_st(**files, mpp=1.9)
    assert "along y" in caplog.text
    assert scale.resolve_mpp(sdata, "he") == pytest.approx((1.9, 1.9))
    sdata = sthist.io.legacy_st(**files, pitch_um=(200, 220))
    assert scale.resolve_mpp(sdata, "he")[0] == pytest.approx(2, rel=0.005)


@pytest.mark.parametrize("section", [pytest.param("C3", marks=pytest.mark.slow), "counts_only/G2"])
def test_real_her2st(tmp_path, section):
    """From the files that her2st ships: equal counts, positions, and the scale of an independent fit."""
    data = real_folder("her2st")
    table = ad.read_h5ad(data / f"{section}_counts.h5ad")
    files = research.her2st_from(table, tmp_path)
    image = data / f"{section}.jpg"
    sdata = sthist.io.legacy_st(**files, image=image if image.exists() else None, patient=str(table.uns["patient"]))
    read = sdata["table"]
    assert read.var_names.tolist() == table.var_names.tolist()
    assert (read.X != table.X).nnz == 0
    mpp = scale.pixel_size(scale.matrix_to(sdata["spots"]))[0]
    assert mpp == pytest.approx(float(table.uns["mpp"]), rel=0.005)
    np.testing.assert_allclose(read.obsm["spatial"] / mpp, table.obsm["spatial"])
    assert read.obs["array_x"].tolist() == table.obs["array_x"].tolist()
    if image.exists():
        assert np.median(colours_at_spots(sdata)) < np.median(sdata["he"]["scale3"]["image"].to_numpy()[1]) - 20


# What they share -----------------------------------------------------------------------------------------------------


def test_lattice_is_found_under_any_rotation():
    """Areas are kept; scales along the axes are told apart."""
    um = research.square_lattice(200.0)[["x", "y"]].to_numpy()
    angle = np.deg2rad(30)
    turn = np.array([[np.cos(angle), -np.sin(angle)], [np.sin(angle), np.cos(angle)]])
    lattice = fit_lattice(um, (um / [0.5, 0.52]) @ turn.T + 17)
    assert (lattice.mpp_x, lattice.mpp_y) == pytest.approx((0.5, 0.52))
    assert lattice.mpp == pytest.approx(np.sqrt(0.5 * 0.52))
    assert lattice.off_um == pytest.approx(0, abs=1e-6)
    assert fit_lattice(um[:8], um[:8]) is None  # one row


def test_tables_of_counts(tmp_path):
    """With or without quotes and a name of the first column, by commas or tabs: always what pandas reads."""
    frame = pd.DataFrame(np.random.default_rng(0).poisson(0.5, (7, 5)), [f"s{i}" for i in range(7)], list("ABCDE"))
    texts = {
        "plain.csv": frame.to_csv(),
        "tabs.tsv": frame.to_csv(sep="\t", index_label="spot"),
        "r.tsv": frame.to_csv(sep="\t").removeprefix("\t"),
        "quoted.csv": frame.to_csv(quoting=csv.QUOTE_NONNUMERIC),
        "floats.csv": frame.astype(float).to_csv(),
        "r.csv": frame.rename('"{}"'.format).to_csv(quoting=csv.QUOTE_NONE),
        "windows.csv": frame.to_csv(lineterminator="\r\n"),
    }
    for name, text in texts.items():
        (tmp_path / name).write_bytes(text.encode())
        matrix = read_matrix(tmp_path / name)
        np.testing.assert_array_equal(matrix.values.toarray(), frame, err_msg=name)
        assert (matrix.rows.tolist(), matrix.columns.tolist()) == (frame.index.tolist(), list("ABCDE")), name


def test_rows_of_an_array_that_are_off_their_places(tmp_path):
    """By as much as in her2st's section A1.

    A fit to all of them tells how far they are apart, not the nearer neighbours.
    """
    x = np.cumsum([20.0, 219, 262, 218, 197])
    research.stimage_copy(tmp_path)
    rows, columns = (axis.ravel() for axis in np.meshgrid(np.arange(5), np.arange(10), indexing="ij"))
    names = [f"Human_Breast_ST_A1_{row + 10}x{column + 13}" for row, column in zip(rows, columns, strict=True)]
    coord = pd.DataFrame({"yaxis": 219.0 * columns, "xaxis": x[rows], "r": 54.75}, index=names)
    coord.to_csv(tmp_path / "ST" / "coord" / "Human_Breast_ST_A1_coord.csv")
    counts = pd.DataFrame(research.counts_of(len(names)), index=names, columns=research.GENES)
    counts.to_csv(tmp_path / "ST" / "gene_exp" / "Human_Breast_ST_A1_count.csv")
    sdata = sthist.io.stimage(tmp_path, "Human_Breast_ST_A1", image=False)
    slope = np.polyfit(np.arange(5), x, 1)[0]
    assert scale.pixel_size(scale.matrix_to(sdata["spots"]))[0] == pytest.approx(200 / np.sqrt(slope * 219))


def test_pitch_of_spots_that_are_off_their_places():
    """The nearest neighbour alone would be 3 % too near."""
    rng = np.random.default_rng(0)
    px = research.square_lattice(200.0, (20, 20))[["x", "y"]].to_numpy() + rng.normal(0, 4, (400, 2))
    assert spot_pitch(px) == pytest.approx(200, rel=0.005)
    assert spot_pitch(research.visium_lattice(0.5)[["x", "y"]].to_numpy().round()) == pytest.approx(50, rel=0.01)
    assert spot_pitch(rng.uniform(0, 1000, (400, 2))) is None
    assert spot_pitch(px[:3]) is None


def test_a_technology_that_is_no_name(tmp_path):
    research.hest_copy(tmp_path)
    metadata = tmp_path / "metadata" / "TENX1.json"
    metadata.write_text(json.dumps(json.loads(metadata.read_text()) | {"st_technology": ["Visium"]}))
    with pytest.raises(ValueError, match=r"TENX1\.json: 'st_technology' is \['Visium'\]"):
        sthist.io.hest(tmp_path, "TENX1")
