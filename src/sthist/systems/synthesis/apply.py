"""Make tiles of the expression of spots, as a sample of its own."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from sthist import _sample, _store
from sthist._disk import full_disk_explained
from sthist._sample.verbs import verb
from sthist._settings import logger, settings
from sthist._tables.expression import LOG
from sthist._tables.synthetic import UNNAMED
from sthist.regression.rows import as_trained, expression_rows
from sthist.systems.synthesis.model import C2L
from sthist.systems.synthesis.mosaic import Mosaic
from sthist.systems.synthesis.spots import chosen_rows, expression_for, sample_and_name
from sthist.tiles import Canvas
from sthist.tiles._blocks.resumable import BlockWorker
from sthist.tiles._blocks.run import run_pending

if TYPE_CHECKING:
    import pandas as pd
    from anndata import AnnData
    from spatialdata import SpatialData

    from sthist.systems.synthesis.adapter import C2LAdapter
    from sthist.systems.synthesis.sampler import Sampler
    from sthist.tiles._blocks.canvas import Block
    from sthist.training.rows import SampleRows

IMAGE, TILES = "he", "tiles"


@verb
def synthesize(
    data: Any,
    model: C2L | str | Path,
    *,
    n: int = 1,
    guidance: float = 3.0,
    steps: int = 250,
    adapted_only: bool = True,
    table: str | None = None,
    within: Any = None,
    path: str | Path | None = None,
    batch_size: int = 32,
    seed: int | None = None,
    device: str | None = None,
    precision: str = "auto",
    compile: bool = False,
    progress: bool | None = None,
) -> SpatialData:
    """Make H&E tiles of the expression of spots with an adapted C2L-ST.

    The tiles lie side by side on one image of a new sample, with shapes and a table as those of
    :func:`sthist.pp.tiles`, so that whatever works on tiles works on them. They are written as they are made, and a
    call that was stopped goes on where it was when it is made again.

    Parameters
    ----------
    data
        A SpatialData or an AnnData with expression, or a mapping of sample name to such. No pixels are looked at.
    model
        A model of :func:`sthist.tl.adapt_local`, or its folder.
    n
        Tiles of each spot, each of its own noise.
    guidance
        How much of what expression changes is put on: 0 for the central model, 1 for what was learned, more to
        overstate it, with less variety.
    steps
        Of sampling, from 1 to 1000.
    adapted_only
        Of the spots that the adapter was trained on alone, where the model knows them and the table has any: tiles of
        others tell a predictor that is trained on them the expression that it is tested on.
    table
        Key of the table with the genes, where there are several.
    within
        Part of the samples that spots are taken from: a box (x0, y0, x1, y1) in µm, a polygon in µm, or the key of
        shapes.
    path
        Store to write, ``*.zarr``, which is there when it is whole; by default the sample is in memory, and its pixels
        in ``settings.scratch_dir`` until it is written.
    batch_size
        Tiles at a time; with guidance, twice as many images.
    seed
        Of the noise; ``settings.seed`` by default.
    device
        Of torch; ``settings.device`` by default.
    precision
        ``"auto"`` (bf16 on cuda devices that have it, float32 elsewhere), ``"float32"`` or ``"bf16"``.
    compile
        Compile the U-Net, which takes a minute and is faster after it.
    progress
        Show a bar; ``settings.progress`` by default.

    Returns
    -------
    A SpatialData of ``images["he"]``, ``shapes["tiles"]`` and ``tables["tiles_table"]``: ``X`` is the log-normalised
    expression that a tile was made of (of genes that were measured); ``obs`` has ``synthetic`` (True), ``sample`` and
    ``source``, the spot, ``replicate`` from 0 to n - 1, and ``instance_id``, by which
    ``model.generate(..., numbers=, seed=)`` makes the tile again. ``uns["sthist"]["tiles_table"]`` says guidance,
    steps, seed, checksums of the central model and the adapter, and the stain that they were trained in, if any.

    Raises
    ------
    FileExistsError
        If there is something at ``path``.
    TypeError
        If the model is of another kind.
    ValueError
        If guidance is negative, the model has no adapter, or the table lacks more than half of its genes; if expression
        was normalised otherwise than that of the adaptation, or no spot has any.

    Examples
    --------
    >>> import sthist
    >>> sdata = sthist.datasets.toy("visium", size_um=900)
    >>> config = sthist.models.C2LConfig(px=16, dim=8, multipliers=(1, 2))
    >>> quick = {"training": {"epochs": 1, "steps_per_epoch": 2, "batch_size": 4}, "device": "cpu", "progress": False}
    >>> central = sthist.tl.train_central(sdata, config, **quick)
    >>> local = sthist.tl.adapt_local(sdata, central, fraction=0.1, **quick)
    >>> made = sthist.tl.synthesize(sdata, local, n=2, steps=2, device="cpu", progress=False)
    >>> len(made["tiles"]) == 2 * len(local.spots)
    True
    """
    local = as_trained(model, C2L, "tl.adapt_local")
    place = None if path is None else Path(path).absolute()
    if place is not None and place.exists():
        raise FileExistsError(f"{place} is there already: name another path=, or remove it.")
    seed = settings.seed if seed is None else int(seed)
    if local.adapter is None:
        raise ValueError("This is a central model, which knows no genes: adapt it with tl.adapt_local.")
    adapter = local.adapter
    rows, expression = expression_for(adapter, _rows(data, local, table, within, adapted_only=adapted_only))
    conditions = local.conditions(expression)
    make = local.sampler(guidance, steps, seed=seed, device=device, precision=precision, compile=compile)
    mosaic = Mosaic(n * len(rows), local.config.spec)
    facts = {
        "spec": local.config.spec.to_dict(),
        "central_sha256": local.sha256,
        "adapter_sha256": adapter.sha256,
        "guidance": float(guidance),
        "steps": int(steps),
        "seed": seed,
        "n": int(n),
        "batch_size": int(batch_size),
        "precision": "bf16" if make.half else "float32",
    }
    digest = hashlib.sha256(json.dumps(facts, sort_keys=True).encode() + conditions.tobytes()).hexdigest()
    stain = {} if local.config.stain is None else {"stain": local.config.stain}
    made = _store.provenance("tl.synthesize", **facts, **stain, device=str(make.device))
    logger.info("%d tiles are made of %d spots.", mosaic.n, len(rows))
    sdata = _sample_of(rows, expression, adapter, mosaic, n, made)

    def build(folder: Path) -> Path:
        canvas = Canvas(
            folder,
            IMAGE,
            extent_um=mosaic.extent_um,
            mpp=local.config.spec.mpp,
            fingerprint={**facts, "digest": digest},
            block_px=mosaic.block_px,
        )
        with full_disk_explained(folder, "Tiles that were made are kept: the same call goes on from them."):
            run_pending(TileMaker(mosaic, make, conditions, n, batch_size), canvas, progress=progress, threads=1)
            canvas.finish()
        return canvas.store

    if place is not None:
        return _written(sdata, place, digest, build, made)
    with _store.writing(sdata), _store.workspace(sdata, "synthetic", digest) as folder:
        _store.publish(sdata, "images", IMAGE, build(folder), made)
    return sdata


def _rows(data: Any, model: C2L, table: str | None, within: Any, *, adapted_only: bool) -> SampleRows:
    """Rows to make tiles of: those of the adaptation, where these are known and wanted, or all."""
    rows = expression_rows(data, table, None, within)
    if not adapted_only:
        return rows
    mine = np.flatnonzero(_of_adaptation(rows, model.spots))
    if len(mine):
        return chosen_rows(rows, mine)
    logger.warning(
        "Which spots the adapter was trained on is not known, or none of them is here: tiles are made of all %d.",
        len(rows),
    )
    return rows


def _of_adaptation(rows: SampleRows, spots: pd.DataFrame | None) -> np.ndarray:
    """Which rows an adapter was trained on: by sample and name, as slides have barcodes in common.

    A table alone does not know its sample; it is taken for that of the adaptation.
    """
    if spots is None:
        return np.zeros(len(rows), np.bool_)
    pairs = set(zip(spots["sample"], spots["instance_id"].astype(str), strict=True))
    names = {name for _, name in pairs}
    nameless = {UNNAMED} >= set(spots["sample"])
    return np.array(
        [
            (sample, name) in pairs or (name in names and (nameless or sample == UNNAMED))
            for sample, name in sample_and_name(rows)
        ]
    )


class TileMaker(BlockWorker):
    """Makes the tiles of a block: of each condition n, in batches."""

    def __init__(self, mosaic: Mosaic, make: Sampler, conditions: np.ndarray, n: int, batch_size: int) -> None:
        self.mosaic, self.make, self.conditions, self.n, self.batch_size = mosaic, make, conditions, n, batch_size

    def compute(self, block: Block) -> np.ndarray:
        """Pixels of a block, white where there is no tile."""
        pixels = np.full((3, block.y1 - block.y0, block.x1 - block.x0), 255, np.uint8)
        numbers = self.mosaic.tiles_of(block)
        for start in range(0, len(numbers), self.batch_size):
            part = numbers[start : start + self.batch_size]
            self.mosaic.place(self.make(self.conditions[part // self.n], part), part, pixels)
        return pixels


def _sample_of(
    rows: SampleRows, expression: np.ndarray, adapter: C2LAdapter, mosaic: Mosaic, n: int, made: dict[str, Any]
) -> SpatialData:
    """The sample of the tiles, without their image."""
    import geopandas as gpd
    import shapely
    import spatialdata as sd
    from spatialdata.models import ShapesModel
    from spatialdata.transformations import Identity

    centres, half = mosaic.centres_um(), mosaic.spec.size_um / 2
    squares = shapely.box(*(centres - half).T, *(centres + half).T)
    frame = gpd.GeoDataFrame(geometry=squares, index=np.arange(mosaic.n))
    sdata = sd.SpatialData(
        shapes={TILES: ShapesModel.parse(frame, transformations={_sample.UM: Identity()})},
        tables={f"{TILES}_table": _table(rows, expression, adapter, mosaic, n, made)},
    )
    sdata.attrs["sthist"] = {"sample": {"name": "synthetic"}}
    _sample.set_role(sdata, "he", {"image": IMAGE})
    return sdata


def _table(
    rows: SampleRows, expression: np.ndarray, adapter: C2LAdapter, mosaic: Mosaic, n: int, made: dict[str, Any]
) -> AnnData:
    """What each tile was made of."""
    import anndata as ad
    import pandas as pd
    from spatialdata.models import TableModel

    measured = ~np.isnan(expression).any(axis=0)
    genes = np.array(adapter.config.genes)[measured]
    samples, names = zip(*sample_and_name(rows), strict=True)
    ids = np.arange(n * len(rows))
    obs = pd.DataFrame(
        {
            "region": pd.Categorical([TILES] * len(ids)),
            "instance_id": ids,
            "synthetic": True,
            "sample": pd.Categorical(np.repeat(samples, n)),
            "source": np.repeat(names, n),
            "replicate": ids % n,
        },
        index=ids.astype(str),
    )
    table = ad.AnnData(
        X=np.repeat(expression[:, measured], n, axis=0),
        obs=obs,
        var=pd.DataFrame(index=genes),
        obsm={"spatial": mosaic.centres_um()},
        uns={
            "tile_spec": mosaic.spec.to_dict(),
            # Logarithms, whatever they look like.
            "sthist": {f"{TILES}_table": made, "genes": _as_normalised(adapter.config.expression, made)},
        },
    )
    return TableModel.parse(table, region=TILES, region_key="region", instance_key="instance_id")


def _as_normalised(described: str, made: dict[str, Any]) -> dict[str, Any]:
    """What a table says of its expression, for those that read it."""
    _, known, total = described.removesuffix(" a row").rpartition(f"{LOG} at ")
    return {**made, "log": True, "target_sum": float(total) if known else None}


def _written(sdata: SpatialData, place: Path, digest: str, build: Any, made: dict[str, Any]) -> SpatialData:
    """The sample in a store that is put in its place when it is whole."""
    import spatialdata as sd

    work = place.with_name(f".{place.name}-{digest[:16]}")
    whole = work / "whole.zarr"
    if not (whole / "images" / IMAGE).exists():
        built = build(work / "image")
        shutil.rmtree(whole, ignore_errors=True)
        sdata.write(whole)
        with _store.writing(sdata):
            _store.publish(sdata, "images", IMAGE, built, made)
    finished = sd.read_zarr(whole)
    _store.recover(finished)
    os.rename(whole, place)
    shutil.rmtree(work)
    return sd.read_zarr(place)
