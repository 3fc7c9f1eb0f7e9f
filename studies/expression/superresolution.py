"""Maps finer than the spots they were learned from, on real sections: does the image say more than interpolation?

Run ``PYTHONPATH=tests python studies/expression/superresolution.py [--json FILE] [--figures DIR] [--folder DIR]``.

``xenium breast``: Xenium cells inside an H&E of 2.4 µm/px (``xenium_breast_rep1``), whose drawn outlines are painted
over. ``visium hd kidney``: bins of 8 µm (``visium_hd_kidney_roi``, 2 µm/px). Spots are made of them as Visium has them:
discs of 55 µm, 100 µm apart in hexagons, with the counts of all cells or bins whose centre lies in them; spots under
100 counts are left out. Truth are squares of 16 and 32 µm, 10,000 counts each, logarithm; squares under 25 counts are
left out. A prediction of a square is the mean, before the logarithm, of its squares of 8 µm. Cells and H&E of the
Xenium section are registered to 4 to 7 µm, and a cell counts as lying where its centre does; bins to about 1 µm.

Three views. ``same slide``: all spots train, and all squares are scored, also those whose counts a spot has: their
noise, too. ``between spots``: the same maps on the squares that lie outside all discs. ``other half``: spots of one
half train, and the other half is scored, 50 µm from the border on; both ways.

Genes are chosen on the spots: the 50 most variable of the 300 most expressed, and the 50 most expressed. Scores are
Pearson of each gene across squares, mean over genes, within halves in the last view; ``within_spot`` is the same
after the mean of all squares that are nearest to the same spot is taken from truth and prediction: a spot that is
spread evenly knows nothing of that, but for squares at its border. ``beyond_counts`` is Pearson given the logarithm of
a square's counts. Intervals of 95 % are of 200 draws of blocks of 200 µm. Beside iStar stand

* the training mean, which has no correlation;
* the value of the nearest spot, spread evenly;
* interpolation between spots: the one of linear, Gaussian and thin-plate kinds that is best at spots left out, and the
  one that is best on the truth between spots, which is not known in practice;
* iStar with the map of features turned by 180°: as smooth, but of other places;
* ridge regression on the same features, means over spots, applied to each superpixel;
* in the other half, the same ridge on the squares of 16 µm themselves: what these features could say;
* what a perfect prediction would reach, by the noise of the counts (``metrics.noise_ceiling``).

``rmse`` is of logarithms. Those of squares of few counts lie below the logarithm of what they would show on average, so
that a map which says that average is above them: ``rmse_of_centred`` is without each gene's mean difference, and
``amount`` the mean expression of a gene, before the logarithm, over the true one, median over genes.

``+ residuals``: to the map is added what it is wrong by at the spots, interpolated. ``training_spots`` is how the map,
summed up over each spot's disc, correlates with what was measured there.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import time
import warnings
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import spatialdata as sd
from scipy import sparse
from scipy.interpolate import LinearNDInterpolator, RBFInterpolator
from scipy.spatial import cKDTree
from sklearn.linear_model import RidgeCV
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler
from squares import (
    MARGIN_UM,
    PITCH_UM,
    RADIUS_UM,
    SECTIONS,
    SIDES,
    SQUARE_UM,
    Section,
    Truth,
    logarithms,
    members,
    on_squares,
)

import sthist
from sthist import metrics, models
from sthist.benchmark._expression.gene_scores import drawn_weights, interval, weighted_means
from sthist.systems.expression.models.istar.superpixels import FeatureMap
from sthist.tiles import TileSpec

if TYPE_CHECKING:
    from collections.abc import Callable

N_GENES, N_EXPRESSED = 50, 300
N_DRAWS = 200
WINDOW = TileSpec(32.0, 16)  # of the encoder around a superpixel: 2 µm/px, as the images have
SPLIT = models.Split("block", folds=2, block_um=300.0, gap_um=100.0)

Map = np.ndarray
"""Expression per 10,000 of all squares of 8 µm, (n, genes)."""


# What needs no image


def nearest(xy: np.ndarray, values: np.ndarray, where: np.ndarray) -> np.ndarray:
    """Values of the nearest spot."""
    return values[cKDTree(xy).query(where)[1]]


def linear(xy: np.ndarray, values: np.ndarray, where: np.ndarray) -> np.ndarray:
    """Linear between three spots; beyond all triangles the nearest spot."""
    found = LinearNDInterpolator(xy, values)(where)
    return np.where(np.isfinite(found), found, nearest(xy, values, where))


def gaussian(sigma_um: float) -> Callable:
    """Mean of spots, weighted by their distance."""

    def apply(xy: np.ndarray, values: np.ndarray, where: np.ndarray, own: bool = True) -> np.ndarray:
        parts = []
        for part in np.array_split(where, max(1, len(where) // 5000)):
            square = ((part[:, None] - xy) ** 2).sum(axis=2)
            if not own:
                np.fill_diagonal(square, np.inf)
            weight = np.exp(-(square - square.min(axis=1, keepdims=True)) / (2 * sigma_um**2))
            parts.append(weight / weight.sum(axis=1, keepdims=True) @ values)
        return np.concatenate(parts)

    return apply


def thin_plate(smoothing: float) -> Callable:
    """The smoothest surface near the spots."""

    def apply(xy: np.ndarray, values: np.ndarray, where: np.ndarray) -> np.ndarray:
        return RBFInterpolator(xy / PITCH_UM, values, smoothing=smoothing)(where / PITCH_UM)

    return apply


GAUSSIANS = {f"Gaussian of {sigma} µm": gaussian(sigma) for sigma in (40, 50, 60, 80, 100, 150)}
PLATES = {f"thin plate, smoothing {value:g}": thin_plate(value) for value in (0.1, 1.0, 10.0)}
INTERPOLATIONS = {"linear": linear, **GAUSSIANS, **PLATES}


def left_out(name: str, xy: np.ndarray, values: np.ndarray) -> np.ndarray:
    """What each spot would be by all others."""
    apply, n = INTERPOLATIONS[name], len(xy)
    if name in GAUSSIANS:
        return apply(xy, values, xy, own=False)
    if name in PLATES:  # linear in the values
        influence = apply(xy, np.eye(n), xy)
        own = np.diag(influence)[:, None]
        return values - (values - influence @ values) / (1 - own)
    others = [np.delete(np.arange(n), each) for each in range(n)]
    return np.concatenate([apply(xy[rest], values[rest], xy[[each]]) for each, rest in enumerate(others)])


def best_interpolation(xy: np.ndarray, values: np.ndarray) -> str:
    """The one that is best at spots that are left out."""
    scores = {name: gene_pearson(values, left_out(name, xy, values)).mean() for name in INTERPOLATIONS}
    return max(scores, key=lambda name: scores[name])


def gene_pearson(truth: np.ndarray, said: np.ndarray, half: np.ndarray | None = None) -> np.ndarray:
    """Pearson of each gene across rows, within halves; 0 where a prediction does not vary."""
    return metrics.expression(truth, said, groups=half, metrics=[]).genes["pearson"].fillna(0).to_numpy()


# What looks at the image


@dataclass(frozen=True)
class Arm:
    """An iStar: its features and its settings."""

    name: str
    encoder: str
    config: models.IStarConfig
    turned: bool = False

    @property
    def key(self) -> str:
        """Of the map of features."""
        return f"{self.encoder}_{self.config.stride_um:g}" + ("_turned" if self.turned else "")


SMALL = models.IStarConfig.small()
ARMS = [
    Arm("iStar small, morphology", "morphology", SMALL),
    Arm("iStar small, morphology, turned", "morphology", SMALL, turned=True),
]


def require_features(sdata: Any, section: Section, arm: Arm) -> None:
    """The map of features, and the same turned."""
    key = f"{arm.encoder}_{arm.config.stride_um:g}"
    if key not in sdata.images:
        low, high = section.centres.min(axis=0) - MARGIN_UM + 10, section.centres.max(axis=0) + MARGIN_UM - 10
        how: dict[str, Any] = {"within": (*low, *high), "tissue": False, "spec": WINDOW, "batch_size": 64}
        sthist.pp.dense_features(sdata, arm.encoder, stride_um=arm.config.stride_um, key_added=key, **how)
    if arm.turned and arm.key not in sdata.images:
        sdata.images[arm.key] = sdata.images[key].copy(data=sdata.images[key].data[:, ::-1, ::-1])


def at_squares(sdata: Any, key: str, section: Section, boxes: tuple[int, ...] | None = None) -> np.ndarray:
    """What a map says of the squares of 8 µm, (n, channels), smoothed by boxes."""
    cells = FeatureMap.of(sdata, key)
    whole = ((0, cells.shape[0]), (0, cells.shape[1]))
    values = cells.values.compute() if boxes is None else cells.smoothed(*whole, boxes)[0]
    column, row = np.floor((section.centres - cells.origin_um) / cells.stride_um).astype(int).T
    return values[:, row, column].T.astype(np.float32)


def trained_map(
    sdata: Any, section: Section, arm: Arm, genes: list[str], seed: int, within: Any
) -> tuple[Map, dict[str, Any]]:
    """The map of an iStar that is trained on the spots in a box."""
    began = time.perf_counter()
    settings = {"embedding": arm.key, "within": within, "split": SPLIT, "training": {"seed": seed}}
    model = sthist.tl.train_expression(sdata, models.IStar(arm.config), genes=genes, **settings)
    seconds = time.perf_counter() - began
    sthist.tl.expression(sdata, model, key_added="map", overwrite=True)
    said = at_squares(sdata, "map", section)[:, [list(model.config.outputs).index(gene) for gene in genes]]
    facts = {"seconds": round(seconds, 1), "epochs": len(model.history)}
    return np.expm1(said), facts | {"blocks_of_spots": round(float(model.scores["pearson"].mean()), 4)}


def ridge_map(features: np.ndarray, rows: np.ndarray, values: np.ndarray) -> Map:
    """Ridge regression that was trained on means of features, applied to each square."""
    model = make_pipeline(StandardScaler(), RidgeCV(np.logspace(0, 6, 13))).fit(rows, values)
    return np.expm1(model.predict(features).clip(0))


# Scores


COMPARED = {"spread evenly": "spread", "interpolation": "chosen", "interpolation, best on the truth": "best"}
"""What others are compared with, and what that is called."""


@dataclass
class Scores:
    """Rows of the table of one section."""

    section: Section
    truths: dict[int, Truth]
    sets: dict[str, np.ndarray]  # columns of the truth by set of genes
    rows: list[dict[str, Any]] = field(default_factory=list)
    known: dict[tuple, Any] = field(default_factory=dict)  # what others are compared with

    def add(self, data: str, view: str, arm: str, values: Map, **facts: Any) -> None:
        """Score a map on all squares of a view."""
        for side, truth in self.truths.items():
            said = on_squares(values, self.section, side, truth.kept)
            for name, columns in self.sets.items():
                row = {"data": data, "view": view, "square_um": side * SQUARE_UM, "genes": name, "arm": arm, **facts}
                scored = self._scored((view, side, name), arm, truth, said[:, columns], truth.values[:, columns])
                self.rows.append(row | {key: round(float(value), 4) for key, value in scored.items()})
        main = self.rows[-len(self.truths) * len(self.sets)]
        shown = {key: main.get(key) for key in ("pearson", "within_spot", "gain_over_best", "seconds")}
        print(data, "|", view, "|", arm, shown, flush=True)

    def _scored(
        self, of: tuple[str, int, str], arm: str, truth: Truth, said: np.ndarray, wanted: np.ndarray
    ) -> dict[str, float]:
        some, half = truth.seen(of[0]), truth.halves(of[0])
        said, wanted = said[some], wanted[some]
        counts = np.log1p(np.asarray(truth.counts.sum(axis=1)).ravel()[some])
        scored = metrics.expression(wanted, said, groups=half, metrics=[], given=counts)
        each = scored.genes["pearson"].fillna(0).to_numpy()
        centred = [values - means(values, truth.spot[some]) for values in (wanted, said)]
        varies = centred[1].std(axis=0).max() > 1e-4
        weights = drawn_weights(truth.block[some], N_DRAWS, seed=0)
        drawn = weighted_means(wanted, said, None, half, weights)
        low, high = interval(drawn)
        self.known.setdefault((*of, arm), (each, drawn))
        found = {
            "pearson": each.mean(),
            "low": low,
            "high": high,
            "beyond_counts": scored.summary["pearson_given_mean"],
            "within_spot": gene_pearson(*centred, half).mean() if varies else np.nan,
            "rmse": float(np.sqrt(((wanted - said) ** 2).mean(axis=0)).mean()),
            "rmse_of_centred": float((wanted - said).std(axis=0).mean()),
            "amount": float(np.median(np.expm1(said).mean(axis=0) / np.expm1(wanted).mean(axis=0))),
        }
        for other, short in COMPARED.items():
            if (*of, other) in self.known and arm != other:
                theirs, theirs_drawn = self.known[*of, other]
                low, high = interval(drawn - theirs_drawn)
                gain = {"gain": each.mean() - theirs.mean(), "gain_low": low, "gain_high": high}
                found |= {f"{key}_over_{short}": value for key, value in gain.items()}
                found[f"wins_over_{short}"] = (each > theirs).mean()
        return found

    def add_ceiling(self, data: str) -> None:
        """What a perfect prediction would have."""
        for side, truth in self.truths.items():
            names = np.array(self.section.genes)
            for name in self.sets:
                chosen = [int(np.flatnonzero(names == gene)[0]) for gene in self.known["genes", name]]
                ceiling = metrics.noise_ceiling(truth.counts, genes=chosen, n_splits=2)
                row = {"data": data, "view": "all", "square_um": side * SQUARE_UM, "genes": name}
                self.rows.append(row | {"arm": "ceiling", "pearson": round(float(np.nanmean(ceiling)), 4)})
                print(data, "ceiling", self.rows[-1], flush=True)


def means(values: np.ndarray, group: np.ndarray) -> np.ndarray:
    """Of each row, the mean of its group."""
    group = np.unique(group, return_inverse=True)[1]
    into = sparse.csr_matrix((np.ones(len(group)), (group, np.arange(len(group)))))
    return (into @ values / np.bincount(group)[:, None])[group]


# The study


@dataclass
class Study:
    """One section, with all that is made of it; maps are kept in a folder."""

    data: str
    section: Section
    folder: Path | None
    maps: dict[str, Map] = field(default_factory=dict)

    def __post_init__(self) -> None:
        spots = self.section.spots
        self.xy = spots.obs[["x_um", "y_um"]].to_numpy()
        every = logarithms(spots.X, np.arange(spots.n_vars))
        expressed = np.argsort(-np.asarray(spots.X.sum(axis=0)).ravel(), kind="stable")[:N_EXPRESSED]
        variable = expressed[np.argsort(-every[:, expressed].var(axis=0), kind="stable")[:N_GENES]]
        columns = np.array(list(dict.fromkeys([*variable, *expressed[:N_GENES]])))
        self.genes = [self.section.genes[each] for each in columns]
        self.measured = every[:, columns]
        truths = {side: Truth.of(self.section, side, columns) for side in SIDES}
        chosen = {"50 most variable": variable, "50 most expressed": expressed[:N_GENES]}
        sets = {name: np.flatnonzero(np.isin(columns, each)) for name, each in chosen.items()}
        self.scores = Scores(self.section, truths, sets)
        for name, each in sets.items():
            self.scores.known["genes", name] = [self.genes[column] for column in each]
        self.discs = members(self.xy, self.section.centres)
        self.discs = sparse.diags(1 / np.asarray(self.discs.sum(axis=1)).ravel()) @ self.discs
        x0, y0 = self.section.centres.min(axis=0)
        x1, y1 = self.section.centres.max(axis=0)
        left, right = self.section.middle - RADIUS_UM, self.section.middle + RADIUS_UM
        self.boxes = {0: (x0, y0, left, y1), 1: (right, y0, x1, y1)}
        self.sdata = sthist.io.assemble(
            {"he": self.section.pixels}, mpp=self.section.mpp, table=spots, spot_diameter_um=2 * RADIUS_UM
        )
        if self.folder is not None:
            store = self.folder / f"{self.data}.zarr"
            if not store.exists():
                self.sdata.write(store)
            self.sdata = sd.read_zarr(store)

    def facts(self) -> dict[str, Any]:
        """Of the section."""
        total = np.asarray(self.section.spots.X.sum(axis=1)).ravel()
        counts = {side: np.asarray(each.counts.sum(axis=1)).ravel() for side, each in self.scores.truths.items()}
        return {
            "spots": len(self.xy),
            "median_counts_a_spot": float(np.median(total)),
            **{f"squares_of_{side * 8}_um": len(each) for side, each in counts.items()},
            **{f"median_counts_of_{side * 8}_um": float(np.median(each)) for side, each in counts.items()},
        }

    def both_halves(self, make: Callable[[np.ndarray, Any], Map]) -> Map:
        """A map of which each half is made of the spots of the other one."""
        right = self.section.centres[:, 0] >= self.section.middle
        made = np.empty((len(right), len(self.genes)), np.float32)
        for trains, box in self.boxes.items():
            inside = (self.xy[:, 0] >= box[0]) & (self.xy[:, 0] <= box[2])
            made[right != bool(trains)] = make(inside, box)[right != bool(trains)]
        return made

    def kept(self, name: str, make: Callable[[], tuple[Map, dict[str, Any]]]) -> tuple[Map, dict[str, Any]]:
        """A map and what is known of it, made once."""
        if self.folder is None:
            return make()
        path = self.folder / f"{self.data}, {name}.npz"
        if not path.exists():
            values, facts = make()
            np.savez(path, values=values.astype(np.float32), facts=json.dumps(facts))
        with np.load(path) as found:
            return found["values"], json.loads(str(found["facts"]))

    def add(self, arm: str, values: Map, **facts: Any) -> None:
        """Score a map of the spots of the whole slide."""
        own = gene_pearson(self.measured, np.log1p(self.discs @ values))
        self.maps.setdefault(arm, values)
        for view in ("same slide", "between spots"):
            self.scores.add(self.data, view, arm, values, training_spots=round(float(own.mean()), 4), **facts)

    def add_residuals(self, arm: str, values: Map, **facts: Any) -> None:
        """Score a map to which is added what it is wrong by at the spots, interpolated."""
        wrong = self.measured - np.log1p(self.discs @ values)
        which = best_interpolation(self.xy, wrong)
        added = INTERPOLATIONS[which](self.xy, wrong, self.section.centres)
        self.add(f"{arm} + residuals", np.expm1((np.log1p(values) + added).clip(0)), which=which, **facts)

    def add_halves(self, arm: str, values: Map, **facts: Any) -> None:
        """Score a map of which each half is of the spots of the other one."""
        self.scores.add(self.data, "other half", arm, values, **facts)

    def add_without_image(self) -> None:
        """Spots spread evenly, interpolation, and the mean."""
        xy, values, where = self.xy, self.measured, self.section.centres

        def interpolated(name: str, inside: Any = slice(None)) -> Map:
            return np.expm1(INTERPOLATIONS[name](xy[inside], values[inside], where).clip(0))

        def spread(inside: Any = slice(None)) -> Map:
            return np.expm1(nearest(xy[inside], values[inside], where))

        def mean(inside: Any = slice(None)) -> Map:
            return np.tile(np.expm1(values[inside].mean(axis=0)), (len(where), 1))

        chosen = best_interpolation(xy, values)
        self.add("spread evenly", spread())
        self.add("interpolation", interpolated(chosen), which=chosen)
        truth, side = self.scores.truths[SIDES[0]], SIDES[0]
        scores = {}
        for name in INTERPOLATIONS:
            said = on_squares(interpolated(name), self.section, side, truth.kept)
            scores[name] = gene_pearson(truth.values[truth.between], said[truth.between]).mean()
        best = max(scores, key=lambda name: scores[name])
        self.add("interpolation, best on the truth", interpolated(best), which=best)
        self.add("training mean", mean())
        self.add_halves("spread evenly", self.both_halves(lambda inside, _: spread(inside)))
        self.add_halves("interpolation", self.both_halves(lambda inside, _: interpolated(chosen, inside)), which=chosen)
        self.add_halves("training mean", self.both_halves(lambda inside, _: mean(inside)))

    def add_arm(self, arm: Arm, seeds: list[int]) -> None:
        """An iStar, what it says with residuals, and a ridge on its features."""
        require_features(self.sdata, self.section, arm)
        for seed in seeds[:1] if arm.turned else seeds:
            values, facts = self.kept(
                f"{arm.name}, {seed}",
                lambda seed=seed: trained_map(self.sdata, self.section, arm, self.genes, seed, None),
            )
            self.add(arm.name, values, seed=seed, **facts)
            if not arm.turned:
                self.add_residuals(arm.name, values, seed=seed)
            if not arm.turned and seed == 0:
                values, _ = self.kept(
                    f"{arm.name}, {seed}, halves",
                    lambda seed=seed: (
                        self.both_halves(
                            lambda _, box: trained_map(self.sdata, self.section, arm, self.genes, seed, box)[0]
                        ),
                        {},
                    ),
                )
                self.add_halves(arm.name, values, seed=seed)
        name = f"ridge, {arm.key}"
        if name in self.maps:
            return
        features = at_squares(self.sdata, arm.key, self.section, arm.config.boxes)
        rows = self.discs @ features
        of_all = ridge_map(features, rows, self.measured)
        self.add(name, of_all)
        if not arm.turned:
            self.add_residuals(name, of_all)
            halves = self.both_halves(lambda inside, _: ridge_map(features, rows[inside], self.measured[inside]))
            self.add_halves(name, halves)
            self.add_halves(f"{name}, of the squares themselves", self._supervised(features))

    def _supervised(self, features: np.ndarray) -> Map:
        """Ridge on squares of 16 µm of the other half."""
        truth, side = self.scores.truths[SIDES[0]], SIDES[0]
        height, width = self.section.shape
        parts = features.reshape(height // side, side, width // side, side, -1).mean(axis=(1, 3))
        rows = parts.reshape(-1, features.shape[1])[truth.kept]
        right = self.section.centres[:, 0] >= self.section.middle
        made = np.empty((len(right), len(self.genes)), np.float32)
        for trains in (0, 1):
            some = truth.half == trains
            made[right != bool(trains)] = ridge_map(features, rows[some], truth.values[some])[right != bool(trains)]
        return made


SHOWN = {"xenium breast": ("EPCAM", "POSTN"), "visium hd kidney": ("UMOD", "PODXL")}
COLUMNS = {"spot, spread": "spread evenly", "interpolation": "interpolation, best on the truth", "iStar": ARMS[0].name}


def figure(studies: list[Study], path: Path) -> None:
    """Two genes of each section: H&E, the truth in squares of 16 µm, and maps, each on a scale of its own."""
    import matplotlib.pyplot as plt

    rows = [(study, gene) for study in studies for gene in SHOWN[study.data]]
    heights = [2.6 * study.section.shape[0] / study.section.shape[1] for study, _ in rows]
    size, ratios = (13, sum(heights) + 0.4), {"height_ratios": heights}
    fig, axes = plt.subplots(len(rows), 5, figsize=size, gridspec_kw=ratios, layout="constrained", squeeze=False)
    for (study, gene), line in zip(rows, axes, strict=True):
        section, side, column = study.section, SIDES[0], study.genes.index(gene)
        low, high = section.centres.min(axis=0), section.centres.max(axis=0)
        x0, y0, x1, y1 = np.round(np.concatenate([low, high]) / section.mpp).astype(int)
        line[0].imshow(np.moveaxis(section.pixels[:, y0:y1, x0:x1], 0, -1))
        shape = tuple(n // side for n in section.shape)
        kept = study.scores.truths[side].kept
        maps = {"truth, 16 µm": np.full(np.prod(shape), np.nan)}
        maps["truth, 16 µm"][kept] = study.scores.truths[side].values[:, column]
        for name, arm in COLUMNS.items():
            maps[name] = on_squares(study.maps[arm][:, [column]], section, side, np.arange(np.prod(shape)))[:, 0]
        turn = [slice(None, None, int(np.sign(each))) for each in section.centres[-1] - section.centres[0]][::-1]
        for ax, values in zip(line[1:], maps.values(), strict=True):
            least, most = np.quantile(values[kept], [0.02, 0.98])
            ax.imshow(values.reshape(shape)[tuple(turn)], vmin=least, vmax=most, cmap="magma", interpolation="nearest")
            ax.set_facecolor("0.8")
        line[0].set_ylabel(f"{study.data}\n{gene}")
        for ax in line:
            ax.set(xticks=[], yticks=[])
    for ax, title in zip(axes[0], ("H&E", "truth, 16 µm", *COLUMNS), strict=True):
        ax.set_title(title)
    fig.savefig(path, dpi=90, pil_kwargs={"quality": 82})
    plt.close(fig)


def main() -> None:
    """The table, printed and saved."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--json", type=Path, help="file of the results; those of other sections are kept there")
    parser.add_argument("--figures", type=Path, help="folder for the figure")
    parser.add_argument("--folder", type=Path, help="where maps are kept, so that a run that was stopped goes on")
    parser.add_argument("--data", nargs="*", default=list(SECTIONS))
    parser.add_argument("--seeds", nargs="*", type=int, default=[0, 1])
    parser.add_argument("--arms", nargs="*", default=[arm.name for arm in ARMS])
    options = parser.parse_args()
    warnings.simplefilter("ignore")
    sthist.settings.progress, sthist.settings.verbosity = False, "error"
    for folder in (options.folder, options.figures):
        if folder is not None:
            folder.mkdir(parents=True, exist_ok=True)
    known = json.loads(options.json.read_text()) if options.json and options.json.exists() else {}
    results: dict[str, Any] = {
        "command": "PYTHONPATH=tests python studies/expression/superresolution.py",
        "machine": f"{platform.machine()}, {os.cpu_count()} cores, Python {platform.python_version()}",
        "sections": known.get("sections", {}),
        "rows": [row for row in known.get("rows", []) if row["data"] not in options.data],
    }
    studies = []
    for name in options.data:
        study = Study(name, SECTIONS[name](), options.folder)
        results["sections"][name] = study.facts()
        print(name, results["sections"][name], flush=True)
        study.add_without_image()
        study.scores.add_ceiling(name)
        for arm in ARMS:
            if arm.name in options.arms:
                study.add_arm(arm, options.seeds)
        results["rows"] += study.scores.rows
        if options.json:
            options.json.write_text(json.dumps(results, indent=1).replace("NaN", "null") + "\n")
        studies.append(study)
    if options.figures is not None:
        figure(studies, options.figures / "superresolution.jpg")


if __name__ == "__main__":
    main()
