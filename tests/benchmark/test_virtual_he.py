"""Scores of a virtual H&E."""

from __future__ import annotations

import geopandas as gpd
import numpy as np
import pandas as pd
import pytest
import shapely
from flat import train_virtual_he
from spatialdata.models import ShapesModel
from spatialdata.transformations import Identity

import sthist
from sthist._sample.samples import samples_of
from sthist.benchmark import nucleus_preservation
from sthist.benchmark._tiles import find_extractor, shared_tiles
from sthist.metrics import image as scores
from sthist.tiles import TileReader, TileSpec


@pytest.fixture
def scored(toy):
    sthist.tl.virtual_he(toy)
    sthist.pp.tissue(toy)
    sthist.pp.tiles(toy, size_um=64, px=128)
    toy["tiles_table"].obs["half"] = np.where(toy["tiles_table"].obsm["spatial"][:, 0] < 200, "left", "right")
    return toy


def test_scores_are_those_of_the_tiles(scored):
    frame = sthist.benchmark.virtual_he(scored, classes="half")
    virtual = frame[frame.method == "virtual"]
    table = scored["tiles_table"]
    assert set(virtual.tile) <= set(table.obs.instance_id)
    rows = table.obs.set_index("instance_id").loc[virtual.tile]
    assert (virtual["class"].to_numpy() == rows.half.to_numpy()).all()
    centres = table[table.obs.instance_id.isin(virtual.tile)].obsm["spatial"]
    spec = TileSpec(64, 128)
    a, b = (TileReader(scored, key, spec, fill=255).read(centres) for key in ("virtual_he", "he"))
    np.testing.assert_allclose(virtual.ssim, scores.ssim(a, b))
    np.testing.assert_allclose(virtual.mse, scores.mse(a, b))


def test_it_beats_those_that_know_nothing(scored):
    frame = sthist.benchmark.virtual_he(scored)
    means = frame.groupby("method")[["ssim", "psnr", "nucleus_f1"]].mean()
    assert (means.loc["virtual"] > means.loc["shuffled"]).all()
    assert (means.loc["virtual", ["ssim", "nucleus_f1"]] > means.loc["mean colour", ["ssim", "nucleus_f1"]]).all()
    assert means.loc["virtual", "nucleus_f1"] > 0.5
    assert means.loc["shuffled", "nucleus_f1"] < 0.2
    assert frame[frame.method == "virtual"].nucleus_shift_um.median() < 1.0
    summary = scores.summarize(frame, groupby=None)
    assert summary.set_index("method").loc["virtual", "nucleus_f1"] == pytest.approx(means.loc["virtual", "nucleus_f1"])


def test_model_and_nulls_are_scored_on_the_same_tiles(scored):
    """A tile whose real image has no nuclei scores nothing, whoever made the guess."""
    frame = sthist.benchmark.virtual_he(scored)
    counts = frame.groupby("method")["nucleus_f1"].count()
    empty = frame[frame.method == "virtual"].nucleus_f1.isna()
    assert counts["mean colour"] <= counts["virtual"]
    assert frame[frame.method == "mean colour"].nucleus_f1.to_numpy()[empty.to_numpy()].tolist() == pytest.approx(
        [np.nan] * int(empty.sum()), nan_ok=True
    )


def test_the_same_image_is_perfect(scored):
    scored.images["again"] = scored["he"]
    frame = sthist.benchmark.virtual_he(scored, "again", he="he", nulls=False)
    np.testing.assert_allclose(frame.ssim, 1)
    np.testing.assert_allclose(frame.nucleus_f1.dropna(), 1)
    assert (frame.method == "virtual").all()


def test_bad_input(scored):
    with pytest.raises(KeyError, match=r"No image 'virtual'"):
        sthist.benchmark.virtual_he(scored, "virtual")
    with pytest.raises(KeyError, match=r"has no column 'class'; it has"):
        sthist.benchmark.virtual_he(scored, classes="class")
    with pytest.raises(KeyError, match=r"No table 'spots_table'"):
        sthist.benchmark.virtual_he(scored, regions="spots")
    sthist.pp.tiles(scored, size_um=64, px=32, key_added="coarse")
    with pytest.raises(ValueError, match=r"cannot be told apart at 2 µm/px"):
        sthist.benchmark.virtual_he(scored, regions="coarse")
    scored["tiles_table"].obsm["spatial"] = scored["tiles_table"].obsm["spatial"] + 5000
    with pytest.raises(ValueError, match=r"None of the .* tiles lies on both 'virtual_he' and 'he'"):
        sthist.benchmark.virtual_he(scored)


