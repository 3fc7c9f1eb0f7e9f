"""Predict the expression of every cell of a slide."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING, Any, Literal

from sthist._sample.samples import over_samples
from sthist._sample.verbs import verb
from sthist.pp._nuclei.assign import cells_of
from sthist.regression.rows import as_trained, rows_of_slide
from sthist.regression.write import Place, asked
from sthist.systems.cells.model import SCellST

if TYPE_CHECKING:
    from pathlib import Path


@verb
def cell_expression(
    data: Any,
    model: SCellST | str | Path,
    *,
    cells: str = "nuclei",
    image: str | None = None,
    within: Any = None,
    scale: Literal["model", "log"] = "model",
    key_added: str | None = None,
    batch_size: int = 1024,
    device: str | None = None,
    overwrite: bool = False,
    progress: bool | None = None,
) -> None:
    """Predict the expression of every cell of a slide from its H&E; what was measured on it is never looked at.

    Parameters
    ----------
    data
        A SpatialData with cells, an AnnData of cells with the model's embeddings, or a mapping of sample name to such.
    model
        A model of :func:`sthist.tl.train_cell_expression`, or the folder that it was saved to.
    cells
        Key of the cells: shapes or their table. Those that are not embedded yet are embedded first, as those of the
        training were. Of an AnnData it means nothing.
    image
        Key of the H&E.
    within
        Part of the slide: a box (x0, y0, x1, y1) in µm, a polygon, or the key of shapes. Cells whose centre lies
        elsewhere are NaN, or are not in a table of its own.
    scale
        ``"model"``: in the units of the training, which are the same for genes that are seen much or little: scaled
        logarithms, or counts of a spot of median total. ``"log"``: log(1 + 1e4 y / total), the scaling taken back.
    key_added
        Name of the layer, or of a new table.
    batch_size
        Cells at a time.
    device
        Of torch; ``settings.device`` by default.
    overwrite
        Replace what is there.
    progress
        Show a bar where cells are embedded; ``settings.progress`` by default.

    Returns
    -------
    None. Writes, also to the store of a backed object. Where the table of the cells has no genes, as that of
    :func:`sthist.pp.nuclei`, and ``key_added`` is not given, what is predicted becomes its ``X`` and ``var``:

    * ``X``: (n, genes) float32, at least 0;
    * ``var["pearson"]``, ``var["pearson_null"]``, ``var["trusted"]``: of each gene, as ``model.scores`` has them;
    * ``obs["familiarity"]``: how usual the features of a cell are among those of the training, from 0 to 1;
    * ``uns["sthist"]["scellst"]``: the model, how it was trained, and ``scale``.

    Where the table has all genes of the model, it is ``layers["scellst"]``, and the columns have this name before
    theirs; else a new table, ``"<table>_scellst"``, with the cells' places and link. scanpy and squidpy take any.

    Raises
    ------
    KeyError
        If there are no such cells, no image, or no embeddings of the model's encoder.
    ValueError
        If the embeddings are of another encoder or scale, or there are predictions already.
    TypeError
        If ``model`` is none.

    Examples
    --------
    >>> import sthist
    >>> sdata = sthist.datasets.toy("visium", size_um=900)
    >>> sthist.pp.nuclei(sdata)
    >>> model = sthist.tl.train_cell_expression(sdata, training={"epochs": 2}, split="block")
    >>> sthist.tl.cell_expression(sdata, model)
    >>> list(sdata["nuclei_table"].var.columns)
    ['pearson', 'pearson_null', 'trusted']
    """
    if scale not in ("model", "log"):
        raise ValueError(f"scale is {scale!r}; it is 'model' or 'log'.")
    trained = as_trained(model, SCellST, "tl.train_cell_expression")
    _predict_one(
        data,
        trained,
        cells,
        image,
        within,
        scale,
        key_added,
        batch_size,
        device,
        overwrite=overwrite,
        progress=progress,
    )


@over_samples
def _predict_one(
    data: Any,
    model: SCellST,
    cells: str,
    image: str | None,
    within: Any,
    scale: str,
    key_added: str | None,
    batch_size: int,
    device: str | None,
    *,
    overwrite: bool,
    progress: bool | None,
) -> None:
    if not hasattr(data, "obs_names"):
        cells_of(data, cells)
    regions = None if hasattr(data, "obs_names") else cells
    rows, key = rows_of_slide(data, model, regions)
    if regions is not None and key is None:  # embedding them gives them a table
        model.collect(rows, image=image, device=device, progress=progress)
        rows, key = rows_of_slide(data, model, regions)
    place = Place.of(data, rows.tables[0], key, model, key_added, overwrite=overwrite, fill=True)
    prediction, inside, usual, made = asked(
        "tl.cell_expression",
        data,
        rows,
        model,
        image=image,
        within=within,
        batch_size=batch_size,
        device=device,
        progress=progress,
    )
    if scale == "log":
        prediction = replace(prediction, convert=model.to_log)
    place.write(data, rows.tables[0], prediction, inside, made | {"scale": scale}, usual)
