"""Predictions that a sample holds, and what was measured at the same places."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from sthist._messages import listed
from sthist._settings import logger
from sthist._tables.expression import log_expression
from sthist._tables.find import called, find_expression
from sthist._tables.genes import closest

if TYPE_CHECKING:
    import pandas as pd
    from anndata import AnnData
    from scipy.sparse import csr_matrix

CALL = "tl.expression"
"""What the record of a prediction is of."""

SCORES = ("pearson", "pearson_null", "trusted")


@dataclass(frozen=True, eq=False)
class Measured:
    """Log expression that was measured at the rows of a prediction."""

    logs: csr_matrix
    genes: pd.Index
    rows: np.ndarray  # row of the logarithms for each row of the prediction, -1 for none


@dataclass(frozen=True, eq=False)
class Found:
    """One prediction: rows, genes, values, and what is known of them."""

    name: str  # of the layer or table
    model: str
    adata: AnnData
    layer: str | None  # None for a table of its own
    scores: pd.DataFrame  # by gene, of the columns that there are
    measured: Measured | None

    @property
    def places(self) -> np.ndarray:
        """Places of the rows in µm, (n, 2)."""
        if "spatial" not in self.adata.obsm:
            raise KeyError(f"The table of {self.name!r} has no obsm['spatial'] with the places of its rows in µm.")
        return np.asarray(self.adata.obsm["spatial"], np.float64)[:, :2]

    def predicted(self, genes: list[str]) -> np.ndarray:
        """Predictions of some genes, (n, genes); NaN for rows without."""
        missing = [gene for gene in genes if gene not in self.scores.index]
        if missing:
            raise KeyError(
                f"{self.name!r} has no gene {missing[0]!r}; it has {len(self.scores)} genes."
                f"{closest(missing[0], map(str, self.scores.index))}"
            )
        return _columns(self.adata, self.layer, genes)

    def truth(self, genes: list[str]) -> np.ndarray:
        """Measured log expression of some genes at the same rows, (n, genes); NaN where it was not measured."""
        values = np.full((self.adata.n_obs, len(genes)), np.nan)
        if self.measured is None:
            return values
        there = self.measured.rows >= 0
        for column, gene in enumerate(genes):
            if gene in self.measured.genes:
                place = int(np.flatnonzero(self.measured.genes == gene)[0])
                values[there, column] = self.measured.logs[self.measured.rows[there], place].toarray().ravel()
        return values


def find_prediction(data: Any, key: str | None, table: str | None) -> Found:
    """The prediction that is meant: of this name, or the only one."""
    candidates: dict[str, tuple[str | None, AnnData, str | None]] = {}
    tables = {None: data} if hasattr(data, "obs_names") else dict(data.tables)
    for name, adata in tables.items():
        if table is not None and name != table:
            continue
        for layer in adata.layers:
            if layer == key or _made(adata, layer).get("call") == CALL:
                candidates[layer if layer not in candidates else f"{name}/{layer}"] = (name, adata, layer)
        if name is not None and _made(adata, name).get("call") == CALL:
            candidates[name] = (name, adata, None)
    if key is not None:
        candidates = {name: each for name, each in candidates.items() if name == key or each[2] == key}
    if not candidates:
        called_key = "" if key is None else f" {key!r}"
        raise KeyError(f"There is no prediction{called_key}: tl.expression writes them, as a layer or a table.")
    if len(candidates) > 1:
        raise ValueError(f"There are several predictions: {listed(candidates)}. Name one with key=, or its table=.")
    ((name, (where, adata, layer)),) = candidates.items()
    made = _made(adata, layer if layer is not None else str(where))
    model = str(made.get("model", name))
    return Found(name, model, adata, layer, _scores(adata, layer), _measured(data, adata, layer))


def _made(adata: AnnData, key: str) -> dict[str, Any]:
    record = adata.uns.get("sthist", {}).get(key, {})
    return dict(record) if hasattr(record, "get") else {}


def _scores(adata: AnnData, layer: str | None) -> pd.DataFrame:
    """What is known of each predicted gene."""
    prefix = "" if layer is None else f"{layer}_"
    scores = adata.var[[f"{prefix}{name}" for name in SCORES if f"{prefix}{name}" in adata.var]]
    scores = scores.rename(columns=lambda name: name.removeprefix(prefix))
    if layer is None:
        return scores
    values = adata.layers[layer]
    if hasattr(values, "toarray"):  # zeros are values
        return scores
    return scores[~np.isnan(np.asarray(values)).all(axis=0)]


def _measured(data: Any, adata: AnnData, layer: str | None) -> Measured | None:
    """What was measured of the rows of a prediction: in the same table, or in that of the sample; None for nothing."""
    key, measured, rows = None, adata, np.arange(adata.n_obs)
    try:
        if layer is None:
            key, measured = find_expression(data, None)
            links = [each.uns.get("spatialdata_attrs", {}) for each in (adata, measured)]
            names = [_row_names(each, link) for each, link in zip((adata, measured), links, strict=True)]
            rows = names[1].get_indexer(names[0])
        if (rows < 0).all():
            return None
        return Measured(log_expression(measured, called(key)), measured.var_names, rows)
    except (KeyError, ValueError) as error:  # there is no such table, it has no expression, or is not linked
        logger.info("Nothing is known of what was measured: %s", error)
        return None


def _row_names(adata: AnnData, link: Any) -> Any:
    """Region and instance of each row, as an index."""
    import pandas as pd

    return pd.MultiIndex.from_arrays(
        [adata.obs[link["region_key"]].astype(str), adata.obs[link["instance_key"]].astype(str)]
    )


def _columns(adata: AnnData, layer: str | None, genes: list[str]) -> np.ndarray:
    places = adata.var_names.get_indexer(genes)
    matrix = adata.X if layer is None else adata.layers[layer]
    values = matrix[:, np.sort(np.unique(places))]
    values = np.asarray(values.toarray() if hasattr(values, "toarray") else values, np.float64)
    return values[:, np.searchsorted(np.sort(np.unique(places)), places)]
