"""Tiles that are files, read as tiles of a slide are."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from sthist._settings import settings
from sthist.io._parts.sample import read_he
from sthist.tiles._images.reader import MAX_UPSAMPLING, TileReader
from sthist.tiles._spec import TooFine

if TYPE_CHECKING:
    from anndata import AnnData

    from sthist.tiles._images.reader import Transform
    from sthist.tiles._spec import TileSpec

WHITE = 255


class FolderReader:
    """Reads the images of :func:`sthist.io.tile_folder` as tiles of one :class:`TileSpec`, by row.

    A tile is cut out of the middle of its image, upright, and resampled with anti-aliasing from the image's µm per
    pixel: one tile pixel always shows ``spec.mpp`` micrometres, however large the images are.

    Parameters
    ----------
    data
        What :func:`sthist.io.tile_folder` gave, or rows of it.
    spec
        Physical size and pixels of the tiles.
    fill
        Value around images that are smaller than the tile; without it, they are refused.
    allow_upsampling
        Read images whose µm/px is more than 1.5 times ``spec.mpp``.
    root
        The folder, if it is elsewhere now.
    normalizer
        As of :class:`TileReader`.

    Raises
    ------
    KeyError
        If ``data`` is no such table.
    ValueError
        If an image is smaller than the tile, or coarser; while reading, if it is broken or has changed.
    FileNotFoundError
        While reading, if an image is not there any more.

    Examples
    --------
    >>> import tempfile, pathlib, numpy as np, sthist
    >>> from PIL import Image
    >>> root = pathlib.Path(tempfile.mkdtemp())
    >>> Image.fromarray(np.full((256, 300, 3), 200, np.uint8)).save(root / "a.png")
    >>> tiles = sthist.io.tile_folder(root, mpp=0.25, labels=None)
    >>> reader = sthist.tiles.FolderReader(tiles, sthist.tiles.TileSpec(size_um=64, px=128))
    >>> reader.read([0]).shape
    (1, 128, 128, 3)
    """

    channels = ("r", "g", "b")
    dtype = np.dtype(np.uint8)
    by_row = True
    block = 1  # files lie in folders by class, and have no chunks in common: they are shuffled one by one

    def __init__(
        self,
        data: AnnData,
        spec: TileSpec,
        *,
        fill: int | None = None,
        allow_upsampling: bool = False,
        root: str | Path | None = None,
        normalizer: Transform | None = None,
    ) -> None:
        made = data.uns.get("sthist", {}).get("tile_folder")
        if made is None or not {"file", "height", "width", "mpp"} <= set(data.obs):
            raise KeyError(
                "This table is no folder of tiles: it has no uns['sthist']['tile_folder'], or obs lacks file, height, "
                "width or mpp."
            )
        self.spec, self.fill, self._normalizer = spec, WHITE if fill is None else fill, normalizer
        self.root = Path(made["root"] if root is None else root)
        self._files = data.obs["file"].astype(str).to_numpy()
        self._sizes = data.obs[["height", "width"]].to_numpy(np.int64)
        self._mpp = data.obs["mpp"].to_numpy(np.float64)
        # A tile pixel takes what its centre shows: half of one at either side may lie beyond the image.
        small = self._sizes.min(axis=1) * self._mpp < spec.size_um - spec.mpp
        if fill is None and small.any():
            row = int(small.argmax())
            height, width = (self._sizes[row] * self._mpp[row]).tolist()
            raise ValueError(
                f"{int(small.sum())} of {len(self)} images are smaller than a tile of {spec.size_um:g} µm, such as "
                f"{self._files[row]!r} of {width:.4g} x {height:.4g} µm. Choose smaller tiles, or say with fill= what "
                "is around them, such as fill=255."
            )
        coarse = self._mpp > MAX_UPSAMPLING * spec.mpp
        if coarse.any() and not allow_upsampling:
            row = int(coarse.argmax())
            problem = (
                f"{int(coarse.sum())} of {len(self)} images are coarser than tiles of {spec.mpp:.4g} µm/px, such as "
                f"{self._files[row]!r} of {self._mpp[row]:.4g} µm/px: more than {MAX_UPSAMPLING} times."
            )
            raise TooFine(problem, spec, float(self._mpp.max()))

    def __len__(self) -> int:
        """Number of images."""
        return len(self._files)

    def order(self, rows: np.ndarray) -> np.ndarray:
        """The order in which rows are read best: as they come, since no two share a file."""
        return np.arange(len(rows))

    def read(self, rows: Any, *, out: np.ndarray | None = None) -> np.ndarray:
        """Read tiles.

        Parameters
        ----------
        rows
            (n,): numbers of rows, from 0.
        out
            Array to read into.

        Returns
        -------
        Tiles of shape (n, px, px, 3) uint8, in the order of ``rows``.
        """
        rows = np.asarray(rows, np.int64).ravel()
        if len(rows) and not (rows.min() >= 0 and rows.max() < len(self)):
            raise IndexError(f"Rows {rows.min()} to {rows.max()} are asked for; there are {len(self)} images, from 0.")
        if out is None:
            out = np.empty((len(rows), self.spec.px, self.spec.px, 3), self.dtype)
        with ThreadPoolExecutor(settings.threads) as pool:
            list(pool.map(lambda i: self._read_one(rows[i], out[i]), range(len(rows))))
        return out

    def _read_one(self, row: int, tile: np.ndarray) -> None:
        file, mpp = self._files[row], float(self._mpp[row])
        pixels = np.ascontiguousarray(read_he(self.root / file, file).pixels)
        height, width = pixels.shape[1:]
        if (height, width) != tuple(self._sizes[row]):
            was = " x ".join(map(str, self._sizes[row][::-1]))
            raise ValueError(
                f"{self.root / file} has {width} x {height} px, and had {was} when it was listed; call io.tile_folder "
                "again."
            )
        reader = TileReader.from_array(
            pixels, np.diag([mpp, mpp, 1.0]), self.spec, fill=self.fill, normalizer=self._normalizer
        )
        reader.read([[width * mpp / 2, height * mpp / 2]], out=tile[None])
