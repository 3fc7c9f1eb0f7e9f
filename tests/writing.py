"""Every verb that writes to a store, in one place, for the tests and benchmarks of what is left when one is stopped.

A new verb is covered by standing in :data:`VERBS`; a test holds them to the public functions that have ``key_added=``.
"""

from __future__ import annotations

import functools
import hashlib
import json
import os
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import anndata as ad
import numpy as np
import pandas as pd
from annotating import Planted
from spatialdata.models import TableModel

import sthist

if TYPE_CHECKING:
    from collections.abc import Callable

    from spatialdata import SpatialData

SIZE_UM = 200.0


@dataclass(frozen=True)
class Verb:
    """A verb that writes.

    Attributes
    ----------
    call
        Runs it, with a name for its result and with ``overwrite``.
    prepare
        What has to be there before.
    kind
        Of the toy sample.
    names
        Whether it takes a name for its result.
    reads
        The elements that it needs, where it is to be quick.
    """

    call: Callable[[SpatialData, str | None, bool], None]
    prepare: Callable[[SpatialData], None] = lambda sdata: None
    kind: str = "xenium"
    names: bool = True
    reads: tuple[str, ...] = ()

    def write(self, store: Path) -> Path:
        """Write the sample that the verb is called on."""
        sdata = sthist.datasets.toy(self.kind, size_um=900 if self.kind == "tma" else SIZE_UM)
        self.prepare(sdata)
        if self.reads:
            sdata = sdata.subset(list(self.reads))
        sdata.write(store)
        return store


def _tiles(sdata: SpatialData) -> None:
    sthist.pp.tissue(sdata)
    sthist.pp.tiles(sdata, size_um=64, px=32)


def _embedded(sdata: SpatialData) -> None:
    _tiles(sdata)
    sdata["tiles_table"].obsm["X_planted"] = np.random.default_rng(0).normal(size=(len(sdata["tiles"]), 4))


def _scored(sdata: SpatialData) -> None:
    _embedded(sdata)
    sthist.tl.annotate(sdata, PROMPTS, encoder=Planted(), key_added="kind")
    sthist.pp.label_regions(sdata, "tiles", "regions", key_added="part")


def _drawn(sdata: SpatialData, key: str | None, overwrite: bool) -> None:
    square = [[5, 5], [60, 5], [60, 60], [5, 60], [5, 5]]
    feature = {
        "type": "Feature",
        "properties": {"objectType": "annotation", "classification": {"name": "a"}},
        "geometry": {"type": "Polygon", "coordinates": [square]},
    }
    path = Path(tempfile.gettempdir()) / f"drawn-{os.getuid()}.geojson"  # the result says where it is from
    path.write_text(json.dumps({"type": "FeatureCollection", "features": [feature]}))
    sthist.io.read_annotations(sdata, path, image="he", overwrite=overwrite, **_named(key))


def _profiles(sdata: SpatialData) -> pd.DataFrame:
    names = sdata["table"].var_names
    return pd.DataFrame(np.random.default_rng(0).gamma(1, 1, (len(names), 2)), index=names, columns=["a", "b"])


def _abundant(sdata: SpatialData) -> None:
    sthist.tl.deconvolve(sdata, _profiles(sdata), table="table")


def _estimated(sdata: SpatialData, key: str | None, overwrite: bool) -> None:
    names = sdata["table"].obs_names
    path = Path(tempfile.gettempdir()) / f"estimated-{os.getuid()}.csv"  # the result says where it is from
    pd.DataFrame({"a": 0.25, "b": 0.75}, index=names).to_csv(path)
    sthist.io.read_composition(sdata, path, table="table", overwrite=overwrite, **_named(key))


def _ridge() -> sthist.models.Ridge:
    rng = np.random.default_rng(0)
    config = sthist.models.RidgeConfig(embeddings=("X_planted",))
    return sthist.models.Ridge(config).fit(rng.normal(size=(30, 4)), rng.normal(size=(30, 3)))


