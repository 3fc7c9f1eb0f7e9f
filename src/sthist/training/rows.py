"""Rows of one sample or several as one list, with a label or without."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from sthist import scale
from sthist._sample.elements import region_geometry
from sthist._sample.samples import Sample, samples_of
from sthist._settings import logger
from sthist._tables.find import find_table
from sthist._tables.genes import closest
from sthist._tables.labels import as_classes
from sthist.tiles._spec import same_scale
from sthist.training.batches import Tiles
from sthist.training.embeddings import (
    Origin,
    effective_mpp,
    find_embedding,
    is_folder,
    origin_of,
    stored_embedding,
    table_spec,
    tiles_of,
)
from sthist.training.split_groups import units_of

if TYPE_CHECKING:
    from collections.abc import Sequence

    import pandas as pd
    from anndata import AnnData

    from sthist.tiles import TileSpec
    from sthist.training.splits import Units


@dataclass(frozen=True, eq=False)
class SampleRows:
    """Rows of the tables of one sample or several, as one list."""

    samples: list[Sample]  # the samples, their tables, and what to call these
    tables: list[AnnData]
    names: list[str]
    sample: np.ndarray  # (n,) which sample, and which row of its table, each of the rows is
    row: np.ndarray

    def __len__(self) -> int:
        return len(self.row)

    def units(self, size_um: float | None) -> Units:
        """By what the rows can be split."""
        starts = np.cumsum([0, *(adata.n_obs for adata in self.tables)])[:-1]
        placed = all("spatial" in adata.obsm for adata in self.tables)
        centres = [adata.obsm["spatial"] for adata in self.tables] if placed else None
        frames = [adata.obs for adata in self.tables]
        return units_of(self.samples, frames, centres, size_um, starts[self.sample] + self.row)


@dataclass(frozen=True, eq=False)
class Labelled(SampleRows):
    """Rows with a label."""

    codes: np.ndarray  # (n,) class of each, and the names of the classes
    classes: list[str]
    n_unlabelled: int  # rows that have none


def labelled_rows(
    data: Any,
    label: str,
    *,
    table: str | None,
    samples: Any,
    classes: Sequence[str] | None,
    within: Any = None,
) -> Labelled:
    """Collect the rows that have a label and lie within a region, if one is given."""
    listed = samples_of(data, samples)
    keyed = [
        find_table(each.data, table, lambda adata: label in adata.obs, f"a column {label!r}", label) for each in listed
    ]
    tables = [adata for _, adata in keyed]
    names = [
        f"{'the AnnData' if key is None else f'table {key!r}'} of sample {each.name!r}"
        for each, (key, _) in zip(listed, keyed, strict=True)
    ]
    for adata, name in zip(tables, names, strict=True):
        if label not in adata.obs:
            raise KeyError(
                f"{name} has no column {label!r}; it has "
                f"{list(map(str, adata.obs.columns))}.{closest(label, adata.obs.columns)}"
            )
    labels = [adata.obs[label] for adata in tables]
    codes, known = as_classes(labels[0] if len(labels) == 1 else _together(labels), f"Column {label!r}")
    if classes is not None:
        codes, known = _chosen(codes, known, [str(name) for name in classes])
    used = np.unique(codes[codes >= 0])
    codes = np.where(codes >= 0, np.searchsorted(used, codes), -1)
    known = [known[k] for k in used]
    sizes = [adata.n_obs for adata in tables]
    sample, row = np.repeat(np.arange(len(sizes)), sizes), np.concatenate([np.arange(n) for n in sizes])
    if within is not None:
        inside = [
            _inside(each.data, adata, within, name) for each, adata, name in zip(listed, tables, names, strict=True)
        ]
        codes = np.where(np.concatenate(inside), codes, -1)
    there = codes >= 0
    n_unlabelled = int((codes < 0).sum())
    if n_unlabelled:
        logger.info(
            "%d of %d rows have no label in %r, or one that is not asked for; they are left out.",
            n_unlabelled,
            len(codes),
            label,
        )
    _require_enough(codes[there], known, label)
    return Labelled(listed, tables, names, sample[there], row[there], codes[there], known, n_unlabelled)


def _inside(data: Any, adata: Any, within: Any, name: str) -> np.ndarray:
    """Which rows lie within a region, by their places in µm."""
    import shapely

    if "spatial" not in adata.obsm:
        raise ValueError(f"within= needs the places of rows, and {name} has no obsm['spatial'] (x, y in µm).")
    return shapely.contains_xy(region_geometry(data, within), *np.asarray(adata.obsm["spatial"])[:, :2].T)


def features_of(rows: SampleRows, embedding: str | None) -> tuple[np.ndarray, str, Origin]:
    """Embeddings of the rows, (n, d) float32, their key, and what made them."""
    tables, key, origin = stored_features(rows, embedding)
    parts = [np.asarray(table, np.float32)[rows.row[rows.sample == i]] for i, table in enumerate(tables)]
    return np.concatenate(parts), key, origin


def stored_features(rows: SampleRows, embedding: str | None) -> tuple[list[np.ndarray], str, Origin]:
    """Embeddings of all rows of each table as they are stored, their key, and what made them."""
    keys = [find_embedding(adata, embedding, name) for adata, name in zip(rows.tables, rows.names, strict=True)]
    if len(set(keys)) > 1:
        other = next(i for i, key in enumerate(keys) if key != keys[0])
        raise ValueError(
            f"{rows.names[0]} has the embedding {keys[0]!r}, {rows.names[other]} has {keys[other]!r}. Say which with "
            "encoder=."
        )
    origins = [origin_of(adata, keys[0]) for adata in rows.tables]
    for origin, name in zip(origins, rows.names, strict=True):
        _require_alike(origins[0], origin, rows.names[0], name)
    tables = [stored_embedding(adata, keys[0], name) for adata, name in zip(rows.tables, rows.names, strict=True)]
    widths = {table.shape[1] for table in tables}
    if len(widths) > 1:
        raise ValueError(
            f"obsm[{keys[0]!r}] has {sorted(widths)} dimensions in the samples; one encoder gives one number."
        )
    return tables, keys[0], origins[0]


def pixels_of(rows: SampleRows, encoder: Any, spec: TileSpec | None, image: str | None) -> tuple[Tiles, TileSpec]:
    """Tiles of the rows, and their spec: given, that of the tables, or the encoder's own."""
    chosen = spec or _common_spec(rows) or encoder.spec
    if chosen is None:
        raise ValueError("How large the tiles are is not known: give spec=TileSpec(size_um=..., px=...).")
    if encoder.spec is not None and spec is None:
        seen, meant = effective_mpp(chosen, encoder), effective_mpp(encoder.spec, encoder)
        if abs(seen / meant - 1) > scale.TOLERANCE:
            raise ValueError(
                f"{encoder.name!r} was trained at {meant:.4g} µm/px (tiles of {encoder.spec.size_um:g} µm), and would "
                f"see these tiles of {chosen.size_um:g} µm at {seen:.4g} µm/px. Lay tiles of its size, or give spec= "
                "if you want it nevertheless."
            )
    sources = [
        tiles_of(sample.data, adata, chosen, image, name, coarser='Pass training={{"spec": {}}}, or coarser.')
        for sample, adata, name in zip(rows.samples, rows.tables, rows.names, strict=True)
    ]
    readers, places = ([source[i] for source in sources] for i in (0, 1))
    return Tiles(readers, places, rows.sample, rows.row), chosen


