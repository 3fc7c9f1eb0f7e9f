"""Whether numbers are counts of molecules, and what they look like where they are not."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

LARGEST_LOG = 25.0
"""No log1p of a count is larger: e^25 are 7e10 molecules."""


class Fault(NamedTuple):
    """What is wrong with numbers that should be counts."""

    what: str  # "NaN or infinite", "negative", "not whole", "of dtype object"
    n: int  # how many are
    first: int  # the place of the first of them
    looks: str  # what numbers that are not whole look like, to go on with: ", and looks like ...", or nothing


def fault_of_counts(values: np.ndarray) -> Fault | None:
    """Why numbers are no counts; None where they are, which is finite, whole, and none negative.

    Examples
    --------
    >>> import numpy as np
    >>> from sthist._sample.counts import fault_of_counts
    >>> fault_of_counts(np.log1p([1.0, 2.0, 0.0]))
    Fault(what='not whole', n=2, first=0, looks=', and looks like logarithms of normalised counts (its largest value is
    1.099)')
    >>> fault_of_counts(np.array([0.0, 3.0]))
    """
    if values.dtype.kind not in "biuf":
        return Fault(f"of dtype {values.dtype}", len(values), 0, "")
    wrong, what = _first_fault(values)
    if wrong is None:
        return None
    return Fault(what, int(wrong.sum()), int(wrong.argmax()), _looks_like(values) if what == "not whole" else "")


def _first_fault(values: np.ndarray) -> tuple[np.ndarray | None, str]:
    """Values that are no counts, and what they are instead."""
    is_float = values.dtype.kind == "f"
    if is_float and not np.isfinite(values).all():
        return ~np.isfinite(values), "NaN or infinite"
    if len(values) and values.min() < 0:
        return values < 0, "negative"
    if is_float and (wrong := values != np.floor(values)).any():
        return wrong, "not whole"
    return None, ""


def _looks_like(values: np.ndarray) -> str:
    top = float(values.max())
    kind = "logarithms of normalised counts" if top <= LARGEST_LOG else "normalised counts"
    return f", and looks like {kind} (its largest value is {top:.4g})"
