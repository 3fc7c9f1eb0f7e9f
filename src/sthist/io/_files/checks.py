"""Checks of the files that are to be read, before anything expensive is done."""

from __future__ import annotations

import contextlib
import io
import warnings
import zipfile
from collections import deque
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from sthist._reading import open_bytes, require_memory
from sthist._reading import read_object as read_json
from sthist._reading import reading as reading
from sthist._reading import require_file as require_readable
from sthist.io._files import values
from sthist.io._files.images import (
    TIFF_SUFFIXES,
    any_size,
    orientation,
    read_image,
    require_checksums,
    require_fitting,
)
from sthist.io._files.tiff import open_tiff
from sthist.io._files.values import FARTHEST

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator, Sequence

    import pandas as pd
    from anndata import AnnData

# The last bytes of a whole picture: JPEG's end marker, PNG's last chunk.
PICTURE_ENDS = {".jpg": b"\xff\xd9", ".jpeg": b"\xff\xd9", ".png": b"IEND\xaeB`\x82"}
CHUNK_ROWS = 20_000
HEAD_ROWS = 1000
FEATURES = ("name", "id", "feature_type")  # what 10x matrices say of each gene
MOST = 1e300  # of which Python tells whether a whole number, of any length, is less
TAIL_BYTES = 4096
BLOCK_BYTES = 16 * 2**20


@dataclass(frozen=True)
class Needed:
    """A file that a reader needs, and what it has to hold."""

    name: str | tuple[str, ...]  # or patterns; the first that the folder has counts
    columns: tuple[str, ...] = ()
    numeric: tuple[str, ...] = ()  # further columns, or entries of a JSON object, that are numbers
    gene: str | None = None  # of a file of molecules: the column of their names; all of its rows are looked at
    switches: tuple[str, ...] = ()  # arguments of spatialdata-io that make it read the file; all are true by default


def require_files(folder: Path, vendor: str, files: Iterable[Needed], arguments: dict[str, Any]) -> None:
    """Refuse a folder of which a file that will be read is missing, truncated, empty, or without its columns."""
    for needed in files:
        if not needed.switches or any(arguments.get(switch, True) for switch in needed.switches):
            names = (needed.name,) if isinstance(needed.name, str) else needed.name
            require_content(require_file(folder, *names, vendor=vendor), needed)


def require_content(path: Path, needed: Needed, *, within: values.Box | None = None) -> list[str]:
    """Refuse a file that does not hold what is needed of it; the names of its genes, where it is one of molecules.

    Most molecules have to lie in the box ``within``, in their unit, where there is one.
    """
    molecules = [needed.gene] if needed.gene else []
    if path.suffix == ".parquet":
        columns = [*needed.columns, *needed.numeric, *molecules]
        require_parquet(path, columns, numeric=needed.numeric, in_parts=needed.gene is not None)
    elif path.suffix == ".csv":
        read_csv(path, [*needed.columns, *needed.numeric, *molecules], numeric=needed.numeric, nrows=HEAD_ROWS)
    elif path.suffix == ".json":
        content = read_json(path)
        for name in needed.numeric:
            require_number(path, content, name)
    elif path.suffix == ".zip":
        with reading(path), zipfile.ZipFile(path):
            pass
    elif path.suffix in {".png", ".tif"}:
        require_picture(path)
    return require_molecules(path, needed.gene, needed.numeric, within) if needed.gene else []


@contextlib.contextmanager
def quietly() -> Iterator[None]:
    """Keep what spatialdata-io prints, and what it is told about its own calls, from the user; nothing else."""
    with contextlib.redirect_stdout(io.StringIO()), warnings.catch_warnings():
        # Said of how spatialdata-io calls anndata and spatialdata; the user can do nothing about it.
        warnings.filterwarnings("ignore", "Converting `region_key: .*` to categorical dtype", UserWarning)
        yield


def require_file(folder: str | Path, *names: str, vendor: str) -> Path:
    """The first of these files (or folders) that a vendor's folder has."""
    path = find_file(folder, *names)
    if path is None:
        there = sorted(file.name for file in Path(folder).iterdir()) if Path(folder).is_dir() else []
        shown = f"It has {', '.join(there[:8])}{' ...' if len(there) > 8 else ''}." if there else "It is empty."
        if not Path(folder).is_dir():
            shown = "There is no such folder."
        raise FileNotFoundError(f"{folder} is no {vendor} folder: it has no {' and no '.join(names)}. {shown}")
    return path


