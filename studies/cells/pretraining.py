"""Does MoCo v3 learn cells? An encoder trained on nuclei without labels, beside random weights and other encoders.

Run ``PYTHONPATH=tests:studies/nuclei python studies/cells/pretraining.py [--json FILE] [--seeds 0 1]``. To try it in a
minute or two: ``--crops 600 --epochs 1 --per-image 60 --per-spot 2 --draws 1 --random 0 --rounds 5``. It needs
``her2st`` and ``brecahad_tumor_nuclei`` (``tests/realdata.py``) and the extra ``imagenet``.

Trained on, without labels: nuclei of B4 (her2st, 0.69 µm/px, those inside spots) and of cases A and B of BreCaHAD (0.25
µm/px), 12 µm on 24 px (18 µm on 36 with the margin that rotations need). A residual network of 10 layers, a quarter as
wide as usual, whose first layer keeps all places. No image that is scored was trained on.

``classes``: balanced accuracy of 20 nearest neighbours (cosine) and of a linear probe, on embeddings that are
standardised image by image, which takes away how each was stained. Each draw takes as many training nuclei of each
class, 4 of 5 of the rarest; the penalty of the probe is chosen on images that it was not fitted to. Labels are

* ``tumour nucleus``: nuclei of BreCaHAD found by ``pp.nuclei``, of which those with a mark within 4 µm are tumour, and
  those with none within 8 µm are not. ``other cases``: a probe of cases A and B tests on C and D, which were guessed
  from appearance. ``other images``: each of the six images of C and D is tested by a probe of the other five;
* ``group of its spot``: epithelial, immune or stromal, whichever has the largest share of the nucleus's spot by
  stereoscope. That is an estimate of a spot with tens of nuclei of all types, so nobody reaches 1. Each of C3, C4 and
  C5, consecutive sections of one patient, is tested by a probe of the two others.

Beside them stand the same embeddings with the labels of the training nuclei shuffled, and the majority class.

``spots``: ``tl.train_cell_expression`` on spots of her2st, each C section from the two others: Pearson across held-out
spots, mean over the 50 genes that vary most on the training sections, and how many are trusted; with the nuclei of two
segmenters, ``pp.nuclei``'s own and the plain watershed of scikit-image. At most ``--per-spot`` nuclei a spot are drawn.
Beside them embeddings that are shuffled among the nuclei of a section.

Random weights are of the shape of the trained network, with batch statistics of the crops that it was trained on:
without these a random network is worse than it need be. ``curves`` has loss and spread of embeddings of each epoch,
the loss of guessing, and the scores of ``tumour nucleus, other cases`` after it; epoch 0 is random weights.

Settings were chosen on ``tumour nucleus, other cases``: with the colour jitter as published the encoder scored no more
than random weights after five epochs, so colours are left, and stains are changed a little.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import time
import warnings
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd
import realdata
import shapely
import torch
from realdata import folder
from scipy.spatial import cKDTree
from segmentation import plain
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import balanced_accuracy_score
from sklearn.neighbors import KNeighborsClassifier
from spatialdata import SpatialData

import sthist
from sthist.models import MoCoV3, MoCoV3Config, SCellSTConfig
from sthist.tiles import TileReader, TileSpec

if TYPE_CHECKING:
    from collections.abc import Iterator

C = ("C3", "C4", "C5")
GROUPS = {
    "Epithelial": "epithelial",
    **dict.fromkeys(("B-cells", "T-cells", "Plasma Cells", "Myeloid"), "immune"),
    **dict.fromkeys(("CAFs", "Endothelial", "PVL"), "stromal"),
}
MEAN, STD = np.array([160.0, 120.0, 165.0], np.float32), np.array([45.0, 45.0, 35.0], np.float32)
NEAR_UM, FAR_UM = 4.0, 8.0
N_NEIGHBOURS, N_GENES, MOST = 20, 50, 1000
PENALTIES = (1e-4, 1e-3, 1e-2, 1e-1)
RADIUS_UM = 50.0
SHOWN = TileSpec(12.0, 48)
OTHERS = ("morphology", "efficientnet-lite0")
ACROSS, WITHIN = "tumour nucleus, other cases", "tumour nucleus, other images"
RANDOM = "random weights, seed"
SHUFFLED = "morphology, shuffled"


# Nuclei


@dataclass(frozen=True)
class Labelled:
    """Embeddings or crops of nuclei, their labels and groups, and masks of what trains and what tests, by fold."""

    values: np.ndarray
    label: np.ndarray
    group: np.ndarray
    folds: list[tuple[np.ndarray, np.ndarray]]


def section(name: str) -> SpatialData:
    """A section of her2st."""
    return realdata.her2st(name)


def with_nuclei(whole: SpatialData, segmenter: str, per_spot: int) -> tuple[SpatialData, np.ndarray]:
    """A section with some of the nuclei of each spot, and the row of the spot of each."""
    table = whole["table"]
    centres = np.asarray(table.obsm["spatial"])
    mpp = float(table.uns["mpp"])
    method: Any = "watershed" if segmenter == "built in" else lambda rgb: plain(rgb, mpp)
    sdata = SpatialData(images=dict(whole.images), shapes=dict(whole.shapes), tables=dict(whole.tables))
    discs = shapely.union_all(shapely.buffer(shapely.points(centres), RADIUS_UM))
    sthist.pp.nuclei(sdata, method=method, within=discs, tissue=False)
    distance, spot = cKDTree(centres).query(np.asarray(sdata["nuclei_table"].obsm["spatial"]))
    order = np.random.default_rng(0).permutation(np.flatnonzero(distance <= RADIUS_UM))
    some = np.sort(order[pd.Series(spot[order]).groupby(spot[order]).cumcount().to_numpy() < per_spot])
    nuclei, of_nuclei = sdata["nuclei"].iloc[some], sdata["nuclei_table"][some].copy()
    del sdata.tables["nuclei_table"], sdata.shapes["nuclei"]
    sdata.shapes["nuclei"], sdata.tables["nuclei_table"] = nuclei, of_nuclei
    return sdata, spot[some]


def crops_of(sdata: SpatialData, spec: Any, *, alike: bool) -> np.ndarray:
    """Crops around the nuclei of a sample; alike: with the mean and spread of channels that all samples get."""
    reader = TileReader(sdata, "he", spec, fill=255, allow_upsampling=True)
    crops = reader.read(np.asarray(sdata["nuclei_table"].obsm["spatial"]))
    if not alike:
        return crops
    own = middle(crops, round(crops.shape[1] / 1.5)).reshape(-1, 3).astype(np.float32)
    scale = STD / own.std(axis=0)
    return np.clip(np.rint((crops - own.mean(axis=0)) * scale + MEAN), 0, 255).astype(np.uint8)


def tumour_nuclei(spec: Any, per_image: int | None, *, alike: bool) -> tuple[Labelled, Labelled]:
    """Crops of the nuclei of BreCaHAD as MoCo is trained on them, and as other encoders take them."""
    data = folder("brecahad_tumor_nuclei")
    marks = pd.read_csv(data / "tumor_centroids.csv")
    labels, groups, cases = [], [], []
    crops: tuple[list[np.ndarray], list[np.ndarray]] = ([], [])
    for (case, image), part in marks.groupby(["case_guess", "image"]):
        sdata = sthist.io.assemble({"he": data / "images" / f"{image}.jpg"}, mpp=0.25)
        sthist.pp.nuclei(sdata, method="watershed", tissue=False)
        places = np.asarray(sdata["nuclei_table"].obsm["spatial"])
        truth = part[["x_px", "y_px"]].to_numpy() * 0.25
        # A mark is of the nucleus that is nearest to it.
        distance, nearest = cKDTree(places).query(truth)
        tumour = np.zeros(len(places), bool)
        tumour[nearest[distance <= NEAR_UM]] = True
        other = ~tumour & (cKDTree(truth).query(places)[0] > FAR_UM)
        known = np.random.default_rng(0).permutation(np.flatnonzero(tumour | other))[:per_image]
        crops[0].append(crops_of(sdata, spec, alike=alike)[known])
        crops[1].append(crops_of(sdata, SHOWN, alike=False)[known])
        labels.append(np.where(tumour[known], "tumour", "other"))
        groups.append(np.full(len(known), image))
        cases.append(np.full(len(known), case))
    train = np.isin(np.concatenate(cases), ["A", "B"])
    facts = (np.concatenate(labels), np.concatenate(groups), [(train, ~train)])
    first, second = (Labelled(np.concatenate(mine), *facts) for mine in crops)
    return first, second


def images_of(rows: Labelled) -> list[tuple[np.ndarray, np.ndarray]]:
    """Folds of the images that test: each by all others of them."""
    tested = rows.folds[0][1]
    return [(tested & (rows.group != name), tested & (rows.group == name)) for name in np.unique(rows.group[tested])]


def middle(crops: np.ndarray, px: int) -> np.ndarray:
    """Crops without their margin."""
    margin = (crops.shape[1] - px) // 2
    return np.ascontiguousarray(crops[:, margin : margin + px, margin : margin + px])


# Encoders


class Watched(MoCoV3):
    """An encoder that is scored after each epoch of its training."""

    curve: list[dict[str, float]]
    judge: Labelled

    def save(self, where: str | Path) -> None:
        """Write it, and score it."""
        super().save(where)
        if len(self.history) > len(self.curve) - 1:
            self.curve.append(self.history[-1] | quick_scores(self, self.judge))
            print({key: round(value, 4) for key, value in self.curve[-1].items()}, flush=True)


def quick_scores(encoder: Any, judge: Labelled) -> dict[str, float]:
    """Scores of tumour nuclei, on one draw."""
    rows = Labelled(encoder.embed(middle(judge.values, encoder.spec.px)), judge.label, judge.group, judge.folds)
    return next(iter(class_scores(rows, 1)))["scores"]


def trained(config: MoCoV3Config, crops: np.ndarray, judge: Labelled, options: Any, seed: int) -> tuple[Any, dict]:
    """MoCo v3, with its curve."""
    where = options.models / f"seed_{seed}_jitter_{options.jitter:g}{'_own_stain' if options.own_stain else ''}"
    training = {
        "epochs": options.epochs,
        "batch_size": options.batch_size,
        "optimizer": "adamw",
        "lr": options.lr,
        "weight_decay": 1e-4,
        "temperature": options.temperature,
        "warmup": 1.0,
        "cosine_momentum": True,
        "least_area": options.least_area,
        "jitter": options.jitter,
        "stain_jitter": options.stain_jitter,
        "precision": options.precision,
        "seed": seed,
    }
    if (where / "curve.json").exists():
        kept = json.loads((where / "curve.json").read_text())
        if kept["training"] == training:
            return sthist.models.load(where), kept
    start = random_weights(config, crops, seed)
    Watched.curve, Watched.judge = [{"epoch": 0} | quick_scores(start, judge)], judge
    print(Watched.curve[0], flush=True)
    began = time.process_time()
    model = Watched(config).fit(crops, folder=where, training=training, device="cpu")
    guessing = 4 * options.temperature * float(np.log(options.batch_size))
    facts = {"seed": seed, "own_stain": options.own_stain, "jitter": options.jitter}
    facts |= {"cpu_seconds": round(time.process_time() - began), "crops": len(crops), "training": training}
    facts |= {"loss_of_guessing": round(guessing, 3), "epochs": Watched.curve}
    (where / "curve.json").write_text(json.dumps(facts, indent=1))
    return model, facts


def random_weights(config: MoCoV3Config, crops: np.ndarray, seed: int) -> Any:
    """Random weights of the same shape, with the statistics of batches of these crops."""
    torch.manual_seed(1000 + seed)
    seen = middle(crops[np.linspace(0, len(crops) - 1, min(len(crops), 2048)).astype(int)], config.px)
    pixels = seen.reshape(-1, 3) / 255.0
    transform = sthist.encoders.Transform(tuple(pixels.mean(0)), tuple(pixels.std(0)), config.px, "bilinear")
    network = MoCoV3(config).backbone().train()
    for part in network.modules():
        if isinstance(part, torch.nn.BatchNorm2d):
            part.momentum = None  # the mean over all batches
    with torch.no_grad():
        for start in range(0, len(seen), 256):
            network(transform(torch.from_numpy(seen[start : start + 256])))
    name = f"random_{seed}"
    return sthist.encoders.get(network.eval(), transform=transform, spec=config.spec, name=name, device="cpu")


# Scores


def class_scores(rows: Labelled, draws: int, *, shuffled: bool = False) -> Iterator[dict[str, Any]]:
    """Balanced accuracies of each fold and draw."""
    values = standardised(rows.values, rows.group)
    for number, (train, test) in enumerate(rows.folds):
        for draw in range(draws):
            rng = np.random.default_rng([number, draw])
            some = as_many_of_each(rows.label, np.flatnonzero(train), rng)
            label, group = rows.label[some], rows.group[some]
            if shuffled:
                label = rng.permutation(label)
            known, asked = values[some], values[test]
            near = KNeighborsClassifier(N_NEIGHBOURS, metric="cosine", weights="distance")
            probe = linear_probe(known, label, group)
            said = {"knn": near.fit(known, label).predict(asked), "probe": probe.predict(asked)}
            truth = rows.label[test]
            scores = {name: float(balanced_accuracy_score(truth, each)) for name, each in said.items()}
            yield {"fold": number, "draw": draw, "scores": scores}


def standardised(values: np.ndarray, group: np.ndarray) -> np.ndarray:
    """Columns of mean 0 and standard deviation 1 in each group, which takes away how it was stained."""
    out = np.empty(values.shape, np.float32)
    for each in np.unique(group):
        mine = values[group == each]
        out[group == each] = (mine - mine.mean(axis=0)) / np.maximum(mine.std(axis=0), 1e-6)
    return out


def as_many_of_each(label: np.ndarray, rows: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """As many rows of each class: 4 of 5 of the rarest, at most ``MOST`` of each."""
    mixed = rng.permutation(rows)
    classes = [mixed[label[mixed] == each] for each in np.unique(label[rows])]
    n = min(MOST, int(0.8 * min(map(len, classes))))
    return np.sort(np.concatenate([each[:n] for each in classes]))


def linear_probe(known: np.ndarray, label: np.ndarray, group: np.ndarray) -> LogisticRegression:
    """A linear classifier whose penalty suits groups that it was not trained on."""
    names = np.unique(group)
    half = np.isin(group, names[::2])
    best, chosen = -1.0, PENALTIES[0]
    for penalty in PENALTIES:
        score = 0.0
        for part in (half, ~half):
            fitted = _linear(penalty).fit(known[part], label[part])
            score += balanced_accuracy_score(label[~part], fitted.predict(known[~part]))
        if score > best:
            best, chosen = score, penalty
    return _linear(chosen).fit(known, label)


def _linear(penalty: float) -> LogisticRegression:
    return LogisticRegression(C=penalty, class_weight="balanced", max_iter=200)


def class_rows(task: str, name: str, rows: Labelled, draws: int) -> list[dict[str, Any]]:
    """Means over folds, and their standard deviation over draws; with labels as they are, and shuffled."""
    found = []
    for shuffled in (False, True):
        frame = pd.DataFrame(
            {"draw": each["draw"], **each["scores"]} for each in class_scores(rows, draws, shuffled=shuffled)
        )
        by_draw = frame.groupby("draw").mean()
        row = {"task": task, "encoder": name, "labels": "shuffled" if shuffled else "true", "dim": rows.values.shape[1]}
        row |= {key: round(float(value), 3) for key, value in by_draw.mean().items()}
        row |= {f"{key}_sd": round(float(value), 4) for key, value in by_draw.std(ddof=0).items()}
        found.append(row)
        print(row, flush=True)
    return found


def spot_rows(
    name: str, key: str, segmenter: str, samples: dict[str, SpatialData], rounds: int
) -> Iterator[dict[str, Any]]:
    """Scores of genes across the spots of each section, from a model of the two others."""
    for test in C:
        train = {each: samples[each]["table"] for each in C if each != test}
        genes = sthist.pp.gene_set(train, "variance", N_GENES)
        model = sthist.tl.train_cell_expression(
            samples,
            SCellSTConfig(scaling=None, standardize="sample"),
            genes=genes,
            embedding=key,
            split=dict.fromkeys(train, "train") | {test: "test"},
            training={"epochs": rounds, "lr": 1e-3},
        )
        scores = model.scores
        row = {"segmenter": segmenter, "encoder": name, "section": test, "genes": len(scores)}
        row |= {"pearson": round(float(scores["pearson"].mean()), 4)}
        row |= {"pearson_null": round(float(scores["pearson_null"].mean()), 4), "trusted": int(scores["trusted"].sum())}
        print(row, flush=True)
        yield row


# The study


def embedded(samples: dict[str, SpatialData], name: str, encoder: Any, *, alike: bool) -> str:
    """The key of the embeddings of all nuclei."""
    key = "X_" + name.replace(" ", "_").replace(",", "").replace("-", "_")
    if name == SHUFFLED:
        for number, each in enumerate(samples.values()):
            values = each["nuclei_table"].obsm["X_morphology"]
            each["nuclei_table"].obsm[key] = np.random.default_rng(number).permutation(values)
    else:
        sthist.pp.embed(samples, encoder, regions="nuclei", key_added=key, normalizer="self" if alike else None)
    return key


def spot_groups(samples: dict[str, SpatialData], spots: dict[str, np.ndarray], key: str) -> Labelled:
    """Embeddings of the nuclei of all sections, with the group of the spot that each lies in."""
    values = np.concatenate([np.asarray(each["nuclei_table"].obsm[key]) for each in samples.values()])
    labels = []
    for name, sdata in samples.items():
        shares = sdata["table"].obsm["stereoscope_major"]
        groups = shares.T.groupby([GROUPS[each] for each in shares.columns]).sum().T
        labels.append(groups.idxmax(axis=1).to_numpy()[spots[name]])
    group = np.repeat(list(samples), [len(each) for each in labels])
    return Labelled(values, np.concatenate(labels), group, [(group != name, group == name) for name in samples])


def merged(known: list[dict], new: list[dict], keys: tuple[str, ...]) -> list[dict]:
    """Rows of before that were not made anew, and the new ones."""
    made = {tuple(row[key] for key in keys) for row in new}
    return [row for row in known if tuple(row[key] for key in keys) not in made] + new


def arguments() -> argparse.Namespace:
    """Options of the command."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--json", type=Path, help="file of the results; rows that are not made anew are kept there")
    parser.add_argument("--models", type=Path, default=Path("moco"), help="of trained encoders; used where they are")
    parser.add_argument("--seeds", nargs="*", type=int, default=[0], help="of MoCo v3")
    parser.add_argument("--random", nargs="*", type=int, default=[0, 1, 2, 3, 4], help="seeds of random weights")
    parser.add_argument("--others", nargs="*", default=list(OTHERS))
    parser.add_argument("--segmenters", nargs="*", default=["built in", "plain watershed"])
    parser.add_argument("--crops", type=int, default=10_000, help="to train on")
    parser.add_argument("--epochs", type=int, default=8)
    parser.add_argument("--batch-size", type=int, default=128)
    parser.add_argument("--lr", type=float, default=2e-3)
    parser.add_argument("--temperature", type=float, default=0.2)
    parser.add_argument("--jitter", type=float, default=0.0)
    parser.add_argument("--stain-jitter", type=float, default=0.1)
    parser.add_argument("--least-area", type=float, default=0.6)
    parser.add_argument("--px", type=int, default=24)
    parser.add_argument("--precision", default="auto", help="bf16 is faster on processors that have it")
    parser.add_argument("--backbone", default="resnet10t")
    parser.add_argument("--width", type=float, default=0.25)
    parser.add_argument("--stem", default="small")
    parser.add_argument("--per-image", type=int, help="nuclei of each image of BreCaHAD, to try it out")
    parser.add_argument("--per-spot", type=int, default=4)
    parser.add_argument("--draws", type=int, default=5)
    parser.add_argument("--rounds", type=int, default=60, help="epochs of models of expression, at most")
    parser.add_argument("--own-stain", action="store_true", help="leave the channels of each image as they are")
    parser.add_argument("--parts", nargs="*", default=["classes", "spots"])
    parser.add_argument("--only-train", action="store_true", help="stop when MoCo v3 is trained")
    return parser.parse_args()


