"""Whether results are what they were: hashes of what the main verbs make of the toy sample.

``python bench/same_results.py`` compares with ``bench/results/same_results.json`` and says what differs;
``--write`` records. Run it before and after a change that is not meant to change results, on one machine: another
processor, or another release of torch, rounds otherwise.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import sys
import tempfile
from pathlib import Path

import numpy as np

RESULTS = Path(__file__).parent / "results" / "same_results.json"


def digest(*arrays: object) -> str:
    """A hash of the values and shapes of arrays."""
    sha = hashlib.sha256()
    for array in arrays:
        values = np.ascontiguousarray(np.asarray(array))
        sha.update(f"{values.dtype} {values.shape}".encode())
        sha.update(values.astype(str).tobytes() if values.dtype == object else values.tobytes())
    return sha.hexdigest()[:16]


def pixels(image: object) -> np.ndarray:
    """The pixels of an image, of its finest level where it is a pyramid."""
    import spatialdata as sd

    return np.asarray(image if hasattr(image, "dtype") else sd.get_pyramid_levels(image, n=0))


def weights_digest(folder: str | Path) -> str:
    """A hash of the weights of a saved model."""
    from safetensors.numpy import load_file

    state = load_file(Path(folder) / "model.safetensors")
    return digest(*[state[name] for name in sorted(state)])


def geometry_digest(shapes: object) -> str:
    """A hash of the outlines of a shapes element."""
    return hashlib.sha256(b"".join(shapes.geometry.to_wkb())).hexdigest()[:16]  # type: ignore[attr-defined]


def measure() -> dict[str, str]:
    """Run the verbs, and hash what each has made."""
    import spatialdata as sd
    import torch

    import sthist

    sthist.settings.progress = False
    torch.set_num_threads(1)
    found: dict[str, str] = {}
    sample = sthist.datasets.toy(size_um=400)
    found["datasets.toy"] = digest(pixels(sample["he"]), pixels(sample["morphology_focus"]))

    sthist.tl.virtual_he(sample)
    found["tl.virtual_he(beer-lambert)"] = digest(pixels(sample["virtual_he"]))
    sthist.tl.virtual_he(sample, "st2he-small", key_added="learned", device="cpu", within=(50, 50, 250, 250))
    found["tl.virtual_he(st2he-small)"] = digest(pixels(sample["learned"]))

    sthist.pp.tissue(sample)
    found["pp.tissue"] = geometry_digest(sample["tissue"])
    sthist.pp.tiles(sample, size_um=32, px=64)
    table = sample["tiles_table"]
    found["pp.tiles"] = digest(table.obsm["spatial"], geometry_digest(sample["tiles"]))
    sthist.pp.tiles(sample, size_um=32, px=64, sampling="fps", n_tiles=100, key_added="spread")
    found["pp.tiles(fps)"] = digest(sample["spread_table"].obsm["spatial"], geometry_digest(sample["spread"]))
    sthist.pp.embed(sample, image="he", regions="tiles")
    table = sample["tiles_table"]
    found["pp.embed(morphology)"] = digest(table.obsm["X_morphology"])
    sthist.pp.aggregate(sample, "tiles", key_added="sums")
    sums = sample["sums"].X
    found["pp.aggregate"] = digest(sums.data, sums.indices, sums.indptr)
    sthist.pp.label_regions(sample, "tiles", by="regions")
    labels = sample["tiles_table"].obs["label"]
    found["pp.label_regions"] = digest(labels.astype(str).to_numpy(object))
    sthist.tl.niches(sample, "label", table="tiles_table", n_neighbors=6, n_niches=3, seed=0)
    found["tl.niches"] = digest(sample["tiles_table"].obs["niche"].astype(str).to_numpy(object))

    with tempfile.TemporaryDirectory() as folder:
        annotator = sthist.tl.train_annotator(
            sample,
            "label",
            table="tiles_table",
            encoder="X_morphology",
            split=sthist.models.Split("block", block_um=64, validation=0.2),
        )
        report = json.dumps(annotator.config.report, sort_keys=True)
        found["tl.train_annotator: report"] = hashlib.sha256(report.encode()).hexdigest()[:16]
        annotator.save(f"{folder}/annotator")
        found["tl.train_annotator: weights"] = weights_digest(f"{folder}/annotator")
        for name, px, options in (("small", 32, {}), ("pix2pix", 64, {"ema": 0.9})):
            section = sd.deepcopy(sample)
            del section["tiles"], section["tiles_table"]
            training = {
                "spec": sthist.tiles.TileSpec(32, px),
                "n_tiles": 60,
                "epochs": 2,
                "steps_per_epoch": 10,
                "seed": 1,
            }
            model = sthist.tl.train_virtual_he(
                section, name, folder=f"{folder}/{name}", device="cpu", training=training | options
            )
            found[f"tl.train_virtual_he({name}, 20 steps): tiles"] = digest(
                model.tiles[["x_um", "y_um"]].to_numpy(), model.tiles["part"].to_numpy(object)
            )
            found[f"tl.train_virtual_he({name}, 20 steps): weights"] = weights_digest(f"{folder}/{name}")
    return found


def main() -> None:
    """Compare, or record."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--write", action="store_true", help="record the hashes")
    write = parser.parse_args().write
    found = measure()
    if write:
        RESULTS.write_text(json.dumps(found, indent=2) + "\n")
        print(json.dumps(found, indent=2))
        return
    before = json.loads(RESULTS.read_text())
    different = [name for name in {**before, **found} if before.get(name) != found.get(name)]
    for name in found:
        print(f"{'DIFFERS' if name in different else 'same':8} {name}")
    if different:
        sys.exit(f"{len(different)} results differ: {different}")


if __name__ == "__main__":
    main()
