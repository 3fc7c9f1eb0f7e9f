"""Adapt, synthesize and train on parts of the spots, and test on others: the verb and its study."""

from __future__ import annotations

import hashlib
import json
import time
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import numpy as np

from sthist._disk import written_whole
from sthist._messages import plain
from sthist._sample.verbs import verb
from sthist._settings import logger
from sthist.benchmark._augmentation.predictors import (
    ALL,
    AUGMENTED,
    BOTH,
    EQUAL_STEPS,
    MEAN,
    REAL,
    SHUFFLED,
    SYNTHETIC,
    Arm,
    arms_of,
    as_predictor,
    pool_of,
)
from sthist.benchmark._augmentation.result import AugmentationScores
from sthist.benchmark._augmentation.scores import DRAWN, Classes, Scorer
from sthist.benchmark._augmentation.spots import divided, grouped_for, read_spots, settle_split
from sthist.benchmark._predictors.trials import require_seeds
from sthist.regression.model import plain_config
from sthist.regression.rows import as_trained
from sthist.systems.expression.models import as_model
from sthist.systems.synthesis.apply import synthesize
from sthist.systems.synthesis.config import LOCAL, DiffusionTraining, shape_of
from sthist.systems.synthesis.model import C2L
from sthist.tiles import TileReader
from sthist.training.model import weight_hash
from sthist.training.options import as_training

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    import pandas as pd
    from anndata import AnnData

    from sthist.benchmark._augmentation.predictors import Predictor
    from sthist.benchmark._augmentation.spots import Division, Spots
    from sthist.regression.model import RegressionConfig
    from sthist.regression.module import RegressionTraining
    from sthist.systems.expression.model import ExpressionModel
    from sthist.training.splits import Split

LAYERS = {
    REAL: "real",
    EQUAL_STEPS: "real_equal_steps",
    AUGMENTED: "real_augmented",
    SYNTHETIC: "synthetic",
    BOTH: "real_synthetic",
    ALL: "real_synthetic_augmented",
    SHUFFLED: "real_shuffled_pairs",
}
"""What the layer of an arm's predictions is called."""

IDENTITY, ADAPTER, MADE = "identity.json", "adapter.safetensors", "synthetic.zarr"


