"""How much of each cell type the spots of a sample hold."""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import nullcontext
from typing import TYPE_CHECKING, Any, Literal

import numpy as np

from sthist import _store
from sthist._messages import listed
from sthist._sample.samples import naming, samples_of
from sthist._sample.verbs import verb
from sthist._settings import logger
from sthist._tables.composition import composition_columns
from sthist._tables.find import called, find_expression, require_free
from sthist._tables.genes import closest
from sthist._tables.rows import write_columns
from sthist.systems.deconvolution import cell2location
from sthist.systems.deconvolution.cell2location import Cell2locationOptions
from sthist.systems.deconvolution.reference import read_reference
from sthist.systems.deconvolution.spots import Spots, require_genes

if TYPE_CHECKING:
    from collections.abc import Sequence
    from contextlib import AbstractContextManager
    from pathlib import Path

    import pandas as pd
    from anndata import AnnData
    from spatialdata import SpatialData

    from sthist.systems.deconvolution.reference import Reference

METHODS = ("nnls", "cell2location")


@verb
def deconvolve(
    data: SpatialData | AnnData | Mapping[str, Any],
    reference: AnnData | pd.DataFrame | str | Path,
    *,
    method: Literal["nnls", "cell2location"] = "nnls",
    labels: str | None = None,
    table: str | None = None,
    layer: str | None = None,
    genes: Sequence[str] | None = None,
    batch: str | None = None,
    n_cells_per_location: float | None = None,
    detection_alpha: float | None = None,
    quantile: Literal["q05", "means"] | None = None,
    epochs: int | tuple[int, int] | None = None,
    key_added: str = "cell_abundance",
    overwrite: bool = False,
    seed: int | None = None,
    device: str | None = None,
    progress: bool | None = None,
) -> None:
    """Estimate how much of each cell type the spots hold, from their counts and a reference.

    Abundances, not proportions: :func:`sthist.pp.proportions` makes those. Abundances that another program has written
    are read by :func:`sthist.io.read_composition`.

    Parameters
    ----------
    data
        A SpatialData or an AnnData with raw counts of spots, or a mapping of name to such.
    reference
        Single cells with raw counts and a column of types in ``obs``, of the same species and, if possible, tissue; or
        profiles, a DataFrame of genes x types: mean counts or anything in proportion to them, not logarithms. Or the
        path of a file of profiles: csv or tsv, plain or ``.gz``, or parquet, genes in the first column. Signatures that
        cell2location has estimated, and parameters of stereoscope (whose column ``logit`` is applied), are profiles.
    method
        ``"nnls"``: non-negative least squares on the mean counts of each type, in seconds and with what sthist brings.
        It is rough: no uncertainty, no correction for what two technologies see differently, nor for batches, and weak
        for types that are rare or alike. ``"cell2location"``: a hierarchical Bayesian model of all of these
        (Kleshchevnikov et al. 2022), in numbers of cells; for a slide of Visium up to hours on a GPU, far more on a
        CPU. It needs the extra ``sthist[deconv]``.
    labels
        Column of ``reference.obs`` with the types; may be left out where one column alone can hold them. Cells without
        a label are left out.
    table
        Key of the table of spots; by default the one with genes.
    layer
        Of the raw counts, in whichever of spots and cells has it; by default they are found, in ``layers["counts"]``,
        ``X`` or ``raw``.
    genes
        Those that count. By default all that both have, but mitochondrial ones (``MT-``); of these ``"nnls"`` takes,
        for each type, the 100 that tell it best from the others, and ``"cell2location"`` of single cells those that its
        own filter keeps (seen in 5 % of the cells, or in 16 cells with a mean of 1.12 where they are seen).
    batch
        Column of ``reference.obs`` with the batches (of 10x: the reactions), whose effects ``"cell2location"`` takes
        out of the signatures.
    n_cells_per_location
        Of ``"cell2location"``: about how many cells a spot holds, 8 by default. Count nuclei in some.
    detection_alpha
        Of ``"cell2location"``: 20 by default, for counts whose depth varies within a slide for technical reasons; 200
        where it hardly does.
    quantile
        Of ``"cell2location"``, which is kept of the posterior: ``"q05"``, the default, the amount that is there with a
        probability of 95 %; or ``"means"``.
    epochs
        Of ``"cell2location"``, passes over the spots, 30,000 by default; or a pair: passes over the reference's cells,
        250 by default, and over the spots.
    key_added
        Name of the result.
    overwrite
        Replace a result of this name.
    seed
        Of ``"cell2location"``; ``settings.seed`` by default. ``"nnls"`` draws nothing.
    device
        Of torch; ``settings.device`` by default.
    progress
        Show a bar; ``settings.progress`` by default.

    Returns
    -------
    None. Writes into the table, also in the store of a backed object:

    * ``obsm[key_added]``: DataFrame of float64, (n_obs, types): of ``"cell2location"`` numbers of cells; of ``"nnls"``
      with single cells as many cells of the reference as make up the counts (fewer than there are, where spots are less
      deep than cells), with profiles in their unit. 0 for a spot without any count of these genes;
    * ``uns["sthist"][key_added]``: the method and all that it was told, seed, number of genes, how the signatures were
      made, ``quantity`` (``"abundances"``), ``empty`` (number of spots without counts), versions of the packages, and
      ``classes``, the types by column.

    Raises
    ------
    ImportError
        If cell2location is not installed.
    KeyError
        If there is no such table, layer or column.
    ValueError
        If a side has no raw counts; if fewer than a tenth of the smaller side's genes match, or fewer than there are
        types; if the column of types cannot be told; if types have one name; if a profile is negative or NaN; if the
        result's name is taken, or an argument is of the other method.
    TypeError
        If the reference is none.

    Notes
    -----
    ``"nnls"`` divides each gene by the root of its mean over the types, as counts vary, so that the same few genes do
    not decide in every spot. Signatures of cell2location are ``RegressionModel``'s where there are cells.

    Both methods against known compositions, where they come out much alike, and what knows nothing:
    ``bench/results/deconvolution.json``.

    Each sample of a mapping is one model of the spots; signatures are learnt once.

    Examples
    --------
    >>> import numpy as np, pandas as pd, sthist
    >>> sdata = sthist.datasets.toy("visium", size_um=900)
    >>> rng = np.random.default_rng(0)
    >>> names = sdata["table"].var_names
    >>> profiles = pd.DataFrame(rng.gamma(1, 1, (len(names), 3)), index=names, columns=["B cells", "T/NK", "tumour"])
    >>> sthist.tl.deconvolve(sdata, profiles, key_added="by_nnls")
    >>> list(sdata["table"].obsm["by_nnls"])
    ['B cells', 'T_NK', 'tumour']
    >>> sdata["table"].uns["sthist"]["by_nnls"]["quantity"]
    'abundances'
    """
    own = {
        "n_cells_per_location": n_cells_per_location,
        "detection_alpha": detection_alpha,
        "quantile": quantile,
        "epochs": epochs,
        "batch": batch,
    }
    options = _options(method, own)
    run = cell2location.Run.of(seed, device, progress)
    several = isinstance(data, Mapping)
    samples: list[Spots] = []
    for each in samples_of(data):
        with _naming(each.name, several):
            found, adata = find_expression(each.data, table)
            require_free(adata, called(found), [], [key_added], overwrite=overwrite)
            of_cells = layer in getattr(reference, "layers", ()) and layer not in adata.layers
            samples.append(Spots.of(each, found, adata, None if of_cells else layer))
    known = read_reference(reference, labels, layer)
    batch = _batch_column(known, batch)
    chosen = _wanted(known, genes)
    for spots in samples:
        with _naming(spots.name, several):
            spots.find_genes(known, chosen)
    profiles, how = known.means(), "means" if known.profiles is None else "given"
    if options is not None and known.profiles is None:
        kept = _modelled(known, samples, filtered=genes is None)
        profiles, how = cell2location.learn_signatures(known, kept, batch, options, run), "regression"
    facts = {} if options is None else cell2location.facts(options, run)
    if how != "regression":
        facts.pop("signature_epochs", None)
    for spots in samples:
        with _naming(spots.name, several):
            values, n_genes = spots.amounts(known, profiles, options, run, few=genes is None)
        columns, stored = composition_columns(known.types, values)
        made = _store.provenance(
            "tl.deconvolve",
            method=method,
            quantity="abundances",
            reference=known.described,
            signatures=how,
            batch=batch,
            n_genes=n_genes,
            empty=spots.n_empty,
            **facts,
            **stored,
        )
        write_columns(spots.data, spots.table, spots.adata, key_added, made, obs={}, obsm={key_added: columns})


