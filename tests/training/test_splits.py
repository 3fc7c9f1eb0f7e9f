"""Splits never have a group on both sides, nor tiles that overlap."""

from __future__ import annotations

import hypothesis.strategies as st
import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings

from sthist.training.split_groups import group_rows
from sthist.training.splits import Units, folds_of, validation_part


def units(n=40, n_samples=4, seed=0, size_um=10.0, **obs):
    rng = np.random.default_rng(seed)
    sample = np.array([f"s{i}" for i in np.sort(rng.integers(n_samples, size=n))])
    patient = np.array([f"P{int(name[1:]) // 2}" for name in sample], object)
    return Units(sample, patient, pd.DataFrame(obs, index=range(n)), rng.uniform(0, 300, (n, 2)), size_um)


@settings(deadline=None, max_examples=60)
@given(
    seed=st.integers(0, 10_000),
    n_groups=st.integers(2, 12),
    folds=st.integers(2, 5),
    n_classes=st.integers(1, 4),
    validation=st.floats(0, 0.6),
)
def test_no_group_is_on_both_sides(seed, n_groups, folds, n_classes, validation):
    rng = np.random.default_rng(seed)
    slides = np.r_[np.arange(n_groups), rng.integers(n_groups, size=40)].astype(str)
    rows = units(len(slides), seed=seed, slide=slides)
    codes = rng.integers(n_classes, size=len(slides))
    grouping = group_rows(rows, "slide")
    if n_groups < folds:
        with pytest.raises(ValueError, match="each fold needs a group"):
            folds_of(grouping, codes, folds=folds, seed=seed)
        return
    pairs = folds_of(grouping, codes, folds=folds, seed=seed)
    assert sorted(np.concatenate([test for _, test in pairs]).tolist()) == list(range(len(slides)))
    for train, test in pairs:
        assert not set(slides[train]) & set(slides[test])
        assert len(train) + len(test) == len(slides)
        kept, watched = validation_part(grouping, codes, train, validation, seed=seed)
        assert not set(slides[kept]) & set(slides[watched])
        assert set(kept) | set(watched) == set(train)
        assert set(codes[kept]) == set(codes[train])


@settings(deadline=None, max_examples=40)
@given(
    seed=st.integers(0, 10_000),
    block=st.floats(20, 150),
    gap=st.sampled_from([None, 25.0]),
    test=st.sampled_from([None, 0.3]),
)
def test_blocks_leave_a_gap(seed, block, gap, test):
    """Squares of one section that are on different sides share no area.

    And only those that are too near are left out.
    """
    rows = units(120, 2, seed)
    codes = np.random.default_rng(seed).integers(2, size=120)
    grouping = group_rows(rows, "block", block_um=block, gap_um=gap)
    least = gap or rows.size_um
    try:
        pairs = folds_of(grouping, codes, folds=3, test=test, seed=seed)
    except ValueError as error:
        assert "leaves no row" in str(error) or "each fold needs" in str(error)  # noqa: PT017
        return
    for train, tested in pairs:
        apart = np.abs(rows.centres[:, None] - rows.centres[tested][None]).max(axis=2)
        apart[rows.sample[:, None] != rows.sample[tested][None]] = np.inf
        nearest = apart.min(axis=1)
        assert (nearest[train] >= least * (1 - 1e-6)).all()
        left_out = np.setdiff1d(np.arange(120), np.r_[train, tested])
        assert (nearest[left_out] < least).all()
        kept, watched = validation_part(grouping, codes, train, 0.2, seed=seed)
        for row in watched:
            same = rows.sample[kept] == rows.sample[row]
            assert (np.abs(rows.centres[kept] - rows.centres[row]).max(axis=1)[same] >= least * (1 - 1e-6)).all()


def test_classes_are_spread_over_folds():
    """Twelve groups of one class each, three classes: each of four folds gets one of each."""
    slides = np.repeat(np.arange(12), 5).astype(str)
    codes = np.repeat(np.arange(12) % 3, 5)
    grouping = group_rows(units(60, slide=slides), "slide")
    for _, test in folds_of(grouping, codes, folds=4):
        assert np.bincount(codes[test]).tolist() == [5, 5, 5]


def test_patients_and_samples():
    rows = units(60)
    for train, test in folds_of(group_rows(rows, "patient"), np.zeros(60, int), folds=2):
        assert not set(rows.patient[train]) & set(rows.patient[test])
    by_sample = group_rows(rows, "sample")
    assert "patients are in several samples" in by_sample.leaks
    assert set(by_sample.groups) == {"s0", "s1", "s2", "s3"}


def test_random_is_labelled_as_leaking(caplog):
    grouping = group_rows(units(), "random")
    assert "at random" in grouping.leaks
    assert "leaks" in caplog.text


def test_a_plane_tests_and_its_neighbours_train():
    planes = np.tile([1, 2, 3], 10)
    grouping = group_rows(units(30, z=planes), "z")
    ((train, test),) = folds_of(grouping, np.zeros(30, int), test=["2"])
    assert set(planes[test]) == {2}
    assert set(planes[train]) == {1, 3}
    with pytest.raises(KeyError, match="names '7'"):
        folds_of(grouping, np.zeros(30, int), test="7")


