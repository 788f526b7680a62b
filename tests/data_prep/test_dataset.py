"""What a sample does to the process that reads it."""

import json
import os
import signal
import time
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import pytest

from data_prep.dataset import Job, Reject, Run, each_sample, make_dataset
from escdiff.data.shards import encode_json, encode_png, read_raw
from escdiff.support.errors import UserError
from escdiff.support.jobs.engine import Engine


@dataclass(frozen=True)
class Cruel:
    """One sample kills the process, one never comes back, one is refused."""

    name: str = "cruel"

    def options(self) -> dict:
        return {}

    def samples(self, job: Job, guard) -> Iterator[dict | Reject]:
        yield from each_sample(({"__key__": f"{job.name}-{i}"} for i in range(6)), guard, self.convert)

    def convert(self, raw: dict) -> dict:
        if raw["__key__"] == "b-1":
            os.kill(os.getpid(), signal.SIGKILL)
        if raw["__key__"] == "b-3":
            signal.pthread_sigmask(signal.SIG_BLOCK, [signal.SIGALRM])  # as in C code that never comes back
            time.sleep(900)
        if raw["__key__"] == "b-4":
            raise UserError("refused")
        picture = encode_png(np.zeros((2, 2, 3), np.uint8))
        meta = {"caption": "", "source": "", "licence": ""}
        return {**raw, "png": picture, "json": encode_json(meta)}


@pytest.mark.slow
def test_samples_that_kill_or_hang_go_to_quarantine_and_the_rest_is_made(tmp_path):
    jobs = [Job(name, 6, None) for name in "abc"]
    start = time.monotonic()
    index = make_dataset(Cruel(), tmp_path, jobs, Run(Engine(workers=2), 0.5, seconds=0.3), {})
    assert (
        time.monotonic() - start < 450
    )  # much less than it sleeps, however long a busy machine takes to start workers
    assert [shard.samples for shard in index.shards] == [6, 3, 6]
    assert [raw["__key__"] for raw in read_raw(tmp_path / "b.tar")] == ["b-0", "b-2", "b-5"]
    lines = [
        json.loads(line) for line in (tmp_path / "quarantine" / "b.jsonl").read_text(encoding="utf-8").splitlines()
    ]
    assert [line["key"] for line in lines] == ["b-1", "b-3", "b-4"]
    assert "died or did not come back" in lines[0]["reason"] and lines[2]["reason"] == "refused"
    assert make_dataset(Cruel(), tmp_path, jobs, Run(Engine(workers=1)), {}).shards == index.shards
