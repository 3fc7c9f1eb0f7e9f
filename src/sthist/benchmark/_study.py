"""Trainings on one set of tiles, and their scores on another: what cross-validation and ablation share."""

from __future__ import annotations

import dataclasses
import inspect
from copy import deepcopy
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from sthist._sample.elements import safe_key
from sthist._settings import logger, settings
from sthist.benchmark._folds import PART, Fold, StudyTiles, find_tiles, folds_in, grouped, training_data
from sthist.benchmark._tiles import find_extractor, predict_tiles
from sthist.metrics import image as scores
from sthist.metrics._compare import PAIRS, SETS, shuffled
from sthist.systems.virtual_he.models.beer_lambert import BeerLambert
from sthist.systems.virtual_he.training_set.prompts import require_tissues
from sthist.tiles import TileSpec
from sthist.training.model import known_name
from sthist.training.splits import Split, as_split

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    import pandas as pd

    from sthist.systems.virtual_he.config import TranslationTraining
    from sthist.systems.virtual_he.generator import VirtualStainModel
    from sthist.tiles import TileSpec
    from sthist.training.splits import Grouping

MODEL, MEAN, SHUFFLED = "model", "mean colour", "shuffled"
FITTED = "beer-lambert, training colours"
BASELINES = ("beer-lambert", FITTED, MEAN)
BASE, BASELINE = "base", "baseline"
"""Factors of a variant that changes nothing, and of what is not trained."""

PER_TISSUE = "per_tissue"
"""Argument of a variant that is no argument of the trainer: a model of its own for each tissue."""

REFERENCE_TILES = 64
"""Training tiles from which colours are taken."""


@dataclass(frozen=True, eq=False)
class Design:
    """How a study is split and scored: arguments of :func:`sthist.benchmark.cross_validate_virtual_he`."""

    split: Split
    seeds: Sequence[int]
    regions: str
    baselines: Sequence[str]
    metrics: Sequence[str]
    encoder: Any
    options: Mapping[str, Mapping[str, Any]] | None
    classes: str | None
    n_tiles: int | None
    samples: Any
    seed: int

    @classmethod
    def of(cls, arguments: Mapping[str, Any]) -> Design:
        """From the arguments of a verb, of which others are left out."""
        fields = {field.name: arguments[field.name] for field in dataclasses.fields(cls)}
        for name in ("baselines", "metrics"):
            fields[name] = (fields[name],) if isinstance(fields[name], str) else tuple(fields[name])
        fields["baselines"] = tuple(known_name(name, BASELINES) for name in fields["baselines"])
        fields["seeds"] = tuple(fields["seeds"])
        fields["seed"] = settings.seed if fields["seed"] is None else int(fields["seed"])
        design = cls(**fields)
        _require(design)
        return design


