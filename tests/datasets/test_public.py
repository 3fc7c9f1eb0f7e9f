"""Public data sets: what is taken from their archives, and which reader gets it; without a network."""

from __future__ import annotations

import shutil
import socket
import tarfile
import zipfile

import numpy as np
import pandas as pd
import pytest
import research
import spatialdata as sd
import tifffile
import vendor
from realdata import folder as real_folder

import sthist
from sthist import io
from sthist.datasets import _sources
from sthist.datasets._download import fetch

SOURCES = [
    *_sources.XENIUM.values(),
    *_sources.COSMX.values(),
    _sources.HER2ST,
    _sources.STNET,
    *_sources.HUB.values(),
    *_sources.REFERENCES.values(),
    *(source for source, _ in _sources.WALLED.values()),
]


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch):
    """An empty cache, and no network."""

    def refuse(*_args, **_kwargs):
        pytest.fail("a test asked the network")

    monkeypatch.setattr(socket.socket, "connect", refuse)
    monkeypatch.setattr(sthist.settings, "cache_dir", tmp_path / "cache")
    monkeypatch.setattr(sthist.settings, "offline", True)
    return tmp_path / "cache"


@pytest.fixture
def seen(monkeypatch):
    """What readers are called with, in place of reading."""
    calls = []

    def reader(name):
        def read(*args, **kwargs):
            calls.append((name, args, kwargs))
            return name

        return read

    for name in ("xenium", "cosmx", "hest", "stimage", "legacy_st", "tile_folder"):
        monkeypatch.setattr(io, name, reader(name), raising=False)
    return calls


def put(source):
    """Where the download of a source lies."""
    source.folder.mkdir(parents=True, exist_ok=True)
    return source.folder / source.files[0].file_name


def zipped(archive, folder, inside=""):
    with zipfile.ZipFile(archive, "w") as file:
        for member in sorted(folder.rglob("*")):
            file.write(member, inside + str(member.relative_to(folder)))


def same(one, other):
    """The same elements, with the same counts."""
    assert {name for _, name, _ in one.gen_elements()} == {name for _, name, _ in other.gen_elements()}
    assert isinstance(one, sd.SpatialData)
    np.testing.assert_array_equal(one["table"].X.toarray(), other["table"].X.toarray())
    np.testing.assert_allclose(one["table"].obsm["spatial"], other["table"].obsm["spatial"])


def test_registry():
    """Addresses are of the web, names lead to one folder each, licence and homepage are said."""
    assert len({source.name for source in SOURCES}) == len(SOURCES)
    for source in SOURCES:
        assert source.licence, source.name
        assert source.cite, source.name
        assert source.homepage.startswith("https://"), source.name
        names = [file.file_name for file in source.files]
        assert len(set(names)) == len(names), source.name
        for file in source.files:
            assert file.url.startswith("https://"), file.url
            assert " " not in file.url
            assert file.file_name
            assert "/" not in file.file_name
        assert source.title in source.describe()
        assert source.licence in source.describe()


@pytest.mark.parametrize("source", [source for source in SOURCES if source.files], ids=lambda source: source.name)
def test_offline_says_what_to_do(source):
    """Each file has its place for those who download by hand."""
    with pytest.raises(ConnectionError, match=r"offline is set\. To go on by hand, get ") as error:
        fetch(source)
    for text in (source.files[0].file_name, source.homepage, source.licence, str(source.folder)):
        assert text in str(error.value)


CALLS = {
    **{f"xenium_{tissue}": () for tissue in _sources.XENIUM},
    "cosmx_nsclc": ("Lung6",),
    "her2st": (),
    "stnet": (),
    "single_cell_reference": ("lung",),
}


@pytest.mark.parametrize("name", CALLS)
def test_offline(name):
    """No function goes round the setting."""
    with pytest.raises(ConnectionError, match="To go on by hand"):
        getattr(sthist.datasets, name)(*CALLS[name])


@pytest.mark.parametrize("name", ["hest", "stimage"])
def test_offline_hub(name):
    with pytest.raises(ConnectionError, match="offline is set, and it is not in the cache"):
        getattr(sthist.datasets, name)("S1")


def test_xenium(tmp_path):
    """A vendor's folder, zipped: equal to what the reader gives, without the files that nobody reads."""
    outs = real_folder("xenium_ileum_tiny") / "outs"
    source = _sources.XENIUM["brain"]
    zipped(put(source), outs, "outs/")
    sdata = sthist.datasets.xenium_brain()
    same(sdata, io.xenium(outs))
    there = {file.name for file in source.folder.rglob("*") if file.is_file()}
    assert not there & {"morphology.ome.tif", "analysis.zarr.zip", "cells.csv.gz", "cell_feature_matrix.zarr.zip"}
    put(source).unlink()
    same(sthist.datasets.xenium_brain(transcripts=False), io.xenium(outs, transcripts=False))


