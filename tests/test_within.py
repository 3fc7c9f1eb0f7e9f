"""Arguments that several verbs share: ``within``, ``seed``, ``progress``, ``device`` and ``overwrite``."""

from __future__ import annotations

import numpy as np
import pytest
import shapely

import sthist

BOX = (100.0, 100.0, 300.0, 260.0)


class Mean(sthist.encoders.Encoder):
    """Mean colour, and what it stands for in words."""

    name, dim, logit_scale, provenance = "mean", 3, 10.0, {}

    def embed(self, tiles):
        return tiles.mean((1, 2), dtype=np.float32) / 255

    def embed_text(self, texts):
        return np.array([["red" in text, "green" in text, "blue" in text] for text in texts], np.float32)


@pytest.fixture
def sdata():
    sdata = sthist.datasets.toy(size_um=400)
    sthist.pp.tissue(sdata)
    return sdata


def inside(places, box=BOX):
    """By a loop over rows."""
    return np.array([box[0] <= x <= box[2] and box[1] <= y <= box[3] for x, y in places])


@pytest.fixture
def tiled(sdata):
    sthist.pp.tiles(sdata, size_um=32, px=32)
    return sdata


class TestWithin:
    def test_tissue_is_outlined_in_a_part(self, sdata):
        whole = shapely.union_all(sdata["tissue"].geometry)
        sthist.pp.tissue(sdata, within=BOX, key_added="part", min_area_um2=0)
        part = shapely.union_all(sdata["part"].geometry)
        box = shapely.box(*BOX)
        assert part.area > 0
        assert box.buffer(8).contains(part)
        assert part.symmetric_difference(whole & box).area < 0.1 * part.area

    def test_tiles_are_those_of_the_whole_that_lie_in_it(self, tiled):
        sthist.pp.tiles(tiled, size_um=32, px=32, within=shapely.box(*BOX), key_added="part")
        every = tiled["tiles_table"].obsm["spatial"]
        np.testing.assert_allclose(tiled["part_table"].obsm["spatial"], every[inside(every)])

    @pytest.mark.parametrize("sampling", ["fps", "regions"])
    def test_tiles_around_regions(self, sdata, sampling):
        kwargs = {"size_um": 32, "px": 32, "sampling": sampling, "regions": "cell_boundaries", "n_tiles": 9}
        sthist.pp.tiles(sdata, within=BOX, progress=False, **kwargs)
        table = sdata["tiles_table"]
        assert inside(table.obsm["spatial"]).all()
        cells = sdata["cell_boundaries"].geometry.centroid
        found = np.c_[cells.x, cells.y][cells.index.astype(str).get_indexer(table.obs["source_id"])]
        np.testing.assert_allclose(found, table.obsm["spatial"])
        if sampling == "regions":
            assert len(table) == inside(np.c_[cells.x, cells.y]).sum()

    def test_only_what_lies_in_it_is_embedded(self, tiled):
        sthist.pp.embed(tiled, Mean(), key_added="X_whole", progress=False)
        sthist.pp.embed(tiled, Mean(), key_added="X_part", within=BOX, progress=False)
        table = tiled["tiles_table"]
        rows = inside(table.obsm["spatial"])
        np.testing.assert_array_equal(table.obsm["X_part"][rows], table.obsm["X_whole"][rows])
        assert np.isnan(table.obsm["X_part"][~rows]).all()

    def test_embeddings_elsewhere_stay(self, tiled):
        sthist.pp.embed(tiled, Mean(), key_added="X_mean", within=BOX, progress=False)
        with pytest.raises(ValueError, match="overwrite=True"):
            sthist.pp.embed(tiled, Mean(), key_added="X_mean", within=(0, 0, 400, 100), progress=False)
        sthist.pp.embed(tiled, Mean(), key_added="X_mean", within=(0, 0, 400, 100), overwrite=True, progress=False)
        table = tiled["tiles_table"]
        places = table.obsm["spatial"]
        known = np.isfinite(table.obsm["X_mean"]).all(1)
        np.testing.assert_array_equal(known, inside(places) | inside(places, (0, 0, 400, 100)))

    def test_only_what_lies_in_it_is_annotated(self, tiled):
        sthist.pp.embed(tiled, Mean(), key_added="X_mean", progress=False)
        table = tiled["tiles_table"]
        rows = inside(table.obsm["spatial"])
        prompts = {"warm": ["red"], "cold": ["blue"]}
        sthist.tl.annotate(tiled, prompts, encoder=Mean(), key_added="whole")
        sthist.tl.annotate(tiled, prompts, encoder=Mean(), key_added="part", within=BOX)
        table = tiled["tiles_table"]
        assert table.obs["part"].notna().tolist() == rows.tolist()
        assert (table.obs["part"][rows] == table.obs["whole"][rows]).all()
        scores = table.obsm["part_score"].to_numpy()
        np.testing.assert_array_equal(scores[rows], table.obsm["whole_score"].to_numpy()[rows])
        assert np.isnan(scores[~rows]).all()

    def test_calls_elsewhere_stay(self, tiled):
        sthist.pp.embed(tiled, Mean(), key_added="X_mean", progress=False)
        sthist.tl.annotate(tiled, {"warm": ["red"], "cold": ["blue"]}, encoder=Mean())
        rows = inside(tiled["tiles_table"].obsm["spatial"])
        before = tiled["tiles_table"].obs["annotation"].astype(str).to_numpy()
        swapped = {"warm": ["blue"], "cold": ["red"]}
        sthist.tl.annotate(tiled, swapped, encoder=Mean(), within=BOX, overwrite=True)
        after = tiled["tiles_table"].obs["annotation"].astype(str).to_numpy()
        assert (after[~rows] == before[~rows]).all()
        assert (after[rows] != before[rows]).all()
        with pytest.raises(ValueError, match="would put .* beside them"):
            sthist.tl.annotate(tiled, {"a": ["red"], "b": ["blue"]}, encoder=Mean(), within=BOX, overwrite=True)

    def test_what_holds_nothing_is_refused(self, tiled):
        nowhere = (5000, 5000, 5100, 5100)
        with pytest.raises(ValueError, match="none of the .* centres"):
            sthist.pp.tiles(tiled, size_um=32, px=32, within=nowhere, key_added="none")
        with pytest.raises(ValueError, match="none of the .* centres"):
            sthist.pp.embed(tiled, Mean(), within=nowhere)
        with pytest.raises(ValueError, match="Found no tissue"):
            sthist.pp.tissue(tiled, within=nowhere, key_added="none")
        table = tiled["tiles_table"].copy()
        table.obsm["X_mean"] = np.ones((len(table), 3), np.float32)
        with pytest.raises(ValueError, match="names shapes of a SpatialData"):
            sthist.tl.annotate(table, {"a": ["red"], "b": ["blue"]}, encoder=Mean(), within="tissue")


