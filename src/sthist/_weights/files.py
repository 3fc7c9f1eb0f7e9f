"""Weights as files: found, read without running any code of theirs, and put into a network whole or not at all."""

from __future__ import annotations

import hashlib
import pickle
import warnings
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

from sthist._faults import fault_in
from sthist._reading import read_object
from sthist._weights import hub

if TYPE_CHECKING:
    from sthist._weights.source import Source

VGG = "https://download.pytorch.org/models/vgg16-397923af.pth"
ALEX = "https://download.pytorch.org/models/alexnet-owt-7be5be79.pth"
INCEPTION = (
    "https://github.com/toshas/torch-fidelity/releases/download/v0.2.0/weights-inception-2015-12-05-6726825d.pth"
)
CLIP = "openai/clip-vit-large-patch14"


class MetricUnavailable(RuntimeError):
    """A metric that cannot be computed here, as the weights of its network are not on this machine.

    Examples
    --------
    >>> from sthist.metrics import image
    >>> issubclass(image.MetricUnavailable, RuntimeError)
    True
    """


def locate(metric: str, url: str, weights: Any, way_out: str) -> Path:
    """The given file, or the one of that name in the folder of torch hub."""
    if weights is not None:
        path = Path(weights).expanduser()
        if not path.is_file():
            raise FileNotFoundError(f"There is no weights file {str(path)!r}.")
        return path
    import torch

    path = Path(torch.hub.get_dir()) / "checkpoints" / url.rsplit("/", 1)[1]
    if not path.is_file():
        raise MetricUnavailable(
            f"{metric} needs the weights {path.name}, which are not in {path.parent}. Nothing is downloaded: fetch "
            f"{url} and put it there, or give {way_out}."
        )
    return path


SUFFIXES = (".safetensors", ".bin", ".pt", ".pth")
WRAPPERS = ("state_dict", "model")  # keys under which training scripts keep the tensors
SHOWN = 3


@dataclass(frozen=True)
class Files:
    """What a network is loaded from."""

    weights: Path | None = None  # the file of its tensors; None for random ones
    folder: Path | None = None  # with its further files
    commit: str | None = None  # of the hub, that the files belong to

    def config(self, name: str = "config.json") -> dict[str, Any]:
        """Content of a JSON file of the folder; empty where there is none."""
        path = None if self.folder is None else self.folder / name
        if path is None or not path.is_file():
            return {}
        return read_object(path)

    def provenance(self) -> dict[str, Any]:
        """File, commit and SHA-256 of the weights."""
        if self.weights is None:
            return {"weights": None, "revision": None, "sha256": None, "pretrained": False}
        digest = sha256(self.weights)
        published = hub.published_digest(self.weights)
        if published not in (None, digest):
            raise ValueError(
                f"{str(self.weights)!r} is damaged: its SHA-256 is {digest}, the hub's {published}. Delete it and get "
                "it again."
            )
        return {"weights": self.weights.name, "revision": self.commit, "sha256": digest, "pretrained": True}


def obtain(source: Source, weights: str | Path | None, revision: str | None, *, pretrained: bool = True) -> Files:
    """Files of a network: given, from the hub, or none for random weights."""
    if weights is not None:
        if revision is not None:
            raise ValueError(f"Give either weights= or revision=: {str(weights)!r} is read as it is.")
        path = find(Path(weights).expanduser(), source.files)
        if source.hub_id:
            source.announce("Reading a copy of")
        # A file alone says nothing of its neighbours; a folder is a copy of the hub's.
        return Files(path, path.parent if Path(weights).expanduser().is_dir() else None, hub.commit_of(path))
    if not pretrained:
        return Files()
    path = hub.fetch(source, revision)
    return Files(path, path.parent, hub.commit_of(path))


def find(path: Path, preferred: tuple[str, ...] = ()) -> Path:
    """The file of weights that a path means: itself, or the one in a folder."""
    if path.is_file():
        return path
    if not path.is_dir():
        raise FileNotFoundError(f"There are no weights {str(path)!r}: neither file nor folder.")
    for name in preferred:
        if (path / name).is_file():
            return path / name
    candidates = sorted(file for file in path.iterdir() if file.suffix in SUFFIXES)
    if len(candidates) == 1:
        return candidates[0]
    names = [file.name for file in candidates or sorted(path.iterdir())][:8]
    what = "several files of weights" if candidates else f"none of {list(preferred or SUFFIXES)}"
    raise ValueError(f"The folder {str(path)!r} has {what}: {names}. Pass the file itself.")


