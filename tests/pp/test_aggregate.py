"""pp.aggregate against loops over molecules and regions."""

from __future__ import annotations

import logging
from collections import Counter

import dask.dataframe as dd
import geopandas as gpd
import numpy as np
import pandas as pd
import pytest
import realdata
import shapely
import spatialdata as sd
import vendor
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from shapely import affinity
from spatialdata.models import PointsModel, ShapesModel
from spatialdata.transformations import Affine, Identity, set_transformation

import sthist
from sthist.tiles._regions.locate import LEAST_BATCH, RegionIndex, SparseCounts, SquareGrid

GENES = [f"gene_{i}" for i in range(5)]
MANY = settings(deadline=None, max_examples=10, suppress_health_check=[HealthCheck.function_scoped_fixture])
TURNED = np.array([[0.8, -0.6, 30.0], [0.6, 0.8, -20.0], [0, 0, 1]]) @ np.diag([0.5, 0.25, 1])


def molecules(rng, n, low=0.0, high=100.0, genes=GENES):
    return pd.DataFrame(
        {
            "x": rng.uniform(low, high, n),
            "y": rng.uniform(low, high, n),
            "gene": pd.Categorical(rng.choice(genes, n), genes),
        }
    )


def affine(matrix):
    return Affine(np.asarray(matrix, float), ("x", "y"), ("x", "y"))


def section(frame, shapes=None, *, points_to_um=None, shapes_to_um=None, partitions=1, radius=None):
    """A sample of molecules and one kind of regions."""
    at = {"um": Identity() if points_to_um is None else affine(points_to_um)}
    points = dd.from_pandas(frame, npartitions=partitions) if partitions > 1 else frame
    coordinates = {"x": "x", "y": "y"}
    elements = {"points": {"molecules": PointsModel.parse(points, coordinates, feature_key="gene", transformations=at)}}
    if shapes is not None:
        table = shapes if isinstance(shapes, gpd.GeoDataFrame) else gpd.GeoDataFrame(geometry=list(shapes))
        if radius is not None:
            table["radius"] = radius
        at = {"um": Identity() if shapes_to_um is None else affine(shapes_to_um)}
        elements["shapes"] = {"areas": ShapesModel.parse(table, transformations=at)}
    return sd.SpatialData(**elements)


def counted(sdata, key="areas_counts"):
    """The table as a dense frame."""
    return pd.DataFrame(sdata[key].X.toarray(), index=sdata[key].obs["instance_id"], columns=sdata[key].var_names)


def brute_force(frame, inside):
    """Loop over regions: (regions, molecules) bool to counts by gene."""
    return np.array([[int((row & (frame["gene"] == gene)).sum()) for gene in GENES] for row in inside])


def contained(shapes, x, y):
    return np.array([shapely.contains_xy(shape, x, y) for shape in shapes])


# Regions of every kind ----------------------------------------------------------------------------------------------


@MANY
@given(seed=st.integers(0, 2**32 - 1), n=st.integers(1, 40), side=st.sampled_from([1, 4, 30, 200]))
def test_overlapping_squares_with_molecules_on_their_borders(seed, n, side):
    """Whole numbers: many molecules lie on borders and corners; [low, high) decides."""
    rng = np.random.default_rng(seed)
    frame = molecules(rng, 300)
    frame[["x", "y"]] = rng.integers(-5, 60, (300, 2))
    x0, y0 = rng.integers(-20, 60, (2, n))
    width, height = rng.integers(1, side + 1, (2, n))
    sdata = section(frame, shapely.box(x0, y0, x0 + width, y0 + height), partitions=2)
    inside = np.array(
        [
            [a <= x < a + w and b <= y < b + h for x, y in frame[["x", "y"]].to_numpy()]
            for a, b, w, h in zip(x0, y0, width, height, strict=True)
        ]
    )
    if not inside.any():
        with pytest.raises(ValueError, match="None of the points of 'molecules'"):
            sthist.pp.aggregate(sdata, "areas")
        return
    sthist.pp.aggregate(sdata, "areas")
    np.testing.assert_array_equal(counted(sdata), brute_force(frame, inside))
    made = sdata["areas_counts"].uns["sthist"]["areas_counts"]
    assert (made["n_counted"], made["n_outside"]) == (inside.any(0).sum(), (~inside.any(0)).sum())