def _composer() -> sthist.models.CompositionRidge:
    rng = np.random.default_rng(0)
    config = sthist.models.RidgeConfig(embeddings=("X_planted",))
    return sthist.models.CompositionRidge(config).fit(rng.normal(size=(30, 4)), rng.uniform(size=(30, 3)))


def _cells(sdata: SpatialData) -> None:
    """Nuclei with embeddings, and a table of theirs without genes."""
    sdata.shapes["nuclei"] = sdata["cell_boundaries"]
    names = sdata["cell_boundaries"].index
    obs = pd.DataFrame(
        {"region": pd.Categorical(["nuclei"] * len(names)), "instance_id": names}, index=names.astype(str)
    )
    table = ad.AnnData(obs=obs, obsm={"X_planted": np.random.default_rng(0).normal(size=(len(names), 4))})
    sdata.tables["nuclei_table"] = TableModel.parse(
        table, region="nuclei", region_key="region", instance_key="instance_id"
    )


@functools.cache
def _cell_model() -> sthist.models.SCellST:
    rng = np.random.default_rng(0)
    config = sthist.models.SCellSTConfig(embeddings=("X_planted",), widths=(8,))
    training = {"epochs": 1, "patience": None}
    return sthist.models.SCellST(config).fit(rng.normal(size=(30, 4)), rng.random((30, 3)), training=training)


class Means:
    """An encoder of a slide: mean colours."""

    name, key, spec, module, provenance = "means", "X_means", None, None, {"sha256": "aa"}

    def embed(self, tiles):
        return tiles.mean((1, 2), dtype=np.float32)


def _darkness(embeddings: np.ndarray) -> np.ndarray:
    return 255 - embeddings.mean(1, keepdims=True)


def _named(key: str | None) -> dict[str, Any]:
    return {} if key is None else {"key_added": key}


