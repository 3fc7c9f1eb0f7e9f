"""Pairs of tiles, and generators, that are small enough to train in a second."""

from __future__ import annotations

import json
from dataclasses import replace

import numpy as np
import torch
from turbo_files import TINY

import sthist
from sthist.models import ST2HE, ArrayPairs, Pix2Pix, Pix2PixConfig, ST2HEConfig
from sthist.nets import SMALL

PX = 32
CLIP = {
    "model_cfg": {
        "embed_dim": 16,
        "vision_cfg": {"image_size": 32, "layers": 8, "width": 64, "patch_size": 8},
        "text_cfg": {"context_length": 20, "vocab_size": 49408, "width": 24, "heads": 2, "layers": 1},
    },
    "preprocess_cfg": {"mean": [0.5, 0.5, 0.5], "std": [0.25, 0.25, 0.25], "interpolation": "bilinear"},
}


def blots(n=8, px=PX, seed=0):
    """Bright blots on black, and the same places dark on pink."""
    rng = np.random.default_rng(seed)
    y, x = np.mgrid[:px, :px]
    inputs = np.zeros((n, px, px, 3), np.uint8)
    targets = np.empty_like(inputs)
    for i in range(n):
        light = np.zeros((px, px))
        for cx, cy, r in zip(*rng.uniform(4, px - 4, (2, 4)), rng.uniform(3, 6, 4), strict=True):
            light = np.maximum(light, np.exp(-((x - cx) ** 2 + (y - cy) ** 2) / r**2))
        inputs[i] = np.round(255 * light)[..., None]
        targets[i] = np.round(np.array([235, 190, 215]) - light[..., None] * [150, 130, 70])
    return inputs, targets


def pairs(n=8, px=PX, seed=0, **kwargs):
    return ArrayPairs(*blots(n, px, seed), **kwargs)


def small(**fields):
    """The small generator, smaller still, for tiles of 32 px."""
    turbo = replace(SMALL, vae_channels=(8, 16, 16, 16), unet_channels=(16, 32), unet_heads=(1, 2))
    return ST2HE(ST2HEConfig(**{"size_um": 16.0, "px": PX, "turbo": turbo, **fields}))


def adapted(folder, **fields):
    """A tiny pretrained generator with adapters."""
    prompts = {"lung": "lung", "": "a"}
    return ST2HE(ST2HEConfig(size_um=16.0, px=PX, turbo=TINY, backbone=str(folder), **{"prompts": prompts, **fields}))


def pix2pix(**fields):
    return Pix2Pix(Pix2PixConfig(**{"size_um": 16.0, "px": PX, "width": 8, "depth": 3, **fields}))


def clip_folder(folder):
    """A tiny image-text network as open_clip keeps it."""
    from open_clip.model import CLIP as Network

    torch.manual_seed(0)
    torch.save(Network(**CLIP["model_cfg"]).state_dict(), folder / "open_clip_pytorch_model.bin")
    (folder / "open_clip_config.json").write_text(json.dumps(CLIP))
    return folder


def l2(model, inputs, targets):
    """Mean squared error of what a model makes, of 255 squared."""
    return float(((model.predict(inputs).astype(float) - targets) ** 2).mean())


def weights(model):
    return {name: value.detach().clone() for name, value in model.state().items()}


PLAIN = sthist.models.LossWeights(l2=1, perceptual=0, text=0, adversarial=0)