@MANY
@given(seed=st.integers(0, 2**32 - 1), radius=st.sampled_from([1, 5, 13, 40]))
def test_circles_hold_their_border(seed, radius):
    """On whole numbers with Pythagorean radii, molecules lie on the circles exactly."""
    rng = np.random.default_rng(seed)
    frame = molecules(rng, 300)
    frame[["x", "y"]] = rng.integers(0, 50, (300, 2))
    centres = np.r_[rng.integers(0, 50, (20, 2)), frame.loc[:2, ["x", "y"]]]  # some molecule is in the middle
    sdata = section(frame, shapely.points(centres), radius=float(radius))
    sthist.pp.aggregate(sdata, "areas")
    squared = ((frame[["x", "y"]].to_numpy()[None] - centres[:, None]) ** 2).sum(-1)
    np.testing.assert_array_equal(counted(sdata), brute_force(frame, squared <= radius**2))


def ragged(rng):
    """A star with many corners, a hole, and maybe a second part."""
    n = rng.integers(3, 200)
    angle = np.sort(rng.uniform(0, 2 * np.pi, n))
    reach = rng.uniform(5, 30, n)
    star = shapely.Polygon(np.c_[reach * np.cos(angle), reach * np.sin(angle)]).buffer(0)
    star = affinity.translate(star.difference(shapely.Point(2, 1).buffer(4)), *rng.uniform(20, 80, 2))
    return star.union(shapely.box(*rng.uniform(0, 10, 2), *rng.uniform(12, 20, 2))) if rng.uniform() < 0.5 else star


@MANY
@given(seed=st.integers(0, 2**32 - 1), moved=st.booleans())
def test_polygons_with_holes_and_parts_under_rotations(seed, moved):
    rng = np.random.default_rng(seed)
    frame = molecules(rng, 400)
    shapes = [shape for shape in (ragged(rng) for _ in range(8)) if not shape.is_empty]
    there = TURNED if moved else np.eye(3)
    back = np.linalg.inv(TURNED) if moved else np.eye(3)
    shapes.append(shapely.Polygon([(0, 0), (99, 0), (99, 99), (0, 99)]))
    xy = frame[["x", "y"]].to_numpy()
    inside = contained(shapes, *xy.T)
    # The same plane, the molecules measured in other units, turned.
    frame[["x", "y"]] = xy @ back[:2, :2].T + back[:2, 2]
    sdata = section(frame, shapes, points_to_um=there, partitions=3)
    sthist.pp.aggregate(sdata, "areas")
    np.testing.assert_array_equal(counted(sdata), brute_force(frame, inside))


@pytest.mark.parametrize("kind", ["circles", "squares", "polygons"])
def test_regions_that_are_turned_and_stretched(kind):
    """Squares become parallelograms and circles ellipses.

    Whether a molecule is inside is asked in the regions' own plane.
    """
    rng = np.random.default_rng(0)
    own = rng.uniform(0, 100, (2000, 2))
    centres = rng.uniform(0, 100, (30, 2))
    radius = None
    if kind == "circles":
        shapes, radius = shapely.points(centres), rng.uniform(5, 20, 30)
        inside = ((own[None] - centres[:, None]) ** 2).sum(-1) <= radius[:, None] ** 2
    else:
        half = rng.uniform(3, 20, (2, 30))
        squares = shapely.box(*(centres.T - half), *(centres.T + half))
        shapes = (
            squares if kind == "squares" else shapely.difference(squares, shapely.buffer(shapely.points(centres), 3))
        )
        inside = contained(shapes, *own.T)
    frame = molecules(rng, 2000)
    frame[["x", "y"]] = own @ TURNED[:2, :2].T + TURNED[:2, 2]
    sdata = section(frame, shapes, shapes_to_um=TURNED, radius=radius)
    sthist.pp.aggregate(sdata, "areas")
    np.testing.assert_array_equal(counted(sdata), brute_force(frame, inside))
    expected = np.array([[shape.centroid.x, shape.centroid.y] for shape in shapes]) @ TURNED[:2, :2].T + TURNED[:2, 2]
    np.testing.assert_allclose(sdata["areas_counts"].obsm["spatial"], expected)


