"""kill -9 at random moments of every long command; resumed, the result is that of an uninterrupted run."""

import os
import shutil
import signal
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from trouble import encoded, noise

from data_prep.caption import Caption, caption
from data_prep.dataset import Run
from data_prep.engine import Engine
from data_prep.ingest import Ingest, ingest
from data_prep.latents import Latents, latents
from data_prep.pairs import Pairs, pairs
from data_prep.segment import Segment, segment
from data_prep.sources import make_plan
from escdiff.data.index import Index

HERE = Run(Engine(workers=1), max_bad=1.0)
COMMANDS = ("ingest", "dedup", "segment", "caption", "pairs", "latents")


@pytest.fixture(scope="module")
def pictures(tmp_path_factory) -> Path:
    """48 pictures with masks, among them a damaged one per shard to come."""
    folder = tmp_path_factory.mktemp("pictures")
    mask = np.zeros((120, 160), np.uint8)
    mask[30:90, 40:120] = 255
    for i in range(48):
        data = encoded(noise(160, 120, seed=i), "PNG")
        (folder / f"{i:02d}.png").write_bytes(data[: len(data) // 2] if i % 6 == 3 else data)
        (folder / f"{i:02d}.mask.png").write_bytes(encoded(Image.fromarray(mask), "PNG"))
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


def kept(folder: Path) -> dict[str, bytes]:
    """All files but crumbs and other work in progress."""
    return {str(f.relative_to(folder)): f.read_bytes() for f in folder.rglob("*") if f.is_file()}


@pytest.mark.parametrize("points", [2, pytest.param(20, marks=pytest.mark.slow)])
@pytest.mark.parametrize("name", COMMANDS)
def test_killed_and_resumed(name, points, pictures, photos, tiny_folder, tmp_path):
    work: dict[str, Callable[[Path], object]] = {
        "ingest": lambda out: ingest(make_plan(pictures, 6), out, Ingest(), HERE),
        "segment": lambda out: segment(photos, out, Segment(), HERE),
        "caption": lambda out: caption(photos, out, Caption(), HERE),
        "pairs": lambda out: pairs(photos, out, Pairs(size=48, tries=3), HERE),
        "latents": lambda out: latents(out, Latents(str(tiny_folder), 64, batch=2), HERE),
    }
    if name == "dedup":
        pytest.importorskip("imagehash")
        from data_prep.dedup import Dedup, dedup

        work["dedup"] = lambda out: dedup(photos, out, Dedup(), HERE)

    def begin(folder: Path) -> Path:
        if name == "latents":
            shutil.copytree(photos, folder)
        return folder

    work[name](begin(tmp_path / "warm"))  # imports and models, so that the children spend their time on work
    start = time.monotonic()
    work[name](begin(tmp_path / "whole"))
    whole, seconds = kept(tmp_path / "whole"), time.monotonic() - start
    rng = np.random.default_rng(COMMANDS.index(name))
    running, partly = 0, 0
    for point in range(points):
        out = begin(tmp_path / f"killed-{point}")
        running += killed(work[name], out, float(rng.uniform(0.05, 0.95)) * seconds)
        partly += bool(kept(out)) and kept(out) != whole
        work[name](out)
        assert kept(out) == whole, f"point {point}"
        assert Index.load(out).complete
        shutil.rmtree(out)
    print(f"{name}: {points} kills within {seconds:.2f} s, {running} while it ran, {partly} with work half done")
    assert partly or points < 5
