"""The same bytes from a Ray of two workers as from this process, and deaths survived there too."""

import os
import signal
from pathlib import Path

import pytest
from stages import COMMANDS, begin, command, contents, make_pictures
from trouble import make_trouble

from data_prep.dataset import Run
from data_prep.ingest import Ingest, ingest
from data_prep.plans import make_plan
from escdiff.support.errors import UserError
from escdiff.support.jobs.engine import Engine

pytestmark = pytest.mark.slow
pytest.importorskip("ray")
RAY = Run(Engine("ray", workers=2), max_bad=1.0)


@pytest.fixture(scope="module", autouse=True)
def cluster():
    """One Ray for all tests of this file; the engine takes the one it finds."""
    import ray

    from escdiff.support.jobs.ray_cluster import start

    with pytest.MonkeyPatch.context() as patch:
        here = Path(__file__).parent  # where the workers find this file and what it imports
        patch.setenv("PYTHONPATH", os.pathsep.join([str(here), str(here.parent)]))
        start(ray, 2)
        yield
        ray.shutdown()


@pytest.mark.parametrize("name", COMMANDS)
def test_every_command_gives_the_same_bytes(name, tmp_path, here, tiny_folder):
    (tmp_path / "pictures").mkdir()
    make_pictures(tmp_path / "pictures")
    photos = tmp_path / "photos"
    ingest(make_plan(tmp_path / "pictures", 6), photos, Ingest(), here)
    made = []
    for run in (here, RAY):
        out = begin(name, photos, tmp_path / f"run-{len(made)}" / "set")
        command(name, tmp_path / "pictures", photos, tiny_folder, run)(out)
        made.append(contents(out))
    assert made[0] == made[1] and made[0]


def test_trouble_ends_in_the_same_quarantine(tmp_path, here):
    trouble = make_trouble(tmp_path / "pictures")
    for name, run in (("one", here), ("ray", RAY)):
        ingest(make_plan(trouble, 4), tmp_path / name, Ingest(), run)
    assert contents(tmp_path / "one") == contents(tmp_path / "ray")


def work(job: tuple[str, int]) -> int:
    """Job 1 is wrong; job 2 kills its process until its file is there."""
    if job[1] == 1:
        raise UserError("1 was given; expected another number")
    if job[1] == 2 and not os.path.exists(job[0]):
        os.kill(os.getpid(), signal.SIGKILL)
    return job[1]


def test_errors_arrive_and_deaths_are_blamed(tmp_path):
    mended = tmp_path / "mended"
    jobs = [(str(mended), number) for number in (0, 2, 3)]
    assert dict(RAY.engine.run(work, jobs, lambda job: mended.touch() or True)) == {job: job[1] for job in jobs}
    mended.unlink()
    with pytest.raises(UserError, match="died again and again"):
        dict(RAY.engine.run(work, jobs))
    with pytest.raises(UserError, match="1 was given"):
        dict(RAY.engine.run(work, [(str(mended), 1)]))
