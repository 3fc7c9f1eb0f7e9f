"""Transcriptomics simulated on histology."""

from __future__ import annotations

import numpy as np
import pytest
from hrst import crop

import sthist
from sthist import stains


@pytest.fixture(scope="module")
def he():
    toy = sthist.datasets.toy(size_um=400)
    return sthist.tiles.read_region(toy, "he", (0, 0, 400, 400), mpp=0.5, fill=255)


@pytest.fixture(scope="module")
def simulated(he):
    return sthist.datasets.simulate_hrst(he, mpp=0.5)


def test_the_he_is_left_alone(simulated, he):
    np.testing.assert_array_equal(simulated["he"].to_numpy().transpose(1, 2, 0), he)
    assert sthist.scale.resolve_mpp(simulated, "he") == (0.5, 0.5)
    assert simulated.attrs["sthist"]["simulated"]["real"] == ["he"]


def test_the_stain_is_bright_where_haematoxylin_is(simulated, he):
    amounts = stains.concentrations(he, stains.macenko(he))[..., 0]
    dapi = simulated["dapi"].to_numpy()[0].astype(float)
    assert np.corrcoef(amounts.ravel(), dapi.ravel())[0, 1] > 0.8
    assert np.median(dapi[amounts > np.quantile(amounts, 0.98)]) > 5 * np.median(dapi)


def test_nuclei_are_found_and_typed_by_their_shape(simulated):
    truth = sthist.datasets.toy(size_um=400)
    cells = simulated["table"]
    assert len(cells) == pytest.approx(len(truth["table"]), rel=0.3)
    in_he = np.linalg.inv(sthist.scale.matrix_to(truth["he"]))
    assert np.isfinite(in_he).all()
    aspect = cells.obs.groupby("cell_type", observed=True)["aspect"].mean()
    area = cells.obs.groupby("cell_type", observed=True)["nucleus_area_um2"].mean()
    assert aspect["fibroblast"] > aspect["epithelial"]
    assert area["epithelial"] > area["T cell"]


def test_transcripts_belong_to_cells_and_are_counted(simulated):
    frame = simulated["transcripts"].compute()
    table = simulated["table"]
    genes = ~frame.feature_name.isin(
        [name for name in frame.feature_name.cat.categories if name not in table.var_names]
    )
    good = frame[(frame.qv >= 20) & (frame.cell_id != "UNASSIGNED") & genes]
    assert table.X.sum() == len(good)
    per_cell = good.groupby("cell_id", observed=True).size()
    np.testing.assert_array_equal(np.asarray(table[per_cell.index].X.sum(1)).ravel(), per_cell)
    centres = dict(zip(table.obs_names, table.obsm["spatial"], strict=True))
    apart = good[["x", "y"]].to_numpy() - np.array([centres[cell] for cell in good.cell_id])
    assert np.median(np.hypot(*apart.T)) < 8
    epithelial, t_cells = (table.obs.cell_type == kind for kind in ("epithelial", "T cell"))
    assert table[epithelial, "EPCAM"].X.mean() > 10 * table[t_cells, "EPCAM"].X.mean()


def test_a_seed_and_blocks(he, monkeypatch):
    """The same seed gives the same sample; nuclei do not depend on where blocks end."""
    first, again, other = (sthist.datasets.simulate_hrst(he, 0.5, seed=seed) for seed in (3, 3, 4))
    np.testing.assert_array_equal(first["dapi"].to_numpy(), again["dapi"].to_numpy())
    assert first["transcripts"].compute().equals(again["transcripts"].compute())
    assert not np.array_equal(first["dapi"].to_numpy(), other["dapi"].to_numpy())
    monkeypatch.setattr("sthist._imaging.nuclei.BLOCK_PX", 300)
    blocks = sthist.datasets.simulate_hrst(he, 0.5, seed=3)
    assert len(blocks["table"]) == pytest.approx(len(first["table"]), rel=0.03)


@pytest.mark.parametrize("name", ["C4", "B4"])
def test_on_real_histology(name):
    sdata = sthist.datasets.simulate_hrst(crop(name), mpp=0.688)
    counts = sdata["table"].obs.cell_type.value_counts()
    assert 500 < counts.sum() < 3000
    assert (counts > 10).all()
    sthist.tl.virtual_he(sdata)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"mpp": 2.0}, r"mpp is 2.0; it is more than 0 and at most 1.5"),
        ({"mpp": 0.5, "noise": -1}, r"noise is -1"),
        ({"mpp": 0.5, "transcripts_per_cell": 0}, r"transcripts_per_cell is 0; it is a positive number"),
    ],
)
def test_bad_arguments(he, options, message):
    with pytest.raises(ValueError, match=message):
        sthist.datasets.simulate_hrst(he, **options)


def test_images_that_are_no_he(he):
    with pytest.raises(ValueError, match=r"is no H&E: it has 1 channels"):
        sthist.datasets.simulate_hrst(he[..., 0], 0.5)
    with pytest.raises(ValueError, match=r"shows no tissue"):
        sthist.datasets.simulate_hrst(np.full((300, 300, 3), 250, np.uint8), 0.5)


def test_molecules_may_follow_eosin(he):
    """Where transcripts are drawn by eosin, they are dense where it is; by cell type, they are where nuclei are."""
    from scipy.ndimage import gaussian_filter

    from sthist import stains

    amounts = stains.concentrations(he, stains.macenko(he))
    spread = gaussian_filter(amounts[..., 1], 4)
    found = {}
    for kind in ("cells", "mixed", "eosin"):
        sdata = sthist.datasets.simulate_hrst(he, 0.5, molecules=kind, seed=0)
        points = sdata.points["transcripts"].compute()
        counts, _, _ = np.histogram2d(points.y / 0.5, points.x / 0.5, he.shape[:2], [[0, n] for n in he.shape[:2]])
        found[kind] = np.corrcoef(gaussian_filter(counts, 4).ravel(), spread.ravel())[0, 1]
        assigned = points[(points.cell_id != "UNASSIGNED") & (points.qv >= 20)]
        assert sdata["table"].X.sum() == (~assigned.feature_name.astype(str).str.contains("Control|BLANK|Unass")).sum()
    assert found["cells"] + 0.1 < found["mixed"] < found["eosin"]
    assert found["eosin"] > 0.8
    with pytest.raises(ValueError, match=r"molecules is 'rna'; it is one of \['cells', 'eosin', 'mixed'\]"):
        sthist.datasets.simulate_hrst(he, 0.5, molecules="rna")
