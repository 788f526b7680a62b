"""Sources of pictures: each kind of input as jobs whose candidates a worker reads one by one.

A candidate is a dict: "__key__" in the new dataset, "__source__" where it was, "data" (bytes, or the Path of a
file), "mask" (the same, optional) and "meta" (what is known about it).
"""

import hashlib
import json
from collections import defaultdict
from collections.abc import Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from data_prep import sidecars
from data_prep.dataset import Job, Reject
from escdiff.data import schema
from escdiff.data.pictures import SUFFIXES
from escdiff.data.shards import read_raw
from escdiff.support.errors import UserError

NAME = "photos"
PICTURES = tuple(suffix[1:] for suffix in SUFFIXES)
ROOM = 1_000_000  # numbers that a shard may give its samples, which nobody has counted yet

Record = tuple[str, str, dict[str, Any]]


@dataclass(frozen=True)
class Plan:
    """Jobs, a fingerprint of the input, and what is to be said of it, a sentence each."""

    jobs: list[Job]
    fingerprint: str
    remarks: tuple[str, ...] = ()


@dataclass(frozen=True)
class Files:
    """Pictures in files; each record is (path, mask's path or "", known facts), paths from `root` on."""

    first: int
    root: str
    records: tuple[Record, ...]

    def candidates(self) -> Iterator[dict[str, Any] | Reject]:
        """The pictures, with what lies beside them."""
        for number, (name, mask, facts) in enumerate(self.records, self.first):
            path = Path(self.root, name)
            try:
                sidecar_facts, mask_file = sidecars.beside(path)
            except UserError as error:
                yield Reject(key(number), str(error), source=name)
                continue
            meta = {"source": name, **sidecar_facts, **facts}
            mask_file = Path(self.root, mask) if mask else mask_file
            yield {"__key__": key(number), "__source__": name, "data": path, "mask": mask_file, "meta": meta}


@dataclass(frozen=True)
class Tar:
    """A webdataset shard of anybody's, or an archive of pictures and their sidecars."""

    first: int
    path: str

    def candidates(self) -> Iterator[dict[str, Any] | Reject]:
        """The shard's pictures; what is damaged becomes a `Reject`."""
        damage: list[Reject] = []
        name = Path(self.path).name

        def note(offset: int, problem: str) -> None:
            place = f"{name} at byte {offset}" if offset >= 0 else name
            damage.append(Reject("?", f"{problem} in {place}; what was there is lost", source=name))

        samples = read_raw(self.path, note)
        apart = _apart(self.path)
        number = self.first
        while True:
            try:
                raw = next(samples, None)
            except UserError as error:
                damage.append(Reject("?", str(error), source=name))
                raw = None
            yield from damage
            damage.clear()
            if raw is None:
                return
            for candidate in _from_shard(raw, number, apart.get(raw["__key__"], set())):
                yield candidate
                number += 1
            if number >= self.first + ROOM:
                raise UserError(f"{self.path} holds more than {ROOM:,} pictures; split it")

    def count(self) -> int:
        """About how many pictures it holds."""
        with suppress(UserError):
            return sum(1 for _ in read_raw(self.path, lambda *_: None, only=()))
        return 0


@dataclass(frozen=True)
class Several:
    """Sources that go into one shard."""

    sources: tuple[Files | Tar, ...]

    def candidates(self) -> Iterator[dict[str, Any] | Reject]:
        """Those of each source, in order."""
        for source in self.sources:
            yield from source.candidates()


def _apart(path: str) -> dict[str, set[str]]:
    """key -> its entries, of samples that are not in one piece, as `tar` packs folders that it does not sort."""
    entries: dict[str, set[str]] = defaultdict(set)
    broken = set()
    with suppress(UserError):  # the second reading says so
        for raw in read_raw(path, lambda *_: None, only=()):
            if raw["__key__"] in entries:
                broken.add(raw["__key__"])
            entries[raw["__key__"]] |= {name for name in raw if not name.startswith("__")}
    return {key: entries[key] for key in broken}


def key(number: int) -> str:
    """The key of a sample by its number."""
    return f"{number:010d}"


def files_plan(root: Path, records: Sequence[Record], shard_size: int, remarks: tuple[str, ...] = ()) -> Plan:
    """Jobs of `shard_size` pictures each; a missing picture is left to its job."""
    digest = hashlib.sha256()
    for name, mask, facts in records:
        path = Path(root, name)
        size = path.stat().st_size if path.exists() else -1
        digest.update(json.dumps([name, mask, facts, size], sort_keys=True, default=str).encode("utf-8", "replace"))
    firsts = range(0, len(records), shard_size)
    parts = [tuple(records[first : first + shard_size]) for first in firsts]
    jobs = [
        Job(f"{NAME}-{i:06d}", len(part), Files(first, str(root), part))
        for i, (first, part) in enumerate(zip(firsts, parts, strict=True))
    ]
    return Plan(jobs, digest.hexdigest()[:16], remarks)


def shards_plan(paths: Sequence[Path]) -> Plan:
    """One job per shard, in order."""
    digest = hashlib.sha256("".join(f"{p.name}:{p.stat().st_size};" for p in paths).encode()).hexdigest()[:16]
    return Plan([Job(f"{NAME}-{i:06d}", 0, Tar(i * ROOM, str(p))) for i, p in enumerate(paths)], digest)


def mixed_plan(pictures: Plan, shards: Plan, shard_size: int) -> Plan:
    """Pictures, then shards; a shard that fits into the last job of pictures goes there."""
    jobs = list(pictures.jobs)
    room = 1 + sum(job.samples for job in jobs) // ROOM
    for number, job in enumerate(shards.jobs, room):
        tar = Tar(number * ROOM, job.source.path)
        count, last = tar.count(), jobs[-1]
        if last.samples + count <= shard_size:
            jobs[-1] = Job(last.name, last.samples + count, Several((last.source, tar)))
        else:
            jobs.append(Job(f"{NAME}-{len(jobs):06d}", count, tar))
    return Plan(jobs, f"{pictures.fingerprint}+{shards.fingerprint}", pictures.remarks)


def _from_shard(raw: dict[str, Any], number: int, entries: set[str]) -> Iterator[dict[str, Any] | Reject]:
    """The candidates in a raw sample: as many as it has pictures. `entries` are all of its name, also elsewhere."""
    name = f"{Path(raw['__url__']).name}#{raw['__key__']}"
    pictures = [kind for kind in PICTURES if kind in raw]
    elsewhere = entries.difference(raw)
    if not pictures:
        if not entries.intersection(PICTURES):  # else it belongs to a picture elsewhere, where that is said
            kinds = ", ".join(sorted(kind for kind in raw if not kind.startswith("__")))
            problem = f"sample {name} has no picture but {kinds}, as names are split at their first dot"
            yield Reject(key(number), f"{problem}; give one in a format that is read", source=name)
        return
    try:
        if elsewhere.intersection((*sidecars.CAPTIONS, sidecars.FACTS, schema.MASK)):
            problem = f"the sample {name} has its {', '.join(sorted(elsewhere))} in another place of the tar"
            raise UserError(f"{problem}; write it with `tar --sort=name`")
        sidecar_facts = sidecars.facts_of(raw, name)
    except UserError as error:
        yield Reject(key(number), str(error), source=name)
        return
    for i, kind in enumerate(pictures):
        source = name if len(pictures) == 1 else f"{name}.{kind}"
        facts = {"source": source, **sidecar_facts}
        yield {"__key__": key(number + i), "__source__": source, "data": raw[kind], "mask": raw.get(schema.MASK),
               "meta": facts}  # fmt: skip
