"""Predicted expression against measured: by gene across spots, by spot across genes, and all values as one."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from sthist._messages import listed
from sthist.metrics._expression.blocks import Pair, group_rows, rounding
from sthist.metrics._expression.correlation import correlate, moments_of, over_groups, require_spots

if TYPE_CHECKING:
    from collections.abc import Sequence

    import pandas as pd

METRICS = ("spearman", "spot_pearson", "spot_spearman", "top_spearman", "recall", "ssim")
"""What can be left out; errors and Pearson correlation of genes come from the same sums, and are always there."""

N_TOP = (50, 200, 1000)
NOT_MEASURED, TRUTH_CONSTANT, PREDICTION_CONSTANT = "not measured", "truth is constant", "prediction is constant"


@dataclass(frozen=True, eq=False, repr=False)
class ExpressionScores:
    """Scores of predicted expression.

    Attributes
    ----------
    genes
        One row per gene: ``n`` spots in which it was measured, ``mean`` of the truth, ``l1``, ``rmse``, ``pearson``,
        ``spearman``, ``pearson_given``, ``ssim``, ``ceiling``, and ``undefined``: why there is no correlation
        (``"not measured"``, ``"truth is constant"``, ``"prediction is constant"``), else empty.
    spots
        One row per spot: ``l1``, ``pearson`` and ``spearman`` across genes, ``pearson_of_gene_means`` (what the mean of
        each gene has, in place of the prediction), ``spearman_top<n>`` and ``recall_top<n>``.
    summary
        One number per score, float64. Gene-wise scores, which say whether a model knows where a gene is:
        ``pearson_mean``, ``pearson_median``, ``spearman_mean``, ``spearman_median``, ``pearson_given_mean``,
        ``ssim_mean``, ``ceiling_mean``. Errors: ``l1``, ``rmse``. Spot-wise scores, means over spots:
        ``spot_pearson``, ``spot_spearman``, ``spearman_top<n>``, ``recall_top<n>``. All values as one vector:
        ``pearson_flattened``. The last two kinds are dominated by the genes' means: ``spot_pearson_of_gene_means`` and
        ``pearson_flattened_of_gene_means`` are what the means of the truth alone reach. Numbers of what is undefined:
        ``n_spots``, ``n_genes``, ``n_genes_undefined`` (not measured, or constant in the truth; in no mean),
        ``n_genes_constant`` (constant in the prediction alone; 0 in the means, as it does not say where the gene is),
        ``n_spots_undefined`` (in no mean).

    Examples
    --------
    >>> import numpy as np
    >>> from sthist import metrics
    >>> truth = np.array([[0.0, 1.0], [1.0, 3.0], [2.0, 2.0]])
    >>> metrics.expression(truth, truth)
    ExpressionScores of 2 genes in 3 spots: gene-wise Pearson 1.000 (median 1.000), L1 0.000
    """

    genes: pd.DataFrame
    spots: pd.DataFrame
    summary: pd.Series

    def __repr__(self) -> str:
        get = self.summary.__getitem__
        undefined = int(get("n_genes_undefined"))
        return (
            f"ExpressionScores of {len(self.genes)} genes in {len(self.spots)} spots: gene-wise Pearson "
            f"{get('pearson_mean'):.3f} (median {get('pearson_median'):.3f}), L1 {get('l1'):.3f}"
            f"{f'; {undefined} genes undefined' if undefined else ''}"
        )


def expression(
    truth: Any,
    prediction: Any,
    *,
    genes: Sequence[str] | None = None,
    mask: Any = None,
    groups: Any = None,
    metrics: Sequence[str] | None = None,
    training_mean: Any = None,
    n_top: Sequence[int] = N_TOP,
    per_spot: bool = False,
    centres: Any = None,
    ceiling: Any = None,
    given: Any = None,
) -> ExpressionScores:
    """Score predicted expression: by gene across spots first, by spot across genes, and all values as one.

    A spot's genes differ a thousandfold in their means, so that a correlation across genes, or of all values, is high
    for whoever knows the means and nothing of the image. Whether a model knows where a gene is, only the gene-wise
    scores say. Read in blocks: memory does not grow with the number of genes or spots.

    Parameters
    ----------
    truth, prediction
        (spots, genes), log-normalised: arrays, sparse matrices, frames, or arrays on disk. The columns of two frames
        are brought into one order.
    genes
        Names of the genes, by default those of a frame.
    mask
        Bool, (spots, genes) or (genes,): True where a gene was measured; elsewhere it enters no score.
    groups
        (spots,) slide or patient of each spot: gene-wise correlations are then taken within groups and averaged, as
        :func:`gene_pearson` does, and maps are compared slide by slide. Without, all spots are one.
    metrics
        Which of ``"spearman"``, ``"spot_pearson"``, ``"spot_spearman"``, ``"top_spearman"``, ``"recall"``, ``"ssim"``
        to compute beside errors and gene-wise Pearson; by default all, ``"ssim"`` where there are ``centres``.
    training_mean
        (genes,) mean expression in the training spots, which says what the top genes are; by default the mean of
        ``truth``.
    n_top
        Numbers of top genes, of ``spearman_top<n>`` (the correlation within the n genes of highest ``training_mean``)
        and ``recall_top<n>`` (the share of a spot's n highest genes that are among its n highest predicted ones; of
        equal values those come first that stand first). Scores of more genes than there are, are NaN.
    per_spot
        Take the top genes of ``spearman_top<n>`` of each spot from its own truth.
    centres
        (spots, 2) x, y in µm, for the structural similarity of maps: a Gaussian window of 1.5 spots, as
        :func:`skimage.metrics.structural_similarity` has it, on the spots' lattice, with the range of the gene's truth.
    ceiling
        (genes,) from :func:`noise_ceiling`, to stand beside.
    given
        (spots,) numbers, such as the logarithm of each spot's counts: ``pearson_given`` is then the correlation of each
        gene without what is linear in them, within groups (the partial correlation). Expression of few counts follows
        how many counts a spot has, for all genes alike.

    Returns
    -------
    The scores, :class:`ExpressionScores`.

    Raises
    ------
    TypeError
        If a matrix holds no numbers, or the mask no bool.
    ValueError
        If shapes or genes differ, a gene is there twice, values are NaN or infinite where they were measured, there is
        one spot only, or an argument has another length.

    Examples
    --------
    >>> import numpy as np
    >>> from sthist import metrics
    >>> rng = np.random.default_rng(0)
    >>> truth = rng.normal([1, 5, 9], 1, (50, 3))  # the genes differ in their means
    >>> scores = metrics.expression(truth, rng.normal([1, 5, 9], 1, (50, 3)), n_top=[2])
    >>> scores.summary[["pearson_mean", "pearson_flattened"]].round(2).tolist()
    [-0.09, 0.91]
    """
    pair = Pair(truth, prediction, mask, genes)
    require_spots(pair)
    wanted = _wanted(metrics, centres)
    n_top = _counts_of_top(n_top)
    rows = group_rows(groups, pair.shape[0])
    own_mean = _vector(training_mean, "training_mean", pair)
    ceiling = _vector(ceiling, "ceiling", pair)
    known = None if given is None else _given(given, pair)
    by_gene = _score_genes(pair, rows, wanted, _centres(centres, pair) if "ssim" in wanted else None, known)
    if ceiling is not None:
        by_gene["ceiling"] = ceiling
    means = by_gene["mean"].to_numpy()
    by_spot = _score_spots(pair, wanted, means, means if own_mean is None else own_mean, n_top, per_spot)
    return ExpressionScores(by_gene.drop(columns=SUMS), by_spot, _summary(by_gene, by_spot))


SUMS = ["prediction_mean", "truth_squares", "prediction_squares", "products"]
"""Columns from which the correlation of all values follows."""


def _score_genes(
    pair: Pair, rows: list[np.ndarray], wanted: set[str], centres: np.ndarray | None, given: np.ndarray | None
) -> pd.DataFrame:
    """All scores across spots, and the sums of each gene."""
    import pandas as pd

    from sthist.metrics._expression.maps import Maps

    tolerance = rounding(pair.truth), rounding(pair.prediction)
    maps = None if centres is None else Maps(centres, rows)
    blocks = []
    for _, truth, prediction, mask in pair.by_genes():
        moments = moments_of(truth, prediction, mask, 0)
        count = np.where(moments.n > 0, moments.n, np.nan)
        apart = prediction - truth
        pearson, varies = over_groups(truth, prediction, mask, rows, tolerance)
        undefined = np.select(
            [moments.n < 2, ~varies, np.isnan(pearson)], [NOT_MEASURED, TRUTH_CONSTANT, PREDICTION_CONSTANT], ""
        )
        block = {
            "n": moments.n,
            "mean": np.where(moments.n > 0, moments.truth_mean, np.nan),
            "l1": np.abs(apart).sum(axis=0) / count,
            "rmse": np.sqrt((apart**2).sum(axis=0) / count),
            "pearson": pearson,
        }
        if "spearman" in wanted:
            block["spearman"] = over_groups(truth, prediction, mask, rows, tolerance, ranks=True)[0]
        if given is not None:
            value, has_rest = over_groups(truth, prediction, mask, rows, tolerance, given=given)
            block["pearson_given"] = np.where(has_rest & np.isnan(value), 0.0, value)
        if maps is not None:
            block["ssim"] = maps.similarity(truth, prediction, mask)
        block |= {"undefined": undefined, **{name: getattr(moments, name) for name in SUMS}}
        blocks.append(pd.DataFrame(block))
    frame = pd.concat(blocks, ignore_index=True)
    frame.index = pd.RangeIndex(len(frame)) if pair.genes is None else pd.Index(pair.genes, name="gene")
    return frame


def _score_spots(
    pair: Pair, wanted: set[str], means: np.ndarray, ranking: np.ndarray, n_top: list[int], per_spot: bool
) -> pd.DataFrame:
    """All scores across genes."""
    import pandas as pd

    tolerance = rounding(pair.truth), rounding(pair.prediction)
    top = np.argsort(-np.nan_to_num(ranking, nan=-np.inf), kind="stable")
    profile = np.nan_to_num(means)
    blocks = []
    for _, truth, prediction, mask in pair.by_spots():
        n = np.full(len(truth), truth.shape[1]) if mask is None else mask.sum(axis=1)
        block = {"l1": np.abs(prediction - truth).sum(axis=1) / np.where(n > 0, n, np.nan)}
        if "spot_pearson" in wanted:
            block["pearson"] = _across(truth, prediction, mask, tolerance)
            known = np.broadcast_to(profile, truth.shape)
            known = known if mask is None else np.where(mask, known, 0.0)
            block["pearson_of_gene_means"] = _across(truth, known, mask, tolerance)
        if "spot_spearman" in wanted:
            block["spearman"] = _across(truth, prediction, mask, tolerance, ranks=True)
        own = _descending(truth, mask) if per_spot or "recall" in wanted else top[None]
        if "top_spearman" in wanted:
            order = own if per_spot else top[None]
            block |= {f"spearman_top{size}": _of_top(truth, prediction, mask, order, size, tolerance) for size in n_top}
        if "recall" in wanted:
            block |= _recall(own, _descending(prediction, mask), n, n_top)
        blocks.append(pd.DataFrame(block))
    frame = pd.concat(blocks, ignore_index=True)
    if pair.spots is not None:
        frame.index = pair.spots
    return frame


def _across(
    truth: np.ndarray,
    prediction: np.ndarray,
    mask: np.ndarray | None,
    tolerance: tuple[float, float],
    *,
    ranks: bool = False,
) -> np.ndarray:
    """Correlation of each spot; NaN where its truth is constant, 0 where only the prediction is."""
    value, _, varies = correlate(truth, prediction, mask, 1, tolerance, ranks=ranks)
    return np.where(varies & np.isnan(value), 0.0, value)


def _of_top(
    truth: np.ndarray,
    prediction: np.ndarray,
    mask: np.ndarray | None,
    order: np.ndarray,
    size: int,
    tolerance: tuple[float, float],
) -> np.ndarray:
    """Spearman within the first genes of an order, one for all spots or one of each."""
    if size > truth.shape[1]:
        return np.full(len(truth), np.nan)
    first = np.broadcast_to(order[:, :size], (len(truth), size))
    truth, prediction = (np.take_along_axis(values, first, axis=1) for values in (truth, prediction))
    mask = None if mask is None else np.take_along_axis(mask, first, axis=1)
    return _across(truth, prediction, mask, tolerance, ranks=True)


def _descending(values: np.ndarray, mask: np.ndarray | None) -> np.ndarray:
    """The genes of each spot, highest first; equal ones as they stand, those not measured last."""
    return np.argsort(-(values if mask is None else np.where(mask, values, -np.inf)), axis=1, kind="stable")


def _recall(truth: np.ndarray, prediction: np.ndarray, n: np.ndarray, n_top: list[int]) -> dict[str, np.ndarray]:
    """Share of the highest genes that are among the highest predicted ones, from the orders of both."""
    places = np.empty_like(prediction)
    np.put_along_axis(places, prediction, np.arange(prediction.shape[1])[None], axis=1)
    recall = {}
    for size in n_top:
        found = (np.take_along_axis(places, truth[:, :size], axis=1) < size).sum(axis=1) / size
        recall[f"recall_top{size}"] = np.where(n >= size, found, np.nan)
    return recall


def _summary(by_gene: pd.DataFrame, by_spot: pd.DataFrame) -> pd.Series:
    """One number per score."""
    import pandas as pd

    n = by_gene["n"].to_numpy(np.float64)
    constant = (by_gene["undefined"] == PREDICTION_CONSTANT).to_numpy()
    row = {
        "n_spots": len(by_spot),
        "n_genes": len(by_gene),
        "n_genes_undefined": int((by_gene["undefined"].isin([NOT_MEASURED, TRUTH_CONSTANT])).sum()),
        "n_genes_constant": int(constant.sum()),
        "l1": _weighted(by_gene["l1"], n),
        "rmse": np.sqrt(_weighted(by_gene["rmse"] ** 2, n)),
    }
    for name in ("pearson", "spearman"):
        if name in by_gene:
            values = by_gene[name].mask(constant, 0.0)
            row |= {f"{name}_mean": values.mean(), f"{name}_median": values.median()}
    for name in ("pearson_given", "ssim", "ceiling"):
        if name in by_gene:
            row[f"{name}_mean"] = by_gene[name].mean()
    for name in by_spot.columns.drop("l1"):
        of_top = "_top" in name
        row[name if of_top else f"spot_{name}"] = by_spot[name].mean()
    if "pearson" in by_spot:
        row["n_spots_undefined"] = int(by_spot["pearson"].isna().sum())
    return pd.Series(row | _flattened(by_gene, n), dtype=np.float64)


def _flattened(by_gene: pd.DataFrame, n: np.ndarray) -> dict[str, float]:
    """Correlation of all values as one vector, and that of the genes' means: from sums within and between genes."""
    means = [np.nan_to_num(by_gene[name].to_numpy(np.float64)) for name in ("mean", "prediction_mean")]
    truth, prediction = (mean - np.average(mean, weights=n) if n.sum() else mean for mean in means)
    between = [(n * a * b).sum() for a, b in ((truth, truth), (prediction, prediction), (truth, prediction))]
    within = [by_gene[name].sum() for name in ("truth_squares", "prediction_squares", "products")]
    first, second, product = (a + b for a, b in zip(between, within, strict=True))
    return {
        "pearson_flattened": product / np.sqrt(first * second) if first > 0 and second > 0 else np.nan,
        "pearson_flattened_of_gene_means": np.sqrt(between[0] / first) if first > 0 else np.nan,
    }