def test_xenium_with_he(caplog):
    """An H&E that was put beside the download is laid on the section; its absence is said."""
    source = _sources.XENIUM["liver"]
    zipped(put(source), real_folder("xenium_ileum_tiny") / "outs")
    with caplog.at_level("INFO", "sthist"):
        assert "he" not in sthist.datasets.xenium_liver().images
    assert f"put both into {source.folder}" in caplog.text
    picture = np.full((64, 96, 3), 200, np.uint8)
    tifffile.imwrite(source.folder / "A_he_image.ome.tif", picture, photometric="rgb", metadata={"axes": "YXS"})
    np.savetxt(source.folder / "A_he_imagealignment.csv", np.diag([4.0, 4.0, 1.0]), delimiter=",")
    sdata = sthist.datasets.xenium_liver(transcripts=False)
    np.testing.assert_allclose(sthist.scale.matrix_to(sdata["he"]), np.diag([0.85, 0.85, 1.0]), rtol=1e-6)


def test_breast_has_its_he(seen, tmp_path):
    """All three files are used; arguments of the caller come first."""
    source = _sources.XENIUM["breast"]
    (tmp_path / "outs").mkdir()
    (tmp_path / "outs" / "experiment.xenium").write_text("{}")
    zipped(put(source), tmp_path / "outs", "outs/")
    for file in source.files[1:]:
        (source.folder / file.file_name).touch()
    assert sthist.datasets.xenium_breast(transcripts=False) == "xenium"
    sthist.datasets.xenium_breast(he=None)
    (_, (folder,), first), (_, _, second) = seen
    assert folder == source.folder / "unpacked" / "outs"
    assert [first.pop(key).name for key in ("he", "he_alignment")] == [file.file_name for file in source.files[1:]]
    assert first == {"transcripts": False}
    assert second == {"he": None}


def test_not_the_data_set(tmp_path):
    source = _sources.XENIUM["lung"]
    (tmp_path / "other").mkdir()
    (tmp_path / "other" / "readme.txt").touch()
    zipped(put(source), tmp_path / "other")
    with pytest.raises(FileNotFoundError, match=r"has no file experiment.xenium: it is not the data set"):
        sthist.datasets.xenium_lung()


def tarred(archive, folder, inside):
    with tarfile.open(archive, "w:gz") as file:
        file.add(folder, inside)


def test_cosmx(tmp_path):
    """Flat files two folders deep, with pictures and hidden files that nobody reads."""
    folder = vendor.cosmx_folder(tmp_path / "flat", **vendor.cosmx_sample(), mpp=0.18)
    expected = io.cosmx(folder)
    (folder / "CellOverlay").mkdir()
    (folder / "CellOverlay" / "CellOverlay_F001.jpg").write_text("a picture")
    (folder / "._Mini_exprMat_file.csv").write_text("of a Mac")
    source = _sources.COSMX["Lung6"]
    tarred(put(source), folder, "Lung6/Lung6-Flat_files_and_images")
    same(sthist.datasets.cosmx_nsclc("Lung6"), expected)
    there = [file.name for file in (source.folder / "unpacked").rglob("*")]
    assert not [name for name in there if "Overlay" in name or name.startswith(".")]
    put(source).unlink()
    same(sthist.datasets.cosmx_nsclc("Lung6"), expected)
    (folder / "._Mini_exprMat_file.csv").unlink()
    same(sthist.datasets.cosmx_nsclc(path=folder), expected)


@pytest.mark.parametrize("kind", ["truncated", "html", "leads outside"])
def test_damaged_tar(tmp_path, kind):
    """Nothing is left that could be taken for the data set."""
    source = _sources.COSMX["Lung6"]
    archive = put(source)
    (tmp_path / "x_exprMat_file.csv").write_bytes(np.random.default_rng(0).bytes(200_000))
    tarred(archive, tmp_path / "x_exprMat_file.csv", "../../../x.csv" if kind == "leads outside" else "a/x.csv")
    if kind == "truncated":
        archive.write_bytes(archive.read_bytes()[:100_000])
    if kind == "html":
        archive.write_text("<html>")
    match = "leads outside" if kind == "leads outside" else "is no whole tar archive.*Delete it"
    with pytest.raises(ValueError, match=match):
        sthist.datasets.cosmx_nsclc("Lung6")
    assert not (source.folder / "unpacked").exists()
    assert not list(sthist.settings.cache_dir.glob("*.csv"))