@MANY
@given(seed=st.integers(0, 2**32 - 1), matrix=st.sampled_from([np.eye(3), TURNED]))
def test_each_molecule_of_a_tiled_plane_counts_once(seed, matrix):
    """Also where it lies on an edge or a corner of the cells of a Voronoi diagram, bit by bit."""
    rng = np.random.default_rng(seed)
    cells = shapely.get_parts(
        shapely.voronoi_polygons(
            shapely.multipoints(rng.uniform(0, 100, (40, 2))), extend_to=shapely.box(-90, -90, 190, 190)
        )
    )
    corners = shapely.get_coordinates(cells)
    corners = corners[((corners > 0) & (corners < 100)).all(1)]
    edges = shapely.get_coordinates(
        [cell.exterior.interpolate(d, normalized=True) for cell in cells for d in rng.uniform(0, 1, 5)]
    )
    edges = edges[((edges > 0) & (edges < 100)).all(1)]
    places = np.r_[corners, edges, rng.uniform(0, 100, (50, 2))]
    frame = molecules(rng, len(places))
    frame[["x", "y"]] = places
    sdata = section(frame, cells, points_to_um=matrix, shapes_to_um=matrix)
    sthist.pp.aggregate(sdata, "areas")
    assert counted(sdata).sum().to_dict() == frame["gene"].value_counts().to_dict() | {}
    assert sdata["areas_counts"].uns["sthist"]["areas_counts"]["n_counted"] == len(frame)


def test_small_regions_beside_one_that_covers_them_all():
    rng = np.random.default_rng(0)
    frame = molecules(rng, 5000, 0, 1000)
    x, y = rng.uniform(0, 1000, (2, 300))
    shapes = [shapely.box(0, 0, 1000, 1000), *shapely.buffer(shapely.points(x, y), 0.5)]
    sdata = section(frame, shapes)
    sthist.pp.aggregate(sdata, "areas")
    np.testing.assert_array_equal(counted(sdata), brute_force(frame, contained(shapes, frame.x, frame.y)))


