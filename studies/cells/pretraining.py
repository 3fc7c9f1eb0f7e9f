"""What an encoder of cells learns from nuclei without labels: MoCo v3 beside random weights and other encoders.

Run ``PYTHONPATH=tests python studies/cells/pretraining.py [--json FILE] [--minutes 15] [--cells 20000]``. It needs the
her2st sections and the slide ``he_svs`` (``tests/realdata.py``).

MoCo v3 is trained on nuclei of C3 and C4, two sections of one patient, and of ``he_svs``, small enough for one core:
crops of 12 µm on 24 px, as her2st shows 17 px of them. What its embeddings are worth is scored on sections that it has
not seen: C5, of the same patient, and B4, of another. There is no label of a nucleus in these sections; a nucleus has
that of its spot, the group of cell types (epithelial, immune, stromal) with the largest share by stereoscope. That is
an estimate, of a spot with tens of nuclei of several types: nobody reaches 1, and the order of encoders counts. Scores
are balanced accuracies of 20 nearest neighbours and of a linear probe, trained on C3 and C4; and those of the linear
probe on means over the nuclei of a spot. Chance is one third.

Random weights are of the same shape, with statistics of batches as of these crops: without them a network of random
weights is worse than it need be.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import time
import warnings
from pathlib import Path
from typing import TYPE_CHECKING, Any

import anndata as ad
import geopandas as gpd
import numpy as np
import pandas as pd
import shapely
import torch
from realdata import folder
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import balanced_accuracy_score
from sklearn.neighbors import KNeighborsClassifier
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

import sthist
from sthist.tiles import TileReader

if TYPE_CHECKING:
    from collections.abc import Iterator

    from spatialdata import SpatialData

    from sthist.encoders import Encoder
    from sthist.models import MoCoV3, MoCoV3Config

TRAIN, TEST = ("C3", "C4"), ("C5", "B4")
GROUPS = {
    "Epithelial": "epithelial",
    **dict.fromkeys(("B-cells", "T-cells", "Plasma Cells", "Myeloid"), "immune"),
    **dict.fromkeys(("CAFs", "Endothelial", "PVL"), "stromal"),
}
N_NEIGHBOURS = 20


def section(name: str, cells: int) -> SpatialData:
    """A section with its nuclei inside of spots, each with number and label of its spot."""
    data = folder("her2st")
    table = ad.read_h5ad(data / f"{name}_counts.h5ad")
    sdata = sthist.io.assemble(
        {"he": data / f"{name}.jpg"},
        mpp=float(table.uns["mpp"]),
        table=table,
        xy=("pixel_x", "pixel_y"),
        unit="px",
        spot_diameter_um=100.0,
    )
    centres = sdata["table"].obsm["spatial"]
    discs = shapely.buffer(shapely.points(centres), 50.0)
    sthist.pp.nuclei(sdata, within=shapely.union_all(discs), tissue=False)
    shares = sdata["table"].obsm["stereoscope_major"]
    groups = shares.T.groupby([GROUPS[each] for each in shares.columns]).sum().T
    label = groups.idxmax(axis=1).to_numpy()
    nuclei = sdata["nuclei"]
    places = np.asarray(sdata["nuclei_table"].obsm["spatial"])
    distance, spot = _nearest(centres, places)
    chosen = np.flatnonzero(distance <= 50.0)
    rng = np.random.default_rng(0)
    chosen = np.sort(rng.permutation(chosen)[:cells])
    kept = gpd.GeoDataFrame(geometry=nuclei.geometry.to_numpy()[chosen])
    sdata["labelled"] = sthist_shapes(kept, sdata["nuclei"])
    sdata.attrs["labels"] = {"spot": spot[chosen], "label": label[spot[chosen]], "nuclei": len(nuclei)}
    return sdata


def sthist_shapes(frame: gpd.GeoDataFrame, like: Any) -> Any:
    """Shapes of a frame, where others lie."""
    from spatialdata.models import ShapesModel
    from spatialdata.transformations import get_transformation

    return ShapesModel.parse(frame, transformations=get_transformation(like, get_all=True))


def _nearest(centres: np.ndarray, places: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    from scipy.spatial import cKDTree

    distance, spot = cKDTree(centres).query(places)
    return distance, spot


def slide() -> SpatialData:
    """The slide of skin with its nuclei."""
    sdata = sthist.io.slide(next(folder("he_svs").glob("*.svs")))
    sthist.pp.nuclei(sdata)
    return sdata


def random_encoder(model: MoCoV3, crops: np.ndarray) -> Encoder:
    """Random weights of the shape of a model, with the statistics of batches of these crops."""
    torch.manual_seed(0)
    network = model.backbone().train()
    for part in network.modules():
        if isinstance(part, torch.nn.BatchNorm2d):
            part.momentum = None  # the mean over all batches
    with torch.no_grad():
        for start in range(0, len(crops), 256):
            network(model.transform(torch.from_numpy(crops[start : start + 256])))
    return sthist.encoders.get(network, transform=model.transform, spec=model.spec, name="random")


def embeddings(slides: dict[str, SpatialData], encoders: dict[str, Any]) -> Iterator[tuple[str, dict[str, np.ndarray]]]:
    """Embeddings of the labelled nuclei of each section, by encoder."""
    for name, encoder in encoders.items():
        began = time.perf_counter()
        spec = getattr(encoder, "spec", None) or sthist.tiles.TileSpec(12.0, 48)
        found = {}
        for each, sdata in slides.items():
            sthist.pp.embed(sdata, encoder, regions="labelled", spec=coarse(spec), key_added="X_now", overwrite=True)
            found[each] = np.asarray(sdata["labelled_table"].obsm["X_now"])
        print(f"{name}: {time.perf_counter() - began:.0f} s", flush=True)
        yield name, found


def coarse(spec: Any) -> Any:
    """Tiles of 12 µm on no more pixels than these images have."""
    return spec if spec.px <= 24 else sthist.tiles.TileSpec(spec.size_um, 24)


def scores(found: dict[str, np.ndarray], labels: dict[str, dict[str, Any]]) -> Iterator[dict[str, Any]]:
    """Balanced accuracies on each section that tests."""
    rows = np.concatenate([found[each] for each in TRAIN])
    classes = np.concatenate([labels[each]["label"] for each in TRAIN])
    spots = [by_spot(found[each], labels[each]) for each in TRAIN]
    scale = StandardScaler().fit(rows)
    neighbours = KNeighborsClassifier(N_NEIGHBOURS, metric="cosine").fit(scale.transform(rows), classes)
    probe, of_spots = (
        make_pipeline(StandardScaler(), LogisticRegression(C=0.01, class_weight="balanced", max_iter=500))
        for _ in range(2)
    )
    probe.fit(rows, classes)
    of_spots.fit(np.concatenate([each[0] for each in spots]), np.concatenate([each[1] for each in spots]))
    for test in TEST:
        means, theirs = by_spot(found[test], labels[test])
        truth = labels[test]["label"]
        yield {
            "section": test,
            "knn": balanced_accuracy_score(truth, neighbours.predict(scale.transform(found[test]))),
            "linear probe": balanced_accuracy_score(truth, probe.predict(found[test])),
            "linear probe of spots": balanced_accuracy_score(theirs, of_spots.predict(means)),
        }


def by_spot(rows: np.ndarray, labels: dict[str, Any]) -> tuple[np.ndarray, np.ndarray]:
    """Mean over the nuclei of each spot, and its label."""
    frame = pd.DataFrame(rows).groupby(labels["spot"]).mean()
    of_spot = pd.Series(labels["label"], index=labels["spot"]).groupby(level=0).first()
    return frame.to_numpy(), of_spot.loc[frame.index].to_numpy()


def crops_of(sdata: SpatialData, config: MoCoV3Config) -> np.ndarray:
    """What an encoder sees of the labelled nuclei of a section."""
    reader = TileReader(sdata, "he", config.spec, fill=255, allow_upsampling=True)
    centroid = sdata["labelled"].geometry.centroid
    return reader.read(np.c_[centroid.x, centroid.y])


def main() -> None:
    """The table, printed and saved."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--json", type=Path)
    parser.add_argument("--minutes", type=float, default=15.0, help="of training")
    parser.add_argument("--epochs", type=int, default=40)
    parser.add_argument("--cells", type=int, default=20_000, help="to train on")
    parser.add_argument("--labelled", type=int, default=3000, help="of each section, that scores are of")
    parser.add_argument("--backbone", default="resnet18")
    parser.add_argument("--width", type=float, default=0.25)
    parser.add_argument("--stem", default="small")
    parser.add_argument("--px", type=int, default=24)
    parser.add_argument("--batch-size", type=int, default=256)
    parser.add_argument("--temperature", type=float, default=0.2)
    parser.add_argument("--optimizer", default="adamw")
    parser.add_argument("--lr", type=float, default=1e-3)
    parser.add_argument("--encoders", nargs="*", default=["morphology", "efficientnet-lite0"])
    options = parser.parse_args()
    warnings.simplefilter("ignore")
    sthist.settings.progress, sthist.settings.verbosity = False, "error"
    slides = {name: section(name, options.labelled) for name in (*TRAIN, *TEST)}
    labels = {name: sdata.attrs.pop("labels") for name, sdata in slides.items()}
    for name, each in labels.items():
        print(name, each["nuclei"], "nuclei,", dict(zip(*np.unique(each["label"], return_counts=True), strict=True)))
    config = sthist.models.MoCoV3Config(
        px=options.px, backbone=options.backbone, width=options.width, stem=options.stem, hidden=512, dim=128
    )
    training = {
        "epochs": options.epochs,
        "batch_size": options.batch_size,
        "optimizer": options.optimizer,
        "lr": options.lr,
        "temperature": options.temperature,
        "warmup": 2,
        "cosine_momentum": True,
        "max_time": {"minutes": options.minutes},
    }
    began = time.perf_counter()
    model = sthist.tl.train_cell_encoder(
        {name: slides[name] for name in TRAIN} | {"he_svs": slide()},
        config,
        max_cells=options.cells,
        training=training,
        device="cpu",
    )
    seconds = time.perf_counter() - began
    for row in model.history:
        print(row, flush=True)
    seen = np.concatenate([crops_of(slides[name], config) for name in TRAIN])
    encoders = {"MoCo v3": model, "random weights": random_encoder(model, seen)}
    rows = []
    for name, found in embeddings(slides, encoders | {each: each for each in options.encoders}):
        for row in scores(found, labels):
            row = {"encoder": name, "dim": next(iter(found.values())).shape[1], **row}
            rows.append({key: round(value, 3) if isinstance(value, float) else value for key, value in row.items()})
            print(rows[-1], flush=True)
    facts = {
        "command": "PYTHONPATH=tests python studies/cells/pretraining.py",
        "options": {key: value for key, value in vars(options).items() if key != "json"},
        "machine": f"{platform.machine()}, {os.cpu_count()} cores, shared, Python {platform.python_version()}",
        "crops": model.config.training["crops"],
        "seconds": round(seconds),
        "chance": round(1 / 3, 3),
        "labels": {
            name: dict(zip(*(part.tolist() for part in np.unique(each["label"], return_counts=True)), strict=True))
            for name, each in labels.items()
        },
        "history": model.history,
        "rows": rows,
    }
    if options.json is not None:
        options.json.write_text(json.dumps(facts, indent=1) + "\n")


if __name__ == "__main__":
    main()
