"""Labels of regions, from polygons that were drawn or from the cells in them."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from sthist import _sample, _store
from sthist._sample.elements import repaired
from sthist._sample.samples import over_samples
from sthist._settings import logger
from sthist._tables.labels import Annotation, Overlaps, as_classes, column_names, labels_of, read_annotation
from sthist._tables.rows import add_columns, centroids_um, pairs_inside, polygons_um, require_free_columns, rows_of

if TYPE_CHECKING:
    from spatialdata import SpatialData


@over_samples
def label_regions(
    data: SpatialData,
    regions: str,
    by: str,
    *,
    label: str = "label",
    min_fraction: float = 0.5,
    overlaps: Overlaps = "smaller",
    key_added: str = "label",
    overwrite: bool = False,
) -> None:
    """Label tiles, spots or cores by most of their area, or most of their cells, with the share of each class.

    Polygons that cross themselves are repaired: all that their outline encloses counts. Where two polygons overlap, the
    smaller one counts, as a necrosis that is drawn on top of a tumour (of two of one size, the later one). Polygons
    without a label or without an area are left aside. All of that is logged.

    Parameters
    ----------
    data
        One sample, or a mapping of name to sample; the path of a store stands for its sample.
    regions
        Key of the regions that get labels: tiles, spots, cores, any shapes, or their table.
    by
        What gives the labels. Shapes, such as a pathologist's annotation, count by area. A table, such as that of the
        cells, counts by row, which belongs to the regions that its centroid lies in, borders included.
    label
        Column with the labels: of the table, or of the shapes (or else the table of them). NaN and blank text are no
        label.
    min_fraction
        Regions get no label if the commonest one has less than this share of their area, or of the cells in them, from
        0 to 1; what has no label counts as the rest.
    overlaps
        ``"error"`` refuses polygons of two classes that overlap.
    key_added
        Name of the columns.
    overwrite
        Replace columns of these names.

    Returns
    -------
    None. Writes into the table of the regions, also in the store of a backed object; regions without a table get one,
    named ``<regions>_table``:

    * ``obs[key_added]``: categorical, the class of the largest share (the first of equals), under its own name; NaN for
      none;
    * ``obs[key_added + "_fraction"]``: float64, the share of that class in all of the region, 0 for none;
    * ``obs[key_added + "_labelled"]``: float64, the share of the region that has any label;
    * ``obsm[key_added + "_composition"]``: DataFrame of float64, one column per class, the shares among what is
      labelled: rows sum to 1, or 0 where nothing is. Times ``_labelled`` they are shares of the region. A class whose
      name cannot be stored as a column has a safe one; ``uns["sthist"][key_added]["classes"]`` has the names by column.

    A core that is missing has no label.

    Raises
    ------
    KeyError
        If there are no such shapes, table or column.
    ValueError
        If nothing has a label; if nothing lies in the regions; if ``min_fraction`` is out of range, a column is there
        already, or elements are not registered in ``um``.

    Examples
    --------
    >>> import sthist
    >>> sdata = sthist.datasets.toy(size_um=400)
    >>> sthist.pp.tissue(sdata)
    >>> sthist.pp.tiles(sdata, size_um=64, px=64)
    >>> sthist.pp.label_regions(sdata, "tiles", by="regions")
    >>> sorted(sdata["tiles_table"].obs["label"].cat.categories)
    ['duct', 'immune', 'stroma']
    >>> sthist.pp.label_regions(sdata, "tiles", by="table", label="cell_type", key_added="cell_type")
    >>> sdata["tiles_table"].obsm["cell_type_composition"].shape[1]
    6
    """
    import pandas as pd

    if not 0 <= min_fraction <= 1:
        raise ValueError(f"min_fraction is {min_fraction!r}; it is a share, from 0 to 1.")
    if overlaps not in {"smaller", "error"}:
        raise ValueError(f"overlaps is {overlaps!r}; it is 'smaller' or 'error'.")
    _sample.require_one_sample(data)
    rows = rows_of(data, regions)
    names = [key_added, f"{key_added}_fraction", f"{key_added}_labelled"]
    require_free_columns(data, rows, names, [f"{key_added}_composition"], overwrite=overwrite)
    polygons = repaired(polygons_um(data, rows), rows.instances, rows.shapes)
    if by in data.tables:
        sums, whole, classes = _cells_in(data, polygons, by, label)
    else:
        annotation = read_annotation(data, by, label, overlaps)
        sums, whole, classes = areas_in(polygons, annotation), _areas(polygons), annotation.classes
    if not sums.any():
        raise ValueError(
            f"Nothing of {by!r} that has a label lies in the {len(rows)} regions {rows.shapes!r}: are both registered "
            "in 'um' rightly?"
        )
    obs, shares = _majority(sums, whole, classes, min_fraction)
    _log(rows.shapes, obs["label"].codes, sums, min_fraction)
    columns = column_names(classes)
    made = _store.provenance(
        "pp.label_regions",
        regions=rows.shapes,
        by=by,
        label=label,
        min_fraction=min_fraction,
        overlaps=overlaps,
        classes=dict(zip(columns, classes, strict=True)),
    )
    add_columns(
        data,
        rows,
        key_added,
        made,
        obs=dict(zip(names, (obs["label"], obs["fraction"], obs["labelled"]), strict=True)),
        obsm={f"{key_added}_composition": pd.DataFrame(shares, columns=columns)},
    )


def _areas(polygons: np.ndarray) -> np.ndarray:
    import shapely

    return np.nan_to_num(shapely.area(polygons))


def areas_in(polygons: np.ndarray, annotation: Annotation) -> np.ndarray:
    """Area of each class in each polygon, (polygons, classes) float64."""
    import shapely

    tree = shapely.STRtree(polygons)
    # The annotation is what is looked up: shapely prepares it, and most regions lie wholly inside or outside of a
    # polygon.
    drawn, region = tree.query(annotation.polygons, predicate="intersects")
    covered, wholly = tree.query(annotation.polygons, predicate="covers")
    n = len(polygons)
    inside = np.isin(drawn * n + region, covered * n + wholly)
    shared = np.empty(len(drawn))
    shared[inside] = shapely.area(polygons[region[inside]])
    shared[~inside] = shapely.area(shapely.intersection(polygons[region[~inside]], annotation.polygons[drawn[~inside]]))
    return _sum_by_class(region, annotation.codes[drawn], shared, (n, len(annotation.classes)))


def _cells_in(
    sdata: SpatialData, polygons: np.ndarray, table: str, label: str
) -> tuple[np.ndarray, np.ndarray, list[str]]:
    """Number of rows of a table in each polygon by class, and in all; and the classes."""
    cells = rows_of(sdata, table)
    codes, classes = as_classes(labels_of(sdata, cells, label), f"Column {label!r} of {table!r}")
    region, cell = pairs_inside(polygons, centroids_um(sdata, cells))
    whole = np.bincount(region, minlength=len(polygons)).astype(np.float64)
    known = codes[cell] >= 0
    shape = (len(polygons), len(classes))
    return _sum_by_class(region[known], codes[cell[known]], np.ones(int(known.sum())), shape), whole, classes


def _sum_by_class(region: np.ndarray, code: np.ndarray, amount: np.ndarray, shape: tuple[int, int]) -> np.ndarray:
    return np.bincount(region * shape[1] + code, amount, minlength=shape[0] * shape[1]).reshape(shape)


def _majority(
    sums: np.ndarray, whole: np.ndarray, classes: list[str], min_fraction: float
) -> tuple[dict[str, Any], np.ndarray]:
    """Label, share of it and share of all labels by region, and the shares of the classes among them."""
    import pandas as pd

    labelled = sums.sum(axis=1)
    shares = sums / np.where(labelled > 0, labelled, 1)[:, None]
    # Rounding of areas must not make more than all of a region.
    part = np.minimum(labelled / np.where(whole > 0, whole, 1), 1.0)
    fraction = shares.max(axis=1) * part
    # A whole tile of one class may come out as 0.9999999999: that is 1.
    enough = (labelled > 0) & (fraction >= min_fraction - 1e-9)
    codes = np.where(enough, shares.round(9).argmax(axis=1), -1)  # rounding decides no tie
    label = pd.Categorical.from_codes(codes, categories=pd.Index(classes, dtype=object))
    return {"label": label, "fraction": fraction, "labelled": part}, shares


def _log(regions: str, codes: np.ndarray, sums: np.ndarray, min_fraction: float) -> None:
    empty = int((sums.sum(axis=1) == 0).sum())
    unlabelled = int((codes < 0).sum())
    logger.info(
        "%d of the %d regions %r have a label; in %d there is nothing labelled, and in %d no class has %.0f%%.",
        len(codes) - unlabelled,
        len(codes),
        regions,
        empty,
        unlabelled - empty,
        100 * min_fraction,
    )
