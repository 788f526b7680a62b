"""`dedup`: leaves out near duplicates, and what is also in a test set.

Perceptual hashes (64 bits, imagehash) find the same picture saved, scaled or compressed anew; CLIP, which is
optional, finds crops. Of near duplicates the first stays. Hashes are of grey, so colours are compared beside them: the
same shape in another colour is no duplicate but what an encoder of shape and appearance learns most from. All of such
a group stay, and the json of each has the key of its first as `group`.
"""

import hashlib
from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import safetensors.numpy
import typer
from PIL import Image
from safetensors import SafetensorError, safe_open
from skimage.color import rgb2lab

from data_prep.dataset import (
    LEFT_OUT,
    WORK,
    Job,
    Reject,
    Run,
    clear_work,
    dataset_jobs,
    each_sample,
    make_dataset,
    map_jobs,
    meta_of,
    open_index,
    origin,
    read_input,
    stands,
)
from data_prep.guard import Guard
from data_prep.neighbours import close_features, close_hashes, greedy, groups_of, split_by_colour
from escdiff.data import schema
from escdiff.data.index import FILE, Index
from escdiff.data.pictures import expand
from escdiff.data.pretrained import check_dtype
from escdiff.data.shards import decode_entry, encode_json
from escdiff.support.errors import UserError
from escdiff.support.files import make_folder, write_atomic
from escdiff.support.optional import need

BATCH = 32  # pictures per CLIP pass
GRID = 4  # places per side at which colours are compared


@dataclass(frozen=True)
class Dedup:
    """The stage. A job's source is (input shard, key -> reason to leave the sample out)."""

    distance: int = 6  # bits of 64 in which hashes of near duplicates differ at most
    clip: str | None = None  # model for embeddings
    similarity: float = 0.96  # cosine from which embeddings are near duplicates
    colour: float = 10.0  # CIELAB distance from which near duplicates have other colours; 0: of no account
    device: str = "auto"
    dtype: str = "float32"  # of the CLIP
    name: str = "dedup"

    def validate(self) -> None:
        """Raise `UserError` for values out of range."""
        if not 0 <= self.distance <= 16:
            raise UserError(f"--distance is {self.distance}; give a number of bits from 0 to 16")
        if not 0 < self.similarity <= 1:
            raise UserError(f"--similarity is {self.similarity}; give a cosine from 0 to 1")
        if not 0 <= self.colour <= 100:
            raise UserError(f"--colour is {self.colour}; give a CIELAB distance from 0 (of no account) to 100")
        check_dtype(self.dtype)

    def options(self) -> dict[str, Any]:
        """See `Stage`."""
        clip = {"clip": self.clip, "similarity": self.similarity} if self.clip else {}
        if self.clip and self.dtype != "float32":
            clip["dtype"] = self.dtype
        return {"distance": self.distance, "colour": self.colour, **clip}

    def samples(self, job: Job, guard: Guard) -> Iterator[dict[str, Any] | Reject]:
        """See `Stage`."""
        source, verdict = job.source

        def chosen() -> Iterator[dict[str, Any] | Reject]:
            for raw in read_input(source):
                reason = verdict.reasons.get(raw["__key__"])
                yield Reject(raw["__key__"], reason, LEFT_OUT) if reason else raw

        def convert(raw: dict[str, Any]) -> dict[str, Any]:
            entries = {k: v for k, v in raw.items() if k != "__url__"}
            group = verdict.groups.get(raw["__key__"])
            if group is None:
                return entries
            return {**entries, schema.META: encode_json({**meta_of(raw), schema.GROUP: group})}

        yield from each_sample(chosen(), guard, convert)


@dataclass
class Verdict:
    """On one shard's samples: key -> why it is left out, and key -> its group."""

    reasons: dict[str, str] = field(default_factory=dict)
    groups: dict[str, str] = field(default_factory=dict)


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
    verdicts = [Verdict() for _ in jobs]
    if not finished:
        files = [_hash_file(out, stage, job) for job in (*test_jobs, *jobs)]
        if not run.dry:
            make_folder(out)
            files[0].parent.mkdir(exist_ok=True)
        work = partial(hash_shard, out, stage, run.seconds, run.alone)
        map_jobs("hashing", work, (*test_jobs, *jobs), lambda job: _whole(_hash_file(out, stage, job)), run)
        if run.dry:
            return None
        verdicts = _judge(files, len(test_jobs), stage)
    jobs = [replace(job, source=(job.source, verdict)) for job, verdict in zip(jobs, verdicts, strict=True)]
    result = make_dataset(stage, out, jobs, run, made_from)
    if not run.dry:
        clear_work(out, "*.safetensors")
        if groups := len({group for verdict in verdicts for group in verdict.groups.values()}):
            typer.echo(f"dedup: {groups} groups of the same shape in other colours are kept")
    return result


