"""Log-normalised expression of several samples, with genes under one name in all of them."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from sthist._messages import listed, plain
from sthist._sample.samples import naming, samples_of
from sthist._settings import logger
from sthist._tables.expression import log_expression
from sthist._tables.find import called, find_expression
from sthist._tables.genes import compared_names, match_names, names_of_table, species_of

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from anndata import AnnData
    from scipy.sparse import csr_matrix

ANY = "any"


@dataclass(frozen=True, eq=False)
class Slide:
    """One sample."""

    name: str
    data: Any
    table: str | None
    adata: AnnData
    genes: list[str]  # sorted
    columns: np.ndarray  # of the table, for each gene
    expression: csr_matrix  # (rows, genes) logarithms
    rows: np.ndarray


def slides_of(
    data: Any,
    table: str | None,
    samples: Sequence[str] | None,
    rows: Mapping[str, Any] | None,
    species: str | None,
) -> tuple[list[Slide], str | None]:
    """The samples that count, in the order of their names, and their species."""
    chosen = _chosen(data, samples, rows)
    tables = {name: find_expression(each, table) for name, each in chosen.items()}
    for name, (key, adata) in tables.items():
        if 0 in adata.shape:
            raise ValueError(
                f"{called(key)} of sample {name!r} is empty: it has {adata.n_obs} rows and {adata.n_vars} genes."
            )
    tables, species = _of_one_species(tables, species)
    named = {name: names_of_table(adata, side=name) for name, (_, adata) in tables.items()}
    fold = species == ANY
    first = next(iter(named))
    # A sample alone is matched with itself, so that versions of Ensembl ids and controls are treated alike.
    match = match_names(named if len(named) > 1 else named | {" ": named[first]}, first, ignore_case=fold)
    slides = []
    for name, (key, adata) in tables.items():
        with naming(name):
            genes, columns = _names(named[name][match.columns[name]], fold)
            if len(columns) < adata.n_vars and adata.var_names.has_duplicates:
                twice = adata.var_names[adata.var_names.duplicated()]
                logger.warning(
                    "%s of sample %r has %d genes more than once, such as %r; the first of each is taken. pp.genes "
                    "sums their counts.",
                    called(key),
                    name,
                    twice.nunique(),
                    plain(twice[0]),
                )
            where = f"{called(key)} of sample {name!r}"
            index = _rows(rows, name, adata.n_obs)
            expression = log_expression(adata, where)[index][:, columns]
            slides.append(Slide(name, chosen[name], key, adata, genes, columns, expression, index))
    return slides, species


def common_genes(slides: list[Slide]) -> list[str]:
    """The genes that all slides have, sorted."""
    return sorted(set.intersection(*(set(slide.genes) for slide in slides)))


def _chosen(data: Any, samples: Sequence[str] | None, rows: Mapping[str, Any] | None) -> dict[str, Any]:
    """Samples by name, sorted; those that are named, where any are."""
    every = {sample.name: sample.data for sample in samples_of(data)}
    if samples is None:
        names = list(every) if rows is None else list(rows)
    else:
        names = [samples] if isinstance(samples, str) else list(samples)
    for wanted in (names, rows or ()):
        unknown = [name for name in wanted if name not in every]
        if unknown:
            raise KeyError(f"There is no sample {plain(unknown[0])!r}; there are {listed(every)}.")
    if not names:
        raise ValueError("samples= names no sample.")
    return {name: every[name] for name in sorted(set(names))}


def _of_one_species(
    tables: dict[str, tuple[str | None, AnnData]], species: str | None
) -> tuple[dict[str, tuple[str | None, AnnData]], str | None]:
    """The tables of the species that is meant."""
    if species == ANY:
        return tables, ANY
    found = {name: species_of(adata.var_names) for name, (_, adata) in tables.items()}
    kinds = sorted({each for each in found.values() if each is not None})
    if species is None:
        if len(kinds) > 1:
            by_kind = "; ".join(f"{kind}: {listed([n for n in found if found[n] == kind], 4)}" for kind in kinds)
            raise ValueError(
                f"Samples are of several species ({by_kind}), which have hardly a gene name in common. Pass "
                f"species={kinds[0]!r} to leave the others out, or species='any' to take names as one whatever their "
                "case."
            )
        return tables, kinds[0] if kinds else None
    kept = {name: each for name, each in tables.items() if found[name] in (species, None)}
    if not kept:
        raise ValueError(f"No sample is of species {species!r}; by the names of their genes they are {found}.")
    left = [name for name in tables if name not in kept]
    if left:
        logger.info("%d samples are not of species %s and are left out: %s.", len(left), species, listed(left))
    return kept, species


def _names(values: Any, fold: bool) -> tuple[list[str], np.ndarray]:
    """Names of the genes of a column of var, sorted, each once, and where each is first."""
    compared = compared_names(values)
    compared = np.array([name.upper() for name in compared], dtype=object) if fold else compared
    names, first = np.unique(compared.astype(str), return_index=True)
    there = names != ""
    return names[there].tolist(), first[there]


def _rows(rows: Mapping[str, Any] | None, name: str, n: int) -> np.ndarray:
    """The rows of a sample that count, as numbers."""
    if rows is None or name not in rows:
        return np.arange(n)
    given = np.asarray(rows[name])
    given = given if given.dtype == bool or len(given) else np.empty(0, int)
    if given.dtype == bool and given.shape != (n,):
        raise ValueError(f"rows of sample {name!r} has {len(given)} values; the table has {n} rows.")
    if given.dtype != bool and len(given) and not (given.min() >= 0 and given.max() < n):
        raise ValueError(f"rows of sample {name!r} go up to {given.max()}; the table has {n} rows.")
    index = np.arange(n)[given]
    if not len(index):
        raise ValueError(f"rows= leaves no row of sample {name!r}.")
    return index
