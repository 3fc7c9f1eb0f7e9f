"""Molecules of a parquet file, read when needed."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from sthist.io._files import checks

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from pathlib import Path


def molecules(
    path: Path,
    needed: checks.Needed,
    transformations: Mapping[str, Any],
    *,
    further: Mapping[str, str] | None = None,
    kept: Sequence[str] | None = None,
    within: checks.values.Box | None = None,
) -> Any:
    """Molecules as points, whose names are text, and genes categories that are known.

    ``needed`` names the columns of the gene, and of x and y; ``further`` those of other axes; ``kept`` the rest that is
    read, all of it by default.
    """
    import dask.dataframe as dd
    import pyarrow.parquet as pq
    from spatialdata.models import PointsModel

    gene, axes = str(needed.gene), dict(zip("xy", needed.numeric, strict=True))
    genes = checks.require_content(path, needed, within=within)
    there = pq.read_schema(path).names
    axes |= {axis: name for axis, name in (further or {}).items() if name in there}
    columns = there if kept is None else [*axes.values(), gene, *(name for name in kept if name in there)]
    columns = [name for name in columns if not name.startswith("__index_level_")]
    frame = dd.read_parquet(path, columns=columns, index=False, split_row_groups="adaptive")
    frame = frame.map_partitions(_plain, gene, genes, meta=_plain(frame._meta, gene, genes))
    return PointsModel.parse(
        frame,
        coordinates=axes,
        feature_key=gene,
        instance_key="cell_id" if "cell_id" in columns else None,
        transformations=dict(transformations),
        sort=True,
    )


def _plain(frame: Any, gene: str, genes: list[str]) -> Any:
    """Text where the file has bytes; genes as categories."""
    import pandas as pd
    import pyarrow as pa
    import pyarrow.compute as pc

    def text(values: Any) -> Any:
        return pa.array(values.to_numpy(object), from_pandas=True).cast(pa.string())

    frame = frame.copy()
    codes = pc.index_in(text(frame[gene]), pa.array(genes, pa.string())).to_numpy(zero_copy_only=False)
    frame[gene] = pd.Categorical.from_codes(codes, categories=pd.Index(genes))
    if "cell_id" in frame and not pd.api.types.is_numeric_dtype(frame["cell_id"]):
        frame["cell_id"] = pd.array(text(frame["cell_id"]), dtype="string[pyarrow]")
    return frame
