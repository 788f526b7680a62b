"""How fast a run is, and what holds it up: samples, waiting for data, and its share of what the machine can do."""

import math
import time
from collections.abc import Callable, Sequence
from typing import Any

import lightning as L
import torch
from lightning.pytorch.profilers import Profiler
from torch.utils.flop_counter import FlopCounterMode

WAITING = ("train_dataloader_next", "on_before_batch_transfer")  # Lightning's names for getting a batch
SAVING = "save_checkpoint"
COUNT_EVERY = 10  # logging intervals between two counts; counting slows a step by some tenths
CPU_ATTENTION = "_scaled_dot_product_flash_attention_for_cpu"  # torch's counter has formulas for GPU attention only


class Clock(Profiler):
    """Adds up the seconds spent waiting for data and saving; what Lightning's profilers hear anyway.

    Attributes:
        waiting, saving: seconds so far.
    """

    def __init__(self) -> None:
        super().__init__()
        self.waiting, self.saving, self._since = 0.0, 0.0, {}

    def start(self, action_name: str) -> None:
        if action_name == SAVING or action_name.endswith(WAITING):
            self._since[action_name] = time.monotonic()

    def stop(self, action_name: str) -> None:
        if (since := self._since.pop(action_name, None)) is not None:
            seconds = time.monotonic() - since
            if action_name == SAVING:
                self.saving += seconds
            else:
                self.waiting += seconds


class Speed(L.Callback):
    """Counts between two reports. Per rank: samples per second, shares of the time spent waiting and saving.

    The share of the matrix rate is the floating-point operations of matrix products and convolutions in a step, the
    optimizer's among them unless steps are accumulated (torch.utils.flop_counter, two to a multiplication and
    addition), against the most that this device was seen to do per second: in one large matrix product in the
    training's own precision, timed at the start and with every count since other programs may have slowed it, or in
    the steps themselves. A module whose steps are of several kinds names the one at hand in its `kind_of_step`.
    """

    def __init__(self, batch_size: int) -> None:
        self.batch_size, self.clock = batch_size, Clock()
        self.matrix_rate = 0.0
        self._counter: FlopCounterMode | None = None
        self._flops, self._counted, self._kind = {}, -1, ""
        self._reset()

    def _reset(self) -> None:
        self._start, self._batches, self._total = time.monotonic(), 0, 0
        self.clock.waiting = self.clock.saving = 0.0

    def on_train_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        self._time_product(trainer, pl_module)
        self._reset()

    def _time_product(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Raise the matrix rate to what a product does now; the time that takes is not the run's."""
        began = time.monotonic()
        half = {"bf16": torch.bfloat16, "16-": torch.float16}
        dtype = next((d for name, d in half.items() if str(trainer.precision).startswith(name)), torch.float32)
        self.matrix_rate = max(self.matrix_rate, matrix_rate(pl_module.device, dtype))
        self._start += time.monotonic() - began

    def on_train_batch_start(self, trainer: L.Trainer, pl_module: L.LightningModule, *_: Any) -> None:
        # The counter takes products apart, which changes their last bits: a resumed run must count the same steps.
        step, self._kind = trainer.global_step, getattr(pl_module, "kind_of_step", "")
        due = step % (COUNT_EVERY * trainer.log_every_n_steps) == 0 or self._kind not in self._flops
        if due and step != self._counted:
            self._counted = step
            self._time_product(trainer, pl_module)
            self._counter = count_operations()
            self._counter.__enter__()

    def state_dict(self) -> dict[str, Any]:
        return {"flops": dict(self._flops)}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        if isinstance(state_dict["flops"], dict):  # a number, before steps were told apart
            self._flops = state_dict["flops"]

    def on_train_batch_end(self, *_: Any) -> None:
        if self._counter is not None:
            self._close()
        self._batches, self._total = self._batches + 1, self._total + self._flops.get(self._kind, 0)

    def on_exception(self, *_: Any) -> None:
        if self._counter is not None:
            self._close()

    def _close(self) -> None:
        self._counter.__exit__(None, None, None)
        self._flops[self._kind], self._counter = self._counter.get_total_flops(), None

    def report(self, trainer: L.Trainer) -> dict[str, float]:
        """What was measured since the report before, of all ranks."""
        seconds = max(time.monotonic() - self._start, 1e-9)
        flops = self._total / seconds
        self.matrix_rate = max(self.matrix_rate, flops)
        own = {
            "samples_per_s": self._batches * self.batch_size / seconds,
            "wait_share": self.clock.waiting / seconds,
            "saving_share": self.clock.saving / seconds,
            "tflops": flops / 1e12,
            "matrix_share": flops / self.matrix_rate,
        }
        self._reset()
        if trainer.world_size == 1:
            return {f"throughput/{name}": value for name, value in own.items()}
        ranks = [own] * trainer.world_size
        torch.distributed.all_gather_object(ranks, own)
        found = {f"throughput/rank{i:03d}/{name}": rank[name] for i, rank in enumerate(ranks) for name in own}
        mean = {f"throughput/{name}": sum(rank[name] for rank in ranks) / len(ranks) for name in own}
        return {**mean, "throughput/samples_per_s": sum(rank["samples_per_s"] for rank in ranks), **found}


def count_operations() -> FlopCounterMode:
    """A counter of matrix products, convolutions and attention, attention on a CPU among them."""
    forward, known = getattr(torch.ops.aten, CPU_ATTENTION, None), {}
    if forward is not None:
        backward = getattr(torch.ops.aten, CPU_ATTENTION + "_backward")
        # By the overload, too: torch takes an operation apart whose overload it does not know, if it can.
        known = dict.fromkeys([forward, forward.default], _attention)
        known |= dict.fromkeys([backward, backward.default], _attention_backward)
    return FlopCounterMode(display=False, custom_mapping=known)


def _attention(query: Sequence[int], key: Sequence[int], value: Sequence[int], *_: Any, **__: Any) -> int:
    """Of shapes (B, H, T, D): scores, and the values' weighted sum."""
    return 2 * math.prod(query[:3]) * key[2] * (query[3] + value[3])


def _attention_backward(
    gradient: Sequence[int], query: Sequence[int], key: Sequence[int], value: Sequence[int], *_: Any, **__: Any
) -> int:
    """The scores once more, then the gradients of scores, values, queries and keys."""
    return 2 * math.prod(query[:3]) * key[2] * (3 * query[3] + 2 * value[3])


def matrix_rate(device: torch.device, dtype: torch.dtype, clock: Callable[[], float] = time.perf_counter) -> float:
    """Floating-point operations per second of a large square matrix product, the best of three."""
    size = 8192 if device.type == "cuda" else 1024
    a = torch.full((size, size), 0.5, device=device, dtype=dtype)  # no random numbers: the run's are its own
    best = float("inf")
    for _ in range(4):  # the first warms up
        synchronize(device)
        start = clock()
        a @ a
        synchronize(device)
        best = min(best, clock() - start)
    return 2 * size**3 / best


def synchronize(device: torch.device) -> None:
    """Wait until a GPU has done what it was told."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)