def test_sets_by_the_name_of_an_encoder(scored):
    """The same image is at a distance of 0, the virtual one is not; what was looked through is said."""
    scored.images["again"] = scored["he"]
    frames = {
        key: sthist.benchmark.virtual_he(
            scored, key, he="he", metrics=("fid", "kid"), encoder="morphology", nuclei=False, nulls=False
        )
        for key in ("again", "virtual_he")
    }
    values = {key: {each["metric"]: each["value"] for each in frame.attrs["sets"]} for key, frame in frames.items()}
    assert values["again"]["fid"] == pytest.approx(0, abs=1e-3)
    assert values["virtual_he"]["fid"] > 1
    assert values["virtual_he"]["kid"] > values["again"]["kid"]
    assert frames["again"].attrs["encoder"] == "morphology, standardised by the real tiles"
    assert "nucleus_f1" not in frames["again"]


def test_fid_of_standardised_features(scored):
    """It is that of features with mean 0 and variance 1 over the real tiles, and units do not matter."""

    class Colours(sthist.encoders.Encoder):
        provenance = {}

        def __init__(self, unit):
            self.name, self.unit = f"colours-{unit}", unit

        def embed(self, tiles):
            return tiles.mean((1, 2)) * self.unit

    [(_, shared)] = shared_tiles(samples_of(scored), "tiles", lambda _: ("virtual_he", "he"))
    virtual, real = (tiles.mean((1, 2)) for tiles in shared.read())
    mean, sd = real.mean(0), real.std(0)
    gap = ((virtual - mean) / sd).mean(0)
    one, other = (np.cov((values - mean) / sd, rowvar=False) for values in (virtual, real))
    roots = np.sqrt(np.linalg.eigvals(one @ other).real.clip(0)).sum()
    expected = (gap**2).sum() + np.trace(one) + np.trace(other) - 2 * roots
    for unit in (1.0, 1000.0):
        frame = sthist.benchmark.virtual_he(scored, metrics="fid", encoder=Colours(unit), nuclei=False, nulls=False)
        assert frame.attrs["sets"][0]["value"] == pytest.approx(expected, rel=1e-3)


def test_nuclei_against_what_is_known(scored):
    """The image was made from the stain, and is nearer to it than to the real H&E.

    Nuclei alone score about the same.
    """
    means = {}
    for truth in (True, "stain", "vendor", "nucleus_boundaries"):
        frame = sthist.benchmark.virtual_he(scored, metrics="ssim", nuclei=truth)
        means[truth] = frame.groupby("method").nucleus_f1.mean()
        assert means[truth]["virtual"] > 0.6 > 0.3 > means[truth]["shuffled"]
    assert means["stain"]["virtual"] > means[True]["virtual"]
    assert means["vendor"].equals(means["nucleus_boundaries"])
    alone = nucleus_preservation(scored, reference="stain")  # also on tiles that the real H&E does not reach
    assert alone[alone.method == "virtual"].nucleus_f1.mean() == pytest.approx(means["stain"]["virtual"], abs=0.01)
    with pytest.raises(KeyError, match="'nuclei'"):
        sthist.benchmark.virtual_he(scored, nuclei="nuclei")


def test_seams_are_said(scored):
    frame = sthist.benchmark.virtual_he(scored, metrics="mse", nuclei=False)
    assert set(frame.attrs["seam"]) == {"seam", "interior", "ratio", "stride_px", "repeat"}
    scored.images["again"] = scored["he"]
    frame = sthist.benchmark.virtual_he(scored, "again", he="he", metrics="mse", nuclei=False)
    assert set(frame.attrs["seam"]) == {"reason"}


@pytest.fixture
def several(scored):
    """Two samples whose instance ids repeat; the tiles of the second are fewer."""
    other = sthist.datasets.toy(size_um=300, seed=1)
    sthist.tl.virtual_he(other)
    sthist.pp.tissue(other)
    sthist.pp.tiles(other, size_um=64, px=128)
    other["tiles_table"].obs["half"] = "right"
    return {"a": scored, "b": other}


