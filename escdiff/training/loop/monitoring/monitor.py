"""Callbacks that watch: window means, loss by timestep band, and the progress line."""

import sys
import time
from collections.abc import Mapping
from typing import Any

import lightning as L
from lightning.pytorch.utilities import rank_zero_only
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from escdiff.training.loop.monitoring.means import Means
from escdiff.training.loop.monitoring.speed import Speed
from escdiff.training.loop.steps import StepCallback


class Monitor(StepCallback):
    """Logs, each logging interval, means over all its batches on all ranks (a single batch's loss says little).

    From a training step that returns a dict it takes "loss", every scalar in "logs", and, where "error" (B,)
    and "timesteps" (B,) are there, the mean error per band of timestep indices as `train/loss_t{first}`.

    It writes to the loggers itself. Lightning does so after all callbacks, so a run killed behind the checkpoint
    of a step would never have that step's line; placed before the checkpoints, this one has it on the disk. An
    interval that a stop cuts in two is kept through the checkpoint.

    Attributes:
        means: since the report before. latest: the metrics logged last.
    """

    def __init__(self, speed: Speed) -> None:
        self.speed = speed
        self.means = Means()
        self.latest: dict[str, float] = {}

    def on_train_batch_end(self, trainer: L.Trainer, pl_module: L.LightningModule, outputs: Any, *_: Any) -> None:
        values = outputs if isinstance(outputs, Mapping) else {"loss": outputs}
        if values.get("loss") is not None:
            self.means.add("train/loss_mean", values["loss"] * trainer.accumulate_grad_batches)
        for name, value in (values.get("logs") or {}).items():
            self.means.add(f"train/{name}", value)
        if "error" in values and "timesteps" in values:
            self.means.add_bands("train/loss", values["error"], values["timesteps"])
        super().on_train_batch_end(trainer, pl_module)

    def on_step(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        if trainer.global_step % trainer.log_every_n_steps == 0 or trainer.global_step == trainer.max_steps:
            self._report(trainer)

    def _report(self, trainer: L.Trainer) -> None:
        self.latest = {**self.means.take(trainer), **self.speed.report(trainer)}
        for logger in trainer.loggers:
            logger.log_metrics(self.latest, trainer.global_step - 1)  # steps count from 0

    def state_dict(self) -> dict[str, Any]:
        return {"sums": self.means.sums, "counts": self.means.counts}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        if rank_zero_only.rank == 0:  # whose state it is
            self.means.sums, self.means.counts = state_dict["sums"], state_dict["counts"]


class ProgressLine(L.Callback):
    """A progress bar on a terminal, else a plain line every `seconds`; on standard error, rank zero only.

    It shows loss, throughput, and those of the module's logs that its `progress` names.
    """

    def __init__(self, monitor: Monitor, seconds: float = 30.0) -> None:
        self.monitor = monitor
        self.seconds, self._bar, self._task, self._last, self._first = seconds, None, None, 0.0, (0.0, 0)

    def on_train_start(self, trainer: L.Trainer, *_: Any) -> None:
        if not trainer.is_global_zero:
            return
        self._first = (time.monotonic(), trainer.global_step)
        if sys.stderr.isatty():
            columns = (TextColumn("training"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn(),
                       TextColumn("{task.fields[values]}"))  # fmt: skip
            self._bar = Progress(*columns, console=Console(stderr=True), speed_estimate_period=120)
            self._task = self._bar.add_task(
                "training", total=trainer.max_steps, completed=trainer.global_step, values=""
            )
            self._bar.start()

    def on_train_batch_end(self, trainer: L.Trainer, pl_module: L.LightningModule, *_: Any) -> None:
        if not trainer.is_global_zero:
            return
        values = self._values(pl_module)
        if self._bar is not None:
            self._bar.update(self._task, completed=trainer.global_step, values=values)
        elif time.monotonic() - self._last > self.seconds or trainer.global_step >= trainer.max_steps:
            self._last = time.monotonic()
            start, first = self._first
            pace = (self._last - start) / max(trainer.global_step - first, 1)
            left = pace * max(trainer.max_steps - trainer.global_step, 0) / 60
            line = f"step {trainer.global_step}/{trainer.max_steps}  {values}  {left:.0f} min left"
            print(line, file=sys.stderr, flush=True)

    def _values(self, pl_module: L.LightningModule) -> str:
        chosen = [f"train/{name}" for name in getattr(pl_module, "progress", ())]
        names = ("train/loss_mean", *chosen, "throughput/samples_per_s")
        latest = self.monitor.latest
        return "  ".join(f"{name.split('/')[-1]} {latest[name]:.4g}" for name in names if name in latest)

    def teardown(self, *_: Any, **__: Any) -> None:
        if self._bar is not None:
            self._bar.stop()
            self._bar = None

    on_exception = teardown
