"""Predictions of regions, block by block, and where they go: a layer beside what was measured, or a table."""

from __future__ import annotations

from dataclasses import dataclass, field
from threading import Lock
from typing import TYPE_CHECKING, Any

import numpy as np

from sthist import _store
from sthist._settings import settings
from sthist._tables.genes import match_names, names_of_list, names_of_table
from sthist._tables.rows import lie_within
from sthist.regression.data.features import centres_of, gaussian_means
from sthist.regression.model import placed, plain_config
from sthist.regression.trust.familiarity import Familiarity, say_strange

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    import pandas as pd
    from anndata import AnnData

    from sthist.regression.data.inputs import Inputs
    from sthist.regression.model import RegressionModel
    from sthist.training.rows import SampleRows

BLOCK = 2**24
"""Values of a block that is predicted at once: 64 MB."""

AT_ONCE = 8192
"""Rows whose features are looked at together."""

IN_MEMORY = 2**26
"""Values up to which predictions are held in memory; more of them stay on disk, if their sample lies there."""

ROWS = 1024
"""Where a block has more rows than this, it has a multiple of it: chunks on disk lie in one block each."""

SUM_OF = "{}_sum"
"""Name of the layer with what regions have as a whole."""

SCORES = ("pearson", "pearson_null", "trusted")
"""Columns of a model's scores that go along with its predictions."""


@dataclass(frozen=True, eq=False)
class Prediction:
    """What a model says of rows, when it is asked."""

    model: RegressionModel
    inputs: Inputs
    centres: np.ndarray | None  # (n, 2) in µm, of a model that smooths what it predicts
    batch_size: int
    device: str | None
    beside: Mapping[str, np.ndarray] = field(default_factory=dict)  # (n, d) by the form of its key in obsm
    convert: Callable[[np.ndarray], np.ndarray] | None = None  # from the model's units to those that are written
    # One block is predicted while another one is written: a network is on one device at a time.
    _turn: Any = field(default_factory=Lock, repr=False)

    def of(self, rows: np.ndarray) -> np.ndarray:
        """Predictions of some rows, (n, outputs) float32."""
        with self._turn:
            values = self._smoothed(rows)
        return values if self.convert is None else self.convert(values)

    def _smoothed(self, rows: np.ndarray) -> np.ndarray:
        if self.model.config.smooth_um is None:
            return self._plain(rows)
        needed, weights = self._surroundings(rows)
        return np.asarray(weights @ self._plain(needed), np.float32)

    def familiarity(self, rows: np.ndarray) -> np.ndarray | None:
        """How usual some rows are among those of the training, (n,); None where the model does not know."""
        known = Familiarity.from_weights(self.model.weights)
        if known is None or not len(rows):
            return None
        parts = (rows[start : start + AT_ONCE] for start in range(0, len(rows), AT_ONCE))
        found = [known.of(self.model.representation(self.inputs, part, device=self.device)) for part in parts]
        return np.concatenate(found)

    def _surroundings(self, rows: np.ndarray) -> tuple[np.ndarray, Any]:
        """Rows whose weighted mean is wanted, and the weights."""
        assert self.centres is not None
        reach = 3 * float(self.model.config.smooth_um)
        low, high = self.centres[rows].min(axis=0) - reach, self.centres[rows].max(axis=0) + reach
        near = np.flatnonzero(((self.centres >= low) & (self.centres <= high)).all(axis=1))
        means = gaussian_means(self.centres[near], float(self.model.config.smooth_um))
        weights = means[np.searchsorted(near, rows)]
        used = np.unique(weights.indices)
        return near[used], weights[:, used]

    def _plain(self, rows: np.ndarray) -> np.ndarray:
        batches = self.model.predict_batches(self.inputs, rows, batch_size=self.batch_size, device=self.device)
        return placed(batches, rows)


def asked(
    verb: str,
    data: Any,
    rows: SampleRows,
    model: RegressionModel,
    *,
    image: str | None,
    within: Any,
    batch_size: int,
    device: str | None,
    progress: bool | None,
) -> tuple[Prediction, np.ndarray, np.ndarray | None, dict[str, Any]]:
    """The prediction of a slide, the rows that it is wanted of, how usual these are, and what is recorded of it."""
    inputs = model.collect(rows, image=image, device=device, progress=progress)
    inside, name = np.arange(len(rows)), rows.names[0]
    if within is not None:
        inside = np.flatnonzero(lie_within(data, centres_of(rows, "within="), within, name))
    centres = None if model.config.smooth_um is None else centres_of(rows, "smooth_um")
    needed = inside if centres is None else np.arange(len(rows))
    inputs, beside = model.encoded(inputs, needed, batch_size=batch_size, device=device)
    prediction = Prediction(model, inputs, centres, batch_size, device, beside)
    usual = prediction.familiarity(inside)
    if usual is not None:
        say_strange(usual, name)
    made = _store.provenance(
        verb,
        model=model.called,
        sha256=model.sha256,
        settings=plain_config(model),
        trained=model.config.training,
        image=image,
        device=settings.torch_device(device),
    )
    return prediction, inside, usual, made