def test_no_such_sample():
    with pytest.raises(ValueError, match="sample= is 'Lung7'; it is one of Lung5_Rep1, "):
        sthist.datasets.cosmx_nsclc("Lung7")


@pytest.mark.parametrize("tissue", _sources.XENIUM)
def test_own_copy_xenium(seen, tissue):
    getattr(sthist.datasets, f"xenium_{tissue}")("outs", cells_labels=False)
    assert seen == [("xenium", ("outs",), {"cells_labels": False})]


@pytest.fixture
def her2st_copy(tmp_path):
    """The layout of the repository: two sections, one without H&E and labels."""
    data = tmp_path / "her2st-master" / "data"
    for name in ("A1", "B2"):
        files, _ = research.her2st_files(tmp_path / name, name=name)
        places = {
            "counts": data / "ST-cnts" / f"{name}.tsv.gz",
            "spots": data / "ST-spotfiles" / f"{name}_selection.tsv",
            "image": data / "ST-imgs" / name[0] / name / "BT1_HE.jpg",
            "labels": data / "ST-pat" / "lbl" / f"{name}_labeled_coordinates.tsv",
        }
        for kind in places if name == "A1" else ("counts", "spots"):
            places[kind].parent.mkdir(parents=True, exist_ok=True)
            shutil.move(files[kind], places[kind])
    (data / "clinical_data").mkdir()
    (data / "clinical_data" / "info.xlsx").touch()
    return tmp_path / "her2st-master"


def test_her2st(her2st_copy, caplog):
    zipped(put(_sources.HER2ST), her2st_copy, "her2st-master/")
    with caplog.at_level("INFO", "sthist"):
        samples = sthist.datasets.her2st()
    assert "has no H&E of section B2" in caplog.text
    assert list(samples) == ["A1", "B2"]
    assert set(samples["A1"].images) == {"he"}
    assert not samples["B2"].images
    whose = {"name": "B2", "patient": "her2st: B", "batch": "her2st"}
    assert samples["B2"].attrs["sthist"]["sample"].items() >= whose.items()
    assert "label" in samples["A1"]["table"].obs
    assert not list(_sources.HER2ST.folder.rglob("info.xlsx"))
    one = sthist.datasets.her2st("A1", her2st_copy, image=False)
    assert not one.images
    np.testing.assert_array_equal(one["table"].X.toarray(), samples["A1"]["table"].X.toarray())
    with pytest.raises(FileNotFoundError, match="Z9"):
        sthist.datasets.her2st(["Z9"])


def test_stnet(tmp_path):
    folder = tmp_path / "Human breast cancer"
    files, _ = research.stnet_files(folder, name="BC1_C1")
    columns = {"histology_image": "image", "count_matrix": "counts", "spot_coordinates": "spots"}
    row = {column: files[kind].name for column, kind in columns.items()}
    row |= {"patient": "BC1", "replicate": "C1", "tumor_annotation": files["labels"].name, "type": "TNBC"}
    pd.DataFrame([row]).to_csv(folder / "metadata.csv", index=False)
    zipped(put(_sources.STNET), folder, "Human breast cancer/")
    samples = sthist.datasets.stnet()
    kinds = {"spots": files["spots"], "image": files["image"], "labels": files["labels"]}
    expected = io.legacy_st(files["counts"], **kinds)
    same(samples["BC1_C1"], expected)
    whose = {"name": "BC1_C1", "patient": "BC1", "batch": "stnet"}
    assert samples["BC1_C1"].attrs["sthist"]["sample"].items() >= whose.items()
    same(sthist.datasets.stnet("BC1_C1", folder), expected)
    pd.DataFrame([row | {"tumor_annotation": ""}]).to_csv(folder / "metadata.csv", index=False)
    assert "label" not in sthist.datasets.stnet("BC1_C1", folder, image=False)["table"].obs
    pd.DataFrame([row]).drop(columns="replicate").to_csv(folder / "metadata.csv", index=False)
    with pytest.raises(KeyError, match=r"metadata.csv has no column 'replicate'"):
        sthist.datasets.stnet("BC1_C1", folder)


@pytest.fixture
def hub(monkeypatch, tmp_path):
    """A hub that has everything in one folder; and what it was asked for."""
    import huggingface_hub

    asked = []

    def snapshot_download(repository, allow_patterns, **_):
        asked.append((repository, allow_patterns))
        return str(tmp_path / "hub")

    monkeypatch.setattr(huggingface_hub, "snapshot_download", snapshot_download)
    return asked


