"""Encoder training data from shards of photos: one picture per sample, references made as destroyed views.

Read as a stream through webdataset, in a fixed order: the shards of an epoch are dealt to ranks x workers
streams, each mixes its samples in a buffer, and batch b of a rank comes from its stream b modulo workers. A
resumed run reads up to its place without decoding.
"""

import logging
import os
from collections.abc import Iterator
from itertools import islice
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import DataLoader, IterableDataset, get_worker_info

from escdiff.data import prompts, schema
from escdiff.data.images import expand, to_pixels
from escdiff.data.index import Index
from escdiff.data.resumable import POSITION, Place, ResumableDataModule, ResumableLoader
from escdiff.data.shards import decode, read_raw
from escdiff.data.views import appearance_view, shape_view
from escdiff.errors import UserError

LOSS_LIMIT = 0.001  # share of damaged pictures that a run tolerates
log = logging.getLogger(__name__)


class PhotoStream(IterableDataset):
    """Batches of one rank. `start` is read when an iteration begins."""

    def __init__(self, folder, index: Index, batch_size: int, size: int, seed: int, rank: int, world: int,
                 streams: int, buffer: int, appearance_only: float) -> None:  # fmt: skip
        self.folder, self.index, self.batch_size, self.size, self.seed = folder, index, batch_size, size, seed
        self.rank, self.world, self.streams, self.buffer = rank, world, streams, buffer
        self.appearance_only = appearance_only
        self.start = Place(0, 0)
        self.steps = index.samples // (batch_size * world)
        if world * streams > len(index.shards):
            what = f"{world} ranks x {streams} workers need as many shards, {folder} has {len(index.shards)}"
            raise UserError(f"{what}; use fewer workers or smaller shards")
        if not self.steps:
            what = f"{folder} holds {index.samples} samples, fewer than {world} ranks x batches of {batch_size}"
            raise UserError(f"{what}; make the batch smaller")

    def __iter__(self) -> Iterator[dict[str, Any]]:
        worker = get_worker_info()
        number, workers = (worker.id, worker.num_workers) if worker else (0, 1)
        epoch, step = self.start
        if step >= self.steps:
            epoch, step = epoch + 1, 0
        if worker is None and self.streams != 1:
            raise UserError("a stream made for several workers must be read by as many")
        first = step + number  # the loader takes batches from its workers in turn, the first from worker 0
        stream = first % self.streams
        raw = islice(self.raw(epoch, stream), first // self.streams * self.batch_size, None)
        losses = _Losses()
        for b in range(first, self.steps, workers):
            yield self._batch(list(islice(raw, self.batch_size)), epoch, b, losses)

    def raw(self, epoch: int, stream: int) -> Iterator[dict[str, Any]]:
        """Undecoded samples of one stream of this rank, mixed; starts over when its shards are used up."""
        order = np.random.default_rng([self.seed, epoch]).permutation(len(self.index.shards))
        own = order[self.rank * self.streams + stream :: self.world * self.streams]
        rng = np.random.default_rng([self.seed, epoch, self.rank, stream])
        held: list[dict[str, Any]] = []
        while True:
            for shard in own:
                for sample in read_raw(self.folder / self.index.shards[shard].name):
                    held.append(sample)
                    if len(held) >= self.buffer:
                        yield _swap_out(held, rng)
            while held:
                yield _swap_out(held, rng)

    def _batch(self, raws: list[dict], epoch: int, b: int, losses: "_Losses") -> dict[str, Any]:
        items: list[dict[str, Any]] = []
        for i, raw in enumerate(raws):
            rng = np.random.default_rng([self.seed, epoch, b, self.rank, i])
            try:
                items.append(self._item(raw, rng))
                losses.seen += 1
            except UserError as error:
                losses.note(error)  # another sample of the batch takes its place, so that places stay right
        if not items:
            raise UserError(f"no picture of a whole batch can be read, the last in {raws[-1]['__url__']}")
        items += [items[i % len(items)] for i in range(len(raws) - len(items))]
        batch: dict[str, Any] = {name: [item[name] for item in items] for name in items[0]}
        batch = {k: torch.stack(v) if isinstance(v[0], Tensor) else v for k, v in batch.items()}
        for attribute in ("shape", "appearance"):
            batch[f"uses_{attribute}"] = torch.tensor([prompts.uses(p, attribute) for p in batch["prompt"]])
        batch[POSITION] = (epoch, b + 1)
        return batch

    def _item(self, raw: dict[str, Any], rng: np.random.Generator) -> dict[str, Any]:
        wanted = (*schema.IMAGES, schema.META, schema.MASK)
        sample = decode({k: v for k, v in raw.items() if k.startswith("__") or k in wanted})
        pixels = to_pixels(sample[schema.image_key(sample)], self.size)
        mask = sample.get(schema.MASK)
        known = None if mask is None else (to_pixels(mask.convert("RGB"), self.size)[:1] > 0).float()
        category = sample.get(schema.META, {}).get("category")
        mode = prompts.APPEARANCE_ONLY if rng.random() < self.appearance_only else prompts.BOTH
        return {
            "pixels": pixels, "mask": torch.ones_like(pixels[:1]) if known is None else known,
            "shape_ref": shape_view(pixels, rng), "appearance_ref": appearance_view(pixels, rng, known),
            "prompt": prompts.photo_prompt(category, mode, rng), "key": sample["__key__"],
        }  # fmt: skip


class PhotoDataModule(ResumableDataModule):
    """Photos of your own for training the encoder: a folder of webdataset shards with an index.

    A sample needs a picture; "category" in its json and a mask are used where they are there. Batches are as
    those of `EncoderDataModule` with "pixels" and without reference masks; references are destroyed views of
    the target. `place.sample` counts batches here.

    Raises:
        UserError: no index or shard, more ranks x workers than shards, or too many damaged pictures.
    """

    def __init__(
        self,
        shards: str | os.PathLike,
        batch_size: int = 32,  # per rank
        size: int = 512,  # pixels, centre square
        seed: int = 0,
        num_workers: int = 0,
        buffer: int = 500,  # undecoded samples mixed per worker
        appearance_only: float = 0.15,  # share of prompts that say the category, where it is known
        check_hashes: bool = False,  # read and check every shard before the start
    ) -> None:
        super().__init__()
        self.shards, self.batch_size, self.size, self.seed = expand(shards), batch_size, size, seed
        self.num_workers, self.buffer, self.appearance_only = num_workers, buffer, appearance_only
        self.check_hashes = check_hashes

    def identity(self) -> dict[str, Any]:
        return {
            "data": Index.load(self.shards).fingerprint(), "seed": self.seed, "batch_size": self.batch_size,
            "workers": self.num_workers, "buffer": self.buffer, "world": self.ranks()[1],
        }  # fmt: skip

    def setup(self, stage: str | None = None) -> None:
        Index.load(self.shards).check(self.shards, hashes=self.check_hashes)
        self.stream()

    def stream(self) -> PhotoStream:
        index = Index.load(self.shards)
        rank, world = self.ranks()
        streams = max(self.num_workers, 1)
        return PhotoStream(self.shards, index, self.batch_size, self.size, self.seed, rank, world, streams,
                           self.buffer, self.appearance_only)  # fmt: skip

    def steps_per_epoch(self) -> int:
        return self.stream().steps

    def train_dataloader(self) -> DataLoader:
        stream = self.stream()
        place = {"module": self, "cursor": stream, "steps": stream.steps}
        # Workers start afresh each epoch, since they learn the start only then.
        return ResumableLoader(stream, batch_size=None, num_workers=self.num_workers, **place)


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


def _swap_out(held: list, rng: np.random.Generator):
    """Take a random item out in constant time."""
    i = int(rng.integers(len(held)))
    held[i], held[-1] = held[-1], held[i]
    return held.pop()
