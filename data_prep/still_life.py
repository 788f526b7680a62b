"""Still Life as webdataset shards, in groups of 4 shapes x 4 materials.

Every sample of a group has its own random scene, so for a target (i, j) the group holds pictures of the same
shape in other materials and of the same material on other shapes: exact swap triples without an extra render.
A group's factors depend on (seed, split, group number) only, so the bytes do not depend on the workers.
"""

import os
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path

import numpy as np
import torch

from data_prep.dataset import check_space
from data_prep.engine import Engine
from escdiff.data import index as indexing
from escdiff.data.index import Index, Shard
from escdiff.data.progress import sample_progress
from escdiff.data.shards import encode_json, encode_png, write_shard
from escdiff.errors import UserError
from escdiff.still_life import world
from escdiff.still_life.captions import caption
from escdiff.still_life.render import render
from escdiff.still_life.world import Factors, Material, Shape

NAME = "still_life"
ROWS = COLUMNS = 4  # shapes, materials
GROUP = ROWS * COLUMNS
SPLITS = ("train", "val", "test")
DEPTH_SCALE = 8192  # 16-bit levels per object unit; the furthest object point is below 8 units
FORMAT = 1  # raise when the same options would give other bytes


@dataclass(frozen=True)
class StillLifeOptions:
    """Everything, besides the number of samples, that the bytes of a dataset depend on."""

    seed: int = 0
    size: int = 128  # pixels
    shard_size: int = 512  # samples
    split: str = "train"
    depth: bool = False

    def validate(self) -> None:
        if self.size % 8 or not 32 <= self.size <= 2048:
            raise UserError(f"--size is {self.size}; give a multiple of 8 from 32 to 2048")
        if self.shard_size < GROUP or self.shard_size % GROUP:
            raise UserError(f"--shard-size is {self.shard_size}; give a multiple of {GROUP}")
        if self.split not in SPLITS:
            raise UserError(f"--split is {self.split!r}; give one of {', '.join(SPLITS)}")
        if self.seed < 0:
            raise UserError(f"--seed is {self.seed}; give a number from 0 up")

    @property
    def bytes_per_sample(self) -> int:
        """For the disk check; measured at 128 pixels: 14 kB, 20 kB with depth."""
        return int(self.size**2 * (1.5 if self.depth else 1.0)) + 5000


def make_still_life(out: Path, num: int, options: StillLifeOptions, workers: int = 1) -> Index:
    """Render `num` samples (rounded up to whole groups) into `out`, skipping shards that are there already.

    `workers` processes share the work (0: one per core). A finished dataset may be enlarged by a larger
    `num`; its full shards stay.

    Raises:
        UserError: bad options, other data in `out`, or too little disk space.
    """
    options.validate()
    if num < 1:
        raise UserError(f"--num is {num}; give at least 1")
    out = Path(out).expanduser()
    sizes = shard_sizes(num, options.shard_size)
    index = open_index(out, options, sizes)
    for left in out.glob(f".{NAME}-*.tmp"):
        left.unlink()  # of a run that was killed
    done = {shard.name: shard for shard in index.shards if _stands(out, shard, sizes)}
    todo = [i for i in range(len(sizes)) if shard_name(i) not in done]
    check_space(out, sum(sizes[i] for i in todo) * options.bytes_per_sample)
    total = sum(sizes)
    with sample_progress("rendering", total, total - sum(sizes[i] for i in todo)) as advance:
        engine = Engine(workers=max(min(workers or os.cpu_count() or 1, len(todo)), 1))
        for _, shard in engine.run(partial(_job, out, sizes, options), todo):
            done[shard.name] = shard
            index.shards = [done[name] for name in sorted(done)]
            index.save(out)
            advance(shard.samples)
    index.shards = [done[name] for name in sorted(done)]
    index.save(out)
    return index


def shard_name(number: int) -> str:
    return f"{NAME}-{number:06d}.tar"


