"""Jobs on the cores of this machine, each worker in its own process."""

import multiprocessing
import os
import threading
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, wait
from concurrent.futures.process import BrokenProcessPool
from typing import Any

from escdiff.support.errors import UserError

AHEAD = 2  # jobs handed out per worker, so that none waits for the next


def died(job: Any, blame: Callable[[Any], bool]) -> None:
    """Called when a job's process died though it was alone.

    Raises:
        UserError: nobody knows why.
    """
    if not blame(job):
        problem = f"the process working on {getattr(job, 'name', job)} died again and again"
        raise UserError(f"{problem}, which no single sample explains; give it more memory or fewer --workers")


def run_on_processes(
    work: Callable[[Any], Any], jobs: Sequence[Any], blame: Callable[[Any], bool], workers: int
) -> Iterator[tuple[Any, Any]]:
    """Yield (job, work(job)) as `Engine.run` does."""
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
    pool = ProcessPoolExecutor(workers, mp_context=context, initializer=begin, initargs=(context.Value("i", 0),))
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


_place = 0


def place() -> int:
    """The number of this process among its workers, from 0 on."""
    return _place


def begin(started: Any) -> None:
    """Prepare a worker; `started` counts the workers."""
    global _place
    with started.get_lock():
        _place = started.value
        started.value += 1
    die_with_parent()


def die_with_parent() -> None:
    """A worker whose parent was killed would otherwise wait for work for ever."""

    def watch() -> None:
        multiprocessing.parent_process().join()
        os._exit(1)

    threading.Thread(target=watch, daemon=True).start()