PROMPTS = {"tumour": "tumour", "stroma": "stroma"}
SHIFT = np.array([[0.5, 0, 3.0], [0, 0.5, 4.0], [0, 0, 1]])
VERBS = {
    "tl.virtual_he": Verb(lambda s, k, o: sthist.tl.virtual_he(s, overwrite=o, progress=False, **_named(k))),
    "pp.tissue": Verb(lambda s, k, o: sthist.pp.tissue(s, overwrite=o, **_named(k)), reads=("he",)),
    "pp.tiles": Verb(
        lambda s, k, o: sthist.pp.tiles(s, size_um=64, px=32, overwrite=o, **_named(k)),
        lambda s: sthist.pp.tissue(s),
        reads=("he", "tissue"),
    ),
    "pp.tma": Verb(lambda s, k, o: sthist.pp.tma(s, overwrite=o, **_named(k)), kind="tma", reads=("he",)),
    "pp.nuclei": Verb(lambda s, k, o: sthist.pp.nuclei(s, progress=False, overwrite=o, **_named(k)), reads=("he",)),
    "pp.assign_cells": Verb(
        lambda s, k, o: sthist.pp.assign_cells(s, spots="tiles", overwrite=o, **_named(k)),
        lambda s: (_tiles(s), _cells(s)),
    ),
    "pp.background": Verb(lambda s, k, o: sthist.pp.background(s, regions="tiles", overwrite=o, **_named(k)), _tiles),
    "pp.aggregate": Verb(
        lambda s, k, o: sthist.pp.aggregate(s, bin_um=50, overwrite=o, **_named(k)), reads=("transcripts",)
    ),
    "pp.stain_normalize": Verb(
        lambda s, k, o: sthist.pp.stain_normalize(s, progress=False, overwrite=o, key_added=k or "normalised")
    ),
    "pp.embed": Verb(
        lambda s, k, o: sthist.pp.embed(
            s, "morphology", image="he", outside="nan", progress=False, overwrite=o, **_named(k)
        ),
        _tiles,
    ),
    "pp.dense_features": Verb(
        lambda s, k, o: sthist.pp.dense_features(
            s,
            "morphology",
            stride_um=100,
            spec=sthist.tiles.TileSpec(32, 32),
            image="he",
            tissue=False,
            progress=False,
            overwrite=o,
            **_named(k),
        )
    ),
    "pp.label_regions": Verb(
        lambda s, k, o: sthist.pp.label_regions(s, "tiles", "regions", overwrite=o, **_named(k)), _tiles
    ),
    "pp.genes": Verb(lambda s, k, o: sthist.pp.genes(s, table="table", overwrite=o), names=False),
    "pp.gene_panel": Verb(lambda s, k, o: sthist.pp.gene_panel(s, table="table", n_top=5, overwrite=o, **_named(k))),
    "pp.align": Verb(
        lambda s, k, o: sthist.pp.align(s, "he", to="um", matrix=SHIFT, overwrite=o), names=False, reads=("he",)
    ),
    "pp.set_scale": Verb(
        lambda s, k, o: sthist.pp.set_scale(s, "morphology_focus", mpp=0.6, overwrite=True), names=False
    ),
    "io.read_annotations": Verb(_drawn, reads=("he",)),
    "io.read_composition": Verb(_estimated),
    "pp.proportions": Verb(lambda s, k, o: sthist.pp.proportions(s, overwrite=o, **_named(k)), _abundant),
    "tl.deconvolve": Verb(
        lambda s, k, o: sthist.tl.deconvolve(s, _profiles(s), table="table", overwrite=o, **_named(k))
    ),
    "tl.annotate": Verb(
        lambda s, k, o: sthist.tl.annotate(s, PROMPTS, encoder=Planted(), overwrite=o, **_named(k)), _embedded
    ),
    "tl.cell_expression": Verb(
        lambda s, k, o: sthist.tl.cell_expression(s, _cell_model(), overwrite=o, **_named(k)), _cells
    ),
    "tl.composition": Verb(
        lambda s, k, o: sthist.tl.composition(s, _composer(), regions="tiles", overwrite=o, **_named(k)), _embedded
    ),
    "tl.expression": Verb(
        lambda s, k, o: sthist.tl.expression(s, _ridge(), regions="tiles", overwrite=o, **_named(k)), _embedded
    ),
    "tl.heatmap": Verb(
        lambda s, k, o: sthist.tl.heatmap(
            s,
            _darkness,
            encoder=Means(),
            classes=["dark"],
            spec=sthist.tiles.TileSpec(32, 32),
            stride_um=16,
            tissue=False,
            progress=False,
            overwrite=o,
            **_named(k),
        )
    ),
    "tl.pool_topk": Verb(
        lambda s, k, o: sthist.tl.pool_topk(s, "kind", groupby="part", k=2, overwrite=o, **_named(k)), _scored
    ),
    "tl.cell_types": Verb(
        lambda s, k, o: sthist.tl.cell_types(
            s, {"epithelial": ["EPCAM", "KRT8"], "fibroblast": ["COL1A1"]}, overwrite=o, key_added=k or "type_called"
        )
    ),
    "tl.match_cells": Verb(
        lambda s, k, o: sthist.tl.match_cells(s, "nucleus_boundaries", "cell_boundaries", overwrite=o, **_named(k)),
        reads=("nucleus_boundaries", "cell_boundaries"),
    ),
    "tl.niches": Verb(
        lambda s, k, o: sthist.tl.niches(s, "cell_type", method="kmeans", n_niches=2, overwrite=o, **_named(k))
    ),
    "tl.colocalization": Verb(
        lambda s, k, o: sthist.tl.colocalization(s, "cell_type", length_um=30, overwrite=o, **_named(k))
    ),
    "tl.transfer_labels": Verb(
        lambda s, k, o: sthist.tl.transfer_labels(s, "tiles_table", "table", label="part", overwrite=o, **_named(k)),
        _scored,
    ),
}


def files_under(folder: Path, *, follow: bool = False) -> dict[str, str]:
    """Files and folders by their path, with a digest of what they hold; links by where they lead, or followed."""
    found = {}
    for path in sorted(folder.rglob("*")):
        name = str(path.relative_to(folder))
        if path.is_symlink() and not follow:
            found[name] = f"-> {path.readlink()}"
        else:
            found[name] = hashlib.blake2b(path.read_bytes()).hexdigest() if path.is_file() else "folder"
    return found
