"""Training, with a score on tiles that were held out beside the mean of those that were not."""

from dataclasses import replace

import numpy as np
import torch
from examples.mean_colour.apply import read_colours
from examples.mean_colour.model import MeanColour, MeanColourConfig

from sthist import _store
from sthist._sample.samples import samples_of
from sthist.models import Training
from sthist.training.module import TrainingModule
from sthist.training.options import as_training
from sthist.training.split_groups import group_rows, units_of
from sthist.training.splits import as_split, folds_of
from sthist.training.trainer import train


class MeanColourModule(TrainingModule):
    def __init__(self, options, x, y):
        super().__init__(options)
        self.x, self.y = torch.from_numpy(x), torch.from_numpy(y)
        self.weight, self.bias = (torch.nn.Parameter(torch.zeros(n)) for n in (3, 1))

    def batches(self, epoch, device, n_devices):
        size = self.options.batch_size
        order = np.random.default_rng([self.options.seed, epoch]).permutation(len(self.x))
        return [order[start : start + size][device::n_devices] for start in range(0, len(order), size)]

    def configure_optimizers(self):
        return torch.optim.AdamW(self.parameters(), lr=self.options.lr, weight_decay=self.options.weight_decay)

    def training_step(self, rows, index):
        error = self.x[rows].to(self.device) @ self.weight + self.bias - self.y[rows].to(self.device)
        self.terms = {"mse": (error**2).mean().detach()}
        return (error**2).mean()

    def trial_step(self, batch_size, px):
        (torch.rand(batch_size, 3, device=self.device) @ self.weight + self.bias).mean().backward()

    def model(self, config, history):
        weights = {name: getattr(self, name).detach().cpu().numpy().copy() for name in ("weight", "bias")}
        return MeanColour(config, weights, history)


def fit(x, y, config, options, **where):
    module, identity = MeanColourModule(options, x, y), {"target": config.target, "rows": len(y)}
    where["save_model"] = lambda folder, history: module.model(config, history).save(folder)
    _, history = train(lambda: module, options, identity=identity, **where)
    return module.model(config, history)


def train_mean_colour(data, target, *, regions="tiles", split="block", folder=None, training=None, device=None):
    """Train a model of a column of the tiles' table; its ``config.report`` is of tiles that it has not seen."""
    options = as_training(Training, training, {"epochs": 40, "batch_size": 16, "lr": 0.1, "ema": 0.9})
    split, listed = as_split(split), samples_of(data)
    read = [read_colours(listed[0].data, regions)]
    read += [read_colours(each.data, regions, read[0][2]) for each in listed[1:]]
    tables, spec = [table for _, table, _ in read], read[0][2]
    x = np.concatenate([colours for colours, *_ in read])
    y = np.concatenate([table.obs[target].to_numpy(np.float32) for table in tables])
    units = units_of(listed, [t.obs for t in tables], [t.obsm["spatial"] for t in tables], spec.size_um)
    grouping = group_rows(units, split.by, block_um=split.block_um, gap_um=split.gap_um)
    pairs = folds_of(grouping, np.zeros(len(y), int), test=split.test, folds=split.folds or 5, seed=options.seed)
    config = MeanColourConfig(**spec.to_dict(), target=target)
    errors = []
    for kept, test in pairs:
        guess = fit(x[kept], y[kept], config, replace(options, resume=False), device=device).predict(x[test])
        errors.append([(guess - y[test]) ** 2, (y[kept].mean() - y[test]) ** 2])
    scores = dict(zip(("mse", "mse_of_mean"), np.concatenate(errors, axis=1).mean(axis=1).tolist(), strict=True))
    made = _store.provenance("train_mean_colour", options=options.to_dict(), **split.to_dict(), leaks=grouping.leaks)
    kept = pairs[0][0] if len(pairs) == 1 else np.arange(len(y))
    model = fit(x[kept], y[kept], replace(config, training=made, report=scores), options, folder=folder, device=device)
    if folder is not None:
        model.save(folder)
    return model
