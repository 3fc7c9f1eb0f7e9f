"""C2L-ST: guided sampling beside two separate passes a step, and beside one bare pass of the network.

Run ``python bench/synthesis.py [--json FILE] [--device cuda] [--px 64] [--batch 32]``.

``C2L.generate`` at guidance 3 stands beside the plain way: at each step the adapter is asked anew, and the network is
called once without and once with what it says. Both make the same tiles of the same noise, in float32, at 250 and at
50 steps, once each; tiles are compared as numbers from -1 to 1, before they are rounded to 8 bits. A step of ours also
stands beside one pass of the network on a batch of twice the size, in the layout that ours has and in torch's own. All
take turns, and the least of several turns counts.

Others may use the machine, too: seconds of the processor stand beside those of the clock.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

import sthist
from sthist import nets

if TYPE_CHECKING:
    from collections.abc import Callable

GENES, SCALE = 250, 3.0


def models(px: int) -> tuple[nets.DiffusionUNet, nets.GeneAdapter]:
    """The small network, and an adapter that says something."""
    torch.manual_seed(0)
    config = sthist.models.C2LConfig.small(px=px)
    unet = nets.DiffusionUNet(config.dim, config.multipliers).eval().requires_grad_(False)
    adapter = nets.GeneAdapter(GENES, unet.sites).eval().requires_grad_(False)
    torch.nn.init.normal_(adapter.modulate.weight, std=0.05)
    return unet, adapter


def clocks(device: str) -> dict[str, float]:
    """Seconds of the clock and of the processor, when all that was asked for is done."""
    if device != "cpu":
        torch.cuda.synchronize()
    return {"clock": time.perf_counter(), "processor": time.process_time()}


def turns(ways: dict[str, Callable[[], Any]], n: int, device: str) -> dict[str, dict[str, float]]:
    """Least seconds of each way over some turns, by the clock and of the processor; the first turn warms up."""
    best: dict[str, dict[str, float]] = {name: {"clock": np.inf, "processor": np.inf} for name in ways}
    for turn in range(n + 1):
        for name, way in ways.items():
            start = clocks(device)
            way()
            for clock, now in clocks(device).items():
                if turn:
                    best[name][clock] = min(best[name][clock], now - start[clock])
    return best


@torch.inference_mode()
def run(px: int, batch: int, device: str, steps: list[int], n_turns: int) -> dict[str, Any]:
    """Times and differences."""
    unet, adapter = (each.to(device) for each in models(px))
    ours = models(px)[0].to(device, memory_format=torch.channels_last)
    rng = np.random.default_rng(0)
    expression = torch.from_numpy(rng.standard_normal((batch, GENES), np.float32)).to(device)
    noise = torch.from_numpy(rng.standard_normal((batch, 3, px, px), np.float32)).to(device)
    packed, time_ = noise.to(memory_format=torch.channels_last), torch.tensor([500], device=device)

    def separate(network: Any) -> Callable[[torch.Tensor, torch.Tensor], torch.Tensor]:
        def predict(images: torch.Tensor, times: torch.Tensor) -> torch.Tensor:
            null = network(images, times)
            return null + SCALE * (network(images, times, adapter(expression)) - null)  # type: ignore[no-any-return]

        return predict

    def together() -> Callable[[torch.Tensor, torch.Tensor], torch.Tensor]:
        return nets.guided(ours, adapter(expression), SCALE)

    one = together()
    found: dict[str, Any] = {"px": px, "batch": batch, "device": device, "sampling": {}}
    found["step"] = turns(
        {
            "guided": lambda: one(packed, time_),
            "two_passes": lambda: separate(unet)(noise, time_),
            "two_passes_channels_last": lambda: separate(ours)(packed, time_),
            "bare_doubled": lambda: unet(torch.cat([noise, noise]), time_),
            "bare_doubled_channels_last": lambda: ours(torch.cat([packed, packed]), time_),
        },
        n_turns,
        device,
    )
    for n in steps:
        ways = {
            "guided": lambda n=n: nets.ddim(together(), packed, n),
            "two_passes": lambda n=n: nets.ddim(separate(unet), noise, n),
            "two_passes_channels_last": lambda n=n: nets.ddim(separate(ours), packed, n),
        }
        made, seconds = {}, {}
        for name, way in ways.items():
            start = clocks(device)
            made[name] = way()
            seconds[name] = {clock: now - start[clock] for clock, now in clocks(device).items()}
        found["sampling"][n] = {
            "seconds": seconds,
            "largest_difference": {name: float((made["guided"] - made[name]).abs().max()) for name in list(ways)[1:]},
        }
    found["images_a_second"] = {n: batch / each["seconds"]["guided"]["clock"] for n, each in found["sampling"].items()}
    return found


def main() -> None:
    """The figures, printed and saved."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--json", type=Path)
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--px", type=int, nargs="*", default=[32])
    parser.add_argument("--batch", type=int, nargs="*", default=[1, 8])
    parser.add_argument("--steps", type=int, nargs="*", default=[250, 50])
    parser.add_argument("--turns", type=int, default=7)
    options = parser.parse_args()
    torch.set_num_threads(int(os.environ.get("OMP_NUM_THREADS", torch.get_num_threads())))
    cuda = options.device.startswith("cuda")
    results: dict[str, Any] = {
        "command": "OMP_NUM_THREADS=1 python bench/synthesis.py",
        "machine": f"{platform.machine()}, {os.cpu_count()} cores, Python {platform.python_version()}, torch "
        f"{torch.__version__}, {torch.get_num_threads()} threads" + (torch.cuda.get_device_name() if cuda else ""),
        "load": os.getloadavg()[0],
        "rows": [],
    }
    for px in options.px:
        for batch in options.batch:
            row = run(px, batch, options.device, options.steps, options.turns)
            step = {name: each["processor" if not cuda else "clock"] for name, each in row["step"].items()}
            for name in list(step)[1:]:
                row[f"step_over_{name}"] = step["guided"] / step[name]
            results["rows"].append(row)
            print(json.dumps(row, indent=1), flush=True)
    if options.json:
        options.json.write_text(json.dumps(results, indent=1) + "\n")


if __name__ == "__main__":
    main()