def require_argument(path: str | Path, argument: str) -> Path:
    """A file that an argument names."""
    require_readable(path, f"{argument}=")
    return Path(path)


def find_file(folder: str | Path, *names: str) -> Path | None:
    """The first of these files that a folder has; None where it has none of them."""
    found = next((file for name in names for file in files_like(folder, name)), None)
    if found is None:  # what is there by name, but leads nowhere, is missed otherwise
        for name in names:
            if (Path(folder) / name).is_symlink():
                require_readable(Path(folder) / name)
    elif not found.is_dir():
        require_readable(found)
    return found


def is_there(path: Path) -> bool:
    """Whether a folder has a file that it may lack; what lies in its place, or a link to nowhere, is refused."""
    if path.exists() or path.is_symlink():
        require_readable(path)
        return True
    return False


def files_like(folder: str | Path, pattern: str) -> list[Path]:
    """Files of a folder by their names, without hidden ones: macOS leaves a ``._name`` beside each on other drives."""
    return [file for file in sorted(Path(folder).glob(pattern)) if not file.name.startswith(".")]


def require_number(path: Path, content: dict[str, Any], key: str) -> float:
    """A positive number of a JSON object."""
    if key not in content:
        raise KeyError(f"{path} has no {key!r}; it has {sorted(content)}.")
    value = content[key]
    if isinstance(value, bool) or not isinstance(value, int | float) or not 0 < value < MOST:
        raise ValueError(f"{path}: {key!r} is {value!r}; it should be a positive number.")
    return float(value)


def read_csv(path: Path, columns: Sequence[str], *, numeric: Sequence[str] = (), **kwargs: Any) -> pd.DataFrame:
    """A csv file, plain or compressed, whose columns are as they should be."""
    import pandas as pd

    with reading(path), open_bytes(path) as file:
        frame = pd.read_csv(file, **kwargs)
    require_columns(path, frame.columns, columns)
    require_rows(path, len(frame))
    require_numbers(path, frame, numeric)
    return frame


def read_counts(
    path: Path, name: Callable[[pd.DataFrame], pd.Index] | None = None, keys: Sequence[str] = ()
) -> tuple[Any, pd.Index, list[str]]:
    """A csv file of cells x genes, in parts: it would fill the memory as a whole.

    The columns ``keys`` name the cells; by default the first one does. Returns the counts as a csr matrix, the names of
    the cells, and the genes.
    """
    import pandas as pd
    from scipy import sparse

    genes: list[str] = []
    blocks, names = [], []
    with reading(path), open_bytes(path) as file, pd.read_csv(file, chunksize=CHUNK_ROWS) as chunks:
        for chunk in chunks:
            require_rows(path, len(chunk))
            names.append(pd.Index(chunk.iloc[:, 0].astype(str)) if name is None else name(chunk))
            genes = [str(column) for column in chunk if column not in (keys or chunk.columns[:1])]
            require_numbers(path, chunk, genes)
            blocks.append(sparse.csr_matrix(chunk[genes].to_numpy()))
    counts, rows = sparse.vstack(blocks, format="csr"), names[0].append(names[1:])
    values.require_named(path, "the header", genes)
    require_unique(path, pd.Index(genes), "gene")
    values.require_counts(str(path), counts, rows, pd.Index(genes), whole=False)
    return counts, rows, genes


def require_columns(path: Path, there: Iterable[Any], columns: Sequence[str]) -> None:
    """Refuse a table without some columns."""
    names = [str(name) for name in there]
    missing = [name for name in columns if name not in names]
    if missing:
        shown = f"{names[:12]}{' and more' if len(names) > 12 else ''}"
        raise KeyError(
            f"{path} has no column {', '.join(map(repr, missing))}; its columns are {shown}. Export the file again, or "
            "rename the column."
        )


def require_rows(path: Path, n: int, what: str = "rows") -> None:
    """Refuse a table that is empty."""
    if n == 0:
        raise ValueError(f"{path} has no {what}. Export it again.")


def require_numbers(path: str | Path, frame: pd.DataFrame, columns: Sequence[str]) -> None:
    """Refuse text, gaps and infinities where numbers should be."""
    import pandas as pd

    for name in columns:
        numbers = pd.to_numeric(frame[name], errors="coerce").to_numpy(np.float64)
        bad = ~np.isfinite(numbers)
        if bad.any():
            row = int(bad.argmax())
            raise ValueError(
                f"{path}: column {name!r} should hold numbers, but {int(bad.sum())} of {len(frame)} are none, the "
                f"first in row {frame.index[row]}: {str(frame[name].iloc[row])!r}. Is the file truncated, or a column "
                "shifted?"
            )


