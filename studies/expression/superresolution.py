"""Maps finer than the spots they were learned from, on real sections: does the image say more than interpolation?

Run ``PYTHONPATH=tests python studies/expression/superresolution.py [--json FILE] [--figures DIR] [--folder DIR]``.

``xenium breast``: Xenium cells inside an H&E of 2.4 µm/px (``xenium_breast_rep1``), whose drawn outlines are painted
over. ``visium hd kidney``: bins of 8 µm (``visium_hd_kidney_roi``, 2 µm/px). Spots are made of them as Visium has them:
discs of 55 µm, 100 µm apart in hexagons, with the counts of all cells or bins whose centre lies in them; spots under
100 counts are left out. Truth are squares of 16 and 32 µm, 10,000 counts each, logarithm; squares under 25 counts are
left out. A prediction of a square is the mean, before the logarithm, of its squares of 8 µm. Cells and H&E of the
Xenium section are registered to 4 to 7 µm, and a cell counts as lying where its centre does; bins to about 1 µm.

Two views. ``same slide``: all spots train, and all squares are scored, or those that lie ``between`` the discs alone,
whose counts are in no spot. ``other half``: spots of one half train, and the other half is scored, 50 µm from the
border on; both ways.

Genes are chosen on the spots: the 50 most variable of the 300 most expressed, and the 50 most expressed. Scores are
Pearson of each gene across squares, mean over genes, within halves in the second view; ``within_spot`` is the same
after the mean of all squares that are nearest to the same spot is taken from truth and prediction: a spot that is
spread evenly knows nothing of that, but for squares at its border. ``beyond_counts`` is Pearson given the logarithm of
a square's counts. Intervals of 95 % are of 200 draws of blocks of 200 µm. Beside iStar stand

* the training mean, which has no correlation;
* the value of the nearest spot, spread evenly;
* interpolation between spots: the one of linear, Gaussian and thin-plate kinds that is best at spots left out, and the
  one that is best on the truth, which is not known in practice;
* iStar with the map of features turned by 180°: as smooth, but of other places;
* ridge regression on the same features, means over spots, applied to each superpixel;
* in the other half, the same ridge on the squares of 16 µm themselves: what these features could say;
* what a perfect prediction would reach, by the noise of the counts (``metrics.noise_ceiling``).

``iStar + residuals`` adds to the map what it is wrong by at the spots, interpolated. ``training_spots`` is how the map,
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
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

import anndata as ad
import numpy as np
import realdata
import spatialdata as sd
from scipy import ndimage, sparse
from scipy.interpolate import LinearNDInterpolator, RBFInterpolator
from scipy.spatial import cKDTree
from sklearn.linear_model import RidgeCV
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

import sthist
from sthist import metrics, models
from sthist.benchmark._expression.gene_scores import drawn_weights, interval, weighted_means
from sthist.systems.expression.models.istar.superpixels import FeatureMap
from sthist.tiles import TileSpec

if TYPE_CHECKING:
    from collections.abc import Callable

PITCH_UM, RADIUS_UM, SQUARE_UM = 100.0, 27.5, 8.0
MARGIN_UM = 80.0  # of image around what is scored
FEWEST = {"spot": 100, "square": 25}  # counts
N_GENES, N_EXPRESSED = 50, 300
SIDES = (2, 4)  # of squares of the truth, in squares of 8 µm
GAP_UM, BLOCK_UM, N_DRAWS = 50.0, 200.0, 200
WINDOW = TileSpec(32.0, 16)  # of the encoder around a superpixel: 2 µm/px, as the images have
SPLIT = models.Split("block", folds=2, block_um=300.0, gap_um=100.0)

Map = np.ndarray
"""Expression per 10,000 of all squares of 8 µm, (n, genes)."""


# Sections


@dataclass(frozen=True)
class Section:
    """An image, and where on it the molecules of cells or bins lie: in squares of 8 µm, of which all is made."""

    pixels: np.ndarray
    mpp: float
    places: np.ndarray = field(repr=False)  # (n, 2) µm of cells or bins
    counts: Any = field(repr=False)  # (n, genes) csr
    genes: list[str] = field(repr=False)
    square: np.ndarray = field(repr=False)  # (n,) which square each lies in
    shape: tuple[int, int]  # rows and columns of squares
    centres: np.ndarray = field(repr=False)  # (squares, 2) in µm

    @cached_property
    def spots(self) -> ad.AnnData:
        """Discs of 55 µm in hexagons, with the counts in them."""
        low, high = self.centres.min(axis=0) + RADIUS_UM, self.centres.max(axis=0) - RADIUS_UM
        rows = np.arange(low[1], high[1], PITCH_UM * np.sqrt(0.75))
        xy = [(x, y) for n, y in enumerate(rows) for x in np.arange(low[0] + n % 2 * PITCH_UM / 2, high[0], PITCH_UM)]
        counts = members(np.array(xy), self.places) @ self.counts
        made = ad.AnnData(sparse.csr_matrix(counts), var={"gene": self.genes})
        made.var_names, made.obs_names = self.genes, [f"spot{n}" for n in range(len(xy))]
        made.obs[["x_um", "y_um"]] = xy
        return made[np.asarray(counts.sum(axis=1)).ravel() >= FEWEST["spot"]].copy()

    @property
    def middle(self) -> float:
        """Where one half of the section ends, in x."""
        return float((self.centres[:, 0].min() + self.centres[:, 0].max()) / 2)


def members(spots: np.ndarray, places: np.ndarray) -> Any:
    """Which places lie in the disc of each spot, (spots, places) sparse."""
    near = cKDTree(places).query_ball_point(spots, RADIUS_UM)
    row = np.repeat(np.arange(len(spots)), [len(each) for each in near])
    column = np.concatenate([np.asarray(each, int) for each in near])
    return sparse.csr_matrix((np.ones(len(row)), (row, column)), shape=(len(spots), len(places)))


def xenium_breast() -> Section:
    """Cells on squares that are laid on the image."""
    pixels, mpp, cells = realdata.xenium_breast_cells(MARGIN_UM)
    drawn = realdata.picture(realdata.folder("xenium_breast_rep1") / "he_crop_2.4um_overlay_mask.png")[0] > 0
    _, nearest = ndimage.distance_transform_edt(drawn, return_indices=True)
    places = cells.obs[["x_px", "y_px"]].to_numpy() * mpp
    corner = places.min(axis=0)
    shape = tuple(int(n) // SIDES[-1] * SIDES[-1] for n in (np.ptp(places, axis=0) // SQUARE_UM)[::-1])
    row, column = np.floor((places - corner) / SQUARE_UM).astype(int)[:, ::-1].T
    kept = (row < shape[0]) & (column < shape[1])
    y, x = np.indices(shape).reshape(2, -1)
    centres = (np.stack([x, y], 1) + 0.5) * SQUARE_UM + corner
    square = (row * shape[1] + column)[kept]
    counts = sparse.csr_matrix(cells.X[kept])
    return Section(pixels[:, *nearest], mpp, places[kept], counts, list(cells.var_names), square, shape, centres)


def visium_hd_kidney() -> Section:
    """Bins as they are."""
    pixels, mpp, bins = realdata.visium_hd_kidney_bins()
    row, column = (bins.obs[name].to_numpy() - bins.obs[name].min() for name in ("array_row", "array_col"))
    shape = (int(row.max()) + 1, int(column.max()) + 1)
    places = bins.obs[["x_px", "y_px"]].to_numpy() * mpp
    # Of the few that are missing, too: places are an affine map of row and column.
    to_um, *_ = np.linalg.lstsq(np.column_stack([column, row, np.ones(len(row))]), places, rcond=None)
    y, x = np.indices(shape).reshape(2, -1)
    centres = np.column_stack([x, y, np.ones(len(x))]) @ to_um
    square = row * shape[1] + column
    return Section(pixels, mpp, places, sparse.csr_matrix(bins.X), list(bins.var_names), square, shape, centres)


SECTIONS = {"xenium breast": xenium_breast, "visium hd kidney": visium_hd_kidney}


def logarithms(counts: Any, columns: np.ndarray) -> np.ndarray:
    """Logarithm of counts of 10,000, of some genes."""
    total = np.maximum(np.asarray(counts.sum(axis=1)).ravel(), 1)
    return np.log1p(counts[:, columns].toarray() / total[:, None] * 1e4)


@dataclass(frozen=True)
class Truth:
    """Squares of one side that have enough counts."""

    kept: np.ndarray  # numbers of these
    counts: Any  # (n, all genes) csr
    values: np.ndarray  # (n, genes) logarithms
    spot: np.ndarray  # (n,) the nearest one
    between: np.ndarray  # (n,) whether no part lies in a spot
    half: np.ndarray  # (n,) 0 and 1; -1 near the border
    block: np.ndarray  # (n,) of 200 µm

    @classmethod
    def of(cls, section: Section, side: int, columns: np.ndarray) -> Truth:
        """Of a section."""
        height, width = section.shape
        y, x = np.indices(section.shape).reshape(2, -1) // side
        coarse = y * (width // side) + x
        n = coarse.max() + 1
        one = np.ones(len(section.square))
        into = sparse.csr_matrix((one, (coarse[section.square], np.arange(len(one)))), shape=(n, len(one)))
        counts = into @ section.counts
        kept = np.flatnonzero(np.asarray(counts.sum(axis=1)).ravel() >= FEWEST["square"])
        mean = [np.bincount(coarse, section.centres[:, axis]) / side**2 for axis in (0, 1)]
        centres = np.stack(mean, 1)[kept]
        spots = section.spots.obs[["x_um", "y_um"]].to_numpy()
        far = cKDTree(spots).query(section.centres)[0] > RADIUS_UM
        between = np.bincount(coarse, far)[kept] == side**2
        half = np.where(centres[:, 0] < section.middle, 0, 1)
        half[np.abs(centres[:, 0] - section.middle) < GAP_UM] = -1
        _, block = np.unique(centres // BLOCK_UM, axis=0, return_inverse=True)
        values = logarithms(counts[kept], columns)
        return cls(kept, counts[kept], values, cKDTree(spots).query(centres)[1], between, half, block.ravel())


def on_squares(values: Map, section: Section, side: int, kept: np.ndarray) -> np.ndarray:
    """Logarithm of the mean over larger squares."""
    height, width = section.shape
    parts = values.reshape(height // side, side, width // side, side, -1)
    return np.log1p(parts.mean(axis=(1, 3)).reshape(-1, values.shape[1])[kept])


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


SMALL, FINE = models.IStarConfig.small(), models.IStarConfig.small(stride_um=8.0, boxes=(4, 16))
ARMS = [
    Arm("iStar small, morphology", "morphology", SMALL),
    Arm("iStar small, morphology, turned", "morphology", SMALL, turned=True),
    Arm("iStar small, early", "efficientnet-lite0-early", SMALL),
    Arm("iStar small, early, turned", "efficientnet-lite0-early", SMALL, turned=True),
    Arm("iStar of 8 µm, morphology", "morphology", FINE),
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
                scored = self._scored(view, arm, side, name, truth, said[:, columns], truth.values[:, columns])
                self.rows.append(row | {key: round(float(value), 4) for key, value in scored.items()})
        main = self.rows[-len(self.truths) * len(self.sets)]
        shown = {key: main.get(key) for key in ("pearson", "between", "within_spot", "seconds", "epochs")}
        print(data, "|", view, "|", arm, shown, flush=True)

    def _scored(
        self, view: str, arm: str, side: int, name: str, truth: Truth, said: np.ndarray, wanted: np.ndarray
    ) -> dict[str, float]:
        same = view == "same slide"
        some = np.ones(len(said), bool) if same else truth.half >= 0
        said, wanted, half = said[some], wanted[some], np.zeros(some.sum(), int) if same else truth.half[some]
        counts = np.log1p(np.asarray(truth.counts.sum(axis=1)).ravel()[some])
        scored = metrics.expression(wanted, said, groups=half, metrics=[], given=counts)
        each = scored.genes["pearson"].fillna(0).to_numpy()
        centred = [values - means(values, truth.spot[some]) for values in (wanted, said)]
        varies = centred[1].std(axis=0).max() > 1e-4
        found = {
            "pearson": each.mean(),
            "beyond_counts": scored.summary["pearson_given_mean"],
            "within_spot": gene_pearson(*centred, half).mean() if varies else np.nan,
            "rmse": float(np.sqrt(((wanted - said) ** 2).mean(axis=0)).mean()),
        }
        if same:
            found["between"] = gene_pearson(wanted[truth.between], said[truth.between]).mean()
        weights = drawn_weights(truth.block[some], N_DRAWS, seed=0)
        drawn = weighted_means(wanted, said, None, half, weights)
        found["low"], found["high"] = interval(drawn)
        self.known.setdefault((view, side, name, arm), (each, drawn))
        for other in ("spread evenly", "interpolation"):
            if (view, side, name, other) in self.known and arm != other:
                theirs, theirs_drawn = self.known[view, side, name, other]
                found[f"wins_over_{other}".replace(" ", "_")] = (each > theirs).mean()
                if other == "interpolation":
                    low, high = interval(drawn - theirs_drawn)
                    found |= {"gain": each.mean() - theirs.mean(), "gain_low": low, "gain_high": high}
        return found

    def add_ceiling(self, data: str) -> None:
        """What a perfect prediction would have."""
        for side, truth in self.truths.items():
            names = np.array(self.section.genes)
            for name in self.sets:
                chosen = [int(np.flatnonzero(names == gene)[0]) for gene in self.known["genes", name]]
                ceiling = metrics.noise_ceiling(truth.counts, genes=chosen, n_splits=2)
                row = {"data": data, "view": "same slide", "square_um": side * SQUARE_UM, "genes": name}
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

    def add(self, view: str, arm: str, values: Map, **facts: Any) -> None:
        """Score a map."""
        if view == "same slide":
            own = gene_pearson(self.measured, np.log1p(self.discs @ values))
            facts["training_spots"] = round(float(own.mean()), 4)
        self.maps.setdefault(f"{view}, {arm}", values)
        self.scores.add(self.data, view, arm, values, **facts)

    def add_without_image(self) -> None:
        """Spots spread evenly, interpolation, and the mean."""
        xy, values, where = self.xy, self.measured, self.section.centres

        def interpolated(name: str) -> Callable[[np.ndarray, Any], Map]:
            return lambda inside, _: np.expm1(INTERPOLATIONS[name](xy[inside], values[inside], where).clip(0))

        everywhere = np.ones(len(xy), bool)
        chosen = best_interpolation(xy, values)
        for view in ("same slide", "other half"):

            def made(make: Callable[[np.ndarray, Any], Map], view: str = view) -> Map:
                return make(everywhere, None) if view == "same slide" else self.both_halves(make)

            self.add(
                view, "spread evenly", made(lambda inside, _: np.expm1(nearest(xy[inside], values[inside], where)))
            )
            self.add(view, "interpolation", made(interpolated(chosen)), which=chosen)
            tried = {name: made(interpolated(name)) for name in INTERPOLATIONS}
            truth, side = self.scores.truths[SIDES[0]], SIDES[0]
            some = slice(None) if view == "same slide" else truth.half >= 0
            scores = {
                name: gene_pearson(truth.values[some], on_squares(each, self.section, side, truth.kept)[some]).mean()
                for name, each in tried.items()
            }
            best = max(scores, key=lambda name: scores[name])
            self.add(view, "interpolation, best on the truth", tried[best], which=best)
            mean = made(lambda inside, _: np.tile(np.expm1(values[inside].mean(axis=0)), (len(where), 1)))
            self.add(view, "training mean", mean)

    def add_arm(self, arm: Arm, seeds: list[int]) -> None:
        """An iStar, what it says with residuals, and a ridge on its features."""
        require_features(self.sdata, self.section, arm)
        for seed in seeds:
            values, facts = self.kept(
                f"{arm.name}, {seed}",
                lambda seed=seed: trained_map(self.sdata, self.section, arm, self.genes, seed, None),
            )
            self.add("same slide", arm.name, values, seed=seed, **facts)
            if not arm.turned and seed == 0:
                wrong = self.measured - np.log1p(self.discs @ values)
                which = best_interpolation(self.xy, wrong)
                added = INTERPOLATIONS[which](self.xy, wrong, self.section.centres)
                values = np.expm1((np.log1p(values) + added).clip(0))
                self.add("same slide", f"{arm.name} + residuals", values, seed=seed, which=which)
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
                self.add("other half", arm.name, values, seed=seed)
        features = at_squares(self.sdata, arm.key, self.section, arm.config.boxes)
        rows = self.discs @ features
        name = f"ridge, {arm.key}"
        self.add("same slide", name, ridge_map(features, rows, self.measured))
        if not arm.turned:
            halves = self.both_halves(lambda inside, _: ridge_map(features, rows[inside], self.measured[inside]))
            self.add("other half", name, halves)
            self.add("other half", f"{name}, of the squares themselves", self._supervised(features))

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


SHOWN = {"xenium breast": ("ERBB2", "POSTN"), "visium hd kidney": ("UMOD", "PODXL")}
COLUMNS = {"spot, spread": "spread evenly", "interpolation": "interpolation", "iStar": ARMS[0].name}


def figure(studies: list[Study], path: Path) -> None:
    """Two genes of each section: H&E, the truth in squares of 16 µm, and maps, each on a scale of its own."""
    import matplotlib.pyplot as plt

    rows = [(study, gene) for study in studies for gene in SHOWN[study.data]]
    size = 2.6
    fig, axes = plt.subplots(len(rows), 5, figsize=(5 * size, len(rows) * size), layout="constrained", squeeze=False)
    for (study, gene), line in zip(rows, axes, strict=True):
        section, side, column = study.section, SIDES[0], study.genes.index(gene)
        low, high = section.centres.min(axis=0), section.centres.max(axis=0)
        x0, y0, x1, y1 = np.round(np.concatenate([low, high]) / section.mpp).astype(int)
        line[0].imshow(np.moveaxis(section.pixels[:, y0:y1, x0:x1], 0, -1))
        shape = tuple(n // side for n in section.shape)
        kept = study.scores.truths[side].kept
        shown = {"truth, 16 µm": study.scores.truths[side].values[:, column]}
        every = np.arange(np.prod(shape))
        for name, arm in COLUMNS.items():
            values = study.maps[f"same slide, {arm}"][:, [column]]
            shown[name] = on_squares(values, section, side, every)[kept, 0]
        turn = [slice(None, None, int(np.sign(each))) for each in section.centres[-1] - section.centres[0]][::-1]
        for ax, (name, values) in zip(line[1:], shown.items(), strict=True):
            grid = np.full(shape, np.nan)
            grid.ravel()[kept] = values
            least, most = np.quantile(values, [0.02, 0.98])
            ax.imshow(grid[tuple(turn)], vmin=least, vmax=most, cmap="magma", interpolation="nearest")
            if line is axes[0]:
                ax.set_title(name)
        line[0].set_ylabel(f"{study.data}\n{gene}")
        for ax in line:
            ax.set(xticks=[], yticks=[])
    axes[0, 0].set_title("H&E")
    fig.savefig(path, dpi=90, pil_kwargs={"quality": 88})
    plt.close(fig)


def main() -> None:
    """The table, printed and saved."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--json", type=Path, help="file of the results; those of other sections are kept there")
    parser.add_argument("--figures", type=Path, help="folder for the figure")
    parser.add_argument("--folder", type=Path, help="where maps are kept, so that a run that was stopped goes on")
    parser.add_argument("--data", nargs="*", default=list(SECTIONS))
    parser.add_argument("--seeds", nargs="*", type=int, default=[0])
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
