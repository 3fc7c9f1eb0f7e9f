"""Slides whose expression is known at 8 µm, while their spots are 55 µm wide and 100 µm apart."""

from __future__ import annotations

import numpy as np

import sthist

CELL_UM, RADIUS_UM, PITCH_UM = 8.0, 27.5, 100.0
GENES = ("HEM", "EOS", "BOTH", "FLAT")
WEIGHTS = np.array([[20.0, 0.0], [0.0, 20.0], [8.0, 8.0], [0.0, 0.0]])
"""Of haematoxylin and eosin in each gene, which has 5 at least; the last has 5 everywhere."""

STAINS = np.array([[0.65, 0.70, 0.29], [0.07, 0.99, 0.11]])


class MeanColour(sthist.encoders.Encoder):
    """Mean optical density of each channel."""

    name = "mean-colour"

    def embed(self, tiles):
        return -np.log((tiles.mean((1, 2), dtype=np.float32) + 1) / 256)


def fine_slide(seed: int = 0, side: int = 150, patient: str | None = None):
    """A slide of ``side`` x ``side`` cells of 8 µm, and the expression (genes, side, side) that each cell has.

    Amounts of both stains vary over 16 µm. The table has the logarithms of the means over the discs of the spots.
    """
    import anndata as ad
    import pandas as pd
    from scipy.ndimage import gaussian_filter
    from scipy.stats import rankdata
    from spatialdata import SpatialData
    from spatialdata.models import Image2DModel, ShapesModel, TableModel
    from spatialdata.transformations import Identity, Scale

    rng = np.random.default_rng(seed)
    fields = [gaussian_filter(rng.normal(size=(side, side)), 2, mode="wrap") for _ in range(2)]
    amounts = np.stack([0.1 + rankdata(each).reshape(side, side) / each.size for each in fields], -1)
    truth = 5 + np.einsum("gs,yxs->gyx", WEIGHTS, amounts)
    px = int(CELL_UM / 2)  # an image of 2 µm/px
    rgb = sthist.stains.to_rgb(
        amounts.repeat(px, axis=0).repeat(px, axis=1), STAINS / np.linalg.norm(STAINS, axis=1, keepdims=True)
    )
    steps = np.arange(PITCH_UM / 2, side * CELL_UM, PITCH_UM)
    centres = np.stack(np.meshgrid(steps, steps), -1).reshape(-1, 2)
    middles = (np.stack(np.meshgrid(np.arange(side), np.arange(side)), -1) + 0.5) * CELL_UM
    spots = []
    for centre in centres:
        inside = np.linalg.norm(middles - centre, axis=-1) <= RADIUS_UM
        spots.append(truth[:, inside].mean(axis=1))
    names = [f"spot{number}" for number in range(len(centres))]
    obs = pd.DataFrame(
        {"region": pd.Categorical(["spots"] * len(names)), "instance_id": np.arange(len(names))}, index=names
    )
    if patient is not None:
        obs["patient"] = patient
    table = ad.AnnData(
        np.log1p(np.array(spots)).astype(np.float32),
        obs=obs,
        var=pd.DataFrame(index=list(GENES)),
        obsm={"spatial": centres},
    )
    um, fine = {"um": Identity()}, {"um": Scale([2.0, 2.0], ("x", "y"))}
    return SpatialData(
        images={"he": Image2DModel.parse(rgb.transpose(2, 0, 1), dims=("c", "y", "x"), transformations=fine)},
        shapes={"spots": ShapesModel.parse(centres, geometry=0, radius=RADIUS_UM, transformations=um)},
        tables={"table": TableModel.parse(table, region="spots", region_key="region", instance_key="instance_id")},
    ), truth


def nearest_spots(sdata, side: int) -> np.ndarray:
    """What the spot nearest to each cell measured, (genes, side, side), in log expression."""
    from scipy.spatial import cKDTree

    table = sdata["table"]
    middles = (np.stack(np.meshgrid(np.arange(side), np.arange(side)), -1).reshape(-1, 2) + 0.5) * CELL_UM
    nearest = cKDTree(table.obsm["spatial"]).query(middles)[1]
    return np.asarray(table.X)[nearest].T.reshape(-1, side, side)
