"""Maps of features that a backbone which is not trained has of tiles: made once, and kept on disk for each epoch."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any
from weakref import WeakKeyDictionary

import numpy as np

from sthist._scratch import array_on_disk
from sthist._settings import logger, settings
from sthist.regression.backbones import at_once
from sthist.regression.data.inputs import Inputs

if TYPE_CHECKING:
    from collections.abc import Callable

    from torch import nn

    from sthist.regression.data.inputs import Batch

READ_AT_ONCE = 256


@dataclass(eq=False)
class Kept:
    """Maps (n, c, h, w) float16, as half of 32 bits is enough for features, and which rows have theirs."""

    maps: np.ndarray
    made: np.ndarray  # (n,) bool

    @classmethod
    def of(cls, shape: tuple[int, ...]) -> Kept:
        """Room for maps in the scratch folder, which is free again when nobody has them any more."""
        advice = ", or train with frozen=False"
        maps = array_on_disk(shape, np.float16, f"Feature maps of {shape[0]} tiles", advice)
        return cls(maps, np.zeros(shape[0], bool))


_kept: WeakKeyDictionary[Inputs, dict[Any, Kept]] = WeakKeyDictionary()
"""Of inputs that are still there, by backbone: the folds of one training share them."""


@dataclass(frozen=True, eq=False)
class FeatureMaps(Inputs):
    """Rows of inputs with their maps, ``"features"``, and their tiles where those are compared with something."""

    inputs: Inputs
    kept: Kept = field(repr=False)
    tiles: bool

    def __len__(self) -> int:
        return len(self.inputs)

    def take(self, rows: np.ndarray) -> Batch:
        """The maps of some rows, neither turned nor mirrored."""
        return {**(self.inputs.take(rows) if self.tiles else {}), "features": self.kept.maps[rows]}


def feature_maps(
    inputs: Inputs,
    rows: np.ndarray,
    trunk: nn.Module,
    transform: Callable[[Any], Any],
    key: Any,
    *,
    tiles: bool,
    device: str | None,
) -> FeatureMaps:
    """Inputs with the maps that a trunk, which ``key`` stands for, has of some rows; those that are known are kept."""
    import torch

    where = torch.device(settings.torch_device(device))
    trunk = trunk.to(where).eval()
    kept = _kept.setdefault(inputs, {})

    def maps_of(batch: Batch) -> np.ndarray:
        found = trunk(transform(torch.from_numpy(np.ascontiguousarray(batch["tiles"])).to(where)))
        return found.clamp(-65504, 65504).half().cpu().numpy()  # type: ignore[no-any-return]

    with torch.inference_mode():
        if key not in kept:
            kept[key] = Kept.of((len(inputs), *maps_of(inputs.take(rows[:1])).shape[1:]))
        missing = rows[~kept[key].made[rows]]
        if len(missing):
            logger.info("Feature maps of %d tiles are made.", len(missing))
        for part, batch in inputs.in_order(missing, at_once(READ_AT_ONCE, device)):
            kept[key].maps[part] = maps_of(batch)
            kept[key].made[part] = True
    trunk.cpu()
    return FeatureMaps(inputs, kept[key], tiles)
