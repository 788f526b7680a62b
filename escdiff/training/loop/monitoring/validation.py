"""The loss on held-out groups while training, measured alike every time and in every run.

Lightning's own validation loop would run behind all callbacks, hence behind the checkpoint of its step, and not at the
last step; this one has its line on the disk before the checkpoint is.
"""

import time
from collections.abc import Iterator
from itertools import islice
from typing import Any

import lightning as L
import torch

from escdiff.training.loop.monitoring.means import Means
from escdiff.training.loop.monitoring.watchdog import RankWatch
from escdiff.training.loop.optim.ema import Average
from escdiff.training.loop.steps import StepCallback

SEED = 20231  # of noise, timesteps and drops: the same for every validation of every run


class Validation(StepCallback):
    """Every `steps` steps and at the last one, with averaged weights, asks `module.validation_step` for its errors.

    Logs `val/loss`, the loss by timestep band as `val/loss_t{first}`, and `val/share`, the share of the run's time that
    validating took. Noise and timesteps are the same each time, so that two values differ by the weights alone, and
    the training's random numbers are not touched. Modules without `validation_step` and data without held-out samples
    are left alone.

    Args:
        steps: 0 for never. batches: of each rank.
    """

    def __init__(self, average: Average, watch: RankWatch, steps: int, batches: int) -> None:
        self.average, self.watch, self.steps, self.batches = average, watch, steps, batches
        self.seconds, self._start = 0.0, 0.0

    def on_train_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        super().on_train_start(trainer, pl_module)
        self.seconds, self._start = 0.0, time.monotonic()

    def on_step(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        step, last = trainer.global_step, trainer.global_step >= trainer.max_steps > 0
        if not self.steps or (step % self.steps and not last) or not validates(pl_module):
            return
        began = time.monotonic()
        self.watch.mark("validating")
        found = self.measure(trainer, pl_module)
        self.seconds += time.monotonic() - began
        if not found:
            return
        found["val/share"] = self.seconds / max(time.monotonic() - self._start, 1e-9)
        for logger in trainer.loggers:
            logger.log_metrics(found, step - 1)  # steps count from 0

    @torch.no_grad()
    def measure(self, trainer: L.Trainer, pl_module: L.LightningModule) -> dict[str, float]:
        """`val/loss` and its bands; nothing where no samples are held out."""
        means, training, device = Means(), pl_module.training, pl_module.device
        devices = [device] if device.type == "cuda" else []
        pl_module.eval()
        try:
            with torch.random.fork_rng(devices), self.average.applied(pl_module):
                for number, batch in enumerate(islice(held_out(trainer), self.batches)):
                    torch.manual_seed(SEED + number * trainer.world_size + trainer.global_rank)
                    batch = pl_module.transfer_batch_to_device(batch, device, 0)
                    with trainer.precision_plugin.forward_context():
                        out = pl_module.validation_step(batch, number)
                    means.add("val/loss", out["error"].sum(), len(out["error"]))
                    means.add_bands("val/loss", out["error"], out["timesteps"])
        finally:
            pl_module.train(training)
        return means.take(trainer)


def validates(pl_module: L.LightningModule) -> bool:
    """Whether a module has a validation step of its own."""
    return type(pl_module).validation_step is not L.LightningModule.validation_step


def held_out(trainer: L.Trainer) -> Iterator[Any]:
    """Batches of the data's own validation set, from its beginning; none where it has none."""
    data = trainer.datamodule
    if type(data).val_dataloader is L.LightningDataModule.val_dataloader:
        return iter(())
    return iter(data.val_dataloader())