@dataclass(frozen=True, eq=False)
class Study:
    """What is trained how, on which tiles."""

    design: Design
    tiles: StudyTiles
    grouping: Grouping
    folds: list[Fold]
    variants: Mapping[str, Mapping[str, Any]]
    factors: Mapping[str, str]
    specs: Mapping[str, TileSpec]
    per_tissue: frozenset[str]  # variants that are a model of each tissue

    def run(self, model: Any, folder: str | Path | None) -> pd.DataFrame:
        """Train and score everything; one tidy frame."""
        import pandas as pd

        frames: list[pd.DataFrame] = []
        attrs: dict[str, Any] = {"sets": [], "not_available": {}, "encoder": None, "leaks": self.grouping.leaks}
        attrs["folds"] = [
            {"train": len(fold.train), "validation": len(fold.validation), "test": len(fold.test)}
            for fold in self.folds
        ]
        for number, fold in enumerate(self.folds):
            score = ImageScorer(self, fold)
            # Trained first, so that what the trainer refuses is said at once.
            for variant, arguments in self.variants.items():
                for seed in self.design.seeds:
                    logger.info("Fold %d of %d, %s, seed %d.", number + 1, len(self.folds), variant or MODEL, seed)
                    place = f"{safe_key(variant or MODEL)}-fold{number}-seed{seed}"
                    where_to = None if folder is None else Path(folder) / place
                    virtual = self._held_out(model, variant, fold, seed, where_to, arguments)
                    where = {"variant": variant, "factor": self.factors[variant], "fold": number, "seed": seed}
                    _keep(score(virtual), frames, attrs, method=MODEL, **where)
                    if len(virtual) > 1:
                        other = virtual[shuffled(len(virtual), self.design.seed)]
                        _keep(score(other, sets=False), frames, attrs, method=SHUFFLED, **where)
            for method in self.design.baselines:
                scored = score(self._baseline(method, fold))
                for seed in self.design.seeds:
                    _keep(scored, frames, attrs, variant=method, factor=BASELINE, fold=number, seed=seed, method=method)
            attrs["encoder"] = score.extractor[1]
        frame = pd.concat(frames, ignore_index=True)
        by = self.design.split.by
        frame.insert(2, "split", by if isinstance(by, str) else "explicit")
        frame.attrs |= attrs
        return frame

    def _held_out(
        self, model: Any, variant: str, fold: Fold, seed: int, folder: Path | None, arguments: Mapping[str, Any]
    ) -> np.ndarray:
        """Held-out tiles by a model that is trained on the rest, or by one for each of their tissues."""
        if variant not in self.per_tissue:
            return self._predict(self._train(model, variant, fold, seed, folder), fold, arguments)
        spec = self.tiles.spec
        made = np.empty((len(fold.test), spec.px, spec.px, 3), np.uint8)
        for tissue, (own, rows) in self._by_tissue(fold, arguments["tissue"]).items():
            place = None if folder is None else folder / safe_key(tissue)
            made[rows] = self._predict(self._train(model, variant, own, seed, place), own, arguments)
        return made

    def _by_tissue(self, fold: Fold, tissue: Any) -> dict[str, tuple[Fold, np.ndarray]]:
        """The part of a fold that is of each tissue, and which of its test tiles these are."""
        rows = {name: getattr(fold, name) for name in ("train", "validation", "test")}
        known: Any = {name: self.tiles.tissues(tissue, each) for name, each in rows.items()}
        return {
            each: (
                Fold(**{name: rows[name][known[name] == each] for name in rows}),
                np.flatnonzero(known["test"] == each),
            )
            for each in dict.fromkeys(known["test"])
        }

    def _train(self, model: Any, variant: str, fold: Fold, seed: int, folder: Path | None) -> VirtualStainModel:
        from sthist.systems.virtual_he.train import train_virtual_he

        spec = self.specs[variant]
        return train_virtual_he(
            training_data(self.tiles, self.grouping, fold, spec),
            deepcopy(model),  # it is trained in place
            regions=self.tiles.key,
            split=Split(PART, validation=self.design.split.validation if len(fold.validation) else 0.0),
            folder=folder,
            **_as_arguments({**self.variants[variant], "seed": seed}),
        )

    def _predict(self, model: VirtualStainModel, fold: Fold, arguments: Mapping[str, Any]) -> np.ndarray:
        """Held-out tiles by a model."""
        spec = self.tiles.spec
        tissues = self.tiles.tissues(arguments.get("tissue"), fold.test)
        tiles = np.empty((len(fold.test), spec.px, spec.px, 3), np.uint8)
        for section, places, centres in self.tiles.by_section(fold.test):
            own = None if tissues is None else tissues[places]
            tiles[places] = predict_tiles(model, section.elements(), centres, spec, tissues=own)
        return tiles

    def _baseline(self, method: str, fold: Fold) -> np.ndarray:
        """Held-out tiles by a method that is not trained."""
        if method == BeerLambert.system:
            return self._predict(BeerLambert(), fold, {})
        drawn = np.random.default_rng(self.design.seed).permutation(fold.train)[:REFERENCE_TILES]
        reference = self.tiles.real(np.sort(drawn))
        if method == FITTED:
            mosaic = reference.reshape(-1, *reference.shape[2:])
            return self._predict(BeerLambert().fit(mosaic, seed=self.design.seed), fold, {})
        spec = self.tiles.spec
        colour = np.round(reference.mean(axis=(0, 1, 2))).astype(np.uint8)
        return np.broadcast_to(colour, (len(fold.test), spec.px, spec.px, 3))


