"""Predict the expression of regions, with what is known of how far each gene can be trusted."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from sthist._sample.samples import over_samples
from sthist._sample.verbs import verb
from sthist.regression.rows import as_trained, rows_of_slide
from sthist.regression.write import Place, asked
from sthist.systems.expression.model import ExpressionModel

if TYPE_CHECKING:
    from pathlib import Path


@verb
def expression(
    data: Any,
    model: ExpressionModel | str | Path,
    *,
    regions: str | None = None,
    image: str | None = None,
    within: Any = None,
    key_added: str | None = None,
    batch_size: int = 256,
    device: str | None = None,
    overwrite: bool = False,
    progress: bool | None = None,
) -> None:
    """Predict the expression of genes in regions of a slide: spots, tiles between spots, nuclei, any shapes.

    Where the table of the regions has all genes of the model, predictions stand beside what was measured, as a layer;
    elsewhere they are a table of their own, with the regions' places and link, ready for scanpy and squidpy. A model
    of superpixels, ``"istar"``, predicts every place of a slide where no regions are named, as an image.

    Parameters
    ----------
    data
        A SpatialData, an AnnData with the model's embeddings, or a mapping of sample name to such.
    model
        A model of :func:`sthist.tl.train_expression`, or the folder that it was saved to.
    regions
        Key of the shapes, or of their table; by default the table that has the model's embeddings, else the tiles, or
        the spots, else the only table; for ``"istar"``, all of the slide. Regions that are not embedded yet are
        embedded first.
    image
        Key of the H&E.
    within
        Part of the slide: a box (x0, y0, x1, y1) in µm, a polygon, or the key of shapes. A table of their own has the
        regions whose centre lies there alone; of a layer, the rows of others are NaN.
    key_added
        Name of the layer, or of the new table; by default the model's name, ``"ridge"``, or that after the name of the
        regions' table, ``"tiles_table_ridge"``; of an image ``"istar_expression"``.
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
    None. Writes, also to the store of a backed object, ``layers[key_added]`` (n, n_vars) float32 of the regions' table,
    or ``tables[key_added]`` with

    * ``X``: (n, genes) float32, log-normalised expression; a model may predict less than 0;
    * ``var["pearson"]``, ``var["pearson_null"]``, ``var["trusted"]``: of each gene, as ``model.scores`` has them.
      Beside a layer these are ``var[key_added + "_pearson"]`` and so on;
    * ``obs["familiarity"]``: how usual the features of a region are among those of the training, from 0 to 1;
    * ``obsm["spatial"]`` in µm, and the link to the regions;
    * of ``"genst"`` and ``"clip"`` also ``obsm["X_genst"]``, the mixture of atoms of each region, and
      ``obsm["genst_coefficients"]``, how much of each; beside a layer under its name;
    * of ``"istar"`` also ``layers["sum"]`` (beside a layer ``layers[key_added + "_sum"]``): counts per 10,000 that are
      in a region as a whole, where one as large as a spot of the training has as many as its mean: they add up;
    * ``uns["sthist"]``: the model, and how it was trained.

    Of ``"istar"`` without regions, ``images["istar_expression"]``, (genes, y, x) float16: log-normalised expression, a
    channel per gene and a pixel per superpixel, with coarser levels, registered in ``um``, and NaN where there is no
    tissue.

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
    >>> model = sthist.tl.train_expression(sdata, split="block")
    >>> sthist.pp.tissue(sdata)
    >>> sthist.pp.tiles(sdata, size_um=112, px=224)
    >>> sthist.tl.expression(sdata, model, regions="tiles")
    >>> sdata["tiles_table_ridge"].n_vars
    60
    """
    _predict_one(
        data,
        as_trained(model, ExpressionModel, "tl.train_expression"),
        regions,
        image,
        within,
        key_added,
        batch_size,
        device,
        overwrite=overwrite,
        progress=progress,
    )


@over_samples
def _predict_one(
    data: Any,
    model: ExpressionModel,
    regions: str | None,
    image: str | None,
    within: Any,
    key_added: str | None,
    batch_size: int,
    device: str | None,
    *,
    overwrite: bool,
    progress: bool | None,
) -> None:
    if model.makes_maps and regions is None:
        from sthist.systems.expression.models.istar.maps import write_map

        places: dict[str, Any] = {"image": image, "within": within, "key_added": key_added, "device": device}
        write_map(data, model, **places, overwrite=overwrite, progress=progress)  # type: ignore[arg-type]
        return
    rows, key = rows_of_slide(data, model, regions)
    place = Place.of(data, rows.tables[0], key, model, key_added, overwrite=overwrite)
    prediction, inside, usual, made = asked(
        "tl.expression",
        data,
        rows,
        model,
        image=image,
        within=within,
        batch_size=batch_size,
        device=device,
        progress=progress,
    )
    place.write(data, rows.tables[0], prediction, inside, made, usual)