def require_parquet(
    path: Path,
    columns: Sequence[str],
    *,
    numeric: Sequence[str] = (),
    may_be_empty: bool = False,
    in_parts: bool = False,
) -> None:
    """Check a parquet file by its footer, without reading its rows, and that they fit into memory but for parts."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    with reading(path):
        file = pq.ParquetFile(path)
        schema, n_rows = file.schema_arrow, file.metadata.num_rows
        file.close()
    require_columns(path, schema.names, columns)
    for name in numeric:
        kind = schema.field(name).type
        if not (pa.types.is_integer(kind) or pa.types.is_floating(kind)):
            raise ValueError(f"{path}: column {name!r} holds {kind}; it should hold numbers.")
    if not may_be_empty:
        require_rows(path, n_rows)
    if not in_parts:
        require_memory(path, 8 * n_rows * len(schema.names), f"{n_rows} rows of {len(schema.names)} columns")


def decoded(path: Path, table: Any) -> Any:
    """A table of Arrow with text where the file has bytes, as instruments write names."""
    import pyarrow as pa

    for number, field in enumerate(table.schema):
        if pa.types.is_binary(field.type) or pa.types.is_large_binary(field.type):
            try:
                column = table.column(number).cast(pa.string())
            except pa.ArrowInvalid:
                raise ValueError(
                    f"{path}: column {field.name!r} holds bytes that are no text (UTF-8). Is the file damaged? Export "
                    "it again."
                ) from None
            table = table.set_column(number, field.name, column)
    return table


def read_parquet(path: str | Path, columns: Sequence[str] | None = None) -> pd.DataFrame:
    """A parquet file, which is whole and fits into memory."""
    import pyarrow.parquet as pq

    path = Path(path)
    require_readable(path)
    require_parquet(path, columns or [])
    with reading(path):
        table = pq.read_table(path, columns=None if columns is None else list(columns), use_pandas_metadata=True)
        return decoded(path, table).to_pandas()


def require_flat(path: Path, frame: pd.DataFrame) -> None:
    """Refuse a table with lists in a column."""
    for name in frame:
        first = frame[name].iloc[0] if len(frame) and frame[name].dtype == object else None
        if isinstance(first, list | dict | np.ndarray):
            raise ValueError(f"{path}: column {name!r} holds lists; it should hold one value a row. Export it again.")


def require_molecules(path: Path, gene: str, numeric: Sequence[str], within: values.Box | None = None) -> list[str]:
    """Refuse gaps and text among the coordinates and names of molecules, in one pass that holds none of them.

    Returns the names of the genes, sorted.
    """
    import pyarrow as pa
    import pyarrow.csv
    import pyarrow.parquet as pq

    columns = [gene, *numeric]
    if path.suffix == ".parquet":
        with reading(path), pq.ParquetFile(path) as file:
            return _require_values(path, file.iter_batches(columns=columns), gene, numeric, within)
    require_last_line(path)
    types = dict.fromkeys(columns, pa.string())
    convert = pa.csv.ConvertOptions(include_columns=columns, column_types=types, strings_can_be_null=True)
    blocks = pa.csv.ReadOptions(block_size=BLOCK_BYTES)
    with reading(path), pa.csv.open_csv(path, read_options=blocks, convert_options=convert) as batches:
        return _require_values(path, batches, gene, numeric, within)


def _require_values(
    path: Path, batches: Iterable[Any], gene: str, numeric: Sequence[str], within: values.Box | None
) -> list[str]:
    import pyarrow as pa
    import pyarrow.compute as pc

    n_before, n_outside, first_outside, genes = 0, 0, None, set()
    for batch in batches:
        numbers = {name: _numbers(batch.column(name)) for name in numeric}
        names = batch.column(gene)
        if pa.types.is_nested(names.type):
            raise ValueError(f"{path}: column {gene!r} holds {names.type}; it should hold names of genes.")
        for name in (gene, *numeric):
            column = batch.column(name)
            is_name = name == gene
            empty = column.is_null().to_numpy(zero_copy_only=False)
            bad = empty if is_name else ~(np.abs(numbers[name]) <= FARTHEST)
            if bad.any():
                row = int(bad.argmax())
                raise ValueError(
                    f"{path}: column {name!r} should hold {'names of genes' if is_name else 'numbers'}, but row "
                    f"{n_before + row} has {column[row].as_py()!r}. Is a column shifted? Correct the row, or leave it "
                    "out."
                )
        unique = pc.unique(names)
        unique = unique.dictionary_decode() if pa.types.is_dictionary(unique.type) else unique
        genes |= set(unique.cast(pa.string()).to_pylist())
        if within is not None:
            x, y = (numbers[name] for name in numeric[:2])
            outside = (x < within[0]) | (y < within[1]) | (x > within[2]) | (y > within[3])
            if outside.any() and first_outside is None:
                first_outside = (x[outside][0], y[outside][0])
            n_outside += int(outside.sum())
        n_before += batch.num_rows
    if any(not name.strip() for name in genes):
        raise ValueError(f"{path}: column {gene!r} should hold names of genes, but has empty ones. Export it again.")
    if n_outside and within is not None:
        fields = ", ".join(numeric[:2])
        about: dict[str, Any] = {"what": "molecules", "unit": "in their unit", "most": values.HALF}
        values.say_outside(path, fields, n_outside, n_before, first_outside, within, "the image", **about)
    return sorted(genes)


def _numbers(values: Any) -> np.ndarray:
    """Numbers, also of text, which is fast where all are; nan where one is none."""
    import pandas as pd
    import pyarrow as pa

    try:
        numbers = values.cast(pa.float64()) if pa.types.is_string(values.type) else values
        return np.asarray(numbers.to_numpy(zero_copy_only=False), np.float64)
    except pa.ArrowInvalid:
        return np.asarray(pd.to_numeric(values.to_pandas(), errors="coerce"), np.float64)


def require_last_line(path: Path) -> None:
    """Refuse a csv file that ends in the middle of a line, whose last value may be cut."""
    with reading(path), open_bytes(path) as file:
        first = file.readline()
        if path.suffix == ".gz":
            tail = b"".join([first, *deque(iter(lambda: file.read(BLOCK_BYTES), b""), maxlen=2)])
        else:
            file.seek(max(0, path.stat().st_size - TAIL_BYTES))
            tail = file.read()
    n_fields = len(first.split(b","))
    last = tail.rstrip(b"\r\n").rsplit(b"\n", 1)[-1]
    if len(last.split(b",")) < n_fields:
        shown = last[:60].decode(errors="replace")
        raise ValueError(f"{path} ends within a line: {shown!r} has fewer than {n_fields} fields. Is it truncated?")


def require_unique(path: Path, names: Any, what: str, by: str = "") -> None:
    """Refuse names, an index or a column, of which one is there twice."""
    again = names.duplicated()
    if again.any():
        raise ValueError(
            f"{path} has {what} {names[again].tolist()[0]!r}{by and f' ({by})'} more than once. Remove the wrong one, "
            "or export the file again."
        )


def require_hdf5(path: Path) -> None:
    """Refuse an HDF5 file whose datasets would fill the memory."""
    import h5py

    sizes: dict[str, int] = {}

    def add(name: str, item: Any) -> None:
        if isinstance(item, h5py.Dataset) and item.nbytes:
            sizes[name] = int(item.nbytes)

    with reading(path), h5py.File(path) as file:
        file.visititems(add)
        if sizes:
            largest = max(sizes, key=sizes.__getitem__)
            require_memory(path, sizes[largest], f"{file[largest].size} values in {largest!r}")


def read_matrix(path: Path, *, genome: str | None = None, gex_only: bool = True, **options: Any) -> AnnData:
    """Counts of a 10x matrix file, as :func:`scanpy.read_10x_h5` reads them, after :func:`require_matrix`."""
    import scanpy as sc

    table = sc.read_10x_h5(path, gex_only=False, **options)
    values.require_sparse_matrix(f"{path}: matrix", table.X)  # before compiled code follows its indices
    kept = np.ones(table.n_vars, bool)
    if genome:
        kept &= (table.var["genome"] == genome).to_numpy()
        if not kept.any():
            there = ", ".join(map(repr, table.var["genome"].unique()))
            raise ValueError(f"{path} has no genes of genome {genome!r}; it has those of {there}.")
    if gex_only:
        kept &= (table.var["feature_types"] == "Gene Expression").to_numpy()
    return table if kept.all() else table[:, kept].copy()


def require_matrix(path: Path, *, indices: bool = True) -> np.ndarray:
    """Check a 10x matrix file but for its counts, and give its barcodes.

    Its indices take long to read; :func:`read_matrix` looks at them, too.
    """
    import h5py
    import pandas as pd

    require_hdf5(path)
    with reading(path), h5py.File(path) as file:
        needed = ["barcodes", "data", "indices", "indptr", "shape", "features"]
        matrix = file.get("matrix", {})
        missing = [f"matrix/{name}" for name in needed if name not in matrix]
        features = matrix.get("features", {})
        if "features" in matrix:
            missing += [f"matrix/features/{name}" for name in FEATURES if name not in features]
        if missing:
            raise KeyError(
                f"{path} has no {', '.join(missing)}; a count matrix of 10x has {', '.join(needed)} in the group "
                "matrix."
            )
        shape = matrix["shape"]
        if shape.dtype.kind not in "iu" or shape.shape != (2,):
            raise ValueError(
                f"{path}: matrix/shape is {shape.dtype} of shape {shape.shape}; it should be two whole numbers. Copy "
                "it again."
            )
        n_features, n_barcodes = (int(number) for number in shape[()])
        require_rows(path, n_barcodes, "barcodes (matrix/shape)")
        require_rows(path, n_features, "features (matrix/shape)")
        starts, columns, counts = (matrix[name] for name in ("indptr", "indices", "data"))
        values.require_sparse(f"{path}: matrix", starts, columns, counts, (n_barcodes, n_features), within=indices)
        barcodes = _require_texts(path, "matrix/barcodes", matrix["barcodes"], n_barcodes)
        of_features = {
            name: _require_texts(path, f"matrix/features/{name}", features[name], n_features)
            for name in (*FEATURES, "genome")
            if name in features
        }
    values.require_named(path, "matrix/features/name", of_features["name"])
    values.require_named(path, "matrix/barcodes", barcodes)
    require_unique(path, pd.Index(barcodes), "barcode", "matrix/barcodes")
    return barcodes


def _require_texts(path: Path, name: str, stored: Any, n: int) -> np.ndarray:
    """The texts of an HDF5 dataset, of which there have to be as many."""
    if stored.dtype.kind not in "SO" or stored.shape != (n,):
        raise ValueError(
            f"{path}: {name} holds {stored.dtype} of shape {stored.shape}; it should hold {n} texts, as matrix/shape "
            "says. Copy it again."
        )
    try:
        return np.asarray(stored[()].astype(str))
    except UnicodeDecodeError:
        raise ValueError(f"{path}: {name} holds bytes that are no text (UTF-8). Copy it again.") from None


def require_picture(path: Path) -> tuple[tuple[int, int, int], Any]:
    """Check a picture without decoding it, and give its shape, (c, y, x), and the type of its pixels."""
    from PIL import Image

    require_readable(path)
    if path.suffix.lower() in TIFF_SUFFIXES:
        pixels = open_tiff(path, read=False)[0][0]
        return (pixels.shape[0], pixels.shape[-2], pixels.shape[-1]), pixels.dtype
    with reading(path), any_size(), Image.open(path) as picture:
        require_fitting(path, picture)
        if picture.format == "PNG":
            require_checksums(path)
        mode, (width, height) = picture.mode, picture.size
        if orientation(picture) > 4:  # it lies on its side
            width, height = height, width
    with path.open("rb") as file:
        file.seek(max(0, path.stat().st_size - 1024))  # some writers leave padding behind the end
        if PICTURE_ENDS.get(path.suffix.lower(), b"") not in file.read():
            raise ValueError(f"{path} cannot be read: the picture ends before it is complete. Is it truncated?")
    return (1 if mode in {"L", "I;16"} else 3, height, width), np.dtype(np.uint16 if mode == "I;16" else np.uint8)


def picture_pixels(path: Path) -> Any:
    """Pixels of a picture as a dask array of (c, y, x): a TIFF window by window, others decoded when first needed."""
    import dask
    import dask.array as da

    if path.suffix.lower() in TIFF_SUFFIXES:
        return read_image(path, path.name).pixels
    shape, dtype = require_picture(path)
    return da.from_delayed(dask.delayed(_decode, pure=False)(path), shape, dtype=dtype)


def _decode(path: Path) -> np.ndarray:
    return np.ascontiguousarray(read_image(path, path.name).pixels)
