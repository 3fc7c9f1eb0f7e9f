"""Predictors of one division of spots: what each arm is trained on, for exactly as many steps as the others."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import numpy as np

from sthist.encoders import get as get_encoder
from sthist.regression.backbones import encoder_name
from sthist.regression.collect import DEFAULT_ENCODER, EmbeddingModel, TileModel
from sthist.regression.data.inputs import Arrays, Inputs
from sthist.regression.data.targets import Targets
from sthist.regression.model import NetworkModel
from sthist.training.batches import augmented

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from sthist.encoders import Encoder
    from sthist.regression.data.inputs import Batch
    from sthist.regression.module import RegressionTraining
    from sthist.systems.expression.model import ExpressionModel
    from sthist.tiles import TileSpec

REAL, EQUAL_STEPS, AUGMENTED = "real", "real, equal steps", "real, augmented"
SYNTHETIC, BOTH, ALL = "synthetic", "real + synthetic", "real + synthetic, augmented"
SHUFFLED, MEAN = "real + shuffled pairs", "training mean"

CONTROLS = (REAL, EQUAL_STEPS, AUGMENTED)
"""What real and synthetic tiles together have to be better than."""

EMBEDDED_AT_ONCE = 256

STAINS = np.array([[0.65, 0.70, 0.29], [0.07, 0.99, 0.11]])
"""Optical density of haematoxylin and eosin in red, green and blue (Ruifrok and Johnston 2001)."""

STAIN, COLOUR, HUE = 0.15, 0.1, 0.02
"""Of ordinary augmentation: standard deviation of the factors of both stains; largest change of brightness, contrast
and saturation, and of the hue as a part of the circle."""


@dataclass(frozen=True, eq=False)
class Pool:
    """What arms are made of: rows of the training spots, then synthetic ones, augmented ones, and shuffled pairs.

    Of the last three, each spot has one row for each replicate, all spots for the first before any for the second, so
    that the rows of a smaller ratio are the first of those of a larger one.
    """

    arrays: dict[str, np.ndarray]  # tiles or features: of spots, synthetic, augmented
    index: np.ndarray  # (rows,) which of them a row has
    targets: Targets
    n: int  # training spots
    replicates: int

    def rows(self, ratio: int, *kinds: str) -> np.ndarray:
        """Rows of some kinds, with so many of each spot."""
        starts = {
            kind: self.n + i * self.n * self.replicates for i, kind in enumerate((SYNTHETIC, AUGMENTED, SHUFFLED))
        }
        parts = [
            np.arange(self.n) if kind == REAL else np.arange(starts[kind], starts[kind] + self.n * ratio)
            for kind in kinds
        ]
        return np.concatenate(parts)


@dataclass(frozen=True)
class Arm:
    """One way to train."""

    name: str
    ratio: int
    kinds: tuple[str, ...]  # of rows
    n_steps_of: int  # the ratio whose number of steps it has


def arms_of(ratios: Sequence[int]) -> list[Arm]:
    """All arms but for what is not trained."""
    more = [ratio for ratio in ratios if ratio]
    last = more[-1]
    return [
        Arm(REAL, 0, (REAL,), 0),
        Arm(BOTH, 0, (REAL,), 0),
        *(Arm(EQUAL_STEPS, ratio, (REAL,), ratio) for ratio in more),
        *(Arm(AUGMENTED, ratio, (REAL, AUGMENTED), ratio) for ratio in more),
        *(Arm(SYNTHETIC, ratio, (SYNTHETIC,), ratio) for ratio in more),
        *(Arm(BOTH, ratio, (REAL, SYNTHETIC), ratio) for ratio in more),
        Arm(ALL, last, (REAL, SYNTHETIC, AUGMENTED), last),
        Arm(SHUFFLED, last, (REAL, SHUFFLED), last),
    ]


class Drawn(Inputs):
    """Rows of arrays, and epochs of just so many whole batches: each row is in as many, give or take one."""

    def __init__(self, arrays: dict[str, np.ndarray], index: np.ndarray, n_batches: int) -> None:
        self.arrays, self.index, self.n_batches = arrays, index, n_batches
        self.n_given = 0

    def __len__(self) -> int:
        return len(self.index)

    def take(self, rows: np.ndarray) -> Batch:
        """The arrays of some rows."""
        return {name: values[self.index[rows]] for name, values in self.arrays.items()}

    def shuffled(self, rows: np.ndarray, batch_size: int, seed: int, epoch: int) -> Iterator[tuple[np.ndarray, Batch]]:
        """As many batches as were asked for, in an order that is a function of rows, seed and epoch."""
        rng = np.random.default_rng([seed, epoch])
        rounds = -(-self.n_batches * batch_size // len(rows))
        order = np.concatenate([rng.permutation(rows) for _ in range(rounds)])
        for i in range(self.n_batches):
            part = order[i * batch_size : (i + 1) * batch_size]
            self.n_given += 1
            yield part, self.take(part)


@dataclass(frozen=True, eq=False)
class Predictor:
    """What is trained in each arm, and how."""

    model: ExpressionModel
    options: RegressionTraining
    encoder: Encoder | None  # for models of embeddings
    device: str | None

    def arrays(self, tiles: np.ndarray) -> dict[str, np.ndarray]:
        """What the model takes of tiles."""
        if self.encoder is None:
            return {"tiles": tiles}
        parts = [self.encoder.embed(tiles[i : i + EMBEDDED_AT_ONCE]) for i in range(0, len(tiles), EMBEDDED_AT_ONCE)]
        return {"spot": np.concatenate(parts).astype(np.float32)}

    @property
    def makes_steps(self) -> bool:
        """Whether it is trained in steps, and not solved."""
        return isinstance(self.model, NetworkModel)

    def fit(self, pool: Pool, arm: Arm, seed: int) -> tuple[ExpressionModel, int]:
        """A model that is trained as an arm says, and how often its weights were changed."""
        batch_size = min(self.options.batch_size, pool.n)
        options = replace(self.options, seed=seed, batch_size=batch_size)
        n_batches = -(-pool.n * (1 + arm.n_steps_of) // batch_size)
        inputs = Drawn(pool.arrays, pool.index, n_batches)
        model = type(self.model)(self.model.config)
        rows = pool.rows(arm.ratio, *arm.kinds)
        model.fit(inputs, pool.targets, rows=rows, training=options, device=self.device, progress=False)
        if not self.makes_steps:
            return model, 0
        if inputs.n_given != options.epochs * n_batches:
            raise ValueError(
                f"{type(model).__name__} has drawn {inputs.n_given} batches in {options.epochs} epochs of {n_batches}: "
                "it makes batches of its own, and cannot be held to equal steps. Take another model, or settings."
            )
        return model, options.epochs * -(-n_batches // options.accumulate)

    def predict(self, model: ExpressionModel, arrays: dict[str, np.ndarray]) -> np.ndarray:
        """What a model says of rows of arrays, (n, genes)."""
        return model.predict(Arrays(arrays), device=self.device)


def as_predictor(
    model: ExpressionModel, options: RegressionTraining, embedding: Any, spec: TileSpec, device: str | None
) -> Predictor:
    """A model that is made ready for tiles of a size; refuses one that looks at more than a tile."""
    config = model.config
    if model.looks_around or config.smooth_um is not None or config.standardize != "training":
        raise ValueError(
            f"{type(model).__name__}, as it is set, looks at what is around a spot, at its place or at its slide, and "
            "synthetic tiles have none of them: take a model of tiles or embeddings alone, such as 'resnet' or 'mlp'."
        )
    frozen = bool(getattr(config, "frozen", False))
    if isinstance(model, TileModel) and not frozen and embedding is None:
        if model.spec is not None and model.spec != spec:
            raise ValueError(
                f"The model is for tiles of {model.spec}, and the central model makes {spec}: all tiles are read as "
                f"the synthetic ones are. Leave spec= out, or give {spec}."
            )
        model = type(model)(replace(config, spec=spec.to_dict()))
        return Predictor(model, options, None, device)
    if not isinstance(model, EmbeddingModel):
        raise ValueError(f"{type(model).__name__} reads tiles; it takes no embedding=.")
    own = [each.removeprefix("X_") for each in config.embeddings]
    if len(own) > 1:
        raise ValueError(f"The model takes the embeddings {own}; here one encoder embeds all tiles: embedding=.")
    if frozen and embedding is None and not own:
        own = [encoder_name(config.backbone)]
    encoder = get_encoder(embedding or (own[0] if own else DEFAULT_ENCODER), device=device)
    return Predictor(model, options, encoder, device)


def pool_of(
    predictor: Predictor,
    tiles: np.ndarray,
    synthetic: np.ndarray,
    expression: np.ndarray,
    genes: Sequence[str],
    seed: int,
) -> Pool:
    """The rows of a division: of training tiles (n, ...), and of synthetic ones, replicate after replicate."""
    n, replicates = len(tiles), len(synthetic) // len(tiles)
    arrays = predictor.arrays(np.concatenate([tiles, synthetic, ordinary(np.tile(tiles, (replicates, 1, 1, 1)), seed)]))
    many = np.arange(n * replicates)
    index = np.concatenate([np.arange(n), n + many, n + len(many) + many, n + many])
    dealt = np.random.default_rng([seed, 30]).permutation(len(many))
    copies = np.tile(expression, (replicates, 1))
    values = np.concatenate([expression, copies, copies, copies[dealt]]).astype(np.float32)
    measured = np.ones((1, len(genes)), bool)
    return Pool(arrays, index, Targets(tuple(genes), values, np.zeros(len(values), int), measured), n, replicates)


def ordinary(tiles: np.ndarray, seed: int) -> np.ndarray:
    """Tiles turned and mirrored, and with their stains and colours changed a little."""
    import torch

    from sthist.nets import CellAugmentation, augment_cells, draw_views

    how = CellAugmentation(
        jitter=1.0,
        brightness=COLOUR,
        contrast=COLOUR,
        saturation=COLOUR,
        hue=HUE,
        rotate=False,
        least_area=1.0,
        most_ratio=1.0,
        blur=0.0,
        erase=0.0,
        stain=STAIN,
    )
    turned = augmented(tiles, np.arange(len(tiles)), seed, 0)
    drawn = torch.from_numpy(draw_views(len(tiles), seed, 0, 1)[:, 0])
    stains = STAINS / np.linalg.norm(STAINS, axis=1, keepdims=True)
    changed = np.empty_like(tiles)
    for start in range(0, len(tiles), EMBEDDED_AT_ONCE):
        part = slice(start, start + EMBEDDED_AT_ONCE)
        views = augment_cells(torch.from_numpy(turned[part]), drawn[part], tiles.shape[1], how, stains=stains)
        changed[part] = (views.clamp(0, 1) * 255).round().to(torch.uint8).permute(0, 2, 3, 1).numpy()
    return changed
