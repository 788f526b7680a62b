"""`dedup`: leaves out near duplicates, and what is also in a test set.

Perceptual hashes (64 bits, imagehash) find the same picture saved, scaled or compressed anew; CLIP, which is
optional, finds crops and recoloured copies. Of near duplicates the first stays.
"""

import hashlib
import shutil
from collections.abc import Iterator
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import safetensors.numpy
from safetensors import SafetensorError, safe_open

from data_prep.dataset import (
    LEFT_OUT,
    WORK,
    Job,
    Reject,
    Run,
    dataset_jobs,
    each_sample,
    make_dataset,
    map_jobs,
    open_index,
    origin,
    read_input,
    stands,
)
from data_prep.guard import Guard
from data_prep.neighbours import close_features, close_hashes, greedy
from data_prep.optional import need
from escdiff.data import schema
from escdiff.data.images import expand
from escdiff.data.index import FILE, Index, write_atomic
from escdiff.data.shards import decode_entry
from escdiff.errors import UserError

BATCH = 32  # pictures per CLIP pass


@dataclass(frozen=True)
class Dedup:
    """The stage. A job's source is (input shard, key -> reason to leave the sample out)."""

    distance: int = 6  # bits of 64 in which hashes of near duplicates differ at most
    clip: str | None = None  # model for embeddings
    similarity: float = 0.96  # cosine from which embeddings are near duplicates
    name: str = "dedup"

    def validate(self) -> None:
        if not 0 <= self.distance <= 16:
            raise UserError(f"--distance is {self.distance}; give a number of bits from 0 to 16")
        if not 0 < self.similarity <= 1:
            raise UserError(f"--similarity is {self.similarity}; give a cosine from 0 to 1")

    def options(self) -> dict[str, Any]:
        return {"distance": self.distance, **({"clip": self.clip, "similarity": self.similarity} if self.clip else {})}

    def samples(self, job: Job, guard: Guard) -> Iterator[dict[str, Any] | Reject]:
        source, reasons = job.source

        def chosen() -> Iterator[dict[str, Any] | Reject]:
            for raw in read_input(source):
                reason = reasons.get(raw["__key__"])
                yield Reject(raw["__key__"], reason, LEFT_OUT) if reason else raw

        yield from each_sample(chosen(), guard, lambda raw: {k: v for k, v in raw.items() if k != "__url__"})


def dedup(folder: Path, out: Path, stage: Dedup, run: Run, against: Path | None = None) -> Index | None:
    """Copy a dataset without its near duplicates and without those of `against`, a test set.

    Raises:
        UserError: no such datasets, or a library or model is missing.
    """
    stage.validate()
    run.validate()
    need("imagehash", "dedup")
    out = expand(out)
    index, jobs = dataset_jobs(folder)
    if expand(folder).resolve() == out.resolve():
        raise UserError(f"input and output are the same folder {out}; give another --out")
    test_index, test_jobs = dataset_jobs(against) if against else (None, [])
    made_from = {**origin(index), **({"against": test_index.fingerprint()} if test_index else {})}
    finished = _finished(out, stage, made_from, len(jobs))
    reasons: list[dict[str, str]] = [{} for _ in jobs]
    if not finished:
        files = [_hash_file(out, stage, job) for job in (*test_jobs, *jobs)]
        if not run.dry:
            files[0].parent.mkdir(parents=True, exist_ok=True)
        work = partial(hash_shard, out, stage, run.seconds, run.alone)
        map_jobs("hashing", work, (*test_jobs, *jobs), lambda job: _whole(_hash_file(out, stage, job)), run)
        if run.dry:
            return None
        reasons = _reasons(files, len(test_jobs), stage)
    jobs = [replace(job, source=(job.source, why)) for job, why in zip(jobs, reasons, strict=True)]
    made = make_dataset(stage, out, jobs, run, made_from)
    if not run.dry:
        shutil.rmtree(out / WORK, ignore_errors=True)
    return made


def hash_shard(out: Path, stage: Dedup, seconds: float, alone: bool, job: Job) -> None:
    """Hashes (n,) and, if asked for, embeddings (n, D) of one shard's pictures; unreadable ones have none."""
    import imagehash

    guard = Guard(None, job.name, seconds, alone)
    keys, hashes, features, batch = [], [], [], []
    for raw in read_input(job.source):
        try:
            with guard.sample(raw["__key__"]):
                name = schema.image_key(raw)
                picture = decode_entry(name, raw[name], f"{raw['__key__']} of {raw['__url__']}")
                hashes.append(np.packbits(imagehash.phash(picture).hash.ravel()).view(">u8")[0])
        except UserError:
            continue  # the copying stage or `verify` says so
        keys.append(raw["__key__"])
        if stage.clip:
            batch.append(picture)
            if len(batch) == BATCH:
                features.append(_features(stage.clip, batch))
                batch = []
    if batch:
        features.append(_features(stage.clip, batch))
    tensors = {"hashes": np.array(hashes, np.uint64).view(np.int64)}
    if stage.clip:
        tensors["features"] = np.concatenate(features) if features else np.zeros((0, 1), np.float16)
    texts = "\n".join(keys).encode()
    tensors["keys"] = np.frombuffer(texts, np.uint8)
    write_atomic(_hash_file(out, stage, job), safetensors.numpy.save(tensors))


def _features(model: str, pictures: list) -> np.ndarray:
    from data_prep.models import clip_features

    return clip_features(model, pictures).astype(np.float16)


def _reasons(files: list[Path], tests: int, stage: Dedup) -> list[dict[str, str]]:
    """For each shard behind the first `tests`: key -> why it is left out."""
    parts = [safetensors.numpy.load_file(file) for file in files]
    keys = [part["keys"].tobytes().decode().split("\n") if part["keys"].size else [] for part in parts]
    sizes = [len(names) for names in keys]
    protected = sum(sizes[:tests])
    hashes = np.concatenate([part["hashes"] for part in parts]).view(np.uint64)
    pairs, same = close_hashes(hashes, stage.distance)
    if stage.clip and sum(sizes):
        features = np.concatenate([part["features"] for part in parts if len(part["hashes"])])
        pairs = np.concatenate([pairs, close_features(features, stage.similarity)])
    dropped = greedy(pairs, same, protected)
    flat = [name for names in keys for name in names]
    reasons: list[dict[str, str]] = [{} for _ in files[tests:]]
    owner = np.repeat(np.arange(len(files)), sizes)
    for number, twin in dropped.items():
        where = "of the test set" if twin < protected else "of this dataset"
        reasons[owner[number] - tests][flat[number]] = f"near duplicate of {flat[twin]} {where}"
    return reasons


def _hash_file(out: Path, stage: Dedup, job: Job) -> Path:
    named = hashlib.sha256(f"{job.source.path}:{job.source.sha256}:{stage.clip}".encode()).hexdigest()[:24]
    return out / WORK / f"{named}.safetensors"


def _whole(path: Path) -> bool:
    try:
        with safe_open(path, "numpy"):
            return True
    except (OSError, SafetensorError):
        return False


def _finished(out: Path, stage: Dedup, made_from: dict, planned: int) -> bool:
    """Whether the shards are all there, so that nothing needs to be hashed."""
    if not (out / FILE).is_file():
        return False
    index = open_index(out, {"stage": stage.name, **stage.options(), "made_from": made_from}, planned, dry=True)
    return index.complete and all(stands(out / s.name, s) for s in index.shards)
