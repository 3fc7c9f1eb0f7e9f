"""What all public verbs do with their arguments: paths of stores, names as numpy has them, and what cannot be meant."""

from __future__ import annotations

import inspect
import subprocess
import sys
from pathlib import Path

import anndata as ad
import numpy as np
import pandas as pd
import pytest
import spatialdata as sd

import sthist
from sthist._sample import verbs

sys.path.insert(0, str(Path(__file__).parents[2] / "docs"))
import argument_tables

FUNCTIONS = {
    name: found
    for name, found in argument_tables.public_functions()
    if inspect.isfunction(found) and name.split(".")[0] in {"pp", "tl", "pl", "benchmark", "io"}
}
VERBS = {
    name: found
    for name, found in FUNCTIONS.items()
    if next(iter(inspect.signature(found).parameters)) in {"data", "sdata"}
}


@pytest.fixture(scope="module")
def store(tmp_path_factory):
    path = tmp_path_factory.mktemp("store") / "section.zarr"
    sthist.datasets.toy(size_um=150).write(path)
    return path


class Opened(Exception):
    """A store was opened."""


def _call(function, data):
    """With a text for every other argument that has no default."""
    required = [
        each
        for each in list(inspect.signature(function).parameters.values())[1:]
        if each.default is each.empty and each.kind is not each.VAR_KEYWORD
    ]
    return function(data, **{each.name: "x" for each in required})


@pytest.mark.parametrize("name", VERBS)
def test_every_verb_takes_the_path_of_a_store(name, store, monkeypatch):
    def read(path):
        raise Opened(str(verbs.require_store(path)))

    monkeypatch.setattr(verbs, "_read_store", read)
    for path in (store, str(store)):
        with pytest.raises(Opened, match=r"section\.zarr"):
            _call(VERBS[name], path)
    annotation = str(next(iter(inspect.signature(VERBS[name]).parameters.values())).annotation)
    if "Mapping" in annotation or "Any" in annotation or "mapping of" in (inspect.getdoc(VERBS[name]) or ""):
        with pytest.raises(Opened, match=r"section\.zarr"):
            _call(VERBS[name], {"a": str(store)})
    with pytest.raises(FileNotFoundError, match=r"There is no 'nowhere\.zarr'"):
        _call(VERBS[name], "nowhere.zarr")
    with pytest.raises(TypeError, match="is needed, not NoneType"):
        _call(VERBS[name], None)


def test_results_are_in_the_store(store, tmp_path):
    copies = {}
    for name in "ab":
        copies[name] = tmp_path / f"{name}.zarr"
        sd.read_zarr(store).write(copies[name])
    sthist.pp.tissue(str(copies["a"]))
    assert "tissue" in sd.read_zarr(copies["a"]).shapes
    sthist.pp.tissue({"a": copies["a"], "b": str(copies["b"])}, overwrite=True)
    sthist.pp.tiles(copies, size_um=64, px=32)
    sthist.pp.embed(copies, "morphology", progress=False)
    for path in copies.values():
        table = sd.read_zarr(path)["tiles_table"]
        assert np.isfinite(table.obsm["X_morphology"]).all()
    assert len(sthist.pl.tiles(copies["a"], n=2, show="he")) == 2
    sthist.tl.niches({name: str(path) for name, path in copies.items()}, "cell_type", n_niches=2)
    assert "niche" in sd.read_zarr(copies["b"])["table"].obs
    sthist.io.export_geojson(copies["a"], "tissue", tmp_path / "tissue.geojson", image="he")
    assert (tmp_path / "tissue.geojson").stat().st_size


def test_one_store_is_not_two_samples(store):
    with pytest.raises(ValueError, match="'a' and 'b' are one and the same object"):
        sthist.pp.tissue({"a": store, "b": f"{store}/"})
    with pytest.raises(TypeError, match="overlay takes one sample, not a mapping of 1"):
        sthist.pl.overlay({"a": store})
    with pytest.raises(TypeError, match="Pass the whole sample, not its table"):
        sthist.pl.overlay(ad.AnnData(np.ones((2, 2))))


def _folder(tmp_path, *files):
    for name in files:
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).touch()
    return tmp_path


@pytest.mark.parametrize(
    ("files", "reader"),
    [
        (["experiment.xenium"], "xenium"),
        (["a_tx_file.csv.gz"], "cosmx"),
        (["detected_transcripts.csv"], "merscope"),
        (["spatial/x.json", "filtered_feature_bc_matrix.h5"], "visium"),
        (["binned_outputs/square_008um/x"], "visium_hd"),
    ],
)
def test_a_vendors_folder_names_its_reader(tmp_path, files, reader):
    with pytest.raises(ValueError, match=rf"no SpatialData store.*sthist\.io\.{reader} reads"):
        sthist.pp.tissue(_folder(tmp_path, *files))
    assert hasattr(sthist.io, reader)


