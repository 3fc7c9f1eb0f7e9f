"""Models that need no training, so that what scores have to be is known."""

from __future__ import annotations

import functools
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np
import pytest

import sthist
from sthist.systems.virtual_he import train
from sthist.systems.virtual_he.generator import PreparedSection, VirtualStainModel
from sthist.tiles import TileReader, TileSpec


@dataclass(frozen=True)
class KnowingConfig:
    """Tiles of the model, and the image that it has seen."""

    spec: TileSpec
    image: str = "he"


class Knowing(VirtualStainModel):
    """Shows the real H&E, or what is made of it."""

    system: ClassVar[str] = "knowing"
    config_class: ClassVar[type] = KnowingConfig
    paint: Any = staticmethod(lambda tiles: tiles)
    trained = 0

    def mpp(self, stain: Any) -> float:
        return self.config.spec.mpp

    def prepare(
        self, elements: Any, stain: Any, mpp: float, *, allow_upsampling: bool, seed: int | None = None
    ) -> PreparedSection:
        assert mpp == self.config.spec.mpp
        reader = TileReader(
            elements.sdata, self.config.image, self.config.spec, fill=255, allow_upsampling=allow_upsampling
        )
        return PreparedSection([reader], self.paint, {}, overlap=0.0, concurrent=True)


@dataclass
class Call:
    """What a trainer was called with."""

    parts: dict[str, Any]
    spec: dict[str, Any]
    seed: int
    validation: float
    arguments: dict[str, Any]


class Trainer:
    """Stands in for the training verb: records its calls, and gives a model that shows the real H&E."""

    def __init__(self) -> None:
        self.calls: list[Call] = []
        self.paint: Any = Knowing.paint

    def __call__(self, data: Any, model: Any, *, regions: str, split: Any, training: Any, **arguments: Any) -> Knowing:
        tables = {name: sdata.tables[f"{regions}_table"] for name, sdata in data.items()}
        seed = training["seed"]
        arguments |= {name: value for name, value in training.items() if name != "seed"}
        spec = next(iter(tables.values())).uns["tile_spec"]
        parts = {name: table.obs.set_index("instance_id")[split.by].to_dict() for name, table in tables.items()}
        self.calls.append(Call(parts, spec, seed, split.validation, arguments))
        made = model if isinstance(model, Knowing) else Knowing(KnowingConfig(TileSpec(**spec)))
        made.paint = self.paint
        made.trained += 1
        return made


@pytest.fixture
def trainer(monkeypatch):
    """The trainer that :mod:`sthist.benchmark` calls."""
    made = Trainer()
    verb = functools.wraps(train.train_virtual_he)(lambda *args, **kwargs: made(*args, **kwargs))
    monkeypatch.setattr(train, "train_virtual_he", verb)
    return made


@pytest.fixture
def tiled(toy):
    """The toy section with 60 small tiles around cells."""
    sthist.pp.tiles(toy, size_um=32, px=64, sampling="fps", n_tiles=60)
    return toy


class MeanColour(sthist.encoders.Encoder):
    """Three numbers per tile, in no time."""

    name = "mean-colour"
    provenance: ClassVar[dict] = {}

    def embed(self, tiles):
        return tiles.mean((1, 2), dtype=np.float64).astype(np.float32)


@pytest.fixture
def mean_colour():
    return MeanColour()


@pytest.fixture
def knowing():
    """Makes a model that shows the real H&E in tiles of a spec."""
    return lambda spec: Knowing(KnowingConfig(spec))
