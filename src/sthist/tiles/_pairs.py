"""Paired tiles of one section: nuclear stain with transcripts, and the H&E of the same place."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from sthist._disk import written_whole
from sthist._reading import parse_json, read_object
from sthist._settings import logger, settings
from sthist.tiles._images.image import open_he
from sthist.tiles._images.reader import TileReader
from sthist.tiles._laid_tiles import laid_tiles
from sthist.tiles._loader import TileLoader
from sthist.tiles._molecules.overlay import Overlay
from sthist.tiles._sampling import spatial_split
from sthist.tiles._spec import same_spec

if TYPE_CHECKING:
    from spatialdata import SpatialData

    from sthist.tiles._spec import TileSpec

SUBSETS = ("train", "test")


def paired_loader(
    sdata: SpatialData,
    regions: str = "tiles",
    *,
    overlay: Overlay | None = None,
    he: str | None = None,
    batch_size: int = 4,
    shuffle: bool = False,
    seed: int | None = None,
    epoch: int = 0,
    allow_upsampling: bool = False,
    **kwargs: Any,
) -> TileLoader:
    """Batches of (index, overlay, H&E) for training an image translation.

    Parameters
    ----------
    sdata
        One sample, with an H&E registered in ``um`` (:func:`sthist.pp.align`).
    regions
        Tiles that :func:`sthist.pp.tiles` has laid; their size and pixels are taken.
    overlay
        How the input is drawn; by default one of the tiles' spec, with ``kwargs``.
    he
        Key of the H&E.
    batch_size, shuffle, seed, epoch
        As of :class:`sthist.tiles.TileLoader`.
    allow_upsampling
        Read images that are more than 1.5 times coarser than the tiles.
    kwargs
        Of :class:`sthist.tiles.Overlay`, where none is given.

    Returns
    -------
    A loader that yields indices into the tiles, overlays (n, px, px, 3) and H&E (n, px, px, 3), both uint8. Outside of
    the H&E is white.

    Raises
    ------
    KeyError
        If there are no such tiles, or an element is missing.
    ValueError
        If the overlay has another TileSpec than the tiles.

    Examples
    --------
    >>> import sthist
    >>> sdata = sthist.datasets.toy(size_um=200)
    >>> sthist.pp.tiles(sdata, size_um=32, px=64, sampling="fps", n_tiles=6)
    >>> loader = sthist.tiles.paired_loader(sdata, batch_size=3)
    >>> [(overlay.shape, he.shape) for _, overlay, he in loader]
    [((3, 64, 64, 3), (3, 64, 64, 3)), ((3, 64, 64, 3), (3, 64, 64, 3))]
    """
    table, spec = laid_tiles(sdata, regions)
    overlay, target = _readers(sdata, spec, overlay, he, kwargs, allow_upsampling=allow_upsampling)
    return TileLoader(
        [overlay, target],
        table.obsm["spatial"],
        batch_size=batch_size,
        shuffle=shuffle,
        seed=seed,
        epoch=epoch,
        ids=table.obs["instance_id"],
    )


def export_pairs(
    sdata: SpatialData,
    path: str | Path,
    regions: str = "tiles",
    *,
    prompt: str = "dapi2he",
    prompt_column: str | None = None,
    test_fraction: float = 0.1,
    overlay: Overlay | None = None,
    he: str | None = None,
    prefix: str = "",
    seed: int | None = None,
    allow_upsampling: bool = False,
    **kwargs: Any,
) -> None:
    """Write paired tiles as PNG files with prompts, in the layout that ST2HE and img2img-turbo train from.

    Parameters
    ----------
    sdata, regions, overlay, he, allow_upsampling, kwargs
        As of :func:`sthist.tiles.paired_loader`.
    path
        Is made. ``train_A`` and ``test_A`` hold the overlays, ``train_B`` and ``test_B`` the H&E under the same names,
        and ``train_prompts.json`` and ``test_prompts.json`` map each name to its prompt.
    prompt
        One text for all tiles, such as ``"This is a breast H&E image"``.
    prompt_column
        Column of the tiles' table that holds a prompt per tile, in place of ``prompt``.
    test_fraction
        Part of the tiles to hold out. They are held out by blocks of the section, and tiles that overlap them are left
        out: a random split of overlapping tiles leaks.
    prefix
        Put before each name, so that several samples can share a folder.
    seed
        Of the split, and of the palettes unless ``overlay`` is given; ``settings.seed`` by default.

    Raises
    ------
    KeyError, ValueError
        As of :func:`sthist.tiles.paired_loader`.
    FileExistsError
        If a tile of that name is there already.

    Examples
    --------
    >>> import tempfile, pathlib, sthist
    >>> sdata = sthist.datasets.toy(size_um=200)
    >>> sthist.pp.tiles(sdata, size_um=32, px=64, sampling="fps", n_tiles=6)
    >>> folder = pathlib.Path(tempfile.mkdtemp())
    >>> sthist.tiles.export_pairs(sdata, folder, prompt="This is a toy H&E image", test_fraction=0)
    >>> sorted(path.name for path in folder.iterdir()), len(list((folder / "train_A").iterdir()))
    (['test_A', 'test_B', 'test_prompts.json', 'train_A', 'train_B', 'train_prompts.json'], 6)
    """
    from PIL import Image

    table, spec = laid_tiles(sdata, regions)
    seed = settings.seed if seed is None else seed
    style = kwargs if overlay is not None else {"seed": seed} | kwargs
    overlay, target = _readers(sdata, spec, overlay, he, style, allow_upsampling=allow_upsampling)
    centres = np.asarray(table.obsm["spatial"], np.float64)
    split = spatial_split(centres, spec.size_um, test_fraction, seed=seed)
    if (split == "dropped").any():
        n_dropped, n_test = int((split == "dropped").sum()), int((split == "test").sum())
        logger.warning("%d of %d tiles overlap the %d test tiles and are left out.", n_dropped, len(split), n_test)
    if prompt_column is not None and prompt_column not in table.obs:
        raise KeyError(f"Table '{regions}_table' has no column {prompt_column!r}; it has {list(table.obs.columns)}.")
    prompts = [prompt] * len(table) if prompt_column is None else table.obs[prompt_column].astype(str).tolist()
    ids = table.obs["instance_id"].to_numpy()
    names = [f"{prefix}{tile}.png" for tile in ids]
    path = Path(path)
    begun = _names_in(path / UNFINISHED)
    for subset in SUBSETS:
        for side in "AB":
            (path / f"{subset}_{side}").mkdir(parents=True, exist_ok=True)
        taken = [name for name in names if name not in begun and (path / f"{subset}_A" / name).exists()]
        if taken:
            raise FileExistsError(
                f"{path / f'{subset}_A' / taken[0]} is there already; give prefix=, or another folder."
            )
    _write_json(path / UNFINISHED, sorted(begun | set(names)))
    for subset in SUBSETS:
        chosen = np.flatnonzero(split == subset)
        for start in range(0, len(chosen), 32):
            batch = chosen[start : start + 32]
            pairs = zip(batch, overlay.read(centres[batch], ids=ids[batch]), target.read(centres[batch]), strict=True)
            for i, stain, histology in pairs:
                for side, tile in (("A", stain), ("B", histology)):
                    with written_whole(path / f"{subset}_{side}" / names[i]) as partial:
                        Image.fromarray(tile).save(partial)
        prompt_file = path / f"{subset}_prompts.json"
        known = read_object(prompt_file) if prompt_file.exists() else {}
        _write_json(prompt_file, known | {names[i]: prompts[i] for i in chosen})
    left = begun - set(names)
    _write_json(path / UNFINISHED, sorted(left)) if left else (path / UNFINISHED).unlink()


UNFINISHED = ".unfinished.json"
"""In a folder of pairs: names of those that a call began to write and, if it was stopped, did not write all of."""


def _names_in(file: Path) -> set[str]:
    return set(parse_json(file)) if file.exists() else set()


def _write_json(file: Path, content: Any) -> None:
    with written_whole(file) as partial:
        partial.write_text(json.dumps(content, indent=1, ensure_ascii=False), "utf-8")


def _readers(
    sdata: SpatialData,
    spec: TileSpec,
    overlay: Overlay | None,
    he: str | None,
    kwargs: dict[str, Any],
    *,
    allow_upsampling: bool,
) -> tuple[Overlay, TileReader]:
    target = TileReader.from_image(open_he(sdata, he), spec, fill=255, allow_upsampling=allow_upsampling)
    if overlay is None:
        return Overlay(sdata, spec, allow_upsampling=allow_upsampling, **kwargs), target
    require_no_style(kwargs)
    if not same_spec(overlay.spec, spec):
        raise ValueError(f"The overlay is made for {overlay.spec}, the tiles are of {spec}.")
    return overlay, target


def require_no_style(kwargs: dict[str, Any]) -> None:
    """Refuse arguments of an overlay beside an overlay that exists."""
    if kwargs:
        raise TypeError(
            f"{', '.join(kwargs)} would be ignored: overlay= is given. Change its style with overlay.restyled(...)."
        )
