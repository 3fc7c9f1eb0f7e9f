"""Which cell types lie near each other."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any, Literal

import numpy as np

from sthist import _store
from sthist._messages import listed
from sthist._sample.samples import over_samples
from sthist._settings import logger, settings
from sthist._tables.composition import read_composition
from sthist._tables.find import called, find_table
from sthist._tables.labels import as_classes
from sthist._tables.rows import write_columns
from sthist.metrics._expression.maps import pitch_of
from sthist.tl._colocalization.moran import (
    Weights,
    adjusted,
    analytic_p,
    morans_r,
    order_in_space,
    permutation_p,
    spatial_weights,
    standardised,
)

if TYPE_CHECKING:
    from collections.abc import Mapping

    from anndata import AnnData
    from spatialdata import SpatialData

    from sthist.tl._colocalization.moran import Alternative

PITCHES = 2.0
"""Length of the kernel by default: the authors' 500 pixels are 1.5 to 2.5 distances between spots."""

LEAST_SPOTS = 3


@over_samples
def colocalization(
    data: SpatialData | AnnData | Mapping[str, Any],
    key: str = "composition",
    *,
    table: str | None = None,
    length_um: float | None = None,
    cutoff: float = 0.2,
    n_neighbors: int | None = None,
    self_weights: bool = True,
    diagonal: Literal["moran", "one"] = "moran",
    alternative: Alternative = "two-sided",
    n_permutations: int = 0,
    key_added: str = "colocalization",
    overwrite: bool = False,
    seed: int | None = None,
) -> None:
    """Measure which cell types lie near each other: bivariate Moran's R of all pairs of types.

    R of two types is the correlation of the amount of one with that of the other at and around the same spot. Spots
    at a distance d weigh exp(-d² / (2 length_um²)), and weights below the cut-off are 0; all weights are divided such
    that they sum to the number of spots. R is positive where two types keep company, and negative where they avoid
    each other. Proportions sum to 1, which alone makes R of frequent types negative.

    z, p and q ask whether R could be of types whose spots are dealt at random. A type that forms patches by itself
    reaches such a p with others by chance more often than it says, as its spots are not independent of each other:
    compare R with R, and sections with sections, rather than counting small p.

    Parameters
    ----------
    data
        One sample, an AnnData with ``obsm["spatial"]`` in µm, or a mapping of name to such, each of which is measured
        by itself.
    key
        DataFrame in ``obsm`` with the amount of each cell type in each spot, such as :func:`sthist.tl.composition` and
        :func:`sthist.tl.deconvolve` write; or column of ``obs`` with the type of each cell. Rows that are NaN
        throughout are left out.
    table
        Key of the table; by default the only one that has ``key``.
    length_um
        Length of the kernel in µm; twice the distance from a spot to the next by default. (The authors take 500 pixels
        of the slide, 1.5 to 2.5 such distances.)
    cutoff
        Smaller weights are 0: with 0.2, spots count up to 1.79 lengths away. With 0, all pairs of spots count.
    n_neighbors
        Count a pair only if one is among so many nearest spots of the other, itself not counted.
    self_weights
        Whether a spot counts as its own neighbour, as in the published code: types that share a spot keep company.
    diagonal
        ``"moran"``: R of a type with itself, its own Moran's I under these weights. ``"one"``: 1, as in the published
        maps.
    alternative
        Of p: ``"two-sided"``; ``"greater"``, types that keep company, as in the published code; or ``"less"``.
    n_permutations
        Take p from so many permutations in place of the normal distribution: the values of one type are dealt to other
        spots, and those of the other type stay, with their patches; then the other way round. The smallest p is
        1 / (1 + 2 n_permutations).
    key_added
        Key in ``uns``.
    overwrite
        Replace what is there.
    seed
        Of the permutations; ``settings.seed`` by default.

    Returns
    -------
    None. Writes into the table, also in the store of a backed object:

    * ``uns[key_added]``: a mapping with ``types``, the names of T cell types in the order of the columns, and (T, T)
      arrays of float64: ``r``; ``z``, R divided by its standard deviation (the published formula); ``p``; ``q``, the
      false discovery rate of Benjamini and Hochberg over all pairs. A type whose amount does not vary has NaN, and so
      has the diagonal of z, p and q, where there is no test.
    * ``uns["sthist"][key_added]``: what was done; length, radius and standard deviation of R; spots that were left out,
      and those without a neighbour; types that do not vary.

    Raises
    ------
    KeyError
        If there is no such table or key.
    ValueError
        If amounts are negative or NaN in part, places are missing, there are fewer than three spots, no spot has a
        neighbour, or the weights are more than memory holds; if the key is taken, or an argument is out of range.

    Examples
    --------
    >>> import pandas as pd
    >>> import sthist
    >>> sdata = sthist.datasets.toy(size_um=300)
    >>> sthist.tl.colocalization(sdata, "cell_type", length_um=30)
    >>> found = sdata["table"].uns["colocalization"]
    >>> pd.DataFrame(found["r"], found["types"], found["types"]).shape
    (6, 6)
    """
    options = _Options(length_um, cutoff, n_neighbors, self_weights, diagonal, alternative, n_permutations)
    options.require_sound()
    table, adata = find_table(
        data, table, lambda each: key in each.obsm or key in each.obs, f"{key!r}, in obsm or obs", key
    )
    where = called(table)
    _require_free(adata, where, key, key_added, overwrite=overwrite)
    types, values, rows = _amounts(adata, key, where)
    places = _places(adata, rows, where)
    order = order_in_space(places)
    places, values = places[order], values[order]
    length, weights = _weights(places, options, where)
    seed = settings.seed if seed is None else seed
    found, constant = measured(values, weights, options, seed)
    silent = [name for name, still in zip(types, constant, strict=True) if still]
    if silent:
        logger.warning(
            "%d of the %d cell types of %s do not vary, and have NaN: %s.",
            len(silent),
            len(types),
            repr(key),
            listed(silent),
        )
    made = _store.provenance(
        "tl.colocalization",
        key=key,
        **{**asdict(options), "length_um": length},
        radius_um=weights.radius_um if np.isfinite(weights.radius_um) else None,
        standard_deviation=float(np.sqrt(weights.variance)),
        seed=seed,
        n_spots=len(values),
        n_left_out=adata.n_obs - len(values),
        n_without_neighbours=weights.n_alone,
        constant=silent,
    )
    kept = {"types": np.array(types, dtype=object), **found}
    write_columns(data, table, adata, key_added, made, obs={}, uns={key_added: kept})


