"""Synthetic tiles, and the real ones of the same spots at the same µm per pixel."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from sthist._sample.verbs import opened
from sthist._settings import logger
from sthist._tables.synthetic import find_synthetic, made_by, positions_of_sources, positions_of_spots
from sthist.metrics._compare import shuffled
from sthist.pp import StainReference
from sthist.regression.rows import expression_rows
from sthist.systems.synthesis.config import C2LConfig
from sthist.systems.synthesis.spots import chosen_rows, sample_and_name
from sthist.systems.synthesis.train import readers_of, rows_on_image
from sthist.tiles import TileReader
from sthist.tiles._images.image import open_he
from sthist.tiles._laid_tiles import laid_tiles
from sthist.tiles._sampling import lies_inside
from sthist.training.batches import Tiles

if TYPE_CHECKING:
    import pandas as pd
    from anndata import AnnData

    from sthist.encoders import Encoder
    from sthist.tiles import TileSpec
    from sthist.training.rows import SampleRows

BATCH = 64
"""Tiles that are embedded at once."""


@dataclass(eq=False)
class Made:
    """Tiles that were made of spots."""

    table: AnnData  # one row per tile
    facts: dict[str, Any]  # how they were made
    tiles: np.ndarray  # (n, px, px, 3)
    spot: np.ndarray  # (n,) row of the real tiles that each was made of

    def chosen(self, which: np.ndarray) -> Made:
        """Some of the tiles."""
        return Made(self.table[which], self.facts, self.tiles[which], self.spot[which])


@dataclass(eq=False)
class Real:
    """Tiles of a study's spots: those that synthetic ones were made of, others of the adaptation, and the rest."""

    rows: SampleRows
    names: list[tuple[str, str]]  # sample and name of each row
    tiles: np.ndarray  # (n, px, px, 3)
    sources: np.ndarray  # rows that synthetic tiles were made of
    trained: np.ndarray  # (n,) which of the rows the adapter was trained on
    crops: np.ndarray  # of each source, its tile moved by half a side
    has_crop: np.ndarray  # (sources,) which of these lie on the image

    @property
    def sample(self) -> np.ndarray:
        """Of each row the number of its sample."""
        return self.rows.sample

    def others(self, seed: int) -> np.ndarray:
        """Of each row another source of its sample, (n,); -1 where there is none, and of rows that are no sources."""
        other = np.full(len(self.rows), -1)
        for each in np.unique(self.sample[self.sources]):
            mine = self.sources[self.sample[self.sources] == each]
            if len(mine) > 1:
                other[mine] = mine[shuffled(len(mine), seed)]
        return other


def read_all(
    data: Any,
    synthetic: Any,
    baseline: Any,
    spots: pd.DataFrame | None,
    *,
    table: str | None,
    image: str | None,
    max_tiles: int,
    seed: int,
) -> tuple[Real, Made, Made | None, TileSpec]:
    """Real and synthetic tiles, some of them where there are many, and what all of them show."""
    synthetic = opened(synthetic)
    key, made_table = find_synthetic(synthetic)
    spec, facts = laid_tiles(synthetic, key)[1], made_by(made_table, key)
    rows = expression_rows(data, table, None)
    config = C2LConfig(size_um=spec.size_um, px=spec.px, multipliers=(1,), stain=_stain(facts))
    readers, places = readers_of(rows, image, config)
    rows = chosen_rows(rows, rows_on_image(rows, readers, places, spec.size_um))
    rng = np.random.default_rng([seed, 0])
    names = sample_and_name(rows)
    position = positions_of_sources(made_table, names)
    drawn = _drawn(np.flatnonzero(position >= 0), max_tiles, rng)
    used = np.isin(np.arange(len(rows)), position)
    trained = used.copy()
    if spots is not None:
        known = positions_of_spots(list(zip(spots["sample"], spots["instance_id"].astype(str), strict=True)), names)
        trained[known[known >= 0]] = True
    kept = np.sort(np.concatenate([np.flatnonzero(trained), _drawn(np.flatnonzero(~trained), max_tiles, rng)]))
    place = np.full(len(rows), -1)
    place[kept] = np.arange(len(kept))
    rows = chosen_rows(rows, kept)
    sources = np.unique(place[position[drawn]])
    source = Tiles(readers, places, rows.sample, rows.row)
    crops, has_crop = _crops(source, sources, spec, rng)
    real = Real(
        rows,
        [names[i] for i in kept],
        source.read(np.arange(len(rows))),
        sources,
        trained[kept],
        crops,
        has_crop,
    )
    made = Made(made_table[drawn], facts, _read(synthetic, key, spec, drawn), place[position[drawn]])
    if baseline is None:
        return real, made, None, spec
    baseline = opened(baseline)
    other_key, other = find_synthetic(baseline)
    if laid_tiles(baseline, other_key)[1] != spec:
        raise ValueError(f"baseline= has tiles of {laid_tiles(baseline, other_key)[1]}, the synthetic ones are {spec}.")
    position = positions_of_sources(other, names)
    among = np.isin(place[position], sources) & (position >= 0)
    drawn = _drawn(np.flatnonzero(among), max_tiles, rng)
    of_baseline = Made(
        other[drawn], made_by(other, other_key), _read(baseline, other_key, spec, drawn), place[position[drawn]]
    )
    return real, made, of_baseline, spec


