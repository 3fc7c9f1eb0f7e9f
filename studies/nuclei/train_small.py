"""Train the small network of ``pp.nuclei`` on drawn nuclei (CC0), six minutes of one core.

    python studies/nuclei/train_small.py --data ../shared/data --out src/sthist/_data/nuclei

It is trained on the tissue images of ``dsb2018_purple_nuclei`` (styles ``purple_on_purple`` and ``pink_he``); those of
the style ``purple_on_white`` are held out, and judged in ``segmentation.py`` together with other sets. Most of these
images have no eosin, so it is made: amounts of haematoxylin are told from red light, an eosin texture is laid under
them, from a slide (``he_svs``, CC0), and both are coloured by stain vectors that are drawn anew each time.
"""

from __future__ import annotations

import argparse
import json
import time
from pathlib import Path

import numpy as np
import torch
from torch.nn import functional
from truth import drawn_nuclei, svs_pixels

from sthist.nets import NucleusUNet

PX, MPP, SOURCE_MPP = 128, 0.5, 0.4
STYLES = ("purple_on_purple", "pink_he")
HAEMATOXYLIN, EOSIN = (0.65, 0.70, 0.29), (0.10, 0.95, 0.25)


def main() -> None:
    """Train, and save the running average of the weights."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, default=Path("../shared/data"))
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--minutes", type=float, default=6.0)
    parser.add_argument("--width", type=int, default=16)
    parser.add_argument("--batch", type=int, default=16)
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    torch.manual_seed(options.seed)
    torch.set_num_threads(1)
    crops = Crops(options.data, np.random.default_rng(options.seed))
    net = NucleusUNet(options.width).to(memory_format=torch.channels_last).train()
    optimizer = torch.optim.AdamW(net.parameters(), lr=3e-3, weight_decay=1e-3)
    average = torch.optim.swa_utils.AveragedModel(
        net, multi_avg_fn=torch.optim.swa_utils.get_ema_multi_avg_fn(0.995), use_buffers=True
    )
    start, step, losses = time.process_time(), 0, []
    while (done := (time.process_time() - start) / (60 * options.minutes)) < 1:
        for group in optimizer.param_groups:  # up in the first twentieth, then down to nothing
            group["lr"] = 3e-3 * min(1.0, done / 0.05) * (0.5 + 0.5 * np.cos(np.pi * done))
        pixels, mask, depth = crops.batch(options.batch)
        with torch.autocast("cpu", torch.bfloat16):
            out = net(pixels.to(memory_format=torch.channels_last))
        loss = loss_of(out.float(), mask, depth)
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(net.parameters(), 5.0)
        optimizer.step()
        average.update_parameters(net)
        losses.append(float(loss))
        step += 1
        if step % 50 == 0:
            print(f"{step} steps, {done:.0%}, loss {np.mean(losses[-50:]):.4f}", flush=True)
            if step % 200 == 0:
                save(average.module, options, step, losses)
    save(average.module, options, step, losses)


def loss_of(out: torch.Tensor, mask: torch.Tensor, depth: torch.Tensor) -> torch.Tensor:
    """Cross entropy and overlap of the mask, squared error of the depth."""
    logits, guess = out[:, 0], out[:, 1]
    probability = torch.sigmoid(logits)
    overlap = 1 - (2 * (probability * mask).sum() + 1) / (probability.sum() + mask.sum() + 1)
    error = functional.mse_loss(guess, depth, reduction="none") * (1 + 2 * mask)
    return functional.binary_cross_entropy_with_logits(logits, mask) + 0.5 * overlap + 2 * error.mean()


class Crops:
    """Pieces of images, turned, scaled and stained anew."""

    def __init__(self, data: Path, rng: np.random.Generator) -> None:
        self.rng = rng
        self.images = [each for style in STYLES for each in drawn_nuclei(data, style, SOURCE_MPP)]
        self.planes = [
            torch.from_numpy(
                np.concatenate([each.rgb.transpose(2, 0, 1) / 255, depth_of(each.labels)[None]]).astype(np.float32)
            )
            for each in self.images
        ]
        weight = np.array([np.sqrt(each.labels.size) * (4 if each.style == "pink_he" else 1) for each in self.images])
        self.weight = weight / weight.sum()
        slide = svs_pixels(data).astype(np.float32)
        # What green takes up beyond red is eosin.
        density = -np.log(np.maximum(slide, 1) / 245)
        eosin = np.clip(density[..., 1] - 1.05 * density[..., 0], 0, None)
        self.texture = torch.from_numpy(eosin / np.percentile(eosin[eosin > 0.02], 95))

    def batch(self, n: int) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """(n, 3, px, px) pixels, and (n, px, px) masks and depths."""
        chosen = self.rng.choice(len(self.planes), n, p=self.weight)
        parts = torch.stack([self._piece(self.planes[k]) for k in chosen])
        depth = parts[:, 3].clamp(0, 1)
        pixels = torch.stack([self._stained(part[:3]) for part in parts])
        return pixels, (depth > 0.04).float(), depth

    def _piece(self, planes: torch.Tensor) -> torch.Tensor:
        """A window at 0.5 µm/px, turned by any angle, its nuclei larger or smaller."""
        rng, (height, width) = self.rng, planes.shape[1:]
        zoom = float(np.exp(rng.normal(0.1, 0.25))) * MPP / SOURCE_MPP  # pixels of the source per pixel of the window
        angle, flip = rng.uniform(0, 2 * np.pi), rng.choice([-1, 1])
        stretch = float(np.exp(rng.normal(0, 0.06)))
        turn = np.array([[np.cos(angle), -np.sin(angle)], [np.sin(angle), np.cos(angle)]])
        matrix = zoom * PX / 2 * turn @ np.diag([flip * stretch, 1 / stretch])
        # Near the middle, or where most of the window lies on the image.
        margin = [min(n / 2, 0.4 * zoom * PX) for n in (width, height)]
        centre = [rng.uniform(low, n - low + 1e-6) for low, n in zip(margin, (width, height), strict=True)]
        middle = [[2 * at / n - 1] for at, n in zip(centre, (width, height), strict=True)]
        theta = torch.tensor(np.concatenate([matrix / [[width / 2], [height / 2]], middle], 1)[None])
        grid = functional.affine_grid(theta.float(), [1, 1, PX, PX], align_corners=False)
        return functional.grid_sample(planes[None], grid, padding_mode="reflection", align_corners=False)[0]

    def _stained(self, pixels: torch.Tensor) -> torch.Tensor:
        """Pixels in other colours."""
        rng = self.rng
        density = -torch.log(pixels.clamp(1 / 255))
        if rng.uniform() < 0.65:
            density = self._restained(density)
        mixed = torch.tensor(np.eye(3) + rng.normal(0, 0.08, (3, 3)), dtype=torch.float32)
        density = torch.einsum("ij,jhw->ihw", mixed, density).clamp(0)
        density = density * float(np.exp(rng.normal(0, 0.25))) + float(max(0, rng.normal(0, 0.05)))
        out = torch.exp(-density)
        if rng.uniform() < 0.5:
            sigma = rng.uniform(0.3, 1.0)
            kernel = torch.exp(-0.5 * (torch.arange(-2, 3) / sigma) ** 2)
            kernel = kernel / kernel.sum()
            out = functional.pad(out[:, None], (2, 2, 2, 2), mode="replicate")
            out = functional.conv2d(functional.conv2d(out, kernel.view(1, 1, 5, 1)), kernel.view(1, 1, 1, 5))[:, 0]
        noise = torch.from_numpy(rng.normal(0, rng.uniform(0, 0.02), out.shape).astype(np.float32))
        return (out + noise).clamp(0, 1)

    def _restained(self, density: torch.Tensor) -> torch.Tensor:
        """The nuclei as haematoxylin, over eosin."""
        rng = self.rng
        red = density[0]
        # Levels between nuclei differ between images; here they become what a stained slide has.
        low = torch.quantile(red, 0.1)
        amount = (red - low).clamp(0) / (torch.quantile(red, 0.98) - low).clamp(0.1)
        haematoxylin = float(rng.uniform(0.5, 2.2)) * amount ** float(np.exp(rng.normal(0, 0.2))) + rng.uniform(0, 0.25)
        y, x = rng.integers(0, self.texture.shape[0] - PX), rng.integers(0, self.texture.shape[1] - PX)
        texture = self.texture[y : y + PX, x : x + PX].clamp(0, 1.5)
        grain = torch.from_numpy(rng.normal(0, 1, (1, 1, PX // 4, PX // 4)).astype(np.float32))
        grain = functional.interpolate(grain, (PX, PX), mode="bicubic")[0, 0] * rng.uniform(0, 0.15)
        eosin = rng.uniform(0.1, 1.0) * texture + rng.uniform(0, 0.7) + grain
        eosin = eosin * (1 - rng.uniform(0.2, 0.9) * amount.clamp(0, 1))
        vectors = np.array([HAEMATOXYLIN, EOSIN]) * np.exp(rng.normal(0, 0.2, (2, 3)))
        vectors /= np.linalg.norm(vectors, axis=1, keepdims=True)
        amounts = torch.stack([haematoxylin, eosin.clamp(0)])
        return torch.einsum("sc,shw->chw", torch.tensor(vectors, dtype=torch.float32), amounts)


def depth_of(labels: np.ndarray) -> np.ndarray:
    """How deep in its nucleus each pixel lies, as a part of the deepest; 0 outside."""
    from scipy.ndimage import distance_transform_edt, find_objects

    out = np.zeros(labels.shape, np.float32)
    for label, place in enumerate(find_objects(labels), 1):
        if place is None:
            continue
        inside = np.pad(labels[place] == label, 1)
        depth = distance_transform_edt(inside)[1:-1, 1:-1]
        out[place] = np.where(inside[1:-1, 1:-1], depth / depth.max(), out[place])
    return out


def save(net: torch.nn.Module, options: argparse.Namespace, step: int, losses: list[float]) -> None:
    """Weights of half precision, and what they were made from."""
    from safetensors.torch import save_file

    options.out.mkdir(parents=True, exist_ok=True)
    weights = {
        name: (each.half() if each.is_floating_point() else each).contiguous()
        for name, each in net.state_dict().items()
        if not name.endswith("num_batches_tracked")
    }
    save_file(weights, options.out / "small.safetensors")
    facts = {"width": options.width, "styles": STYLES, "steps": step, "minutes": options.minutes, "seed": options.seed}
    facts["loss"] = round(float(np.mean(losses[-200:])), 4)
    (options.out / "small.json").write_text(json.dumps(facts, indent=1) + "\n")


if __name__ == "__main__":
    main()
