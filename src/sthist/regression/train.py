"""One training for all predictors: held-out scores first, and then the model that is kept."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import numpy as np

from sthist import _store
from sthist.regression.data.features import centres_of
from sthist.regression.model import RegressionModel, plain_config
from sthist.regression.trust.rehearsal import Rehearsal
from sthist.training.split_groups import grouped
from sthist.training.splits import folds_of

if TYPE_CHECKING:
    from collections.abc import Callable

    from sthist.regression.data.inputs import Inputs
    from sthist.regression.data.targets import Targets
    from sthist.training.rows import SampleRows

M = TypeVar("M", bound=RegressionModel)

VALIDATION = 0.1
"""Part of the training rows that says when to stop, where the split does not say."""

FOLDS = 5


def train_scored(
    verb: str,
    fresh: M,
    rows: SampleRows,
    inputs: Inputs,
    targets: Targets,
    *,
    scored: Targets | None = None,
    options: Any,
    split: Any,
    validation: float = VALIDATION,
    size_um: float | None = None,
    folder: str | Path | None,
    device: str | None,
    progress: bool | None,
    facts: dict[str, Any],
    beside: Callable[[np.ndarray], np.ndarray] | None = None,
) -> M:
    """Train a model on each fold and score it on the others, then train the one that is returned.

    It is trained on all rows, or without those that test where the split says which. ``scored`` is what predictions are
    compared with, where that differs from the targets; ``validation`` the part of the training rows that says when to
    stop, where the split does not say; ``size_um`` how much tissue a row shows, where that is more than a tile.
    ``beside`` says which rows, behind the ``rows`` in inputs and targets, are trained on beside some of these.
    """
    size_um = fresh.spec.size_um if size_um is None and fresh.spec is not None else size_um
    split, grouping = grouped(rows.units(size_um), split, size_um, validation)
    alike = np.zeros(len(grouping.groups), int)
    folds = split.folds or max(2, min(FOLDS, len(np.unique(grouping.groups))))
    pairs = folds_of(grouping, alike, test=split.test, folds=folds, seed=options.seed)
    centres = None if fresh.config.smooth_um is None else centres_of(rows, "smooth_um")
    compared = targets if scored is None else scored
    where: Any = {"centres": centres, "device": device, "progress": progress, "beside": beside}
    job = Rehearsal(fresh, inputs, targets, compared, grouping, split.validation, options, **where)
    report = job.report(pairs)
    used = pairs[0][0] if len(pairs) == 1 else np.arange(len(grouping.groups))
    fitted: Any = job.fit(used, None if folder is None else Path(folder))
    made = _store.provenance(
        verb,
        samples=[each.name for each in rows.samples],
        n_rows=len(used),
        **({} if beside is None else {"n_beside": len(beside(job.parts(used)[0]))}),
        options=options.to_dict(),
        **split.to_dict(),
        leaks=grouping.leaks,
        **facts,
        settings=plain_config(fitted),
    )
    fitted.config = replace(fitted.config, training=made, report=report)
    job.require_learned(fitted, used)
    job.keep_familiarity(fitted, used)
    if folder is not None:
        fitted.save(folder)
    return fitted  # type: ignore[no-any-return]
