"""Encoder training data from shards of photos: one picture per sample, references made as destroyed views.

The data are read as a stream through webdataset, in a fixed order. An epoch lines up the samples of all shards and cuts
the line into streams; each stream shuffles its samples in a buffer. A run starts with one stream per worker of each
rank, so that no two workers read the same shard at once. The streams are numbered by (turn, lane), where a turn is a
worker's number and a lane a rank's: batch b takes its rows from the streams of turn b % turns, row g of the global
batch from lane g % lanes. A resumed run keeps the number of streams. With other numbers of ranks and workers the order
stays the same, and a worker passes over the samples that belong to others without decoding them. Shards may lie in a
folder or at any address that fsspec reads.
"""

import logging
from collections.abc import Iterator
from itertools import count, islice
from typing import Any, NamedTuple

import numpy as np
from torch.utils.data import IterableDataset, get_worker_info

from escdiff.data import schema
from escdiff.data.index import Index
from escdiff.data.photos.buckets import SAMPLED, bucket_shapes, bucket_shares, nearest
from escdiff.data.photos.objects import is_held_out, thing_of
from escdiff.data.photos.samples import PhotoSamples, collate
from escdiff.data.pictures import displayed_size
from escdiff.data.resumable import POSITION, Place
from escdiff.support.errors import UserError

ORDER, MIXING, BUCKET = 1, 2, 3  # what random numbers are for, so that none serve twice
LOSS_LIMIT = 0.001  # share of damaged pictures that a run tolerates
log = logging.getLogger(__name__)


class Layout(NamedTuple):
    """The streams of an epoch: one per lane and turn."""

    lanes: int
    turns: int