def test_explicit_parts():
    rows = units(60, split=np.tile(["train", "val", "Test"], 20))
    ((train, test),) = folds_of(group_rows(rows, "split"), np.zeros(60, int))
    assert len(test) == 20
    kept, watched = validation_part(group_rows(rows, "split"), np.zeros(60, int), train, 0.2)
    assert (len(kept), len(watched)) == (20, 20)
    parts = {"s0": "train", "s1": "validation", "s2": "test", "s3": "test"}
    grouping = group_rows(rows, parts)
    ((train, test),) = folds_of(grouping, np.zeros(60, int))
    assert set(rows.sample[test]) == {"s2", "s3"}
    assert grouping.leaks == ""
    with pytest.raises(ValueError, match="Leave one out"):
        folds_of(grouping, np.zeros(60, int), test=0.2)


@pytest.mark.parametrize("fraction", [0.2, 0.5, 0.7])
def test_a_part_of_the_rows(fraction):
    slides = np.repeat(np.arange(20), 5).astype(str)
    ((train, test),) = folds_of(group_rows(units(100, slide=slides), "slide"), np.zeros(100, int), test=fraction)
    assert len(test) / 100 == pytest.approx(fraction, abs=0.06)
    assert not set(slides[train]) & set(slides[test])


@pytest.mark.parametrize(
    ("sizes", "fraction", "expected"),
    [
        ([1000, 2000, 3000], 0.2, 1000),
        ([600, 100, 100, 100, 100], 0.2, 200),
        ([2000] * 6, 0.2, 2000),
        ([2000] * 10, 0.3, 6000),
        ([2000] * 10, 0.4, 8000),
        ([2000] * 2, 0.9, 2000),
        ([50] * 100, 0.04, 200),
        ([50] * 100, 0.01, 50),
        ([50] * 100, 0.97, 4850),
    ],
)
def test_the_part_is_as_near_as_whole_groups_allow(sizes, fraction, expected):
    slides = np.repeat(np.arange(len(sizes)), sizes).astype(str)
    rows = Units(slides, slides.astype(object), pd.DataFrame(index=range(len(slides))))
    ((train, test),) = folds_of(group_rows(rows, "sample"), np.zeros(len(slides), int), test=fraction)
    assert (len(train), len(test)) == (sum(sizes) - expected, expected)


def test_seed_says_which_of_equal_groups_tests():
    slides = np.repeat(np.arange(6), 5).astype(str)
    grouping = group_rows(units(30, slide=slides), "slide")
    tested = {slides[folds_of(grouping, np.zeros(30, int), test=0.2, seed=seed)[0][1][0]] for seed in range(20)}
    assert len(tested) > 2


def test_the_smallest_groups_are_watched_where_they_are_enough():
    slides = np.repeat(np.arange(4), [500, 300, 100, 100]).astype(str)
    grouping = group_rows(units(1000, slide=slides), "slide")
    kept, watched = validation_part(grouping, np.zeros(1000, int), np.arange(1000), 0.1)
    assert (len(kept), len(watched)) == (900, 100)


def test_one_group_cannot_test():
    with pytest.raises(
        ValueError, match="There is one sample, 's0': if it tested, nothing would be left .* split='block'"
    ):
        folds_of(group_rows(units(10, 1), "sample"), np.zeros(10, int), test=0.2)


def test_one_group_has_nothing_to_spare():
    rows = units(10, 1)
    kept, watched = validation_part(group_rows(rows, "sample"), np.zeros(10, int), np.arange(10), 0.2)
    assert (len(kept), len(watched)) == (10, 0)


def without(rows, **changes):
    return Units(
        **({name: getattr(rows, name) for name in ("sample", "patient", "obs", "centres", "size_um")} | changes)
    )


@pytest.mark.parametrize(
    ("change", "split", "kwargs", "error", "message"),
    [
        (
            {"patient": np.array(["P1", "p_01"] * 20, object)},
            "patient",
            {},
            ValueError,
            "'P1' and 'p_01' look like one",
        ),
        (
            {"patient": np.array(["P1", None] * 20, object)},
            "patient",
            {},
            ValueError,
            "20 rows have no patient, first row 1",
        ),
        ({"centres": None}, "block", {}, ValueError, "needs places in µm"),
        ({"size_um": None}, "block", {}, ValueError, "size of the tiles is not known"),
        ({}, "block", {"block_um": -1}, ValueError, "block_um is -1"),
        ({}, "slide", {}, KeyError, "is no column of all samples"),
        ({}, {"s0": "train"}, {}, KeyError, "says nothing of 3 samples, such as 's1'"),
        ({}, dict.fromkeys(["s0", "s1", "s2", "s3"], "trian"), {}, ValueError, "the part 'trian'"),
        ({}, dict.fromkeys(["s0", "s1", "s2", "s3"], "train"), {}, ValueError, "of no row that it is for test"),
    ],
)
def test_refused(change, split, kwargs, error, message):
    with pytest.raises(error, match=message):
        group_rows(without(units(), **change), split, **kwargs)


@pytest.mark.parametrize(("kwargs", "message"), [({"folds": 1}, "from 2 on"), ({"test": 1.5}, "between 0 and 1")])
def test_folds_refused(kwargs, message):
    with pytest.raises(ValueError, match=message):
        folds_of(group_rows(units(), "sample"), np.zeros(40, int), **kwargs)