def test_several_samples(several):
    """Tiles are scored as those of one sample; sets are of all tiles together, through the encoder that is built in."""
    frame = sthist.benchmark.virtual_he(several, classes="half", metrics=("ssim", "fid"))
    assert list(frame.columns[:4]) == ["sample", "method", "tile", "class"]
    virtual = frame[frame.method == "virtual"]
    shared = shared_tiles(samples_of(several), "tiles", lambda _: ("virtual_he", "he"))
    for sample, part in shared:
        mine = virtual[virtual["sample"] == sample.name]
        assert mine.tile.tolist() == part.names.tolist()
        assert mine["class"].tolist() == part.column("half").tolist()
        np.testing.assert_allclose(mine.ssim, scores.ssim(*part.read()))
        alone = sthist.benchmark.virtual_he(sample.data, metrics="ssim", nulls=False)
        np.testing.assert_allclose(mine.nucleus_f1, alone.nucleus_f1)
    assert set(virtual.tile[virtual["sample"] == "a"]) & set(virtual.tile[virtual["sample"] == "b"])
    sets = {(each["method"], each["class"]): each for each in frame.attrs["sets"]}
    assert sets["virtual", None]["n"] == len(virtual)
    assert frame.attrs["encoder"] == "morphology, standardised by the real tiles"
    images = [np.concatenate(each) for each in zip(*(part.read() for _, part in shared), strict=True)]
    extractor, _ = find_extractor("morphology", TileSpec(64, 128), images[1])
    assert sets["virtual", None]["value"] == pytest.approx(scores.fid(*images, encoder=extractor), rel=1e-6)
    summary = scores.summarize(frame, groupby=None).set_index("method")
    assert summary.loc["virtual", "fid"] == sets["virtual", None]["value"]
    assert set(frame.attrs["seam"]) == {"a", "b"}
    assert "ratio" in frame.attrs["seam"]["a"]


def test_samples_that_do_not_go_together(several):
    sthist.pp.tiles(several["b"], size_um=48, px=96, overwrite=True)
    with pytest.raises(ValueError, match=r"Tiles 'tiles' of sample 'b' are .*size_um=48.*those of 'a' .*size_um=64"):
        sthist.benchmark.virtual_he(several)
    del several["b"].images["he"]
    with pytest.raises(KeyError, match="no H&E image") as raised:
        sthist.benchmark.virtual_he(several)
    assert raised.value.__notes__ == ["In sample 'b'."]
    with pytest.raises(TypeError, match="Pass the whole sample, not its table"):
        sthist.benchmark.virtual_he(several["a"]["tiles_table"])


def _tested(knowing, samples, tested):
    """A model whose training has held out some tiles of each sample, by instance id."""
    model, frames = knowing(TileSpec(64, 128)), []
    for name, sdata in samples.items():
        table = sdata["tiles_table"]
        ids = table.obs["instance_id"].to_numpy()
        parts = np.where(np.isin(ids, tested[name]), "test", "train")
        places = dict(zip(("x_um", "y_um"), table.obsm["spatial"].T, strict=True))
        frames.append(pd.DataFrame({"sample": name, "instance_id": ids, **places, "part": parts}))
    model.tiles = pd.concat(frames, ignore_index=True)
    return model


def test_only_tiles_that_a_model_has_not_seen(several, knowing):
    """By sample and tile: what tests in one sample is trained on in the other. Sets are of these tiles, too."""
    frame = sthist.benchmark.virtual_he(several, nulls=False, nuclei=False)
    both = [set(frame.tile[frame["sample"] == name]) for name in "ab"]
    ids = sorted(both[0] & both[1])
    tested = {"a": ids[:4], "b": ids[4:7]}
    model = _tested(knowing, several, tested)
    found = sthist.benchmark.virtual_he(
        several, model=model, classes="half", metrics=("ssim", "kid"), nulls=False, nuclei=False
    )
    assert {name: mine.tolist() for name, mine in found.groupby("sample").tile} == tested
    rows = frame.set_index(["sample", "tile"]).loc[list(zip(found["sample"], found.tile, strict=True))]
    np.testing.assert_allclose(found.ssim, rows.ssim)
    assert {each["n"] for each in found.attrs["sets"] if each["class"] is None} == {7}
    table = several["a"]["tiles_table"].obs.set_index("instance_id")
    assert found["class"][found["sample"] == "a"].tolist() == table.loc[tested["a"], "half"].tolist()
    assert found["class"][found["sample"] == "b"].tolist() == ["right"] * 3
    # A sample that was trained on as a whole is left out.
    model.tiles.loc[model.tiles["sample"] == "a", "part"] = "train"
    left = sthist.benchmark.virtual_he(several, model=model, metrics="ssim", nuclei=False)
    assert set(left["sample"]) == {"b"}
    assert set(left.attrs["seam"]) == {"b"}


def test_models_whose_test_is_not_known(several, knowing):
    model = _tested(knowing, several, {"a": [], "b": []})
    with pytest.raises(ValueError, match=r"has the part 'test': train it with test="):
        sthist.benchmark.virtual_he(several, model=model)
    with pytest.raises(KeyError, match=r"trained on the samples \['a', 'b'\], and on none called 'c': give a mapping"):
        sthist.benchmark.virtual_he({"c": several["a"]}, model=model)
    with pytest.raises(ValueError, match=r"does not know its tiles: .* tiles\.csv"):
        sthist.benchmark.virtual_he(several, model=sthist.models.Pix2Pix())
    ids = several["b"]["tiles_table"].obs["instance_id"]
    model = _tested(knowing, several, {"a": [], "b": ids})
    model.tiles["x_um"] += 1
    with pytest.raises(ValueError, match=r"are not among 'tiles', the first at .* what 'half' says"):
        sthist.benchmark.virtual_he(several, model=model, classes="half")