def test_what_is_no_store(store, tmp_path):
    table = ad.AnnData(np.ones((2, 2), np.float32))
    table.write_h5ad(tmp_path / "x.h5ad")
    (tmp_path / "table.zarr" / "obs").mkdir(parents=True)
    (tmp_path / "table.zarr" / "zarr.json").write_text("{}")
    for path, why in (
        (tmp_path / "x.h5ad", "is a file.*read_h5ad"),
        (tmp_path / "table.zarr", "store of an AnnData"),
        (store / "images" / "he", r"part of a store.*section\.zarr"),
        (store / "images", r"part of a store.*section\.zarr"),
        (store.parent, r"It has 'section\.zarr'"),
        ("s3://bucket/x.zarr", "not on this machine"),
    ):
        with pytest.raises(ValueError, match=why):
            sthist.pp.tissue(path)
    (tmp_path / "broken.zarr").mkdir()
    (tmp_path / "broken.zarr" / "zarr.json").write_text("{")
    with pytest.raises(ValueError, match=r"broken\.zarr cannot be read as a SpatialData"):
        sthist.pp.tissue(tmp_path / "broken.zarr")


@pytest.fixture
def toy():
    sdata = sthist.datasets.toy(size_um=150)
    sthist.pp.tissue(sdata)
    sthist.pp.tiles(sdata, size_um=32, px=32)
    return sdata


@pytest.mark.parametrize("save", [3, "nowhere/figure.png", "figure.nothing", "."])
@pytest.mark.parametrize(
    "name", [name for name in FUNCTIONS if "save" in inspect.signature(FUNCTIONS[name]).parameters]
)
def test_a_file_is_refused_before_anything_is_drawn(name, save):
    required = [
        each.name
        for each in inspect.signature(FUNCTIONS[name]).parameters.values()
        if each.default is each.empty and each.kind is not each.VAR_KEYWORD
    ]
    with pytest.raises((TypeError, FileNotFoundError, IsADirectoryError, ValueError), match="^save"):
        FUNCTIONS[name](**dict.fromkeys(required, None), save=save)


def test_a_figure_is_saved_as_in_scanpy(toy, tmp_path, monkeypatch):
    """save=True puts it into figures/, called after the plot; False saves nothing."""
    monkeypatch.chdir(tmp_path)
    sthist.pl.tissue(toy, save=False)
    assert not list(tmp_path.iterdir())
    sthist.pl.tissue(toy, save=True)
    assert (tmp_path / "figures" / "tissue.png").stat().st_size > 1000


@pytest.mark.parametrize("name", ["n", "ncols", "squares", "batch_size", "n_tiles", "px"])
def test_counts_are_whole_numbers_from_one_on(name):
    takers = [each for each in VERBS if name in inspect.signature(VERBS[each]).parameters]
    assert takers
    for each in takers:
        for wrong in (0, -1, 2.5, True, "many"):
            with pytest.raises(ValueError, match=f"^{name} is {wrong!r}; it is a whole number"):
                VERBS[each](None, **{name: wrong})


@pytest.mark.parametrize("name", [name for name in VERBS if "device" in inspect.signature(VERBS[name]).parameters])
def test_a_device_that_is_not_there(name):
    with pytest.raises(ValueError, match="device='gpu' is not on this machine, which has"):
        VERBS[name](None, device="gpu")


def test_one_text_is_a_list_of_one(toy):
    table = toy["tiles_table"]
    scores = np.random.default_rng(0).random((table.n_obs, 2))
    table.obsm["frame"] = pd.DataFrame(scores, index=table.obs_names, columns=["T/NK", "B"])
    assert [ax.get_title() for ax in sthist.pl.score_map(toy, "frame", classes="T/NK")] == ["T/NK"]
    assert [ax.get_title() for ax in sthist.pl.virtual_he(toy, panels="nuclear")] == ["nuclear stain"]
    assert [ax.get_title() for ax in sthist.pl.alignment(toy, panels="contours")] == ["contours"]
    for call in (
        lambda: sthist.pl.score_map(toy, "frame", classes=[]),
        lambda: sthist.pl.virtual_he(toy, panels=[]),
        lambda: sthist.pl.alignment(toy, panels=()),
        lambda: sthist.pl.tiles(toy, show=[]),
    ):
        with pytest.raises(ValueError, match="is empty: name what is meant"):
            call()


