"""Training of a virtual H&E: which tiles, in which part, with which prompt, and what is refused."""

from __future__ import annotations

import json
import logging

import numpy as np
import pandas as pd
import pytest
import spatialdata as sd
from flat import train_virtual_he

import sthist
from sthist import scale
from sthist._imaging.shifts import STAIN_VECTORS
from sthist.models import LossWeights, Pix2Pix, Pix2PixConfig, Translator
from sthist.systems.virtual_he.training_set.choose_tiles import _stain_vectors, choose_tiles
from sthist.systems.virtual_he.training_set.sections import find_sections
from sthist.tiles import Overlay, TileReader, TileSpec

SPEC = TileSpec(size_um=32, px=32)
SMALL = {"spec": SPEC, "n_tiles": 40}
QUICK = {"epochs": 1, "steps_per_epoch": 2, "batch_size": 2, "progress": False, "device": "cpu"}


@pytest.fixture(scope="module")
def _sections():
    # Of two sizes, so that the registrations of their H&E differ.
    return {"a": sthist.datasets.toy(size_um=300), "b": sthist.datasets.toy(size_um=320, seed=1)}


@pytest.fixture
def sdata(_sections):
    return sd.deepcopy(_sections["a"])


@pytest.fixture
def both(_sections):
    return {name: sd.deepcopy(each) for name, each in _sections.items()}


@pytest.fixture
def fits(monkeypatch):
    """Trainings that were asked for, in place of their being done."""
    asked = []

    def fit(self, pairs, **options):
        asked.append({"model": self, "pairs": pairs, **options})
        return self

    monkeypatch.setattr(Translator, "fit", fit)
    return asked


def lay(sdata, n_tiles=40, **columns):
    sthist.pp.tiles(sdata, size_um=SPEC.size_um, px=SPEC.px, sampling="fps", n_tiles=n_tiles)
    for name, values in columns.items():
        sdata["tiles_table"].obs[name] = values
    return sdata


def tiny(**fields):
    """A model that trains in no time."""
    return Pix2Pix(Pix2PixConfig(size_um=32, px=32, width=4, max_width=8, depth=3, **fields))


def move_he(sdata, x_um, y_um):
    shift = np.array([[1, 0, x_um], [0, 1, y_um], [0, 0, 1.0]])
    sthist.pp.align(sdata, "he", to="um", matrix=shift @ scale.matrix_to(sdata["he"]))
    return sdata


def chosen(data, spec=SPEC, n_tiles=40, max_shift_um=3.0):
    return choose_tiles(find_sections(data), spec, n_tiles=n_tiles, max_shift_um=max_shift_um)[0]


def overlap(one, other):
    """Which tiles of one frame share tissue with which of another, by comparing all with all."""
    same = one["sample"].to_numpy()[:, None] == other["sample"].to_numpy()
    places = [frame[["x_um", "y_um"]].to_numpy() for frame in (one, other)]
    apart = np.abs(places[0][:, None] - places[1]).max(-1)
    return same & (apart < SPEC.size_um * (1 - 1e-9))