def test_tiles_that_the_training_has_spread(tmp_path):
    """No tiles are laid: places and size are those of the model, also of one that was read from its folder."""
    samples = {name: sthist.datasets.toy(size_um=200, seed=i) for i, name in enumerate(("1", "2"))}
    tiny = sthist.models.Pix2PixConfig(size_um=32, px=64, width=4, max_width=8, depth=3)
    model = train_virtual_he(
        samples,
        sthist.models.Pix2Pix(tiny),
        folder=tmp_path,
        n_tiles=30,
        test=0.3,
        epochs=1,
        steps_per_epoch=2,
        batch_size=2,
        device="cpu",
        progress=False,
    )
    sthist.tl.virtual_he(samples, model, progress=False)
    frame = sthist.benchmark.virtual_he(samples, model=model, nulls=False)
    tested = model.tiles[model.tiles["part"] == "test"]
    assert sorted(zip(frame["sample"], frame.tile, strict=True)) == sorted(
        zip(tested["sample"], tested["instance_id"], strict=True)
    )
    for name in tested["sample"].unique():
        sdata = samples[name]
        centres = tested.loc[tested["sample"] == name, ["x_um", "y_um"]].to_numpy()
        a, b = (TileReader(sdata, key, TileSpec(32, 64), fill=255).read(centres) for key in ("virtual_he", "he"))
        np.testing.assert_allclose(frame.psnr[frame["sample"] == name], scores.psnr(a, b))
    again = sthist.benchmark.virtual_he(samples, model=sthist.models.load(tmp_path), nulls=False)
    pd.testing.assert_frame_equal(again, frame)
    with pytest.raises(KeyError, match="'half'|No table 'tiles_table'"):
        sthist.benchmark.virtual_he(samples, model=model, classes="half")


@pytest.mark.parametrize("molecules", ["dots", "density"])
def test_a_model_is_scored_without_molecules_and_with_those_of_another_tile(molecules):
    sdata = sthist.datasets.toy(size_um=200)
    training = {"spec": TileSpec(16, 32), "n_tiles": 40, "epochs": 1, "steps_per_epoch": 4, "molecules": molecules}
    split = sthist.models.Split("block", test=0.3, block_um=50)
    model = sthist.tl.train_virtual_he(sdata, split=split, training=training, progress=False, device="cpu")
    sthist.tl.virtual_he(sdata, model, progress=False)
    samples = {"sample": sdata}
    model.tiles["sample"] = "sample"
    frame = sthist.benchmark.virtual_he(samples, model=model)
    methods = list(dict.fromkeys(frame["method"]))
    assert methods == ["virtual", "tile alone", "molecules erased", "molecules swapped", "mean colour", "shuffled"]
    scores = frame.pivot(index="tile", columns="method", values="mse")
    assert (scores["tile alone"] != scores["molecules erased"]).any()
    assert (scores["molecules swapped"] != scores["molecules erased"]).any()
    assert frame["nucleus_f1"].notna().any()
    assert "tile alone" not in set(sthist.benchmark.virtual_he(samples, model=model, nulls=False)["method"])


def test_features_that_hardly_vary_are_not_all_of_fid():
    """Of a virtual tile each is at most six of its standard deviations off, however little the real ones vary."""
    rng = np.random.default_rng(0)
    even = (200 + rng.integers(0, 2, (400, 400, 3))).astype(np.uint8)
    sdata = sthist.io.assemble({"he": even, "other": rng.integers(0, 255, (400, 400, 3)).astype(np.uint8)}, mpp=0.5)
    tissue = gpd.GeoDataFrame(geometry=[shapely.box(0, 0, 200, 200)])
    sdata.shapes["tissue"] = ShapesModel.parse(tissue, transformations={"um": Identity()})
    sthist.pp.tiles(sdata, size_um=32, px=64, max_blank=1)
    frame = sthist.benchmark.virtual_he(sdata, "other", he="he", metrics=["fid"], nuclei=False, nulls=False)
    n_features = len(sthist.encoders.morphology_feature_names())
    (found,) = (row["value"] for row in frame.attrs["sets"])
    # Means are at most six apart, and spreads, of which the real one is at most 1, at most six.
    assert 100 < found <= n_features * (6**2 + 6**2)
