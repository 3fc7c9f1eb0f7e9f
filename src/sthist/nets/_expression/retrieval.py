"""Expression looked up: of the training spots whose embeddings are nearest to that of an image."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Literal

import numpy as np
import torch
from torch.nn import functional

if TYPE_CHECKING:
    from collections.abc import Iterator

    from scipy.sparse import csr_matrix

Weights = Literal["simple", "average", "weighted", "inverse-square"]
WEIGHTS: tuple[Weights, ...] = ("simple", "average", "weighted", "inverse-square")
METRICS = ("cosine", "l2")
BLOCK = 2**24
"""Numbers, of similarities or of differences, that are held at once (64 MB)."""
KEY_BLOCK = 16_384


class Retrieval:
    """An index of embeddings with their expression, that predicts by the nearest of them.

    All is done in blocks of queries and of keys, so that memory does not grow with either.

    Parameters
    ----------
    keys
        Embeddings (n, e), kept as float32.
    expression
        Expression of the keys (n, n_genes), sparse or not, kept as CSR float32.
    metric
        What is near: ``"cosine"``, the angle, or ``"l2"``, the distance.
    measured, group
        Which genes were measured in each group of keys (a slide), (groups, n_genes) bool, and the group of each key
        (n,). A gene is then predicted by the keys that have it; where none of the nearest has, by the mean of all that
        do. By default all keys have all genes.

    Raises
    ------
    ValueError
        If there are no keys, shapes do not fit, a value is NaN or infinite, or the metric is unknown.

    Examples
    --------
    >>> import numpy as np
    >>> from sthist.nets import Retrieval
    >>> bank = Retrieval(np.eye(3), np.diag([1.0, 2.0, 3.0]))
    >>> bank.predict(np.array([[0.0, 5.0, 0.0]]), weights="simple").tolist()
    [[0.0, 2.0, 0.0]]
    """

    def __init__(
        self,
        keys: Any,
        expression: Any,
        *,
        metric: Literal["cosine", "l2"] = "cosine",
        measured: np.ndarray | None = None,
        group: np.ndarray | None = None,
    ) -> None:
        from scipy.sparse import csr_matrix

        if metric not in METRICS:
            raise ValueError(f"metric is one of {METRICS}, not {metric!r}.")
        self.metric = metric
        self.keys = _embeddings(keys, "keys")
        self.expression = csr_matrix(expression, dtype=np.float32)
        n, n_genes = self.expression.shape
        if not n or n != len(self.keys):
            raise ValueError(f"There are {len(self.keys)} keys and {n} rows of expression; one for each is needed.")
        if not np.isfinite(self.expression.data).all():
            raise ValueError("The expression of the keys has NaN or infinite values.")
        self._unit = functional.normalize(self.keys, dim=1)
        self.measured = None if measured is None else np.asarray(measured, bool)
        self.group = None if group is None else np.asarray(group, np.int64)
        if self.measured is not None or self.group is not None:
            self._require_groups(n, n_genes)
            self._mean = self._mean_where_measured()

    def __len__(self) -> int:
        return len(self.keys)

    def search(self, queries: Any, k: int = 50, *, device: str | torch.device = "cpu") -> np.ndarray:
        """The nearest keys of each query.

        Parameters
        ----------
        queries
            Embeddings (m, e).
        k
            How many; all, where there are fewer keys.
        device
            Of torch, that they are compared on.

        Returns
        -------
        Their numbers (m, k), the nearest first.

        Raises
        ------
        ValueError
            If ``k`` is less than 1, or a query is of another size, or NaN.
        """
        parts = [found.cpu().numpy() for _, found in self._blocks(queries, k, torch.device(device))]
        return np.concatenate(parts) if parts else np.empty((0, min(k, len(self))), np.int64)

    def predict(
        self,
        queries: Any,
        k: int = 50,
        *,
        weights: Weights = "average",
        eps: float = 1e-6,
        device: str | torch.device = "cpu",
    ) -> np.ndarray:
        """Expression of queries, a weighted mean of that of the nearest keys.

        Parameters
        ----------
        queries
            Embeddings (m, e).
        k
            Number of nearest keys; all, where there are fewer.
        weights
            ``"simple"``: the nearest alone; ``"average"``: all alike; ``"weighted"``: exp(-d²), d the distance of the
            embeddings as they are (BLEEP's); ``"inverse-square"``: 1 / (d² + eps), d the distance of the embeddings
            brought to unit length, or as they are if the metric is ``"l2"`` (mclSTExp's, which has no eps).
        eps
            What keeps the inverse square finite where a query is a key.
        device
            Of torch, that embeddings are compared on.

        Returns
        -------
        (m, n_genes) float32, within the range that each gene has among the keys.

        Raises
        ------
        ValueError
            If weights are unknown, ``k`` is less than 1 or ``eps`` not positive, or a query is of another size, or NaN.
        """
        if weights not in WEIGHTS:
            raise ValueError(f"weights is one of {WEIGHTS}, not {weights!r}.")
        if not eps > 0:
            raise ValueError(f"eps is {eps!r}; a positive number is needed.")
        k = 1 if weights == "simple" else k
        blocks = self._blocks(queries, k, torch.device(device))
        parts = [self._mixed(found, self._shares(part, found, weights, eps)) for part, found in blocks]
        return np.concatenate(parts) if parts else np.empty((0, self.expression.shape[1]), np.float32)

    def _blocks(self, queries: Any, k: int, device: torch.device) -> Iterator[tuple[torch.Tensor, torch.Tensor]]:
        """Queries in blocks, and the numbers of the nearest keys of each."""
        if k < 1:
            raise ValueError(f"k={k}; at least one key is needed.")
        queries, k = _embeddings(queries, "queries"), min(k, len(self))
        if queries.shape[1] != self.keys.shape[1]:
            raise ValueError(f"Queries have {queries.shape[1]} dimensions and keys {self.keys.shape[1]}.")
        keys = (self._unit if self.metric == "cosine" else self.keys).to(device)
        at_once = max(min(len(keys), KEY_BLOCK), k * keys.shape[1], self.expression.shape[1])
        size = max(1, BLOCK // at_once)
        for part in queries.to(device).split(size):
            yield part, self._nearest(part, keys, k)

    def _nearest(self, queries: torch.Tensor, keys: torch.Tensor, k: int) -> torch.Tensor:
        """Numbers (b, k) of the nearest keys, which are gone through in blocks."""
        # The length of a query changes no order.
        best = queries.new_empty(len(queries), 0)
        numbers = torch.empty(len(queries), 0, dtype=torch.int64, device=queries.device)
        for start in range(0, len(keys), KEY_BLOCK):
            block = keys[start : start + KEY_BLOCK]
            likeness = queries @ block.T
            if self.metric == "l2":
                likeness = likeness - block.square().sum(dim=1) / 2
            own = torch.arange(start, start + len(block), device=queries.device).expand(len(queries), -1)
            best, chosen = torch.cat([best, likeness], dim=1).topk(min(k, best.shape[1] + len(block)), dim=1)
            numbers = torch.cat([numbers, own], dim=1).gather(1, chosen)
        return numbers

    def _shares(self, queries: torch.Tensor, found: torch.Tensor, weights: Weights, eps: float) -> torch.Tensor:
        """The weight of each key, (b, k) with rows of sum 1."""
        if weights in ("simple", "average"):
            return torch.full(found.shape, 1 / found.shape[1])
        keys = self.keys
        if weights == "inverse-square" and self.metric == "cosine":
            keys, queries = self._unit, functional.normalize(queries, dim=1)
        squares = (keys.to(queries.device)[found] - queries[:, None]).square().sum(dim=2)
        if weights == "weighted":
            return (-squares).softmax(dim=1)
        shares = 1 / (squares + eps)
        return shares / shares.sum(dim=1, keepdim=True)

    def _mixed(self, found: torch.Tensor, shares: torch.Tensor) -> np.ndarray:
        """The weighted mean of the expression of keys, (b, n_genes)."""
        from scipy.sparse import csr_matrix

        n, k = found.shape
        parts = (shares.cpu().numpy().ravel(), found.cpu().numpy().ravel(), np.arange(0, n * k + 1, k))
        mixing = csr_matrix(parts, shape=(n, len(self)))
        mixed = np.asarray((mixing @ self.expression).toarray(), np.float32)
        if self.measured is None:
            return mixed
        there = mixing @ self._groups() @ self.measured.astype(np.float32)
        return np.where(there > 0, mixed / np.where(there > 0, there, 1), self._mean).astype(np.float32)

    def _groups(self) -> csr_matrix:
        """To which group a key belongs, (n, groups)."""
        from scipy.sparse import csr_matrix

        assert self.group is not None
        assert self.measured is not None
        rows = np.arange(len(self) + 1)
        return csr_matrix((np.ones(len(self), np.float32), self.group, rows), shape=(len(self), len(self.measured)))

    def _mean_where_measured(self) -> np.ndarray:
        """Mean of each gene over the keys that have it; 0 where none has."""
        assert self.measured is not None
        n = np.asarray(self._groups().sum(axis=0)).ravel() @ self.measured
        return np.asarray(self.expression.sum(axis=0), np.float64).ravel() / np.maximum(n, 1)

    def _require_groups(self, n: int, n_genes: int) -> None:
        """Groups and what they have measured fit to keys and genes."""
        if self.measured is None or self.group is None:
            raise ValueError("measured= and group= go together: the genes of each group, and the group of each key.")
        groups = self.measured.shape[0]
        if self.measured.shape != (groups, n_genes) or self.group.shape != (n,):
            raise ValueError(
                f"measured has the shape {self.measured.shape} and group {self.group.shape}; there are {n} keys and "
                f"{n_genes} genes."
            )
        if not ((self.group >= 0) & (self.group < groups)).all():
            raise ValueError(f"group goes from {self.group.min()} to {self.group.max()}; there are {groups} groups.")


def _embeddings(values: Any, what: str) -> torch.Tensor:
    """A finite tensor (n, e) of float32, on the CPU."""
    tensor = torch.as_tensor(values).detach().cpu().float()
    if tensor.ndim != 2:
        raise ValueError(f"{what} are (n, e), not {tuple(tensor.shape)}.")
    wrong = ~torch.isfinite(tensor).all(dim=1)
    if wrong.any():
        raise ValueError(
            f"{int(wrong.sum())} {what} have NaN or infinite values, the first is row {int(wrong.nonzero()[0])}."
        )
    return tensor
