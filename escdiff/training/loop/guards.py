"""Callbacks that keep a run sound: randomness by step, no step on a broken gradient, a clean stop."""

import json
import logging
import random
import signal
import threading
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import lightning as L
import numpy as np
import torch

from escdiff.support.errors import UserError
from escdiff.training.loop.monitoring.monitor import Monitor
from escdiff.training.loop.optim.ema import trainable
from escdiff.training.loop.steps import StepCallback

STOPPED, OUT_OF_TIME = "stopped", "out of time"
log = logging.getLogger(__name__)


class StepSeeds(L.Callback):
    """Seeds all generators before each batch from (seed, rank, number of the batch).

    So noise, timesteps and drops of a batch do not depend on what ran before it in this process, and a
    resumed run draws what the run that was stopped would have drawn.

    Attributes:
        batches: trained so far, over all sittings.
    """

    def __init__(self, seed: int) -> None:
        self.seed, self.batches = seed, 0

    def on_train_batch_start(self, trainer: L.Trainer, *_: Any) -> None:
        sequence = np.random.SeedSequence([self.seed, trainer.global_rank, self.batches])
        first, second = (int(v) for v in sequence.generate_state(2, np.uint32))
        random.seed(first)
        np.random.seed(first)
        torch.manual_seed(first << 32 | second)

    def on_train_batch_end(self, *_: Any) -> None:
        self.batches += 1

    def state_dict(self) -> dict[str, Any]:
        return {"batches": self.batches}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        self.batches = state_dict["batches"]


class GradientGuard(StepCallback):
    """Clips the gradient's norm; a step whose loss or gradient is not finite on any rank is skipped on all of them.

    Such a step is written down in `record`, one JSON object per line: step, and per rank its loss and the "key"s of
    its batches. After `patience` of them in a row the run ends. Clipping here, not in the trainer, costs one norm
    instead of two and goes with fused optimizers.
    """

    def __init__(self, monitor: Monitor, record: Path, clip: float | None = None, patience: int = 10) -> None:
        self.monitor, self.record, self.clip, self.patience, self.bad = monitor, record, clip, patience, 0
        self._losses: list[torch.Tensor] = []  # since the last step, as are the keys
        self._keys: list[str] = []

    def on_train_batch_start(self, trainer: L.Trainer, pl_module: L.LightningModule, batch: Any, *_: Any) -> None:
        self._keys += batch.get("key", []) if isinstance(batch, Mapping) else []

    def on_before_backward(self, trainer: L.Trainer, pl_module: L.LightningModule, loss: torch.Tensor) -> None:
        self._losses.append(loss.detach())

    def on_before_optimizer_step(
        self, trainer: L.Trainer, pl_module: L.LightningModule, optimizer: torch.optim.Optimizer
    ) -> None:
        parameters = trainable(pl_module)
        norm = torch.nn.utils.get_total_norm([p.grad for p in parameters if p.grad is not None])
        loss, keys = torch.stack(self._losses).sum(), self._keys
        self._losses, self._keys = [], []
        if not trainer.strategy.reduce_boolean_decision(not torch.isfinite(norm + loss), all=False):
            self.bad = 0
            self.monitor.means.add("train/grad_norm", norm)
            if self.clip:
                torch.nn.utils.clip_grads_with_norm_(parameters, self.clip, norm)
            return
        self.bad += 1
        for parameter in parameters:
            parameter.grad = None  # which optimizers leave alone
        log.warning("loss or gradient of step %d is not finite; the step is skipped", trainer.global_step)
        self._write(trainer, loss, keys)
        if self.bad >= self.patience:
            what = f"{self.bad} losses or gradients in a row were not finite, up to step {trainer.global_step}"
            hint = "the last checkpoint is sound: resume from it with a lower optim.lr, or in float32"
            raise UserError(f"{what}; {hint}")

    def state_dict(self) -> dict[str, Any]:
        return {"bad": self.bad}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        self.bad = state_dict["bad"]

    def on_step(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Let go of the gradients, which Lightning would keep in memory through the next forward pass."""
        for optimizer in trainer.optimizers:
            optimizer.zero_grad()

    def _write(self, trainer: L.Trainer, loss: torch.Tensor, keys: list[str]) -> None:
        own = {"rank": trainer.global_rank, "loss": float(loss) if torch.isfinite(loss) else None, "keys": keys}
        ranks = [own] * trainer.world_size
        if trainer.world_size > 1:
            torch.distributed.all_gather_object(ranks, own)
        if trainer.is_global_zero:
            try:
                with open(self.record, "a", encoding="utf-8") as file:
                    file.write(json.dumps({"step": trainer.global_step, "ranks": ranks}) + "\n")
            except OSError as error:
                log.warning("%s could not be written: %s", self.record, error)


class CleanStop(StepCallback):
    """Ends the run after the current step, all its batches, on SIGINT or SIGTERM, or when its minutes are used up.

    The checkpoint callback then saves. A second SIGINT interrupts at once.

    Attributes:
        ended: what a run is that was not finished: `STOPPED` by a signal, or `OUT_OF_TIME`.
    """

    def __init__(self, max_minutes: float | None = None) -> None:
        self.max_seconds = None if max_minutes is None else 60 * max_minutes
        self.asked, self.ended, self._handlers, self._start = False, STOPPED, {}, 0.0

    def _ask(self, number: int, _frame: Any) -> None:
        self.asked = True
        log.warning("%s: finishing this step, then saving", signal.Signals(number).name)
        signal.signal(signal.SIGINT, signal.default_int_handler)

    def on_train_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        super().on_train_start(trainer, pl_module)
        self._start = time.monotonic()
        if threading.current_thread() is threading.main_thread():
            for number in (signal.SIGINT, signal.SIGTERM):
                self._handlers[number] = signal.signal(number, self._ask)

    def on_step(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        late = self.max_seconds is not None and time.monotonic() - self._start > self.max_seconds
        stop = self.asked or late
        if trainer.world_size > 1:
            stop = trainer.strategy.reduce_boolean_decision(stop, all=False)
        self.ended = OUT_OF_TIME if late else STOPPED
        trainer.should_stop = trainer.should_stop or stop

    def teardown(self, *_: Any, **__: Any) -> None:
        for number, handler in self._handlers.items():
            signal.signal(number, handler)
        self._handlers = {}

    on_exception = teardown