def shard_sizes(num: int, shard_size: int) -> list[int]:
    """Samples per shard; the last may be smaller, all are whole groups."""
    total = -(-num // GROUP) * GROUP
    return [min(shard_size, total - first) for first in range(0, total, shard_size)]


def open_index(out: Path, options: StillLifeOptions, sizes: list[int]) -> Index:
    """The index to go on with, or a new one.

    Raises:
        UserError: the folder holds other data, or more of this data than was asked for.
    """
    wanted = {"format": FORMAT, **asdict(options)}
    if out.exists() and not out.is_dir():
        raise UserError(f"{out} is a file; give a folder")
    if (out / indexing.FILE).exists():
        index = Index.load(out, require_complete=False)
        if (index.name, index.options) != (NAME, wanted):
            other = ", ".join(f"{k}={v}" for k, v in index.options.items() if wanted.get(k) != v)
            raise UserError(f"{out} holds {index.name} data of other options ({other}); give another folder")
        if len(index.shards) > len(sizes) or index.samples > sum(sizes):
            raise UserError(f"{out} holds {index.samples} samples already, more than asked for; give another folder")
    else:
        if out.exists() and any(out.glob("*.tar")):
            raise UserError(f"{out} holds shards but no index of this command; give an empty folder")
        try:
            out.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise UserError(f"cannot make the folder {out}: {error.strerror}; give one you may write to") from error
        index = Index(NAME, options.seed, wanted)
    index.planned = len(sizes)
    index.save(out)
    return index


def sample_group(group: int, options: StillLifeOptions) -> list[Factors]:
    """The 16 factors of a group, shape by shape: distinct families, distinct looks, a scene each.

    Outside the test split no (family, pattern, colour) combination that `world.held_out` keeps is drawn.
    """
    rng = group_rng(group, options)
    shapes: list[Shape] = []
    while len(shapes) < ROWS:
        shape = world.sample_shape(rng)
        if all(shape.family != other.family for other in shapes):
            shapes.append(shape)
    materials: list[Material] = []
    while len(materials) < COLUMNS:
        material = world.sample_material(rng)
        twin = any((material.color, material.pattern) == (other.color, other.pattern) for other in materials)
        hidden = options.split != "test" and any(world.held_out(shape, material) for shape in shapes)
        if not twin and not hidden:
            materials.append(material)
    return [Factors(s, m, world.sample_scene(rng, m)) for s in shapes for m in materials]


def group_rng(group: int, options: StillLifeOptions) -> np.random.Generator:
    return np.random.default_rng([options.seed, SPLITS.index(options.split), group])


def shard_samples(number: int, samples: int, options: StillLifeOptions) -> Iterator[dict]:
    """Render one shard; yields webdataset samples of bytes."""
    first = number * options.shard_size
    groups = range(first // GROUP, (first + samples) // GROUP)
    factors = [f for group in groups for f in sample_group(group, options)]
    rendered = render(factors, options.size)
    for i, f in enumerate(factors):
        group, place = divmod(first + i, GROUP)
        meta = {
            "caption": caption(f), "category": f.shape.family, "factors": f.to_dict(),
            "source": "escdiff still-life", "licence": "Apache-2.0", "split": options.split,
            "group": group, "shape_id": place // COLUMNS, "material_id": place % COLUMNS,
        }  # fmt: skip
        sample = {"__key__": f"{first + i:08d}", "png": encode_png(rendered.image[i])}
        sample["mask.png"] = encode_png(rendered.mask[i].astype(np.uint8) * 255)
        if options.depth:
            meta["depth_scale"] = DEPTH_SCALE
            levels = np.round(rendered.depth[i] * DEPTH_SCALE).clip(0, 65535)
            sample["depth.png"] = encode_png(levels.astype(np.uint16))
        sample["json"] = encode_json(meta)
        yield sample


def make_shard(out: Path, number: int, samples: int, options: StillLifeOptions) -> Shard:
    """Render and write one shard on one thread (more threads may sum in another order)."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        return write_shard(out / shard_name(number), shard_samples(number, samples, options))
    finally:
        torch.set_num_threads(threads)


def _job(out: Path, sizes: list[int], options: StillLifeOptions, number: int) -> Shard:
    return make_shard(out, number, sizes[number], options)


def _stands(out: Path, shard: Shard, sizes: list[int]) -> bool:
    """Whether a listed shard is there, of the size now wanted and undamaged."""
    number = int(shard.name.removeprefix(f"{NAME}-").removesuffix(".tar"))
    path = out / shard.name
    right = number < len(sizes) and shard.samples == sizes[number] and path.is_file()
    return right and path.stat().st_size == shard.bytes and indexing.sha256(path) == shard.sha256
