"""Every verb that writes, killed before each step that changes the store: it is as before, or complete, and goes on.

All verbs, with and without consolidated metadata, exchange of folders and an earlier result: ``bench/kills.py``.
"""

from __future__ import annotations

import inspect

import killed
import pytest
from writing import VERBS

import sthist
from sthist._store import store


@pytest.mark.parametrize(
    ("name", "overwrite", "exchange", "every"),
    [
        ("pp.tiles", False, True, 5),
        ("pp.align", False, True, 1),
        ("pp.align", True, False, 1),
        ("io.read_annotations", False, False, 2),
        ("io.read_annotations", True, True, 2),
        ("pp.tissue", True, False, 3),
        ("pp.tissue", False, True, 2),
        *(pytest.param(name, False, True, 1, marks=pytest.mark.slow) for name in VERBS),
    ],
)
def test_killed_at_each_step(name, overwrite, exchange, every, tmp_path, monkeypatch):
    """``read_zarr`` gives the elements and attributes of before or the complete result; the same call completes it."""
    monkeypatch.setattr(store.datetime, "datetime", killed.SameTime)
    verb = VERBS[name]
    start = verb.write(tmp_path / "start.zarr")
    if overwrite:
        killed.run(verb, start, False)
    wrong = dict(killed.kills(verb, start, tmp_path, overwrite=overwrite, exchange=exchange, every=every))
    assert len(wrong) * every > 10
    assert {step: what for step, what in wrong.items() if what} == {}


def test_all_verbs_that_take_a_name_are_covered():
    """A new one is covered by standing in the registry."""
    public = {
        f"{room.__name__.rpartition('.')[2]}.{name}"
        for room in (sthist.pp, sthist.tl, sthist.io)
        for name in dir(room)
        if not name.startswith("_") and callable(getattr(room, name))
        if {"key_added", "overwrite"} <= set(inspect.signature(getattr(room, name)).parameters)
    }
    assert public <= set(VERBS)


def test_a_hidden_table_is_found_by_the_next_call(tmp_path, monkeypatch):
    """Where folders cannot be exchanged, a table that is being replaced is hidden when the process is killed."""
    monkeypatch.setattr(store.datetime, "datetime", killed.SameTime)
    verb = VERBS["pp.genes"]
    start = verb.write(tmp_path / "start.zarr")
    killed.run(verb, start, False)
    wrong = dict(killed.kills(verb, start, tmp_path, overwrite=True, exchange=False, every=12))
    assert not any(wrong.values())
