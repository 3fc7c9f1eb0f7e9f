"""Whether a virtual H&E is annotated as the real one of the same place."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

import numpy as np

from sthist import _sample
from sthist._sample.samples import samples_of
from sthist._sample.verbs import verb
from sthist._settings import logger, settings
from sthist._tables.labels import as_classes
from sthist.benchmark._folds import fold_count
from sthist.benchmark._tiles import shared_tiles
from sthist.metrics._classify import auc_statistic, bootstrap_interval
from sthist.metrics._compare import shuffled
from sthist.systems.annotation.annotator import Annotator, AnnotatorConfig
from sthist.systems.annotation.linear import LinearTask
from sthist.systems.annotation.options import AnnotatorTraining
from sthist.training.model import weight_hash
from sthist.training.split_groups import group_rows, units_of
from sthist.training.splits import folds_of

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    import pandas as pd
    from spatialdata import SpatialData

    from sthist.benchmark._tiles import SharedTiles
    from sthist.encoders import Encoder
    from sthist.tiles import TileSpec
    from sthist.training.splits import Grouping, Units

WEIGHTED = "weighted mean"
"""What stands for the class in the rows of the mean over classes."""

VALIDATION = 0.2


@verb
def annotation_transfer(
    data: SpatialData | Mapping[str, SpatialData],
    key: str = "virtual_he",
    *,
    label: str | None = None,
    annotator: Annotator | None = None,
    encoder: str | Encoder = "morphology",
    reference: Literal["label", "real"] = "label",
    classes: Sequence[str] | None = None,
    he: str | None = None,
    regions: str = "tiles",
    samples: Any = None,
    split: str | Mapping[str, str] = "block",
    folds: int | None = None,
    block_um: float | None = None,
    gap_um: float | None = None,
    n_boot: int = 1000,
    seed: int | None = None,
    device: str | None = None,
) -> pd.DataFrame:
    """Annotate virtual tiles with a classifier of real ones, and score it beside the real tiles and beside chance.

    Without an annotator a linear one is trained on embeddings of the real tiles, once per fold without the fold's
    blocks of tissue, and applied to the real and to the virtual tiles of those blocks. The virtual tiles are never
    trained on.

    Parameters
    ----------
    data
        One sample, or a mapping of name to sample, with a real and a virtual H&E registered in ``um``.
    key
        The virtual image.
    label
        Column of the tiles' table with the classes. Tiles without one are left out.
    annotator
        An annotator of real tiles (:func:`sthist.tl.train_annotator`) to apply as it is. If it has seen these tiles,
        the scores of the real ones are too good.
    encoder
        Of the annotator that is trained here: a name, or an encoder.
    reference
        What counts as true: ``"label"``, the column; or ``"real"``, what is called on the real tile of the same place,
        as where nobody has labelled the section.
    classes
        Classes to take, in this order, in place of all of the column.
    he
        Key of the real H&E.
    regions
        Tiles that :func:`sthist.pp.tiles` has laid. Those that leave either image are left out.
    samples, split, block_um, gap_um
        Which tiles are trained on together, as of :func:`sthist.tl.train_annotator`. With ``annotator=`` they say only
        which tiles are drawn together for the intervals.
    folds
        How many, as of :func:`cross_validate_virtual_he`: by default one per group where groups have names and are few,
        else five.
    n_boot
        Draws of the intervals.
    seed
        Of all that is drawn; ``settings.seed`` by default.
    device
        Of torch; ``settings.device`` by default.

    Returns
    -------
    One row per image and class: ``image`` (``"virtual"``; ``"real"``, the ceiling, for ``reference="label"``;
    ``"shuffled"``, the virtual tile of another place, which is chance), ``class``, ``auc`` of the class against the
    rest, its 95 % interval ``low`` to ``high`` over whole groups of tiles, and ``support``, its number of tiles. The
    class ``"weighted mean"`` is their mean, each counted by its support. ``attrs`` say how it was made: ``reference``,
    ``encoder``, ``split``, ``leaks``, ``n_tiles``, ``n_groups``.

    Raises
    ------
    KeyError
        If an image, the tiles, the column or a class is missing.
    ValueError
        If no tile lies on both images, there are fewer than two classes, or too few groups for the folds; if the
        annotator was trained on tiles of another size.
    TypeError
        If there is neither ``label`` nor ``annotator``.

    Examples
    --------
    >>> import numpy as np, sthist
    >>> sdata = sthist.datasets.toy(size_um=400)
    >>> sthist.tl.virtual_he(sdata)
    >>> sthist.pp.tissue(sdata)
    >>> sthist.pp.tiles(sdata, size_um=32, px=64)
    >>> sthist.pp.label_regions(sdata, "tiles", by="regions")
    >>> frame = sthist.benchmark.annotation_transfer(sdata, label="label", folds=3, n_boot=20)
    >>> auc = frame[frame["class"] == "weighted mean"].set_index("image")["auc"]
    >>> list(auc.index), bool(auc["real"] > auc["shuffled"])
    (['virtual', 'real', 'shuffled'], True)
    """
    _require(label, annotator, reference)
    seed = settings.seed if seed is None else int(seed)
    rows = _rows(data, key, he, regions, label, annotator, classes, samples)
    grouping = group_rows(rows.units, split, block_um=block_um, gap_um=gap_um)
    if annotator is None:
        encoder = _loaded(encoder, rows.spec, device)
        real, virtual = _embeddings(rows, encoder)
        called, tested = _cross_fitted(rows, grouping, real, virtual, folds, seed)
        name = encoder.name
    else:
        called, tested = _annotated(rows, annotator, device), np.arange(len(rows.units))
        name = annotator.config.encoder
    called["shuffled"] = np.full_like(called["virtual"], np.nan)
    called["shuffled"][tested] = called["virtual"][tested[shuffled(len(tested), seed)]]
    truth = rows.codes if reference == "label" else called["real"].argmax(axis=1)
    shown = ("virtual", "real", "shuffled") if reference == "label" else ("virtual", "shuffled")
    groups = None if grouping.by == "random" else grouping.groups[tested]
    frame = _scored(
        {image: called[image][tested] for image in shown}, truth[tested], rows.classes, groups, n_boot, seed
    )
    frame.attrs |= {"reference": reference, "encoder": name, "split": grouping.by, "leaks": grouping.leaks}
    frame.attrs |= {"n_tiles": len(tested), "n_groups": len(np.unique(grouping.groups[tested]))}
    return frame


@dataclass(frozen=True, eq=False)
class _Rows:
    """Tiles of all samples that are scored, in one list."""

    parts: list[SharedTiles]  # by sample, on virtual and real image
    codes: np.ndarray  # (n,) class of each
    classes: list[str]
    units: Units
    spec: TileSpec


def _require(label: str | None, annotator: Annotator | None, reference: str) -> None:
    """Refuse arguments that do not go together."""
    if reference not in {"label", "real"}:
        raise ValueError(f"reference is {reference!r}; it is 'label' or 'real'.")
    if label is None and (annotator is None or reference == "label"):
        raise TypeError(
            "Say which column of the tiles' table holds the classes with label=; without labels, give annotator= and "
            "reference='real', and the real tiles are the reference."
        )


def _rows(
    data: Any,
    key: str,
    he: str | None,
    tiles: str,
    label: str | None,
    annotator: Annotator | None,
    classes: Sequence[str] | None,
    samples: Any,
) -> _Rows:
    """The tiles that lie on both images and have a class."""
    import pandas as pd

    listed = samples_of(data, samples)
    parts = [
        part for _, part in shared_tiles(listed, tiles, lambda sdata: (key, _sample.find_he(sdata, he)), column=label)
    ]
    known = None if annotator is None else list(annotator.config.classes)
    if known is not None and not set(classes or []) <= set(known):
        raise KeyError(f"classes= is {list(classes or [])}; the annotator knows {known}.")
    if label is None:
        codes, names = np.zeros(sum(map(len, parts)), int), list(classes or known or [])
    else:
        values = pd.concat([pd.Series(part.column(label)).astype(object) for part in parts])
        codes, names = _coded(values, label, classes or known, complete=known is None)
    by_part = np.split(codes, np.cumsum([len(part) for part in parts])[:-1])
    kept = [part.chosen(np.flatnonzero(own >= 0)) for part, own in zip(parts, by_part, strict=True)]
    left_out = int((codes < 0).sum())
    if left_out:
        logger.info("%d of %d tiles have no class in %r; they are left out.", left_out, len(codes), label)
    spec = parts[0].spec
    units = units_of(listed, [part.obs for part in kept], [part.centres for part in kept], spec.size_um)
    return _Rows(kept, codes[codes >= 0], names, units, spec)


def _coded(
    values: pd.Series, label: str, classes: Sequence[str] | None, *, complete: bool
) -> tuple[np.ndarray, list[str]]:
    """Class of each tile, -1 for none, and the names of the classes; ``complete`` if some tile has to have each."""
    codes, names = as_classes(values, f"Column {label!r}")
    there = [names[k] for k in np.unique(codes[codes >= 0])]
    classes = there if classes is None else list(classes)
    missing = [name for name in classes if name not in there]
    if missing and complete:
        raise KeyError(f"No tile has the class {missing[0]!r} in {label!r}; the labels are {there}.")
    if len(set(classes) & set(there)) < 2:
        raise ValueError(
            f"Of the classes {classes} the tiles have {there} in {label!r}: there are no two to tell apart."
        )
    place = np.array([classes.index(name) if name in classes else -1 for name in names] + [-1])
    return place[codes], classes


def _loaded(encoder: str | Encoder, spec: TileSpec, device: str | None) -> Encoder:
    from sthist import encoders

    loaded = encoders.get(encoder, device=device) if encoder != "morphology" else encoders.get(encoder)
    return loaded.at(spec)


def _embeddings(rows: _Rows, encoder: Encoder) -> tuple[np.ndarray, np.ndarray]:
    """Of the real and of the virtual tiles, (n, d) each; tiles are let go as soon as they are embedded."""
    pairs = [
        [np.asarray(encoder.embed(tiles), np.float32) for tiles in (real, virtual)]
        for part in rows.parts
        for virtual, real in part.batches()
    ]
    real, virtual = (np.concatenate(each) for each in zip(*pairs, strict=True))
    return real, virtual


def _annotated(rows: _Rows, annotator: Annotator, device: str | None) -> dict[str, np.ndarray]:
    """Probabilities of all tiles of each image, (n, classes), by an annotator that exists."""
    annotator.require_spec(rows.spec, "these tiles")
    encoder = None
    if not annotator.needs_tiles:
        encoder = _loaded(annotator.encoder or annotator.config.encoder, rows.spec, device)
        annotator.require_encoder(encoder.name, weight_hash(encoder.provenance))

    def predict(tiles: np.ndarray) -> np.ndarray:
        return annotator.predict(tiles) if encoder is None else annotator.classify(encoder.embed(tiles))

    columns = [annotator.config.classes.index(name) for name in rows.classes]
    pairs = [[predict(each)[:, columns] for each in pair] for part in rows.parts for pair in part.batches()]
    return {name: np.concatenate([pair[i] for pair in pairs]) for i, name in enumerate(("virtual", "real"))}


def _cross_fitted(
    rows: _Rows,
    grouping: Grouping,
    real: np.ndarray,
    virtual: np.ndarray,
    folds: int | None,
    seed: int,
) -> tuple[dict[str, np.ndarray], np.ndarray]:
    """Probabilities of the held-out tiles of each image, (n, classes), NaN elsewhere; and which were held out."""
    task = LinearTask(real, len(rows.classes), AnnotatorTraining(seed=seed))
    config = AnnotatorConfig(classes=tuple(rows.classes), encoder="embeddings", dim=real.shape[1])
    called = {name: np.full((len(real), len(rows.classes)), np.nan, np.float32) for name in ("virtual", "real")}
    pairs = folds_of(grouping, rows.codes, folds=fold_count(grouping, folds), seed=seed)
    for train, test in pairs:
        untrained = sorted(set(rows.codes[test]) - set(rows.codes[train]))
        if untrained:
            raise ValueError(
                f"Class {rows.classes[untrained[0]]!r} is in one fold only, which leaves none of it to train on: use "
                "fewer folds, or smaller blocks (block_um=), or leave it out with classes=."
            )
        fitted = Annotator(config, task.fit_groups(rows.codes, train, grouping, VALIDATION).weights)
        called["virtual"][test], called["real"][test] = fitted.classify(virtual[test]), fitted.classify(real[test])
    return called, np.sort(np.concatenate([test for _, test in pairs]))


def _scored(
    called: dict[str, np.ndarray], codes: np.ndarray, classes: list[str], groups: Any, n_boot: int, seed: int
) -> pd.DataFrame:
    """AUC of each image and class with intervals, and their mean."""
    import pandas as pd

    support = np.bincount(codes, minlength=len(classes))
    frames = []
    for image, probabilities in called.items():
        statistic = auc_statistic(codes, probabilities.astype(np.float64))
        interval = bootstrap_interval(statistic, len(codes), groups=groups, n_boot=n_boot, seed=seed)
        columns = {"image": image, "class": [*classes, WEIGHTED], "auc": statistic(np.ones(len(codes)))}
        columns |= {"low": interval.low, "high": interval.high, "support": [*support, support.sum()]}
        frames.append(pd.DataFrame(columns))
    return pd.concat(frames, ignore_index=True)
