"""Encoders that are known by name: where their weights are, under which licence, and for which tile they were trained."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from sthist._settings import logger
from sthist.encoders._transform import CLIP_MEAN, CLIP_STD, IMAGENET_MEAN, IMAGENET_STD, Transform
from sthist.tiles import TileSpec

if TYPE_CHECKING:
    import pandas as pd

TILE_UM = 112.0
"""Side of the tile of encoders trained at 0.5 µm/px on 224 px, and of the benchmarks of spatial transcriptomics."""

OPEN_LICENCES = ("apache-2.0", "mit", "bsd-3-clause")
NON_COMMERCIAL = "CC-BY-NC-ND-4.0"
H_MEAN, H_STD = (0.707223, 0.578729, 0.703617), (0.211883, 0.230117, 0.177517)
VIT_L = {"img_size": 224, "patch_size": 16, "init_values": 1e-5}
SWIGLU = {"mlp_layer": "SwiGLUPacked", "act_layer": "SiLU"}
"""Layers by name: timm's, and those of torch."""

WEIGHT_NAMES = ("model.safetensors", "pytorch_model.bin")
OPEN_CLIP_NAMES = ("open_clip_model.safetensors", "open_clip_pytorch_model.bin")


@dataclass(frozen=True)
class Card:
    """What is known of an encoder before any of it is loaded.

    Attributes
    ----------
    hub_id
        ``owner/name`` on the Hugging Face hub; empty where it is not there.
    licence
        As its makers name it.
    via
        How it is loaded: ``timm``, ``open_clip``, ``transformers``, ``keep``, ``conch``, ``zoo`` or ``sthist``.
    gated
        Whether one has to ask for access first, as far as was known when this was written: the hub decides.
    dim
        Size of an embedding.
    spec, transform
        The tile that it was trained for, and how its pixels are normalised.
    architecture, arguments
        Of the network, where the folder of its weights does not say so in a ``config.json``.
    pool
        How tokens become an embedding: ``"network"`` as it does itself, ``"cls"``, or ``"cls+mean"`` of the patches.
    files
        Names of its weights, the preferred first.
    extras
        Further files that are taken if they are there.
    text
        Whether it embeds texts.
    dense
        Whether it embeds places within a tile.
    known
        Whether more than the name is known.
    """

    hub_id: str
    licence: str
    via: str
    gated: bool = False
    dim: int | None = None
    spec: TileSpec | None = None
    transform: Transform = Transform(size=224)
    architecture: str = ""
    arguments: dict[str, Any] = field(default_factory=dict)
    pool: str = "network"
    files: tuple[str, ...] = WEIGHT_NAMES
    extras: tuple[str, ...] = ("config.json",)
    text: bool = False
    dense: bool = True
    known: bool = True

    @property
    def page(self) -> str:
        """Where its licence stands."""
        return f"https://huggingface.co/{self.hub_id}" if self.hub_id else ""

    @property
    def is_open(self) -> bool:
        """Whether anyone may use it for anything, without asking."""
        return self.licence.lower() in OPEN_LICENCES and not self.gated

    def describe(self) -> str:
        """Hub id, licence and page in one sentence."""
        gated = (
            " It is given on request: accept its terms on that page, then run `hf auth login`." if self.gated else ""
        )
        page = f" ({self.page})" if self.page else ""
        return f"{self.hub_id or 'this model'}, licence: {self.licence}{page}.{gated}"

    def announce(self, doing: str) -> None:
        """Say the licence: a warning where it binds the user, information elsewhere."""
        say = logger.info if self.is_open else logger.warning
        say("%s %s", doing, self.describe())


def _pathology(hub_id: str, licence: str, dim: int, **rest: Any) -> Card:
    """A network trained on slides at 0.5 µm/px."""
    rest.setdefault("via", "timm")
    return Card(hub_id, licence, dim=dim, spec=TileSpec(TILE_UM, 224), **rest)


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
        transform=Transform(IMAGENET_MEAN, IMAGENET_STD, 224, "bilinear"),
        files=("pytorch_model.bin", "model.safetensors"),
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
        transform=Transform(IMAGENET_MEAN, IMAGENET_STD, 224, "bilinear"),
        files=("pytorch_model.bin", "model.safetensors"),
    ),
    "conch": _image_text(
        "MahmoodLab/CONCH",
        NON_COMMERCIAL,
        512,
        px=448,
        via="conch",
        gated=True,
        files=("pytorch_model.bin", "model.safetensors"),
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
        files=("pytorch_model.bin", "model.safetensors"),
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


def available() -> pd.DataFrame:
    """The encoders that are known by name.

    Beside them stand every ``"timm:<name>"`` and ``"open_clip:<name>"``, and functions and modules of your own.

    Returns
    -------
    One row per encoder: ``name``, ``hub_id``, ``dim``, ``px`` and ``mpp`` of the tile that it was trained for (empty
    where any is as good), ``licence``, ``gated`` (as far as is known; the hub decides), ``text`` and ``dense`` (whether
    it embeds texts, and places within a tile) and ``via``, the library that loads it.

    Examples
    --------
    >>> import sthist
    >>> table = sthist.encoders.available().set_index("name")
    >>> int(table.loc["uni", "dim"]), table.loc["uni", "licence"]
    (1024, 'CC-BY-NC-ND-4.0')
    >>> list(table.query("text and not gated and licence == 'MIT'").index)
    ['keep', 'quiltnet']
    """
    import pandas as pd

    from sthist.encoders._loaders import zoo as zoo_loader

    own = Card("", "BSD-3-Clause", "sthist", dense=False)
    known = {"morphology": own} | CARDS
    cards = known | {name: card for name, card in zoo_loader.cards().items() if name not in known}
    rows = [
        {
            "name": name,
            "hub_id": card.hub_id,
            "dim": card.dim,
            "px": None if card.spec is None else card.spec.px,
            "mpp": None if card.spec is None else card.spec.mpp,
            "licence": card.licence,
            "gated": card.gated if card.known else None,
            "text": card.text if card.known else None,
            "dense": card.dense if card.known else None,
            "via": card.via,
        }
        for name, card in cards.items()
    ]
    return pd.DataFrame(rows).astype(
        {"dim": "Int64", "px": "Int64", "mpp": "Float64", "gated": "boolean", "text": "boolean", "dense": "boolean"}
    )