def embedded(encoder: Encoder, tiles: np.ndarray) -> np.ndarray:
    """Embeddings of tiles, (n, d) float64."""
    parts = [encoder.embed(np.ascontiguousarray(tiles[i : i + BATCH])) for i in range(0, len(tiles), BATCH)]
    return np.concatenate(parts).astype(np.float64)


def without_structure(tiles: np.ndarray, seed: int) -> np.ndarray:
    """Tiles whose pixels lie anyhow: their colours, and nothing else of them."""
    rng = np.random.default_rng(seed)
    flat = tiles.reshape(len(tiles), -1, tiles.shape[-1])
    return np.stack([each[rng.permutation(len(each))] for each in flat]).reshape(tiles.shape)


def _stain(facts: dict[str, Any]) -> dict[str, Any] | None:
    """The stain that tiles were made in, as its plain values, which a store gives back as arrays."""
    stain = facts.get("stain")
    if not stain:
        return None
    values = {name: each.tolist() if hasattr(each, "tolist") else each for name, each in dict(stain).items()}
    return StainReference.from_dict(values).to_dict()


def _drawn(rows: np.ndarray, n: int, rng: np.random.Generator) -> np.ndarray:
    if len(rows) <= n:
        return rows
    logger.info("%d of %d tiles are looked at, drawn at random: max_tiles.", n, len(rows))
    return np.sort(rng.choice(rows, n, replace=False))


def _read(sdata: Any, key: str, spec: TileSpec, rows: np.ndarray) -> np.ndarray:
    centres = np.asarray(laid_tiles(sdata, key)[0].obsm["spatial"], np.float64)[rows]
    return TileReader.from_image(open_he(sdata, None), spec, fill=255).read(centres)


def _crops(source: Tiles, rows: np.ndarray, spec: TileSpec, rng: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
    """Of rows the tiles half a side to one of the four sides, and which of these lie on the image."""
    moves = np.array([[1, 0], [-1, 0], [0, 1], [0, -1]]) * spec.size_um / 2
    tiles = np.full((len(rows), spec.px, spec.px, 3), 255, np.uint8)
    there = np.zeros(len(rows), bool)
    for i in np.unique(source.reader[rows]):
        reader = source.readers[i]
        if not isinstance(reader, TileReader):  # what is a file of its own has nothing beside it
            continue
        mine = np.flatnonzero(source.reader[rows] == i)
        places = source.places[i][source.place[rows[mine]]][:, None] + moves
        inside = lies_inside(reader.image, places.reshape(-1, 2), spec.size_um).reshape(places.shape[:2])
        best = (rng.random(inside.shape) * inside).argmax(axis=1)
        kept = inside.any(axis=1)
        there[mine] = kept
        if kept.any():
            tiles[mine[kept]] = reader.read(places[np.arange(len(mine)), best][kept])
    return tiles, there
