"""One function over many jobs: in this process, on all its cores, or on a Ray cluster.

The engines differ in nothing but speed: a job's result depends on the job only, and results are put in order
by whoever asked for them.
"""

import os
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from escdiff.support.errors import UserError
from escdiff.support.jobs.processes import run_on_processes
from escdiff.support.jobs.ray_cluster import run_on_ray

ENGINES = ("local", "ray")


@dataclass(frozen=True)
class Engine:
    """How to run. `workers` 0 means one per core (or all of a Ray cluster); 1 stays in this process."""

    kind: str = "local"
    workers: int = 0
    gpus: float = 0.0  # per worker, for Ray to place

    def validate(self) -> None:
        """Raise `UserError` for values that no engine takes."""
        if self.kind not in ENGINES:
            raise UserError(f"--engine is {self.kind!r}; give one of {', '.join(ENGINES)}")
        if self.workers < 0:
            raise UserError(f"--workers is {self.workers}; give a number from 0 up")

    def run(
        self, work: Callable[[Any], Any], jobs: Sequence[Any], blame: Callable[[Any], bool] = lambda job: False
    ) -> Iterator[tuple[Any, Any]]:
        """Yield (job, work(job)) as they are done, in any order.

        A job whose process died is run again alone; if it dies again, `blame(job)` may change something and
        say True to have another try.

        Raises:
            UserError: a job died again and again; and what `work` raises.
        """
        self.validate()
        if self.kind == "ray":
            yield from run_on_ray(work, jobs, blame, self.workers, self.gpus)
            return
        workers = min(self.workers or os.cpu_count() or 1, len(jobs))
        if workers <= 1 and self.workers == 1:
            for job in jobs:
                yield job, work(job)
            return
        yield from run_on_processes(work, jobs, blame, max(workers, 1))