def _naming(sample: str, several: bool) -> AbstractContextManager[None]:
    """Of several samples, say of an error in which it arose."""
    return naming(sample) if several else nullcontext()


def _options(method: str, own: dict[str, Any]) -> Cell2locationOptions | None:
    """What cell2location is told; None for least squares, which are told nothing."""
    if method not in METHODS:
        raise ValueError(f"method is {method!r}; it is one of {', '.join(map(repr, METHODS))}.")
    given = {name: value for name, value in own.items() if value is not None}
    if method == "nnls":
        if given:
            raise ValueError(f"method='nnls' takes no {' and no '.join(given)}; method='cell2location' does.")
        return None
    given.pop("batch", None)
    epochs = given.get("epochs")
    if isinstance(epochs, tuple | list):
        if len(epochs) != 2:
            raise ValueError(f"epochs is {epochs!r}; it is one number, or a pair: over the reference, over the spots.")
        given |= {"signature_epochs": epochs[0], "epochs": epochs[1]}
    options = Cell2locationOptions(**given)
    cell2location.require_cell2location()
    return options


def _batch_column(known: Reference, batch: str | None) -> str | None:
    if batch is None:
        return None
    if known.cells is None:
        raise ValueError(f"batch={batch!r} names a column of single cells, but the reference is of profiles.")
    if batch not in known.cells.obs:
        columns = list(known.cells.obs)
        raise KeyError(f"The reference has no column {batch!r}; it has {columns}.{closest(batch, map(str, columns))}")
    return batch


def _wanted(known: Reference, genes: Sequence[str] | None) -> set[str] | None:
    """Names of the genes that were asked for; None for all."""
    if genes is None:
        return None
    wanted = {genes} if isinstance(genes, str) else set(map(str, genes))
    there = {str(name) for names in known.genes.values() for name in names}
    if not wanted & there:
        raise ValueError(f"genes= names none that the reference has, such as {listed(sorted(wanted)[:3])}.")
    if wanted - there:
        logger.warning(
            "%d of %d genes are not in the reference, such as %r.",
            len(wanted - there),
            len(wanted),
            min(wanted - there),
        )
    return wanted


def _modelled(known: Reference, samples: list[Spots], *, filtered: bool) -> np.ndarray:
    """Columns of the reference that signatures are learnt of: of genes that some sample has, and that are seen."""
    kept = np.unique(np.concatenate([spots.reference_columns for spots in samples]))
    if filtered:
        assert known.counts is not None
        kept = np.intersect1d(kept, cell2location.informative_genes(known.counts))
    require_genes(len(kept), known, "that are seen in enough cells")
    return kept
