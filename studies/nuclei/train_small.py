"""Train the small network of ``pp.nuclei`` on drawn nuclei, about ten minutes of one core.

    python studies/nuclei/train_small.py --data ../shared/data --out src/sthist/pp/_nuclei/published/nuclei-small

It learns from the 67 images of ``dsb2018_purple_nuclei`` (CC0) of the style ``purple_on_purple``, which are tissue
without eosin. So most crops are stained anew (``restain.py``): what takes up red light becomes haematoxylin, beneath it
come eosin of a slide (``he_svs``, CC0), fibres and blobs that are no nuclei, and all of it has colours that are drawn
anew each time. No other set is used, so that all others can judge it (``segmentation.py``).

Weights are kept in half precision, as a running average over the last steps.
"""

from __future__ import annotations

import argparse
import json
import time
from pathlib import Path

import numpy as np
import torch
from restain import Restain, turned
from torch.nn import functional
from truth import drawn_nuclei

from sthist.nets import NucleusUNet

STYLES = ("purple_on_purple",)
PX, MPP, SOURCE_MPP = 128, 0.5, 0.4
EMPTY = 0.08  # part of the crops that show no nuclei


def main() -> None:
    """Train, and save the running average of the weights."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, default=Path("../shared/data"))
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--styles", nargs="+", default=STYLES)
    parser.add_argument("--steps", type=int, default=2800)
    parser.add_argument("--width", type=int, default=16)
    parser.add_argument("--batch", type=int, default=16)
    parser.add_argument("--rate", type=float, default=3e-3)
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    torch.manual_seed(options.seed)
    torch.set_num_threads(1)
    crops = Crops(options.data, options.styles, np.random.default_rng(options.seed))
    net = NucleusUNet(options.width).to(memory_format=torch.channels_last).train()
    optimizer = torch.optim.AdamW(net.parameters(), lr=options.rate, weight_decay=1e-3)
    average = torch.optim.swa_utils.AveragedModel(net, avg_fn=running, use_buffers=True)
    start, losses = time.process_time(), []
    for step in range(options.steps):
        done = step / options.steps
        for group in optimizer.param_groups:  # up in the first twentieth, then down to nothing
            group["lr"] = options.rate * min(1.0, done / 0.05) * (0.5 + 0.5 * np.cos(np.pi * done))
        pixels, depth = crops.batch(options.batch)
        with torch.autocast("cpu", torch.bfloat16):
            out = net(pixels.to(memory_format=torch.channels_last))
        loss = loss_of(out.float(), depth)
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(net.parameters(), 5.0)
        optimizer.step()
        average.update_parameters(net)
        losses.append(loss.item())
        if step % 100 == 99 or step == options.steps - 1:
            minutes = (time.process_time() - start) / 60
            print(f"{step + 1} steps, {minutes:.1f} minutes, loss {np.mean(losses[-100:]):.4f}", flush=True)
            save(average.module, options, {"minutes": round(minutes, 1), "loss": round(np.mean(losses[-200:]), 4)})


def running(average: torch.Tensor, now: torch.Tensor, n: torch.Tensor) -> torch.Tensor:
    """An average over the last tenth of the steps, of at most a hundred."""
    return average + (now - average) / (1 + min(float(n) / 10, 100.0))


def loss_of(out: torch.Tensor, depth: torch.Tensor) -> torch.Tensor:
    """Cross entropy and overlap of the mask, squared error of the depth."""
    mask, logits, guess = (depth > 0.04).float(), out[:, 0], out[:, 1]
    probability = torch.sigmoid(logits)
    overlap = 1 - (2 * (probability * mask).sum() + 1) / (probability.sum() + mask.sum() + 1)
    error = functional.mse_loss(guess, depth, reduction="none") * (1 + 2 * mask)
    return functional.binary_cross_entropy_with_logits(logits, mask) + 0.5 * overlap + 2 * error.mean()


class Crops:
    """Pieces of images, turned, scaled and stained anew."""

    def __init__(self, data: Path, styles: list[str], rng: np.random.Generator) -> None:
        self.rng, self.restain, self.planes, weights = rng, Restain(data, rng, PX), [], []
        for style in styles:
            images = drawn_nuclei(data, style, SOURCE_MPP)
            weight = np.array([np.sqrt(each.rgb[..., 0].size) for each in images])
            weights.append(weight / weight.sum())  # styles count alike
            for each in images:
                planes = [*each.rgb.transpose(2, 0, 1) / 255, depth_of(each.labels), each.labels]
                self.planes.append(torch.from_numpy(np.stack(planes).astype(np.float32)))
        self.weights = np.concatenate(weights) / len(styles)

    def batch(self, n: int) -> tuple[torch.Tensor, torch.Tensor]:
        """Pixels (n, 3, px, px), and the depth of each, (n, px, px)."""
        chosen = self.rng.choice(len(self.planes), n, p=self.weights)
        parts = torch.stack([self._piece(self.planes[k]) for k in chosen])
        parts[torch.from_numpy(self.rng.uniform(size=n) < EMPTY), 3:] = 0
        return self.restain(parts[:, :3], parts[:, 4].long()), parts[:, 3].clamp(0, 1)

    def _piece(self, planes: torch.Tensor) -> torch.Tensor:
        """A window at 0.5 µm/px, turned by any angle, its nuclei larger or smaller."""
        zoom = float(np.exp(self.rng.normal(0.1, 0.3))) * MPP / SOURCE_MPP  # pixels of the source per pixel of the crop
        return turned(planes, self.rng, PX, zoom, nearest=1)


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


def save(net: torch.nn.Module, options: argparse.Namespace, facts: dict[str, float]) -> None:
    """Weights of half precision, and what they were made from."""
    from safetensors.torch import save_file

    options.out.mkdir(parents=True, exist_ok=True)
    weights = {
        name: (each.half() if each.is_floating_point() else each).contiguous()
        for name, each in net.state_dict().items()
    }
    save_file(weights, options.out / "model.safetensors")
    settings = {name: getattr(options, name) for name in ("width", "styles", "steps", "batch", "rate", "seed")}
    (options.out / "config.json").write_text(json.dumps({**settings, "mpp": MPP, **facts}, indent=1) + "\n")


if __name__ == "__main__":
    main()
