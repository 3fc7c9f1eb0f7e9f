"""cell2location, by its own package: signatures of a reference, and how many cells of each type the spots hold."""

from __future__ import annotations

import contextlib
import io
import logging
import random
import warnings
from dataclasses import asdict, dataclass
from importlib.metadata import version
from importlib.util import find_spec
from typing import TYPE_CHECKING, Any, Literal

import numpy as np

from sthist._settings import logger, settings

if TYPE_CHECKING:
    from collections.abc import Iterator

    from scipy.sparse import csr_matrix

    from sthist.systems.deconvolution.reference import Reference

Quantile = Literal["q05", "means"]

PACKAGES = ("cell2location", "scvi-tools", "pyro-ppl", "torch")

SIGNATURE_BATCH = 2500
SAMPLES = 1000
"""Draws of the posterior, of which the means are taken."""

COMMON, RARE, HIGH = 0.05, 15, 1.12
"""Genes in this part of the cells count; of those in at least so many cells, those of this mean where they are seen."""


@dataclass(frozen=True)
class Cell2locationOptions:
    """What cell2location is told, by the names that it has there; epochs are those of its tutorial."""

    n_cells_per_location: float = 8.0
    detection_alpha: float = 20.0
    quantile: Quantile = "q05"
    epochs: int = 30_000
    signature_epochs: int = 250

    def __post_init__(self) -> None:
        """Refuse what no model can be made with, before one is."""
        for name in ("n_cells_per_location", "detection_alpha"):
            value = getattr(self, name)
            if isinstance(value, bool) or not isinstance(value, int | float) or not 0 < value < np.inf:
                raise ValueError(f"{name} is {value!r}; it is a positive number.")
        if self.quantile not in ("q05", "means"):
            raise ValueError(f"quantile is {self.quantile!r}; it is 'q05' or 'means'.")
        for epochs in (self.signature_epochs, self.epochs):
            if isinstance(epochs, bool) or not isinstance(epochs, int) or epochs < 1:
                raise ValueError(f"epochs is {epochs!r}; it is a whole number from 1 on.")


@dataclass(frozen=True)
class Run:
    """Where and how all models of a call are computed."""

    seed: int
    device: str  # of torch
    bar: bool

    @classmethod
    def of(cls, seed: int | None, device: str | None, progress: bool | None) -> Run:
        """What arguments say, else the settings."""
        return cls(
            settings.seed if seed is None else seed,
            str(settings.torch_device(device)),
            settings.progress if progress is None else progress,
        )


def require_cell2location() -> None:
    """Say what is missing where cell2location cannot run."""
    install = 'pip install "sthist[deconv]"'
    if find_spec("cell2location") is None or find_spec("scvi") is None:
        raise ImportError(
            f"method='cell2location' needs cell2location and scvi-tools: {install}. Or take method='nnls', which needs "
            "neither, is done in seconds, and is rougher."
        )
    try:
        with _same_random_states(), warnings.catch_warnings():
            warnings.simplefilter("ignore")
            import cell2location.models  # noqa: F401
    except ImportError as error:
        raise ImportError(
            f"cell2location is installed, but cannot be imported ({error}). {install} takes versions of it, of "
            "scvi-tools and of pyro-ppl that go together."
        ) from error


def facts(options: Cell2locationOptions, run: Run) -> dict[str, Any]:
    """What the numbers depend on, for the provenance."""
    versions = {name: version(name) for name in PACKAGES}
    return {**asdict(options), "seed": run.seed, "device": run.device, "versions": versions}


def informative_genes(counts: csr_matrix) -> np.ndarray:
    """Genes that cell2location's own filter keeps, by its cut-offs: seen in many cells, or high in some."""
    n = counts.getnnz(axis=0)
    mean = np.asarray(counts.sum(axis=0)).ravel() / np.maximum(n, 1)
    return np.flatnonzero((n > COMMON * counts.shape[0]) | ((n > RARE) & (mean > HIGH)))


