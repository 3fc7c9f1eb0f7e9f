"""Low-rank adapters (LoRA): put on, taken into the weights, and named apart from the library that makes them."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    import torch
    from torch import nn

_ADAPTER = re.compile(r"\.lora_([AB])\.(?:[^.]+\.)?weight$")


def add_lora(module: nn.Module, rank: int, targets: Sequence[str], *, alpha: int = 8) -> None:
    """Put adapters on the layers whose names end as given; in place.

    The first factor is random, the second zero: the module computes what it did before. All weights but the
    adapters' stop requiring gradients.
    """
    if rank == 0:
        return
    from peft import LoraConfig, inject_adapter_in_model

    config = LoraConfig(r=rank, lora_alpha=alpha, init_lora_weights="gaussian", target_modules=list(targets))
    inject_adapter_in_model(config, module)


def merge_lora(module: nn.Module) -> None:
    """Add the adapters to the weights and take them off; in place."""
    for name, layer in list(lora_layers(module)):
        layer.merge(safe_merge=True)
        parent, _, child = name.rpartition(".")
        setattr(module.get_submodule(parent), child, layer.get_base_layer())


def lora_layers(module: nn.Module) -> Iterator[tuple[str, Any]]:
    """Layers that carry an adapter, by name."""
    for name, layer in module.named_modules():
        if hasattr(layer, "lora_A") and hasattr(layer, "get_base_layer"):
            yield name, layer


def plain_name(name: str) -> str:
    """Name of a weight without what differs between versions of the library of adapters.

    Examples
    --------
    >>> plain_name("mid.conv1.lora_A.default.weight"), plain_name("mid.conv1.base_layer.weight")
    ('mid.conv1.lora_A.weight', 'mid.conv1.weight')
    """
    return _ADAPTER.sub(r".lora_\1.weight", name.replace(".base_layer.", "."))


def fill(own: dict[str, torch.Tensor], state: dict[str, torch.Tensor], source: object) -> None:
    """Copy tensors into tensors of the same names and shapes, all or none."""
    wrong = {
        "missing": sorted(own.keys() - state.keys()),
        "not of this network": sorted(state.keys() - own.keys()),
        "of another shape": [name for name in own if name in state and own[name].shape != state[name].shape],
        "not finite": [name for name in state if not state[name].isfinite().all()],
    }
    problems = [f"{len(names)} {what}, such as {names[0]!r}" for what, names in wrong.items() if names]
    if problems:
        raise ValueError(f"The weights of {str(source)!r} do not fit this generator: {'; '.join(problems)}.")
    for name, tensor in own.items():
        tensor.data.copy_(state[name])
