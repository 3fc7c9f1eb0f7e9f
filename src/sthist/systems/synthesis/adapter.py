"""An adapter of C2L-ST: a file of its own, and the expression that it listens to."""

from __future__ import annotations

import dataclasses
import hashlib
import json
import math
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Self

import numpy as np

from sthist._disk import written_whole
from sthist._messages import plain, several
from sthist._reading import reading, require_file
from sthist.systems.synthesis.config import C2LAdapterConfig
from sthist.training.model import require_types

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from sthist.nets import GeneAdapter

ADAPTER = "adapter.safetensors"
"""File of an adapter in the folder of a model."""

HEADER = "sthist"
"""Entry of that file's header that says what the adapter is."""

MOST = math.log1p(1e6)
"""Largest logarithm that there can be where rows are brought to a million, which is more than is usual."""


@dataclass(frozen=True, eq=False)
class C2LAdapter:
    """An adapter: what it is, and its weights by name."""

    config: C2LAdapterConfig
    weights: dict[str, np.ndarray]

    def __repr__(self) -> str:
        config, tiles = self.config, self.config.training.get("tiles")
        trained = "" if tiles is None else f", trained on {several(tiles, 'tile')}"
        return f"C2LAdapter to {several(len(config.genes), 'gene')} ({config.where}, latent {config.latent}){trained}"

    def save(self, path: str | Path) -> None:
        """Write one file, which says everything that is needed beside the central model.

        Parameters
        ----------
        path
            Of the file, ``*.safetensors``.
        """
        with written_whole(Path(path)) as partial:
            self._write(partial)

    def _write(self, path: Path) -> None:
        from safetensors.numpy import save_file

        weights = {name: np.array(value, order="C") for name, value in self.weights.items()}
        save_file(weights, path, {HEADER: json.dumps(asdict(self.config))})

    @classmethod
    def load(cls, path: str | Path) -> Self:
        """Read the file that :meth:`save` has written.

        Parameters
        ----------
        path
            Of the file.

        Raises
        ------
        FileNotFoundError
            If there is none.
        ValueError
            If it is damaged, or of something else.
        """
        from safetensors import safe_open

        path = Path(path)
        with reading(path):
            require_file(path)
            with safe_open(path, "numpy") as file:
                header = (file.metadata() or {}).get(HEADER)
                weights = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
            if header is None:
                raise ValueError(f"{path} is no adapter of a C2L: it does not say its genes.")
            facts = json.loads(header)
            if not isinstance(facts, dict):
                raise ValueError(f"{path} does not say what it is an adapter of. Copy it again.")
            facts = {name: tuple(value) if isinstance(value, list) else value for name, value in facts.items()}
            if set(facts) != (known := {each.name for each in dataclasses.fields(C2LAdapterConfig)}):
                raise ValueError(f"{path} should say {sorted(known)}, and says {sorted(facts)}.")
            require_types(path, C2LAdapterConfig, facts)
            if not all(np.isfinite(value).all() for value in weights.values()):
                raise ValueError(f"{path} holds NaN or infinite numbers. Is it damaged? Copy it again.")
            return cls(C2LAdapterConfig(**facts), weights)

    @property
    def sha256(self) -> str:
        """Checksum of its weights."""
        digest = hashlib.sha256()
        for name, value in sorted(self.weights.items()):
            digest.update(f"{name} {value.shape} {value.dtype}".encode())
            digest.update(np.ascontiguousarray(value).tobytes())
        return digest.hexdigest()

    def module(self, sites: Sequence[int]) -> GeneAdapter:
        """The adapter as a module, for a U-Net of some sites."""
        from sthist.nets import GeneAdapter

        adapter = GeneAdapter(len(self.config.genes), sites, self.config.latent, self.config.where)
        fill(adapter, self.weights, "The adapter")
        return adapter

    def standardized(self, expression: np.ndarray) -> np.ndarray:
        """What the network is given: each gene less its mean, by its standard deviation; NaN, not measured, is 0."""
        mean, std = (np.array(each, np.float32) for each in (self.config.mean, self.config.std))
        return np.nan_to_num((np.asarray(expression, np.float32) - mean) / std)


def require_logarithms(expression: Any, n_genes: int, *, may_lack: bool = False) -> np.ndarray:
    """Expression, (n, genes) float32, if it can be logarithms of it; NaN passes where a gene may lack."""
    values = np.asarray(expression, np.float32)
    if values.ndim != 2 or values.shape[1] != n_genes:
        raise ValueError(f"Expression has shape {values.shape}; it is (n, {n_genes}), a column for each gene.")
    known = ~np.isnan(values) if may_lack else np.ones(values.shape, np.bool_)
    for wrong, what in ((~np.isfinite(values) & known, "not finite"), ((values < 0) & known, "negative")):
        if wrong.any():
            row, column = (plain(each) for each in np.argwhere(wrong)[0])
            raise ValueError(
                f"Expression is {what} in {int(wrong.any(1).sum())} of {len(values)} rows, first row {row}, column "
                f"{column} ({plain(values[row, column])}); log-normalised expression is 0 or more."
            )
    shown = values[known]
    whole = bool(shown.any()) and bool((shown == np.round(shown)).all())
    if whole or (shown.size and shown.max() > MOST):
        raise ValueError(
            f"Expression looks like counts: {'whole numbers' if whole else 'numbers'} up to "
            f"{shown.max():.4g}. Give the table with its counts to tl.adapt_local and tl.synthesize, or take log1p of "
            "normalised counts (pp.genes)."
        )
    return values


def median_total(expression: np.ndarray) -> float:
    """Median over rows of the sum of what logarithms were taken of."""
    return float(np.median(np.expm1(expression.astype(np.float64)).sum(axis=1)))


def fill(module: Any, weights: Mapping[str, np.ndarray], what: str) -> None:
    """Put weights into a module that has to have just these."""
    import torch

    state = module.state_dict()
    wrong = [name for name in state if name not in weights or weights[name].shape != tuple(state[name].shape)]
    wrong += sorted(set(weights) - set(state))
    if wrong:
        raise ValueError(
            f"{what} does not fit its config: {len(wrong)} arrays are missing, of another shape or too many, such as "
            f"{wrong[0]!r}. Copy its files again."
        )
    module.load_state_dict({name: torch.from_numpy(np.array(value)) for name, value in weights.items()})