class ImageScorer:
    """Scores predictions of the held-out tiles of a fold."""

    def __init__(self, study: Study, fold: Fold) -> None:
        self._study, self._fold, self._design = study, fold, study.design
        classes = study.design.classes
        self._labels = None if classes is None else list(study.tiles.column(classes, fold.test))

    @cached_property
    def real(self) -> np.ndarray:
        """The real tiles."""
        return self._study.tiles.real(self._fold.test)

    @cached_property
    def extractor(self) -> tuple[Any, str | None]:
        """What FID and KID look through, and its name."""
        if not set(SETS) & set(self._design.metrics):
            return None, None
        return find_extractor(self._design.encoder, self._study.tiles.spec, self.real)

    def __call__(self, virtual: np.ndarray, *, sets: bool = True) -> pd.DataFrame:
        # The same images at other places are the same set.
        metrics = [name for name in self._design.metrics if sets or name not in SETS]
        frame = scores.compare(
            virtual,
            self.real,
            classes=self._labels,
            metrics=metrics,
            nulls=False,
            seed=self._design.seed,
            encoder=self.extractor[0],
            options=self._design.options,
        ).drop(columns="method")
        frame.insert(0, "sample", self._study.tiles.units.sample[self._fold.test])
        frame["tile"] = self._study.tiles.column("instance_id", self._fold.test)
        return frame


def flat_training(training: TranslationTraining | Mapping[str, Any] | None) -> dict[str, Any]:
    """Arguments of the trainer and fields of its training, side by side."""
    return dataclasses.asdict(training) if dataclasses.is_dataclass(training) else dict(training or {})


def run_study(arguments: Mapping[str, Any], variants: Mapping[str, Mapping[str, Any]]) -> pd.DataFrame:
    """Check everything that can be, find and split the tiles, then train and score variants."""
    data, model, training = arguments["data"], arguments["model"], flat_training(arguments["training"])
    design = Design.of({**arguments, "split": as_split(arguments["split"])})
    full = {name: {**training, **changes} for name, changes in variants.items()}
    per_tissue = frozenset(name for name, each in full.items() if each.pop(PER_TISSUE, False))
    for each in full.values():
        _require_known(each)
    keys = ("he", "image", "channel", "points", "z")
    samples = _read(design.samples)
    tiles = find_tiles(
        data,
        design.regions,
        largest_um=max((each["spec"].size_um for each in full.values() if each.get("spec")), default=0.0),
        classes=design.classes,
        samples=samples if samples is not None and {"patient", "batch"} & set(samples.columns) else None,
        with_points=any(each.get("mode") != "none" for each in full.values()),
        **{name: training[name] for name in keys if training.get(name) is not None},
    )
    grouping = grouped(tiles, design.split, samples)
    for each in full.values():
        _require_tissues(tiles, each)
    for name in per_tissue:
        _require_several_tissues(tiles, full[name].get("tissue"))
    folds = folds_in(
        tiles,
        grouping,
        tissue=next((each["tissue"] for each in full.values() if each.get("tissue") is not None), None),
        split=design.split,
        n_tiles=design.n_tiles,
        seed=design.seed,
    )
    specs = {}
    for name, each in full.items():
        _require_seen_tissues(tiles, folds, each.get("tissue"))
        specs[name] = each.pop("spec", None) or tiles.spec
    _require_sizes(model, specs)
    factors = {name: ", ".join(changes) or BASE for name, changes in variants.items()}
    return Study(design, tiles, grouping, folds, full, factors, specs, per_tissue).run(model, arguments["folder"])


def _require(design: Design) -> None:
    """Refuse what cannot be, before the first tile is read."""
    for what, names, known in (("metric", design.metrics, (*PAIRS, *SETS)), ("baseline", design.baselines, BASELINES)):
        unknown = [name for name in names if name not in known]
        if unknown:
            raise ValueError(f"There is no {what} {unknown[0]!r}; there are {list(known)}.")
    if not design.seeds or len(set(design.seeds)) < len(design.seeds):
        raise ValueError(f"seeds= is {list(design.seeds)}; it is at least one number, each once.")
    if design.n_tiles is not None and design.n_tiles < 2:
        raise ValueError(f"n_tiles is {design.n_tiles}; at least two tiles are scored.")


def _require_known(arguments: Mapping[str, Any]) -> None:
    """Refuse arguments that the trainer does not take, also of the last variant, before the first is trained."""
    from sthist.systems.virtual_he.config import TranslationTraining
    from sthist.systems.virtual_he.train import train_virtual_he

    fields = {field.name for field in dataclasses.fields(TranslationTraining)}
    own = set(inspect.signature(train_virtual_he).parameters)
    taken = {"data", "model", "training", "regions", "split", "folder", "seed"}
    unknown = sorted(set(arguments) - (fields | own) | set(arguments) & taken)
    if unknown:
        raise TypeError(
            f"{unknown[0]!r} is no argument of tl.train_virtual_he, and no setting of a training, that can be given "
            f"here; there are {sorted((fields | own) - taken)}."
        )
    TranslationTraining(**_as_arguments(arguments)["training"])


