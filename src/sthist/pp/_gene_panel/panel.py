"""The genes of a study: those that all slides have, and those that are telling in any."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from sthist import _store
from sthist._sample.verbs import verb
from sthist._settings import logger
from sthist.pp._gene_panel.sets import by_mean, dispersions
from sthist.pp._gene_panel.slides import common_genes, slides_of

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    import pandas as pd
    from anndata import AnnData
    from spatialdata import SpatialData

KEY = "gene_panel"


@dataclass(frozen=True, eq=False, repr=False)
class GenePanel:
    """The genes of a study.

    Attributes
    ----------
    genes
        Their names, sorted.
    var
        One row per gene: ``common`` (all slides have it), ``n_samples`` that have it, and in how many it is among the
        most ``variable`` and the most ``expressed``.
    measured
        Bool, slides by genes: whether a slide has the gene.
    species
        ``"human"``, ``"mouse"``, ...; ``"any"`` if asked for; None where names do not say.

    Examples
    --------
    >>> import sthist
    >>> sdata = sthist.datasets.toy("visium", size_um=900)
    >>> panel = sthist.pp.gene_panel(sdata, n_top=10)
    >>> panel
    GenePanel of 60 genes: 60 common to 1 samples, 0 more of the most variable or expressed
    """

    genes: list[str]
    var: pd.DataFrame
    measured: pd.DataFrame
    species: str | None

    def __repr__(self) -> str:
        common = int(self.var["common"].sum())
        return (
            f"GenePanel of {len(self.genes)} genes: {common} common to {len(self.measured)} samples, "
            f"{len(self.genes) - common} more of the most variable or expressed"
        )

    def __iter__(self) -> Any:
        return iter(self.genes)

    def __len__(self) -> int:
        return len(self.genes)


@verb
def gene_panel(
    data: SpatialData | AnnData | Mapping[str, SpatialData | AnnData],
    *,
    table: str | None = None,
    samples: Sequence[str] | None = None,
    rows: Mapping[str, Any] | None = None,
    n_top: int = 100,
    species: str | None = None,
    key_added: str = KEY,
    overwrite: bool = False,
) -> GenePanel:
    """Choose the genes to predict: those common to all slides, with each slide's most variable and most expressed ones.

    The choice does not depend on the order of slides or genes. Where a model is to be tested on slides, or on a part of
    one, name those that train with ``samples`` or ``rows``: a panel that has seen the test slides has chosen genes
    that are telling there.

    Parameters
    ----------
    data
        A sample, or a mapping of sample name to such. X as :func:`sthist.pp.genes` leaves it, or raw counts, which are
        normalised to 10,000 a spot over all genes, and logarithms taken, for the choice alone.
    table
        Key of the table of a SpatialData; found by itself where there is one.
    samples
        Names of the samples that choose; by default all.
    rows
        Of a sample name, the rows that choose, as numbers or a bool for each; samples that are not named here have no
        part, or all their rows have, if ``samples`` names them.
    n_top
        How many of the most variable genes of each slide (scanpy's flavour "seurat"), and how many of the highest mean.
    species
        Take the samples of this species alone, ``"human"`` or ``"mouse"`` (or rat; symbols do not tell); ``"any"``
        takes genes of one name whatever its case. By default, samples of several species are refused.
    key_added
        Name of the record in ``uns["sthist"]``.
    overwrite
        Replace a record of this name.

    Returns
    -------
    The panel, :class:`GenePanel`. Written into the table of each sample that chose, and into its store, is
    ``uns["sthist"][key_added]``: the ``genes``, which of them the sample has (``measured``), ``n_common``, the
    ``samples`` that chose, ``species`` and ``n_top``. Matrices stay as they are.

    Raises
    ------
    KeyError
        If there is no such table or sample.
    ValueError
        If samples are of several species, their genes do not overlap, there are neither counts nor logarithms, or the
        record is there already.

    Examples
    --------
    >>> import sthist
    >>> sdata = sthist.datasets.toy("visium", size_um=900)
    >>> panel = sthist.pp.gene_panel(sdata)  # then tl.train_expression(sdata, genes=panel)
    >>> sdata["table"].uns["sthist"]["gene_panel"]["n_common"] == len(panel)
    True
    """
    import pandas as pd

    if int(n_top) != n_top or n_top < 0:
        raise ValueError(f"n_top is {n_top!r}; it is a whole number from 0 on.")
    _store.check_name(key_added)
    slides, species = slides_of(data, table, samples, rows, species)
    if not overwrite:
        _require_free([slide.adata for slide in slides], key_added)
    common = common_genes(slides)
    chosen: dict[str, list[int]] = {gene: [0, 0] for gene in common}
    for slide in slides:
        for place, found in enumerate((_variable(slide, n_top), by_mean(slide.expression)[:n_top].tolist())):
            for gene in found:
                chosen.setdefault(slide.genes[gene], [0, 0])[place] += 1
    genes = sorted(chosen)
    measured = pd.DataFrame([np.isin(genes, slide.genes) for slide in slides], [slide.name for slide in slides], genes)
    var = pd.DataFrame(
        {
            "common": measured.all(axis=0),
            "n_samples": measured.sum(axis=0),
            "variable": [chosen[gene][0] for gene in genes],
            "expressed": [chosen[gene][1] for gene in genes],
        },
        index=pd.Index(genes, dtype=object),
    )
    panel = GenePanel(genes, var, measured, species)
    logger.info("%r.", panel)
    for slide in slides:
        made = _store.provenance(
            "pp.gene_panel",
            genes=genes,
            measured=np.isin(genes, slide.genes).tolist(),
            n_common=len(common),
            samples=[each.name for each in slides],
            rows=rows is not None,
            species=species,
            n_top=int(n_top),
        )
        _record(slide.data, slide.table, slide.adata, key_added, made)
    return panel


def _variable(slide: Any, n_top: int) -> list[int]:
    """The most variable genes of a slide; none of a slide of one spot, in which nothing varies."""
    if n_top == 0:
        return []
    if slide.expression.shape[0] < 2:
        logger.warning("Sample %r has one spot: it has no most variable genes.", slide.name)
        return []
    order, varies = dispersions(slide.expression)
    return [gene for gene in order[:n_top] if varies[gene]]


def _require_free(tables: list[AnnData], key: str) -> None:
    for adata in tables:
        if key in adata.uns.get("sthist", {}):
            raise ValueError(
                f"A table has uns['sthist'][{key!r}] already. Pass overwrite=True to replace it, or key_added= for "
                "another name."
            )


def _record(data: Any, table: str | None, adata: AnnData, key: str, made: dict[str, Any]) -> None:
    if table is not None and _store.store_path(data) is not None:
        changed = adata.copy()
        changed.uns["sthist"] = {**adata.uns.get("sthist", {}), key: made}
        _store.replace_table(data, table, changed)
    else:
        adata.uns["sthist"] = {**adata.uns.get("sthist", {}), key: made}