def _weighted(values: Any, weights: np.ndarray) -> float:
    values = np.asarray(values, np.float64)
    known = np.isfinite(values) & (weights > 0)
    return float(np.average(values[known], weights=weights[known])) if known.any() else np.nan


def _wanted(metrics: Sequence[str] | None, centres: Any) -> set[str]:
    names = METRICS if metrics is None else [metrics] if isinstance(metrics, str) else list(metrics)
    unknown = set(names) - set(METRICS)
    if unknown:
        raise ValueError(f"There is no metric {listed(sorted(unknown))}; there are {listed(METRICS)}.")
    if metrics is not None and "ssim" in names and centres is None:
        raise ValueError("The structural similarity of maps needs the places of the spots: give centres=.")
    return set(names) - (set() if centres is not None else {"ssim"})


def _counts_of_top(n_top: Sequence[int]) -> list[int]:
    sizes = [n_top] if isinstance(n_top, int) else list(n_top)
    if any(int(size) != size or size < 1 for size in sizes):
        raise ValueError(f"n_top is {sizes}; these are numbers of genes, from 1 on.")
    return sorted({int(size) for size in sizes})


def _vector(values: Any, name: str, pair: Pair) -> np.ndarray | None:
    """One number per gene; a series by the names of the genes."""
    if values is None:
        return None
    if hasattr(values, "reindex") and pair.genes is not None:
        missing = [gene for gene in pair.genes if gene not in values.index]
        if missing:
            raise ValueError(f"{name} lacks {len(missing)} of the genes: {listed(missing, 3)}.")
        values = values.loc[pair.genes]
    values = np.asarray(values, np.float64)
    if values.shape != (pair.shape[1],):
        raise ValueError(f"{name} has shape {values.shape}; it has one number per gene, ({pair.shape[1]},).")
    return values


def _centres(centres: Any, pair: Pair) -> np.ndarray:
    centres = np.asarray(centres, np.float64)
    if centres.shape != (pair.shape[0], 2) or not np.isfinite(centres).all():
        raise ValueError(f"centres are finite x, y of each spot, ({pair.shape[0]}, 2); these are {centres.shape}.")
    return centres


def _given(given: Any, pair: Pair) -> np.ndarray:
    given = np.asarray(given, np.float64)
    if given.shape != (pair.shape[0],) or not np.isfinite(given).all():
        raise ValueError(f"given is a finite number of each spot, ({pair.shape[0]},); it has shape {given.shape}.")
    return given
