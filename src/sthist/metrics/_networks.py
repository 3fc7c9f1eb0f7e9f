"""The networks of metrics, with weights that are on this machine, and features through them."""

from __future__ import annotations

import io
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from sthist import _weights
from sthist._settings import settings
from sthist._weights.files import ALEX, CLIP, INCEPTION, VGG, MetricUnavailable, locate
from sthist.metrics._pixels import batches, to_torch

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

BATCH = 16
LPIPS_NETS = {"vgg": ("vgg16", VGG, 16), "alex": ("alexnet", ALEX, 31)}
"""Of each backbone of LPIPS: its name in torchvision, its weights, the fewest px that pass through its pooling."""


def lpips_network(net: Any = "vgg", weights: Any = None) -> Any:
    """LPIPS with the given backbone."""
    import torch
    from torchmetrics.functional.image.lpips import _NoTrainLpips

    if net not in LPIPS_NETS:
        raise ValueError(f"LPIPS looks through one of {list(LPIPS_NETS)}, not {net!r}.")
    name, url, _ = LPIPS_NETS[net]
    path = locate(f"LPIPS ({net})", url, weights, f"weights=, a state dict of torchvision's {name}")
    state = _weights.read(path)
    # Every weight that is drawn here is replaced below; the user's own draws stay as they are.
    with torch.random.fork_rng(devices=[]):
        network = _NoTrainLpips(net=net, pnet_rand=True)
    slices = {key.split(".", 1)[1]: key for key in network.net.state_dict()}
    features = {
        key.removeprefix("features."): value for key, value in state.items() if not key.startswith("classifier.")
    }
    _weights.load_into(network.net, {slices.get(key, key): value for key, value in features.items()}, path)
    return network.to(settings.torch_device())


def lpips_of(network: Any, one: np.ndarray, other: np.ndarray) -> np.ndarray:
    """LPIPS of each pair of images."""
    import torch

    _, _, least = LPIPS_NETS[network.pnet_type]
    if min(one.shape[1:3]) < least:
        raise ValueError(
            f"LPIPS ({network.pnet_type}) needs images of at least {least} x {least} px; these are {one.shape[1:3]}."
        )
    device, values = next(network.parameters()).device, []
    with torch.inference_mode():
        for part in batches(len(one), BATCH):
            x, y = (to_torch(images[part]).to(device).float() / 127.5 - 1 for images in (one, other))
            values.append(network(x, y).reshape(-1).cpu().double().numpy())
    return np.concatenate(values)


def inception_extractor(metric: str, weights: Any) -> Any:
    """Inception-v3 with its 2,048 pooled features, as FID is defined."""
    from importlib.util import find_spec

    import torch

    way_out = "weights=, that file (it works with the package torch-fidelity), or encoder=, a network of your own"
    path = locate(metric, INCEPTION, weights, way_out)
    if find_spec("torch_fidelity") is None:
        raise MetricUnavailable(
            f"{metric} looks through the Inception-v3 of the package torch-fidelity, which is not installed; its "
            f"weights are at {str(path)!r}. Install it, or give encoder=, a network of your own."
        )
    from torchmetrics.image.fid import NoTrainInceptionV3

    state: Any = io.BytesIO()
    torch.save(_weights.read(path), state)
    state.seek(0)
    try:
        with torch.random.fork_rng(devices=[]):
            network = NoTrainInceptionV3("inception-v3-compat", ["2048"], state)
    except RuntimeError as error:
        raise ValueError(f"{str(path)!r} does not fit Inception-v3: {str(error)[:300]}") from error
    return network.to(settings.torch_device())


def clip_extractor(encoder: Any = None, weights: Any = None) -> Callable[[Any], Any]:
    """The image tower of a CLIP model; a callable is given back as it is."""
    if encoder is not None and weights is not None:
        raise ValueError("Give either encoder= or weights=, not both.")
    if encoder is not None and not isinstance(encoder, (str, Path)):
        return encoder
    if weights is not None and not Path(weights).expanduser().is_dir():
        raise FileNotFoundError(
            f"There is no folder {str(weights)!r}; weights of CLIP are a folder that transformers wrote."
        )
    from transformers import CLIPConfig, CLIPImageProcessor, CLIPVisionModelWithProjection

    name = str(encoder or weights or CLIP)
    try:
        described, _ = CLIPConfig.get_config_dict(name, local_files_only=True)
        if described.get("model_type") not in {"clip", "clip_vision_model"}:
            raise ValueError(
                f"{name!r} holds a model of type {described.get('model_type')!r}; CLIP similarity needs 'clip'."
            )
        processor = CLIPImageProcessor.from_pretrained(name, local_files_only=True)
        load: Any = CLIPVisionModelWithProjection.from_pretrained
        model, loaded = load(name, local_files_only=True, output_loading_info=True)
    except OSError as error:
        from huggingface_hub.constants import HF_HUB_CACHE

        raise MetricUnavailable(
            f"CLIP similarity needs the model {name!r}, which is neither a folder with a configuration, image "
            f"processor and weights nor in {HF_HUB_CACHE}. Nothing is downloaded: fetch it with 'hf download {CLIP}', "
            "or give weights=, a folder that transformers wrote, or encoder=, a network of your own."
        ) from error
    except RuntimeError as error:
        raise ValueError(f"{name!r} does not fit CLIP: {str(error)[:300]}") from error
    lacking = sorted(loaded["missing_keys"])
    if lacking:
        raise ValueError(
            f"{name!r} does not fit CLIP: it lacks {len(lacking)} weights of the image tower, such as {lacking[:3]}."
        )
    model = model.eval().to(settings.torch_device())

    def embed(images: Any) -> Any:
        pixels = processor(images=list(images), return_tensors="pt")["pixel_values"]
        return model(pixel_values=pixels.to(model.device)).image_embeds

    return embed


def extract(extractor: Any, images: np.ndarray) -> np.ndarray:
    """Features of images, (n, d) float64."""
    import torch

    parts = []
    with torch.inference_mode(), _evaluating(extractor) as device:
        for part in batches(len(images), BATCH):
            features = torch.as_tensor(extractor(to_torch(images[part]).to(device))).detach().cpu().double().numpy()
            n, finite = part.stop - part.start, np.isfinite(features).all()
            if features.ndim != 2 or len(features) != n or not finite:
                raise ValueError(
                    f"An extractor takes images (n, 3, h, w) and gives finite features (n, d); for {n} images this one "
                    f"gave shape {features.shape}{'' if finite else ', not all finite'}."
                )
            parts.append(features)
    return np.concatenate(parts)


@contextmanager
def _evaluating(extractor: Any) -> Iterator[Any]:
    """A module as it is meant to be used, without dropout, and as it was afterwards; gives the device it is on."""
    import torch

    if not isinstance(extractor, torch.nn.Module):
        yield torch.device("cpu")
        return
    training = [module for module in extractor.modules() if module.training]
    extractor.eval()
    try:
        yield next((tensor.device for tensor in extractor.parameters()), torch.device("cpu"))
    finally:
        for module in training:
            module.training = True
