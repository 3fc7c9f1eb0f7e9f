"""Synthetic tiles held against the real ones of the same spots, in one table."""

from __future__ import annotations

from dataclasses import dataclass, field
from functools import partial
from typing import TYPE_CHECKING, Any

import numpy as np

from sthist._sample.verbs import verb
from sthist._settings import logger, settings
from sthist.benchmark._expression.gene_scores import drawn_means, interval
from sthist.benchmark._synthesis.fidelity import moved_by_dropping, predicted_expression
from sthist.benchmark._synthesis.realism import CLOSE, compared_sets, nearest, set_scores, wasserstein
from sthist.benchmark._synthesis.stain_scores import StainScores
from sthist.benchmark._synthesis.tiles import Made, Real, embedded, read_all, without_structure
from sthist.metrics import gene_pearson
from sthist.metrics._deep import cosine
from sthist.regression.data.expression import expression_targets
from sthist.regression.rows import as_trained
from sthist.systems.synthesis.model import C2L

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence
    from pathlib import Path

    import pandas as pd
    from spatialdata import SpatialData

    from sthist.encoders import Encoder

SYNTHETIC, BASELINE, REAL = "synthetic", "baseline", "real"
HIGHER, LOWER, AS_REAL = "higher", "lower", "as real"
BETTER = {"fid": LOWER, "kid": LOWER, "density": AS_REAL, "coverage": HIGHER}
SHUFFLES = 5
"""Exchanges of spots that what knows nothing of the spot is averaged over."""

LEAST_HELD_OUT = 20
"""Real tiles that the adapter was not trained on, from which on they say how close real tiles are to each other."""


@dataclass(frozen=True, eq=False)
class SynthesisScores:
    """What :func:`synthesis` found.

    Attributes
    ----------
    scores
        One row per measure: ``measure``, ``value``, its interval ``low`` to ``high``, what is reached without knowing
        anything (``null``), by real tiles (``real``) and by the tiles of ``baseline=`` (``baseline``), ``n`` that it is
        of, and which way is ``better``.
    tiles
        One row per tile: its ``kind`` (``"real"``, ``"synthetic"`` or ``"baseline"``), ``sample``, ``spot``, ``tile``
        (the ``instance_id`` of a synthetic one), ``adaptation`` (whether its spot was trained on), ``cosine``; the
        nearest tile of the adaptation, ``nearest_sample`` and ``nearest_spot``, its ``distance`` in grey levels, and
        whether that is so small that it looks like a ``copy``; ``haematoxylin``, ``haematoxylin_texture``, and where
        they can be told apart ``nuclei_per_mm2`` and ``nucleus_area_um2``.
    genes
        One row per gene: correlation of what is read from ``synthetic``, ``real`` and ``baseline`` tiles with its
        expression, and with that of other spots (``shuffled``).
    embeddings
        (tiles, d) of the rows of ``tiles``, standardised by the real ones.
    encoder
        What all tiles were looked at with.
    left_out
        Measures that there are not, and why.
    """

    scores: pd.DataFrame
    tiles: pd.DataFrame
    genes: pd.DataFrame
    embeddings: np.ndarray
    encoder: str
    left_out: dict[str, str] = field(default_factory=dict)

    def closest(self, n: int = 10) -> pd.DataFrame:
        """The synthetic tiles that are most like a tile of the adaptation: those to look at.

        Parameters
        ----------
        n
            How many.
        """
        columns = ["sample", "spot", "tile", "nearest_sample", "nearest_spot", "distance", "copy"]
        return self.tiles[self.tiles["kind"] == SYNTHETIC].nsmallest(n, "distance")[columns]


