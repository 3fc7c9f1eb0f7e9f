"""The toy section: deterministic, and consistent with itself."""

from __future__ import annotations

import numpy as np
import pytest
import spatialdata as sd

import sthist
from sthist._sample.elements import is_gene


def test_deterministic():
    """The same seed, the same pixels and molecules; another seed, others."""
    a, b, c = (sthist.datasets.toy(size_um=200, seed=seed) for seed in (1, 1, 2))
    np.testing.assert_array_equal(a["he"].to_numpy(), b["he"].to_numpy())
    np.testing.assert_array_equal(a["morphology_focus"].to_numpy(), b["morphology_focus"].to_numpy())
    assert a["transcripts"].compute().equals(b["transcripts"].compute())
    assert not np.array_equal(a["he"].to_numpy(), c["he"].to_numpy())


def test_contents(toy):
    """60 genes, controls, qualities, planes; three kinds of region; types whose markers are their own."""
    frame = toy["transcripts"].compute()
    names = frame.feature_name.cat.categories
    assert is_gene(names).sum() == 60
    assert (~is_gene(names)).sum() == 5
    assert 0.05 < (frame.qv < 20).mean() < 0.2
    assert frame[["x", "y"]].min().min() >= 0
    assert frame[["x", "y"]].max().max() < 400
    assert set(toy["regions"].label) == {"duct", "immune", "stroma"}
    table = toy["table"]
    epithelial, t_cells = (table.obs.cell_type == kind for kind in ("epithelial", "T cell"))
    assert table[epithelial, "EPCAM"].X.mean() > 20 * table[t_cells, "EPCAM"].X.mean()
    assert table[t_cells, "CD3D"].X.mean() > 5 * table[epithelial, "CD3D"].X.mean()


def test_table_counts_the_molecules(toy):
    """Good molecules of genes in cells, each once."""
    frame = toy["transcripts"].compute()
    good = frame[(frame.qv >= 20) & (frame.cell_id != "UNASSIGNED") & is_gene(frame.feature_name.astype(str))]
    assert toy["table"].X.sum() == len(good)
    cell = good.cell_id.value_counts().index[0]
    assert toy["table"][cell].X.sum() == (good.cell_id == cell).sum()


def test_cells_lie_in_their_regions_and_on_the_stain(toy):
    """Epithelium in ducts; nuclei bright in DAPI and blue in the registered H&E."""
    centres = toy["table"].obsm["spatial"]
    import shapely

    duct = toy["regions"].geometry[toy["regions"].label == "duct"].union_all()
    epithelial = (toy["table"].obs.cell_type == "epithelial").to_numpy()
    np.testing.assert_array_equal(shapely.contains_xy(duct, *centres.T), epithelial)
    spec = sthist.tiles.TileSpec.from_mpp(0.5, 1)
    inside = ((centres > 30) & (centres < 370)).all(1)
    dapi = sthist.tiles.TileReader(toy, "morphology_focus", spec).read(centres[inside])[:, 0, 0, 0]
    assert np.median(dapi) > 5 * np.median(toy["morphology_focus"].to_numpy())
    he = sthist.tiles.TileReader(toy, "he", spec).read(centres[inside])[:, 0, 0].astype(int)
    assert (he[:, 2] > he[:, 0]).mean() > 0.9


def test_he_is_turned_and_shifted_by_what_its_matrix_says(toy):
    """Two degrees about the middle, and a shift; a wrong registration would show."""
    matrix = sthist.scale.matrix_to(toy["he"])
    angle = np.rad2deg(np.arctan2(matrix[1, 0], matrix[0, 0]))
    assert angle == pytest.approx(2.0)
    np.testing.assert_allclose((matrix @ [400, 400, 1])[:2], [212, 192])
    box = (40, 40, 360, 360)
    dapi = sthist.tiles.read_region(toy, "morphology_focus", box, 0.5)[..., 0].astype(float)
    he = 255.0 - sthist.tiles.read_region(toy, "he", box, 0.5)[..., 0]
    aligned = np.corrcoef(dapi.ravel(), he.ravel())[0, 1]
    shifted = np.corrcoef(dapi[20:].ravel(), he[:-20].ravel())[0, 1]
    assert aligned > 0.8 > shifted + 0.2


