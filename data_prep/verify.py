"""`verify`: read every shard again and compare it with the index: bytes, hash, counts, keys, decodability.

All damage is listed, not only the first; results per shard are kept while it runs, so it can be stopped.
"""

import json
import shutil
from dataclasses import dataclass
from functools import partial
from itertools import pairwise
from pathlib import Path
from typing import Any

from data_prep.dataset import WORK, Job, Run, clear_work, map_jobs
from data_prep.guard import Guard
from escdiff.data import schema
from escdiff.data.index import Index, Shard, sha256
from escdiff.data.pictures import expand
from escdiff.data.shards import decode, read_raw
from escdiff.support.errors import UserError
from escdiff.support.files import write_atomic

FOLDER = "verify"
LISTED = 20  # problems named per shard


@dataclass(frozen=True)
class Report:
    """The result of a check: samples read, and problems by shard."""

    samples: int
    shards: int
    problems: dict[str, list[str]]

    def __str__(self) -> str:
        if not self.problems:
            return f"{self.samples} samples in {self.shards} shards are as the index says"
        lines = [f"{name}: {problem}" for name, problems in self.problems.items() for problem in problems]
        return "\n".join([*lines, f"{len(self.problems)} of {self.shards} shards are not as they should be"])


def verify(folder: Path, run: Run, decoded: bool = True) -> Report | None:
    """Compare a dataset with its index; `decoded` also decodes every entry. None after a dry run.

    Raises:
        UserError: there is no index.
    """
    folder = expand(folder)
    index = Index.load(folder, require_complete=False)
    jobs = [Job(Path(s.name).stem, s.samples, s) for s in index.shards]
    work = folder / WORK / FOLDER
    if not run.dry:
        shutil.rmtree(work, ignore_errors=True) if not _same(work, index, decoded) else None
        work.mkdir(parents=True, exist_ok=True)
        write_atomic(work / "of", _stamp(index, decoded).encode())
    check = partial(check_shard, folder, decoded, run.seconds, run.alone)
    map_jobs("verify", check, jobs, lambda job: _file(folder, job.name).is_file(), run)
    if run.dry:
        return None
    problems: dict[str, list[str]] = {}
    reports = [json.loads(_file(folder, job.name).read_text(encoding="utf-8")) for job in jobs]
    problems = {job.name + ".tar": f["problems"] for job, f in zip(jobs, reports, strict=True) if f["problems"]}
    _whole(folder, index, reports, problems)
    clear_work(folder, FOLDER)
    return Report(sum(f["samples"] for f in reports), len(jobs), problems)


def check_shard(folder: Path, decoded: bool, seconds: float, alone: bool, job: Job) -> None:
    """Read one shard and write down what is wrong with it."""
    problems: list[str] = []
    keys: list[str] = []
    shard: Shard = job.source
    path = folder / shard.name
    try:
        size = path.stat().st_size
        if size != shard.bytes:
            problems.append(f"has {size} bytes, the index says {shard.bytes}")
        elif sha256(path) != shard.sha256:
            problems.append("its SHA-256 differs from the index")
        guard = Guard(None, job.name, seconds, alone)
        for raw in read_raw(path, lambda offset, problem: problems.append(_where(offset, problem))):
            keys.append(raw["__key__"])
            try:
                with guard.sample(raw["__key__"]):
                    _check(raw, decoded)
            except UserError as error:
                problems.append(str(error))
    except FileNotFoundError:
        problems.append("is missing")
    except (OSError, UserError) as error:
        problems.append(str(error))
    if not problems and len(keys) != shard.samples:
        problems.append(f"holds {len(keys)} samples, the index says {shard.samples}")
    if len(problems) > LISTED:
        problems = [*problems[:LISTED], f"and {len(problems) - LISTED} more"]
    ends = [min(keys), max(keys)] if keys else []
    report = {"samples": len(keys), "distinct": len(set(keys)), "ends": ends, "problems": problems}
    write_atomic(_file(folder, job.name), json.dumps(report).encode())


def _where(offset: int, problem: str) -> str:
    return f"{problem} at byte {offset}" if offset >= 0 else problem


def _check(raw: dict[str, Any], decoded: bool) -> None:
    schema.image_key(raw)
    if decoded:
        entries = {k: v for k, v in raw.items() if k.startswith("__") or k in schema.KNOWN}
        schema.validate(decode(entries))


def _whole(folder: Path, index: Index, reports: list[dict], problems: dict[str, list[str]]) -> None:
    """Add the problems that no single shard shows."""
    if not index.complete:
        state = f"{len(index.shards)} of {index.planned} shards; run its command again"
        problems["index.json"] = [f"the dataset is unfinished, {state}"]
    listed = {shard.name for shard in index.shards}
    for path in sorted(folder.glob("*.tar")):
        if path.name not in listed:
            problems[path.name] = ["is not in the index"]
    ranges = sorted((f["ends"], shard.name) for f, shard in zip(reports, index.shards, strict=True) if f["ends"])
    for ((_, end), name), ((start, _), other) in pairwise(ranges):
        if start == end:
            problems.setdefault(other, []).append(f"has the key {start} that {name} has too")
    for f, shard in zip(reports, index.shards, strict=True):
        if f["distinct"] != f["samples"]:
            problems.setdefault(shard.name, []).append(f"has {f['samples'] - f['distinct']} keys twice")


def _file(folder: Path, job: str) -> Path:
    return folder / WORK / FOLDER / f"{job}.json"


def _stamp(index: Index, decoded: bool) -> str:
    return f"{index.fingerprint()} {decoded}"


def _same(work: Path, index: Index, decoded: bool) -> bool:
    try:
        return (work / "of").read_text(encoding="utf-8") == _stamp(index, decoded)
    except OSError:
        return False
