"""Whether a translation learns: what is wrong with its outputs, scores, and pictures."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from sthist._disk import written_whole
from sthist.training.batches import as_input, as_tiles

if TYPE_CHECKING:
    from pathlib import Path

    from sthist.systems.virtual_he.training_set.pairs import Pairs

LEAST_SPREAD, FARTHEST, LEAST_SHARED = 0.15, 0.3, 0.2
"""Of the outputs: standard deviation as a part of the real images', distance of the mean colour (black to white is 2),
and part of the histogram of colours that both have."""

SHOWN, SCORED, CHECKED = 6, 64, 16
"""Tiles of a picture, of the scores of an epoch, and of the look at training tiles at the end."""

LEAST_OF_A_SET = 2
"""Tiles that FID needs."""

PATCHES = 8
"""Patches along a side of a tile, whose mean colours are compared: where each nucleus lies cannot be known."""


def complaint(outputs: dict[str, torch.Tensor]) -> str:
    """What is wrong with ``fake`` beside ``real`` images, both (n, 3, h, w) from -1 to 1; empty if nothing is."""
    fake, real = outputs["fake"].float(), outputs["real"]
    spread, wanted = (float(images.std((0, 2, 3)).mean()) for images in (fake, real))
    if spread < LEAST_SPREAD * wanted:
        return (
            f"the outputs are almost of one colour (their spread is {spread:.3g}, that of the real images {wanted:.3g})"
        )
    distance = float((fake.mean((0, 2, 3)) - real.mean((0, 2, 3))).abs().mean())
    if distance > FARTHEST:
        return f"the mean colour of the outputs is {distance:.2g} from the real one, where black to white is 2"
    shared = float(torch.minimum(_histogram(fake), _histogram(real)).sum())
    if shared < LEAST_SHARED:
        return f"the outputs share {shared:.0%} of their colours with the real images"
    return ""


def _histogram(images: torch.Tensor) -> torch.Tensor:
    """Part of the pixels in each of 8 x 8 x 8 colours, smoothed by their neighbours.

    A slight shift is no other colour.
    """
    bins = ((images.clamp(-1, 1) + 1) * 3.9999).long()
    index = (bins[:, 0] * 64 + bins[:, 1] * 8 + bins[:, 2]).flatten()
    counts = torch.bincount(index, minlength=512).float().reshape(1, 1, 8, 8, 8)
    smooth = torch.nn.functional.avg_pool3d(counts, 3, stride=1, padding=1).flatten()
    return smooth / smooth.sum().clamp_min(1e-9)


class Validation:
    """Scores of an epoch on validation tiles and, every so many epochs, a picture that a person can look at.

    Beside error, PSNR and SSIM there are those that look through a network, where its weights are: the terms of the
    loss (``validation_perceptual``, which is LPIPS or its stand-in, and ``validation_text``, the likeness to the
    prompt), and FID, if Inception is in torch's cache. It is of few tiles, so too high, and alike in all epochs.

    ``pairs``: tiles; None for none; ``folder``: ``images/epoch_0001.png`` is written there; None to draw nothing;
    ``images_every``: number of epochs between pictures; 0 for none.
    """

    def __init__(self, pairs: Pairs | None, folder: Path | None, images_every: int) -> None:
        self.pairs, self.folder, self.images_every = pairs, folder, images_every

    def __call__(self, module: Any, epoch: int) -> dict[str, float]:
        """Scores by name."""
        if self.pairs is None or not len(self.pairs):
            return {}
        inputs, fake, real = validated(module, self.pairs)
        if self.folder is not None and self.images_every and epoch % self.images_every == 0:
            _picture(inputs, fake, real, self.folder / "images" / f"epoch_{epoch:04d}.png")
        return _scores(fake, real) | _terms(module, self.pairs, fake, real) | _fid(fake, real)


def nothing_learned(module: Any) -> str:
    """What to say where training tiles are predicted no better than by their mean colour; empty where they are."""
    made, real = (_patches(tiles) for tiles in validated(module, module.pairs, CHECKED)[1:])
    own, trivial = ((made - real) ** 2).mean(), ((real.mean(axis=(0, 1, 2)) - real) ** 2).mean()
    if own < trivial:
        return ""
    return (
        f"Tiles that the model was trained on are predicted no better than by their mean colour (mean squared error of "
        f"patches {own:.4g}, of the mean colour {trivial:.4g}, where white is 255). It has learned little: train for "
        "longer, with more tiles, or see whether stain and H&E lie on each other."
    )


def _patches(tiles: np.ndarray) -> np.ndarray:
    """Mean colours of patches, (n, 8, 8, 3)."""
    side = max(1, tiles.shape[1] // PATCHES)
    n = tiles.shape[1] // side
    return tiles[:, : n * side, : n * side].reshape(-1, n, side, n, side, 3).mean(axis=(2, 4))


def validated(module: Any, pairs: Pairs, most: int = SCORED) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Input, output and real tiles of some pairs, spread over all."""
    rows = _spread(pairs, most)
    made, seen, real = [], [], []
    with module.averaged() as generator, torch.inference_mode():
        for start in range(0, len(rows), module.options.batch_size):
            part = rows[start : start + module.options.batch_size]
            inputs, targets = pairs.read(part, None)
            images, _, codes = module.tensors(inputs, targets, [pairs.prompts[row] for row in part])
            with module.trainer.precision_plugin.forward_context():
                made.append(as_tiles(module.translate(generator, images, module.vectors_of(codes), None)))
            seen.append(inputs)
            real.append(targets)
    return np.concatenate(seen), np.concatenate(made), np.concatenate(real)