class TestSeed:
    def test_of_tiles(self, sdata):
        centres = []
        for name, seed in (("a", 1), ("b", 1), ("c", 2), ("d", None)):
            sthist.pp.tiles(
                sdata, size_um=32, px=32, sampling="fps", n_tiles=5, seed=seed, key_added=name, progress=False
            )
            centres.append(sdata[f"{name}_table"].obsm["spatial"])
        np.testing.assert_array_equal(centres[0], centres[1])
        assert not np.array_equal(centres[0], centres[2])
        assert not np.array_equal(centres[0], centres[3])

    def test_of_virtual_he(self, sdata, monkeypatch):
        drawn = []
        import sthist.systems.virtual_he.models.beer_lambert as module

        real = module.sample_tiles
        monkeypatch.setattr(module, "sample_tiles", lambda *args: drawn.append(args[-1]) or real(*args))
        sthist.tl.virtual_he(sdata, seed=3, progress=False)
        sthist.tl.virtual_he(sdata, key_added="again", progress=False)
        assert drawn == [3, sthist.settings.seed]


def test_a_bar_is_shown_only_where_it_is_wanted(sdata, capsys):
    for show in (False, True):
        sthist.pp.tiles(sdata, size_um=32, px=32, sampling="fps", n_tiles=5, key_added=f"shown_{show}", progress=show)
        assert ("tiles" in capsys.readouterr().out) == show


def test_an_encoder_runs_where_it_is_told_to(tiled, monkeypatch):
    where = []

    def get(name, *, device=None):
        where.append((name, device))
        return Mean()

    monkeypatch.setattr(sthist.encoders, "get", get)
    prompts = {"warm": ["red"], "cold": ["blue"]}
    sthist.tl.heatmap(tiled, prompts, encoder="mean", device="cpu", within=BOX, progress=False)
    tiled["tiles_table"].obsm["X_mean"] = np.ones((len(tiled["tiles_table"]), 3), np.float32)
    sthist.tl.annotate(tiled, prompts, encoder="mean", embedding="X_mean", device="cpu")
    assert where == [("mean", "cpu")] * 2


def test_an_alignment_is_replaced_only_when_told_to(sdata):
    shift = np.array([[1, 0, 24.0], [0, 1, -16.0], [0, 0, 1]])
    sthist.pp.align(sdata, "he", to="morphology_focus", matrix=shift)
    before = sthist.scale.matrix_to(sdata["he"])
    with pytest.raises(ValueError, match="'he' has been aligned already. Pass overwrite=True"):
        sthist.pp.align(sdata, "he", to="morphology_focus", matrix=np.eye(3))
    np.testing.assert_array_equal(sthist.scale.matrix_to(sdata["he"]), before)
    sthist.pp.align(sdata, "he", to="morphology_focus", matrix=np.eye(3), overwrite=True)
    assert not np.array_equal(sthist.scale.matrix_to(sdata["he"]), before)


def test_images_of_a_stain_share_a_plane(sdata):
    with pytest.raises(ValueError, match="names 2 planes"):
        sthist.tl.virtual_he(sdata, image={"morphology_focus": 0, "he": 1}, key_added="x")
