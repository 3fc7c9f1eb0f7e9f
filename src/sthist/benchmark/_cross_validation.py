"""Virtual H&E models, trained and scored on tiles that they have not seen."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from sthist import _store
from sthist._sample.verbs import verb
from sthist.benchmark._study import BASE, BASELINES, PER_TISSUE, flat_training, run_study
from sthist.tiles import TileSpec
from sthist.tiles._laid_tiles import laid_tiles
from sthist.training.splits import Split

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence
    from pathlib import Path

    import pandas as pd

    from sthist.encoders import Encoder
    from sthist.systems.virtual_he.config import TranslationTraining

A_FIFTH = Split("block", test=0.2)
DOT_SIZES = (0.1, 0.3, 0.5, 0.7, 0.9)
DOT_SIZE = 0.3
PRESETS = {"small": "small", "pix2pix": "pix2pix", "sd-turbo": "upstream"}
"""Losses of a model that is trained by its name, where nothing else is said."""

STRIDES = {"small": 32, "pix2pix": 64, "sd-turbo": 64}
"""Half tiles are tried where they are multiples of so many px."""


@verb
def ablate_virtual_he(
    data: Any,
    variants: Mapping[str, Mapping[str, Any]] | None = None,
    *,
    model: Any = "small",
    seeds: Sequence[int] = (0, 1, 2),
    split: str | Mapping[str, str] | Split = A_FIFTH,
    regions: str = "tiles",
    baselines: Sequence[str] = BASELINES,
    metrics: Sequence[str] = ("mse", "psnr", "ssim"),
    encoder: str | Encoder | Callable[[Any], Any] | None = "morphology",
    options: Mapping[str, Mapping[str, Any]] | None = None,
    classes: str | None = None,
    n_tiles: int | None = None,
    samples: Any = None,
    seed: int | None = None,
    folder: str | Path | None = None,
    training: TranslationTraining | Mapping[str, Any] | None = None,
) -> pd.DataFrame:
    """Train variants of a virtual H&E model on the same tiles, and score them on the same others.

    All variants share split, centres of tiles and seeds; a variant of another tile size is scored on the same tiles as
    the others.

    Parameters
    ----------
    data
        As of :func:`cross_validate_virtual_he`.
    variants
        Arguments of :func:`sthist.tl.train_virtual_he` that a variant changes, by its name; ``{}`` changes nothing. By
        default those of ST2HE's paper: transcripts in many colours, in one, or none; dots of 0.1, 0.3, 0.5, 0.7 and
        0.9; tiles of half the size; a global term of the loss of three times the weight (``"paper"`` and ``"paper-hg"``
        where the model has a text term, else the adversarial one); where ``tissue=`` is given, without it; and where it
        names several tissues, a model for each of them, trained on it alone: ``{"per_tissue": True}``, which is no
        argument of the trainer.
    model
        As of :func:`sthist.tl.train_virtual_he`.
    seeds
        Of the trainings of each variant.
    split
        As of :func:`cross_validate_virtual_he`; by default a fifth of the tiles tests, once.
    regions, baselines, metrics, encoder, options, classes, n_tiles, samples, seed, folder
        As of :func:`cross_validate_virtual_he`.
    training
        As of :func:`cross_validate_virtual_he`, for all variants.

    Returns
    -------
    The frame of :func:`cross_validate_virtual_he` with two more columns: ``variant``, and ``factor``, the arguments
    that it changes (``"base"`` for none, ``"baseline"`` for what is not trained). :func:`over_seeds` summarises it,
    :func:`sthist.pl.ablation` shows it.

    Raises
    ------
    KeyError
        As of :func:`cross_validate_virtual_he`.
    ValueError
        If there is no variant, two are alike, or none is given for a model that is; as of
        :func:`cross_validate_virtual_he`.

    Examples
    --------
    >>> import sthist
    >>> sdata = sthist.datasets.toy(size_um=200)
    >>> sthist.pp.tiles(sdata, size_um=16, px=32, sampling="fps", n_tiles=60)
    >>> tiny = sthist.models.Pix2PixConfig(size_um=16, px=32, width=4, max_width=8, depth=3)
    >>> variants = {"as it is": {}, "not turned": {"augment": False}}
    >>> training = {"epochs": 1, "steps_per_epoch": 2, "device": "cpu", "progress": False}
    >>> frame = sthist.benchmark.ablate_virtual_he(
    ...     sdata,
    ...     variants,
    ...     model=sthist.models.Pix2Pix(tiny),
    ...     seeds=(0,),
    ...     n_tiles=8,
    ...     metrics="ssim",
    ...     baselines="mean colour",
    ...     training=training,
    ... )
    >>> [label.get_text() for label in sthist.pl.ablation(frame).get_yticklabels()]
    ['as it is', 'not turned']
    """
    arguments = locals()  # first of all, so that it is what was given and nothing else
    if variants is None:
        if not isinstance(model, str):
            raise ValueError(
                "A model that is given cannot change what it sees: name one, such as model='small', or say what varies "
                "with variants=."
            )
        first = next(iter(data.values())) if isinstance(data, Mapping) else data
        variants = paper_variants(laid_tiles(first, regions)[1], model, flat_training(training))
    _require_distinct(variants)
    return run_study(arguments, variants)


def paper_variants(spec: TileSpec, model: str, training: Mapping[str, Any]) -> dict[str, dict[str, Any]]:
    """The variants of ST2HE's paper, each with one thing changed."""
    variants: dict[str, dict[str, Any]] = {BASE: {}}
    mode = training.get("mode", "multi")
    names = {"multi": "many colours", "mono": "one colour", "none": "stain only"}
    variants |= {name: {"mode": each} for each, name in names.items() if each != mode}
    if mode != "none" and training.get("dot_um") is None:
        drawn = training.get("dot_s", DOT_SIZE if model == "sd-turbo" else None)
        variants |= {f"dots of {s:g}": {"dot_s": s} for s in DOT_SIZES if s != drawn}
    spec = training.get("spec") or spec
    if spec.px % (2 * STRIDES.get(model, 64)) == 0:
        variants["half tiles"] = {"spec": TileSpec(spec.size_um / 2, spec.px // 2)}
    variants |= _losses(model, training)
    if training.get("tissue") is not None:
        variants["tissue not said"] = {"tissue": None, "prompts": None} if "prompts" in training else {"tissue": None}
        if isinstance(training["tissue"], Mapping) and len(set(training["tissue"].values())) > 1:
            variants["a model per tissue"] = {PER_TISSUE: True}
    return variants


def _losses(model: str, training: Mapping[str, Any]) -> dict[str, dict[str, Any]]:
    """A high weight of the term that sees the image as a whole, beside a low one."""
    from sthist.systems.virtual_he.config import LOSSES

    losses = training.get("losses", PRESETS.get(model, "upstream"))
    weights = LOSSES[losses] if isinstance(losses, str) else losses
    if weights.text:
        return {f"losses: {name}": {"losses": name} for name in ("paper", "paper-hg") if name != losses}
    return {"adversarial x 3": {"losses": dataclasses.replace(weights, adversarial=3 * weights.adversarial)}}


def _require_distinct(variants: Mapping[str, Mapping[str, Any]]) -> None:
    """Refuse variants that are none, or that are trained twice."""
    if not variants:
        raise ValueError("variants= is empty: name at least one, such as {'base': {}}.")
    known: dict[str, str] = {}
    for name, arguments in variants.items():
        if name in BASELINES:
            raise ValueError(f"A variant is called {name!r}, as a baseline is; give it another name.")
        other = known.setdefault(_store.content_of(sorted(arguments.items())), name)
        if other != name:
            raise ValueError(f"Variants {other!r} and {name!r} are the same: {dict(arguments)}.")


@verb
def cross_validate_virtual_he(
    data: Any,
    model: Any = "small",
    *,
    split: str | Mapping[str, str] | Split = "block",
    seeds: Sequence[int] = (0,),
    regions: str = "tiles",
    baselines: Sequence[str] = BASELINES,
    metrics: Sequence[str] = ("mse", "psnr", "ssim"),
    encoder: str | Encoder | Callable[[Any], Any] | None = "morphology",
    options: Mapping[str, Mapping[str, Any]] | None = None,
    classes: str | None = None,
    n_tiles: int | None = None,
    samples: Any = None,
    seed: int | None = None,
    folder: str | Path | None = None,
    training: TranslationTraining | Mapping[str, Any] | None = None,
) -> pd.DataFrame:
    """Train a virtual H&E model on some tiles, score it on others, and do so with all in turn.

    Each fold is trained without the tiles that it is scored on, once per seed, by :func:`sthist.tl.train_virtual_he`.
    On the same held-out tiles are scored predictions that have learned little or nothing, without which a score means
    nothing.

    Parameters
    ----------
    data
        A SpatialData, or a mapping of sample name to such, with nuclear stain, transcripts, a registered H&E, and laid
        tiles.
    model
        What is trained, as of :func:`sthist.tl.train_virtual_he`. A model that is given is continued in each fold:
        where it was trained on these tiles before, the scores are too good.
    split
        What is held out: ``"block"`` (squares of tissue with a gap), ``"sample"``, ``"patient"``, ``"tissue"``,
        ``"platform"``, the name of a column of the tiles' table, or a mapping of sample to ``"train"``,
        ``"validation"`` or ``"test"``. ``"random"`` leaks, and the result says so. Or a :class:`sthist.models.Split`,
        which also names groups that test, or their part; by default each group tests once, in one of 5 folds, or in
        one for each of up to ten samples, patients, tissues, platforms or values of a column. A fold in which no group
        can be spared for validation has none, and ``attrs["folds"]`` says how many tiles each has. A model that is
        told the tissue (``tissue=``) cannot be asked for one that it has never seen.
    seeds
        Of the trainings, each of which is scored.
    regions
        Tiles that :func:`sthist.pp.tiles` has laid; of their size is what is scored. The model is trained on tiles of
        that size, too, or of ``spec=``, around the same centres.
    baselines
        Among ``"beer-lambert"``, ``"beer-lambert, training colours"`` (its stains fitted to real tiles of the training
        part), and ``"mean colour"`` (of the same). Empty for none. ``"shuffled"``, the model's image of another tile,
        is always there.
    metrics, options
        As of :func:`sthist.metrics.image.compare`.
    encoder
        Of FID and KID, as of :func:`virtual_he`.
    classes
        Column of the tiles' table with region classes.
    n_tiles
        Held-out tiles that are scored in each fold, at most, drawn at random; all by default. They are in memory at
        once.
    samples
        Table of samples with patient, tissue or platform of each, where their readers have not recorded it.
    seed
        Of splits and shuffling; ``settings.seed`` by default.
    folder
        Where the trainings are kept, each in a folder of its own; with ``training={"resume": True}`` a call that
        was stopped goes on from them.
    training
        Arguments of :func:`sthist.tl.train_virtual_he` and fields of :class:`sthist.models.TranslationTraining`, such
        as ``{"epochs": 5, "mode": "mono"}``. Tiles that training finds out of register are not trained on, but they are
        scored.

    Returns
    -------
    One row per fold, seed, method and tile: ``split``, ``fold``, ``seed``, ``method`` (``"model"``, the baselines,
    ``"shuffled"``), ``sample``, ``tile`` (the instance id), ``class`` if asked for, and the metrics of tiles. The
    baselines stand under every seed alike. ``attrs["sets"]`` has FID and KID by fold, seed and method,
    ``attrs["encoder"]`` what they looked through, ``attrs["not_available"]`` what could not be computed,
    ``attrs["leaks"]`` why scores are too good, ``attrs["folds"]`` the sizes. :func:`over_seeds` summarises it.

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
    >>> sdata = sthist.datasets.toy(size_um=200)
    >>> sthist.pp.tiles(sdata, size_um=16, px=32, sampling="fps", n_tiles=60)
    >>> tiny = sthist.models.Pix2PixConfig(size_um=16, px=32, width=4, max_width=8, depth=3)
    >>> training = {"epochs": 1, "steps_per_epoch": 2, "device": "cpu", "progress": False}
    >>> part = sthist.models.Split("block", test=0.3)
    >>> frame = sthist.benchmark.cross_validate_virtual_he(
    ...     sdata, sthist.models.Pix2Pix(tiny), split=part, n_tiles=8, metrics="ssim", training=training
    ... )
    >>> sthist.benchmark.over_seeds(frame)["method"].tolist()
    ['model', 'shuffled', 'beer-lambert', 'beer-lambert, training colours', 'mean colour']
    """
    arguments = locals()  # first of all, so that it is what was given and nothing else
    return run_study(arguments, {"": {}}).drop(columns=["variant", "factor"])
