"""What a run is about to do, in a few lines at its start, and what it will take, after its first steps."""

import logging
import time

import lightning as L
from lightning.pytorch.utilities import rank_zero_only

from escdiff.training.loop.optim.ema import trainable
from escdiff.training.loop.steps import StepCallback

WARM, MEASURED = 5, 20  # steps: the first few are slower
log = logging.getLogger(__name__)


class Summary(StepCallback):
    """Logs once what is trained on what, and after `MEASURED` steps the time that is left, at their pace.

    Args:
        batch_size: of each process. price: of the whole machine (all its GPUs) per hour; None for no estimate of cost.
    """

    def __init__(self, batch_size: int, price: float | None = None) -> None:
        self.batch_size, self.price = batch_size, price
        self._first, self._since = 0, 0.0

    @rank_zero_only
    def on_train_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        super().on_train_start(trainer, pl_module)
        self._first = trainer.global_step
        for name, value in self.lines(trainer, pl_module).items():
            log.info("%-18s %s", name, value)

    def lines(self, trainer: L.Trainer, pl_module: L.LightningModule) -> dict[str, str]:
        """What the run is made of; a module adds what it knows by `summary()`, and data by their attributes."""
        parameters = trainable(pl_module)
        types = sorted({str(p.dtype).removeprefix("torch.") for p in parameters})
        batches = trainer.accumulate_grad_batches
        sizes = {"samples": self.batch_size, "processes": trainer.world_size, "batches": batches}
        found = {
            "trained parameters": f"{sum(p.numel() for p in parameters):,} in {' and '.join(types)}",
            "a step": " x ".join(f"{count} {name}" for name, count in sizes.items() if count > 1 or name == "samples"),
            **(pl_module.summary() if hasattr(pl_module, "summary") else {}),
        }
        data = trainer.datamodule
        if hasattr(data, "steps_per_epoch"):
            steps = data.steps_per_epoch()
            samples = steps * self.batch_size * trainer.world_size
            epochs = trainer.max_steps * batches / max(steps, 1)
            found["data"] = f"{samples:,} samples an epoch in {steps:,} batches, {epochs:.3g} epochs"
        if hasattr(data, "latents"):
            found["latents"] = f"from the cache {data.latents}" if data.latents else "encoded live at every step"
        if hasattr(data, "workers"):
            found["workers"] = f"{data.workers} per process" if data.workers else "0, so steps wait for data"
        return found

    @rank_zero_only
    def on_step(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        done = trainer.global_step - self._first
        if done == WARM:
            self._since = time.monotonic()
        if done == MEASURED:
            pace = (time.monotonic() - self._since) / (MEASURED - WARM)
            log.info("%s", estimate(pace, trainer.max_steps - trainer.global_step, self.price))


def estimate(pace: float, steps: int, price: float | None = None) -> str:
    """The time for so many steps of `pace` seconds, and its cost at a price per hour."""
    hours = pace * max(steps, 0) / 3600
    left = f"{hours:.1f} h" if hours >= 1 else f"{60 * hours:.0f} min"
    cost = "" if price is None else f", which cost {hours * price:.2f} at {price:g} an hour"
    return f"{pace:.3g} s a step: {steps:,} more take {left}{cost}"