class PhotoStream(IterableDataset):
    """Batches of one rank. `start` and `layout` are read when an iteration begins.

    Args:
        val_fraction: of the objects, which are left out; samples before theirs in the stream are shown twice.
        buckets: batches have one shape each, see `escdiff.data.photos.buckets`.
    """

    def __init__(self, samples: PhotoSamples, index: Index, batch_size: int, rank: int, world: int,
                 layout: Layout, buffer: int, val_fraction: float = 0.0, buckets: bool = False) -> None:  # fmt: skip
        self.samples, self.store, self.seed = samples, samples.store, samples.seed
        self.index, self.batch_size = index, batch_size
        self.rank, self.world, self.layout, self.buffer = rank, world, layout, buffer
        self.val_fraction = val_fraction
        self.shards = index.filled
        self.start = Place(0, 0)
        self.steps = index.samples // (batch_size * world)
        if not self.steps:
            problem = f"{self.store} holds {index.samples} samples, fewer than {world} ranks x batches of {batch_size}"
            raise UserError(f"{problem}; make the batch smaller")
        self.shapes = bucket_shapes(samples.size) if buckets else []
        self.shares = self._shares() if buckets else np.ones(0)

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
        buffered: list[dict[str, Any]] = []
        rows = len(self._rows(lane, self.layout.lanes))
        batches = (self._bucket(epoch, turn + n // rows * self.layout.turns) for n in count())
        for sample in self._trained(epoch, self._part(epoch, *self._bounds(lane, turn))):
            buffered.append(sample)
            if len(buffered) >= self.buffer:
                yield self._swap_out(buffered, rng, next(batches))
        while buffered:
            yield self._swap_out(buffered, rng, next(batches))

    def _swap_out(self, buffered: list[dict[str, Any]], rng: np.random.Generator, bucket: int | None) -> dict[str, Any]:
        """Take a random sample out of those whose shape is nearest to the bucket's."""
        places: Any = range(len(buffered))
        if bucket is not None:
            away = [abs(sample["__bucket__"] - bucket) for sample in buffered]
            places = np.flatnonzero(np.array(away) == min(away))
        i = int(places[rng.integers(len(places))])
        buffered[i], buffered[-1] = buffered[-1], buffered[i]
        return buffered.pop()

    def _bucket(self, epoch: int, b: int) -> int | None:
        """The bucket of a global batch, equal for all ranks."""
        if not self.shapes:
            return None
        return int(np.random.default_rng([self.seed, epoch, b, BUCKET]).choice(len(self.shapes), p=self.shares))

    def _shares(self) -> np.ndarray:
        """Share of each bucket, estimated from the first shard's pictures."""
        first = islice(self._samples(0, range(self.shards[0].samples)), SAMPLED)
        return bucket_shares(len(self.shapes), (self._nearest(sample) for sample in first))

    def _nearest(self, raw: dict[str, Any]) -> int:
        try:
            return nearest(self.shapes, *displayed_size(raw[schema.image_key(raw)]))
        except UserError:
            return nearest(self.shapes, 1, 1)  # reading the sample says what is wrong with it

    def _trained(self, epoch: int, samples: Iterator[dict[str, Any]]) -> Iterator[dict[str, Any]]:
        """As many samples; in the place of those held out for validation the one before, or the next one."""
        last, waiting = None, 0
        for sample in samples:
            if not is_held_out(thing_of(sample), self.val_fraction):
                last = {**sample, "__bucket__": self._nearest(sample)} if self.shapes else sample
                yield from [last] * (waiting + 1)
                waiting = 0
            elif last is None:
                waiting += 1
            else:
                yield last
        if waiting:
            yield from [self._stand_in(epoch)] * waiting

    def _bounds(self, lane: int, turn: int) -> tuple[int, int]:
        """The stream's part of the epoch: as many samples as it will be asked for."""
        lanes, turns = self.layout
        of_lane = [len(self._rows(i, lanes)) for i in range(lanes)]
        before = sum(len(range(i, self.steps, turns)) for i in range(turn)) * sum(of_lane)
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
        shard, row = self.shards[number], rows.start
        for row, sample in enumerate(islice(self.store.read(shard, rows.start), len(rows)), rows.start + 1):
            yield {**sample, "__shard__": shard, "__row__": row - 1}
        if row < rows.stop:
            problem = f"{row} samples, the index says {shard.samples}"
            raise UserError(f"shard {shard.name} of {self.store} holds {problem}; make or copy it again")

    def _batch(self, raws: dict[int, dict], epoch: int, b: int, losses: "_Losses") -> dict[str, Any]:
        items: list[dict[str, Any]] = []
        bucket = self._bucket(epoch, b)
        shape = None if bucket is None else self.shapes[bucket]
        for raw in raws.values():
            try:
                items.append(self.samples(raw, epoch, shape))
                losses.seen += 1
            except UserError as error:
                losses.note(error)
                items.append(self.samples(self._stand_in(epoch), epoch, shape))
        return {**collate(items), POSITION: (epoch, b + 1)}

    def _stand_in(self, epoch: int) -> dict[str, Any]:
        """The substitute for damaged samples, the same for all ranks and runs: the epoch's first good one."""
        for raw in self._part(epoch, 0, self.index.samples):
            if is_held_out(thing_of(raw), self.val_fraction):
                continue
            try:
                self.samples(raw, epoch)
                return {**raw, "__bucket__": self._nearest(raw)} if self.shapes else raw
            except UserError:
                continue
        problem = f"no picture of {self.store} can be read"
        if self.val_fraction:
            problem += f", or all are held out by val_fraction={self.val_fraction:g}"
        raise UserError(f"{problem}; make the shards again{' or set it to 0' * bool(self.val_fraction)}")

    def held_out(self) -> Iterator[dict[str, Any]]:
        """The undecoded samples that are kept from training, in the data's order."""
        for number, shard in enumerate(self.shards):
            rows = self._samples(number, range(shard.samples))
            yield from (raw for raw in rows if is_held_out(thing_of(raw), self.val_fraction))


class _Losses:
    """Damaged pictures of one worker: named in the log, and an error above the limit."""

    def __init__(self) -> None:
        self.seen, self.lost = 0, 0

    def note(self, error: UserError) -> None:
        self.lost += 1
        log.warning("left out: %s", error)
        if self.lost > max(3, LOSS_LIMIT * (self.seen + self.lost)):
            problem = f"{self.lost} of {self.seen + self.lost} pictures cannot be read"
            raise UserError(f"{problem}, more than {LOSS_LIMIT:.1%}, the last because {error}") from error


class _Stream:
    """Samples by number, each greater than the one before."""

    def __init__(self, samples: Iterator[dict[str, Any]]) -> None:
        self.samples, self.read = samples, 0

    def take(self, number: int) -> dict[str, Any]:
        skipped, self.read = number - self.read, number + 1
        return next(islice(self.samples, skipped, None))