@dataclass(frozen=True, eq=False)
class Place:
    """Where predictions go."""

    table: str | None  # key of the regions' table; None where there is none in the object
    key: str  # name of the layer, or of the new table
    columns: np.ndarray | None  # column of the table for each output; None for a table of their own
    overwrite: bool
    fills: bool = False  # whether they become the matrix of the regions' table, which has none

    @classmethod
    def of(
        cls,
        data: Any,
        adata: AnnData,
        table: str | None,
        model: RegressionModel,
        key_added: str | None,
        *,
        overwrite: bool,
        fill: bool = False,
    ) -> Place:
        """Beside what was measured, where the table has all outputs; else a table of their own.

        With ``fill`` a table without genes gets those of the model.
        """
        is_table = hasattr(data, "tables")
        if fill and is_table and table is not None and key_added is None:
            before = [key for key, made in adata.uns.get("sthist", {}).items() if _is_matrix(made)]
            if before and not overwrite:
                raise ValueError(
                    f"Table {table!r} has predictions of {before[0]!r} already. Pass overwrite=True to replace them, "
                    "or key_added= for another table."
                )
            if before or adata.n_vars == 0:
                return cls(table, _store.check_name(model.system), None, overwrite, fills=True)
        columns = _columns_of(adata, model.config.outputs)
        if columns is not None or not is_table:
            if columns is None:
                raise ValueError(
                    f"The AnnData lacks genes of the model, so that predictions cannot be a layer of it: call "
                    f"{type(model).__name__}.predict(adata.obsm[...]) for the numbers, or pass the SpatialData that it "
                    "is a table of."
                )
            key = _store.check_name(key_added or model.system)
            if key in adata.layers and not overwrite:
                raise ValueError(f"layers[{key!r}] exists. Pass overwrite=True to replace it, or key_added=.")
            if model.adds_up and SUM_OF.format(key) in adata.layers and not overwrite:
                raise ValueError(f"layers[{SUM_OF.format(key)!r}] exists. Pass overwrite=True, or key_added=.")
            taken = [each for each in (form.format(key) for form in model.beside) if each in adata.obsm]
            if taken and not overwrite:
                raise ValueError(f"obsm[{taken[0]!r}] exists. Pass overwrite=True to replace it, or key_added=.")
            return cls(table, key, columns, overwrite)
        regions = adata.uns.get("spatialdata_attrs", {}).get("region")
        key = key_added or f"{table or f'{regions}_table'}_{model.system}"
        _store.require_free(data, key, "tables", overwrite=overwrite)
        return cls(table, key, None, overwrite)

    def write(
        self,
        data: Any,
        adata: AnnData,
        prediction: Prediction,
        inside: np.ndarray,
        made: dict[str, Any],
        usual: np.ndarray | None,
    ) -> None:
        """Write what is predicted of the rows inside."""
        if self.fills:
            _fill_table(self, data, adata, prediction, inside, made, usual)
        elif self.columns is None:
            _write_table(self, data, adata, prediction, inside, made, usual)
        else:
            _write_layer(self, data, adata, prediction, inside, made, usual)


def _columns_of(adata: AnnData, outputs: tuple[str, ...]) -> np.ndarray | None:
    """The column of each output in a table; None if it lacks any."""
    if adata.n_vars < len(outputs):
        return None
    try:
        match = match_names({"data": names_of_table(adata), "model": names_of_list(outputs)}, "model", min_overlap=1)
    except ValueError:
        return None
    return match.index["data"] if len(match.names) == len(outputs) else None


def _write_layer(
    place: Place,
    data: Any,
    adata: AnnData,
    prediction: Prediction,
    inside: np.ndarray,
    made: dict[str, Any],
    usual: Any,
) -> None:
    """Predictions as a layer, NaN for rows that were not asked for and for genes that the model does not know."""
    backed = place.table is not None and _store.store_path(data) is not None
    # The object keeps its own until the store has the new one: writing can fail.
    changed = adata.copy() if backed else adata

    def make(start: int, stop: int) -> np.ndarray:
        block = np.full((stop - start, adata.n_vars), np.nan, np.float32)
        rows = inside[(inside >= start) & (inside < stop)]
        if len(rows):
            block[np.ix_(rows - start, place.columns)] = prediction.of(rows)  # type: ignore[arg-type]
        return block

    changed.layers[place.key] = _in_blocks(make, adata.shape, backed=backed)
    sums = _sums(prediction, changed.layers[place.key], inside)
    if sums is not None:
        changed.layers[SUM_OF.format(place.key)] = sums
    scores = prediction.model.scores
    for name in scores.columns.intersection(list(SCORES)):
        values = np.full(adata.n_vars, False if scores[name].dtype == bool else np.nan)
        values[place.columns] = scores[name].to_numpy()
        changed.var[f"{place.key}_{name}"] = values
    if usual is not None:
        column = np.full(adata.n_obs, np.nan, np.float32)
        column[inside] = usual
        changed.obs[f"{place.key}_familiarity"] = column
    for form, values in prediction.beside.items():
        rows_there = np.full(values.shape, np.nan, np.float32)
        rows_there[inside] = values[inside]
        changed.obsm[form.format(place.key)] = rows_there
    changed.uns["sthist"] = {**adata.uns.get("sthist", {}), place.key: made}
    if backed:
        _store.replace_table(data, str(place.table), changed)


