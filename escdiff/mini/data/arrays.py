"""Still Life as memory-mapped arrays, for trainings that read thousands of pictures per second.

Built once from the shards into `arrays/` beside them; built again when the shards have changed.
"""

import json
import os
import shutil
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import cached_property, partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from escdiff.data import schema
from escdiff.data.index import Index, Shard
from escdiff.data.pictures import expand
from escdiff.data.shards import read_shard
from escdiff.mini.world import world
from escdiff.mini.world.arrangement import picture_of
from escdiff.mini.world.scene_captions import any_caption
from escdiff.support.errors import UserError
from escdiff.support.files import write_atomic
from escdiff.support.progress import sample_progress

FOLDER, MANIFEST, VERSION = "arrays", "manifest.json", 2
# The class of each categorical factor: (part of Factors, field, its words).
LABELS = {
    "family": ("shape", "family", world.FAMILIES),
    "pattern": ("material", "pattern", world.PATTERNS),
    "color": ("material", "color", tuple(world.COLORS)),
    "color2": ("material", "color2", tuple(world.COLORS)),
    "finish": ("material", "finish", world.FINISHES),
    "background": ("scene", "background", tuple(world.BACKGROUNDS)),
}
UNNAMED = -100  # label of what has no word in the picture; torch's cross-entropy leaves it out by default
PLACES = ("group", "shape_id", "material_id")


class StillLifeArrays:
    """All samples of a Still Life folder, row i being sample i.

    Attributes:
        images: (N, H, W, 3) uint8, memory-mapped.
        labels: int64 (N,) per name of `LABELS`; the number is the index into the words there, `UNNAMED` for
            what has no name.
        group, shape_id, material_id: int64 (N,), the place of each sample in its group.
        objects: int64 (n,), the rows that show a single object, in a grid of shapes and materials.
        factors, captions: sequences of `Factors` (of `Arrangement` where a row is no single object) and of the
            canonical captions, parsed when asked for.

    Example:
        arrays = StillLifeArrays("data/still_life")
        pixels = arrays.pixels([0, 5, 9])  # (3, 3, 128, 128) in [-1, 1]

    Raises:
        UserError: no finished Still Life dataset there, or a shard is missing or damaged.
    """

    def __init__(self, folder: str | os.PathLike, workers: int = 0) -> None:
        self.folder = expand(folder)
        self.index = Index.load(self.folder)
        cache = build_arrays(self.folder, self.index, workers)
        self.images = np.load(cache / "images.npy", mmap_mode="r")
        self._masks = np.load(cache / "masks.npy", mmap_mode="r")
        self._text = np.memmap(cache / "meta.jsonl", np.uint8, "r")
        self._ends = np.load(cache / "ends.npy")
        with np.load(cache / "columns.npz") as columns:
            self.labels = {name: columns[name] for name in LABELS}
            self.group, self.shape_id, self.material_id = (columns[name] for name in PLACES)
        self.objects = np.flatnonzero(self.shape_id >= 0)

    def __len__(self) -> int:
        return len(self.images)

    @property
    def size(self) -> int:
        """Side of the pictures in pixels."""
        return self.images.shape[1]

    def meta(self, row: int) -> dict[str, Any]:
        """The json of sample `row`."""
        row = range(len(self))[row]
        start = self._ends[row - 1] if row else 0
        return json.loads(self._text[start : self._ends[row]].tobytes())

    @cached_property
    def factors(self) -> "Lazy":
        """`Factors` or `Arrangement` by row."""
        return Lazy(len(self), lambda row: picture_of(self.meta(row)["factors"]))

    @cached_property
    def captions(self) -> "Lazy":
        """Canonical captions by row."""
        return Lazy(len(self), lambda row: self.meta(row)["caption"])

    def caption(
        self, row: int, rng: np.random.Generator | None = None, hide: tuple[str, ...] = (), least: float = 0.0
    ) -> str:
        """A caption of sample `row`, freshly worded; see `escdiff.mini.world.scene_captions.any_caption`."""
        return any_caption(self.factors[row], rng, hide, least)

    def pixels(self, rows: Sequence[int] | np.ndarray | slice, device: str | torch.device = "cpu") -> Tensor:
        """(n, 3, H, W) float32 in [-1, 1]; the bytes travel to `device` before they become floats."""
        levels = torch.from_numpy(np.array(self.images[rows])).to(device, non_blocking=True)
        floats = levels.permute(0, 3, 1, 2).to(torch.float32, memory_format=torch.contiguous_format)
        return floats.div_(127.5).sub_(1)

    def masks(self, rows: Sequence[int] | np.ndarray | slice) -> Tensor:
        """(n, 1, H, W) float32, 1 on the object."""
        bits = np.unpackbits(np.array(self._masks[rows]), axis=-1, count=self.size)
        return torch.from_numpy(bits).unsqueeze(1).float()

    def __getstate__(self) -> dict[str, Any]:
        """Only the folder travels to a worker process; it maps the files again."""
        return {"folder": self.folder}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__init__(state["folder"])


