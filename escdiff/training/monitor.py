"""Callbacks that watch: window means, loss by timestep band, throughput, and the progress line."""

import sys
import time
from collections.abc import Mapping
from typing import Any

import lightning as L
import torch
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
from torch import Tensor

BANDS, TIMESTEPS = 4, 1000


class Monitor(L.Callback):
    """Logs, each logging interval, means over all its batches (a single batch's loss says little).

    From a training step that returns a dict it takes "loss", every scalar in "logs", and, where "error" (B,)
    and "timesteps" (B,) are there, the mean error per band of timestep indices as `train/loss_t{first}`.
    """

    def __init__(self, batch_size: int) -> None:
        self.batch_size = batch_size
        self._sums: dict[str, Tensor] = {}
        self._counts: dict[str, Tensor] = {}
        self._clock, self._batches, self._step = time.monotonic(), 0, 0

    def on_train_start(self, trainer: L.Trainer, *_: Any) -> None:
        self._clock, self._step = time.monotonic(), trainer.global_step

    def on_train_batch_end(self, trainer: L.Trainer, pl_module: L.LightningModule, outputs: Any, *_: Any) -> None:
        values = outputs if isinstance(outputs, Mapping) else {"loss": outputs}
        if values.get("loss") is not None:
            self.add("train/loss_mean", values["loss"] * trainer.accumulate_grad_batches)
        for name, value in (values.get("logs") or {}).items():
            self.add(f"train/{name}", value)
        if "error" in values and "timesteps" in values:
            self._add_bands(values["error"], values["timesteps"])
        self._batches += 1
        step = trainer.global_step
        if step != self._step and step % trainer.log_every_n_steps == 0:
            self._report(trainer, pl_module)
        self._step = step

    def add(self, name: str, value: Tensor, count: Tensor | int = 1) -> None:
        value = torch.as_tensor(value).detach().float()
        self._sums[name] = self._sums.get(name, torch.zeros_like(value)) + value
        self._counts[name] = self._counts.get(name, 0) + torch.as_tensor(count)

    def _add_bands(self, error: Tensor, timesteps: Tensor) -> None:
        width = TIMESTEPS // BANDS
        for band in range(BANDS):
            inside = (timesteps // width == band).to(error.dtype)
            self.add(f"train/loss_t{band * width}", (error * inside).sum(), inside.sum().detach())

    def _report(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        means = {name: float(total) / float(self._counts[name]) for name, total in self._sums.items()
                 if float(self._counts[name]) > 0}  # fmt: skip
        seconds = max(time.monotonic() - self._clock, 1e-9)
        rate = self._batches * self.batch_size * trainer.world_size / seconds
        pl_module.log_dict(means)
        pl_module.log("throughput/samples_per_s", rate, prog_bar=True)
        self._sums, self._counts = {}, {}
        self._clock, self._batches = time.monotonic(), 0


class ProgressLine(L.Callback):
    """A progress bar on a terminal, else a plain line every `seconds`; on standard error, rank zero only."""

    def __init__(self, seconds: float = 30.0) -> None:
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

    def on_train_batch_end(self, trainer: L.Trainer, *_: Any) -> None:
        if not trainer.is_global_zero:
            return
        if self._bar is not None:
            self._bar.update(self._task, completed=trainer.global_step, values=_values(trainer))
        elif time.monotonic() - self._last > self.seconds or trainer.global_step >= trainer.max_steps:
            self._last = time.monotonic()
            start, first = self._first
            pace = (self._last - start) / max(trainer.global_step - first, 1)
            left = pace * max(trainer.max_steps - trainer.global_step, 0) / 60
            line = f"step {trainer.global_step}/{trainer.max_steps}  {_values(trainer)}  {left:.0f} min left"
            print(line, file=sys.stderr, flush=True)

    def teardown(self, *_: Any, **__: Any) -> None:
        if self._bar is not None:
            self._bar.stop()
            self._bar = None

    on_exception = teardown


def _values(trainer: L.Trainer) -> str:
    names = ((name.split("/")[-1], value) for name, value in trainer.progress_bar_metrics.items())
    return "  ".join(f"{name} {float(value):.4g}" for name, value in names)
