"""How many processes read for one rank."""

import math
import os

AUTO = "auto"


def auto_workers(ranks: int, cores: int | None = None) -> int:
    """Reading processes per rank where `ranks` of them share `cores` (those of this process without): one core stays
    with the rank itself.
    """
    return max((cores or usable_cores()) // max(ranks, 1) - 1, 0)


def usable_cores() -> int:
    """Cores that this process may use; a job scheduler may have left it a few of them."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def workers_needed(sample_seconds: float, batch_size: int, step_seconds: float) -> int:
    """Reading processes that keep up with a rank.

    Args:
        sample_seconds: of a core for reading one sample, see benchmarks/photo_reading.py.
        batch_size: samples per step and rank.
        step_seconds: of the accelerator for one step.
    """
    return math.ceil(sample_seconds * batch_size / step_seconds)