def hash_shard(out: Path, stage: Dedup, seconds: float, alone: bool, job: Job) -> None:
    """Hashes (n,), colours (n, C, 3) and, if asked for, embeddings (n, D) of one shard's readable pictures."""
    import imagehash

    guard = Guard(None, job.name, seconds, alone)
    keys, hashes, colours, features, batch = [], [], [], [], []
    for raw in read_input(job.source):
        try:
            with guard.sample(raw["__key__"]):
                name = schema.image_key(raw)
                picture = decode_entry(name, raw[name], f"{raw['__key__']} of {raw['__url__']}")
                hashes.append(np.packbits(imagehash.phash(picture).hash.ravel()).view(">u8")[0])
                small = picture.resize((GRID, GRID), Image.Resampling.BOX)
                colours.append(rgb2lab(np.asarray(small)).reshape(-1, 3))
        except UserError:
            continue  # the copying stage or `verify` says so
        keys.append(raw["__key__"])
        if stage.clip:
            batch.append(picture)
            if len(batch) == BATCH:
                features.append(_features(stage, batch))
                batch = []
    if batch:
        features.append(_features(stage, batch))
    tensors = {
        "hashes": np.array(hashes, np.uint64).view(np.int64),
        "colours": np.array(colours, np.float16).reshape(-1, GRID * GRID, 3),
    }
    if stage.clip:
        tensors["features"] = np.concatenate(features) if features else np.zeros((0, 1), np.float16)
    texts = "\n".join(keys).encode()
    tensors["keys"] = np.frombuffer(texts, np.uint8)
    write_atomic(_hash_file(out, stage, job), safetensors.numpy.save(tensors))


def _features(stage: Dedup, pictures: list) -> np.ndarray:
    from data_prep.models import clip_features, device_here

    return clip_features(stage.clip, pictures, device_here(stage.device), stage.dtype).astype(np.float16)


def _judge(files: list[Path], tests: int, stage: Dedup) -> list[Verdict]:
    """A verdict on each shard behind the first `tests`."""
    parts = [safetensors.numpy.load_file(file) for file in files]
    keys = [part["keys"].tobytes().decode().split("\n") if part["keys"].size else [] for part in parts]
    sizes = [len(names) for names in keys]
    protected = sum(sizes[:tests])
    hashes = np.concatenate([part["hashes"] for part in parts]).view(np.uint64)
    colours = np.concatenate([part["colours"] for part in parts])
    pairs, same = close_hashes(hashes, stage.distance)
    apart = np.zeros((0, 2), np.int64)
    if stage.colour:
        pairs, same, apart = split_by_colour(pairs, same, colours, stage.colour)
    if stage.clip and sum(sizes):
        features = np.concatenate([part["features"] for part in parts if len(part["hashes"])])
        close = close_features(features, stage.similarity)
        group = np.arange(len(hashes))
        for number, first in groups_of(apart).items():
            group[number] = first
        # The same shape in another colour is no copy, however alike CLIP finds them.
        close = close[group[close[:, 0]] != group[close[:, 1]]]
        pairs = np.concatenate([pairs, close])
    dropped = greedy(pairs, same, protected)
    flat = [name for names in keys for name in names]
    verdicts = [Verdict() for _ in files[tests:]]
    owner = np.repeat(np.arange(len(files)), sizes)
    for number, twin in dropped.items():
        dataset = "of the test set" if twin < protected else "of this dataset"
        verdicts[owner[number] - tests].reasons[flat[number]] = f"near duplicate of {flat[twin]} {dataset}"
    staying = [pair for pair in apart.tolist() if pair[0] >= protected and not dropped.keys() & set(pair)]
    for number, first in groups_of(np.array(staying, int).reshape(-1, 2)).items():
        verdicts[owner[number] - tests].groups[flat[number]] = flat[first]
    return verdicts


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
