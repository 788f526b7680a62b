"""Processes: order, errors, deaths. The functions import little, since every worker imports this file."""

import os
import signal

import pytest

from escdiff.support.errors import UserError
from escdiff.support.jobs.engine import Engine


def square(job: int) -> int:
    if job == 13:
        raise UserError("13 was given; expected another number")
    return job * job


def die_once(job: tuple[str, int]) -> int:
    """The job 3 kills its process unless its file is there."""
    path, number = job
    if number == 3 and not os.path.exists(path):
        os.kill(os.getpid(), signal.SIGKILL)
    return number


@pytest.mark.parametrize("workers", [1, 2])
def test_all_jobs_are_done_and_errors_arrive(workers):
    engine = Engine(workers=workers)
    assert dict(engine.run(square, [3, 1, 2])) == {3: 9, 1: 1, 2: 4}
    with pytest.raises(UserError, match="13 was given"):
        dict(engine.run(square, [1, 13]))
    assert list(engine.run(square, [])) == []


def test_a_job_that_killed_its_process_is_tried_alone_and_blamed(tmp_path):
    path = str(tmp_path / "mended")
    blamed = []

    def blame(job) -> bool:
        blamed.append(job)
        (tmp_path / "mended").touch()
        return True

    jobs = [(path, number) for number in range(8)]
    found = dict(Engine(workers=2).run(die_once, jobs, blame))
    assert found == {job: job[1] for job in jobs} and blamed == [(path, 3)]
    (tmp_path / "mended").unlink()
    with pytest.raises(UserError, match="died again and again"):
        dict(Engine(workers=2).run(die_once, jobs))
