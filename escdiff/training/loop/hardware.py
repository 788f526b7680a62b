"""Where a run computes and how exactly: `trainer=auto` takes the GPUs that are there."""

import logging
import os
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, NamedTuple

import torch

from escdiff.support.config.trainer import TrainerConfig

HALF = ("bfloat16", "float16")
log = logging.getLogger(__name__)


class Hardware(NamedTuple):
    """Lightning's own arguments, none of them "auto" but `devices` of GPUs."""

    accelerator: str
    devices: Any
    precision: str


def choose(settings: TrainerConfig, few: bool = False) -> Hardware:
    """What `trainer` says, with "auto" decided.

    GPUs if there are any: all of them for a data set, one for a concept's few references; in bf16-mixed if they have
    it. Else one process on the CPU in float32.

    Args:
        few: whether references are trained on.
    """
    accelerator, devices, precision = settings.accelerator, settings.devices, settings.precision
    if accelerator == "auto":
        accelerator = "gpu" if torch.cuda.is_available() else "cpu"
    if devices == "auto" and (accelerator == "cpu" or few):
        devices = 1
    if precision == "auto":
        half = accelerator != "cpu" and torch.cuda.is_bf16_supported()
        precision = "bf16-mixed" if half else "32-true"
    return Hardware(accelerator, devices, precision)


def own_device(settings: TrainerConfig) -> str:
    """Where this process computes before Lightning has moved anything."""
    if not torch.cuda.is_available() or settings.accelerator not in ("auto", "gpu", "cuda"):
        return "cpu"
    rank, chosen = int(os.environ.get("LOCAL_RANK") or os.environ.get("SLURM_LOCALID") or 0), settings.devices
    if isinstance(chosen, str) and "," in chosen:
        chosen = chosen.strip("[], ").split(",")
    return f"cuda:{int(chosen[rank]) if isinstance(chosen, list) else rank}"


def announce(hardware: Hardware, dtype: str) -> None:
    """One sentence on where the run computes, and a warning where that will not do.

    Args:
        dtype: of the frozen weights.
    """
    accelerator, devices, precision = hardware
    if accelerator == "cpu":
        count = f"{devices} processes on " if devices != 1 else ""
        why = "" if torch.cuda.is_available() else ", since there is no CUDA device"
        log.info("training on %sthe CPU in %s%s", count, precision, why)
        if dtype in HALF:
            log.warning("backbone.dtype=%s is slow on a CPU; say backbone.dtype=float32", dtype)
    else:
        names = {torch.cuda.get_device_name(i) for i in range(torch.cuda.device_count())}
        what = "all devices" if devices in ("auto", -1) else f"devices={devices}"
        where = f"{what} of {' and '.join(sorted(names))}"
        log.info("training on %s in %s, frozen weights in %s", where, precision, dtype)


@contextmanager
def matmul_precision(hardware: Hardware, precision: str) -> Iterator[None]:
    """Within the block, float32 matrix products on GPUs (what is left of them under autocast, and Muon's) are of
    `matmul_precision=`."""
    before = torch.get_float32_matmul_precision()
    if hardware.accelerator != "cpu":
        torch.set_float32_matmul_precision(precision)
    try:
        yield
    finally:
        torch.set_float32_matmul_precision(before)
