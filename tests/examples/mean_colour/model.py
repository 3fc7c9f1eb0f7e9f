"""The model: a number of a tile, as a linear function of its mean colour."""

from dataclasses import dataclass, field
from pathlib import Path

from safetensors.numpy import load_file, save_file

from sthist.models import Model
from sthist.training.model import SYSTEMS

SYSTEMS["mean-colour"] = ("examples.mean_colour.model", "MeanColour")


@dataclass(frozen=True)
class MeanColourConfig:
    size_um: float
    px: int
    target: str
    training: dict = field(default_factory=dict)
    report: dict = field(default_factory=dict)


class MeanColour(Model):
    system, config_class = "mean-colour", MeanColourConfig

    def __init__(self, config, weights, history=()):
        super().__init__(config)
        self.weights, self.history = weights, history

    def predict(self, colours):
        return colours @ self.weights["weight"] + self.weights["bias"]

    def save(self, folder):
        super().save(folder)
        save_file(self.weights, Path(folder) / "model.safetensors")

    @classmethod
    def _from_folder(cls, folder, config):
        return cls(MeanColourConfig(**config), load_file(folder / "model.safetensors"))