class Lazy(Sequence):
    """A read-only sequence whose items are made when asked for."""

    def __init__(self, length: int, get: Callable[[int], Any]) -> None:
        self._length, self._get = length, get

    def __len__(self) -> int:
        return self._length

    def __getitem__(self, row):
        if isinstance(row, slice):
            return [self._get(i) for i in range(*row.indices(self._length))]
        return self._get(range(self._length)[int(row)])


def array_pictures(folder: str | os.PathLike, shard: Shard, batch_size: int = 64) -> Iterator[Tensor]:
    """The pictures of a shard, (B, 3, H, W) in [-1, 1]; ten times faster than out of the shard itself."""
    arrays = StillLifeArrays(folder)
    row = arrays.index.first_sample(shard)
    for first in range(row, row + shard.samples, batch_size):
        yield arrays.pixels(slice(first, min(first + batch_size, row + shard.samples)))


def build_arrays(folder: Path, index: Index, workers: int = 0) -> Path:
    """Make `folder/arrays` unless it stands for the same shards; returns it.

    Built under a temporary name, so a killed build leaves nothing that looks finished.
    """
    target = folder / FOLDER
    stamp = {"version": VERSION, "shards": index.fingerprint(), "samples": index.samples}
    if _manifest(target) == stamp:
        return target
    if index.name != "still_life":
        raise UserError(f"{folder} holds {index.name} data; give a folder made by `python -m data_prep still-life`")
    index.check(folder)
    size = index.options["size"]
    needed = index.samples * size * (3 * size + size // 8)
    if needed > shutil.disk_usage(folder).free:
        raise UserError(f"the disk of {folder} lacks room for {needed / 1e9:.1f} GB of arrays; make room")
    temporary = folder / f".{FOLDER}-{os.getpid()}.tmp"
    shutil.rmtree(temporary, ignore_errors=True)
    temporary.mkdir()
    try:
        _fill(folder, temporary, index, size, workers)
        write_atomic(temporary / MANIFEST, json.dumps(stamp).encode())
        if _manifest(target) != stamp:  # else another process was faster
            if target.exists():
                shutil.rmtree(target)
            os.replace(temporary, target)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)
    return target


def _fill(folder: Path, cache: Path, index: Index, size: int, workers: int) -> None:
    count = index.samples
    images, masks = (count, size, size, 3), (count, size, (size + 7) // 8)
    for name, shape in (("images", images), ("masks", masks)):
        np.lib.format.open_memmap(cache / f"{name}.npy", "w+", np.uint8, shape).flush()
    firsts = np.cumsum([0] + [shard.samples for shard in index.shards])[:-1].tolist()
    jobs = [(folder / shard.name, first, shard.samples) for shard, first in zip(index.shards, firsts, strict=True)]
    texts: list[bytes] = []
    workers = min(workers or os.cpu_count() or 1, len(jobs))
    work = partial(_fill_shard, cache)
    # Threads do: decoding leaves the interpreter lock, and processes would need a guarded main module.
    with sample_progress("unpacking shards", count) as advance, ThreadPoolExecutor(workers) as pool:
        for job, lines in zip(jobs, pool.map(work, jobs), strict=True):
            texts += lines
            advance(job[2])
    write_atomic(cache / "meta.jsonl", b"".join(texts))
    np.save(cache / "ends.npy", np.cumsum([len(text) for text in texts]))
    np.savez(cache / "columns.npz", **_columns([json.loads(text) for text in texts]))


def _fill_shard(cache: Path, job: tuple[Path, int, int]) -> list[bytes]:
    """Decode one shard into its rows; returns the json lines."""
    path, first, count = job
    images = np.load(cache / "images.npy", mmap_mode="r+")
    masks = np.load(cache / "masks.npy", mmap_mode="r+")
    lines = []
    for sample in read_shard(path, only=("png", schema.MASK, schema.META)):
        schema.validate(sample, grouped=True)
        if len(lines) < count:
            images[first + len(lines)] = np.asarray(sample["png"])
            masks[first + len(lines)] = np.packbits(np.asarray(sample[schema.MASK]) > 127, axis=-1)
        lines.append(json.dumps(sample[schema.META]).encode() + b"\n")
    if len(lines) != count:
        raise UserError(f"shard {path} holds {len(lines)} samples, the index says {count}; make or copy it again")
    return lines


def _columns(metas: list[dict[str, Any]]) -> dict[str, np.ndarray]:
    columns = {name: np.array([meta[name] for meta in metas], np.int64) for name in PLACES}
    for name, (part, field, words) in LABELS.items():
        number = {word: i for i, word in enumerate(words)}
        values = (meta["factors"].get(part, {}).get(field) for meta in metas)
        columns[name] = np.array([number.get(word, UNNAMED) for word in values], np.int64)
    return columns


def _manifest(folder: Path) -> dict | None:
    try:
        return json.loads((folder / MANIFEST).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None
