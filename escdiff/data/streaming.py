"""Encoder training data from shards of photos: one picture per sample, references made as destroyed views.

Read as a stream through webdataset, in a fixed order: an epoch's samples, shard behind shard, are cut into streams,
and each mixes its samples in a buffer. Batch b takes its rows from the streams of turn b modulo turns, row g from lane
g modulo lanes. A run starts with a lane per rank and a turn per worker, so that nobody reads what another does, and
keeps them: with other numbers of ranks and workers the order is the same, and some skip over what others take.
Skipping, as in resuming, decodes nothing. Shards may lie in a folder or behind any address of fsspec.
"""

import logging
import os
from collections.abc import Iterator
from itertools import islice
from typing import Any, NamedTuple

import numpy as np
import torch
from safetensors import safe_open
from torch import Tensor
from torch.utils.data import DataLoader, IterableDataset, get_worker_info

from escdiff.data import prompts, schema
from escdiff.data.images import to_pixels
from escdiff.data.index import Index, Shard
from escdiff.data.latents import shard_file
from escdiff.data.resumable import POSITION, Place, ResumableDataModule, ResumableLoader
from escdiff.data.shards import decode
from escdiff.data.store import CACHE, ShardStore
from escdiff.data.views import appearance_view, shape_view
from escdiff.errors import UserError

REFERENCES = {"shape_ref": schema.SHAPE_VIEW, "appearance_ref": schema.APPEARANCE_VIEW}
ORDER, MIXING, VIEWS = 1, 2, 3  # what random numbers are for, so that none serve twice
LOSS_LIMIT = 0.001  # share of damaged pictures that a run tolerates
log = logging.getLogger(__name__)


class Layout(NamedTuple):
    """The streams of an epoch: one per lane and turn."""

    lanes: int
    turns: int


