"""Several samples: a mapping of name to object, never one plane."""

from __future__ import annotations

import functools
import inspect
import os
import re
from collections.abc import Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

from sthist._messages import plain
from sthist._sample.elements import safe_key
from sthist._sample.sample_csv import read_sample_csv
from sthist._sample.verbs import require_store
from sthist._sample.verbs import verb as takes_stores
from sthist._settings import logger

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator

    import pandas as pd

NOTHING = ("", "NA", "N/A", "n/a", "<NA>", "#N/A", "NaN", "nan", "None", "null", "NULL")
"""What stands in a table of samples where nothing is known, as pandas has it."""

Verb = TypeVar("Verb", bound="Callable[..., Any]")


@dataclass(frozen=True)
class Sample:
    """One sample of a study."""

    name: str  # as it was given
    data: Any  # a SpatialData or an AnnData
    # whom it is of; None where it is not known, or where the sample holds several patients, as a microarray does
    patient: str | None = None
    batch: str | None = None  # what it was made with others in; None where it is not known


def samples_of(data: Any, table: Any = None) -> list[Sample]:
    """The samples that an argument holds, checked, each with its patient and batch.

    Those come from ``table``, else from ``attrs["sthist"]["sample"]`` (``uns`` of an AnnData), which readers fill, else
    from a column ``patient`` or ``batch`` of the observations that has one value.
    """
    if not isinstance(data, Mapping):
        data = {str(_facts(data).get("name") or "sample"): data}
    _require_names(data)
    facts = None if table is None else read_sample_table(table, data)
    samples = [
        Sample(name, each, *(_fact(name, each, facts, column) for column in ("patient", "batch")))
        for name, each in data.items()
    ]
    require_one_spelling([sample.patient for sample in samples])
    return samples


def over_samples(verb: Verb) -> Verb:
    """Let a verb take a mapping of sample name to object, or to the path of its store: it runs on one after the other.

    What it returns is then a mapping, too, or None if it returns nothing. An error says in which sample; those before
    it keep their results.
    """
    of_one = takes_stores(verb)

    @functools.wraps(verb)
    def run(data: Any, *args: Any, **kwargs: Any) -> Any:
        if not isinstance(data, Mapping):
            return of_one(data, *args, **kwargs)
        _require_names(data)
        results = {}
        for name, each in data.items():
            logger.info("Sample %s.", name)
            with naming(name):
                results[plain(name)] = of_one(each, *args, **kwargs)  # a store is opened when its turn has come
        return None if all(result is None for result in results.values()) else results

    run.__signature__ = inspect.signature(verb)  # type: ignore[attr-defined]
    return run  # type: ignore[return-value]


def read_sample_table(table: Any, names: Iterable[str]) -> pd.DataFrame:
    """Patient and batch by sample."""
    import pandas as pd

    what = "the table of samples"
    if isinstance(table, str | Path):
        what = str(table)
        read = read_sample_csv(Path(table))
        table = pd.DataFrame(read.rows, columns=read.columns, dtype=object).replace(list(NOTHING), None)
    if "sample" in table.columns:
        table = table.set_index("sample")
    if not {"patient", "batch"} & set(table.columns):
        raise KeyError(f"{what} has neither a column 'patient' nor 'batch'; it has {list(map(str, table.columns))}.")
    table.index = table.index.map(str)
    twice = table.index[table.index.duplicated()]
    if len(twice):
        raise ValueError(f"{what} has sample {plain(twice[0])!r} more than once.")
    missing = [name for name in names if name not in table.index]
    if missing:
        raise ValueError(
            f"{what} lacks {len(missing)} of the samples, such as {missing[0]!r}; it has {list(table.index[:5])}."
        )
    return table


def require_one_spelling(patients: Iterable[Any]) -> None:
    """Refuse a patient under two names: their samples would be split as if they were of two."""
    spellings: dict[str, str] = {}
    for patient in patients:
        if patient is None or patient != patient:  # NaN is not itself
            continue
        name = str(patient)
        plain = re.sub(r"(?<!\d)0+(?=\d)", "", re.sub(r"[\s_.-]+", "", name).casefold())
        known = spellings.setdefault(plain, name)
        if known != name:
            raise ValueError(
                f"{known!r} and {name!r} look like one patient under two names. Write them alike, or more differently."
            )


def patients_of_rows(sample: Sample, obs: pd.DataFrame) -> pd.Series:
    """The patient of each row of a table: its own column, else the sample's, else the sample's name.

    Where nobody is named, a sample counts as a patient of its own: that is the most that can be known not to be shared.
    """
    import pandas as pd

    if "patient" in obs and obs["patient"].notna().any():
        return obs["patient"].astype(object)
    name = sample.patient if sample.patient is not None else sample.name
    return pd.Series(name, index=obs.index, dtype=object)


def safe_names(names: Iterable[str]) -> dict[str, str]:
    """A name for a file or an element, for each name: safe, and no two alike, also where case does not count."""
    safe: dict[str, str] = {}
    taken: set[str] = set()
    for name in names:
        key, number = safe_key(name), 2
        while key.casefold() in taken:
            key, number = f"{safe_key(name)}_{number}", number + 1
        taken.add(key.casefold())
        safe[name] = key
    return safe


@contextmanager
def naming(sample: str) -> Iterator[None]:
    """Say of an error that passes by in which sample it arose."""
    try:
        yield
    except BaseException as error:
        error.add_note(f"In sample {sample!r}.")
        raise


def _require_names(data: Mapping[Any, Any]) -> None:
    if not data:
        raise ValueError("There are no samples: the mapping is empty.")
    names: dict[int | Path, str] = {}
    for name, each in data.items():
        if not isinstance(name, str) or not name.strip():
            raise ValueError(f"The name of a sample is a text that is not empty, not {plain(name)!r}.")
        is_path = isinstance(each, str | os.PathLike)
        if not (is_path or hasattr(each, "images") or hasattr(each, "obs_names")):
            raise TypeError(
                f"Sample {plain(name)!r} is a {type(each).__name__}; it must be a SpatialData, an AnnData, or the path "
                "of a store."
            )
        known = names.setdefault(require_store(each).resolve() if is_path else id(each), plain(name))
        if known != name:
            raise ValueError(f"Samples {known!r} and {plain(name)!r} are one and the same object.")


def _facts(data: Any) -> dict[str, Any]:
    """What a reader recorded of a sample."""
    if not (hasattr(data, "images") or hasattr(data, "obs_names")):
        raise TypeError(f"A SpatialData, an AnnData or a mapping of name to such is needed, not {type(data).__name__}.")
    kept = data.attrs if hasattr(data, "attrs") else data.uns
    recorded = kept.get("sthist", {}).get("sample", {})
    return dict(recorded)


def _fact(name: str, data: Any, table: pd.DataFrame | None, column: str) -> str | None:
    if table is not None and column in table:
        value = table[column].to_dict()[name]
        return None if value is None or value != value else str(value)
    recorded = _facts(data).get(column)
    if recorded is not None:
        return str(recorded)
    frames = [data.obs] if hasattr(data, "obs") else [adata.obs for adata in data.tables.values()]
    values = {str(value) for frame in frames if column in frame for value in frame[column].dropna().unique()}
    return values.pop() if len(values) == 1 else None
