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

from escdiff.data import index as indexing
from escdiff.data.index import Index, Shard
from escdiff.data.shards import encode_json, encode_png, write_shard
from escdiff.mini.data.scene_groups import KINDS, Sample, sample_scenes
from escdiff.mini.world import world
from escdiff.mini.world.arrangement import Arrangement, as_arrangement
from escdiff.mini.world.rendering.render import boxes, render
from escdiff.mini.world.scene_captions import any_caption
from escdiff.mini.world.world import Factors, Material, Shape
from escdiff.support.errors import UserError
from escdiff.support.files import check_space
from escdiff.support.jobs.engine import Engine
from escdiff.support.progress import sample_progress

NAME = "still_life"
ROWS = COLUMNS = 4  # shapes, materials
GROUP = ROWS * COLUMNS
SPLITS = ("train", "val", "test")
DEPTH_SCALE = 8192  # 16-bit levels per object unit; the furthest object point is below 8 units
OUTSIDE = -1  # place in the grid of what shows no single object


@dataclass(frozen=True)
class StillLifeOptions:
    """Everything, besides the number of samples, that the bytes of a dataset depend on."""

    seed: int = 0
    size: int = 128  # pixels
    shard_size: int = 512  # samples
    split: str = "train"
    depth: bool = False
    nameless: float = 0.1  # share of shapes, and of materials, that no word can tell apart
    scenes: float = 0.0  # shares of groups that show other than single objects
    figures: float = 0.0
    faces: float = 0.0
    edits: float = 0.0

    def validate(self) -> None:
        """Raise `UserError` for values out of range."""
        if not 0 <= self.nameless <= 1:
            raise UserError(f"--nameless is {self.nameless}; give a share from 0 to 1")
        if min(self.shares.values()) < 0 or sum(self.shares.values()) > 1:
            flags = ", ".join(f"--{kind} {share}" for kind, share in self.shares.items())
            raise UserError(f"the shares are {flags}; give shares from 0 up that sum to at most 1")
        if self.size % 8 or not 32 <= self.size <= 2048:
            raise UserError(f"--size is {self.size}; give a multiple of 8 from 32 to 2048")
        if self.shard_size < GROUP or self.shard_size % GROUP:
            raise UserError(f"--shard-size is {self.shard_size}; give a multiple of {GROUP}")
        if self.split not in SPLITS:
            raise UserError(f"--split is {self.split!r}; give one of {', '.join(SPLITS)}")
        if self.seed < 0:
            raise UserError(f"--seed is {self.seed}; give a number from 0 up")

    @property
    def shares(self) -> dict[str, float]:
        """Share of groups by kind of scene."""
        return {kind: getattr(self, kind) for kind in KINDS}

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
    for left in (*out.glob(f".{NAME}-*.tmp"), *out.glob(f".{indexing.FILE}.*.tmp")):
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
    """A shard's file."""
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
    settings = {"format": world.VERSION, **asdict(options)}
    if out.exists() and not out.is_dir():
        raise UserError(f"{out} is a file; give a folder")
    if (out / indexing.FILE).exists():
        index = Index.load(out, require_complete=False)
        if (index.name, index.options) != (NAME, settings):
            other = ", ".join(f"{k}={v}" for k, v in index.options.items() if settings.get(k) != v)
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
        index = Index(NAME, options.seed, settings)
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
        shape = world.sample_thing(rng) if rng.random() < options.nameless else world.sample_shape(rng)
        if all(shape.family != other.family for other in shapes):  # at most one of them is nameless
            shapes.append(shape)
    materials: list[Material] = []
    while len(materials) < COLUMNS:
        nameless = rng.random() < options.nameless
        material = world.sample_texture(rng) if nameless else world.sample_material(rng)
        twin = any((material.color, material.pattern) == (other.color, other.pattern) for other in materials)
        hidden = options.split != "test" and any(world.held_out(shape, material) for shape in shapes)
        if not twin and not hidden:
            materials.append(material)
    return [Factors(s, m, world.sample_scene(rng, m)) for s in shapes for m in materials]


def group_rng(group: int, options: StillLifeOptions, *stream: int) -> np.random.Generator:
    """Random numbers of a group; other streams of it are independent."""
    return np.random.default_rng([options.seed, SPLITS.index(options.split), group, *stream])


def group_kind(group: int, options: StillLifeOptions) -> str | None:
    """The kind, of `scene_groups.KINDS`, that a group shows; None for single objects."""
    draw = group_rng(group, options, 1).random()
    for kind, share in options.shares.items():
        if (draw := draw - share) < 0:
            return kind
    return None


def group_samples(group: int, options: StillLifeOptions) -> list[Sample]:
    """The 16 pictures of a group; those of single objects have a place in its grid of shapes and materials."""
    kind = group_kind(group, options)
    if kind is not None:
        return sample_scenes(kind, GROUP, group_rng(group, options, 2), options.split == "test")
    places = [{"shape_id": place // COLUMNS, "material_id": place % COLUMNS} for place in range(GROUP)]
    return [Sample(factors, place) for factors, place in zip(sample_group(group, options), places, strict=True)]


def shard_samples(number: int, samples: int, options: StillLifeOptions) -> Iterator[dict]:
    """Render one shard; yields webdataset samples of bytes."""
    first = number * options.shard_size
    groups = range(first // GROUP, (first + samples) // GROUP)
    drawn = [sample for group in groups for sample in group_samples(group, options)]
    rendered = render([sample.picture for sample in drawn], options.size)
    for i, (picture, more) in enumerate((sample.picture, sample.meta) for sample in drawn):
        things = as_arrangement(picture).things
        meta = {
            "caption": any_caption(picture), "category": things[0].shape.family, "factors": picture.to_dict(),
            "source": "escdiff still-life", "licence": "Apache-2.0", "split": options.split,
            "group": (first + i) // GROUP, "shape_id": OUTSIDE, "material_id": OUTSIDE, **more,
        }  # fmt: skip
        sample = {"__key__": f"{first + i:08d}", "png": encode_png(rendered.image[i])}
        if isinstance(picture, Arrangement):
            meta["boxes"] = boxes(rendered.whole[i]).astype(float).round(4).tolist()
            sample["things.png"] = encode_png(_bits(rendered.whole[i]) | _bits(rendered.visible[i]) << 4)
        sample["mask.png"] = encode_png(rendered.mask[i].astype(np.uint8) * 255)
        if options.depth:
            meta["depth_scale"] = DEPTH_SCALE
            levels = np.round(rendered.depth[i] * DEPTH_SCALE).clip(0, 65535)
            sample["depth.png"] = encode_png(levels.astype(np.uint16))
        sample["json"] = encode_json(meta)
        yield sample


def _bits(masks: np.ndarray) -> np.ndarray:
    """Masks (things, H, W) -> (H, W) uint8 with bit k set where thing k is."""
    out = np.zeros(masks.shape[1:], np.uint8)
    for k, mask in enumerate(masks):
        out |= mask.astype(np.uint8) << k
    return out


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
