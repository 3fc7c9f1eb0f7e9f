"""What is tried: seeds, and what a model begins from."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from sthist.regression.model import RegressionModel


def require_seeds(seeds: Any) -> None:
    """Refuse seeds that are no list of numbers, each once."""
    if isinstance(seeds, int | str) or not len(seeds) or len(set(seeds)) < len(seeds):
        raise ValueError(f"seeds= is {seeds!r}; it is a list of at least one number, each once.")


def begins(model: RegressionModel) -> str:
    """What a trained model began from: a backbone and its weights, or embeddings of encoders."""
    config: Any = model.config
    if hasattr(config, "backbone"):
        source = config.backbone_weights or "pretrained" if config.pretrained else "random"
        return f"{config.backbone}, {source}{', frozen' if config.embeddings else ''}"
    names = [str(each.get("encoder") or each.get("key")) for each in config.encoders] or list(config.embeddings)
    return ", ".join(names)
