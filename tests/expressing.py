"""Slides whose expression is a known function of how the tissue looks, for tests of what predicts it."""

from __future__ import annotations

import numpy as np

import sthist

GENES = ("HEM", "EOS", "BOTH", "LESS", "NOISE")
WEIGHTS = np.array([[2.0, 0.0], [0.0, 2.0], [1.5, 1.5], [-2.0, 1.0], [0.0, 0.0]])
"""Of haematoxylin and eosin in each gene; the last is noise alone."""

STAINS = np.array([[0.65, 0.70, 0.29], [0.07, 0.99, 0.11]])
"""Haematoxylin and eosin, as optical densities of red, green and blue."""

TILE_UM = 32.0
SPEC = sthist.tiles.TileSpec(TILE_UM, 32)


def planted_slide(seed: int = 0, side: int = 12, noise: float = 0.1, patient: str | None = None):
    """A slide of ``side`` x ``side`` spots, each on a patch with its own amounts of both stains.

    Log expression of a gene is 3, its weights times the amounts, and noise; ``obsm["amounts"]`` has the amounts.
    """
    import anndata as ad
    import pandas as pd
    from spatialdata import SpatialData
    from spatialdata.models import Image2DModel, ShapesModel, TableModel
    from spatialdata.transformations import Identity

    rng = np.random.default_rng(seed)
    px = int(TILE_UM)
    amounts = rng.uniform(0.1, 1.0, (side * side, 2))
    grain = rng.uniform(0.7, 1.3, (side * px, side * px, 1))
    map_of = amounts.reshape(side, side, 2).repeat(px, axis=0).repeat(px, axis=1) * grain
    rgb = sthist.stains.to_rgb(map_of, STAINS / np.linalg.norm(STAINS, axis=1, keepdims=True))
    y, x = np.divmod(np.arange(side * side), side)
    centres = (np.c_[x, y] + 0.5) * TILE_UM
    expression = 3 + amounts @ WEIGHTS.T + rng.normal(0, noise, (len(amounts), len(GENES)))
    names = [f"spot{number}" for number in range(len(amounts))]
    obs = pd.DataFrame(
        {"region": pd.Categorical(["spots"] * len(names)), "instance_id": np.arange(len(names))}, index=names
    )
    if patient is not None:
        obs["patient"] = patient
    obs["array_row"], obs["array_col"] = y, x
    table = ad.AnnData(
        expression.astype(np.float32).clip(0), obs=obs, var=pd.DataFrame(index=list(GENES)), obsm={"spatial": centres}
    )
    table.obsm["amounts"] = amounts
    um = {"um": Identity(), "global": Identity()}
    sdata = SpatialData(
        images={"he": Image2DModel.parse(rgb.transpose(2, 0, 1), dims=("c", "y", "x"), transformations=um)},
        shapes={"spots": ShapesModel.parse(centres, geometry=0, radius=TILE_UM / 3, transformations=um)},
        tables={"table": TableModel.parse(table, region="spots", region_key="region", instance_key="instance_id")},
    )
    sthist.pp.set_scale(sdata, "he", mpp=1.0, overwrite=True)
    return sdata
