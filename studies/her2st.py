"""The built-in encoder ``morphology`` against colour features on real sections: expression, and annotation.

Run ``PYTHONPATH=tests python studies/her2st.py [--json FILE]``. Needs the her2st sections (see ``tests/realdata.py``):
C3, C4 and C5 of one patient, B4 of another, and the annotated A1 at low resolution. All settings of models (ridge
penalty, logistic penalty) are chosen by cross-validation inside the training sections, with the same grid for all
feature sets.

The encoder's features were settled within patients: sections of C and blocks of B4 held out, both as they are and with
their stains perturbed at random. The table across patients was computed for two versions of the encoder; the first was
below the colour features in one of eight cells (B4 to C, raw, not normalised). All measures are correlations within one
section, so that shifts between sections do not count; the squared errors beside them do contain these shifts.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import time
import warnings
from pathlib import Path

import anndata as ad
import numpy as np
from realdata import folder

import sthist
from sthist.encoders import Morphology
from sthist.tiles import TileReader, TileSpec

SPEC, LOW_SPEC = TileSpec(size_um=224.0, px=224), TileSpec(size_um=224.0, px=70)
SMALL_SPEC = TileSpec(size_um=112.0, px=224)
SECTIONS = ("C3", "C4", "C5", "B4")
DIRECTIONS = {"C3+C4+C5 to B4": (("C3", "C4", "C5"), ("B4",)), "B4 to C3+C4+C5": (("B4",), ("C3", "C4", "C5"))}
N_GENES, BLOCK_UM, N_FOLDS = 50, 1000.0, 5
RIDGE_PENALTIES = 10.0 ** np.arange(0, 6.01, 0.5)
LOGISTIC_STRENGTHS = (1e-4, 1e-3, 1e-2, 1e-1)
N_BOOTSTRAP, N_SHUFFLES, SMALLEST_CLASS = 500, 40, 10


def section(name: str, spec: TileSpec = SPEC) -> tuple[ad.AnnData, np.ndarray, np.ndarray, np.ndarray | None]:
    """Spots, their positions in µm, their tiles, and, at full resolution.

    These with the stains of the default reference (Macenko).
    """
    low = name == "A1"
    data = folder("her2st")
    table = ad.read_h5ad(data / ("counts_only" if low else "") / f"{name}_counts.h5ad")
    image = data / ("lowres_he/A1_lowres.png" if low else f"{name}.jpg")
    sdata = sthist.io.assemble(
        {"he": image},
        mpp=float(table.uns["lowres_mpp" if low else "mpp"]),
        table=table,
        xy=("lowres_x", "lowres_y") if low else ("pixel_x", "pixel_y"),
        unit="px",
        spot_diameter_um=100.0,
    )
    where = sdata["table"].obsm["spatial"]
    tiles = TileReader(sdata, "he", LOW_SPEC if low else spec, fill=245).read(where)
    normalised = None if low else sthist.pp.stain_normalize(sdata, "he", method="macenko", progress=False)(tiles)
    return sdata["table"], np.asarray(where), tiles, normalised


def mean_colour(tiles: np.ndarray) -> np.ndarray:
    """Three features."""
    return tiles.mean((1, 2)) / 255


def colour(tiles: np.ndarray) -> np.ndarray:
    """Fifteen features: mean, standard deviation and quantiles 0.1, 0.5, 0.9 of red, green and blue."""
    flat = tiles.reshape(len(tiles), -1, 3)
    quantiles = [np.quantile(tile, [0.1, 0.5, 0.9], axis=0).ravel() for tile in flat]
    return np.c_[flat.mean(1), flat.std(1), np.stack(quantiles)] / 255


def morphology(tiles: np.ndarray, spec: TileSpec) -> np.ndarray:
    """The encoder's features."""
    return Morphology(mpp=spec.mpp).embed(tiles).astype(np.float64)


