"""Samples by name, with patient and batch."""

from __future__ import annotations

import anndata as ad
import numpy as np
import pandas as pd
import pytest

import sthist
from sthist._sample.samples import Sample, patients_of_rows, require_one_spelling, safe_names, samples_of


def adata(**obs):
    return ad.AnnData(np.ones((3, 2), np.float32), obs=pd.DataFrame(obs, index=["a", "b", "c"]))


def test_one_object_is_one_sample(toy):
    (sample,) = samples_of(toy)
    assert (sample.name, sample.patient, sample.batch) == ("sample", None, None)
    assert sample.data is toy


def test_patient_from_table_attrs_or_observations(toy, tmp_path):
    """In this order."""
    toy.attrs.setdefault("sthist", {})["sample"] = {"name": "T", "patient": "P1", "batch": 3}
    data = {"toy": toy, "obs": adata(patient=["P2"] * 3), "mixed": adata(patient=["P3", "P4", "P4"]), "none": adata()}
    samples = {sample.name: sample for sample in samples_of(data)}
    assert [samples[name].patient for name in data] == ["P1", "P2", None, None]
    assert samples["toy"].batch == "3"
    frame = pd.DataFrame({"sample": list(data), "patient": ["Q1", "Q2", "Q3", None]})
    frame.to_csv(tmp_path / "s.csv", index=False)
    for table in (frame, frame.set_index("sample"), tmp_path / "s.csv"):
        given = samples_of(data, table)
        assert [sample.patient for sample in given] == ["Q1", "Q2", "Q3", None]
        assert given[0].batch == "3"


@pytest.mark.parametrize(
    ("data", "error", "message"),
    [
        ({}, ValueError, "There are no samples"),
        ({"": None}, ValueError, "is a text that is not empty, not ''"),
        ({3: None}, ValueError, "is a text that is not empty, not 3"),
        ({"a": 5}, TypeError, "Sample 'a' is a int"),
        (5, TypeError, "mapping of name to such is needed, not int"),
        (
            {"a": adata(patient=["P1"] * 3), "b": adata(patient=["p 01"] * 3)},
            ValueError,
            "'P1' and 'p 01' look like one",
        ),
    ],
)
def test_refused(data, error, message):
    with pytest.raises(error, match=message):
        samples_of(data)


def test_one_object_under_two_names():
    one = adata()
    with pytest.raises(ValueError, match="'a' and 'b' are one and the same object"):
        samples_of({"a": one, "b": one})


@pytest.mark.parametrize(
    ("table", "error", "message"),
    [
        (pd.DataFrame({"sample": ["a", "a"], "patient": ["x", "y"]}), ValueError, "has sample 'a' more than once"),
        (
            pd.DataFrame({"sample": ["b"], "patient": ["x"]}),
            ValueError,
            r"lacks 1 of the samples, such as 'a'; it has \['b'\]",
        ),
        (pd.DataFrame({"sample": ["a"], "donor": ["x"]}), KeyError, "neither a column 'patient' nor 'batch'"),
        ("nowhere.csv", FileNotFoundError, "no table of samples nowhere.csv"),
    ],
)
def test_refused_tables(table, error, message):
    with pytest.raises(error, match=message):
        samples_of({"a": adata()}, table)


@pytest.mark.parametrize("other", ["P-1", "p1", "P001", "P_1 "])
def test_two_spellings(other):
    with pytest.raises(ValueError, match="look like one patient"):
        require_one_spelling(["P1", None, float("nan"), other])


def test_different_patients():
    require_one_spelling(["P1", "P10", "P11", "P100", "Q1", "A"])


def test_patients_of_rows():
    own = adata(patient=["P1", "P2", None])
    assert patients_of_rows(Sample("s", own), own.obs).tolist()[:2] == ["P1", "P2"]
    other = adata()
    assert set(patients_of_rows(Sample("s", other, "P9"), other.obs)) == {"P9"}
    assert set(patients_of_rows(Sample("s", other), other.obs)) == {"s"}


def test_safe_names():
    assert safe_names(["a/b", "a_b", "A_B", "c"]) == {"a/b": "a_b", "a_b": "a_b_2", "A_B": "A_B_3", "c": "c"}


def test_a_verb_runs_on_every_sample():
    """The images are those of the samples one by one; what is returned is by name."""
    data = {name: sthist.datasets.toy(size_um=200, seed=seed) for name, seed in (("a/1", 1), ("b", 2))}
    plans = sthist.tl.virtual_he(data, dry_run=True)
    assert list(plans) == ["a/1", "b"]
    assert sthist.tl.virtual_he(data) is None
    alone = sthist.datasets.toy(size_um=200, seed=2)
    sthist.tl.virtual_he(alone)
    np.testing.assert_array_equal(data["b"]["virtual_he"].to_numpy(), alone["virtual_he"].to_numpy())
    assert "virtual_he" in data["a/1"].images


def test_an_error_names_the_sample(toy):
    broken = sthist.datasets.toy(size_um=200)
    del broken.images["morphology_focus"]
    with pytest.raises(KeyError) as caught:
        sthist.pp.tissue({"good": toy, "broken": broken}, image="morphology_focus")
    assert caught.value.__notes__ == ["In sample 'broken'."]
    assert "tissue" in toy.shapes