def test_names_as_numpy_has_them(toy):
    """Messages show them as one writes them."""
    u, table = np.str_("u"), toy["tiles_table"]
    table.obs["label"] = np.where(np.arange(table.n_obs) % 2, "a", "b")
    table.obsm["X_u"] = np.random.default_rng(0).random((table.n_obs, 2)).astype(np.float32)
    table.obsm["frame"] = pd.DataFrame(table.obsm["X_u"], index=table.obs_names, columns=["a", "b"])
    calls = [
        lambda: sthist.pp.tissue(toy, image=u),
        lambda: sthist.pp.tissue(toy, key_added=np.str_("tissue")),
        lambda: sthist.pp.tiles(toy, size_um=32, px=32, sampling=u),
        lambda: sthist.pp.tiles(toy, size_um=32, px=32, regions=u, key_added="y"),
        lambda: sthist.pp.tiles(toy, size_um=32, px=np.int64(0)),
        lambda: sthist.pp.embed(toy, "morphology", regions=u),
        lambda: sthist.pp.embed(toy, np.str_("nothing")),
        lambda: sthist.pp.aggregate(toy, u),
        lambda: sthist.pp.set_scale(toy, u, mpp=np.float64(1)),
        lambda: sthist.pp.align(toy, u, to=u, matrix=np.eye(3)),
        lambda: sthist.pp.label_regions(toy, u, u),
        lambda: sthist.tl.virtual_he(toy, image=[u]),
        lambda: sthist.tl.virtual_he(toy, model=u),
        lambda: sthist.tl.niches(toy, u),
        lambda: sthist.tl.transfer_labels(toy, u),
        lambda: sthist.tl.pool_topk(toy, u, k=1),
        lambda: sthist.tl.train_annotator(toy, u),
        lambda: sthist.tl.train_annotator(toy, "label", classes=list(np.array(["a", "c"]))),
        lambda: sthist.tl.train_annotator(toy, "label", encoder=np.str_("nothing")),
        lambda: sthist.pl.cells(toy, u),
        lambda: sthist.pl.cells(toy, "cell_type", palette={u: u}, basis=None),
        lambda: sthist.pl.score_map(toy, u),
        lambda: sthist.pl.score_map(toy, "frame", classes=np.array(["a", "c"])),
        lambda: sthist.pl.embedding(toy, np.str_("nothing")),
        lambda: sthist.pl.virtual_he(toy, panels=[u]),
        lambda: sthist.pl.virtual_he(toy, genes=np.array(["u"])),
        lambda: sthist.pl.overlay(toy, genes=[u]),
        lambda: sthist.pl.tiles(toy, color=u),
        lambda: sthist.pl.niche_composition(toy["table"], u),
        lambda: sthist.pp.tissue({u: None}),
        lambda: sthist.pp.tissue({u: toy, np.str_("v"): toy}),
        lambda: sthist.pl.roc(np.array(["a", "b"]), np.ones((2, 2)), classes=np.array(["c", "d"])),
        lambda: sthist.pl.confusion(np.array(["a", "b"]), np.array(["a", "b"]), classes=np.array(["c"])),
    ]
    for i, call in enumerate(calls):
        with pytest.raises((KeyError, ValueError, TypeError, FileNotFoundError)) as caught:
            call()
        said = " ".join([str(caught.value), *getattr(caught.value, "__notes__", [])])
        assert "np." not in said, (i, said)
        assert "array(" not in said, (i, said)


def test_names_in_data_as_numpy_has_them(toy):
    """Names of rows are numbers of numpy as a rule, and classes can be its texts."""
    classes = np.array([np.str_("u"), np.str_("v")] * 5, dtype=object)
    frame = pd.DataFrame({np.str_("class"): classes, "ssim": np.arange(10.0), "method": classes})
    twice = toy["tiles"].copy()
    twice.index = [np.int64(7)] * len(twice)
    toy.shapes["twice"] = twice
    table = toy["tiles_table"]
    table.obs["label"] = pd.Series([np.str_("u"), np.str_("v")] * table.n_obs, dtype=object)[: table.n_obs].to_numpy()
    table.obsm["X_a"] = np.ones((table.n_obs, 2), np.float32)
    table.obsm["X_a"][3] = np.nan
    calls = [
        lambda: sthist.pp.aggregate(toy, "twice"),
        lambda: sthist.pl.score_map(toy, "x", table="tiles_table"),
        lambda: sthist.pl.image_metrics(frame, method="w"),
        lambda: sthist.metrics.image.region_tests(frame, "ssim", method="u"),
        lambda: sthist.pl.cells(toy, "label", table="tiles_table", basis=None, palette={"u": np.int64(3)}),
        lambda: sthist.tl.train_annotator(toy, "label", encoder="X_a"),
        lambda: sthist.tl.train_annotator(toy, "label", classes=["u", "w"], encoder="X_a"),
        lambda: sthist.pp.genes(toy["table"], genes=np.array(["nothing", "nothing"])),
        lambda: sthist.pp.match_genes({np.str_("a"): toy["table"], np.str_("b"): ad.AnnData(np.ones((1, 2)))}),
        lambda: sthist.pl.roc(classes, np.ones((10, 2)), classes=["x", "y"]),
    ]
    for i, call in enumerate(calls):
        with pytest.raises((KeyError, ValueError)) as caught:
            call()
        said = " ".join([str(caught.value), *getattr(caught.value, "__notes__", [])])
        assert "np." not in said, (i, said)


def test_verbs_load_little():
    """What a decorator looks at loads no framework."""
    heavy = "{'torch', 'timm', 'lightning', 'matplotlib.pyplot'}"
    code = f"import sys, sthist; sthist.pl.cells; sthist.tl.virtual_he; print(sorted({heavy} & set(sys.modules)))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