def spatial_folds(where: np.ndarray) -> np.ndarray:
    """Squares of 1 mm, dealt to five folds."""
    cells = np.unique((where // BLOCK_UM).astype(int), axis=0, return_inverse=True)[1].ravel()
    dealt = np.random.default_rng(0).permutation(cells.max() + 1) % N_FOLDS
    return dealt[cells]


def standardised(values: np.ndarray) -> np.ndarray:
    """Mean 0 and standard deviation 1 in each column that is not constant."""
    return (values - values.mean(0)) / np.maximum(values.std(0), 1e-9)


# Expression


def log_normalised(table: ad.AnnData) -> dict[str, np.ndarray]:
    """Gene to log(1 + counts per 10,000)."""
    counts = table.X.toarray().astype(np.float64)
    values = np.log1p(counts / np.maximum(counts.sum(1, keepdims=True), 1) * 1e4)
    return dict(zip(table.var_names, values.T, strict=True))


def targets(expression: dict, train: tuple[str, ...], test: tuple[str, ...]) -> dict[str, np.ndarray]:
    """The 50 genes that vary most within the training sections, of those that all sections have."""
    common = sorted(set.intersection(*(set(expression[name]) for name in train + test)))
    spread = np.mean([[expression[name][gene].var() for gene in common] for name in train], 0)
    chosen = [common[i] for i in np.argsort(-spread)[:N_GENES]]
    return {name: np.stack([expression[name][gene] for gene in chosen], 1) for name in train + test}


def ridge(x: np.ndarray, y: np.ndarray, new: np.ndarray, penalties: np.ndarray) -> np.ndarray:
    """Predictions for new rows, (penalties, rows, genes); features are standardised by the training rows."""
    mean, sd = x.mean(0), np.maximum(x.std(0), 1e-9)
    u, s, v = np.linalg.svd((x - mean) / sd, full_matrices=False)
    uy, projected = u.T @ (y - y.mean(0)), ((new - mean) / sd) @ v.T
    return np.stack([projected @ ((s / (s**2 + p))[:, None] * uy) + y.mean(0) for p in penalties])


def gene_correlation(predicted: np.ndarray, truth: np.ndarray) -> float:
    """Mean over genes of Pearson over spots; 0 for a gene that is constant in either."""
    a, b = predicted - predicted.mean(0), truth - truth.mean(0)
    size = np.sqrt((a**2).sum(0) * (b**2).sum(0))
    return float(np.divide((a * b).sum(0), size, out=np.zeros_like(size), where=size > 1e-12).mean())


def best_penalty(x: np.ndarray, y: np.ndarray, groups: np.ndarray, scored: np.ndarray) -> tuple[float, float]:
    """The penalty with the best held-out correlation over groups (sections or blocks), and that correlation.

    ``scored`` says over which spots together a correlation is taken: the spots of one section.
    """
    held_out = np.empty((len(RIDGE_PENALTIES), *y.shape))
    for group in np.unique(groups):
        out = groups == group
        held_out[:, out] = ridge(x[~out], y[~out], x[out], RIDGE_PENALTIES)
    scores = [
        np.mean([gene_correlation(each[scored == k], y[scored == k]) for k in np.unique(scored)]) for each in held_out
    ]
    return float(RIDGE_PENALTIES[np.argmax(scores)]), float(max(scores))


def expression_cell(
    features: dict,
    truth: dict,
    where: dict,
    train: tuple[str, ...],
    test: tuple[str, ...],
    *,
    per_section: bool,
    penalty: float | None = None,
) -> dict[str, float]:
    """Train on some sections, test on others; the penalty is chosen within the training sections if none is given."""
    x = {name: standardised(features[name]) if per_section else features[name] for name in train + test}
    y = {name: truth[name] - truth[name].mean(0) if per_section else truth[name] for name in train}
    section_of = np.concatenate([np.full(len(x[name]), i) for i, name in enumerate(train)])
    groups = section_of if len(train) > 1 else spatial_folds(where[train[0]])
    xs, ys = np.concatenate([x[name] for name in train]), np.concatenate([y[name] for name in train])
    inner = float("nan")
    if penalty is None:
        penalty, inner = best_penalty(xs, ys, groups, section_of)
    predicted = {name: ridge(xs, ys, x[name], np.array([penalty]))[0] for name in test}
    offset = np.mean([truth[name].mean(0) for name in train], 0) if per_section else 0.0
    return {
        "pearson": float(np.mean([gene_correlation(predicted[name], truth[name]) for name in test])),
        "mse": float(np.mean([((predicted[name] + offset - truth[name]) ** 2).mean() for name in test])),
        "within_training_pearson": inner,
        "penalty": penalty,
    }


def shuffled_expression(features: dict, truth: dict, where: dict, train: tuple[str, ...], test: tuple[str, ...], **how):
    """2.5 % and 97.5 % of the score after training on shuffled spots."""
    generator = np.random.default_rng(0)
    scores = []
    for _ in range(N_SHUFFLES):
        mixed = truth | {name: generator.permutation(truth[name]) for name in train}
        scores.append(expression_cell(features, mixed, where, train, test, **how)["pearson"])
    return [float(value) for value in np.quantile(scores, [0.025, 0.975])]


def expression_table(samples: dict, spec: TileSpec, *, shuffle: bool) -> list[dict]:
    """Every direction, standardisation and normalisation of stains."""
    expression = {name: log_normalised(samples[name][0]) for name in SECTIONS}
    where = {name: samples[name][1] for name in SECTIONS}
    rows = []
    for normalise in (False, True):
        tiles = {name: samples[name][3 if normalise else 2] for name in SECTIONS}
        sets = {
            "colour": {name: colour(each) for name, each in tiles.items()},
            "morphology": {name: morphology(each, spec) for name, each in tiles.items()},
        }
        for direction, (train, test) in DIRECTIONS.items():
            truth = targets(expression, train, test)
            null = np.mean([truth[name].mean(0) for name in train], 0)
            for per_section in (False, True):
                cell = {
                    key: expression_cell(features, truth, where, train, test, per_section=per_section)
                    for key, features in sets.items()
                }
                null_mse = float(np.mean([((truth[name] - null) ** 2).mean() for name in test]))
                row = {
                    "direction": direction,
                    "features": "standardised per section" if per_section else "raw",
                    "stain_normalisation": "Macenko" if normalise else "none",
                    **cell,
                    "training_mean": {"pearson": 0.0, "mse": null_mse},
                }
                if shuffle:
                    how = {"per_section": per_section, "penalty": cell["morphology"]["penalty"]}
                    row["morphology_shuffled_pearson_95"] = shuffled_expression(
                        sets["morphology"], truth, where, train, test, **how
                    )
                rows.append(row)
                scores = {key: round(value["pearson"], 3) for key, value in cell.items()}
                print(*list(row.values())[:3], scores, row.get("morphology_shuffled_pearson_95"), flush=True)
    return rows


# Annotation


def class_scores(
    x: np.ndarray, labels: np.ndarray, new: np.ndarray, strength: float, classes: np.ndarray
) -> np.ndarray:
    """Probability of each class for new rows; 0 for a class that the training rows lack."""
    from sklearn.linear_model import LogisticRegression

    mean, sd = x.mean(0), np.maximum(x.std(0), 1e-9)
    model = LogisticRegression(C=strength, max_iter=2000).fit((x - mean) / sd, labels)
    out = np.zeros((len(new), len(classes)))
    out[:, np.searchsorted(classes, model.classes_)] = model.predict_proba((new - mean) / sd)
    return out


def class_aucs(scores: np.ndarray, labels: np.ndarray, classes: np.ndarray) -> np.ndarray:
    """Area under the curve of each class against the rest, by ranks; NaN for one that does not occur."""
    from scipy.stats import rankdata

    out = np.full(len(classes), np.nan)
    for k, each in enumerate(classes):
        is_class = labels == each
        n, rest = is_class.sum(), (~is_class).sum()
        if n and rest:
            out[k] = (rankdata(scores[:, k])[is_class].sum() - n * (n + 1) / 2) / (n * rest)
    return out


def weighted_auc(scores: np.ndarray, labels: np.ndarray, groups: np.ndarray, classes: np.ndarray) -> float:
    """Mean over classes, weighted with their spots, of the area within each group of spots that is scored together."""
    total, weight = 0.0, 0
    for group in np.unique(groups):
        here = groups == group
        aucs = class_aucs(scores[here], labels[here], classes)
        counts = (labels[here][:, None] == classes).sum(0) * ~np.isnan(aucs)
        total, weight = total + (np.nan_to_num(aucs) * counts).sum(), weight + counts.sum()
    return float(total / weight)


def held_out_scores(x: np.ndarray, labels: np.ndarray, folds: np.ndarray, classes: np.ndarray, strengths) -> tuple:
    """Scores of each spot from a model of the other folds, and the strength chosen within those for each fold."""
    scores, chosen = np.zeros((len(x), len(classes))), []
    for fold in np.unique(folds):
        out = folds == fold
        best = strengths[0]
        if len(strengths) > 1:
            inner = []
            for strength in strengths:
                each, _ = held_out_scores(x[~out], labels[~out], folds[~out], classes, (strength,))
                inner.append(weighted_auc(each, labels[~out], np.zeros((~out).sum()), classes))
            best = strengths[int(np.argmax(inner))]
        scores[out] = class_scores(x[~out], labels[~out], x[out], best, classes)
        chosen.append(best)
    return scores, chosen


def annotation_rows(x: np.ndarray, labels: np.ndarray, folds: np.ndarray, scored: np.ndarray) -> dict:
    """Weighted AUC with its bootstrap interval, and each class's."""
    classes = np.unique(labels)
    scores, chosen = held_out_scores(x, labels, folds, classes, LOGISTIC_STRENGTHS)
    generator = np.random.default_rng(0)
    draws = [generator.integers(0, len(labels), len(labels)) for _ in range(N_BOOTSTRAP)]
    boot = [weighted_auc(scores[i], labels[i], scored[i], classes) for i in draws]
    by_class = {
        str(each): float(
            np.nanmean([class_aucs(scores[scored == k], labels[scored == k], classes)[j] for k in np.unique(scored)])
        )
        for j, each in enumerate(classes)
    }
    return {
        "weighted_auc": weighted_auc(scores, labels, scored, classes),
        "interval_95": [float(value) for value in np.quantile(boot, [0.025, 0.975])],
        "by_class": by_class,
        "strengths": chosen,
    }


def shuffled_labels(x: np.ndarray, labels: np.ndarray, folds: np.ndarray, scored: np.ndarray, strength: float) -> list:
    """2.5 % and 97.5 % of the weighted AUC of the same model with labels shuffled within what is scored together."""
    generator, classes, out = np.random.default_rng(0), np.unique(labels), []
    for _ in range(N_SHUFFLES):
        mixed = labels.copy()
        for group in np.unique(scored):
            mixed[scored == group] = generator.permutation(labels[scored == group])
        scores, _ = held_out_scores(x, mixed, folds, classes, (strength,))
        out.append(weighted_auc(scores, mixed, scored, classes))
    return [float(value) for value in np.quantile(out, [0.025, 0.975])]


def annotation(tiles: np.ndarray, labels: np.ndarray, folds: np.ndarray, scored: np.ndarray, spec: TileSpec) -> dict:
    """All feature sets on one task."""
    sets = {"mean colour": mean_colour(tiles), "colour": colour(tiles), "morphology": morphology(tiles, spec)}
    result = {key: annotation_rows(x, labels, folds, scored) for key, x in sets.items()}
    strength = float(np.median(result["morphology"]["strengths"]))
    result["morphology_shuffled_95"] = shuffled_labels(sets["morphology"], labels, folds, scored, strength)
    result["spots"] = {str(each): int((labels == each).sum()) for each in np.unique(labels)}
    for key in sets:
        print(key, {k: v for k, v in result[key].items() if k != "strengths"}, flush=True)
    print("shuffled", result["morphology_shuffled_95"], flush=True)
    return result


def annotation_tables(samples: dict, low: tuple) -> dict:
    """The study's clusters over the sections of one patient, and the pathologist's labels of A1."""
    names = [name for name in SECTIONS if name != "B4"]
    labels = np.concatenate([samples[name][0].obs["expression_cluster"].astype(str) for name in names])
    section_of = np.concatenate([np.full(len(samples[name][1]), i) for i, name in enumerate(names)])
    tiles = np.concatenate([samples[name][2] for name in names])
    known = labels != "none"
    clusters = annotation(tiles[known], labels[known], section_of[known], section_of[known], SPEC)
    table, where, tiles, _ = low
    labels = table.obs["pathologist_label"].astype(str).to_numpy()
    counts = {each: (labels == each).sum() for each in np.unique(labels)}
    known = np.array([each not in {"none", "undetermined"} and counts[each] >= SMALLEST_CLASS for each in labels])
    folds = spatial_folds(where)[known]
    pathologist = annotation(tiles[known], labels[known], folds, np.zeros(known.sum(), int), LOW_SPEC)
    return {
        "expression_cluster, C3 C4 C5, leave one section out": clusters,
        "pathologist, A1, blocks of 1 mm": pathologist,
    }


def main() -> None:
    """Both tables, printed and saved."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()
    warnings.simplefilter("ignore")
    sthist.settings.progress = False
    start = time.perf_counter()
    samples = {name: section(name) for name in SECTIONS}
    small = {name: section(name, SMALL_SPEC) for name in SECTIONS}
    result = {
        "command": "PYTHONPATH=tests python studies/her2st.py",
        "machine": f"{platform.machine()}, {os.cpu_count()} cores, Python {platform.python_version()}",
        "tiles": SPEC.to_dict(),
        "tiles_A1": LOW_SPEC.to_dict(),
        "expression": expression_table(samples, SPEC, shuffle=True),
        "expression_in_tiles_of_112_um": expression_table(small, SMALL_SPEC, shuffle=False),
        "annotation": annotation_tables(samples, section("A1")),
    }
    result["seconds"] = round(time.perf_counter() - start, 1)
    print(result["seconds"], "s")
    if options.json is not None:
        options.json.write_text(json.dumps(result, indent=1) + "\n")


if __name__ == "__main__":
    main()