class TestShifts:
    def test_a_displaced_part_of_the_section_is_dropped(self, sdata):
        """Right of the middle, the pixels of the H&E are moved down by 6 µm."""
        he = sdata["he"]
        pixels, matrix = he.to_numpy(), scale.matrix_to(he)
        moved, half = pixels.copy(), pixels.shape[2] // 2
        moved[:, 12:, half:] = pixels[:, :-12, half:]
        sdata.images["he"] = with_pixels(he, moved)
        frame = chosen(sdata)
        border = (matrix @ [half, pixels.shape[1] / 2, 1])[0]
        # Nuclei are matched in windows of 64 µm around the tiles; the H&E lies askew by 2 degrees.
        left, right = frame["x_um"] < border - 40, frame["x_um"] > border + 40
        assert left.sum() > 5
        assert right.sum() > 5
        assert (frame["part"][left] == "").all()
        assert (frame["shift_um"][left].dropna() < 0.5).all()
        measured = right & frame["shift_um"].notna()
        assert measured.sum() >= 0.8 * right.sum()
        assert set(frame["reason"][measured]) == {"shifted"}
        assert set(frame["part"][measured]) == {"dropped"}
        planted = matrix[:2, :2] @ [0, 12]
        shifts = frame.loc[measured, ["shift_x_um", "shift_y_um"]].to_numpy()
        assert np.abs(np.median(shifts, axis=0) - planted).max() < 0.2

    def test_a_section_that_is_registered_wrongly(self, both, fits):
        move_he(both["b"], 4.0, 3.0)
        with pytest.raises(ValueError, match="of sample 'b' lies off.*of 40 tiles.* shifted.*pp.align") as caught:
            train_virtual_he(both, **SMALL, **QUICK)
        assert "In sample 'b'." in caught.value.__notes__
        assert not fits
        frame = chosen(both["b"], max_shift_um=5.5)
        assert (frame["part"] == "").all()
        assert np.abs(frame[["shift_x_um", "shift_y_um"]] - [4.0, 3.0]).max().max() < 0.3
        model = train_virtual_he(both, max_shift_um=None, **SMALL, **QUICK)
        assert model.tiles["shift_um"].isna().all()
        assert (model.tiles["reason"] != "shifted").all()

    def test_nuclei_that_match_nowhere_near(self, sdata):
        move_he(sdata, 25.0, 0.0)
        with pytest.raises(ValueError, match="none is in register.*no match.*pp.align"):
            chosen(sdata)

    def test_too_few_nuclei_to_tell_stay(self, sdata, caplog):
        """Nuclei are taken out of the stain of a square; its tiles are neither in register nor out of it."""
        stain = sdata["morphology_focus"].to_numpy().copy()
        grey = int(np.quantile(stain, 0.9))
        stain[:, 200:400, 200:400] = grey
        sdata.images["morphology_focus"] = with_pixels(sdata["morphology_focus"], stain)
        with caplog.at_level(logging.INFO, "sthist"):
            frame = chosen(sdata)
        # Whose window of 64 µm lies in the square from 100 to 200 µm.
        inside = (np.abs(frame[["x_um", "y_um"]] - 150) < 18).all(axis=1)
        assert inside.any()
        assert (frame["confidence"][inside] == 0).all()
        assert (frame["part"][inside] == "").all()
        assert f"{int((frame['confidence'] == 0).sum())} of them with too few nuclei" in caplog.text

    def test_coarse_sections_cannot_be_measured(self, caplog):
        sdata = sthist.datasets.toy(size_um=300, mpp=2.0)
        with caplog.at_level(logging.INFO, "sthist"):
            frame = chosen(sdata, TileSpec(64, 32), n_tiles=10)
        assert "nuclei cannot be matched" in caplog.text
        assert frame["shift_um"].isna().all()
        assert (frame["part"] == "").all()

    def test_stains_of_the_literature_where_a_section_has_none(self):
        assert np.array_equal(_stain_vectors(np.full((2, 32, 32, 3), 255, np.uint8)), STAIN_VECTORS)
        one_stain = np.tile(np.linspace(60, 200, 32).astype(np.uint8)[:, None, None], (1, 32, 3))[None]
        assert np.array_equal(_stain_vectors(one_stain), STAIN_VECTORS)


class TestTiles:
    def test_spread_as_pp_tiles_does_and_nothing_is_written(self, sdata):
        before = {kind: sorted(getattr(sdata, kind)) for kind in ("images", "shapes", "tables", "points")}
        attributes = json.dumps(sdata.attrs, default=str)
        frame = chosen(sdata, n_tiles=25)
        assert {kind: sorted(getattr(sdata, kind)) for kind in before} == before
        assert json.dumps(sdata.attrs, default=str) == attributes
        laid = lay(sdata, 25)["tiles_table"]
        assert np.allclose(frame[["x_um", "y_um"]], laid.obsm["spatial"])
        assert list(frame["instance_id"].astype(str)) == list(laid.obs["source_id"])

    def test_laid_tiles_outside_or_blank_are_dropped(self, sdata):
        table = lay(sdata, 20)["tiles_table"]
        table.obsm["spatial"][3] = [5.0, 150.0]
        white = sdata["he"].to_numpy().copy()
        x, y, _ = np.linalg.inv(scale.matrix_to(sdata["he"])) @ [*table.obsm["spatial"][0], 1]
        white[:, int(y) - 50 : int(y) + 50, int(x) - 50 : int(x) + 50] = 255
        sdata.images["he"] = with_pixels(sdata["he"], white)
        frame = chosen(sdata)
        assert len(frame) == 20
        assert list(frame["instance_id"]) == list(table.obs["instance_id"])
        assert frame["reason"][3] == "outside"
        assert frame["reason"][0] == "blank"
        assert (frame["part"][[0, 3]] == "dropped").all()

    def test_default_sizes(self, sdata, fits):
        model = train_virtual_he(sdata, n_tiles=10, **QUICK)
        assert model.config.spec == TileSpec(size_um=128 * 0.5, px=128)  # toy has 0.5 µm/px
        model = train_virtual_he(sdata, "pix2pix", spec=TileSpec(32, 64), n_tiles=20, **QUICK)
        assert model.config.spec == TileSpec(size_um=32, px=64)
        assert isinstance(model, Pix2Pix)
        lay(sdata, 20)
        assert train_virtual_he(sdata, **QUICK).config.spec == SPEC

    def test_style_is_kept_by_the_model(self, sdata, fits):
        model = train_virtual_he(sdata, mode="mono", dot_s=(0.5, 1.5), min_qv=30.0, **SMALL, **QUICK)
        assert model.config.style() == {
            "mode": "mono",
            "palette": "red",
            "min_qv": 30.0,
            "dot_s": 0.5,
            "dot_dpi": 64.0,
        }
        assert model.config.training["data"]["dots_s"] == [0.5, 1.5]
        plain, _ = fits[0]["pairs"].read(np.array([0]))
        row = model.tiles[model.tiles["part"] == "train"].iloc[0]
        overlay = Overlay(sdata, SPEC, seed=0, **model.config.style())
        assert np.array_equal(plain, overlay.read([[row["x_um"], row["y_um"]]]))


