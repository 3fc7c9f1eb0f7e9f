"""What stands where in maps of colocalisation."""

from __future__ import annotations

import anndata as ad
import matplotlib.pyplot as plt
import numpy as np
import pytest

import sthist

TYPES = ["a", "b/c", "d", "e", "f"]
BLOCKS = np.array(
    [
        [0.9, -0.1, 0.5, -0.1, 0.0],
        [-0.1, 0.8, -0.2, 0.4, 0.0],
        [0.5, -0.2, 0.9, -0.2, 0.0],
        [-0.1, 0.4, -0.2, 0.7, 0.0],
        [0.0, 0.0, 0.0, 0.0, 0.6],
    ]
)


@pytest.fixture(autouse=True)
def closed():
    yield
    plt.close("all")


def table(r=BLOCKS, types=TYPES, key="colocalization", **more):
    found = {"types": np.array(types, object), "r": np.asarray(r, float), **more}
    return ad.AnnData(np.zeros((2, 1)), uns={key: found})


def names(ax):
    return [label.get_text() for label in ax.get_yticklabels()]


def shown(ax):
    return np.ma.filled(ax.images[0].get_array(), np.nan)


def test_types_that_are_alike_are_neighbours(tmp_path):
    (ax,) = sthist.pl.colocalization(table(), save=tmp_path / "map.png")
    order = names(ax)
    assert [label.get_text() for label in ax.get_xticklabels()] == order
    assert sorted(order) == sorted(TYPES)
    for pair in ({"a", "d"}, {"b/c", "e"}):
        places = [order.index(name) for name in pair]
        assert abs(places[0] - places[1]) == 1
    rows = [TYPES.index(name) for name in order]
    np.testing.assert_array_equal(shown(ax), BLOCKS[np.ix_(rows, rows)])
    assert ax.images[0].get_clim() == (-0.5, 0.5)  # of the pairs: what a type has with itself does not matter
    assert (tmp_path / "map.png").stat().st_size > 1000


def test_maps_have_one_order_and_one_scale():
    """A type that one map lacks, or that does not vary in it, is grey there, and counts in no comparison."""
    other = 0.5 * BLOCKS[:4, :4]
    other[3] = other[:, 3] = np.nan
    first = table(BLOCKS)
    axes = sthist.pl.colocalization({"truth": first, "model": table(other, TYPES[:4])}, ncols=2)
    assert names(axes[0]) == names(axes[1])
    assert {ax.images[0].get_clim() for ax in axes} == {(-0.5, 0.5)}
    missing = [name in ("e", "f") for name in names(axes[1])]
    np.testing.assert_array_equal(np.isnan(shown(axes[1])).all(axis=1), missing)
    assert axes[0].get_title() == "truth"
    assert axes[1].get_title().startswith("model, r = ")
    assert len(axes[0].figure.axes) == 3  # one bar


def test_several_results_of_one_sample():
    adata = table()
    adata.uns["second"] = {"types": adata.uns["colocalization"]["types"], "r": BLOCKS / 2}
    axes = sthist.pl.colocalization(adata, ["colocalization", "second"], types=["e", "a", "d", "b/c"], vmax=0.3)
    assert [ax.get_title() for ax in axes] == ["colocalization", "second, r = 1.00"]
    for ax in axes:
        assert names(ax) == ["e", "a", "d", "b/c"]
        assert ax.images[0].get_clim() == (-0.3, 0.3)


def test_pairs_that_chance_explains_are_crossed_out():
    q = np.full((5, 5), 0.01)
    q[0, 1] = q[1, 0] = 0.2
    np.fill_diagonal(q, np.nan)
    types = list(TYPES)
    (ax,) = sthist.pl.colocalization(table(q=q), types=types)
    assert sorted(map(tuple, ax.collections[0].get_offsets().tolist())) == [(0, 1), (1, 0)]
    assert ax.get_xlabel() == "× q > 0.05"
    for options in ({"max_q": None}, {"max_q": 0.3}):
        (ax,) = sthist.pl.colocalization(table(q=q), types=types, **options)
        assert not ax.collections
        assert not ax.get_xlabel()


def test_of_what_the_verb_wrote():
    sdata = sthist.datasets.toy(size_um=300)
    sthist.tl.colocalization(sdata, "cell_type", length_um=30)
    (ax,) = sthist.pl.colocalization(sdata)
    assert sorted(names(ax)) == sorted(sdata["table"].obs["cell_type"].unique())


@pytest.mark.parametrize(
    ("call", "error", "message"),
    [
        (lambda: sthist.pl.colocalization(table(), "niches"), KeyError, "uns\\['niches'\\]; it has 'colocalization'"),
        (lambda: sthist.pl.colocalization(table(), types=["z"]), KeyError, "no cell type 'z'; there are 'a'"),
        (lambda: sthist.pl.colocalization(table(), []), ValueError, "key is empty"),
        (lambda: sthist.pl.colocalization(table(), vmax=-1), ValueError, "vmax is -1"),
        (lambda: sthist.pl.colocalization(table(np.full((5, 5), np.nan))), ValueError, "no type varies"),
        (lambda: sthist.pl.colocalization(table(), axes=[]), ValueError, "1 panels .* need as many axes; 0 are given"),
        (
            lambda: sthist.pl.colocalization(sthist.datasets.toy(size_um=200)),
            KeyError,
            "No table has a result uns\\['colocalization'\\]",
        ),
    ],
)
def test_what_cannot_be_drawn(call, error, message):
    with pytest.raises(error, match=message):
        call()