def _as_arguments(arguments: Mapping[str, Any]) -> dict[str, Any]:
    """Arguments of the trainer, with those that are settings of the training as one of them."""
    from sthist.systems.virtual_he.config import TranslationTraining

    fields = {field.name for field in dataclasses.fields(TranslationTraining)}
    training = {name: value for name, value in arguments.items() if name in fields}
    return {name: value for name, value in arguments.items() if name not in fields} | {"training": training}


def _require_sizes(model: Any, specs: Mapping[str, TileSpec]) -> None:
    """Refuse tiles that do not go through the model, also of the last variant, before the first is trained."""
    from sthist.systems.virtual_he.models.pix2pix import Pix2PixConfig
    from sthist.systems.virtual_he.models.st2he import ST2HEConfig

    configs: dict[str, Any] = {"small": ST2HEConfig, "sd-turbo": ST2HEConfig.sd_turbo, "pix2pix": Pix2PixConfig}
    for name, spec in specs.items():
        if isinstance(model, str):
            if model not in configs:
                raise ValueError(f"model is {model!r}; it is one of {list(configs)}, or a model.")
            configs[model](size_um=spec.size_um, px=spec.px)
        elif hasattr(model.config, "spec") and model.config.spec != spec:
            of = f"variant {name!r}" if name else "the tiles"
            raise ValueError(
                f"The model that is given is for {model.config.spec}, and {of} would be {spec}: name a model, to begin "
                "anew."
            )


def _require_tissues(tiles: StudyTiles, arguments: Mapping[str, Any]) -> None:
    """Refuse a model that is told the tissue of some tiles, and not of others."""
    tissue, prompts = arguments.get("tissue"), arguments.get("prompts")
    if tissue is None and prompts is not None and not (isinstance(prompts, str) and not prompts.endswith(".json")):
        raise ValueError(
            "prompts= is by tissue or tile: say the tissue with tissue=, so that held-out tiles can be asked for."
        )
    if tissue is not None and not isinstance(tissue, str):
        require_tissues(tiles.sections, tissue)


def _require_several_tissues(tiles: StudyTiles, tissue: Any) -> None:
    """Refuse a model for each tissue where there is one, or none is said."""
    known = tiles.tissues(tissue, np.arange(len(tiles.units.sample)))
    if known is None or len(set(known)) < 2:
        said = "none is said" if known is None else f"all tiles are of {known[0]!r}"
        raise ValueError(f"{PER_TISSUE!r} is a model for each of several tissues, and {said}: name them with tissue=.")


def _require_seen_tissues(tiles: StudyTiles, folds: list[Fold], tissue: Any) -> None:
    """Refuse to test a model on a tissue that it is told of and has never seen, before it is trained."""
    for number, fold in enumerate(folds if tissue is not None else []):
        trained, tested = (set(tiles.tissues(tissue, part)) for part in (fold.train, fold.test))  # type: ignore[arg-type]
        if tested - trained:
            raise ValueError(
                f"Fold {number} tests the tissue {sorted(map(str, tested - trained))[0]!r} and is trained on "
                f"{sorted(map(str, trained))}: a model that is told the tissue knows only those. Leave tissue= out, or "
                "split by something else."
            )


def _read(samples: Any) -> pd.DataFrame | None:
    """A table of samples: of their patients, tissues and platforms."""
    import pandas as pd

    return samples if samples is None or hasattr(samples, "columns") else pd.read_csv(samples, dtype=str)


def _keep(scored: pd.DataFrame, frames: list[pd.DataFrame], attrs: dict[str, Any], **where: Any) -> None:
    """Add scores to the frames, and what belongs to whole sets to the attributes."""
    own = scored.attrs
    attrs["not_available"] |= own.get("not_available", {})
    for record in own.get("sets", []):
        attrs["sets"].append(where | {name: record[name] for name in ("metric", "class", "n", "value")})
    frame = scored.copy()
    frame.attrs = {}
    for name in ("method", "seed", "fold", "factor", "variant"):
        frame.insert(0, name, where[name])
    frames.append(frame)
