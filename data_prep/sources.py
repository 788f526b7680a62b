"""Where pictures come from: each kind of input as jobs whose candidates a worker reads one by one.

A candidate is a dict: "__key__" in the new dataset, "__source__" where it was, "data" (bytes, or the Path of a
file), "mask" (the same, optional) and "meta" (what is known about it).
"""

import hashlib
import json
import os
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from data_prep.dataset import Job, Reject
from escdiff.data import schema
from escdiff.data.images import SUFFIXES, expand
from escdiff.data.shards import read_raw
from escdiff.errors import UserError

NAME = "photos"
LISTS = (".csv", ".tsv", ".jsonl", ".parquet")
SIDECARS = (".txt", ".json", ".mask.png")
SAME_FOLDER = ("none", "category", "object")
MAX_TEXT = 1_000_000  # bytes of a text or json beside a picture
CAPTIONS, PICTURES = ("txt", "caption"), (*schema.IMAGES, "webp", "gif", "bmp", "tif", "tiff", "ppm")

Record = tuple[str, str, dict[str, Any]]


@dataclass(frozen=True)
class Plan:
    """Jobs, a fingerprint of the input, and what of it nobody will look at."""

    jobs: list[Job]
    fingerprint: str
    passed_over: str = ""


@dataclass(frozen=True)
class Files:
    """Pictures in files; each record is (path, mask's path or "", known facts), paths from `root` on."""

    first: int
    root: str
    records: tuple[Record, ...]

    def candidates(self) -> Iterator[dict[str, Any]]:
        for number, (name, mask, facts) in enumerate(self.records, self.first):
            path = Path(self.root, name)
            beside = _sidecars(path)
            mask_file = Path(self.root, mask) if mask else beside.get("mask")
            meta = {"source": name, **beside["meta"], **facts}
            yield {"__key__": key(number), "__source__": name, "data": path, "mask": mask_file, "meta": meta}


@dataclass(frozen=True)
class Tar:
    """A webdataset shard of anybody's."""

    first: int
    path: str

    def candidates(self) -> Iterator[dict[str, Any] | Reject]:
        damage: list[Reject] = []
        name = Path(self.path).name

        def note(offset: int, what: str) -> None:
            where = f"{name} at byte {offset}" if offset >= 0 else name
            damage.append(Reject("?", f"{what} in {where}; what was there is lost", source=name))

        samples = read_raw(self.path, note)
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
            yield _from_shard(raw, number)
            number += 1


def key(number: int) -> str:
    return f"{number:010d}"


def files_plan(root: Path, records: Sequence[Record], shard_size: int, passed_over: str = "") -> Plan:
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
    return Plan(jobs, digest.hexdigest()[:16], passed_over)


def folder_plan(folder: Path, shard_size: int, folder_is: str = "none") -> Plan:
    """All pictures of a folder and its subfolders, by name.

    Raises:
        UserError: it holds none.
    """
    records, others = [], Counter()
    for root, folders, names in os.walk(folder):
        folders[:] = sorted(name for name in folders if not name.startswith("."))
        here = set(names)
        for name in sorted(n for n in names if not n.startswith(".")):
            stem, suffix = os.path.splitext(name)
            if name.endswith(".mask.png") and any(name[:-9] + s in here for s in SUFFIXES):
                continue
            if suffix.lower() in SUFFIXES:
                facts = {} if folder_is == "none" else {folder_is: Path(root).name}
                records.append((os.path.relpath(os.path.join(root, name), folder), "", facts))
            elif suffix.lower() not in SIDECARS or not any(stem + s in here for s in SUFFIXES):
                others[suffix or name] += 1
    if not records:
        raise UserError(f"the folder {folder} holds no pictures; put {', '.join(SUFFIXES)} files in it")
    passed_over = ", ".join(f"{count} {kind}" for kind, count in sorted(others.items()))
    return files_plan(folder, records, shard_size, passed_over)


def shards_plan(paths: Sequence[Path]) -> Plan:
    """One job per shard, in order."""
    digest = hashlib.sha256("".join(f"{p.name}:{p.stat().st_size};" for p in paths).encode()).hexdigest()[:16]
    # Keys leave room, as nobody has counted the samples yet.
    return Plan([Job(f"{NAME}-{i:06d}", 0, Tar(i * 1_000_000, str(p))) for i, p in enumerate(paths)], digest)


def make_plan(source: Path, shard_size: int, folder_is: str = "none", split: str | None = None) -> Plan:
    """Jobs for whatever `source` is: a folder of pictures, of shards or of a saved dataset, a list, one shard.

    Raises:
        UserError: it is none of these, or empty.
    """
    source = expand(source)
    if folder_is not in SAME_FOLDER:
        raise UserError(f"--folder-is is {folder_is!r}; give one of {', '.join(SAME_FOLDER)}")
    if shard_size < 1:
        raise UserError(f"--shard-size is {shard_size}; give at least 1")
    if source.is_dir():
        if (source / "dataset_info.json").is_file() or (source / "dataset_dict.json").is_file():
            from data_prep.saved_datasets import saved_plan

            return saved_plan(source, shard_size, split)
        tars = sorted(source.glob("*.tar"))
        return shards_plan(tars) if tars else folder_plan(source, shard_size, folder_is)
    if not source.is_file():
        raise UserError(f"there is nothing at {source}; give a folder, a list or shards of pictures")
    if source.suffix == ".tar":
        return shards_plan([source])
    if source.suffix.lower() in LISTS:
        from data_prep.lists import list_plan

        return list_plan(source, shard_size)
    if source.suffix.lower() in SUFFIXES:
        return files_plan(source.parent, [(source.name, "", {})], shard_size)
    what = f"a folder, a list ({', '.join(LISTS)}) or .tar shards; lists of addresses need --urls"
    raise UserError(f"{source} is not a kind of input this command knows; give {what}")


def _sidecars(path: Path) -> dict[str, Any]:
    """Mask, caption and facts in the files beside a picture."""
    found: dict[str, Any] = {"meta": {}}
    if (mask := path.with_suffix(".mask.png")).is_file():
        found["mask"] = mask
    if (text := path.with_suffix(".txt")).is_file() and text.stat().st_size <= MAX_TEXT:
        found["meta"]["caption"] = text.read_text(errors="replace").strip()
    if (facts := path.with_suffix(".json")).is_file() and facts.stat().st_size <= MAX_TEXT:
        found["meta"] |= read_facts(facts.read_bytes())
    return found


def _from_shard(raw: dict[str, Any], number: int) -> dict[str, Any]:
    name = f"{Path(raw['__url__']).name}#{raw['__key__']}"
    picture = next((kind for kind in PICTURES if kind in raw), None)
    meta = {"source": name, **read_facts(raw.get(schema.META, b""))}
    caption = next((raw[kind] for kind in CAPTIONS if kind in raw), None)
    if caption is not None and "caption" not in meta:
        meta["caption"] = caption[:MAX_TEXT].decode("utf-8", "replace").strip()
    data = raw[picture] if picture else None
    return {"__key__": key(number), "__source__": name, "data": data, "mask": raw.get(schema.MASK), "meta": meta}


def read_facts(data: bytes) -> dict[str, Any]:
    """A json object beside a picture; anything else says nothing about it."""
    try:
        values = json.loads(data) if data and len(data) <= MAX_TEXT else {}
    except (ValueError, RecursionError):
        values = {}
    return values if isinstance(values, dict) else {}