def read(path: Path) -> dict[str, Any]:
    """Tensors by name, from a safetensors or a torch file, without running any code of it."""
    import torch

    state = read_file(path)
    for wrapper in WRAPPERS:
        if isinstance(state, dict) and isinstance(state.get(wrapper), dict):
            state = state[wrapper]
    if not isinstance(state, dict) or not state or not all(isinstance(value, torch.Tensor) for value in state.values()):
        raise ValueError(f"{str(path)!r} holds no weights: tensors by name are expected, not a {type(state).__name__}.")
    if all(name.startswith("module.") for name in state):
        state = {name.removeprefix("module."): value for name, value in state.items()}
    return state


def read_file(path: Path) -> Any:
    """What a safetensors or a torch file holds, without running any code of it."""
    import torch
    from safetensors import SafetensorError

    try:
        if path.suffix == ".safetensors":
            from safetensors.torch import load_file

            return load_file(path)
        with warnings.catch_warnings():
            # Of pickles that are refused anyway.
            warnings.filterwarnings("ignore", message="Detected pickle protocol")
            return torch.load(path, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:
        raise ValueError(
            f"{str(path)!r} was not read: it is a pickle of more than tensors, which could run any code, or is "
            "damaged. If you trust it, convert it once: `model = torch.load(path, weights_only=False)`, then "
            f"`safetensors.torch.save_file(model.state_dict(), {path.with_suffix('.safetensors').name!r})`, and pass "
            "that file."
        ) from error
    except (SafetensorError, RuntimeError, EOFError, KeyError, OSError) as error:
        why = (str(error).splitlines() or [repr(error)])[0]
        raise ValueError(
            f"{str(path)!r} cannot be read as weights; it is damaged, or was not copied whole: {why}.{fault_in(path)}"
        ) from error


def load_into(module: Any, state: dict[str, Any], source: Path | str, *, leave: tuple[str, ...] = ()) -> None:
    """Put all weights into a module."""
    own = module.state_dict()
    unequal = [
        f"{name} {tuple(state[name].shape)} in the file, {tuple(value.shape)} in the network"
        for name, value in own.items()
        if name in state and state[name].shape != value.shape
    ]
    missing = [f"{name} {tuple(value.shape)}" for name, value in own.items() if name not in state]
    left_over = [name for name in state if name not in own and not (leave and name.startswith(leave))]
    unknown = [f"{name} {tuple(state[name].shape)}" for name in left_over]
    wrong = [
        f"{what} {len(names)}: {'; '.join(names[:SHOWN])}"
        for what, names in (
            ("tensors of other shapes", unequal),
            ("missing", missing),
            ("not of this network", unknown),
        )
        if names
    ]
    if wrong:
        raise ValueError(f"{str(source)!r} holds the weights of another network: {'. '.join(wrong)}.")
    for name, _ in module.named_parameters():
        # A sum takes a pass over the memory, and shows whether a single number is none.
        if state[name].is_floating_point() and not state[name].double().sum().isfinite():
            raise ValueError(f"{str(source)!r}: {name!r} holds NaN or infinite numbers. Is it damaged? Get it again.")
    module.load_state_dict({name: state[name] for name in own})


def sha256(path: Path) -> str:
    """Checksum of a file; of one that has not changed since it was last asked for, from memory."""
    stat = path.stat()
    return _sha256(path, stat.st_size, stat.st_mtime_ns)


@lru_cache(maxsize=64)
def _sha256(path: Path, size: int, changed_ns: int) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def sha256_of(module: Any) -> str:
    """Checksum of the names, shapes and values of a module's weights."""
    import torch

    digest = hashlib.sha256()
    for name, value in module.state_dict().items():
        digest.update(f"{name} {tuple(value.shape)} {value.dtype}".encode())
        digest.update(value.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy())
    return digest.hexdigest()
