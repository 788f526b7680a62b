"""One function over many jobs: in this process, on all its cores, or on a Ray cluster.

The engines differ in nothing but speed: a job's result depends on the job only, and results are put in order
by whoever asked for them.
"""

import multiprocessing
import os
import threading
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, wait
from concurrent.futures.process import BrokenProcessPool
from dataclasses import dataclass
from typing import Any

from escdiff.errors import UserError

ENGINES = ("local", "ray")
AHEAD = 2  # jobs handed out per worker, so that none waits for the next


@dataclass(frozen=True)
class Engine:
    """How to run. `workers` 0 means one per core (or all of a Ray cluster); 1 stays in this process."""

    kind: str = "local"
    workers: int = 0
    gpus: float = 0.0  # per worker, for Ray to place

    def validate(self) -> None:
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
            from data_prep.ray_engine import run_on_ray

            yield from run_on_ray(work, jobs, blame, self.workers, self.gpus)
            return
        workers = min(self.workers or os.cpu_count() or 1, len(jobs))
        if workers <= 1 and self.workers == 1:
            for job in jobs:
                yield job, work(job)
            return
        yield from _run_on_processes(work, jobs, blame, max(workers, 1))


def died(job: Any, blame: Callable[[Any], bool]) -> None:
    """Called when a job's process died though it was alone.

    Raises:
        UserError: nobody knows why.
    """
    if not blame(job):
        what = f"the process working on {getattr(job, 'name', job)} died again and again"
        raise UserError(f"{what}, which no single sample explains; give it more memory or fewer --workers")


def _run_on_processes(work, jobs, blame, workers: int) -> Iterator[tuple[Any, Any]]:
    queue, suspects = deque(jobs), deque()
    while queue or suspects:
        # A dead worker breaks its whole pool and nobody says which job it had: each then runs once alone.
        alone = bool(suspects)
        todo, running = (suspects, []) if alone else (queue, [])
        try:
            yield from _pool(work, todo, 1 if alone else workers, running, 1 if alone else AHEAD)
        except BrokenProcessPool:
            if alone:
                died(running[0], blame)
            suspects.extendleft(reversed(running))


def _pool(work, todo: deque, workers: int, running: list, ahead: int) -> Iterator[tuple[Any, Any]]:
    """Empty `todo`; `running` holds the jobs that were handed out and not yielded."""
    context = multiprocessing.get_context("spawn")  # fork copies torch's threads in an undefined state
    pool = ProcessPoolExecutor(workers, mp_context=context, initializer=die_with_parent)
    futures: dict[Future, Any] = {}
    try:
        while todo or futures:
            while todo and len(futures) < workers * ahead:
                job = todo.popleft()
                running.append(job)
                futures[pool.submit(work, job)] = job
            for future in wait(futures, return_when=FIRST_COMPLETED).done:
                result = future.result()
                job = futures.pop(future)
                running.remove(job)
                yield job, result
    finally:
        pool.shutdown(wait=True, cancel_futures=True)


def die_with_parent() -> None:
    """A worker whose parent was killed would otherwise wait for work for ever."""

    def watch() -> None:
        multiprocessing.parent_process().join()
        os._exit(1)

    threading.Thread(target=watch, daemon=True).start()
