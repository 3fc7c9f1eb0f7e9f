"""Weights of the networks that metrics look through: given or found on this machine, never random, never fetched."""

from __future__ import annotations

import pickle
from pathlib import Path
from typing import Any

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
    """The given file, or the one of that name in the folder of torch hub.

    Raises
    ------
    FileNotFoundError
        If a file was given that does not exist.
    MetricUnavailable
        If none was given, and none is there.
    """
    if weights is not None:
        path = Path(weights).expanduser()
        if not path.is_file():
            msg = f"There is no weights file {str(path)!r}."
            raise FileNotFoundError(msg)
        return path
    import torch

    path = Path(torch.hub.get_dir()) / "checkpoints" / url.rsplit("/", 1)[1]
    if not path.is_file():
        msg = (
            f"{metric} needs the weights {path.name}, which are not in {path.parent}. Nothing is downloaded: fetch "
            f"{url} and put it there, or give {way_out}."
        )
        raise MetricUnavailable(msg)
    return path


def read_weights(path: Path) -> dict[str, Any]:
    """Tensors of a state dict, by name, from a safetensors or a torch file, without running any code of it.

    Raises
    ------
    ValueError
        If the file is not such a state dict.
    """
    import torch
    from safetensors import SafetensorError

    try:
        if path.suffix == ".safetensors":
            from safetensors.torch import load_file

            state: Any = load_file(path)
        else:
            state = torch.load(path, map_location="cpu", weights_only=True)
    except (pickle.UnpicklingError, SafetensorError, RuntimeError, EOFError, KeyError) as error:
        msg = f"{str(path)!r} cannot be read as weights: {(str(error).splitlines() or [repr(error)])[0]}"
        raise ValueError(msg) from error
    if not isinstance(state, dict) or not state or not all(isinstance(value, torch.Tensor) for value in state.values()):
        msg = f"{str(path)!r} is no state dict: a dict of tensors by name is expected."
        raise ValueError(msg)
    return state


def load_strictly(module: Any, state: dict[str, Any], path: Path) -> None:
    """Load all weights of a module.

    Raises
    ------
    ValueError
        If names are missing or unknown, or shapes differ.
    """
    own = module.state_dict()
    missing, unknown = sorted(own.keys() - state.keys()), sorted(state.keys() - own.keys())
    unequal = [name for name in own.keys() & state.keys() if own[name].shape != state[name].shape]
    for names, what in ((missing, "lacks"), (unknown, "has unknown"), (sorted(unequal), "has other shapes of")):
        if names:
            msg = f"{str(path)!r} does not fit the network: it {what} {len(names)} weights, such as {names[:3]}."
            raise ValueError(msg)
    module.load_state_dict(state)