def main() -> None:
    """The tables, printed and saved."""
    options = arguments()
    warnings.simplefilter("ignore")
    sthist.settings.progress, sthist.settings.verbosity = False, "error"
    config = MoCoV3Config(
        px=options.px, backbone=options.backbone, width=options.width, stem=options.stem, hidden=512, dim=128
    )
    alike = not options.own_stain
    tumour, shown = tumour_nuclei(config.crop_spec, options.per_image, alike=alike)
    print("BreCaHAD", pd.Series(tumour.label).value_counts().to_dict(), flush=True)
    unlabelled = crops_of(with_nuclei(section("B4"), "built in", 100)[0], config.crop_spec, alike=alike)
    unlabelled = np.concatenate([unlabelled, tumour.values[tumour.folds[0][0]]])
    unlabelled = np.random.default_rng(0).permutation(unlabelled)[: options.crops]
    encoders: dict[str, Any] = {}
    curves = []
    for seed in options.seeds:
        encoders[f"MoCo v3, seed {seed}"], curve = trained(config, unlabelled, tumour, options, seed)
        curves.append(curve)
    if options.only_train:
        return
    encoders |= {f"{RANDOM} {seed}": random_weights(config, unlabelled, seed) for seed in options.random}
    encoders |= {name: sthist.encoders.get(name, device="cpu") for name in options.others}
    classes, spots, seconds, nuclei = [], [], {}, {}

    def save() -> None:
        known = json.loads(options.json.read_text()) if options.json and options.json.exists() else {}
        results = {
            "command": "PYTHONPATH=tests:studies/nuclei python studies/cells/pretraining.py",
            "options": {key: value for key, value in vars(options).items() if key not in ("json", "models")},
            "machine": f"{platform.machine()}, {os.cpu_count()} cores, one thread, Python {platform.python_version()}",
            "labels": pd.Series(tumour.label).value_counts().to_dict(),
            "nuclei_in_spots": known.get("nuclei_in_spots", {}) | nuclei,
            "ms_a_crop": known.get("ms_a_crop", {}) | seconds,
            "classes": merged(known.get("classes", []), classes, ("task", "encoder", "labels")),
            "spots": merged(known.get("spots", []), spots, ("segmenter", "encoder", "section")),
            "curves": merged(known.get("curves", []), curves, ("seed", "own_stain", "jitter")),
        }
        if options.json is not None:
            options.json.write_text(json.dumps(results, indent=1).replace("NaN", "null") + "\n")

    for name, encoder in encoders.items() if "classes" in options.parts else ():
        began = time.process_time()
        crops = middle(tumour.values, config.px) if encoder.spec == config.spec else shown.values
        values = np.concatenate([encoder.embed(part) for part in np.array_split(crops, max(1, len(crops) // 64))])
        seconds[name] = round(1000 * (time.process_time() - began) / len(values), 2)
        for task, folds in {ACROSS: tumour.folds, WITHIN: images_of(tumour)}.items():
            task += ", own stain" if options.own_stain else ""
            classes += class_rows(task, name, Labelled(values, tumour.label, tumour.group, folds), options.draws)
        save()
    if "spots" not in options.parts:
        return
    sections = {name: section(name) for name in C}
    # Embeddings of every encoder take a while: two random networks are enough here.
    names = [name for name in encoders if name not in [f"{RANDOM} {seed}" for seed in options.random[2:]]]
    names += [SHUFFLED] if "morphology" in encoders else []
    for segmenter in options.segmenters:
        found = {name: with_nuclei(each, segmenter, options.per_spot) for name, each in sections.items()}
        samples, spot = ({name: each[part] for name, each in found.items()} for part in (0, 1))
        nuclei[segmenter] = sum(len(each) for each in spot.values())
        for name in names:
            encoder = encoders.get(name)
            key = embedded(samples, name, encoder, alike=alike and getattr(encoder, "spec", None) == config.spec)
            if segmenter == options.segmenters[0] and name != SHUFFLED:
                classes += class_rows("group of its spot", name, spot_groups(samples, spot, key), options.draws)
            spots += spot_rows(name, key, segmenter, samples, options.rounds)
            save()


if __name__ == "__main__":
    main()
