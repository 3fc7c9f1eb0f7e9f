"""The smallest thing that the engine trains: a line through points."""

from __future__ import annotations

import numpy as np
import torch

from sthist.training.module import TrainingModule

N = 64


def points(seed=0):
    """Points on a line in four dimensions, with noise."""
    rng = np.random.default_rng(seed)
    inputs = rng.normal(size=(N, 4)).astype(np.float32)
    return inputs, (inputs @ [1.0, -2.0, 3.0, 0.5] + 0.1 * rng.normal(size=N)).astype(np.float32)


class Line(TrainingModule):
    """A linear layer with dropout, trained by squared error."""

    def __init__(self, options, dropout=0.0, bad_step=None, stop_after=None):
        super().__init__(options)
        self.bad_step, self.stop_after = bad_step, stop_after
        self.data, self.held_out = points(), points(1)
        self.net = torch.nn.Sequential(torch.nn.Dropout(dropout), torch.nn.Linear(4, 1))
        torch.nn.init.zeros_(self.net[1].weight)

    def batches(self, epoch, device, n_devices):
        order = np.random.default_rng([self.options.seed, epoch]).permutation(N)
        rows = order.reshape(-1, self.options.batch_size)[:, device::n_devices]
        return [tuple(torch.from_numpy(part[index]) for part in self.data) for index in rows]

    def validation_batches(self, device, n_devices):
        return [tuple(map(torch.from_numpy, self.held_out))]

    def trial_step(self, batch_size, px):
        self.net(torch.zeros(batch_size, 4)).sum().backward()

    def training_step(self, batch, index):
        if self.stop_after == self.step:
            raise OSError("pulled out")
        loss = ((self.net(batch[0])[:, 0] - batch[1]) ** 2).mean()
        if self.bad_step == self.step:
            loss = loss * float("nan")
        self.terms = {"loss": loss.detach()}
        return loss

    def validation_step(self, batch, index):
        self.log("validation_loss", ((self.net(batch[0])[:, 0] - batch[1]) ** 2).mean())

    def configure_optimizers(self):
        return torch.optim.AdamW(self.net.parameters(), lr=self.options.lr)


def weights(module):
    """The weights of the line as an array."""
    return np.append(module.net[1].weight.detach().numpy().ravel(), module.net[1].bias.detach().numpy())