def _fill_table(
    place: Place,
    data: Any,
    adata: AnnData,
    prediction: Prediction,
    inside: np.ndarray,
    made: dict[str, Any],
    usual: Any,
) -> None:
    """Predictions as the matrix of a table that has none, NaN for rows that were not asked for; all else stays."""
    import anndata as ad

    backed = _store.store_path(data) is not None
    var = _var_of(prediction.model)

    def make(start: int, stop: int) -> np.ndarray:
        block = np.full((stop - start, len(var)), np.nan, np.float32)
        rows = inside[(inside >= start) & (inside < stop)]
        if len(rows):
            block[rows - start] = prediction.of(rows)
        return block

    obs = adata.obs.copy()
    if usual is not None:
        obs["familiarity"] = np.full(adata.n_obs, np.nan, np.float32)
        obs.iloc[inside, obs.columns.get_loc("familiarity")] = np.asarray(usual, np.float32)
    parts = {name: dict(getattr(adata, name)) for name in ("obsm", "obsp", "uns")}
    kept = {key: each for key, each in adata.uns.get("sthist", {}).items() if not _is_matrix(each)}
    parts["uns"]["sthist"] = {**kept, place.key: {**made, "place": "X"}}
    values = _in_blocks(make, (adata.n_obs, len(var)), backed=backed)
    changed = ad.AnnData(values, obs=obs, var=var, **parts)
    _store.replace_table(data, str(place.table), changed)


def _is_matrix(made: Any) -> bool:
    """Whether what is recorded of a result says that it is the matrix of its table."""
    return hasattr(made, "get") and made.get("place") == "X"


def _var_of(model: RegressionModel) -> pd.DataFrame:
    """Outputs by name, with how far each can be trusted."""
    import pandas as pd

    scores = model.scores
    var = pd.DataFrame(index=pd.Index(model.config.outputs, dtype=object).astype(str))
    for name in scores.columns.intersection(list(SCORES)):
        var[name] = scores[name].to_numpy()
    return var


def _write_table(
    place: Place,
    data: Any,
    adata: AnnData,
    prediction: Prediction,
    inside: np.ndarray,
    made: dict[str, Any],
    usual: Any,
) -> None:
    """Predictions as a table with the rows' names, link and places."""
    import anndata as ad

    link = adata.uns.get("spatialdata_attrs", {})
    kept = [name for name in (link.get("region_key"), link.get("instance_key")) if name]
    obs = adata.obs.iloc[inside][kept].copy()
    if usual is not None:
        obs["familiarity"] = np.asarray(usual, np.float32)
    var = _var_of(prediction.model)
    obsm = {name: np.asarray(adata.obsm[name])[inside] for name in ("spatial",) if name in adata.obsm}
    obsm |= {form.format(prediction.model.system): values[inside] for form, values in prediction.beside.items()}
    uns = {"spatialdata_attrs": dict(link)} if link else {}
    values = _in_blocks(
        lambda start, stop: prediction.of(inside[start:stop]),
        (len(inside), len(var)),
        backed=_store.store_path(data) is not None,
    )
    table = ad.AnnData(values, obs=obs, var=var, obsm=obsm, uns=uns)
    sums = _sums(prediction, values, np.arange(len(inside)), inside)
    if sums is not None:
        table.layers["sum"] = sums
    _store.add(data, "tables", place.key, table, made, overwrite=place.overwrite)


def _sums(prediction: Prediction, logs: Any, rows: np.ndarray, of: np.ndarray | None = None) -> Any:
    """What regions have as a whole, where predictions of a model add up, else None; ``rows`` of the logs are given."""
    amounts = prediction.model.amounts(prediction.inputs, rows if of is None else of)
    if amounts is None:
        return None
    factors = np.full((logs.shape[0], 1), np.nan, np.float32)
    factors[rows, 0] = amounts
    return np.expm1(logs) * factors


def _in_blocks(make: Callable[[int, int], np.ndarray], shape: tuple[int, int], *, backed: bool) -> Any:
    """Predictions by ranges of rows: an array, or, where they are many, one of dask that is made as it is written."""
    import dask
    import dask.array as da

    n, width = shape
    step = max(1, BLOCK // max(1, width))
    step -= step % ROWS if step > ROWS else 0
    ranges = [(start, min(start + step, n)) for start in range(0, n, step)]
    if n * width > IN_MEMORY and backed:
        delayed = [dask.delayed(make)(*each) for each in ranges]
        return da.concatenate(
            [
                da.from_delayed(block, (stop - start, width), np.float32)
                for block, (start, stop) in zip(delayed, ranges, strict=True)
            ]
        )
    values = np.empty(shape, np.float32)
    for start, stop in ranges:
        values[start:stop] = make(start, stop)
    return values
