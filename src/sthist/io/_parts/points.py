"""Molecules of a parquet file, read when needed."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from sthist.io._files import checks

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from pathlib import Path

PART_ROWS = 3_000_000  # molecules of a partition, which take some 256 MB


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
    from dask.dataframe.utils import clear_known_categories
    from spatialdata.models import PointsModel

    gene, axes = str(needed.gene), dict(zip("xy", needed.numeric, strict=True))
    genes = checks.require_content(path, needed, within=within)
    metadata = pq.read_metadata(path)
    schema = metadata.schema.to_arrow_schema()
    there = schema.names
    further = {axis: name for axis, name in (further or {}).items() if name in there}
    checks.require_parquet(path, [], numeric=list(further.values()), in_parts=True)
    axes |= further
    columns = there if kept is None else [*axes.values(), gene, *(name for name in kept if name in there)]
    columns = [name for name in columns if not name.startswith("__index_level_")]
    empty = clear_known_categories(_as_frame(checks.decoded(path, schema.empty_table().select(columns))))
    # As dd.read_parquet does, which names no file where a page of it is damaged.
    options = {"path": path.absolute(), "columns": columns, "gene": gene, "genes": genes}
    frame = dd.from_map(_read_part, _parts(metadata), meta=_plain(empty, gene, genes), **options)
    return PointsModel.parse(
        frame,
        coordinates=axes,
        feature_key=gene,
        instance_key="cell_id" if "cell_id" in columns else None,
        transformations=dict(transformations),
        sort=True,
    )


def _parts(metadata: Any) -> list[list[int]]:
    """Numbers of row groups that make a partition together."""
    parts: list[list[int]] = []
    n_rows = PART_ROWS + 1
    for number in range(metadata.num_row_groups):
        n = metadata.row_group(number).num_rows
        if n_rows + n > PART_ROWS:
            parts.append([])
            n_rows = 0
        parts[-1].append(number)
        n_rows += n
    return parts


def _read_part(groups: list[int], path: Path, columns: list[str], gene: str, genes: list[str]) -> Any:
    """Molecules of some row groups; what is wrong with their pages is said with the name of the file."""
    import pyarrow.parquet as pq

    with checks.reading(path), pq.ParquetFile(path) as file:
        return _plain(_as_frame(checks.decoded(path, file.read_row_groups(groups, columns))), gene, genes)


def _as_frame(table: Any) -> Any:
    """A table of Arrow with all of its columns as columns, none of them as the index."""
    import pandas as pd
    import pyarrow as pa

    text = pd.StringDtype("pyarrow")
    frame = table.to_pandas(types_mapper={pa.string(): text, pa.large_string(): text}.get)
    return frame.reset_index(drop=not set(frame.index.names) & set(table.column_names))[table.column_names]


def _plain(frame: Any, gene: str, genes: list[str]) -> Any:
    """Text where the file has bytes; genes as categories."""
    import pandas as pd
    import pyarrow as pa
    import pyarrow.compute as pc

    def text(values: Any) -> Any:
        return pa.array(values.to_numpy(object), from_pandas=True).cast(pa.string())

    frame = frame.copy()
    if gene in frame:  # dask asks for those columns alone that are used
        codes = pc.index_in(text(frame[gene]), pa.array(genes, pa.string())).to_numpy(zero_copy_only=False)
        frame[gene] = pd.Categorical.from_codes(codes, categories=pd.Index(genes))
    if "cell_id" in frame and not pd.api.types.is_numeric_dtype(frame["cell_id"]):
        frame["cell_id"] = pd.array(text(frame["cell_id"]), dtype="string[pyarrow]")
    return frame