class TestSplit:
    def test_tiles_of_different_parts_do_not_overlap(self, both, fits):
        model = train_virtual_he(both, spec=SPEC, n_tiles=100, test=0.2, validation=0.2, **QUICK)
        parts = {name: model.tiles[model.tiles["part"] == name] for name in ("train", "validation", "test")}
        assert all(len(part) > 10 for part in parts.values())
        for one, other in (("train", "test"), ("train", "validation"), ("validation", "test")):
            assert not overlap(parts[one], parts[other]).any()
        dropped = model.tiles[model.tiles["part"] == "dropped"]
        for name in ("test", "validation"):
            near = dropped[dropped["reason"] == f"near {name}"]
            assert len(near) > 0
            assert overlap(near, parts[name]).any(1).all()
        assert set(parts["train"]["sample"]) == set(parts["test"]["sample"]) == {"a", "b"}
        assert model.config.training["data"]["leaks"] == ""
        assert len(fits[0]["pairs"]) == len(parts["train"])
        assert len(fits[0]["validation"]) == len(parts["validation"])

    @pytest.mark.usefixtures("one_thread")
    def test_no_pixel_of_a_test_tile_is_read_in_training(self, both, monkeypatch):
        """Whatever the readers are asked for while the model is fitted lies off the test tiles."""
        asked = []

        def spied(read, sample_of):
            def spy(self, centres, **kwargs):
                if fitting:
                    box = np.asarray(centres, float).reshape(-1, 2)
                    asked.extend((sample_of(self), self.spec.size_um, *centre) for centre in box)
                return read(self, centres, **kwargs)

            return spy

        fitting, fit = [], Translator.fit

        def fit_spied(self, *args, **kwargs):
            fitting.append(True)
            return fit(self, *args, **kwargs)

        names = {id_of(TileReader(each, "he", SPEC)): name for name, each in both.items()}
        monkeypatch.setattr(Translator, "fit", fit_spied)
        monkeypatch.setattr(
            TileReader, "read", spied(TileReader.read, lambda reader: names.get(id_of(reader), "stain"))
        )
        model = train_virtual_he(
            both, tiny(), n_tiles=80, test=0.2, **{**QUICK, "steps_per_epoch": 10, "batch_size": 16}
        )
        tested = model.tiles[model.tiles["part"] == "test"]
        assert len(tested) > 10
        assert len({name for name, *_ in asked} - {"stain"}) == 2
        trained = model.tiles.loc[model.tiles["part"] == "train", ["sample", "x_um", "y_um"]]
        # Each at least once, so that a test tile among them could not hide.
        assert set(trained.itertuples(index=False, name=None)) <= {(name, x, y) for name, _, x, y in asked}
        for name, size, x, y in asked:
            assert size == SPEC.size_um
            near = tested if name == "stain" else tested[tested["sample"] == name]
            if name != "stain":
                assert not ((near[["x_um", "y_um"]] - [x, y]).abs().max(axis=1) < size * (1 - 1e-9)).any()
        # The stain is read at the same places as the H&E, and nowhere else.
        places = {name: {(x, y) for who, _, x, y in asked if (who == "stain") == name} for name in (True, False)}
        assert places[True] == places[False]

    def test_by_sample_patient_and_mapping(self, both, fits):
        model = train_virtual_he(both, split={"a": "train", "b": "test"}, validation=0, **SMALL, **QUICK)
        parts = model.tiles.groupby("sample")["part"].unique()
        assert list(parts["a"]) == ["train"]
        assert list(parts["b"]) == ["test"]
        assert fits[0]["validation"] is None
        model = train_virtual_he(both, split="sample", test=["a"], **SMALL, **QUICK)
        assert set(model.tiles["sample"][model.tiles["part"] == "train"]) == {"b"}
        patients = pd.DataFrame({"sample": ["a", "b"], "patient": ["P1", "P2"]})
        model = train_virtual_he(both, split="patient", test="P2", samples=patients, **SMALL, **QUICK)
        assert set(model.tiles["sample"][model.tiles["part"] == "train"]) == {"a"}

    def test_squares_are_watched_where_a_whole_patient_would_be_half_of_what_trains(self, both, fits):
        three = {**both, "c": sd.deepcopy(both["a"])}
        model = train_virtual_he(three, split="sample", test=["c"], spec=SPEC, n_tiles=80, **QUICK)
        parts = model.tiles.groupby("part")["sample"].unique()
        assert set(parts["test"]) == {"c"}
        assert set(parts["train"]) == {"a", "b"}
        train, watched = (model.tiles[model.tiles["part"] == name] for name in ("train", "validation"))
        assert 0 < len(watched) < len(train) / 3
        assert not overlap(train, watched).any()

    @pytest.mark.parametrize("split", ["sample", "patient"])
    def test_one_sample_cannot_be_held_out_and_that_is_said_before_pixels_are_read(self, sdata, split, monkeypatch):
        monkeypatch.setattr(TileReader, "read", None)
        with pytest.raises(ValueError, match=f"There is one {split}.*split='block'"):
            train_virtual_he(sdata, split=split, test=0.2, **SMALL, **QUICK)

    def test_by_a_column_of_the_tiles(self, sdata, fits, caplog):
        table = lay(sdata, 40)["tiles_table"]
        table.obs["part"] = np.where(table.obsm["spatial"][:, 0] < 150, "train", "test")
        model = train_virtual_he(sdata, split="part", **QUICK)
        kept = model.tiles[model.tiles["part"] != "dropped"]
        assert ((kept["x_um"] < 150) == (kept["part"] == "train")).all()
        n = overlap(kept[kept["part"] == "train"], kept[kept["part"] == "test"]).any(1).sum()
        assert n > 0
        assert (
            f"{n} of {(kept['part'] == 'train').sum()} training tiles overlap" in model.config.training["data"]["leaks"]
        )
        assert "leaks" in caplog.text

    def test_small_sections_are_split_into_smaller_blocks(self, sdata, fits):
        """Four tiles of 64 µm a side are nearly the whole section."""
        options = {**QUICK, "spec": TileSpec(64, 64), "n_tiles": 60}
        large = train_virtual_he(sdata, block_um=4 * 64, **options).tiles["part"]
        assert not (large == "validation").any()  # there is one block
        model = train_virtual_he(sdata, **options)
        train, watched = (model.tiles[model.tiles["part"] == name] for name in ("train", "validation"))
        assert len(train) > len(watched) > 0
        apart = np.abs(train[["x_um", "y_um"]].to_numpy()[:, None] - watched[["x_um", "y_um"]].to_numpy()).max(-1)
        assert apart.min() >= 64 * (1 - 1e-9)

    def test_by_core_of_a_microarray(self, fits):
        sdata = sthist.datasets.toy("tma", size_um=600)
        with pytest.raises(KeyError, match="split='core' is no column"):
            train_virtual_he(sdata, split="core", **SMALL, **QUICK)
        sthist.pp.tma(sdata, overwrite=True)
        model = train_virtual_he(sdata, split="core", test=0.3, **SMALL, **QUICK)
        cores = model.tiles.groupby("part")[["x_um", "y_um"]].apply(
            lambda part: set(map(tuple, (part // 200).to_numpy()))
        )
        assert len(cores["test"]) >= 2
        assert not cores["train"] & cores["test"]

    def test_a_random_split_says_that_it_leaks(self, sdata, fits, caplog):
        model = train_virtual_he(sdata, split="random", test=0.25, **SMALL, **QUICK)
        assert "random split leaks" in caplog.text
        assert model.config.training["data"]["leaks"] == "rows were split at random"
        assert (model.tiles["part"] == "test").sum() == 10

    def test_same_seed_same_tiles(self, sdata, fits):
        options = {**SMALL, **QUICK, "split": "random", "test": 0.2}
        one, same, other = (train_virtual_he(sdata, seed=seed, **options).tiles for seed in (1, 1, 2))
        pd.testing.assert_frame_equal(one, same)
        assert not one["part"].equals(other["part"])


class TestPrompts:
    def texts(self, fits):
        return fits[-1]["model"].config.prompts, set(fits[-1]["pairs"].prompts)

    def test_without_tissue(self, sdata, fits):
        train_virtual_he(sdata, **SMALL, **QUICK)
        assert self.texts(fits) == ({"": "dapi2he"}, {"dapi2he"})

    def test_one_tissue(self, sdata, fits):
        model = train_virtual_he(sdata, tissue="breast", **SMALL, **QUICK)
        said = "This is a breast H&E image"
        assert self.texts(fits) == ({"breast": said}, {said})
        assert set(model.tiles["tissue"]) == {"breast"}

    def test_by_sample_with_a_template(self, both, fits):
        tissue = {"a": "lung", "b": "skin"}
        model = train_virtual_he(both, tissue=tissue, prompts="H&E of {tissue}", **SMALL, **QUICK)
        assert self.texts(fits)[0] == {"lung": "H&E of lung", "skin": "H&E of skin"}
        assert (model.tiles["tissue"] == model.tiles["sample"].map(tissue)).all()
        train = model.tiles[model.tiles["part"] == "train"]
        assert list(fits[0]["pairs"].prompts) == [f"H&E of {name}" for name in train["tissue"]]

    def test_by_column_from_a_json_file(self, sdata, fits, tmp_path):
        lay(sdata, 40, organ=["left", "right"] * 20)
        path = tmp_path / "prompts.json"
        path.write_text(json.dumps({"left": "the left one", "right": "the right one", "other": "x"}))
        model = train_virtual_he(sdata, tissue="organ", prompts=path, **QUICK)
        assert self.texts(fits)[0] == {"left": "the left one", "right": "the right one"}
        train = model.tiles[model.tiles["part"] == "train"]
        assert list(fits[0]["pairs"].prompts) == [f"the {name} one" for name in train["tissue"]]
        assert list(model.tiles["tissue"]) == list(sdata["tiles_table"].obs["organ"])

    def test_files_of_exported_pairs(self, sdata, fits, tmp_path):
        """What was exported for upstream is what is trained on here: its training tiles, with its prompts."""
        lay(sdata, 60)
        sthist.tiles.export_pairs(sdata, tmp_path, prompt="This is a breast H&E image", test_fraction=0.2, dot_s=0.3)
        path = tmp_path / "train_prompts.json"
        model = train_virtual_he(sdata, prompts=path, validation=0, **QUICK)
        assert self.texts(fits)[0] == {"breast": "This is a breast H&E image"}
        exported = {int(name.removesuffix(".png")) for name in json.loads(path.read_text())}
        assert set(model.tiles["instance_id"][model.tiles["part"] == "train"]) == exported
        rest = model.tiles[model.tiles["part"] != "train"]
        assert len(rest) > 0
        assert set(rest["reason"]) == {"no prompt"}

    @pytest.mark.parametrize(
        ("arguments", "error", "said"),
        [
            (
                {"tissue": {"a": "lung", "b": "skin"}, "prompts": "an H&E image"},
                ValueError,
                "'lung' and 'skin' share the prompt",
            ),
            (
                {"tissue": {"a": "lung", "b": "skin"}, "prompts": {"lung": "x", "skn": "y"}},
                KeyError,
                "none for the tissue 'skin'.*'skn'",
            ),
            ({"tissue": {"a": "lung"}}, KeyError, "nothing of 1 samples, such as 'b'"),
            ({"tissue": {"a": "lung", "b": " "}}, ValueError, "tissue of sample 'b' is ' '"),
            ({"tissue": "lung", "prompts": {"lung": "  "}}, ValueError, "prompt of tissue 'lung' is '  '"),
            ({"prompts": {"lung": "x"}}, ValueError, "give tissue="),
            ({"prompts": "H&E of {tissue}"}, ValueError, "give tissue="),
            ({"prompts": {"1.png": "x"}, "tissue": "lung"}, ValueError, "leave tissue= out"),
            ({"prompts": {"1.png": "x"}}, KeyError, "no laid tiles"),
            ({"tissue": "lung", "prompts": "nowhere.json"}, FileNotFoundError, "nowhere.json"),
        ],
    )
    def test_refused(self, both, fits, unread, arguments, error, said):
        with pytest.raises(error, match=said):
            train_virtual_he(both, **arguments, **SMALL, **QUICK)
        assert not fits

    def test_refused_files_and_columns(self, sdata, unread, tmp_path):
        for content, said in (("{", "cannot be read"), ("[1]", "holds list"), ("{}", "may not be empty")):
            (tmp_path / "p.json").write_text(content)
            with pytest.raises(ValueError, match=said):
                train_virtual_he(sdata, tissue="lung", prompts=tmp_path / "p.json", **SMALL, **QUICK)


class TestRefused:
    @pytest.mark.parametrize(
        ("arguments", "error", "said"),
        [
            ({"spec": TileSpec(32, 30)}, ValueError, "30 px does not go through"),
            ({"model": "sd-turbo", "spec": TileSpec(108.8, 500)}, ValueError, "500 px does not go through"),
            ({"model": "pix2pix", "spec": TileSpec(32, 100)}, ValueError, "100 px does not go through"),
            ({"model": "large"}, ValueError, r"'large'.*\['small', 'sd-turbo', 'pix2pix'\]"),
            ({"backbone": "x"}, ValueError, "backbone= is for"),
            ({"training": {"epoch": 3}}, TypeError, "'epoch'.*Did you mean 'epochs'"),
            ({"epochs": 0}, ValueError, "epochs is 0"),
            ({"batch_size": 41}, ValueError, "40 tiles to train on are fewer than a batch of 41"),
            ({"validation": 1.0}, ValueError, "validation is 1.0"),
            ({"test": 1.5}, ValueError, "test is 1.5"),
            ({"n_tiles": 0}, ValueError, "n_tiles is 0"),
            ({"max_shift_um": -1}, ValueError, "max_shift_um is -1"),
            ({"dot_s": []}, ValueError, "dot_s is"),
            ({"dot_s": [0.3, -1]}, ValueError, "dot_s is"),
            ({"dot_s": [0.3, 0.5], "dot_um": 1.0}, ValueError, "dot_um= or as dot_s="),
            ({"resume": True}, ValueError, "resume=True needs folder="),
            ({"he": "nothing"}, KeyError, "nothing"),
            ({"image": "nothing"}, KeyError, "nothing"),
            ({"points": "nothing"}, KeyError, "nothing"),
            ({"regions": "nothing"}, KeyError, "nothing"),
            ({"he": "morphology_focus"}, ValueError, "no H&E: it has 1 channels of uint16"),
            ({"split": "slide"}, KeyError, "no column of the tiles of sample"),
            ({"split": {"z": "train"}}, KeyError, "nothing of 1 samples"),
        ],
    )
    def test_before_a_pixel_is_read(self, sdata, fits, unread, arguments, error, said):
        with pytest.raises(error, match=said):
            train_virtual_he(sdata, **{**SMALL, **QUICK, **arguments})
        assert not fits

    def test_no_histology(self, sdata, unread):
        del sdata.images["he"]
        sdata.attrs["sthist"]["roles"].pop("he", None)
        with pytest.raises(KeyError, match="no H&E image.*he="):
            train_virtual_he(sdata, **SMALL, **QUICK)

    def test_no_transcripts(self, sdata, unread):
        del sdata.points["transcripts"]
        with pytest.raises(KeyError, match='mode="none"'):
            train_virtual_he(sdata, **SMALL, **QUICK)

    @pytest.mark.parametrize("image", ["he", "morphology_focus"])
    def test_not_registered(self, both, unread, image):
        from spatialdata.transformations import remove_transformation

        remove_transformation(both["b"][image], "um")
        with pytest.raises(ValueError, match=f"'{image}' is not registered in 'um'.*pp.align") as caught:
            train_virtual_he(both, **SMALL, **QUICK)
        assert "In sample 'b'." in caught.value.__notes__

    def test_elsewhere(self, sdata, unread):
        move_he(sdata, 5000.0, 0.0)
        with pytest.raises(ValueError, match="do not meet.*pp.align"):
            train_virtual_he(sdata, **SMALL, **QUICK)

    def test_neither_laid_tiles_nor_cells(self, sdata, fits):
        del sdata.tables["table"]
        with pytest.raises(KeyError, match="neither laid tiles nor cells.*pp.tiles"):
            train_virtual_he(sdata, **SMALL, **QUICK)

    def test_tiles_of_other_sizes(self, both, fits):
        lay(both["a"])
        with pytest.raises(ValueError, match="1 of 2 samples have no laid tiles, such as 'b'"):
            train_virtual_he(both, **QUICK)
        with pytest.raises(ValueError, match="32 µm on 32 px are laid, and 64 µm on 32 px"):
            train_virtual_he(both["a"], spec=TileSpec(64, 32), **QUICK)
        sthist.pp.tiles(both["b"], size_um=40, px=32, sampling="fps", n_tiles=10)
        with pytest.raises(ValueError, match="'a' are 32 µm on 32 px, those of 'b' 40 µm"):
            train_virtual_he(both, **QUICK)

    def test_images_much_coarser_than_the_tiles(self, sdata, fits):
        with pytest.raises(
            ValueError, match=r"Pass training=\{\"spec\": .*TileSpec\(32, \d+\)\}, or .*\{\"allow_upsampling\": True\}"
        ):
            train_virtual_he(sdata, **{**SMALL, "spec": TileSpec(32, 128)}, **QUICK)
        train_virtual_he(sdata, allow_upsampling=True, **{**SMALL, "spec": TileSpec(32, 128)}, **QUICK)
        assert fits[0]["pairs"].px == 128

    def test_tiles_larger_than_the_section(self, sdata, fits):
        with pytest.raises(ValueError, match="No tile of 320 µm of sample 'sample'.*Make tiles smaller"):
            train_virtual_he(sdata, spec=TileSpec(320, 64), allow_upsampling=True, **QUICK)

    def test_too_few_tiles_are_left(self, sdata, fits):
        with pytest.raises(ValueError, match="fewer than a batch of 38"):
            train_virtual_he(sdata, test=0.3, **SMALL, **{**QUICK, "batch_size": 38})
        assert not fits


class TestContinued:
    def test_its_own_size_and_style(self, sdata, fits):
        model = tiny(mode="none", dot_s=0.7)
        assert train_virtual_he(sdata, model, n_tiles=20, **QUICK) is model
        inputs, _ = fits[0]["pairs"].read(np.array([0, 1]))
        assert (np.ptp(inputs, axis=-1) == 0).all()  # no dot is drawn

    def test_learns_further_tissues(self, sdata, fits):
        model = tiny(prompts={"lung": "This is a lung H&E image"})
        train_virtual_he(sdata, model, tissue="skin", n_tiles=20, **QUICK)
        assert model.config.prompts == {"lung": "This is a lung H&E image", "skin": "This is a skin H&E image"}

    @pytest.mark.parametrize(
        ("fields", "arguments", "said"),
        [
            ({}, {"spec": TileSpec(32, 64)}, "the model is for"),
            ({}, {"mode": "mono"}, "mode='mono', and the model was trained with 'multi'"),
            ({}, {"dot_s": 0.9}, "dot_s=0.9"),
            ({"prompts": {"lung": "x"}}, {}, "tissue= which one"),
            ({"prompts": {"lung": "x"}}, {"tissue": "lung"}, "knows tissue 'lung' by the prompt 'x'"),
            ({"prompts": {"lung": "x"}}, {"tissue": "skin", "prompts": "x"}, "share the prompt"),
        ],
    )
    def test_refused(self, sdata, fits, unread, fields, arguments, said):
        with pytest.raises(ValueError, match=said):
            train_virtual_he(sdata, tiny(**fields), n_tiles=20, **arguments, **QUICK)
        assert not fits


@pytest.mark.usefixtures("one_thread")
class TestTraining:
    def test_learns(self, sdata, tmp_path):
        """After some steps, tiles that were held out are nearer to the real ones than those of an untrained model."""
        losses = LossWeights(l2=4.0, perceptual=1.0, text=0.0, adversarial=0.0)
        options = {**QUICK, "steps_per_epoch": 30, "batch_size": 4, "losses": losses, "images_every": 0}
        model = train_virtual_he(sdata, folder=tmp_path, spec=SPEC, n_tiles=80, test=0.2, **options)
        tested = model.tiles[model.tiles["part"] == "test"][["x_um", "y_um"]].to_numpy()
        real = TileReader(sdata, "he", SPEC, fill=255).read(tested).astype(float)
        stain = Overlay(sdata, SPEC, seed=0, **model.config.style()).read(tested)
        untrained = type(model)(model.config)
        errors = [((each.predict(stain) - real) ** 2).mean() for each in (model, untrained)]
        assert errors[0] < 0.2 * errors[1]
        flat = ((real - real.mean((0, 1, 2))) ** 2).mean()
        assert errors[0] < flat
        kept = pd.read_csv(tmp_path / "tiles.csv")
        assert list(kept["part"]) == list(model.tiles["part"])
        assert np.allclose(kept["x_um"], model.tiles["x_um"])
        loaded = sthist.models.load(tmp_path)
        assert loaded.config.training["data"]["n_tiles"]["test"] == len(tested)
        assert np.array_equal(loaded.predict(stain), model.predict(stain))

    def test_resumed_where_names_look_like_numbers(self, both, tmp_path):
        named = {"01": both["a"], "02": both["b"]}
        first = train_virtual_he(named, tiny(), folder=tmp_path, spec=SPEC, n_tiles=60, **QUICK)
        again = train_virtual_he(named, tiny(), folder=tmp_path, spec=SPEC, n_tiles=60, resume=True, **QUICK)
        loaded = sthist.models.load(tmp_path)
        for model in (again, loaded):
            assert set(model.tiles["sample"]) == {"01", "02"}
            assert list(model.tiles["instance_id"]) == list(first.tiles["instance_id"])

    def test_resumed_where_tiles_lie_half_way_between_two_nanometres(self, sdata, tmp_path):
        """As around the centres of cells: coordinates that a parser which is off by one bit rounds the other way."""
        import geopandas as gpd
        from spatialdata.models import ShapesModel
        from spatialdata.transformations import Identity

        name = "cell_boundaries"
        cells = sdata[name]
        places = np.random.default_rng(0).integers(20_000, 280_000, (len(cells), 2)) / 1000 + 0.0005
        moved_cells = gpd.GeoDataFrame({"radius": 4.0}, geometry=gpd.points_from_xy(*places.T), index=cells.index)
        del sdata.shapes[name]
        sdata[name] = ShapesModel.parse(moved_cells, transformations={"um": Identity()})
        options = {**QUICK, "spec": SPEC, "n_tiles": 60}
        first = train_virtual_he(sdata, tiny(), folder=tmp_path, **options)
        kept = pd.read_csv(tmp_path / "tiles.csv")  # inexact
        assert (kept["x_um"].round(3) != first.tiles["x_um"].round(3)).any()
        loaded = sthist.models.load(tmp_path)
        assert np.array_equal(loaded.tiles["x_um"], first.tiles["x_um"])
        train_virtual_he(sdata, tiny(), folder=tmp_path, resume=True, **options)

        def moved(by_um):
            tiles = first.tiles.assign(x_um=first.tiles["x_um"] + by_um)
            tiles.to_csv(tmp_path / "tiles.csv", index=False)

        moved(0.9e-3)  # less than a nanometre: of another machine
        train_virtual_he(sdata, tiny(), folder=tmp_path, resume=True, **options)
        moved(2e-3)
        with pytest.raises(ValueError, match="names other tiles"):
            train_virtual_he(sdata, tiny(), folder=tmp_path, resume=True, **options)

    def test_resumed_on_the_same_tiles_only(self, sdata, tmp_path):
        options = {**QUICK, "n_tiles": 40}
        train_virtual_he(sdata, tiny(), folder=tmp_path, **options)
        with pytest.raises(FileExistsError, match="resume=True"):
            train_virtual_he(sdata, tiny(), folder=tmp_path, **options)
        with pytest.raises(ValueError, match="names other tiles"):
            train_virtual_he(sdata, tiny(), folder=tmp_path, resume=True, **options, validation=0.4)
        longer = train_virtual_he(sdata, tiny(), folder=tmp_path, resume=True, **{**options, "epochs": 2})
        at_once = train_virtual_he(sdata, tiny(), **{**options, "epochs": 2})
        for name, value in at_once.state().items():
            assert np.array_equal(value.numpy(), longer.state()[name].numpy())


@pytest.fixture
def one_thread():
    """Tiny layers are slower on several threads, and many times so where other programs run."""
    import torch

    n = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(n)


@pytest.fixture
def unread(monkeypatch):
    """Fails if tiles are read."""

    def read(self, *args, **kwargs):
        pytest.fail("pixels were read")

    for reader in (TileReader, Overlay):
        monkeypatch.setattr(reader, "read", read)


def with_pixels(element, pixels):
    """An image like another, with other pixels."""
    from spatialdata.models import Image2DModel
    from spatialdata.transformations import get_transformation

    return Image2DModel.parse(
        pixels,
        dims=("c", "y", "x"),
        c_coords=list(element.coords["c"].to_numpy()),
        transformations=get_transformation(element, get_all=True),
    )


def id_of(reader):
    """What is the same of all readers of one image."""
    return (reader.image.key, reader.image.fields[0].to_um.tobytes(), reader.dtype.str)
