"""How alike two maps of which cell types lie near each other are."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from sthist._messages import listed

if TYPE_CHECKING:
    import pandas as pd

LEAST_PARTNERS = 3
"""Of a row: a correlation of two pairs of numbers is 1 or -1, whatever they are."""


@dataclass(frozen=True, eq=False, repr=False)
class ColocalizationScores:
    """How alike two maps are, row by row.

    Attributes
    ----------
    types
        A row per cell type that both maps have: ``cosine`` and ``pearson`` between its two rows, and ``n``, the
        partners that count. NaN where fewer than three count, or a row is zero or constant.
    cosine, pearson
        Means over the types that have one.
    n_undefined
        How many types have no correlation; they are in no mean.
    missing
        Types that only one of the maps has.

    Examples
    --------
    >>> import numpy as np
    >>> from sthist import metrics
    >>> r = np.corrcoef(np.random.default_rng(0).normal(size=(5, 20)))
    >>> metrics.colocalization(r, r / 2)
    ColocalizationScores of 5 types, without the diagonal: cosine 1.000, Pearson 1.000
    """

    types: pd.DataFrame
    cosine: float
    pearson: float
    n_undefined: int
    missing: tuple[str, ...]
    diagonal: bool

    def __repr__(self) -> str:
        notes = [f"{self.n_undefined} types undefined"] if self.n_undefined else []
        notes += [f"{len(self.missing)} types in one map alone"] if self.missing else []
        return (
            f"ColocalizationScores of {len(self.types)} types, with{'' if self.diagonal else 'out'} the diagonal: "
            f"cosine {self.cosine:.3f}, Pearson {self.pearson:.3f}{''.join(f'; {note}' for note in notes)}"
        )


def colocalization(a: Any, b: Any, *, diagonal: bool = False) -> ColocalizationScores:
    """Compare two maps of colocalisation row by row, such as those of predicted and of measured compositions.

    Rows are matched by the names of their types. NaN, as of types that do not vary, does not count.

    Parameters
    ----------
    a, b
        What :func:`sthist.tl.colocalization` writes into ``uns``; or a DataFrame whose rows and columns are the types;
        or two square arrays of the same types.
    diagonal
        Whether a type with itself counts. Published figures count it, as 1 in both maps (``diagonal="one"`` of
        :func:`sthist.tl.colocalization`), which raises the cosine of any two maps.

    Returns
    -------
    The scores, :class:`ColocalizationScores`.

    Raises
    ------
    KeyError
        If a mapping has no ``r`` or ``types``.
    ValueError
        If a map is not square, its rows and columns have different types, or the maps have too few types in common.

    Examples
    --------
    >>> import numpy as np
    >>> from sthist import metrics
    >>> rng = np.random.default_rng(0)
    >>> one, other = (np.corrcoef(rng.normal(size=(6, 20))) for _ in range(2))  # two maps that have nothing in common
    >>> alone, with_ones = (metrics.colocalization(one, other, diagonal=each) for each in (False, True))
    >>> with_ones.cosine > alone.cosine + 0.4
    True
    """
    import pandas as pd

    one, other = as_map(a, "The first map"), as_map(b, "The second map")
    common = [name for name in one.index if name in other.index]
    least = LEAST_PARTNERS + (not diagonal)
    if len(common) < least:
        raise ValueError(
            f"The maps have {len(common)} types in common; a comparison needs {least}. The first has "
            f"{listed(one.index)}, the second {listed(other.index)}."
        )
    x, y = (each.loc[common, common].to_numpy(np.float64) for each in (one, other))
    counts = np.isfinite(x) & np.isfinite(y)
    if not diagonal:
        np.fill_diagonal(counts, False)
    n = counts.sum(axis=1)
    x, y = np.where(counts, x, 0.0), np.where(counts, y, 0.0)
    mean_x, mean_y = (each.sum(axis=1, keepdims=True) / np.maximum(n, 1)[:, None] for each in (x, y))
    about_x, about_y = np.where(counts, x - mean_x, 0.0), np.where(counts, y - mean_y, 0.0)
    frame = pd.DataFrame(
        {"cosine": _cosine(x, y, x, y, n), "pearson": _cosine(about_x, about_y, x, y, n), "n": n},
        index=pd.Index(common, dtype=object),
    )
    missing = [*one.index.difference(other.index, sort=False), *other.index.difference(one.index, sort=False)]
    return ColocalizationScores(
        types=frame,
        cosine=float(frame["cosine"].mean()),
        pearson=float(frame["pearson"].mean()),
        n_undefined=int(frame["pearson"].isna().sum()),
        missing=tuple(map(str, missing)),
        diagonal=bool(diagonal),
    )


def _cosine(u: np.ndarray, v: np.ndarray, x: np.ndarray, y: np.ndarray, n: np.ndarray) -> np.ndarray:
    """Cosine between the rows of ``u`` and ``v``; NaN where one is nothing but the rounding of ``x`` or ``y``."""
    size_u, size_v = np.linalg.norm(u, axis=1), np.linalg.norm(v, axis=1)
    eps = 8 * np.finfo(np.float64).eps
    known = (n >= LEAST_PARTNERS) & (size_u > eps * np.linalg.norm(x, axis=1))
    known &= size_v > eps * np.linalg.norm(y, axis=1)
    product = (u * v).sum(axis=1)
    return np.divide(product, size_u * size_v, out=np.full(len(u), np.nan), where=known)


def as_map(found: Any, where: str, of: str = "r") -> pd.DataFrame:
    """A map as a frame whose rows and columns are its types; ``of`` names the array of a result in ``uns``."""
    import pandas as pd

    if isinstance(found, pd.DataFrame):
        values, rows, columns = found.to_numpy(np.float64), [*map(str, found.index)], [*map(str, found.columns)]
    elif hasattr(found, "keys"):
        if not {of, "types"} <= set(found.keys()):
            raise KeyError(
                f"{where} has no {of!r} and 'types', as tl.colocalization writes them; it has {list(found.keys())}."
            )
        values = np.asarray(found[of], np.float64)
        rows = columns = [str(name) for name in found["types"]]
    else:
        values = np.asarray(found, np.float64)
        rows = columns = [str(i) for i in range(len(values))]
    if values.ndim != 2 or values.shape != (len(rows), len(columns)) or len(rows) != len(columns):
        raise ValueError(f"{where} is no square of {len(rows)} types: its shape is {values.shape}.")
    twice = sorted({name for name in rows if rows.count(name) > 1})
    if twice:
        raise ValueError(f"{where} has types more than once: {listed(twice)}.")
    odd = sorted(set(rows) ^ set(columns))
    if odd:
        raise ValueError(f"{where} has other types in its rows than in its columns, such as {listed(odd)}.")
    return pd.DataFrame(values, pd.Index(rows, dtype=object), pd.Index(columns, dtype=object)).loc[:, rows]