def test_hest(hub, tmp_path):
    """A sample and what is asked of it, and no more, is downloaded."""
    research.hest_copy(tmp_path / "hub", "TENX95", parts=True)
    sdata = sthist.datasets.hest("TENX95")
    same(sdata, io.hest(tmp_path / "hub", "TENX95"))
    assert "nuclei" in sdata.shapes
    sthist.datasets.hest(["TENX95"], parts=["tissue"], image=False)
    (repository, every), (_, few) = hub
    assert repository == "MahmoodLab/hest"
    there = {str(file.relative_to(tmp_path / "hub")) for file in (tmp_path / "hub").rglob("*.*")}
    assert {"st/TENX95.h5ad", "wsis/TENX95.tif", "metadata/TENX95.json"} <= there & set(every)
    assert few == ["st/TENX95.h5ad", "metadata/TENX95.json", "tissue_seg/TENX95_contours.geojson", "*.csv"]
    with pytest.raises(ValueError, match="parts= is \\['nucleus'\\]; it is a list of some of"):
        sthist.datasets.hest("TENX95", parts=["nucleus"])
    assert len(hub) == 2  # before anything is downloaded


def test_stimage(hub, tmp_path):
    research.stimage_copy(tmp_path / "hub")
    samples = io.stimage(tmp_path / "hub")
    (name,) = samples
    same(sthist.datasets.stimage(name), samples[name])
    ((repository, patterns),) = hub
    assert repository == "jiawennnn/STimage-1K4M"
    files = [file.relative_to(tmp_path / "hub") for file in (tmp_path / "hub").rglob(f"{name}*.*")]
    assert len(files) >= 3
    for file in files:
        assert any(file.match(pattern) for pattern in patterns), file


def test_own_copy_of_hub(seen, hub):
    sthist.datasets.hest(["A"], "copy", image=False)
    sthist.datasets.stimage("B", "copy")
    assert seen == [("hest", ("copy", ["A"]), {"image": False}), ("stimage", ("copy", "B"), {})]
    assert not hub


def test_single_cell_reference(toy, tmp_path):
    """Downloaded, or one's own; the one without a lasting address says where it is."""
    cells = toy["table"]
    cells.write_h5ad(put(_sources.REFERENCES["lung"]))
    assert sthist.datasets.single_cell_reference("lung").shape == cells.shape
    own = sthist.datasets.single_cell_reference("breast", put(_sources.REFERENCES["lung"]), backed=True)
    assert own.isbacked
    with pytest.raises(FileNotFoundError, match=r"Kumar et al.*Download the h5ad of all cells there") as error:
        sthist.datasets.single_cell_reference("breast")
    assert _sources.REFERENCES["breast"].homepage in str(error.value)
    with pytest.raises(ValueError, match="tissue= is 'toe'; it is one of lung, breast"):
        sthist.datasets.single_cell_reference("toe")


@pytest.mark.parametrize(("name", "mpp"), [("bracs", 0.25), ("spider", 0.5)])
def test_walled(seen, tmp_path, name, mpp):
    """How to get it; a copy is read by the reader of folders of tiles."""
    source, steps = _sources.WALLED[name]
    load = getattr(sthist.datasets, name)
    with pytest.raises(FileNotFoundError) as error:
        load()
    for text in (source.homepage, source.licence, steps, f"sthist.datasets.{name}(folder)"):
        assert text in str(error.value)
    with pytest.raises(FileNotFoundError, match="nowhere is no folder"):
        load(tmp_path / "nowhere")
    assert load(tmp_path, labels="a") == "tile_folder"
    assert seen == [("tile_folder", (tmp_path,), {"mpp": mpp, "labels": "a"})]


def test_what_is_read_of_a_folder_is_unpacked(seen, tmp_path):
    """No file that the reader checks for is left in the archive."""
    from sthist.io._platforms import xenium, xenium_cells

    stains = ["morphology_focus.ome.tif", "morphology_focus/ch0000_dapi.ome.tif", "morphology_mip.ome.tif"]
    tables = [*(needed.name for needed in xenium.CELLS), *xenium_cells.OUTLINES.values(), "transcripts.parquet"]
    names = {*tables, xenium_cells.ZARR, "experiment.xenium", *stains}
    for name in (*names, "morphology.ome.tif"):
        (tmp_path / "outs" / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / "outs" / name).touch()
    zipped(put(_sources.XENIUM["brain"]), tmp_path / "outs", "outs/")
    sthist.datasets.xenium_brain()
    ((_, (folder,), _),) = seen
    assert {str(file.relative_to(folder)) for file in folder.rglob("*.*")} == names
