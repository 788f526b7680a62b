"""`merge`: several datasets as one, with keys that are unique in it."""

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from data_prep.dataset import (
    Input,
    Job,
    Reject,
    Run,
    dataset_jobs,
    each_sample,
    make_dataset,
    meta_of,
    origin,
    read_input,
)
from data_prep.guard import Guard
from data_prep.sources import NAME
from escdiff.data import schema
from escdiff.data.index import Index
from escdiff.data.photos.samples import AGREE
from escdiff.data.pictures import expand
from escdiff.data.shards import encode_json
from escdiff.support.errors import UserError


@dataclass(frozen=True)
class Merge:
    """The stage. A job's source is (input shard, what is put before its keys)."""

    name: str = "merge"

    def options(self) -> dict[str, Any]:
        """See `Stage`."""
        return {}

    def samples(self, job: Job, guard: Guard) -> Iterator[dict[str, Any] | Reject]:
        """See `Stage`."""
        source, prefix = job.source
        yield from each_sample(read_input(source), guard, lambda raw: rename(raw, prefix))


def rename(raw: dict[str, Any], prefix: str) -> dict[str, Any]:
    """The sample with `prefix` before its key and before the keys of others in its json."""
    meta = meta_of(raw)
    if schema.GROUP in meta:
        meta[schema.GROUP] = f"{prefix}{meta[schema.GROUP]}"
    for name in AGREE.values():
        if isinstance(meta.get(name), list):
            meta[name] = [f"{prefix}{key}" for key in meta[name]]
    # What `pairs` measured: of other pictures by their keys, of a view of the picture itself by the measures' names.
    if isinstance(notes := meta.get("references"), dict):
        meta["references"] = {
            attribute: {f"{prefix}{name}" if isinstance(value, dict) else name: value for name, value in found.items()}
            for attribute, found in notes.items()
            if isinstance(found, dict)
        }
    entries = {k: v for k, v in raw.items() if k != "__url__"}
    return {**entries, "__key__": f"{prefix}{raw['__key__']}", schema.META: encode_json(meta)}


def merge(folders: list[Path], out: Path, run: Run) -> Index:
    """Make the dataset `out` of all samples of `folders`, in their order; caches are made anew from it.

    Raises:
        UserError: fewer than two datasets, one of them twice, or one that cannot be read.
    """
    places = [expand(folder).resolve() for folder in folders]
    if len(places) < 2 or len({*places, expand(out).resolve()}) <= len(places):
        names = ", ".join(map(str, folders))
        raise UserError(f"{names} into {out} was asked for; give two datasets or more, each once, and another --out")
    jobs: list[Job] = []
    origins, size = [], 0
    for number, folder in enumerate(folders):
        index, its_jobs = dataset_jobs(folder)
        if index.name != NAME:
            raise UserError(f"{folder} is a dataset of {index.name}; only those of pictures are merged")
        origins.append(origin(index))
        size += sum(shard.bytes for shard in index.shards)
        for job in its_jobs:
            source: tuple[Input, str] = job.source, f"{number}-"
            jobs.append(Job(f"{NAME}-{len(jobs):06d}", job.samples, source))
    return make_dataset(Merge(), out, jobs, run, {"datasets": origins}, size)
