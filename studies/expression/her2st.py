"""Expression from H&E on the sections of her2st: every model beside nulls that know nothing of single genes.

Run ``PYTHONPATH=tests python studies/expression/her2st.py [--json FILE] [--models NAME ...] [--tasks NAME ...]
[--seeds 0 1 2]``; ``ranking.py`` prints the tables of what it has saved. It needs the her2st sections
(``tests/realdata.py``): C3, C4 and C5, consecutive sections of one patient, and B4 of another.

Four tasks: each section of C from the two others (``within C``), B4 from C, C from B4, and each quarter of C4 from the
rest of the same section (``one section``), of which spots whose tiles reach into the quarter are left out. Genes are
chosen on the training sections: the 250 most expressed, and the 50 most variable among the 3,000 most expressed. Scores
are of expression as measured: 10,000 counts a spot, logarithm, all spots. Spots under 100 counts are not trained on.
``training_pearson`` is the score on the sections that a model was trained on: whether it has learned.

Settings were chosen on the sections of C alone, out of 576: six sets of embeddings, ranks, penalties, smoothing,
targets as they are or thinned. ``ridge, several embeddings``: the best on held-out sections, and the same one in all
three folds of ``within C`` when it is chosen in each. ``ridge, several embeddings, depth 1000``: the best on held-out
sections whose counts were thinned to a tenth, as a shallower slide would be; that depth matters was known from B4.

``beyond counts`` is the correlation given the logarithm of a spot's counts. B4 has 650 counts a spot, C 10,000: at that
depth the logarithm of every gene follows the counts, and one map for all genes, ``nuclei density``, which nothing was
trained for, has a higher correlation there than the models have.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import resource
import time
import warnings
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import anndata as ad
import numpy as np
import pandas as pd
import realdata
import shapely
from spatialdata import read_zarr

import sthist
from sthist import models
from sthist.benchmark._expression.gene_scores import drawn_means
from sthist.benchmark._expression.nulls import NUCLEI, at_same_place, from_middle, one_map
from sthist.encoders import morphology_feature_names
from sthist.regression.rows import rows_of_samples
from sthist.tiles import TileReader, TileSpec

if TYPE_CHECKING:
    from collections.abc import Callable

    from spatialdata import SpatialData

C = ("C3", "C4", "C5")
ONE, QUARTERS = "C4", range(4)
TASKS = {
    "within C": [(tuple(name for name in C if name != test), test) for test in C],
    "C to B4": [(C, "B4")],
    "B4 to C": [(("B4",), test) for test in C],
    "one section": [((f"{ONE} without {part}",), f"{ONE} part {part}") for part in QUARTERS],
}
GAP_UM = 448.0  # between spots that train and those of a quarter that tests: the side of the largest tiles
SIZES_UM = {112: TileSpec(112.0, 224), 224: TileSpec(224.0, 224), 448: TileSpec(448.0, 448)}
EARLY_SPECS = {112: TileSpec(112.0, 224), 224: TileSpec(224.0, 224), 448: TileSpec(448.0, 224)}
N_POSITIONS = 64  # rows and columns of the array, as published
MARGIN_UM = 120.0  # around places of spots, of a map of features: their discs, and what is averaged around them
FEWEST_COUNTS, N_BOOTSTRAP, N_SHUFFLES = 100, 200, 40
EPOCHS, TILE_EPOCHS, SLIDE_EPOCHS, MAP_EPOCHS = 30, 15, 100, 100

MORPHOLOGY = tuple(f"X_morphology_{size}" for size in SIZES_UM)
EARLY = tuple(f"X_early_{size}" for size in EARLY_SPECS)
BUILT_IN, IMAGENET = "none: no weights", "ImageNet (efficientnet-lite0), frozen"


@dataclass(frozen=True)
class Row:
    """A model of the table."""

    name: str
    make: Callable[[], Any]  # the settings
    initialisation: str
    embedding: tuple[str, ...] | None = None
    depth: float | None = None
    training: dict[str, Any] = field(default_factory=dict)
    random: bool = False  # whether seeds matter
    tiles: TileSpec | None = None  # that it is trained on, in place of embeddings
    places: bool = False  # whether it also takes the places of the tiles' spots
    map: str | None = None  # encoder of the map of features that it takes, in place of embeddings


def ridge(**settings: Any) -> Callable[[], Any]:
    """Settings of a ridge on embeddings that are standardised slide by slide."""
    return lambda: models.RidgeConfig(**{"standardize": "sample"} | settings)


def network(name: str, config: Callable[..., Any], **settings: Any) -> Row:
    """A network on the embeddings of early layers; of its own backbone it has nothing."""
    return Row(
        name,
        lambda: config(standardize="sample", **settings),
        IMAGENET + "; the network random",
        ("X_early_224",),
        training={"epochs": EPOCHS},
        random=True,
    )


def on_tiles(name: str, config: Callable[..., Any]) -> Row:
    """A network that is trained whole, on small tiles and for few epochs: what two cores can do in minutes."""
    return Row(
        name,
        lambda: config(backbone="efficientnet-lite0", image_hidden=(64, 32, 16, 16, 8)),
        "ImageNet (efficientnet-lite0), trained along; the rest random",
        training={"epochs": TILE_EPOCHS, "patience": None, "lr": 1e-3},
        random=True,
        tiles=TileSpec(224.0, 64),
    )


def on_slides(name: str, config: Callable[..., Any]) -> Row:
    """A network that sees all spots of a slide; the small one, and a learning rate that a few slides can teach."""
    return Row(
        f"{name} small, {SLIDE_EPOCHS} epochs",
        lambda: config(n_positions=N_POSITIONS),
        "random",
        training={"epochs": SLIDE_EPOCHS, "patience": None, "lr": 1e-3},
        random=True,
        tiles=TileSpec(**config().spec),
        places=True,
    )


def on_map(name: str, encoder: str, initialisation: str) -> Row:
    """The small iStar on features that are not those of HIPT; fewer epochs, and a higher learning rate."""
    return Row(
        f"{name}, {MAP_EPOCHS} epochs",
        lambda: models.IStarConfig.small(encoder=encoder),
        initialisation,
        training={"epochs": MAP_EPOCHS, "patience": None, "lr": 1e-3},
        random=True,
        map=encoder,
    )


ROWS = [
    Row("ridge, as published references", ridge(standardize="training"), BUILT_IN, ("X_morphology_224",)),
    Row("ridge, standardised by slide", ridge(), BUILT_IN, ("X_morphology_224",)),
    Row("ridge, smoothed 250 µm", ridge(smooth_um=250.0), BUILT_IN, ("X_morphology_224",)),
    Row("ridge, rank 5", ridge(rank=5), BUILT_IN, ("X_morphology_224",)),
    Row("ridge, three sizes, rank 5", ridge(rank=5, n_components=None), BUILT_IN, MORPHOLOGY),
    Row("ridge, last layer", ridge(), IMAGENET, ("X_last_224",)),
    Row("ridge, early layers", ridge(), IMAGENET, ("X_early_224",)),
    Row(
        "ridge, several embeddings",
        ridge(rank=5, n_components=None, alpha=480.0),
        IMAGENET + " and none",
        MORPHOLOGY + EARLY,
    ),
    Row("ridge, depth 1000", ridge(), BUILT_IN, ("X_morphology_224",), depth=1000.0),
    Row(
        "ridge, several embeddings, depth 1000",
        ridge(rank=8, n_components=None, alpha=480.0),
        IMAGENET + " and none",
        MORPHOLOGY + EARLY,
        depth=1000.0,
    ),
    network("mlp", models.EmbeddingMLPConfig),
    network("stnet, frozen", models.STNetConfig, frozen=True),
    network("resnet, frozen", models.ResNetConfig, frozen=True),
    network("bleep, frozen", models.BLEEPConfig, frozen=True),
    network("mclstexp, frozen", models.McLSTExpConfig, frozen=True),
    Row(
        "deepspot",
        models.DeepSpotConfig,
        IMAGENET + "; the network random",
        ("X_early_224",),
        training={"epochs": EPOCHS},
        random=True,
    ),
    on_tiles(f"genst, 64 px, {TILE_EPOCHS} epochs", models.GenSTConfig),
    on_tiles(f"clip, 64 px, {TILE_EPOCHS} epochs", models.CLIPConfig),
    on_slides("histogene", models.HisToGeneConfig.small),
    on_slides("thitogene", models.THItoGeneConfig.small),
    on_map("istar-like small, morphology", "morphology", "features: none, no weights; the networks random"),
]
TILE_MODELS = (models.GenST, models.CLIP, models.HisToGene, models.THItoGene)


# Sections


def section(name: str, embeddings: set[str], maps: set[str], folder: Path | None) -> SpatialData:
    """A section with some embeddings and maps of features; those of a store in a folder are not made again."""
    sdata = realdata.her2st(name)
    if folder is not None:
        if not (folder / f"{name}.zarr").exists():
            sdata.write(folder / f"{name}.zarr")
        sdata = read_zarr(folder / f"{name}.zarr")
    for size in SIZES_UM:
        for encoder, spec in {"morphology": SIZES_UM[size], "efficientnet-lite0-early": EARLY_SPECS[size]}.items():
            key = f"X_{encoder.split('-')[-1]}_{size}"
            if key in embeddings:
                sthist.pp.embed(sdata, encoder, spec=spec, key_added=key)
    if "X_last_224" in embeddings:
        sthist.pp.embed(sdata, "efficientnet-lite0", spec=SIZES_UM[224], key_added="X_last_224")
    around = shapely.union_all(shapely.buffer(shapely.points(sdata["table"].obsm["spatial"][:, :2]), MARGIN_UM))
    for encoder in maps:
        stride = models.IStarConfig.small().stride_um
        sthist.pp.dense_features(sdata, encoder, stride_um=stride, within=around, tissue=False)
    return sdata


def with_table(sdata: SpatialData, table: ad.AnnData) -> SpatialData:
    """A section with another table; images, shapes and what is known of them are the same."""
    images, shapes = dict(sdata.images), dict(sdata.shapes)
    return type(sdata)(images=images, shapes=shapes, tables={"table": table}, attrs=sdata.attrs)


def quarters(name: str, sdata: SpatialData) -> dict[str, SpatialData]:
    """Each quarter of a section, cut at the median places of its spots, and the rest without what is near to it."""
    table = sdata["table"]
    places = np.asarray(table.obsm["spatial"], np.float64)
    quarter = (places >= np.median(places, axis=0)) @ [1, 2]
    parts = {}
    for part in QUARTERS:
        mine = quarter == part
        apart = np.abs(places[:, None] - places[None, mine]).max(axis=2).min(axis=1)
        parts[f"{name} part {part}"] = with_table(sdata, table[mine].copy())
        parts[f"{name} without {part}"] = with_table(sdata, table[apart >= GAP_UM].copy())
    return parts


def counts_of(table: ad.AnnData) -> np.ndarray:
    """Counts of each spot."""
    return np.asarray(table.X.sum(axis=1), np.float64).ravel()


def depth_of(name: str) -> float:
    """Median counts of the spots of a section."""
    return float(np.median(counts_of(ad.read_h5ad(realdata.folder("her2st") / f"{name}_counts.h5ad"))))


def deep_enough(sdata: SpatialData) -> SpatialData:
    """The same section without the spots that are not trained on."""
    table = sdata["table"]
    return with_table(sdata, table[counts_of(table) >= FEWEST_COUNTS].copy())


def unmeasured(sdata: SpatialData) -> SpatialData:
    """A section without its counts: image, places and embeddings."""
    table = sdata["table"]
    bare = ad.AnnData(obs=table.obs.copy(), obsm={key: table.obsm[key] for key in table.obsm}, uns=table.uns.copy())
    return with_table(sdata, bare)


def logarithms(table: ad.AnnData, genes: list[str]) -> np.ndarray:
    """Log-normalised expression of genes; NaN for one that the section lacks."""
    counts = table.X.toarray().astype(np.float64)
    values = np.log1p(counts / np.maximum(counts.sum(axis=1, keepdims=True), 1) * 1e4)
    place = table.var_names.get_indexer(genes)
    return np.where(place >= 0, values[:, place], np.nan)


@dataclass(frozen=True)
class Fold:
    """One training, and one section to test on."""

    train: tuple[str, ...]
    test: str
    sets: dict[str, list[str]]
    genes: list[str]


def folds_of(task: str, measured: dict[str, SpatialData]) -> list[Fold]:
    """The folds of a task, with the genes that the training sections choose."""
    made = []
    for train, test in TASKS[task]:
        samples = {name: measured[name]["table"] for name in train}
        sets = {"250 most expressed": ("expressed", 250), "50 most variable": ("variance", 50)}
        chosen = {name: sthist.pp.gene_set(samples, kind, n) for name, (kind, n) in sets.items()}
        made.append(Fold(train, test, chosen, list(dict.fromkeys(sum(chosen.values(), [])))))
    return made


# Models


def predictions_of(
    row: Row, folds: list[Fold], slides: dict, training: dict, measured: dict, seed: int
) -> tuple[list[np.ndarray], float]:
    """What a model says of the test section of each fold, (spots, genes), and its score on those that trained it.

    One training for folds that share it.
    """
    trained: dict[tuple, Any] = {}
    found, learned = [], []
    for fold in folds:
        key = (fold.train, tuple(fold.genes))
        if key not in trained:
            trained[key] = (train_once if row.tiles or row.map else train)(row, fold, training, measured, seed)
            learned += [
                sthist.metrics.gene_pearson(
                    logarithms(measured[name]["table"], fold.genes), said_of(row, trained[key], fold, slides[name])
                )
                for name in fold.train
            ]
        found.append(said_of(row, trained[key], fold, slides[fold.test]))
    return found, round(float(np.nanmean(np.concatenate(learned))), 4)


def said_of(row: Row, model: Any, fold: Fold, slide: SpatialData) -> np.ndarray:
    """What a model says of the genes of a fold in the spots of a section."""
    if row.tiles or row.map:
        return np.asarray(model.predict(inputs_of(row, model, [slide])), np.float64)
    sthist.tl.expression(slide, model, regions="table", key_added="predicted", overwrite=True)
    return np.asarray(slide["predicted"][:, fold.genes].X, np.float64)


def train(row: Row, fold: Fold, training: dict, measured: dict, seed: int) -> Any:
    """A model of embeddings. Networks are trained on all training sections; what tests is told, and kept out.

    Of one section, its training spots say how to standardise: there are no other slides to become alike to.
    """
    samples, split = {name: training[name] for name in fold.train}, None
    if row.random or len(samples) == 1:
        split = dict.fromkeys(samples, "train") | {fold.test: "test"}
        samples[fold.test] = measured[fold.test]
    config = row.make()
    if " part " in fold.test and config.standardize == "sample":
        config = replace(config, standardize="training")
    return sthist.tl.train_expression(
        samples,
        config,
        genes=fold.genes,
        depth=row.depth,
        embedding=row.embedding,
        split=split or "sample",
        training={"seed": seed, **row.training} if row.random else None,
    )


def inputs_of(row: Row, model: Any, sections: list[SpatialData]) -> Any:
    """Superpixels of all spots; or tiles around them, and where these lie in their sections, if a model takes that."""
    if row.map:
        named = {str(number): sdata for number, sdata in enumerate(sections)}
        return model.collect(rows_of_samples(named, None, None, lambda sdata: ("table", sdata["table"])))
    tables = [sdata["table"] for sdata in sections]
    places = [np.asarray(table.obsm["spatial"]) for table in tables]
    tiles = np.concatenate(
        [TileReader(sdata, "he", row.tiles, fill=245).read(xy) for sdata, xy in zip(sections, places, strict=True)]
    )
    if not row.places:
        return tiles
    return {
        "tiles": tiles,
        "places": np.concatenate(places),
        "positions": np.concatenate([table.obs[["array_y", "array_x"]].to_numpy() for table in tables]),
        "slide": np.repeat(np.arange(len(tables)), [len(table) for table in tables]),
    }


def train_once(row: Row, fold: Fold, training: dict, measured: dict, seed: int) -> Any:
    """A model of tiles or maps, without the trainings that score it on groups of its own."""
    config = row.make()
    model = next(each for each in (*TILE_MODELS, models.IStar) if each.config_class is type(config))(config)
    truth = np.concatenate([logarithms(training[name]["table"], fold.genes) for name in fold.train])
    inputs = inputs_of(row, model, [training[name] for name in fold.train])
    return model.fit(inputs, truth, training={"seed": seed, **row.training})


# Nulls


def training_spots(fold: Fold, measured: dict) -> np.ndarray:
    """Expression of all spots of the training sections."""
    return np.concatenate([logarithms(measured[name]["table"], fold.genes) for name in fold.train])


def training_mean(fold: Fold, measured: dict) -> np.ndarray:
    """The mean of the training spots, everywhere."""
    return np.tile(training_spots(fold, measured).mean(axis=0), (measured[fold.test]["table"].n_obs, 1))


def nuclei_density(fold: Fold, measured: dict) -> np.ndarray:
    """One map for all genes: nuclei per mm² of tile."""
    spots, column = training_spots(fold, measured), morphology_feature_names().index(NUCLEI)
    density = measured[fold.test]["table"].obsm["X_morphology_224"][:, column].astype(np.float64)
    return one_map(density, np.zeros(len(density)), spots.mean(axis=0), spots.std(axis=0))


def places(fold: Fold, measured: dict) -> np.ndarray:
    """Gaussian mean of training spots at the same place, of sections that are laid on each other by their centres.

    Parts of one section lie where they are.
    """
    spots = training_spots(fold, measured)
    laid = {name: np.asarray(measured[name]["table"].obsm["spatial"]) for name in (*fold.train, fold.test)}
    if " part " not in fold.test:
        laid = {name: from_middle(xy, np.zeros(len(xy))) for name, xy in laid.items()}
    known = np.concatenate([laid[name] for name in fold.train])
    return at_same_place(laid[fold.test], known, spots, None, spots.mean(axis=0))


NULLS = {"training mean": training_mean, "one map: nuclei density": nuclei_density, "places alone": places}


# Scores


def scores_of(
    folds: list[Fold], predicted: list[np.ndarray], measured: dict, name: str, draws: int = N_BOOTSTRAP
) -> dict[str, float]:
    """Scores for one set of genes, means over folds, and an interval of 95 % over spots."""
    rows, drawn = [], np.zeros(draws)
    for fold, values in zip(folds, predicted, strict=True):
        genes = fold.sets[name]
        columns = [fold.genes.index(gene) for gene in genes]
        table = measured[fold.test]["table"]
        truth, said = logarithms(table, genes), values[:, columns]
        there = ~np.isnan(truth).all(axis=0)
        truth, said = truth[:, there], said[:, there]
        counts = np.log1p(counts_of(table))
        scored = sthist.metrics.expression(truth, said, metrics=["spot_pearson"], given=counts).summary
        varies = bool(np.ptp(said, axis=0).any())
        rows.append(
            {
                "pearson_mean": scored["pearson_mean"] if varies else np.nan,
                "pearson_median": scored["pearson_median"] if varies else np.nan,
                "beyond_counts": scored["pearson_given_mean"] if varies else np.nan,
                "spot_pearson": scored["spot_pearson"],
                "pearson_flattened": scored["pearson_flattened"],
                "l1": scored["l1"],
            }
        )
        n = len(truth)
        drawn += drawn_means(truth, said, None, np.zeros(n), np.arange(n), draws, seed=0) / len(folds)
    mean = {key: round(float(value), 4) for key, value in pd.DataFrame(rows).mean(skipna=False).items()}
    low, high = np.quantile(drawn, [0.025, 0.975])
    return mean | {"low": round(float(low), 4), "high": round(float(high), 4)}


def rows_of(name: str, facts: dict, task: str, folds: list[Fold], predicted: list[np.ndarray], measured: dict) -> list:
    """Rows of the table: one for each set of genes."""
    made = [
        {"model": name, "task": task, "genes": genes, **facts, **scores_of(folds, predicted, measured, genes)}
        for genes in folds[0].sets
    ]
    print(
        name, task, [(each["pearson_mean"], each["beyond_counts"]) for each in made], facts.get("seconds"), flush=True
    )
    return made


def standardised(sdata: SpatialData) -> np.ndarray:
    """All embeddings of a section, each column with mean 0 and standard deviation 1."""
    values = np.concatenate([sdata["table"].obsm[key] for key in MORPHOLOGY + EARLY], axis=1).astype(np.float64)
    return (values - values.mean(axis=0)) / np.maximum(values.std(axis=0), 1e-6)


def shuffled(folds: list[Fold], training: dict, measured: dict, task: str) -> list[dict]:
    """Rows of the ridge of several embeddings on spots whose expression was shuffled within their section."""
    name = "ridge, several embeddings"
    config = models.RidgeConfig(rank=5, n_components=None, alpha=480.0)
    found: dict[str, list] = {genes: [] for genes in folds[0].sets}
    for seed in range(N_SHUFFLES):
        rng = np.random.default_rng(seed)
        predicted = []
        for fold in folds:
            features = np.concatenate([standardised(training[name]) for name in fold.train])
            truth = [logarithms(training[name]["table"], fold.genes) for name in fold.train]
            mixed = np.concatenate([values[rng.permutation(len(values))] for values in truth])
            model = models.Ridge(config).fit(features, mixed)
            predicted.append(model.predict(standardised(measured[fold.test])).astype(np.float64))
        for genes, scores in found.items():
            scores.append(scores_of(folds, predicted, measured, genes, draws=1)["pearson_mean"])
    return [
        {
            "model": f"shuffled spots ({name})",
            "task": task,
            "genes": genes,
            "initialisation": "null",
            "pearson_mean": round(float(np.mean(scores)), 4),
            "low": round(float(np.quantile(scores, 0.025)), 4),
            "high": round(float(np.quantile(scores, 0.975)), 4),
        }
        for genes, scores in found.items()
    ]


def saved(path: Path | None, facts: dict, table: list[dict]) -> None:
    """Keep the rows that are made so far, in place of those of the same model, task and seed."""
    if path is None:
        return
    key = ("model", "task", "genes", "seed")
    known = json.loads(path.read_text())["rows"] if path.exists() else []
    made = {tuple(row.get(name) for name in key): row for row in [*known, *table]}
    path.write_text(json.dumps({**facts, "rows": list(made.values())}, indent=1).replace("NaN", "null") + "\n")


def main() -> None:
    """The table, printed and saved."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--json", type=Path, help="file that rows are put into; others there are kept")
    parser.add_argument("--folder", type=Path, help="where sections are kept with their embeddings and maps")
    parser.add_argument("--models", nargs="*", help='names of rows, and "nulls"; by default all')
    parser.add_argument("--tasks", nargs="*", default=list(TASKS), choices=list(TASKS))
    parser.add_argument("--seeds", nargs="*", type=int, default=[0, 1, 2])
    options = parser.parse_args()
    warnings.simplefilter("ignore")
    sthist.settings.progress, sthist.settings.verbosity = False, "error"
    chosen = [row for row in ROWS if not options.models or row.name in options.models]
    embeddings = {key for row in chosen for key in row.embedding or ()}
    with_nulls = not options.models or "nulls" in options.models
    embeddings |= {*MORPHOLOGY, *EARLY} if with_nulls else set()
    maps = {row.map for row in chosen if row.map}
    parts = [name for task in options.tasks for train, test in TASKS[task] for name in (*train, test)]
    names = dict.fromkeys(name.split()[0] for name in parts)
    measured = {name: section(name, embeddings, maps, options.folder) for name in names}
    if "one section" in options.tasks:
        measured |= quarters(ONE, measured[ONE])
    training = {name: deep_enough(sdata) for name, sdata in measured.items()}
    slides = {name: unmeasured(sdata) for name, sdata in measured.items()}
    facts = {
        "command": "PYTHONPATH=tests python studies/expression/her2st.py",
        "machine": f"{platform.machine()}, {os.cpu_count()} cores, Python {platform.python_version()}",
        "counts_per_spot": {name: depth_of(name) for name in (*C, "B4")},
    }
    folds = {task: folds_of(task, measured) for task in options.tasks}
    for task in options.tasks if with_nulls else ():
        table = shuffled(folds[task], training, measured, task)
        for name, null in NULLS.items():
            predicted = [null(fold, measured) for fold in folds[task]]
            table += rows_of(name, {"initialisation": "null"}, task, folds[task], predicted, measured)
        saved(options.json, facts, table)
    for row in chosen:
        for seed in options.seeds if row.random else options.seeds[:1]:
            for task in options.tasks:
                began = time.perf_counter()
                predicted, learned = predictions_of(row, folds[task], slides, training, measured, seed)
                made = {
                    "initialisation": row.initialisation,
                    "seed": seed if row.random else None,
                    "training_pearson": learned,
                    "seconds": round(time.perf_counter() - began, 1),
                    "peak_mb_until_then": round(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024),
                }
                saved(options.json, facts, rows_of(row.name, made, task, folds[task], predicted, measured))


if __name__ == "__main__":
    main()