@verb
def synthesis(
    data: Any,
    synthetic: SpatialData,
    *,
    baseline: SpatialData | None = None,
    model: C2L | str | Path | None = None,
    encoder: str | Encoder | Callable[[Any], Any] = "morphology",
    table: str | None = None,
    image: str | None = None,
    dropped: Sequence[float] = (0.1, 0.3, 0.5),
    n_dropped: int = 16,
    n_neighbors: int = 5,
    max_tiles: int = 2000,
    n_boot: int = 500,
    seed: int | None = None,
    device: str | None = None,
) -> SynthesisScores:
    """Judge synthetic tiles: do they look real, are they copies, do they follow the expression that they are made of?

    Real tiles are read around the same spots, of the same size and µm per pixel, and in the same stain as the model was
    trained in. Beside each measure stands what is reached without knowing anything, and what real tiles reach.

    Parameters
    ----------
    data
        The sample with spots and H&E that the tiles were made of, or the mapping of samples. Its other spots, which
        the adapter was not trained on, say how alike real tiles are.
    synthetic
        Of :func:`sthist.tl.synthesize`.
    baseline
        Other tiles of the same spots, which are measured alike: of the central model (``guidance=0``), or of another.
    model
        The adapted model, to make tiles again without a part of the genes, and to know all spots of the adaptation.
    encoder
        What tiles are looked at with, as of :func:`sthist.encoders.get`. Values of different ones do not compare.
    table
        Key of the table with the genes, where there are several.
    image
        Key of the H&E.
    dropped
        Parts of the genes that are dropped, for ``model``.
    n_dropped
        Spots whose tiles are made again for it.
    n_neighbors
        Neighbours of density and coverage.
    max_tiles
        Synthetic tiles, and real ones that are not of the adaptation, that are looked at; drawn where there are more.
    n_boot
        Draws of the intervals.
    seed
        Of all that is drawn; ``settings.seed`` by default.
    device
        Of torch; ``settings.device`` by default.

    Returns
    -------
    Tables; ``scores`` has these measures:

    * ``cosine`` of embeddings (standardised by the real tiles) of a synthetic tile and the real one of its spot; null:
      of another spot; real: of a real tile and another crop, half a tile beside it. ``cosine_raw``: of embeddings as
      the encoder gives them, which is what is published, and near 1 between any two tiles for some.
    * ``fid``, ``kid``, ``density``, ``coverage`` (Naeem et al. 2020) of one random half of the spots, synthetic,
      against the other half, real, with the standard deviation over 10 halves as interval; real: both halves real;
      null: real tiles whose pixels lie anyhow. They depend on how many spots there are, and compare with these alone.
    * ``copies``, the part of synthetic tiles that lie as close to a tile of the adaptation as hardly any real one does
      (nearest 1 % of the tiles that it was not trained on, or of each to the other ones); ``nearest_distance``, the
      median, with the middle 95 % of tiles. Tiles are compared turned and mirrored, by grey levels of 16 x 16 pixels.
    * ``haematoxylin_shift`` and ``haematoxylin_texture_shift`` (amount in a tile, and standard deviation within it);
      up to 1 µm per pixel also ``nuclei_per_mm2_shift`` and ``nucleus_area_um2_shift``: Wasserstein distance to the
      real distribution, in its standard deviations, of halves as above. The same names with ``_pearson``: correlation
      of synthetic tiles with the real one of their spot; null and real as of ``cosine``. Classes of nuclei are not
      called: run a classifier on both and compare with :func:`sthist.pl.synthetic_composition`.
    * ``expression_pearson``: gene-wise correlation, within samples, of the expression that a tile was made of with what
      a ridge regression on real tiles of other spots reads from it; real: reads from the real tile of the spot; null:
      the expression of another spot. Spots are left out at random, so that their neighbours have been seen: ``real`` is
      no score of the regression.
    * ``genes_dropped_10`` and so on, with ``model``: cosine to the tile of all genes, of the same noise, of one that is
      made with the mean of so many percent of the genes; null: with the expression of another spot.

    Other intervals are of 95 %, for spots that are drawn anew.

    Raises
    ------
    KeyError
        If there is no such table, image or encoder.
    TypeError
        If ``synthetic`` is no SpatialData.
    ValueError
        If it is not of :func:`sthist.tl.synthesize`, or of other spots; if there are too few spots; if ``model`` is
        not the one that made the tiles.

    Examples
    --------
    >>> import sthist
    >>> sdata = sthist.datasets.toy("visium", size_um=1200)
    >>> config = sthist.models.C2LConfig(px=16, dim=8, multipliers=(1, 2))
    >>> quick = {"training": {"epochs": 1, "steps_per_epoch": 2, "batch_size": 4}, "device": "cpu", "progress": False}
    >>> central = sthist.tl.train_central(sdata, config, **quick)
    >>> local = sthist.tl.adapt_local(sdata, central, fraction=0.5, **quick)
    >>> made = sthist.tl.synthesize(sdata, local, n=2, steps=2, device="cpu", progress=False)
    >>> result = sthist.benchmark.synthesis(sdata, made, n_boot=20)
    >>> scores = result.scores.set_index("measure")
    >>> bool(scores.loc["fid", "value"] > scores.loc["fid", "real"])
    True
    """
    from sthist import encoders

    seed = settings.seed if seed is None else int(seed)
    if not all(0 < share < 1 for share in dropped):
        raise ValueError(f"dropped is {tuple(dropped)!r}; it has parts of the genes, above 0 and below 1.")
    local = None if model is None else as_trained(model, C2L, "tl.adapt_local")
    look = encoders.get(encoder, device=device)
    real, made, other, spec = read_all(
        data,
        synthetic,
        baseline,
        None if local is None else local.spots,
        table=table,
        image=image,
        max_tiles=max_tiles,
        seed=seed,
    )
    if len(real.sources) < 2 * (n_neighbors + 1):
        raise ValueError(
            f"Tiles were made of {len(real.sources)} spots whose real tile is known; sets of half of them need more "
            f"than n_neighbors={n_neighbors} each, so {2 * (n_neighbors + 1)} at least."
        )
    if local is not None:
        _require_maker(local, made)
    logger.info("%d synthetic tiles of %d spots, %d real ones.", len(made.spot), len(real.sources), len(real.tiles))
    judge = _Judge(real, made, other, look.at(spec, strict=False), spec.mpp, n_neighbors, n_boot, seed)
    judge.cosines()
    judge.copies()
    judge.stains()
    judge.sets()
    judge.expression()
    if local is not None:
        judge.dropped_genes(local, tuple(dropped), n_dropped, device)
    return judge.result()