@verb
def augmentation(
    data: Any,
    central: C2L | str | Path,
    model: str | ExpressionModel | RegressionConfig = "resnet",
    *,
    fractions: Sequence[float] = (0.05, 0.1, 0.25, 0.5),
    ratios: Sequence[int] = (0, 1, 5, 10),
    split: Literal["random", "block"] | str | Split = "random",
    seeds: Sequence[int] = (0, 1, 2),
    genes: Sequence[str] | int | None = None,
    embedding: Any = None,
    guidance: float = 3.0,
    steps: int = 250,
    adaptation: DiffusionTraining | Mapping[str, Any] | None = None,
    training: RegressionTraining | Mapping[str, Any] | None = None,
    table: str | None = None,
    image: str | None = None,
    folder: str | Path | None = None,
    device: str | None = None,
    progress: bool | None = None,
) -> AugmentationScores:
    """Find out whether synthetic tiles make a predictor better, beyond a longer training and ordinary augmentation.

    For each fraction of the spots and each seed the central model is adapted to these spots, tiles are made of them,
    and predictors are trained in several arms:

    * ``"real"``: on the spots alone; and, beside each ratio of synthetic to real tiles,
    * ``"real, equal steps"``: on the spots alone, for as many changes of the weights as the ratio takes,
    * ``"real, augmented"``: with as many copies of the spots' tiles, turned, mirrored, and with stains and colours
      changed a little, in place of synthetic tiles,
    * ``"synthetic"``: on synthetic tiles alone,
    * ``"real + synthetic"``: on both; at ratio 0 this is ``"real"``;
    * with most synthetic tiles ``"real + synthetic, augmented"``, and, as nulls, ``"real + shuffled pairs"``, in which
      synthetic tiles have the expression of others, and ``"training mean"``.

    An epoch is as many whole batches as real and synthetic tiles fill, in all arms of a ratio, and the number of epochs
    is the same in all. All are tested on the same spots, of which neither adapter nor predictor has seen any, nor were
    genes or clusters chosen on them. All tiles, real and synthetic, are read as the central model's.

    Parameters
    ----------
    data
        A SpatialData with spots and an H&E, or a mapping of sample name to such.
    central
        A central model of :func:`sthist.tl.train_central`, or its folder, that has not seen spots that test.
    model
        What is trained, as of :func:`sthist.tl.train_expression`: on tiles, or with ``embedding=`` and for models such
        as ``"mlp"`` and ``"ridge"`` on embeddings of them. ``"resnet"`` is a ResNet-50; on a CPU take a small one,
        ``sthist.models.ResNetConfig(backbone="resnet10t", pretrained=False)``. ``"ridge"`` is solved, not trained in
        steps.
    fractions
        Parts of the spots to adapt to and train on; of one seed, smaller ones are a part of larger ones, and all have
        the same test spots.
    ratios
        Synthetic tiles of each spot; those of a smaller ratio are a part of those of a larger one.
    split
        ``"random"``: spots that are left test, which lie between those that train; or ``"block"``: a quarter tests, in
        squares of tissue with a gap around, and whole squares train, as far as a fraction goes; or a column of ``obs``
        that says of each spot whether it may ``"train"`` or is to ``"test"``. A :class:`sthist.models.Split` says what
        part tests, and how large squares are.
    seeds
        Of the division, the adapter, the tiles and the predictors.
    genes
        Genes to listen to and to predict: names, or a number for so many of the most expressed over the spots of the
        adaptation; by default 250, or all that there are.
    embedding
        The encoder for models of embeddings, as :func:`sthist.encoders.get` takes it; ``"morphology"`` by default.
    guidance, steps
        Of sampling, as of :func:`sthist.tl.synthesize`.
    adaptation
        How the adapter is trained: a :class:`sthist.models.DiffusionTraining`, or a mapping of its fields. Tiles are
        made in its ``precision``, too.
    training
        How predictors are trained: a :class:`sthist.models.RegressionTraining`, or a mapping of its fields over the
        model's defaults. Epochs are not cut short; batches are no larger than the number of spots.
    table
        Key of the table with the genes, where there are several.
    image
        Key of the H&E.
    folder
        Where adapters, synthetic samples and scores are kept: a benchmark that was stopped goes on from there, and
        another model is trained on the same tiles.
    device
        Of torch; ``settings.device`` by default.
    progress
        Show bars of adaptation and synthesis; ``settings.progress`` by default.

    Returns
    -------
    An :class:`AugmentationScores`: ``scores``, a row for each fraction, seed, arm and ratio, with

    * ``mae``, on the scale of log expression, over test spots and genes;
    * ``pearson``, the mean over genes of the correlation across spots of a slide (0 where a prediction is constant);
    * ``accuracy``, macro ``f1``, ``auc_ovr`` and ``auc_ovo`` of classes: clusters of the training spots' expression
      (k-means of standardised genes, up to four), to which a test spot belongs by the nearest centroid of what was
      measured, and of what is predicted;

    ``summary()`` has means and intervals, and differences to the best control; ``verdict()`` says it in words.

    Raises
    ------
    KeyError
        If there is no such model, table or gene.
    TypeError
        If the central model is of another kind.
    ValueError
        If a fraction leaves too few spots, ratios or seeds are none, the model looks at more than a tile, or is for
        tiles of another size; if the folder holds what was made with other settings.

    Examples
    --------
    >>> import sthist
    >>> sdata = sthist.datasets.toy("visium", size_um=900)
    >>> config = sthist.models.C2LConfig(px=16, dim=8, multipliers=(1, 2))
    >>> quick = {"epochs": 1, "steps_per_epoch": 2, "batch_size": 4}
    >>> central = sthist.tl.train_central(sdata, config, training=quick, device="cpu", progress=False)
    >>> found = sthist.benchmark.augmentation(
    ...     sdata,
    ...     central,
    ...     "mlp",
    ...     fractions=[0.5],
    ...     ratios=[0, 1],
    ...     seeds=[0],
    ...     steps=2,
    ...     adaptation=quick,
    ...     training={"epochs": 1},
    ...     device="cpu",
    ...     progress=False,
    ... )
    >>> sorted(found.scores["arm"].unique())[:3]
    ['real', 'real + shuffled pairs', 'real + synthetic']
    """
    from sthist.regression.module import RegressionTraining

    trained = as_trained(central, C2L, "tl.train_central").central
    fresh = as_model(model)
    ratios, fractions = _whole(ratios), _several("fractions", fractions)
    require_seeds(seeds)
    chosen = as_training(RegressionTraining, training, {**fresh.default_training, "patience": None})
    if chosen.patience is not None:
        raise ValueError("training= has patience, and arms are trained for equal steps: leave it out.")
    options = as_training(DiffusionTraining, adaptation, LOCAL[shape_of(trained.config)])
    predictor = as_predictor(fresh, chosen, embedding, trained.config.spec, device)
    trained.sampler(guidance, steps, device="cpu")  # their checks
    spots = read_spots(data, trained, genes, table, image)
    found = settle_split(split, fractions, len(spots))
    grouping = grouped_for(spots, found, trained.config.spec.size_um)
    divisions = {seed: divided(spots, found, grouping, fractions, seed) for seed in seeds}
    study = _Study(
        data=data,
        central=trained,
        spots=spots,
        predictor=predictor,
        ratios=ratios,
        split=str(found.by),
        adaptation=options,
        sampling={"guidance": float(guidance), "steps": int(steps)},
        table=table,
        folder=None if folder is None else Path(folder),
        device=device,
        progress=progress,
    )
    return study.run(fractions, divisions)


