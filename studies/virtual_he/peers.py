"""Published virtual H&E by formula, each in an environment of its own: ``python peers.py NAME IN.npz OUT.npz``.

``pip install multiplex2brightfield`` (it pins numpy 1.26), or ``pip install falsecolor``, beside nothing of sthist. IN
has ``stain`` and ``molecules``, tiles (n, px, px) from 0 on, and ``mpp``; OUT gets ``made``, (n, px, px, 3) uint8. All
tiles are coloured together, as one image, since both packages scale what they see by its own levels.
"""

from __future__ import annotations

import sys
import tempfile
from pathlib import Path

import numpy as np


def mosaic(tiles: np.ndarray) -> tuple[np.ndarray, int]:
    """Tiles side by side in rows as long as there are rows, the last ones again where a row is not full."""
    side = int(np.ceil(np.sqrt(len(tiles))))
    filled = np.concatenate([tiles, tiles[:1].repeat(side * side - len(tiles), 0)])
    px = tiles.shape[1]
    return filled.reshape(side, side, px, px).swapaxes(1, 2).reshape(side * px, side * px), side


def tiles_of(image: np.ndarray, n: int, side: int) -> np.ndarray:
    """The tiles of a mosaic of colours."""
    px = len(image) // side
    return image.reshape(side, px, side, px, 3).swapaxes(1, 2).reshape(-1, px, px, 3)[:n]


def multiplex2brightfield(stain: np.ndarray, molecules: np.ndarray, mpp: float) -> np.ndarray:
    """Its preset "H&E", the molecules as a stain of the cytoplasm."""
    import tifffile
    from multiplex2brightfield import convert

    image = np.stack([stain, molecules])[None].astype(np.float32)
    with tempfile.TemporaryDirectory() as folder:
        path = str(Path(folder) / "made.ome.tiff")
        how = {"channel_names": ["DAPI", "Vimentin"], "stain": "H&E", "create_pyramid": False, "downsample_count": 1}
        convert(image, path, input_pixel_size_x=mpp, input_pixel_size_y=mpp, **how)
        made = np.squeeze(tifffile.imread(path))
    return made if made.shape[-1] == 3 else np.moveaxis(made, 0, -1)


def falsecolor(stain: np.ndarray, molecules: np.ndarray, mpp: float) -> np.ndarray:
    """Its colours by Beer's law, with its own norm factors as the brightest of both channels."""
    from falsecolor.coloring import falseColor

    nuclei, cytoplasm = (
        each / max(np.percentile(each, 99), 1e-6) * full for each, full in ((stain, 5000), (molecules, 2000))
    )
    return falseColor(nuclei, cytoplasm, nuc_threshold=50, cyto_threshold=50)


PEERS = {"multiplex2brightfield": multiplex2brightfield, "falsecolor": falsecolor}


def main() -> None:
    """Colour the tiles of a file."""
    name, source, target = sys.argv[1:]
    given = np.load(source)
    (stain, side), (molecules, _) = (mosaic(given[each]) for each in ("stain", "molecules"))
    made = np.asarray(PEERS[name](stain, molecules, float(given["mpp"])))
    np.savez(target, made=tiles_of(made.astype(np.uint8), len(given["stain"]), side))


if __name__ == "__main__":
    main()