class _Judge:
    """Measures synthetic tiles, and those of a baseline alike."""

    def __init__(
        self, real: Real, made: Made, other: Made | None, encoder: Encoder, mpp: float, k: int, n_boot: int, seed: int
    ) -> None:
        self._real, self._encoder, self._mpp, self._k = real, encoder, mpp, k
        self._made = {SYNTHETIC: made} | ({} if other is None else {BASELINE: other})
        self._n_boot, self._seed = n_boot, seed
        self._raw = {REAL: embedded(encoder, real.tiles)}
        self._raw |= {name: embedded(encoder, each.tiles) for name, each in self._made.items()}
        self._mean, spread = self._raw[REAL].mean(axis=0), self._raw[REAL].std(axis=0)
        self._scale = 1 / np.where(spread > 0, spread, 1)
        self._features = {name: self._standard(each) for name, each in self._raw.items()}
        self._crops = embedded(encoder, real.crops)
        self._others = [real.others(seed + i) for i in range(SHUFFLES)]
        self._rows: list[dict[str, Any]] = []
        self._columns: dict[str, dict[str, np.ndarray]] = {name: {} for name in self._raw}
        self._genes: pd.DataFrame | None = None
        self._left_out: dict[str, str] = {}
        self._measured: tuple[str, ...] = ()  # columns of haematoxylin and nuclei

    def cosines(self) -> None:
        """Cosine of each tile to the real one of its spot."""
        real = self._real
        for measure, features, crops in (
            ("cosine", self._features, self._standard(self._crops)),
            ("cosine_raw", self._raw, self._crops),
        ):
            known = features[REAL]
            found = {name: cosine(features[name], known[each.spot]) for name, each in self._made.items()}
            spot = self._made[SYNTHETIC].spot
            null = [
                np.nanmean(cosine(features[SYNTHETIC][other[spot] >= 0], known[other[spot]][other[spot] >= 0]))
                for other in self._others
                if (other[spot] >= 0).any()
            ]
            ceiling = cosine(crops, known[real.sources])[real.has_crop]
            self._add(
                measure,
                np.nanmean(found[SYNTHETIC]),
                self._interval(found[SYNTHETIC], spot),
                null=np.mean(null) if null else np.nan,
                real=np.nanmean(ceiling) if len(ceiling) else np.nan,
                baseline=np.nanmean(found[BASELINE]) if BASELINE in found else np.nan,
            )
            if measure == "cosine":
                for name, each in found.items():
                    self._columns[name]["cosine"] = each

    def copies(self) -> None:
        """How close tiles are to those that were trained on."""
        real = self._real
        training = np.flatnonzero(real.trained)
        rest = np.flatnonzero(~real.trained)
        of_real, which = (np.full(len(real.tiles), np.nan), np.full(len(real.tiles), -1))
        of_real[training], which[training] = nearest(real.tiles[training], real.tiles[training], same=True)
        if len(rest):
            of_real[rest], which[rest] = nearest(real.tiles[rest], real.tiles[training])
        reference = of_real[rest] if len(rest) >= LEAST_HELD_OUT else of_real[training]
        limit = np.quantile(reference, CLOSE, method="lower")
        distance = {REAL: of_real}
        places = {REAL: which}
        for name, made in self._made.items():
            distance[name], places[name] = nearest(made.tiles, real.tiles[training])
        names = np.array(real.names, dtype=object)[training]
        for name, values in distance.items():
            self._columns[name] |= {
                "nearest_sample": names[places[name], 0],
                "nearest_spot": names[places[name], 1],
                "distance": values,
                "copy": (values <= limit) & (name != REAL),
            }
        close = {name: (values <= limit).astype(float) for name, values in distance.items()}
        of_baseline = BASELINE in distance
        self._add(
            "copies",
            close[SYNTHETIC].mean(),
            self._interval(close[SYNTHETIC], self._made[SYNTHETIC].spot),
            real=(reference <= limit).mean(),
            baseline=close[BASELINE].mean() if of_baseline else np.nan,
            better=AS_REAL,
        )
        self._add(
            "nearest_distance",
            np.median(distance[SYNTHETIC]),
            tuple(np.quantile(distance[SYNTHETIC], [0.025, 0.975])),
            real=np.median(reference),
            baseline=np.median(distance[BASELINE]) if of_baseline else np.nan,
            better=AS_REAL,
        )

    def stains(self) -> None:
        """Haematoxylin and nuclei of all tiles, and whether they are those of the real tile of the spot."""
        real, made = self._real, self._made[SYNTHETIC]
        try:
            measure = StainScores(real.tiles, self._mpp)
        except ValueError as error:
            self._left_out["haematoxylin and nuclei"] = str(error)
            return
        if not measure.fine:
            self._left_out["nuclei"] = f"they cannot be told apart at {self._mpp:.3g} µm per pixel"
        for name, each in self._made.items():
            self._columns[name] |= measure(each.tiles)
        self._columns[REAL] |= measure(real.tiles)
        of_crops = measure(real.crops)
        self._measured = tuple(of_crops)
        truth = self._columns[REAL]
        for column in of_crops:

            def follows(values: np.ndarray, spot: np.ndarray, wanted: np.ndarray, column: str = column) -> float:
                return self._correlation(truth[column][wanted], values, real.sample[spot])

            values = self._columns[SYNTHETIC][column]
            null = []
            for other in self._others:
                there = other[made.spot] >= 0
                null.append(follows(values[there], made.spot[there], other[made.spot][there]))
            other_tiles = self._made.get(BASELINE)
            kept = real.sources[real.has_crop]
            self._add(
                f"{column}_pearson",
                follows(values, made.spot, made.spot),
                self._drawn(truth[column][made.spot][:, None], values[:, None], made.spot),
                null=np.nanmean(null) if np.isfinite(null).any() else np.nan,
                real=follows(of_crops[column][real.has_crop], kept, kept) if len(kept) > 1 else np.nan,
                baseline=np.nan
                if other_tiles is None
                else follows(self._columns[BASELINE][column], other_tiles.spot, other_tiles.spot),
            )

    def sets(self) -> None:
        """FID, KID, density, coverage, and how far the distributions of haematoxylin and nuclei lie apart."""
        real = self._real
        place = np.full(len(real.tiles), -1)
        place[real.sources] = np.arange(len(real.sources))
        features = self._features[REAL][real.sources]
        anyhow = self._standard(embedded(self._encoder, without_structure(real.tiles[real.sources], self._seed)))
        one_each = np.arange(len(real.sources))
        others = {name: (self._features[name], place[each.spot]) for name, each in self._made.items()}
        others |= {REAL: (features, one_each), "null": (anyhow, one_each)}
        self._add_sets(compared_sets(features, others, partial(set_scores, k=self._k), self._seed))
        for column in self._measured:
            values = self._columns[REAL][column][real.sources]
            unit = float(np.nanstd(values)) if np.isfinite(values).any() else 0.0
            others = {name: (self._columns[name][column], place[each.spot]) for name, each in self._made.items()}
            others[REAL] = values, one_each

            def score(one: np.ndarray, other: np.ndarray, unit: float = unit, column: str = column) -> dict[str, float]:
                return {f"{column}_shift": wasserstein(one, other, unit)}

            self._add_sets(compared_sets(values, others, score, self._seed))

    def expression(self) -> None:
        """What a regression on real tiles reads from the synthetic ones."""
        import pandas as pd

        real, made = self._real, self._made[SYNTHETIC]
        genes = [str(gene) for gene in made.table.var_names]
        targets = expression_targets(real.rows, genes, may_lack=True)
        measured = targets.measured.all(axis=0)
        truth = targets.dense(np.arange(len(real.rows)))[:, measured].astype(np.float64)
        varies = truth[real.sources].std(axis=0) > 0
        truth, genes = truth[:, varies], list(np.array(genes)[measured][varies])
        if not genes:
            self._left_out["expression_pearson"] = "no gene that tiles were made of varies over the spots"
            return
        features = {name: (self._features[name], each.spot) for name, each in self._made.items()}
        of_real, of_made = predicted_expression(self._features[REAL], truth, features, self._seed)
        sample = real.sample
        by_gene = {
            name: _correlations(truth[each.spot], of_made[name], sample[each.spot]) for name, each in self._made.items()
        }
        by_gene[REAL] = _correlations(truth[real.sources], of_real[real.sources], sample[real.sources])
        null = []
        for other in self._others:
            there = other[made.spot] >= 0
            wanted = truth[other[made.spot][there]]
            null.append(_correlations(wanted, of_made[SYNTHETIC][there], sample[made.spot][there]))
        by_gene["shuffled"] = np.mean(null, axis=0)
        self._genes = pd.DataFrame({"gene": genes, **by_gene})
        self._add(
            "expression_pearson",
            np.nanmean(by_gene[SYNTHETIC]),
            self._drawn(truth[made.spot], of_made[SYNTHETIC], made.spot),
            null=np.nanmean(by_gene["shuffled"]),
            real=np.nanmean(by_gene[REAL]),
            baseline=np.nanmean(by_gene[BASELINE]) if BASELINE in by_gene else np.nan,
        )

    def dropped_genes(self, model: C2L, shares: tuple[float, ...], n: int, device: str | None) -> None:
        """How far tiles move that are made without a part of the genes."""

        def embed(tiles: np.ndarray) -> np.ndarray:
            return self._standard(embedded(self._encoder, tiles))

        arguments = (shares, n, self._seed, device)
        moved, exchanged = moved_by_dropping(model, self._made[SYNTHETIC], self._real, embed, *arguments)
        for share, each in moved.items():
            limits = self._interval(each, np.arange(len(each)))
            null = float(np.mean(exchanged))
            self._add(f"genes_dropped_{100 * share:g}", np.mean(each), limits, null=null, n=len(each))

    def result(self) -> SynthesisScores:
        """All that was found."""
        import pandas as pd

        real = self._real
        names = np.array(real.names, dtype=object)
        frames = []
        for name, columns in self._columns.items():
            made = self._made.get(name)
            spot = np.arange(len(real.tiles)) if made is None else made.spot
            facts = {
                "kind": name,
                "sample": names[spot, 0],
                "spot": names[spot, 1],
                "tile": -1 if made is None else made.table.obs["instance_id"].to_numpy(),
                "adaptation": real.trained[spot],
            }
            frames.append(pd.DataFrame(facts | columns))
        for what, why in self._left_out.items():
            logger.info("Not measured: %s; %s.", what, why)
        return SynthesisScores(
            scores=pd.DataFrame(self._rows),
            tiles=pd.concat(frames, ignore_index=True),
            genes=pd.DataFrame(columns=["gene"]) if self._genes is None else self._genes,
            embeddings=np.concatenate([self._features[name] for name in self._columns]).astype(np.float32),
            encoder=self._encoder.name,
            left_out=self._left_out,
        )

    def _standard(self, features: np.ndarray) -> np.ndarray:
        return np.asarray((features - self._mean) * self._scale)

    def _add(
        self,
        measure: str,
        value: Any,
        limits: tuple[float, ...],
        *,
        null: Any = np.nan,
        real: Any = np.nan,
        baseline: Any = np.nan,
        better: str = HIGHER,
        n: int | None = None,
    ) -> None:
        row = {"value": value, "low": limits[0], "high": limits[1], "null": null, "real": real, "baseline": baseline}
        n = len(self._made[SYNTHETIC].spot) if n is None else n
        self._rows.append({"measure": measure, **{name: float(each) for name, each in row.items()}, "n": n})
        self._rows[-1]["better"] = better

    def _add_sets(self, found: dict[str, dict[str, np.ndarray]]) -> None:
        """Means over halves, with their standard deviation as interval."""
        for measure, values in found[SYNTHETIC].items():
            means = {name: each[measure].mean() for name, each in found.items()}
            spread = values.std(ddof=1)
            self._add(
                measure,
                means[SYNTHETIC],
                (means[SYNTHETIC] - spread, means[SYNTHETIC] + spread),
                null=means.get("null", np.nan),
                real=means[REAL],
                baseline=means.get(BASELINE, np.nan),
                better=BETTER.get(measure, LOWER),
                n=len(self._real.sources) // 2,
            )

    def _interval(self, values: np.ndarray, spot: np.ndarray) -> tuple[float, float]:
        """Of a mean over tiles, when spots are drawn anew."""
        _, unit = np.unique(spot, return_inverse=True)
        known = np.isfinite(values)
        total = np.bincount(unit, np.where(known, values, 0))
        number = np.bincount(unit, known)
        n, rng = len(total), np.random.default_rng([self._seed, 4])
        draws = np.array([np.bincount(rng.integers(n, size=n), minlength=n) for _ in range(self._n_boot)])
        if not len(draws):
            return np.nan, np.nan
        with np.errstate(invalid="ignore"):
            return interval((draws @ total) / (draws @ number))

    def _drawn(self, truth: np.ndarray, values: np.ndarray, spot: np.ndarray) -> tuple[float, float]:
        """Of a mean correlation, when spots are drawn anew."""
        known = np.isfinite(truth).all(axis=1) & np.isfinite(values).all(axis=1)
        if not self._n_boot or known.sum() < 2:
            return np.nan, np.nan
        _, unit = np.unique(spot[known], return_inverse=True)
        sample = self._real.sample[spot[known]]
        return interval(drawn_means(truth[known], values[known], None, sample, unit, self._n_boot, self._seed))

    def _correlation(self, truth: np.ndarray, values: np.ndarray, sample: np.ndarray) -> float:
        known = np.isfinite(truth) & np.isfinite(values)
        if known.sum() < 2:
            return np.nan
        return float(_correlations(truth[known, None], values[known, None], sample[known])[0])


def _correlations(truth: np.ndarray, values: np.ndarray, sample: np.ndarray) -> np.ndarray:
    """Correlation of each column within samples; 0 where what was read is constant."""
    found = gene_pearson(truth, values, groups=sample)
    constant = ~np.isfinite(found) & (values.std(axis=0) <= 1e-12) & (truth.std(axis=0) > 0)
    return np.where(constant, 0.0, found)


def _require_maker(model: C2L, made: Made) -> None:
    """Refuse a model that did not make the tiles."""
    if model.adapter is None:
        raise ValueError("model= is a central model, which knows no genes: pass the one of tl.adapt_local.")
    known = made.facts.get("adapter_sha256")
    if known != model.adapter.sha256 or made.facts.get("central_sha256") != model.sha256:
        raise ValueError(
            f"model= did not make these tiles: they are of an adapter with checksum {str(known)[:12]}…, and this one "
            f"has {model.adapter.sha256[:12]}…."
        )