@dataclass(frozen=True, eq=False)
class _Study:
    """What is adapted, synthesized, trained and scored."""

    data: Any
    central: C2L
    spots: Spots
    predictor: Predictor
    ratios: list[int]
    split: str
    adaptation: DiffusionTraining
    sampling: dict[str, Any]
    table: str | None
    folder: Path | None
    device: str | None
    progress: bool | None

    def run(self, fractions: list[float], divisions: dict[int, Division]) -> AugmentationScores:
        """All fractions and seeds."""
        import pandas as pd

        frames, draws, tables, parts = [], [], {}, []
        for fraction in fractions:
            for seed, division in divisions.items():
                table, scores, drawn = self._unit(fraction, int(seed), division)
                frames.append(scores)
                draws.append(drawn)
                tables[fraction, int(seed)] = table
                for part, rows in (("adaptation", division.adapted[fraction]), ("test", division.test)):
                    names = pd.DataFrame([self.spots.names[row] for row in rows], columns=["sample", "instance_id"])
                    parts.append(names.assign(fraction=fraction, seed=int(seed), part=part))
        drawn_all = np.concatenate(draws, axis=1)
        spots = pd.concat(parts, ignore_index=True)[["fraction", "seed", "sample", "instance_id", "part"]]
        scores = pd.concat(frames, ignore_index=True)
        return AugmentationScores(scores, dict(zip(DRAWN, drawn_all, strict=True)), tables, spots)

    def _unit(self, fraction: float, seed: int, division: Division) -> tuple[AnnData, pd.DataFrame, np.ndarray]:
        """One fraction and seed: predictions and scores, made now or when this was called before."""
        adapted, test = division.adapted[fraction], division.test
        columns = self.spots.columns(adapted)
        genes = [self.spots.targets.names[column] for column in columns]
        expression = self.spots.targets.dense(adapted, columns)
        place = None if self.folder is None else self.folder / f"{self.split}-{fraction:g}-seed{seed}"
        made = self._identity(adapted, genes, expression, seed)
        if place is not None:
            _require_same(place, made, max(self.ratios))
        kept = None if place is None else place / f"scores-{self._digest(test, made)}.h5ad"
        if kept is not None and kept.exists():
            return _read(kept)
        where = f"{fraction:.3g} of the spots, seed {seed}"
        logger.info("%s: the central model is adapted to %d spots.", where, len(adapted))
        local = self._adapted(place, adapted, genes, expression, seed)
        synthetic = self._synthesized(place, local, adapted, seed)
        pool = pool_of(self.predictor, self.spots.tiles[adapted], synthetic, expression, genes, seed)
        truth = self.spots.targets.dense(test, columns)
        classes = Classes.of(expression, seed)
        score = Scorer(truth, self.spots.sample[test], division.unit, classes, (seed, round(1e6 * fraction)))
        arrays = self.predictor.arrays(self.spots.tiles[test])
        facts = {"split": self.split, "fraction": fraction, "n_spots": len(adapted), "n_test": len(test), "seed": seed}
        rows, drawn, layers = [], [], {}
        trained: dict[Any, tuple[np.ndarray, int, float]] = {}
        for arm in arms_of(self.ratios):
            ratio = 0 if arm.kinds == (REAL,) else arm.ratio
            key = (arm.kinds, ratio, arm.n_steps_of if self.predictor.makes_steps else 0)
            if key not in trained:
                logger.info("%s: %s, ratio %d.", where, arm.name, arm.ratio)
                trained[key] = self._trained(pool, arm, arrays, seed)
            predicted, n_steps, seconds = trained[key]
            scores, drawn_here = score(predicted)
            n_train = len(pool.rows(arm.ratio, *arm.kinds))
            rows.append({**facts, "arm": arm.name, "ratio": arm.ratio, "steps": n_steps, "n_train": n_train, **scores})
            rows[-1]["seconds"] = seconds
            drawn.append(drawn_here)
            if arm.ratio in (0, max(self.ratios)):
                layers[LAYERS[arm.name]] = predicted
        mean = np.tile(expression.mean(axis=0, dtype=np.float64), (len(test), 1)).astype(np.float32)
        scores, drawn_here = score(mean)
        rows.append({**facts, "arm": MEAN, "ratio": 0, "steps": 0, "n_train": len(adapted), **scores, "seconds": 0.0})
        drawn.append(drawn_here)
        table = self._table(test, truth, genes, layers)
        return _kept(kept, table, rows, np.stack(drawn, axis=1))

    def _trained(self, pool: Any, arm: Arm, arrays: dict[str, np.ndarray], seed: int) -> tuple[np.ndarray, int, float]:
        """What an arm predicts, in how many steps, and in how many seconds."""
        start = time.perf_counter()
        model, n_steps = self.predictor.fit(pool, arm, seed)
        return self.predictor.predict(model, arrays), n_steps, time.perf_counter() - start

    def _adapted(
        self, place: Path | None, adapted: np.ndarray, genes: list[str], expression: np.ndarray, seed: int
    ) -> C2L:
        """The central model with an adapter to some spots."""
        import pandas as pd

        spots = pd.DataFrame([self.spots.names[row] for row in adapted], columns=["sample", "instance_id"])
        if place is not None and (place / ADAPTER).exists():
            local = self.central.with_adapter(place / ADAPTER)
            local.spots = spots
            return local
        local = self.central.adapt(
            self.spots.tiles[adapted],
            expression,
            genes,
            described=self.spots.described,
            spots=spots,
            training=replace(self.adaptation, seed=seed, resume=False),
            device=self.device,
            progress=self.progress,
        )
        if place is not None and local.adapter is not None:
            local.adapter.save(place / ADAPTER)
        return local

    def _synthesized(self, place: Path | None, local: C2L, adapted: np.ndarray, seed: int) -> np.ndarray:
        """Tiles of some spots, of all for a replicate before any for the next, (replicates x spots, px, px, 3)."""
        import spatialdata as sd

        path = None if place is None else place / MADE
        if path is not None and path.exists():
            made = sd.read_zarr(path)
        else:
            options: dict[str, Any] = {"table": self.table, "path": path, "seed": seed, "device": self.device}
            options["precision"] = self.adaptation.precision
            n = max(self.ratios)
            made = synthesize(self.data, local, n=n, **self.sampling, **options, progress=self.progress)
        obs = made["tiles_table"].obs
        number = {self.spots.names[row]: i for i, row in enumerate(adapted)}
        pairs = zip(obs["sample"].astype(str), obs["source"].astype(str), strict=True)
        order = np.lexsort(([number[pair] for pair in pairs], obs["replicate"].to_numpy()))
        chosen = order[: max(self.ratios) * len(adapted)]
        reader = TileReader(made, "he", self.central.config.spec)
        tiles: np.ndarray = reader.read(np.asarray(made["tiles_table"].obsm["spatial"])[chosen])
        return tiles

    def _identity(self, adapted: np.ndarray, genes: list[str], expression: np.ndarray, seed: int) -> dict[str, Any]:
        """What synthetic tiles are made of, as plain values."""
        content = hashlib.sha256(np.ascontiguousarray(expression).tobytes())
        content.update(np.ascontiguousarray(self.spots.tiles[adapted]).tobytes())
        facts = {
            "central": self.central.sha256,
            "spots": [list(self.spots.names[row]) for row in adapted],
            "genes": genes,
            "content": content.hexdigest(),
            "adaptation": {**self.adaptation.to_dict(), "seed": seed},
            **self.sampling,
        }
        return json.loads(json.dumps(facts))  # type: ignore[no-any-return]

    def _digest(self, test: np.ndarray, made: dict[str, Any]) -> str:
        """What scores depend on, beside their tiles."""
        predictor, encoder = self.predictor, self.predictor.encoder
        facts = {
            "made": made,
            "model": [predictor.model.system, plain_config(predictor.model)],
            "training": predictor.options.to_dict(),
            "encoder": None if encoder is None else [encoder.name, weight_hash(encoder.provenance)],
            "ratios": self.ratios,
            "test": [list(self.spots.names[row]) for row in test],
        }
        return hashlib.sha256(json.dumps(facts, sort_keys=True, default=str).encode()).hexdigest()[:16]

    def _table(self, test: np.ndarray, truth: np.ndarray, genes: list[str], layers: dict[str, np.ndarray]) -> AnnData:
        """Measured and predicted expression of the test spots."""
        import anndata as ad
        import pandas as pd

        rows = self.spots.rows
        places = [
            np.asarray(rows.tables[sample].obsm["spatial"], np.float64)[row, :2]
            for sample, row in zip(rows.sample[test], rows.row[test], strict=True)
        ]
        samples, names = zip(*(self.spots.names[row] for row in test), strict=True)
        several = len(set(samples)) > 1
        index = [f"{sample}_{name}" if several else name for sample, name in zip(samples, names, strict=True)]
        obs = pd.DataFrame({"sample": pd.Categorical(samples), "instance_id": list(names)}, index=index)
        table = ad.AnnData(truth, obs=obs, var=pd.DataFrame(index=genes), obsm={"spatial": np.array(places)})
        table.layers.update(layers)
        # Logarithms, whatever they look like.
        table.uns["sthist"] = {"genes": {"log": True}}
        return table


