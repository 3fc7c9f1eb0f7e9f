"""Virtual H&E models, trained and scored on tiles that they have not seen."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from sthist.benchmark._study import BASELINES, run_study

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence
    from pathlib import Path

    import pandas as pd

    from sthist.encoders import Encoder


def cross_validate_virtual_he(
    data: Any,
    model: Any = "small",
    *,
    split: str | Mapping[str, str] = "block",
    test: Any = None,
    folds: int | None = None,
    seeds: Sequence[int] = (0,),
    tiles: str = "tiles",
    baselines: Sequence[str] = BASELINES,
    metrics: Sequence[str] = ("mse", "psnr", "ssim"),
    extractor: str | Encoder | Callable[[Any], Any] | None = "morphology",
    options: Mapping[str, Mapping[str, Any]] | None = None,
    classes: str | None = None,
    n_max: int | None = None,
    validation: float = 0.1,
    block_um: float | None = None,
    gap_um: float | None = None,
    samples: Any = None,
    seed: int | None = None,
    folder: str | Path | None = None,
    **training: Any,
) -> pd.DataFrame:
    """Train a virtual H&E model on some tiles, score it on others, and do so with all in turn.

    Each fold is trained without the tiles that it is scored on, once per seed, by :func:`sthist.tl.train_virtual_he`. On the same held-out
    tiles are scored predictions that have learned little or nothing, without which a score means nothing.

    Parameters
    ----------
    data
        A SpatialData, or a mapping of sample name to such, with nuclear stain, transcripts, a registered H&E, and laid tiles.
    model
        What is trained, as of :func:`sthist.tl.train_virtual_he`. A model that is given is continued in each fold: where it was
        trained on these tiles before, the scores are too good.
    split
        What is held out: ``"block"`` (squares of tissue with a gap), ``"sample"``, ``"patient"``, ``"tissue"``, ``"platform"``, the name of a
        column of the tiles' table, or a mapping of sample to ``"train"``, ``"validation"`` or ``"test"``. ``"random"`` leaks, and the result
        says so. A model that is told the tissue (``tissue=``) cannot be asked for one that it has never seen.
    test
        Groups that test, or a part of the tiles such as ``0.2``; by default each group tests once, in one of ``folds``.
    folds
        How many. By default one for each group where groups are samples, patients, tissues, platforms or what a column says, up to ten of
        them, so that each is left out once; else five.
    seeds
        Of the trainings, each of which is scored.
    tiles
        Tiles that :func:`sthist.pp.tiles` has laid; of their size is what is scored. The model is trained on tiles of that size, too, or of
        ``size_um=`` and ``px=``, around the same centres.
    baselines
        Among ``"beer-lambert"``, ``"beer-lambert, training colours"`` (its stains fitted to real tiles of the training part), and
        ``"mean colour"`` (of the same). Empty for none. ``"shuffled"``, the model's image of another tile, is always there.
    metrics, options
        As of :func:`sthist.metrics.image.compare`.
    extractor
        Of FID and KID, as of :func:`virtual_he`.
    classes
        Column of the tiles' table with region classes.
    n_max
        Held-out tiles that are scored in each fold, at most, drawn at random; all by default. They are in memory at once.
    validation
        Part of the training tiles, in whole groups, that training watches. A fold in which no group can be spared has none;
        ``attrs["folds"]`` says how many tiles each has.
    block_um, gap_um
        Of ``split="block"``: four tiles, and one, by default.
    samples
        Table of samples with patient, tissue or platform of each, where their readers have not recorded it.
    seed
        Of splits and shuffling; ``settings.seed`` by default.
    folder
        Where the trainings are kept, each in a folder of its own; with ``resume=True`` a call that was stopped goes on from them.
    training
        Of :func:`sthist.tl.train_virtual_he`. Tiles that it finds out of register are not trained on, but they are scored.

    Returns
    -------
    One row per fold, seed, method and tile: ``split``, ``fold``, ``seed``, ``method`` (``"model"``, the baselines, ``"shuffled"``), ``sample``,
    ``tile`` (the instance id), ``class`` if asked for, and the metrics of tiles. The baselines stand under every seed alike. ``attrs["sets"]``
    has FID and KID by fold, seed and method, ``attrs["extractor"]`` what they looked through, ``attrs["not_available"]`` what could not be
    computed, ``attrs["leaks"]`` why scores are too good, ``attrs["folds"]`` the sizes. :func:`over_seeds` summarises it.

    Raises
    ------
    TypeError
        If the trainer has no such argument.
    KeyError
        If elements, tiles, columns, groups or facts of samples are missing.
    ValueError
        If there are fewer groups than folds, nothing is left to train on, or an argument is out of range.

    Examples
    --------
    >>> import sthist
    >>> sdata = sthist.datasets.toy(size_um=300)
    >>> sthist.pp.tiles(sdata, size_um=32, px=64, sampling="fps", n_tiles=60)
    >>> tiny = sthist.models.Pix2PixConfig(size_um=32, px=64, width=4, max_width=8, depth=3)
    >>> training = {"epochs": 1, "steps_per_epoch": 2, "device": "cpu", "progress": False}
    >>> frame = sthist.benchmark.cross_validate_virtual_he(
    ...     sdata, sthist.models.Pix2Pix(tiny), test=0.3, n_max=8, metrics="ssim", **training
    ... )
    >>> sthist.benchmark.over_seeds(frame)["method"].tolist()
    ['model', 'shuffled', 'beer-lambert', 'beer-lambert, training colours', 'mean colour']
    """
    arguments = locals()  # first of all, so that it is what was given and nothing else
    return run_study(arguments, {"": {}}).drop(columns=["variant", "factor"])
