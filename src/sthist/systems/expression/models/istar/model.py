"""iStar: expression of superpixels, learned from spots that are means over them."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, ClassVar, Literal, Self

import numpy as np

from sthist import pp, scale
from sthist._messages import plain
from sthist._sample.elements import safe_key
from sthist._settings import logger
from sthist.pp._dense_features.verb import features_made
from sthist.regression.data.features import finite_centres_of, standards
from sthist.regression.model import PREDICTED_AT_ONCE, NetworkModel, RegressionConfig, placed
from sthist.systems.expression.model import ExpressionModel
from sthist.systems.expression.models.istar.superpixels import (
    FeatureMap,
    Superpixels,
    cells_of_regions,
    regions_of,
    superpixels_of,
)
from sthist.training.embeddings import weight_hash

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from torch import nn

    from sthist.regression.data.inputs import Inputs
    from sthist.regression.data.targets import Targets
    from sthist.regression.module import RegressionTraining
    from sthist.training.rows import SampleRows

ROWS_AT_ONCE = 1024
BATCH_SHARE = 16
"""A batch has at most the training rows over this."""


@dataclass(frozen=True)
class IStarConfig(RegressionConfig):
    """Settings of :class:`IStar`, beside those of :class:`sthist.models.RegressionConfig`.

    Attributes
    ----------
    encoder
        What makes the features of superpixels, as of :func:`sthist.pp.dense_features`, where a slide has no such map;
        or the key of the images that are such maps.
    stride_um
        Side of a superpixel in µm.
    boxes
        Sides, in superpixels, of the squares over which features are averaged: each square's means are features of
        their own. Of HIPT the largest is for the region's level, and the smallest for all else, as published.
    hidden, depth
        Units of a hidden layer, and how many layers there are.
    members
        Networks that begin at other weights, of which a superpixel has the median.
    average
        What a spot is the mean of: ``"expression"``, counts per 10,000, which add up as molecules do; or ``"log"``, the
        logarithms that other models are trained on.
    dim, region_cells
        Features of a superpixel, and how many superpixels a region of the training has (median); found in training.
    """

    encoder: str = "morphology"
    stride_um: float = 8.0
    boxes: tuple[int, ...] = (4, 16)
    hidden: int = 256
    depth: int = 4
    members: int = 5
    average: Literal["expression", "log"] = "expression"
    dim: int = 0
    region_cells: float = 0.0

    AVERAGES: ClassVar[tuple[str, ...]] = ("expression", "log")

    @classmethod
    def small(cls, **changes: Any) -> Self:
        """Three networks of 64 units on superpixels of 16 µm, a fortieth of the work: for a CPU."""
        small: dict[str, Any] = {"stride_um": 16.0, "boxes": (2, 8), "hidden": 64, "members": 3}
        return cls(**(small | changes))

    def __post_init__(self) -> None:
        super().__post_init__()
        object.__setattr__(self, "boxes", tuple(int(side) for side in self.boxes))
        if not self.boxes or min(self.boxes) < 1:
            raise ValueError(f"boxes is {self.boxes}; they are sides of squares, 1 superpixel or more.")
        if self.average not in self.AVERAGES:
            raise ValueError(f"average is {self.average!r}; it is one of {list(self.AVERAGES)}.")
        if not (np.isfinite(self.stride_um) and self.stride_um > 0):
            raise ValueError(f"stride_um is {self.stride_um!r}; it is a positive number of µm.")
        if self.members < 1:
            raise ValueError(f"members is {self.members}; there is at least one network.")
        if self.context_um or self.standardize != "training" or self.smooth_um is not None:
            raise ValueError("IStar smooths features with boxes=; it has no context_um, standardize or smooth_um.")


class IStar(NetworkModel, ExpressionModel):
    """iStar (Zhang et al. 2024): expression of superpixels of 8 µm, learned from spots that are means over them.

    A network gives each superpixel of a slide its expression, from features of the slide (:func:`pp.dense_features
    <sthist.pp.dense_features>`) that are averaged over squares; a spot is the mean of the superpixels in its disc, and
    that is what is compared with what was measured. So spots that are 100 µm apart teach a map of 8 µm. Genes are
    scaled from their least to their largest value among the spots of the training, and five networks are trained, of
    which a superpixel has the median.

    :func:`sthist.tl.expression` writes the map, an image with a channel per gene; with ``regions=`` the means of
    superpixels in spots, cells, bins or tiles. In tables it is called ``"istar"`` where its features are those of HIPT,
    as published, and ``"istar-like"`` where they are any other ones.

    It is trained as published, for 400 epochs with a learning rate of 1e-4, on batches of 128 spots or a 16th of all,
    but that spots which validate say when to stop, and that counts are per 10,000. :meth:`IStarConfig.small` has
    networks for a CPU, on superpixels of 16 µm.

    Parameters
    ----------
    config
        Settings.
    weights
        Of a trained model.

    Examples
    --------
    >>> import numpy as np, sthist
    >>> cells = np.random.default_rng(0).normal(size=(60, 9, 4))  # spots, superpixels, features
    >>> model = sthist.models.IStar(sthist.models.IStarConfig(hidden=8, members=2))
    >>> model = model.fit({"cells": cells}, np.abs(cells[:, :, :2]).mean(axis=1), training={"epochs": 2})
    >>> model.predict({"cells": cells}).shape
    (60, 2)
    """

    system: ClassVar[str] = "istar"
    config_class: ClassVar[type] = IStarConfig
    config: IStarConfig
    makes_maps: ClassVar[bool] = True
    default_training: ClassVar[dict[str, Any]] = {
        "epochs": 400,
        "batch_size": 128,
        "lr": 1e-4,
        "weight_decay": 0.0,
        "optimizer": "adam",
        "patience": 20,
    }
    _range: tuple[np.ndarray, np.ndarray] | None = None  # least and largest value of each gene

    @property
    def called(self) -> str:
        """Its name in tables: not that of the publication, where the features are other ones."""
        encoder = next((str(each["encoder"]) for each in self.config.encoders), str(self.config.encoder))
        return self.system if encoder.lower().startswith("hipt") else f"{self.system}-like"

    @property
    def adds_up(self) -> bool:
        """Whether what is predicted of two regions adds up to that of both: not where means are of logarithms."""
        return self.config.average == "expression"

    @property
    def looks_around(self) -> bool:
        """Whether it takes more of a spot than its own tile: the map of its slide."""
        return True

    def collect(
        self,
        rows: SampleRows,
        *,
        embedding: str | Sequence[str] | None = None,
        image: str | None = None,
        device: str | None = None,
        progress: bool | None = None,
    ) -> Inputs:
        """Features of the superpixels of all rows, from the slides' maps, which are made where there are none."""
        finite_centres_of(rows, type(self).__name__)
        found = [
            regions_of(sample.data, adata, name, type(self).__name__)
            for sample, adata, name in zip(rows.samples, rows.tables, rows.names, strict=True)
        ]
        key = self._settle_map(rows, embedding, image, device, progress)
        maps, regions = [], []
        for number, (sample, each) in enumerate(zip(rows.samples, found, strict=True)):
            maps.append(self.feature_map(sample.data, key, f"sample {sample.name!r}"))
            mine = np.flatnonzero(rows.sample == number)
            chosen = replace(each, instances=each.instances[rows.row[mine]])
            cells, row = cells_of_regions(sample.data, chosen, maps[-1])
            regions.append((cells, mine[row]))
        pixels = superpixels_of(maps, regions, len(rows), self.config.boxes)
        self._require_features(pixels, rows, key)
        return pixels

    def feature_map(self, sdata: Any, key: str, where: str) -> FeatureMap:
        """The map of a sample, if it is such as the model was trained on; the first call settles what that is."""
        found, made, config = FeatureMap.of(sdata, key), features_made(sdata, key), self.config
        if abs(found.stride_um / config.stride_um - 1) > scale.TOLERANCE:
            raise ValueError(
                f"images[{key!r}] of {where} has cells of {found.stride_um:g} µm, and the model is for cells of "
                f"{config.stride_um:g} µm. Make such: pp.dense_features(..., stride_um={config.stride_um:g}, "
                "key_added=), or overwrite=True."
            )
        origin = {
            "key": key,
            "encoder": made.get("encoder"),
            "sha256": weight_hash(made),
            "spec": made.get("spec"),
            "n_features": int(found.values.shape[0]),
        }
        if not config.encoders:
            self.config = replace(config, encoders=(origin,), spec=config.spec or made.get("spec"))
            return found
        known = config.encoders[0]
        for what in ("encoder", "sha256", "spec", "n_features"):
            if None not in (known[what], origin[what]) and known[what] != origin[what]:
                raise ValueError(
                    f"images[{key!r}] of {where} has {what} {plain(origin[what])!r}; the model is for "
                    f"{plain(known[what])!r}. Make such a map with pp.dense_features(..., key_added=)."
                )
        return found

    def _settle_map(
        self, rows: SampleRows, embedding: Any, image: str | None, device: str | None, progress: bool | None
    ) -> str:
        """Key of the map of features, which is made of the samples that have none."""
        given = [embedding] if isinstance(embedding, str) else list(embedding or [])
        if len(given) > 1:
            raise ValueError(f"IStar takes one map of features, not {given}.")
        encoder: str = given[0] if given else self.config.encoder
        named = any(encoder in sample.data.images for sample in rows.samples)
        key = encoder if named else f"{safe_key(encoder)}_features"
        if self.config.encoders:
            known = self.config.encoders[0]
            if given and key != known["key"]:
                raise ValueError(f"This model takes images[{known['key']!r}], not {encoder!r}.")
            key, encoder = known["key"], known["encoder"] or encoder
        for sample in rows.samples:
            self.require_map(sample.data, key, encoder, image, device, progress)
        return key

    def require_map(
        self, sdata: Any, key: str, encoder: str, image: str | None, device: str | None, progress: bool | None
    ) -> None:
        """Make the map of a sample, if it has none."""
        if key in sdata.images:
            return
        logger.info("There is no images[%r]; it is made with %r.", key, encoder)
        pp.dense_features(
            sdata,
            encoder,
            stride_um=self.config.stride_um,
            image=image,
            key_added=key,
            device=device,
            progress=progress,
        )

    def _require_features(self, pixels: Superpixels, rows: SampleRows, key: str) -> None:
        """Refuse to train on rows of which nothing is known; of those that are predicted, say so."""
        none = np.flatnonzero(pixels.counts == 0)
        if not len(none):
            return
        number = rows.sample[none[0]]
        row = plain(rows.tables[number].obs_names[rows.row[none[0]]])
        problem = f"{len(none)} of {len(rows)} rows, such as {row!r} of {rows.names[number]}, lie where images[{key!r}]"
        if not self.is_fitted:
            raise ValueError(
                f"{problem} has no features: make it of all of the slide, pp.dense_features(..., tissue=False), or "
                "leave those rows out with within=."
            )
        logger.warning("%s has no features; they are not predicted.", problem)

    def settle(self, inputs: Inputs, targets: Targets, rows: np.ndarray) -> None:
        """Features of a superpixel and what standardises them, superpixels of a row, and the ranges of genes."""
        some = rows[:: max(1, len(rows) // ROWS_AT_ONCE)]
        batch = inputs.take(some)
        if "cells" not in batch or batch["cells"].ndim != 3:
            raise ValueError("IStar takes 'cells', (n, superpixels, features), and 'weight', (n, superpixels).")
        cells = batch["cells"].astype(np.float32)
        there = batch["weight"] > 0 if "weight" in batch else np.ones(cells.shape[:2], bool)
        self._standards = standards(cells[there])
        self.config = replace(self.config, dim=cells.shape[2], region_cells=float(np.median(there.sum(axis=1))))
        low, high = np.full(len(targets.names), np.inf, np.float32), np.full(len(targets.names), -np.inf, np.float32)
        for start in range(0, len(rows), ROWS_AT_ONCE):
            part = rows[start : start + ROWS_AT_ONCE]
            values, mask = targets.dense(part), targets.mask(part)
            known = np.ones(values.shape, bool) if mask is None else mask
            low = np.minimum(low, np.where(known, values, np.inf).min(axis=0))
            high = np.maximum(high, np.where(known, values, -np.inf).max(axis=0))
        low, high = (np.where(np.isfinite(each), each, 0) for each in (low, high))
        self._range = (np.expm1(low), np.expm1(high)) if self.config.average == "expression" else (low, high)
        if self.config.average == "expression" and (low < 0).any():
            gene = targets.names[int(np.flatnonzero(low < 0)[0])]
            raise ValueError(
                f"{gene!r} is less than 0 in some rows: these are no logarithms of counts, whose sums would be known. "
                "Take IStarConfig(average='log')."
            )

    def make_net(self, n_outputs: int, mean: np.ndarray, scale: np.ndarray) -> nn.Module:
        """The networks, with features standardised before them."""
        import torch

        from sthist.nets import IStar as Network

        config = self.config
        low, high = self._range or (np.zeros(n_outputs), np.ones(n_outputs))
        net = Network(
            config.dim,
            n_outputs,
            hidden=config.hidden,
            depth=config.depth,
            members=config.members,
            low=torch.from_numpy(np.asarray(low, np.float32)),
            high=torch.from_numpy(np.asarray(high, np.float32)),
            logarithms=config.average == "expression",
        )
        return self.standardized(net, config.dim)

    def unfitted(self) -> Any:
        """A copy of the same settings that was not trained, for the same map of features."""
        return type(self)(replace(super().unfitted().config, dim=0, region_cells=0.0))

    def _fit(
        self,
        inputs: Inputs,
        targets: Targets,
        rows: np.ndarray,
        watched: np.ndarray,
        options: RegressionTraining,
        where: dict[str, Any],
    ) -> None:
        options = replace(options, batch_size=max(1, min(options.batch_size, len(rows) // BATCH_SHARE)))
        super()._fit(inputs, targets, rows, watched, options, where)

    def representation(self, inputs: Inputs, rows: np.ndarray, *, device: str | None = None) -> np.ndarray:
        """Mean features of the superpixels of rows, (n, d) float32."""

        def means() -> Iterator[tuple[np.ndarray, np.ndarray]]:
            for part, batch in inputs.in_order(rows, PREDICTED_AT_ONCE):
                cells = batch["cells"].astype(np.float32)
                yield part, np.einsum("nk,nkd->nd", batch["weight"], cells) if "weight" in batch else cells.mean(axis=1)

        return placed(means(), rows)

    def amounts(self, inputs: Inputs, rows: np.ndarray) -> np.ndarray | None:
        """How many of the training's regions rows are as large as, (n,)."""
        if not isinstance(inputs, Superpixels) or not self.adds_up:
            return None
        return (inputs.counts[rows] / max(self.config.region_cells, 1.0)).astype(np.float32)

    def _predict(
        self, inputs: Inputs, rows: np.ndarray, batch_size: int, device: str | None
    ) -> Iterator[tuple[np.ndarray, np.ndarray]]:
        for part, values in super()._predict(inputs, rows, batch_size, device):
            if isinstance(inputs, Superpixels):
                values[inputs.counts[part] == 0] = np.nan
            yield part, values