def _require_same(place: Path, made: dict[str, Any], n: int) -> None:
    """Say in a folder what tiles are made of there; refuse one whose are made of something else, or are fewer."""
    path = place / IDENTITY
    if not path.exists():
        with written_whole(path) as partial:
            partial.write_text(json.dumps({**made, "n": n}))
        return
    found = json.loads(path.read_text())
    different = [name for name, value in made.items() if found.get(name) != value]
    if found.get("n", 0) < n:
        different.append("n")
        made = {**made, "n": n}
    if different:
        name = different[0]
        short = isinstance(made[name], int | float | str)
        values = f" ({plain(found.get(name))!r}, not {made[name]!r})" if short else ""
        raise ValueError(
            f"{place} was made with other {', '.join(different)}{values}: name another folder=, or remove this one."
        )


def _kept(
    path: Path | None, table: AnnData, rows: list[dict[str, Any]], drawn: np.ndarray
) -> tuple[AnnData, pd.DataFrame, np.ndarray]:
    """The result of a fraction and seed, which is written where it is to be kept."""
    import pandas as pd

    scores = pd.DataFrame(rows)
    if path is not None:
        stored = table.copy()
        stored.uns["benchmark"] = {"scores": scores, "draws": drawn}
        with written_whole(path) as partial:
            stored.write_h5ad(partial)
    return table, scores, drawn


def _read(path: Path) -> tuple[AnnData, pd.DataFrame, np.ndarray]:
    import anndata as ad

    table = ad.read_h5ad(path)
    stored = table.uns.pop("benchmark")
    scores = stored["scores"].reset_index(drop=True)
    texts = {name: object for name in scores if not np.issubdtype(scores[name].to_numpy().dtype, np.number)}
    return table, scores.astype(texts), np.asarray(stored["draws"])


def _whole(ratios: Sequence[int]) -> list[int]:
    """Ratios in order, with 0 among them."""
    for each in ratios:
        if isinstance(each, bool) or int(each) != each or each < 0:
            raise ValueError(f"ratios has {each!r}; each is a whole number from 0 on.")
    found = sorted({0, *map(int, ratios)})
    if len(found) < 2:
        raise ValueError("ratios= has none above 0: there are no synthetic tiles to benchmark.")
    return found


def _several(name: str, values: Sequence[float]) -> list[float]:
    found = [float(each) for each in ([values] if isinstance(values, int | float) else values)]
    if not found or len(set(found)) < len(found):
        raise ValueError(f"{name}= is {list(found)}; it is at least one number, each once.")
    return sorted(found)
