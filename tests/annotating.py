"""Encoders and tiles for the tests of annotation."""

from __future__ import annotations

import anndata as ad
import numpy as np
import torch
from PIL import Image

import sthist
from sthist.encoders import Transform
from sthist.tiles import TileSpec

CLASSES = ("tumour", "stroma", "fat")
COLOURS = {"tumour": (150, 60, 160), "stroma": (230, 140, 180), "fat": (240, 235, 240)}
SPEC = TileSpec(16, 32)


class Planted:
    """Embeddings and texts of which the answer is known: one direction per class."""

    name, key, logit_scale, spec, module = "planted", "X_planted", 20.0, None, None
    provenance = {"sha256": "aa"}

    def __init__(self):
        self.n_calls = 0

    def embed_text(self, texts):
        self.n_calls += 1
        return np.array([[3.0 * (word in text) for word in CLASSES] + [0.2] for text in texts], np.float32)


class Images(torch.nn.Module):
    def __init__(self, clip):
        super().__init__()
        self.visual = clip.visual

    def forward(self, images):
        return self.visual(images)


class Texts(torch.nn.Module):
    def __init__(self, clip, tokenizer):
        super().__init__()
        self.clip, self.tokenizer = clip, tokenizer

    def embed_text(self, texts):
        return self.clip.encode_text(self.tokenizer(texts))


class TinyClip:
    """open_clip's own network, small and random, with its own tokenizer."""

    name, key, dim, spec = "tiny-clip", "X_tiny-clip", 16, TileSpec(16, 32)
    provenance = {"sha256": "bb"}
    transform = Transform(size=32)

    def __init__(self, seed=0, *, frozen_text=False):
        import open_clip

        with torch.random.fork_rng():
            torch.manual_seed(seed)
            vision = {"image_size": 32, "patch_size": 8, "width": 32, "layers": 1, "head_width": 16}
            text = {"context_length": 77, "vocab_size": 49408, "width": 32, "heads": 2, "layers": 1}
            clip = open_clip.CLIP(embed_dim=16, vision_cfg=vision, text_cfg=text).eval()
        self.module = Images(clip)
        self._text = Texts(clip, open_clip.SimpleTokenizer())
        self.text = None if frozen_text else self._text
        self.logit_scale = float(clip.logit_scale.detach().exp())

    def embed(self, tiles):
        with torch.inference_mode():
            return self.module(self.transform(torch.from_numpy(np.array(tiles)))).numpy()

    def embed_text(self, texts):
        with torch.inference_mode():
            return self._text.embed_text(list(texts)).numpy()


def picture(name, rng, px=32):
    """A tile of a class: its colour, and for tumour dark nuclei."""
    image = rng.normal(COLOURS[name], 12, (px, px, 3))
    if name == "tumour":
        for y, x in rng.integers(2, px - 2, (6, 2)):
            image[y - 2 : y + 2, x - 2 : x + 2] -= 60
    return np.clip(image, 0, 255).astype(np.uint8)


def folder_of_tiles(root, n=20, patients=("P1", "P2", "P3", "P4"), seed=0):
    """N tiles per patient, of all classes in turn."""
    rng = np.random.default_rng(seed)
    for patient in patients:
        for i in range(n):
            name = CLASSES[i % 3]
            path = root / patient / name / f"{patient}_{i:03}.png"
            path.parent.mkdir(parents=True, exist_ok=True)
            Image.fromarray(picture(name, rng)).save(path)
    return sthist.io.tile_folder(root, mpp=0.5, levels=("patient", "label"))


def embedded(n=120, n_slides=6, dim=5, seed=0, strength=3.0, spec=SPEC, encoder="planted", sha="aa"):
    """A table of slides with planted embeddings and labels."""
    rng = np.random.default_rng(seed)
    label = rng.integers(3, size=n)
    rows = rng.normal(size=(n, dim)).astype(np.float32)
    rows[np.arange(n), label] += strength
    adata = ad.AnnData(
        obs={"label": np.array(CLASSES)[label], "slide": np.resize([f"s{i}" for i in range(n_slides)], n)}
    )
    adata.obs_names = [f"t{i}" for i in range(n)]
    adata.obsm["X_planted"] = rows
    made = {"encoder": encoder, "sha256": sha} | ({} if spec is None else {"spec": spec.to_dict()})
    adata.uns["sthist"] = {"X_planted": made}
    return adata
