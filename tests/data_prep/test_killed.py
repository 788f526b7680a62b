"""kill -9 at random moments of every command; resumed, the result is that of an uninterrupted run."""

import os
import shutil
import signal
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from stages import COMMANDS, begin, command, contents, make_pictures

from data_prep.dataset import Run
from data_prep.ingest import Ingest, ingest
from data_prep.plans import make_plan
from escdiff.data.index import Index
from escdiff.support.jobs.engine import Engine

HERE = Run(Engine(workers=1), max_bad=1.0)


@pytest.fixture(scope="module")
def pictures(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("pictures")
    make_pictures(folder)
    return folder


@pytest.fixture(scope="module")
def photos(pictures, tmp_path_factory) -> Path:
    out = tmp_path_factory.mktemp("photos")
    ingest(make_plan(pictures, 6), out, Ingest(), HERE)
    return out


def killed(work: Callable[[Path], object], out: Path, after: float) -> bool:
    """Run `work(out)` in a process of its own and kill it after that many seconds; whether it was still running."""
    child = os.fork()
    if not child:
        null = os.open(os.devnull, os.O_WRONLY)
        os.dup2(null, 1)
        os.dup2(null, 2)
        try:
            work(out)
        finally:
            os._exit(0)
    time.sleep(after)
    os.kill(child, signal.SIGKILL)
    return os.WIFSIGNALED(os.waitpid(child, 0)[1])


@pytest.mark.parametrize("points", [2, pytest.param(20, marks=pytest.mark.slow)])
@pytest.mark.parametrize("name", COMMANDS)
def test_killed_and_resumed(name, points, pictures, photos, tiny_folder, tmp_path):
    work = command(name, pictures, photos, tiny_folder, HERE)
    work(begin(name, photos, tmp_path / "warm"))  # imports and models: the children spend their time on work
    start = time.monotonic()
    result = work(begin(name, photos, tmp_path / "whole"))
    whole, seconds = contents(tmp_path / "whole"), time.monotonic() - start
    rng = np.random.default_rng(COMMANDS.index(name))
    running, partly = 0, 0
    for point in range(points):
        out = begin(name, photos, tmp_path / "whole copy" / "whole")  # inspect writes the folder's name
        untouched = contents(out) if out.exists() else {}
        running += killed(work, out, float(rng.uniform(0.05, 0.95)) * seconds)
        partly += out.exists() and contents(out) not in (untouched, whole)
        assert work(out) == result or name != "verify"
        assert contents(out) == whole, f"point {point}"
        assert Index.load(out).complete
        shutil.rmtree(out)
    print(f"{name}: {points} kills within {seconds:.2f} s, {running} while it ran, {partly} with work half done")
    assert partly or points < 5