def test_survives_writing(toy, backed):
    """And is equal after reading."""
    again = sd.read_zarr(backed.path)
    np.testing.assert_array_equal(again["he"].to_numpy(), toy["he"].to_numpy())
    assert again.attrs["sthist"] == toy.attrs["sthist"]


@pytest.mark.parametrize(
    ("kwargs", "message"), [({"kind": "slide-seq"}, "kind is 'slide-seq'"), ({"size_um": 20}, "at least 100 µm")]
)
def test_bad_arguments(kwargs, message):
    """Said at once."""
    with pytest.raises(ValueError, match=message):
        sthist.datasets.toy(**kwargs)


class TestKinds:
    def test_visium(self):
        """Spots on a hexagonal lattice over tissue, with the counts and cells under them."""
        import geopandas as gpd

        sdata = sthist.datasets.toy("visium", size_um=600)
        assert set(sdata.images) == {"he"}
        assert not sdata.points
        table, spots = sdata["table"], sdata["spots"]
        assert (spots.radius == 27.5).all()
        centres = table.obsm["spatial"]
        np.testing.assert_allclose(np.c_[spots.geometry.x, spots.geometry.y], centres)
        apart = np.linalg.norm(centres[:, None] - centres[None], axis=-1)
        np.fill_diagonal(apart, np.inf)
        np.testing.assert_allclose(apart.min(1), 100)
        same = sthist.datasets.toy("xenium", size_um=600)
        molecules = same["transcripts"].compute()
        first = np.argmax(table.X.sum(1).A1 if hasattr(table.X.sum(1), "A1") else np.asarray(table.X.sum(1)).ravel())
        near = np.hypot(*(molecules[["x", "y"]].to_numpy() - centres[first]).T) < 27.5
        assert table.X[first].sum() == is_gene(molecules.feature_name[near].astype(str)).sum()
        cells = gpd.GeoSeries(gpd.points_from_xy(*same["table"].obsm["spatial"].T))
        inside = (cells.distance(spots.geometry.iloc[first]) < 27.5).to_numpy()
        assert table.obs.n_cells.iloc[first] == inside.sum()
        numbers = same["table"].obs.cell_type[inside].value_counts()
        np.testing.assert_array_equal(table.obsm["cell_abundance"].iloc[first][numbers.index], numbers)

    def test_cosmx(self):
        """Four fields of view that are the nuclear stain, cut."""
        whole = sthist.datasets.toy("xenium", size_um=300)
        sdata = sthist.datasets.toy("cosmx", size_um=300)
        keys, channel = sthist._sample.elements.find_nuclear(sdata)
        assert (keys, channel) == (("1_image", "2_image", "3_image", "4_image"), "DAPI")
        stitched = sthist.tiles.read_region(sdata, keys, (0, 0, 300, 300), 0.5)
        np.testing.assert_array_equal(
            stitched, sthist.tiles.read_region(whole, "morphology_focus", (0, 0, 300, 300), 0.5)
        )
        sthist.tl.virtual_he(sdata)

    def test_tma(self):
        """Nine places: one is empty, one holds pieces."""
        sdata = sthist.datasets.toy("tma", size_um=900)
        cores = sdata["cores"]
        assert cores.state.value_counts().to_dict() == {"whole": 7, "missing": 1, "broken": 1}
        cells = sdata["cell_boundaries"].geometry.centroid
        counts = cores.geometry.apply(lambda core: cells.within(core).sum())
        assert counts[cores.state == "missing"].tolist() == [0]
        assert (counts[cores.state != "missing"] > 20).all()
        assert counts.sum() == len(cells)
        tissue = sdata["regions"].union_all().intersection(cores.geometry["B1"])
        assert len(tissue.geoms) == 2

    def test_bad_arguments(self):
        """Kinds and sizes that there are not."""
        with pytest.raises(ValueError, match=r"kind is 'merfish'; known are"):
            sthist.datasets.toy("merfish")
        with pytest.raises(ValueError, match=r"kind 'tma' needs at least 600 µm"):
            sthist.datasets.toy("tma", size_um=300)
