"""From tiles of virtual slides to cores of a microarray: sections that are labelled, cores that are not."""

from __future__ import annotations

import numpy as np
from flat import train_annotator
from sklearn.metrics import roc_auc_score

import sthist


def test_cores_are_called_at_least_as_well_as_tiles():
    """A classifier of two sections' tiles, on a microarray: AUC of tiles, and of cores by their best tiles."""
    sections = {str(seed): sthist.datasets.toy(size_um=300, seed=seed) for seed in (1, 2)}
    array = sthist.datasets.toy("tma", size_um=1000, seed=5)
    for data, within in ((sections, None), (array, "cores")):
        sthist.tl.virtual_he(data, within=within, progress=False)
    sthist.pp.tissue(sections)
    sthist.pp.tiles(sections, size_um=32, px=64, overlap=0.5)
    sthist.pp.tiles(array, size_um=32, px=64, regions="cores")
    for data in (sections, array):
        sthist.pp.embed(data, "morphology", image="virtual_he", progress=False)
        sthist.pp.label_regions(data, "tiles", by="regions", key_added="truth")
    annotator = train_annotator(sections, "truth", split="sample", folds=2, baseline=False)
    sthist.tl.annotate(array, annotator)
    sthist.tl.pool_topk(array, "annotation", groupby="cores")
    tiles, cores = array["tiles_table"], array["cores_table"]
    labelled = tiles.obs["truth"].notna().to_numpy()
    scored = np.isfinite(cores.obsm["annotation_score"]["duct"])
    assert scored.sum() == 8  # one is missing
    regions = array["regions"]
    for name in ("duct", "immune"):
        of_tiles = roc_auc_score(tiles.obs["truth"][labelled] == name, tiles.obsm["annotation_score"][name][labelled])
        there = regions.geometry[regions["label"] == name].union_all()
        holds = array["cores"].geometry.intersection(there).area > 0
        of_cores = roc_auc_score(holds[cores.obs_names][scored], cores.obsm["annotation_score"][name][scored])
        assert of_tiles > 0.7
        assert of_cores >= of_tiles
