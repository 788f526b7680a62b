"""Jobs on a Ray cluster: the one of RAY_ADDRESS, else one that Ray starts on this machine.

All nodes must see the folders under the same path.
"""

import os
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

from escdiff.support.errors import UserError, reason_of
from escdiff.support.jobs.processes import AHEAD, died
from escdiff.support.optional import need


def run_on_ray(
    work: Callable[[Any], Any], jobs: Sequence[Any], blame: Callable[[Any], bool], workers: int, gpus: float
) -> Iterator[tuple[Any, Any]]:
    """Yield (job, work(job)) as `Engine.run` does."""
    ray = need("ray", "--engine ray")
    started_here = not ray.is_initialized()
    if started_here:
        start(ray, workers)
    try:
        yield from _tasks(ray, work, deque(jobs), blame, workers, gpus)
    finally:
        if started_here:
            ray.shutdown()


def start(ray, workers: int) -> None:
    """Join the cluster that RAY_ADDRESS names, or start one of `workers` cores here.

    Raises:
        UserError: it cannot be reached or started.
    """
    options: dict[str, Any] = {"log_to_driver": False, "include_dashboard": False}
    if not os.environ.get("RAY_ADDRESS"):
        options["num_cpus"] = workers or os.cpu_count()
    variables = {"PYTHONPATH": import_path(), "OMP_NUM_THREADS": "1"}
    try:
        ray.init(runtime_env={"env_vars": variables}, logging_level="error", **options)
    except Exception as error:  # Ray raises bare ones: a node that starts too slowly, an address nobody answers
        problem = f"Ray cannot be started or reached ({reason_of(error)})"
        raise UserError(f"{problem}; check RAY_ADDRESS or use --engine local") from error


def import_path() -> str:
    """PYTHONPATH of workers, which must import what this process runs, also where nothing is installed."""
    paths = [str(Path(__file__).parents[3]), *os.environ.get("PYTHONPATH", "").split(os.pathsep)]
    return os.pathsep.join(path for path in paths if path)


def _tasks(ray, work, todo: deque, blame, workers: int, gpus: float) -> Iterator[tuple[Any, Any]]:
    task = ray.remote(num_cpus=1, num_gpus=gpus, max_retries=0)(_call)
    cores = workers or int(ray.cluster_resources().get("CPU", 1))
    function = ray.put(work)
    running: dict[Any, Any] = {}
    tries: dict[int, int] = {}
    while todo or running:
        while todo and len(running) < cores * AHEAD:
            job = todo.popleft()
            running[task.remote(function, job)] = job
        for reference in ray.wait(list(running), num_returns=1)[0]:
            job = running.pop(reference)
            try:
                result = ray.get(reference)
            except ray.exceptions.WorkerCrashedError:
                # A Ray task has its process to itself, so the crumb is its own; once may be bad luck.
                tries[id(job)] = tries.get(id(job), 0) + 1
                if tries[id(job)] > 1:
                    died(job, blame)
                todo.append(job)
                continue
            except ray.exceptions.RayTaskError as error:
                cause = getattr(error, "cause", None)
                raise (cause if isinstance(cause, UserError) else error) from None
            yield job, result


def _call(work, job):
    return work(job)