def _together(labels: list[pd.Series]) -> pd.Series:
    """One column of several; categories in their order, if all are categorical."""
    import pandas as pd

    if not all(isinstance(each.dtype, pd.CategoricalDtype) for each in labels):
        return pd.concat([each.astype(object) for each in labels])
    categories = list(dict.fromkeys(name for each in labels for name in each.cat.categories))
    return pd.concat([each.astype(pd.CategoricalDtype(categories)) for each in labels])


def _chosen(codes: np.ndarray, known: list[str], wanted: list[str]) -> tuple[np.ndarray, list[str]]:
    """Codes among the classes that are wanted, in their order; -1 for the others."""
    there = {known[k] for k in np.unique(codes[codes >= 0])}
    missing = [name for name in wanted if name not in there]
    if missing or len(set(wanted)) < len(wanted):
        raise ValueError(f"classes= is {wanted}: each once, and each of some row; the labels are {known}.")
    new = np.array([wanted.index(name) if name in wanted else -1 for name in known] + [-1])
    return new[codes], wanted


def _require_enough(codes: np.ndarray, classes: list[str], label: str) -> None:
    if len(classes) < 2:
        raise ValueError(f"Column {label!r} has the class {classes[0]!r} only; there is nothing to tell apart.")
    counts = np.bincount(codes, minlength=len(classes))
    if counts.min() < 2:
        name = classes[int(counts.argmin())]
        rest = [other for other, n in zip(classes, counts, strict=True) if n > 1]
        raise ValueError(
            f"Class {name!r} of {label!r} has one row: it cannot be trained on and tested. Add rows, merge it with "
            f"another class, or leave it out with classes={rest}."
        )


def _require_alike(first: Origin, other: Origin, name: str, other_name: str) -> None:
    """Refuse embeddings of samples that are not of one encoder and scale."""
    for what, one, two in (("encoders", first.encoder, other.encoder), ("weights", first.sha256, other.sha256)):
        if None not in (one, two) and one != two:
            raise ValueError(
                f"The embeddings of {name} and of {other_name} are of different {what}: {one!r} and {two!r}."
            )
    if first.spec is not None and other.spec is not None and not same_scale(first.spec, other.spec):
        raise ValueError(f"The embeddings of {name} are of {first.spec}, those of {other_name} of {other.spec}.")


def _common_spec(rows: SampleRows) -> TileSpec | None:
    specs = [
        (table_spec(adata), name) for adata, name in zip(rows.tables, rows.names, strict=True) if not is_folder(adata)
    ]
    known = [(spec, name) for spec, name in specs if spec is not None]
    for spec, name in known[1:]:
        if not same_scale(spec, known[0][0]):
            raise ValueError(
                f"Tiles of {known[0][1]} are {known[0][0]}, those of {name} {spec}; all are read at one scale: spec=."
            )
    return known[0][0] if known else None