class PhotoStream(IterableDataset):
    """Batches of one rank. `start` and `layout` are read when an iteration begins."""

    def __init__(self, store: ShardStore, index: Index, batch_size: int, size: int, seed: int, rank: int, world: int,
                 layout: Layout, buffer: int, appearance_only: float, latents: str | None = None) -> None:  # fmt: skip
        self.store, self.index, self.batch_size, self.size, self.seed = store, index, batch_size, size, seed
        self.rank, self.world, self.layout, self.buffer = rank, world, layout, buffer
        self.appearance_only, self.latents = appearance_only, latents
        self.shards = index.filled
        self.start = Place(0, 0)
        self.steps = index.samples // (batch_size * world)
        if not self.steps:
            what = f"{store} holds {index.samples} samples, fewer than {world} ranks x batches of {batch_size}"
            raise UserError(f"{what}; make the batch smaller")

    def __iter__(self) -> Iterator[dict[str, Any]]:
        worker = get_worker_info()
        number, workers = (worker.id, worker.num_workers) if worker else (0, 1)
        epoch, step = self.start
        if step >= self.steps:
            epoch, step = epoch + 1, 0
        streams: dict[tuple[int, int], _Stream] = {}
        losses = _Losses()
        # The loader takes batches from its workers in turn, the first from worker 0.
        for b in range(step + number, self.steps, workers):
            raws = {g: self._raw(streams, epoch, b, g) for g in self._rows(self.rank, self.world)}
            yield self._batch(raws, epoch, b, losses)

    def _rows(self, first: int, step: int) -> range:
        """Rows of a global batch, every `step`-th from `first` on."""
        return range(first, self.batch_size * self.world, step)

    def _raw(self, streams: "dict[tuple[int, int], _Stream]", epoch: int, b: int, g: int) -> dict[str, Any]:
        """The undecoded sample of row `g` in batch `b` of the epoch."""
        lanes, turns = self.layout
        place = lane, turn = g % lanes, b % turns
        if place not in streams:
            streams[place] = _Stream(self.mixed(epoch, lane, turn))
        return streams[place].take(b // turns * len(self._rows(lane, lanes)) + g // lanes)

    def mixed(self, epoch: int, lane: int, turn: int) -> Iterator[dict[str, Any]]:
        """Undecoded samples of one stream, in its own order."""
        rng = np.random.default_rng([self.seed, epoch, lane, turn, MIXING])
        held: list[dict[str, Any]] = []
        for sample in self._part(epoch, *self._bounds(lane, turn)):
            held.append(sample)
            if len(held) >= self.buffer:
                yield _swap_out(held, rng)
        while held:
            yield _swap_out(held, rng)

    def _bounds(self, lane: int, turn: int) -> tuple[int, int]:
        """The stream's part of the epoch: as many samples as it will be asked for."""
        lanes, turns = self.layout
        of_lane = [len(self._rows(each, lanes)) for each in range(lanes)]
        before = sum(len(range(each, self.steps, turns)) for each in range(turn)) * sum(of_lane)
        batches = len(range(turn, self.steps, turns))
        first = before + batches * sum(of_lane[:lane])
        return first, first + batches * of_lane[lane]

    def _part(self, epoch: int, first: int, end: int) -> Iterator[dict[str, Any]]:
        """The epoch's samples from `first` up to `end`, in the order of its shards.

        An epoch that leaves a remainder begins anywhere within that order, which it takes round.
        """
        rng = np.random.default_rng([self.seed, epoch, ORDER])
        order, behind = rng.permutation(len(self.shards)), 0
        if self.index.samples % (self.batch_size * self.world):
            shift = int(rng.integers(self.index.samples))
            first, end = first + shift, end + shift
        for number in (*order, *order):
            shard = self.shards[number]
            start, behind = behind, behind + shard.samples
            if behind > first and start < end:
                yield from self._samples(number, range(max(first - start, 0), min(end, behind) - start))

    def _samples(self, number: int, rows: range) -> Iterator[dict[str, Any]]:
        shard, count = self.shards[number], 0
        for sample in islice(self.store.read(shard, rows.start), len(rows)):
            yield {**sample, "__shard__": number, "__row__": rows.start + count}
            count += 1
        if count < len(rows):
            what = f"{rows.start + count} samples, the index says {shard.samples}"
            raise UserError(f"shard {shard.name} of {self.store} holds {what}; make or copy it again")

    def _batch(self, raws: dict[int, dict], epoch: int, b: int, losses: "_Losses") -> dict[str, Any]:
        items: list[dict[str, Any]] = []
        for g, raw in raws.items():
            seeds = [self.seed, epoch, b, g, VIEWS]
            try:
                items.append(self._item(raw, np.random.default_rng(seeds)))
                losses.seen += 1
            except UserError as error:
                losses.note(error)
                items.append(self._item(self._stand_in(epoch), np.random.default_rng(seeds)))
        batch: dict[str, Any] = {name: [item[name] for item in items] for name in items[0]}
        batch = {k: torch.stack(v) if isinstance(v[0], Tensor) else v for k, v in batch.items()}
        for attribute in ("shape", "appearance"):
            batch[f"uses_{attribute}"] = torch.tensor([prompts.uses(p, attribute) for p in batch["prompt"]])
        batch[POSITION] = (epoch, b + 1)
        return batch

    def _stand_in(self, epoch: int) -> dict[str, Any]:
        """What takes the place of damaged samples, the same for all ranks and runs: the epoch's first good one."""
        for raw in self._part(epoch, 0, self.index.samples):
            try:
                self._item(raw, np.random.default_rng(0))
                return raw
            except UserError:
                continue
        raise UserError(f"no picture of {self.store} can be read; make the shards again")

    def _item(self, raw: dict[str, Any], rng: np.random.Generator) -> dict[str, Any]:
        wanted = (*schema.IMAGES, schema.META, schema.MASK, schema.SHAPE_VIEW, schema.APPEARANCE_VIEW)
        sample = decode({k: v for k, v in raw.items() if k.startswith("__") or k in wanted})
        pixels = to_pixels(sample[schema.image_key(sample)], self.size)
        mask = sample.get(schema.MASK)
        known = None if mask is None else (to_pixels(mask.convert("RGB"), self.size)[:1] > 0).float()
        category = sample.get(schema.META, {}).get("category")
        mode = prompts.APPEARANCE_ONLY if rng.random() < self.appearance_only else prompts.BOTH
        given = {name: to_pixels(sample[e], self.size) for name, e in REFERENCES.items() if e in sample}
        if "shape_ref" not in given:
            given["shape_ref"] = shape_view(pixels, rng)
        if "appearance_ref" not in given:
            given["appearance_ref"] = appearance_view(pixels, rng, known)
        item = {
            "pixels": pixels, "mask": torch.ones_like(pixels[:1]) if known is None else known, **given,
            "prompt": prompts.photo_prompt(category, mode, rng), "key": sample["__key__"],
        }  # fmt: skip
        if self.latents:
            item["latent"] = self._moments(self.shards[raw["__shard__"]], raw["__row__"])
        return item

    def _moments(self, shard: Shard, row: int) -> Tensor:
        """(2C, h, w) float32 of one sample, read from its shard's file alone.

        Raises:
            UserError: the file is missing or was made from another shard.
        """
        path = self.store.file(shard_file(self.latents, shard))
        try:
            with safe_open(path, "pt") as file:
                if (file.metadata() or {}).get("shard") == shard.sha256:
                    return file.get_slice("moments")[row].float()
        except OSError:
            pass
        what = f"the latents {path} are missing or were made from another shard"
        raise UserError(f"{what}; make them with `python -m data_prep latents {self.store}`")


class PhotoDataModule(ResumableDataModule):
    """Photos of your own for training the encoder: webdataset shards with an index, in a folder or at any
    address that fsspec knows ("s3://..."; fetched once into a cache and compared with the index).

    A sample needs a picture; "category" in its json, a mask and the references of `python -m data_prep pairs`
    are used where they are there; without them the references are destroyed views of the target. Batches are as
    those of `EncoderDataModule` with "pixels" (and "latent" if `latents` names a cache) and without reference
    masks. `place.sample` counts batches here.

    Raises:
        UserError: no index or shard, or too many damaged pictures.
    """

    def __init__(
        self,
        shards: str | os.PathLike,
        batch_size: int = 32,  # per rank
        size: int = 512,  # pixels, centre square
        seed: int = 0,
        num_workers: int = 0,
        buffer: int = 500,  # undecoded samples mixed per stream: per worker of a new run
        appearance_only: float = 0.15,  # share of prompts that say the category, where it is known
        check_hashes: bool = False,  # read and check every shard before the start
        latents: str | None = None,  # key of the cache, see escdiff.data.latents.vae_key
        cache: str | os.PathLike = CACHE,  # folder for what is fetched from an address
        cache_gb: float = 0.0,  # its size, above which the shards used least recently go; 0: no limit
    ) -> None:
        super().__init__()
        self.store, self.batch_size, self.size, self.seed = ShardStore(shards, cache, cache_gb), batch_size, size, seed
        self.num_workers, self.buffer, self.appearance_only = num_workers, buffer, appearance_only
        self.check_hashes, self.latents = check_hashes, latents
        self._layout: Layout | None = None  # of the checkpoint

    @property
    def layout(self) -> Layout:
        return self._layout or Layout(self.ranks()[1], max(self.num_workers, 1))

    def identity(self) -> dict[str, Any]:
        return {
            "data": self.store.index().fingerprint(), "seed": self.seed, "buffer": self.buffer,
            "global_batch": self.batch_size * self.ranks()[1],
        }  # fmt: skip

    def state_dict(self) -> dict[str, Any]:
        return {**super().state_dict(), "layout": tuple(self.layout)}

    def go_on(self, state_dict: dict[str, Any]) -> None:
        super().go_on(state_dict)
        self._layout = Layout(*state_dict["layout"])

    def aim(self, cursor: PhotoStream) -> None:
        super().aim(cursor)
        cursor.layout = self.layout

    def setup(self, stage: str | None = None) -> None:
        self.store.check(self.store.index(), self.check_hashes)
        self.stream()

    def stream(self) -> PhotoStream:
        return PhotoStream(self.store, self.store.index(), self.batch_size, self.size, self.seed, *self.ranks(),
                           self.layout, self.buffer, self.appearance_only, self.latents)  # fmt: skip

    def steps_per_epoch(self) -> int:
        return self.stream().steps

    def train_dataloader(self) -> DataLoader:
        stream = self.stream()
        if stream.rank == 0:
            self._warn(stream)
        place = {"module": self, "cursor": stream, "steps": stream.steps}
        # Workers start afresh each epoch, since they learn the start only then.
        return ResumableLoader(stream, batch_size=None, num_workers=self.num_workers, **place)

    def _warn(self, stream: PhotoStream) -> None:
        (lanes, turns), world, workers = self.layout, stream.world, max(self.num_workers, 1)
        if world > lanes or workers > turns:
            what = f"the run began with {lanes} ranks x {turns} workers and goes on with {world} x {workers}"
            log.warning("%s: to keep the order, they read what others take, too; a new run reads faster", what)
        elif lanes * turns > 2 * world * workers:
            count = -(-lanes // world) * -(-turns // workers)
            log.warning("every worker reads %d streams, as many as the run began with, each with its buffer", count)
        if lanes * turns > len(stream.shards):
            what = f"{len(stream.shards)} shards for {lanes * turns} streams (ranks x workers)"
            log.warning("%s: several read the same; smaller shards would be read once", what)


class _Losses:
    """Damaged pictures of one worker: named in the log, and an error above the limit."""

    def __init__(self) -> None:
        self.seen, self.lost = 0, 0

    def note(self, error: UserError) -> None:
        self.lost += 1
        log.warning("left out: %s", error)
        if self.lost > max(3, LOSS_LIMIT * (self.seen + self.lost)):
            what = f"{self.lost} of {self.seen + self.lost} pictures cannot be read"
            raise UserError(f"{what}, more than {LOSS_LIMIT:.1%}, the last because {error}") from error


class _Stream:
    """Samples by number, each greater than the one before."""

    def __init__(self, samples: Iterator[dict[str, Any]]) -> None:
        self.samples, self.read = samples, 0

    def take(self, number: int) -> dict[str, Any]:
        skipped, self.read = number - self.read, number + 1
        return next(islice(self.samples, skipped, None))


def _swap_out(held: list, rng: np.random.Generator):
    """Take a random item out in constant time."""
    i = int(rng.integers(len(held)))
    held[i], held[-1] = held[-1], held[i]
    return held.pop()
