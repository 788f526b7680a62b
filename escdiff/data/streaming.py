"""Encoder training data from shards of photos: one picture per sample, references made as destroyed views.

Read as a stream through webdataset, in a fixed order: the shards of an epoch are dealt to ranks x workers
streams, each mixes its samples in a buffer, and batch b of a rank comes from its stream b modulo workers. A
resumed run reads up to its place without decoding. Shards may lie in a folder or behind any address of fsspec.
"""

import logging
import os
from collections.abc import Iterator
from itertools import islice
from typing import Any

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
from escdiff.data.shards import decode, read_raw
from escdiff.data.store import CACHE, ShardStore
from escdiff.data.views import appearance_view, shape_view
from escdiff.errors import UserError

REFERENCES = {"shape_ref": schema.SHAPE_VIEW, "appearance_ref": schema.APPEARANCE_VIEW}
LOSS_LIMIT = 0.001  # share of damaged pictures that a run tolerates
log = logging.getLogger(__name__)


class PhotoStream(IterableDataset):
    """Batches of one rank. `start` is read when an iteration begins."""

    def __init__(self, store: ShardStore, index: Index, batch_size: int, size: int, seed: int, rank: int, world: int,
                 streams: int, buffer: int, appearance_only: float, latents: str | None = None) -> None:  # fmt: skip
        self.store, self.index, self.batch_size, self.size, self.seed = store, index, batch_size, size, seed
        self.rank, self.world, self.streams, self.buffer = rank, world, streams, buffer
        self.appearance_only, self.latents = appearance_only, latents
        self.shards = [shard for shard in index.shards if shard.samples]
        self.start = Place(0, 0)
        self.steps = index.samples // (batch_size * world)
        if world * streams > len(self.shards):
            what = f"{world} ranks x {streams} workers need as many shards, {store} has {len(self.shards)}"
            raise UserError(f"{what}; use fewer workers or smaller shards")
        if not self.steps:
            what = f"{store} holds {index.samples} samples, fewer than {world} ranks x batches of {batch_size}"
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
        order = np.random.default_rng([self.seed, epoch]).permutation(len(self.shards))
        own = order[self.rank * self.streams + stream :: self.world * self.streams]
        rng = np.random.default_rng([self.seed, epoch, self.rank, stream])
        held: list[dict[str, Any]] = []
        while True:
            for number in own:
                shard = self.shards[number]
                for row, sample in enumerate(read_raw(self.store.shard(shard))):
                    held.append({**sample, "__shard__": number, "__row__": row})
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
        latents: str | None = None,  # key of the cache, see escdiff.data.latents.vae_key
        cache: str | os.PathLike = CACHE,  # folder for what is fetched from an address
        cache_gb: float = 0.0,  # its size, above which the shards used least recently go; 0: no limit
    ) -> None:
        super().__init__()
        self.store, self.batch_size, self.size, self.seed = ShardStore(shards, cache, cache_gb), batch_size, size, seed
        self.num_workers, self.buffer, self.appearance_only = num_workers, buffer, appearance_only
        self.check_hashes, self.latents = check_hashes, latents

    def identity(self) -> dict[str, Any]:
        return {
            "data": self.store.index().fingerprint(), "seed": self.seed, "batch_size": self.batch_size,
            "workers": self.num_workers, "buffer": self.buffer, "world": self.ranks()[1],
        }  # fmt: skip

    def setup(self, stage: str | None = None) -> None:
        self.store.check(self.store.index(), self.check_hashes)
        self.stream()

    def stream(self) -> PhotoStream:
        rank, world = self.ranks()
        streams = max(self.num_workers, 1)
        return PhotoStream(self.store, self.store.index(), self.batch_size, self.size, self.seed, rank, world, streams,
                           self.buffer, self.appearance_only, self.latents)  # fmt: skip

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