@dataclass(frozen=True)
class _Options:
    """What a call asks for."""

    length_um: float | None = None
    cutoff: float = 0.2
    n_neighbors: int | None = None
    self_weights: bool = True
    diagonal: str = "moran"
    alternative: Alternative = "two-sided"
    n_permutations: int = 0

    def require_sound(self) -> None:
        """Refuse what cannot be meant."""
        if self.length_um is not None and not (np.isfinite(self.length_um) and self.length_um > 0):
            raise ValueError(f"length_um is {self.length_um!r}; it is a positive number of µm.")
        if not 0 <= self.cutoff < 1:
            raise ValueError(f"cutoff is {self.cutoff!r}; weights are from 0 to 1, and it is at least 0 and below 1.")
        if self.n_neighbors is not None and (self.n_neighbors < 1 or int(self.n_neighbors) != self.n_neighbors):
            raise ValueError(f"n_neighbors is {self.n_neighbors!r}; it is a whole number from 1 on.")
        if self.n_permutations < 0 or int(self.n_permutations) != self.n_permutations:
            raise ValueError(f"n_permutations is {self.n_permutations!r}; it is a whole number from 0 on.")
        if self.diagonal not in {"moran", "one"}:
            raise ValueError(f"diagonal is {self.diagonal!r}; it is 'moran' or 'one'.")
        if self.alternative not in {"two-sided", "greater", "less"}:
            raise ValueError(f"alternative is {self.alternative!r}; it is 'two-sided', 'greater' or 'less'.")


def measured(
    values: np.ndarray, weights: Weights, options: _Options, seed: int
) -> tuple[dict[str, np.ndarray], np.ndarray]:
    """``r``, ``z``, ``p`` and ``q`` of all pairs of columns, and which columns do not vary."""
    standard, constant = standardised(values)
    r = morans_r(standard, weights)
    scores = r / np.sqrt(weights.variance)
    if options.n_permutations:
        p = permutation_p(standard, weights, r, int(options.n_permutations), seed, options.alternative)
    else:
        p = analytic_p(scores, options.alternative)
    for each in (scores, p):
        np.fill_diagonal(each, np.nan)
    if options.diagonal == "one":
        np.fill_diagonal(r, 1.0)
    for each in (r, scores, p):
        each[constant] = each[:, constant] = np.nan
    return {"r": r, "z": scores, "p": p, "q": adjusted(p)}, constant


