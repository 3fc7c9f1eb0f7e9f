"""Predict the composition of regions, with what is known of how far each cell type can be trusted."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from sthist._sample.samples import over_samples
from sthist._sample.verbs import verb
from sthist._tables.composition import composition_columns
from sthist._tables.find import require_free
from sthist._tables.rows import add_columns, require_free_columns, rows_of, write_columns
from sthist.regression.rows import as_trained, rows_of_slide
from sthist.regression.write import SCORES, asked
from sthist.systems.composition.model import CompositionModel

if TYPE_CHECKING:
    from pathlib import Path


@verb
def composition(
    data: Any,
    model: CompositionModel | str | Path,
    *,
    regions: str | None = None,
    image: str | None = None,
    within: Any = None,
    key_added: str = "composition",
    batch_size: int = 1024,
    device: str | None = None,
    overwrite: bool = False,
    progress: bool | None = None,
) -> None:
    """Predict how much of each cell type regions of a slide hold: spots, tiles, any shapes.

    Parameters
    ----------
    data
        A SpatialData, an AnnData with the model's embeddings, or a mapping of sample name to such.
    model
        A model of :func:`sthist.tl.train_composition`, or the folder that it was saved to.
    regions
        Key of the shapes, or of their table; by default the table that has the model's embeddings, else the tiles, or
        the spots, else the only table. Regions that are not embedded yet are embedded first.
    image
        Key of the H&E.
    within
        Part of the slide: a box (x0, y0, x1, y1) in µm, a polygon, or the key of shapes. Regions whose centre lies
        elsewhere are NaN.
    key_added
        Name of what is written.
    batch_size
        Regions at a time.
    device
        Of torch; ``settings.device`` by default.
    overwrite
        Replace what has this name.
    progress
        Show a bar where regions are embedded; ``settings.progress`` by default.

    Returns
    -------
    None. Writes, also to the store of a backed object, into the table of the regions (a new one where they have none):

    * ``obsm[key_added]``: DataFrame of float32, a column per cell type, at least 0: proportions or abundances, as the
      model was trained on. Proportions are predicted type by type and need not sum to 1:
      :func:`sthist.pp.proportions` makes them do so;
    * ``obsm[key_added + "_sd"]``: of an ensemble, the standard deviation of what its members predict;
    * ``obs[key_added + "_familiarity"]``: how usual the features of a region are among those of the training, 0 to 1;
    * ``uns[key_added + "_scores"]``: DataFrame with ``pearson``, ``pearson_null`` and ``trusted`` of each type, as
      ``model.scores`` has them;
    * ``uns["sthist"]``: the model and how it was trained, ``quantity``, and in ``classes`` the types as they are shown,
      where a column could not be called so.

    Raises
    ------
    KeyError
        If there are no such regions, no image, or no embeddings of the model's encoder.
    ValueError
        If the embeddings are of another encoder or scale, tiles of another µm/px, or the name is taken.
    TypeError
        If ``model`` is none.

    Examples
    --------
    >>> import sthist
    >>> sdata = sthist.datasets.toy("visium", size_um=900)
    >>> model = sthist.tl.train_composition(sdata, "ridge", split="block")
    >>> sthist.tl.composition(sdata, model)
    >>> sdata["table"].obsm["composition"].shape[0] == sdata["table"].n_obs
    True
    """
    trained = as_trained(model, CompositionModel, "tl.train_composition")
    _predict_one(
        data, trained, regions, image, within, key_added, batch_size, device, overwrite=overwrite, progress=progress
    )


@over_samples
def _predict_one(
    data: Any,
    model: CompositionModel,
    regions: str | None,
    image: str | None,
    within: Any,
    key: str,
    batch_size: int,
    device: str | None,
    *,
    overwrite: bool,
    progress: bool | None,
) -> None:
    rows, table = rows_of_slide(data, model, regions)
    adata, name = rows.tables[0], rows.names[0]
    found = None
    if table is None and not hasattr(data, "obs_names"):
        found = rows_of(data, str(adata.uns["spatialdata_attrs"]["region"]))
    columns = [f"{key}_familiarity"], [key, f"{key}_sd"]
    if found is not None:
        require_free_columns(data, found, *columns, overwrite=overwrite)
    else:
        require_free(adata, name[0].upper() + name[1:], *columns, overwrite=overwrite)
    if f"{key}_scores" in adata.uns and not overwrite:
        raise ValueError(f"uns[{key + '_scores'!r}] of {name} exists. Pass overwrite=True, or key_added=.")
    prediction, inside, usual, made = asked(
        "tl.composition",
        data,
        rows,
        model,
        image=image,
        within=within,
        batch_size=batch_size,
        device=device,
        progress=progress,
    )
    frame, shown = composition_columns(model.types, _spread(prediction.of(inside), inside, adata.n_obs))
    made |= {"quantity": model.quantity, **shown}
    spread = model.uncertainty(prediction.inputs, inside, device=device)
    scores = model.scores
    obsm = {key: frame, f"{key}_sd": None}
    if spread is not None:
        obsm[f"{key}_sd"], _ = composition_columns(model.types, _spread(spread, inside, adata.n_obs))
    obs = {f"{key}_familiarity": None if usual is None else _spread(usual, inside, adata.n_obs)}
    uns = {f"{key}_scores": scores[[column for column in SCORES if column in scores]]}
    if found is not None:
        add_columns(data, found, key, made, obs=obs, obsm=obsm, uns=uns)
    else:
        write_columns(data, table, adata, key, made, obs=obs, obsm=obsm, uns=uns)


def _spread(values: np.ndarray, inside: np.ndarray, n: int) -> np.ndarray:
    """Values of some rows as those of all, NaN elsewhere, float32."""
    full = np.full((n, *values.shape[1:]), np.nan, np.float32)
    full[inside] = values
    return full
