"""Whether tiles show the expression that they were made of, and how much they need to know of it."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from sthist.metrics._deep import cosine

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from sthist.benchmark._synthesis.tiles import Made, Real
    from sthist.systems.synthesis.model import C2L

FOLDS = 5
PENALTIES = np.logspace(0, 5, 11)


def predicted_expression(
    features: np.ndarray, expression: np.ndarray, made: Mapping[str, tuple[np.ndarray, np.ndarray]], seed: int
) -> tuple[np.ndarray, dict[str, np.ndarray]]:
    """Expression that a ridge regression on real tiles reads from real and from synthetic ones.

    The tiles of a spot, real or synthetic, are read by a regression that was fitted on real tiles of other spots.
    ``made`` gives features of synthetic tiles, and the row of the real ones that each was made of.
    """
    from sklearn.linear_model import RidgeCV

    fold = np.random.default_rng([seed, 2]).permutation(len(features)) % min(FOLDS, len(features))
    real = np.empty(expression.shape)
    others = {name: np.empty((len(rows), expression.shape[1])) for name, (rows, _) in made.items()}
    for number in np.unique(fold):
        left_out = fold == number
        model = RidgeCV(PENALTIES).fit(features[~left_out], expression[~left_out])
        real[left_out] = model.predict(features[left_out]).reshape(-1, expression.shape[1])
        for name, (rows, spot) in made.items():
            mine = left_out[spot]
            if mine.any():
                others[name][mine] = model.predict(rows[mine]).reshape(-1, expression.shape[1])
    return real, others


def moved_by_dropping(
    model: C2L,
    made: Made,
    real: Real,
    embed: Callable[[np.ndarray], np.ndarray],
    shares: tuple[float, ...],
    n_spots: int,
    seed: int,
    device: str | None,
) -> tuple[dict[float, np.ndarray], np.ndarray]:
    """Cosine to the tile of all genes of those that are made without some, by share of genes; and of another spot's.

    All are made of the same noise. Genes that are dropped have the mean of the adaptation.
    """
    assert model.adapter is not None
    other = real.others(seed)[made.spot]
    rng = np.random.default_rng([seed, 3])
    _, first = np.unique(made.spot, return_index=True)
    usable = first[other[first] >= 0]
    some = np.sort(rng.permutation(usable)[:n_spots])
    full, exchanged = (_conditions(model, made, spots) for spots in (made.spot[some], other[some]))
    how: dict[str, Any] = {
        "guidance": float(made.facts["guidance"]),
        "steps": int(made.facts["steps"]),
        "seed": int(made.facts["seed"]),
        "numbers": made.table.obs["instance_id"].to_numpy()[some],
        "device": device,
    }
    reference = embed(model.generate(full, **how))
    moved = {}
    for share in shares:
        dropped = full.copy()
        dropped[:, rng.permutation(full.shape[1])[: round(share * full.shape[1])]] = np.nan
        moved[share] = cosine(embed(model.generate(dropped, **how)), reference)
    return moved, cosine(embed(model.generate(exchanged, **how)), reference)


def _conditions(model: C2L, made: Made, spots: np.ndarray) -> np.ndarray:
    """Expression of spots in the order of the adapter's genes, NaN where it was not measured."""
    assert model.adapter is not None
    where = {spot: row for row, spot in enumerate(made.spot)}
    rows = [where[spot] for spot in spots]
    values = np.full((len(spots), len(model.adapter.config.genes)), np.nan, np.float32)
    columns = made.table.var_names.get_indexer(list(model.adapter.config.genes))
    known = columns >= 0
    matrix = made.table.X[rows]
    dense = matrix.toarray() if hasattr(matrix, "toarray") else np.asarray(matrix)
    values[:, known] = dense[:, columns[known]]
    return values