def _spread(pairs: Pairs, most: int) -> np.ndarray:
    """Rows of some pairs, spread over all."""
    return np.unique(np.linspace(0, len(pairs) - 1, min(most, len(pairs))).astype(int))


def _scores(fake: np.ndarray, real: np.ndarray) -> dict[str, float]:
    from sthist.metrics import image

    return {f"validation_{name}": float(np.mean(getattr(image, name)(fake, real))) for name in ("mse", "psnr", "ssim")}


def _terms(module: Any, pairs: Pairs, fake: np.ndarray, real: np.ndarray) -> dict[str, float]:
    """Terms of the loss that look through a network, means over tiles."""
    looks = module.reconstruction
    names = [name for name, term in (("perceptual", looks.perceptual), ("text", looks.likeness)) if term is not None]
    prompts = [pairs.prompts[row] for row in _spread(pairs, SCORED)]
    total, size = dict.fromkeys(names, 0.0), module.options.batch_size
    for start in range(0, len(real) if names else 0, size):
        part = slice(start, start + size)
        # Both are images from -1 to 1, other than the input of a network.
        made, true = (as_input(torch.from_numpy(tiles[part]).to(module.device), -1.0) for tiles in (fake, real))
        codes = torch.tensor([module.prompts.index(prompt) for prompt in prompts[part]], device=module.device)
        with torch.inference_mode():
            terms = looks(made, true, codes)
        for name in names:
            total[name] += float(terms[name]) * len(true)
    return {f"validation_{name}": value / len(real) for name, value in total.items()}


def _fid(fake: np.ndarray, real: np.ndarray) -> dict[str, float]:
    """FID through Inception; nothing where its weights are not at hand."""
    from sthist._weights.files import MetricUnavailable
    from sthist.metrics._deep import frechet
    from sthist.metrics._networks import extract, inception_extractor

    if len(real) < LEAST_OF_A_SET:
        return {}
    try:
        network = inception_extractor("FID", None)
    except MetricUnavailable:
        return {}
    return {"validation_fid": frechet(extract(network, fake), extract(network, real))}


def _visible(tile: np.ndarray) -> np.ndarray:
    """Dots on the stain as they are; of more channels the stain, and in red the molecules."""
    if tile.shape[-1] == 3:
        return tile
    return tile[..., [1, 0, 0]]


def _picture(seen: np.ndarray, fake: np.ndarray, real: np.ndarray, path: Path) -> None:
    """One row per tile: input, output, real."""
    from PIL import Image

    chosen = np.linspace(0, len(seen) - 1, min(SHOWN, len(seen))).astype(int)
    rows = [np.concatenate([_visible(seen[i]), fake[i], real[i]], 1) for i in chosen]
    with written_whole(path) as partial:
        Image.fromarray(np.concatenate(rows)).save(partial)
