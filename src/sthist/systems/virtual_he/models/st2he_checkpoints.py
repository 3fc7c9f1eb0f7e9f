"""What was trained of a one-step generator, as a file; and the checkpoints of others, taken into that form."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from sthist import _weights
from sthist._disk import written_whole
from sthist.nets import SD_TURBO, plain_name

if TYPE_CHECKING:
    import torch

    from sthist.nets import Turbo, TurboConfig

_UPSTREAM: dict[str, Any] = {
    "rank_unet": int,
    "rank_vae": int,
    "unet_lora_target_modules": (list, tuple, set),
    "vae_lora_target_modules": (list, tuple, set),
    "state_dict_unet": dict,
    "state_dict_vae": dict,
}
_HEADER = "sthist"


def save_trained(turbo: Turbo, path: str | Path, **facts: Any) -> None:
    """Write what was trained, without the backbone, with the generator's config in the header."""
    _write(turbo.trained_state(), turbo.config, Path(path), facts)


def read_trained(path: str | Path) -> tuple[dict[str, torch.Tensor], TurboConfig, dict[str, Any]]:
    """Tensors, config and further facts of a file of :func:`save_trained` or :func:`convert_upstream`."""
    from safetensors import SafetensorError, safe_open

    from sthist.nets import TurboConfig

    path = Path(path)
    state = _weights.read(path)
    try:
        with safe_open(path, framework="pt") as file:
            content = json.loads((file.metadata() or {}).get(_HEADER, "null"))
    except (SafetensorError, ValueError) as error:
        raise ValueError(f"{str(path)!r} cannot be read: {error}") from error
    if not isinstance(content, dict) or "config" not in content:
        raise ValueError(
            f"{str(path)!r} does not say which generator it is of. Upstream checkpoints are converted first."
        )
    return state, TurboConfig.from_dict(content.pop("config")), content


def convert_upstream(
    path: str | Path, to: str | Path, *, base: TurboConfig = SD_TURBO, input_range: tuple[float, float] = (0.0, 1.0)
) -> TurboConfig:
    """Write a checkpoint of img2img-turbo or of ST2HE (``.pkl``) as a safetensors file.

    It is read without running any code of it, and compared with the generator before anything is written.

    Returns config of the generator, with the checkpoint's ranks and adapted layers.
    """
    import torch

    from sthist.nets import Turbo

    path = Path(path)
    content = _read_upstream(path)
    config = replace(
        base,
        rank_unet=content["rank_unet"],
        rank_vae=content["rank_vae"],
        unet_targets=tuple(sorted(content["unet_lora_target_modules"])),
        vae_targets=tuple(sorted(content["vae_lora_target_modules"])),
    )
    state = {f"unet.{plain_name(name)}": value for name, value in content["state_dict_unet"].items()}
    for name, value in content["state_dict_vae"].items():
        # Its skip connections belong to the decoder.
        state[f"vae.{plain_name(name)}".replace("vae.decoder.skip_conv_", "vae.skip_conv_")] = value
    with torch.device("meta"):
        Turbo(config).adapt().load_trained_state(state, path)
    facts = {"input_range": list(input_range), "converted_from": {"file": path.name, "sha256": _weights.sha256(path)}}
    with written_whole(Path(to)) as partial:
        _write(state, config, partial, facts)
    return config


def _read_upstream(path: Path) -> dict[str, Any]:
    import torch

    if not path.is_file():
        raise FileNotFoundError(f"There is no checkpoint {str(path)!r}.")
    content = _weights.read_file(path)
    known = isinstance(content, dict) and all(isinstance(content.get(name), kind) for name, kind in _UPSTREAM.items())
    tensors = [*content["state_dict_unet"].values(), *content["state_dict_vae"].values()] if known else [None]
    if not all(isinstance(tensor, torch.Tensor) for tensor in tensors):
        raise ValueError(f"{str(path)!r} is no checkpoint of img2img-turbo: it needs {', '.join(_UPSTREAM)}.")
    return content


def _write(state: dict[str, torch.Tensor], config: TurboConfig, path: Path, facts: dict[str, Any]) -> None:
    from safetensors.torch import save_file

    header = json.dumps({"config": config.to_dict(), **facts})
    save_file({name: value.contiguous() for name, value in state.items()}, path, metadata={_HEADER: header})
