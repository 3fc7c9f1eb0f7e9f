"""Whatever is wrong with a file is said with its name and the field."""

from __future__ import annotations

import importlib
import importlib.util

import pytest

MODULES = ("malformed_annotations", "malformed_research")


def cases():
    for name in MODULES:
        if importlib.util.find_spec(name) is not None:
            yield from importlib.import_module(name).CASES


CASES = list(cases())


@pytest.mark.parametrize(("make", "error", "match"), [case[1:] for case in CASES], ids=[case[0] for case in CASES])
def test_malformed(tmp_path, make, error, match):
    read = make(tmp_path)
    with pytest.raises(error, match=match):
        read()