def learn_signatures(
    reference: Reference, genes: np.ndarray, batch: str | None, options: Cell2locationOptions, run: Run
) -> np.ndarray:
    """Mean counts of each type by a negative binomial regression, without the batches' effects, (types, all genes).

    0 for genes that are not asked for.
    """
    import anndata as ad
    import pandas as pd

    assert reference.cells is not None
    assert reference.counts is not None
    assert reference.codes is not None
    names = _names(len(reference.types))
    obs = pd.DataFrame({"label": pd.Categorical(np.array(names)[reference.codes], names)})
    if batch is not None:
        obs["batch"] = reference.cells.obs[batch].astype(str).to_numpy()
    obs.index = obs.index.astype(str)
    cells = ad.AnnData(reference.counts[:, genes].astype(np.float32), obs=obs)
    logger.info("cell2location: signatures of %d types from %d cells, %d genes.", len(names), *cells.shape)
    how = {"batch_size": SIGNATURE_BATCH, **_where(run.device)}
    with _running(run):
        from cell2location.models import RegressionModel

        RegressionModel.setup_anndata(cells, labels_key="label", batch_key=None if batch is None else "batch")
        model = RegressionModel(cells)
        model.train(max_epochs=options.signature_epochs, **how, enable_progress_bar=run.bar)
        cells = model.export_posterior(cells, sample_kwargs={"num_samples": SAMPLES, **how})
        order = [list(model.factor_names_).index(name) for name in names]
    signatures = np.zeros((len(names), reference.counts.shape[1]))
    signatures[:, genes] = cells.varm["means_per_cluster_mu_fg"].to_numpy(np.float64)[:, order].T
    return signatures


def deconvolve_cell2location(
    counts: csr_matrix, signatures: np.ndarray, options: Cell2locationOptions, run: Run
) -> np.ndarray:
    """Cells of each type in each spot, (n, types) float64, by signatures (types, genes)."""
    import anndata as ad
    import pandas as pd

    names = _names(len(signatures))
    spots = ad.AnnData(counts.astype(np.float32))
    frame = pd.DataFrame(signatures.T, index=spots.var_names, columns=names)
    logger.info("cell2location: %d types in %d spots, %d genes, %d epochs.", len(names), *counts.shape, options.epochs)
    where = _where(run.device)
    # Quantiles are those of the approximate posterior itself; means are taken of draws.
    draws = {"num_samples": SAMPLES, "batch_size": counts.shape[0]} if options.quantile == "means" else {}
    with _running(run):
        from cell2location.models import Cell2location

        Cell2location.setup_anndata(spots)
        model = Cell2location(
            spots,
            cell_state_df=frame,
            N_cells_per_location=options.n_cells_per_location,
            detection_alpha=options.detection_alpha,
        )
        model.train(max_epochs=options.epochs, batch_size=None, train_size=1, **where, enable_progress_bar=run.bar)
        spots = model.export_posterior(
            spots, sample_kwargs={**draws, **where}, add_to_obsm=[options.quantile], use_quantiles=not draws
        )
        order = [list(model.factor_names_).index(name) for name in names]
    values = spots.obsm[f"{options.quantile}_cell_abundance_w_sf"].to_numpy(np.float64)[:, order]
    if not np.isfinite(values).all():
        raise ValueError(
            "cell2location gave abundances that are not finite: its training has failed. Look at the counts of the "
            "spots, or give more plausible n_cells_per_location and detection_alpha."
        )
    return np.asarray(values)


def _names(n: int) -> list[str]:
    """Names for the types that no package stumbles over, and that sort as the types stand."""
    return [f"type_{i:05d}" for i in range(n)]


def _where(device: str) -> dict[str, Any]:
    """A device of torch as scvi-tools takes it."""
    kind, _, number = device.partition(":")
    return {"accelerator": {"cuda": "gpu"}.get(kind, kind), "device": int(number or 0) if kind == "cuda" else "auto"}


@contextlib.contextmanager
def _same_random_states() -> Iterator[None]:
    """Have Python's and numpy's random states as they were before; quiet_and_repeatable does torch's."""
    states = random.getstate(), np.random.get_state()  # noqa: NPY002
    try:
        yield
    finally:
        random.setstate(states[0])
        np.random.set_state(states[1])  # noqa: NPY002


@contextlib.contextmanager
def _running(run: Run) -> Iterator[None]:
    """Without what the packages print, and with all random states as they were before."""
    log = logging.getLogger("scvi")
    level = log.level
    with contextlib.ExitStack() as stack:
        stack.enter_context(_same_random_states())  # importing draws, too
        from sthist.training.trainer import quiet_and_repeatable  # brings Lightning, which least squares do without

        stack.enter_context(quiet_and_repeatable(run.seed))
        if not run.bar:
            stack.enter_context(contextlib.redirect_stderr(io.StringIO()))
            stack.enter_context(contextlib.redirect_stdout(io.StringIO()))
        import scvi
        from pyro import clear_param_store

        before = scvi.settings.seed
        log.setLevel(logging.ERROR)
        try:
            scvi.settings.seed = run.seed
            yield
        finally:
            clear_param_store()
            scvi.settings.seed = before
            log.setLevel(level)