def _require_free(adata: AnnData, where: str, key: str, key_added: str, *, overwrite: bool) -> None:
    """Refuse a key that is taken, or under which another result says what made it."""
    _store.check_name(key_added)
    made = adata.uns.get("sthist", {}).get(key_added, {}).get("call", "tl.colocalization")
    if key_added == key or made != "tl.colocalization":
        raise ValueError(
            f"{where} has a result {key_added!r} of another kind already. Pass key_added= for another name."
        )
    if key_added in adata.uns and not overwrite:
        raise ValueError(
            f"{where} has uns[{key_added!r}] already. Pass overwrite=True to replace it, or key_added= for another "
            "name."
        )


def _amounts(adata: AnnData, key: str, where: str) -> tuple[list[str], np.ndarray, np.ndarray]:
    """Cell types, their amounts (n, types), and the rows of the table that have any."""
    where = _inline(where)
    if key in adata.obsm or key not in adata.obs:
        # Sums of rows do not matter here, so that predictions of proportions pass as they are.
        found = read_composition(adata, key, where, "abundances", skip_missing=True)
        types, values, rows = list(found.types), found.values, found.rows
    else:
        if adata.obs[key].dtype.kind == "f":
            raise ValueError(f"Column {key!r} of {where} holds numbers, not the types of cells.")
        codes, types = as_classes(adata.obs[key], f"Column {key!r} of {where}")
        rows = np.flatnonzero(codes >= 0)
        values = (codes[rows, None] == np.arange(len(types))).astype(np.float64)
    assert rows is not None
    if len(rows) < adata.n_obs:
        logger.info(
            "%d of the %d rows of %s have no %r, and are left out.", adata.n_obs - len(rows), adata.n_obs, where, key
        )
    if len(rows) < LEAST_SPOTS:
        raise ValueError(
            f"{where[0].upper()}{where[1:]} has {len(rows)} rows with {key!r}; Moran's R needs {LEAST_SPOTS} at least."
        )
    return types, values, rows


def _places(adata: AnnData, rows: np.ndarray, where: str) -> np.ndarray:
    """Places of rows in µm, (n, 2), all of them finite."""
    if "spatial" not in adata.obsm:
        raise KeyError(f"{where} has no obsm['spatial'], places in µm; it has {list(adata.obsm)}.")
    places = np.asarray(adata.obsm["spatial"], np.float64)[rows, :2]
    missing = ~np.isfinite(places).all(axis=1)
    if missing.any():
        raise ValueError(
            f"{where} has {int(missing.sum())} rows without a place in obsm['spatial'], first "
            f"{str(adata.obs_names[rows[missing][0]])!r}. Leave them out, or give them x and y in µm."
        )
    return places


def _inline(where: str) -> str:
    """How a message calls a table, inside of a sentence."""
    return where[0].lower() + where[1:]


def _weights(places: np.ndarray, options: _Options, where: str) -> tuple[float, Weights]:
    """The length of the kernel, and the weights, with what is to be known of them."""
    where = _inline(where)
    shared = len(places) - len(np.unique(places, axis=0))
    if shared:
        logger.warning(
            "%d of the %d rows of %s lie where another one does, and count as full neighbours. If these are several "
            "slides on one plane, pass them as a mapping of name to slide.",
            shared,
            len(places),
            where,
        )
    length = options.length_um
    if length is None:
        pitch = pitch_of(places)
        length = PITCHES * pitch
        logger.info("length_um is %.4g µm, %g times the distance from a spot to the next.", length, PITCHES)
    weights = spatial_weights(
        places,
        length,
        cutoff=options.cutoff,
        n_neighbors=None if options.n_neighbors is None else int(options.n_neighbors),
        self_weights=options.self_weights,
    )
    if weights.n_alone:
        logger.warning(
            "%d of the %d rows of %s have no neighbour within %.4g µm: %s.",
            weights.n_alone,
            len(places),
            where,
            weights.radius_um,
            "each counts as its own alone" if options.self_weights else "they do not count",
        )
    return float(length), weights