@pytest.mark.slow
def test_very_many_regions():
    """50,000 squares side by side: those of a grid."""
    rng = np.random.default_rng(0)
    frame = molecules(rng, 50_000, 0, 100)
    rows, columns = np.divmod(np.arange(250 * 200), 200)
    sdata = section(frame, shapely.box(columns * 0.5, rows * 0.5, columns * 0.5 + 0.5, rows * 0.5 + 0.5))
    sthist.pp.aggregate(sdata, "areas")
    table = sdata["areas_counts"]
    square = (frame.y // 0.5 * 200 + frame.x // 0.5).astype(int)
    np.testing.assert_array_equal(table.obs["n_points"], np.bincount(square, minlength=len(table)))
    genes = frame["gene"].cat.codes
    np.testing.assert_array_equal(np.asarray(table.X[square, genes]).ravel() > 0, True)
    assert table.X.sum() == len(frame)
    assert table.X.has_sorted_indices


def test_degenerate_polygons_hold_nothing():
    frame = pd.DataFrame({"x": [1.0, 2.0, 2.5], "y": [1.0, 2.0, 1.0], "gene": pd.Categorical(GENES[:3])})
    flat = [
        shapely.Polygon([(0, 1), (5, 1), (2, 1)]),
        shapely.Polygon([(2, 0), (2, 5), (2, 2)]),
        shapely.box(0, 0, 3, 3),
    ]
    sdata = section(frame, flat)
    sthist.pp.aggregate(sdata, "areas")
    np.testing.assert_array_equal(sdata["areas_counts"].obs["n_points"], [0, 0, 3])


# Grids ---------------------------------------------------------------------------------------------------------------


@MANY
@given(
    seed=st.integers(0, 2**32 - 1), side=st.sampled_from([0.1, 0.3, 1.0, 7.0, 8.0, 1000.0]), on_borders=st.booleans()
)
def test_a_grid_counts_each_molecule_once_in_the_square_that_holds_it(seed, side, on_borders):
    rng = np.random.default_rng(seed)
    frame = molecules(rng, 300, -50 * side, 50 * side)
    if on_borders:
        frame[["x", "y"]] = rng.integers(-50, 50, (300, 2)) * side
    sdata = section(frame, partitions=3)
    sthist.pp.aggregate(sdata, bin_um=side, key_added="grid")
    bounds = sdata["grid_squares"].bounds.to_numpy()
    x, y = frame.x.to_numpy(), frame.y.to_numpy()
    inside = (bounds[:, :1] <= x) & (x < bounds[:, 2:3]) & (bounds[:, 1:2] <= y) & (y < bounds[:, 3:])
    np.testing.assert_array_equal(inside.sum(0), 1)
    np.testing.assert_array_equal(counted(sdata, "grid"), brute_force(frame, inside))
    table = sdata["grid"]
    assert (table.obs["n_points"] > 0).all()
    places = table.obs[["array_col", "array_row"]].to_numpy()
    np.testing.assert_allclose(table.obsm["spatial"], (places + 0.5) * side)
    order = np.lexsort((places[:, 0], places[:, 1]))
    np.testing.assert_array_equal(order, np.arange(len(order)))


def test_grid_and_the_same_squares_as_shapes_agree(toy):
    sthist.pp.aggregate(toy, bin_um=8)
    sthist.pp.aggregate(toy, "grid_8um_squares")
    assert (toy["grid_8um"].X != toy["grid_8um_squares_counts"].X).nnz == 0
    assert list(toy["grid_8um"].var_names) == list(toy["grid_8um_squares_counts"].var_names)


def test_a_grid_of_twice_the_side_holds_four_squares_each(toy):
    for side in (8, 16):
        sthist.pp.aggregate(toy, bin_um=side)
    fine, coarse = toy["grid_8um"], toy["grid_16um"]
    key = pd.MultiIndex.from_frame(fine.obs[["array_row", "array_col"]] // 2)
    summed = pd.DataFrame(fine.X.toarray(), index=key).groupby(level=[0, 1]).sum()
    there = pd.MultiIndex.from_frame(coarse.obs[["array_row", "array_col"]])
    np.testing.assert_array_equal(summed.loc[there], coarse.X.toarray())


def test_a_grid_within_an_area_has_empty_squares_too():
    frame = pd.DataFrame({"x": [0.5, 3.5, 9.5], "y": [0.5, 3.5, 9.5], "gene": pd.Categorical(["A", "A", "B"])})
    sdata = section(frame, [shapely.box(0, 0, 4, 4)])
    for within in ((0, 0, 4, 4), shapely.box(0, 0, 4, 4), "areas"):
        sthist.pp.aggregate(sdata, bin_um=1, within=within, overwrite=True)
        table = sdata["grid_1um"]
        assert table.n_obs == 16
        np.testing.assert_array_equal(np.flatnonzero(table.obs["n_points"]), [0, 15])
        made = table.uns["sthist"]["grid_1um"]
        assert (made["n_counted"], made["n_outside"]) == (2, 1)
    with pytest.raises(ValueError, match=r"no centre of a square of 100 µm lies in within"):
        sthist.pp.aggregate(sdata, bin_um=100, within="areas")
    with pytest.raises(ValueError, match=r"None of the points of 'molecules' \(x 0 to 10, .*x 20 to 30, y 20 to 30 µm"):
        sthist.pp.aggregate(sdata, bin_um=1, within=(20, 20, 30, 30), key_added="far")


def test_squares_beyond_number_are_refused():
    frame = pd.DataFrame({"x": [0.0, 9e6], "y": [0.0, 0.0], "gene": pd.Categorical(["A", "A"])})
    with pytest.raises(ValueError, match="Is that the right unit"):
        sthist.pp.aggregate(section(frame), bin_um=8)
    sthist.pp.aggregate(section(frame), bin_um=80)


# What counts ---------------------------------------------------------------------------------------------------------


def test_controls_and_low_quality_are_left_out_and_said(caplog):
    frame = pd.DataFrame(
        {
            "x": np.full(8, 5.0),
            "y": np.r_[np.full(7, 5.0), 50.0],
            "gene": pd.Categorical(["A", "A", "B", "NegControlProbe_1", "blank-3", None, "B", "A"]),
            "qv": np.array([20, 19.9, 40, 40, 3, 40, np.nan, 30], np.float32),
        }
    )
    sdata = section(frame, [shapely.box(0, 0, 10, 10), shapely.box(20, 20, 30, 30)])
    with caplog.at_level(logging.INFO, "sthist"):
        sthist.pp.aggregate(sdata, "areas")
    assert (
        "2 of 8 points of 'molecules' are summed into 2 regions; 1 lie in no region, 3 are controls, 2 of low"
        in caplog.text
    )
    assert counted(sdata).to_numpy().tolist() == [[1, 1], [0, 0]]
    made = sdata["areas_counts"].uns["sthist"]["areas_counts"]
    facts = {name: made[name] for name in ("n_all", "n_controls", "n_low_quality", "n_counted", "n_outside")}
    assert facts == {"n_all": 8, "n_controls": 3, "n_low_quality": 2, "n_counted": 2, "n_outside": 1}
    sthist.pp.aggregate(sdata, "areas", min_qv=0, controls=(), key_added="all")
    assert counted(sdata, "all").iloc[0].to_dict() == {"A": 2, "B": 1, "NegControlProbe_1": 1, "blank-3": 1}
    sthist.pp.aggregate(sdata, "areas", controls=["b"], key_added="own")
    assert list(sdata["own"].var_names) == ["A", "NegControlProbe_1"]


@pytest.mark.parametrize("key", ["cell_boundaries", "nucleus_boundaries", "regions"])
def test_the_toy_as_geopandas_joins_it(toy, key):
    sthist.pp.aggregate(toy, key)
    table = toy[f"{key}_counts"]
    frame = toy["transcripts"].compute()
    frame = frame[(frame["qv"] >= 20) & frame["feature_name"].isin(toy["table"].var_names)]
    places = gpd.GeoDataFrame(frame[["feature_name"]], geometry=gpd.points_from_xy(frame.x, frame.y))
    joined = toy[key][["geometry"]].reset_index(names="name").sjoin(places, predicate="contains")
    expected = pd.crosstab(joined["name"], joined["feature_name"].astype(str))
    expected = expected.reindex(index=toy[key].index, columns=sorted(toy["table"].var_names), fill_value=0)
    np.testing.assert_array_equal(counted(toy, f"{key}_counts"), expected)
    assert list(table.var_names) == list(expected.columns)
    assert list(table.obs["instance_id"]) == list(toy[key].index)
    centres = toy[key].geometry.centroid
    np.testing.assert_allclose(table.obsm["spatial"], np.c_[centres.x, centres.y])


def test_real_xenium_cells_have_the_counts_that_the_instrument_gave_them():
    sdata = realdata.xenium_ileum_tiny()
    sthist.pp.aggregate(sdata, "cell_boundaries")
    given = sdata["table"]
    ours = counted(sdata, "cell_boundaries_counts").loc[sthist._sample.elements.cell_shapes(sdata, "table")[1]]
    ours = ours.reindex(columns=given.var_names, fill_value=0).to_numpy()
    # It assigns in three dimensions, and writes outlines of few corners.
    assert (ours == given.X.toarray()).mean() > 0.99
    assert ours.sum() == pytest.approx(given.X.sum(), rel=0.05)


def test_partitions_whose_categories_differ():
    """As parquet files of their own have them; a column of text too."""
    frame = molecules(np.random.default_rng(0), 400)
    frame["gene"] = frame["gene"].cat.rename_categories({f"gene_{i}": f"gene_{9 - i}" for i in range(5)})
    inside = contained([shapely.box(0, 0, 50, 50)], frame.x, frame.y)[0]
    expected = frame["gene"][inside].astype(str).value_counts().sort_index().to_dict()
    parts = [
        frame[i : i + 100].assign(gene=lambda part: part["gene"].cat.remove_unused_categories())
        for i in range(0, 400, 100)
    ]
    parts[1] = parts[1].assign(
        gene=parts[1]["gene"].cat.set_categories(["gene_5", "gene_9", "gene_7", "gene_8", "gene_6"])
    )

    sdata = section(frame, [shapely.box(0, 0, 50, 50)])
    points = dd.from_map(lambda i: parts[i], range(4), meta=parts[0].iloc[:0].astype({"gene": object}))
    text = frame.astype({"gene": object})
    for element in (points, dd.from_pandas(text, npartitions=2)):
        sdata.points["molecules"] = PointsModel.parse(element, {"x": "x", "y": "y"}, transformations={"um": Identity()})
        sdata["molecules"].attrs["spatialdata_attrs"] = {"feature_key": "gene"}
        sthist.pp.aggregate(sdata, "areas", overwrite=True)
        assert counted(sdata).iloc[0].to_dict() == expected
        assert list(sdata["areas_counts"].var_names) == sorted(expected)


@MANY
@given(seed=st.integers(0, 2**32 - 1), batch=st.integers(1, 500))
def test_a_tally_is_a_counter(seed, batch):
    """However often it merges."""
    rng = np.random.default_rng(seed)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("sthist.tiles._regions.locate.LEAST_BATCH", batch)
        tally, counter = SparseCounts(7), Counter()
        for _ in range(12):
            rows, columns = rng.integers(0, rng.integers(1, 50), 60), rng.integers(0, 7, 60)
            tally.add(rows, columns)
            counter.update(zip(rows.tolist(), columns.tolist(), strict=True))
        rows = tally.rows()
        assert rows.tolist() == sorted({row for row, _ in counter})
        order = rng.permutation(7).astype(np.int32)
        matrix = tally.pop_csr(rows, order).tocoo()
    assert matrix.dtype == np.int32
    pairs = zip(rows[matrix.row].tolist(), np.argsort(order)[matrix.col].tolist(), strict=True)
    assert dict(zip(pairs, matrix.data.tolist(), strict=True)) == counter


def test_memory_goes_with_what_is_different():
    """A hundred million additions of a thousand pairs would take 800 MB."""
    tally = SparseCounts(10)
    rows, columns = (axis.ravel() for axis in np.meshgrid(np.arange(100), np.arange(10)))
    for _ in range(20):
        tally.add(np.tile(rows, 500), np.tile(columns, 500))
    held = len(tally._keys) + sum(map(len, tally._waiting))
    assert held <= 1000 + LEAST_BATCH + 500_000
    matrix = tally.pop_csr(tally.rows(), np.arange(10, dtype=np.int32))
    assert (matrix.toarray() == 20 * 500).all()


def test_locating_sees_the_batches_alike(monkeypatch):
    """A partition of more molecules than a batch."""
    frame = molecules(np.random.default_rng(0), 1000)
    sdata = section(frame, [shapely.box(10, 10, 60, 60), shapely.Point(50, 50).buffer(20)])
    sthist.pp.aggregate(sdata, "areas")
    monkeypatch.setattr("sthist.pp._region_sums.BATCH", 17)
    sthist.pp.aggregate(sdata, "areas", key_added="again")
    assert (sdata["areas_counts"].X != sdata["again"].X).nnz == 0


def test_locators_take_no_points_and_points_far_away():
    index = RegionIndex(gpd.GeoDataFrame(geometry=[shapely.box(0, 0, 1, 1)]), np.eye(3))
    for finder in (index, SquareGrid(1.0), SquareGrid(1.0, shapely.box(0, 0, 3, 3))):
        assert [len(part) for part in finder.locate(np.empty(0), np.empty(0))] == [0, 0]
    far = np.array([1e300, -1e300, 5.0, 0.5])
    assert [part.tolist() for part in index.locate(far, np.full(4, 0.5))] == [[0], [3]]


# Cells and bins ------------------------------------------------------------------------------------------------------


def test_cells_count_where_their_centroids_lie(toy):
    sthist.pp.aggregate(toy, "regions", of="cells")
    table, cells = toy["regions_counts"], toy["table"]
    centres = toy["cell_boundaries"].geometry.centroid
    inside = contained(toy["regions"].geometry, centres.x, centres.y)
    np.testing.assert_array_equal(table.X.toarray(), inside.astype(int) @ cells.X.toarray().astype(int))
    np.testing.assert_array_equal(table.obs["n_cells"], inside.sum(1))
    assert list(table.var_names) == list(cells.var_names)
    assert table.X.dtype == np.int32
    made = table.uns["sthist"]["regions_counts"]
    assert (made["of"], made["n_all"]) == ("table", cells.n_obs)
    sthist.pp.genes(toy)  # normalised: the raw counts count
    sthist.pp.aggregate(toy, bin_um=100, of="table")
    assert toy["grid_100um"].X.sum() == cells.X.sum() if "counts" not in cells.layers else cells.layers["counts"].sum()
    assert (toy["grid_100um"].obs["n_cells"] > 0).all()


def test_cells_without_raw_counts_are_refused(toy):
    toy["table"].X = toy["table"].X.multiply(0.3).tocsr()
    with pytest.raises(ValueError, match="Table 'table' has no raw counts"):
        sthist.pp.aggregate(toy, "regions", of="cells")


def test_cells_of_one_name_are_refused(toy):
    names = toy["cell_boundaries"].index.to_numpy().copy()
    toy["cell_boundaries"].index = np.r_[names[:-1], names[:1]]
    toy["table"].obs["instance_id"] = np.r_[names[:-1], names[:1]]
    with pytest.raises(ValueError, match="Shapes 'cell_boundaries' have 1 names more than once"):
        sthist.pp.aggregate(toy, bin_um=8, of="cells")


def test_sums_beyond_int32():
    toy = sthist.datasets.toy(size_um=200)
    toy["table"].X = (toy["table"].X > 0).astype(np.int64) * 2_000_000_000
    sthist.pp.aggregate(toy, bin_um=1000, of="cells")
    assert toy["grid_1000um"].X.dtype == np.int64
    assert toy["grid_1000um"].X.sum() == toy["table"].X.sum() > 2**31


def test_bins_of_8_in_squares_of_16_um(tmp_path):
    sdata = sthist.io.visium_hd(vendor.visium_hd_folder(tmp_path / "outs"), bin_size=None)
    coarse = sdata["square_016um"].uns["spatialdata_attrs"]["region"]
    sthist.pp.aggregate(sdata, coarse, of="bins", key_added="sums")
    table = sdata["sums"]
    assert table.uns["sthist"]["sums"]["of"] == "square_008um"
    # The miniature's bin i has i + 1 of the first gene and 2 of the second; a square of 16 µm holds four bins.
    rows, columns = np.divmod(np.arange(16), 4)
    first = np.array(
        [
            [(8 * (2 * r + a) + 2 * c + b) + 1 for a in (0, 1) for b in (0, 1)]
            for r, c in zip(rows, columns, strict=True)
        ]
    )
    placed = {
        tuple(place): i
        for i, place in enumerate(np.round(table.obsm["spatial"] - table.obsm["spatial"].min(0)).astype(int))
    }
    order = [placed[16 * c, 16 * r] for r, c in zip(rows, columns, strict=True)]
    np.testing.assert_array_equal(table.X.toarray()[order], np.c_[first.sum(1), np.full(16, 8)])
    np.testing.assert_array_equal(table.obs["n_bins"], 4)
    assert table.X.sum() == sdata["square_008um"].X.sum()
    sthist.pp.aggregate(sdata, bin_um=1000, of="square_016um")
    assert sdata["grid_1000um"].obs["n_bins"].sum() == 16
    with pytest.raises(KeyError, match="no points"):
        sthist.pp.aggregate(sdata, coarse, key_added="none")


def test_spots_of_visium_count_as_bins():
    sdata = sthist.datasets.toy("visium", size_um=600)
    sthist.pp.aggregate(sdata, "regions", of="bins")
    centres = sdata["spots"].geometry
    inside = contained(sdata["regions"].geometry, centres.x, centres.y)
    np.testing.assert_array_equal(sdata["regions_counts"].obs["n_bins"], inside.sum(1))


# What is written -----------------------------------------------------------------------------------------------------


def test_written_and_read_back(backed):
    sthist.pp.aggregate(backed, "cell_boundaries")
    sthist.pp.aggregate(backed, bin_um=50)
    sthist.pp.aggregate(backed, bin_um=50, min_qv=0, overwrite=True)
    again = sd.read_zarr(backed.path)
    memory = sd.read_zarr(backed.path)
    memory.path = None
    sthist.pp.aggregate(memory, "cell_boundaries", overwrite=True)
    sthist.pp.aggregate(memory, bin_um=50, min_qv=0, overwrite=True)
    for key in ("cell_boundaries_counts", "grid_50um"):
        read, made = again[key], memory[key]
        assert (read.X != made.X).nnz == 0
        assert read.X.dtype == made.X.dtype == np.int32
        pd.testing.assert_frame_equal(read.obs, made.obs)
        np.testing.assert_array_equal(read.obsm["spatial"], made.obsm["spatial"])
        facts = [dict(table.uns["sthist"][key]) for table in (read, made)]
        assert facts[0] | {"date": ""} == facts[1] | {"date": ""}
        region = read.uns["spatialdata_attrs"]["region"]
        assert len(sd.match_table_to_element(again, element_name=region, table_name=key)) == read.n_obs
    assert again["grid_50um_squares"].geometry.equals(memory["grid_50um_squares"].geometry)
    assert again.attrs["sthist"]["results"]["grid_50um_squares"]["bin_um"] == 50


def test_empty_regions_and_unseen_genes_are_kept(tmp_path):
    frame = pd.DataFrame({"x": [5.0], "y": [5.0], "gene": pd.Categorical(["B"], ["A", "B", "C"])})
    names = ["core/1", "core 2", "ö"]
    shapes = gpd.GeoDataFrame(geometry=list(shapely.box([0, 20, 40], 0, [10, 30, 50], 10)), index=names)
    sdata = section(frame, shapes)
    sdata.write(tmp_path / "s.zarr")
    sdata = sd.read_zarr(tmp_path / "s.zarr")
    sthist.pp.aggregate(sdata, "areas")
    table = sd.read_zarr(tmp_path / "s.zarr")["areas_counts"]
    assert list(table.obs["instance_id"]) == list(table.obs_names) == names
    assert table.obs["n_points"].tolist() == [1, 0, 0]
    assert "B" in table.var_names
    np.testing.assert_array_equal(table.obsm["spatial"], [[5, 5], [25, 5], [45, 5]])


def test_a_key_wins_over_a_role(toy):
    toy.points["cells"] = toy["transcripts"]
    sthist.pp.aggregate(toy, bin_um=100, of="cells")
    assert "n_points" in toy["grid_100um"].obs
    assert toy["grid_100um"].uns["sthist"]["grid_100um"]["of"] == "cells"


# What is refused -----------------------------------------------------------------------------------------------------


def test_missing_elements_are_named(toy):
    with pytest.raises(KeyError, match="No shape 'cell_boundary' in this object.*Did you mean 'cell_boundaries'"):
        sthist.pp.aggregate(toy, "cell_boundary")
    with pytest.raises(KeyError, match="of='transcript': neither points nor a table.*Did you mean 'transcripts'"):
        sthist.pp.aggregate(toy, "regions", of="transcript")
    with pytest.raises(KeyError, match="of='bins': found no such table"):
        sthist.pp.aggregate(toy, "regions", of="bins")


def test_arguments_that_exclude_each_other(toy):
    for regions, side in ((None, None), ("regions", 8)):
        with pytest.raises(ValueError, match="give one of them"):
            sthist.pp.aggregate(toy, regions, bin_um=side)
    for side in (0, -1, np.nan, np.inf):
        with pytest.raises(ValueError, match="a positive number"):
            sthist.pp.aggregate(toy, bin_um=side)
    with pytest.raises(ValueError, match="within= chooses squares of a grid"):
        sthist.pp.aggregate(toy, "regions", within="regions")
    sthist.pp.aggregate(toy, "regions")
    with pytest.raises(ValueError, match="overwrite=True"):
        sthist.pp.aggregate(toy, "regions")
    with pytest.raises(ValueError, match="is taken by shapes"):
        sthist.pp.aggregate(toy, "regions", key_added="cell_boundaries")


def test_elements_that_are_not_in_um(toy):
    set_transformation(toy["regions"], {"global": Identity()}, set_all=True)
    with pytest.raises(ValueError, match="Shapes 'regions' are not registered in 'um'.*pp.set_scale"):
        sthist.pp.aggregate(toy, "regions")
    set_transformation(toy["cell_boundaries"], {"global": Identity()}, set_all=True)
    with pytest.raises(ValueError, match="Shapes 'cell_boundaries' are not registered in 'um'"):
        sthist.pp.aggregate(toy, bin_um=8, of="cells")
    set_transformation(toy["transcripts"], {"global": Identity()}, set_all=True)
    with pytest.raises(ValueError, match="Points 'transcripts' are not registered in 'um'"):
        sthist.pp.aggregate(toy, bin_um=8)


def test_a_gene_column_that_is_not_there():
    sdata = section(molecules(np.random.default_rng(0), 10))
    sdata["molecules"].attrs["spatialdata_attrs"]["feature_key"] = "target"
    with pytest.raises(ValueError, match=r"Points 'molecules' name no gene column \('target' is not there\)"):
        sthist.pp.aggregate(sdata, bin_um=8)


def test_coordinates_that_are_no_numbers():
    frame = molecules(np.random.default_rng(0), 100)
    frame.loc[[3, 60, 61], "x"] = np.nan
    frame.loc[7, "y"] = np.inf
    with pytest.raises(
        ValueError, match="4 of the transcripts 0 to 99 of points 'molecules' have coordinates that are no finite"
    ):
        sthist.pp.aggregate(section(frame), bin_um=8)


def test_nothing_passes_or_nothing_is_there():
    frame = molecules(np.random.default_rng(0), 50).assign(qv=10.0)
    sdata = section(frame, [shapely.box(200, 0, 300, 10)])
    with pytest.raises(
        ValueError, match="None of the 50 transcripts in points 'molecules' counts: 0 are .*, 50 have qv < 20"
    ):
        sthist.pp.aggregate(sdata, "areas")
    with pytest.raises(ValueError, match=r"lies in the regions 'areas' \(x 200 to 300, y 0 to 10 µm\)"):
        sthist.pp.aggregate(sdata, "areas", min_qv=10)


def test_regions_that_a_table_cannot_have():
    frame = molecules(np.random.default_rng(0), 10)
    twice = gpd.GeoDataFrame(geometry=[shapely.box(0, 0, 9, 9)] * 3, index=["a", "b", "a"])
    with pytest.raises(ValueError, match="Shapes 'areas' have 1 names more than once, such as 'a'"):
        sthist.pp.aggregate(section(frame, twice), "areas")
    sdata = section(frame, gpd.GeoDataFrame(geometry=[shapely.box(0, 0, 9, 9)] * 2, index=["a", "b"]))
    sdata["areas"].loc["b", "geometry"] = shapely.Polygon()
    with pytest.raises(ValueError, match="1 of 2 shapes 'areas' have no geometry, such as 'b'"):
        sthist.pp.aggregate(sdata, "areas")
