"""Photographs as training data of the encoder: what a trainer asks for."""

import logging
import os
from dataclasses import asdict
from functools import cached_property
from typing import Any

from torch.utils.data import DataLoader

from escdiff.data.index import Index
from escdiff.data.photos.held_out import HeldOutPhotos
from escdiff.data.photos.samples import PhotoSamples, Shares
from escdiff.data.photos.stream import Layout, PhotoStream
from escdiff.data.resumable import ResumableDataModule, ResumableLoader
from escdiff.data.shard_store import CACHE, ShardStore
from escdiff.support.config.data import DataConfig
from escdiff.support.errors import UserError

log = logging.getLogger(__name__)


class PhotoDataModule(ResumableDataModule):
    """Photos of your own for training the encoder: webdataset shards with an index, in a folder or at any
    address that fsspec knows ("s3://..."; fetched once into a cache and compared with the index).

    A sample needs a picture; what its json says, a mask, references of its own and other photographs of the same object
    are used where they are there, see docs/training.md. Batches are those of `EncoderDataModule`: "pixels" (B, 3, H, W)
    and "mask" (B, 1, H, W) at `size`, or at `reference_size` with "latent" (B, 2C, h, w) where `latents` names a cache;
    "shape_ref", "appearance_ref", "shape_mask" and "appearance_mask" at `reference_size`. Masks are 1 where none is
    known. `place.sample` counts batches here.

    Raises:
        UserError: no index or shard, shares that do not add up, or too many damaged pictures.
    """

    def __init__(
        self,
        shards: str | os.PathLike,
        batch_size: int = DataConfig.batch_size,  # per rank
        size: int = 512,  # pixels, centre square
        reference_size: int | None = None,  # pixels, as the vision tower reads them; None: 224, or `size` if less
        seed: int = 0,
        num_workers: int | str = 0,  # "auto": as many as the cores feed, see escdiff.data.workers
        buffer: int = DataConfig.buffer,  # undecoded samples mixed per stream: per worker of a new run
        one_reference: float = DataConfig.one_reference,  # shares of samples; see `Shares`
        shape_only: float = DataConfig.shape_only,
        appearance_only: float = DataConfig.appearance_only,
        drop_caption: float = DataConfig.drop_caption,
        val_fraction: float = DataConfig.val_fraction,  # of the objects, or of the pictures where the json names none
        buckets: bool = DataConfig.buckets,  # batches of one shape each instead of centre squares; without `latents`
        check_hashes: bool = DataConfig.check_hashes,  # read and check every shard before the start
        latents: str | None = None,  # key of the cache, see escdiff.data.latent_cache.vae_key
        cache: str | os.PathLike = CACHE,  # folder for what is fetched from an address
        cache_gb: float = DataConfig.cache_gb,  # its size, above which the shards used least recently go; 0: no limit
    ) -> None:
        super().__init__()
        if buckets and latents:
            problem = "data.buckets=true given with cached latents, which are of centre squares"
            raise UserError(f"{problem}; set data.latents=null")
        self.store, self.batch_size, self.seed = ShardStore(shards, cache, cache_gb), batch_size, seed
        shares = Shares(one_reference, shape_only, appearance_only, drop_caption)
        self.samples = PhotoSamples(self.store, size, reference_size or min(size, 224), seed, shares, latents,
                                    val_fraction)  # fmt: skip
        self.num_workers, self.buffer, self.val_fraction, self.buckets = num_workers, buffer, val_fraction, buckets
        self.check_hashes = check_hashes
        self._layout: Layout | None = None  # of the checkpoint
        self._held_out: HeldOutPhotos | None = None

    @property
    def latents(self) -> str | None:
        """Key of the cache that targets come from; None where they are encoded live."""
        return self.samples.latents

    @property
    def layout(self) -> Layout:
        return self._layout or Layout(self.ranks()[1], max(self.workers, 1))

    @cached_property
    def index(self) -> Index:
        """That of the data as they were when they were first asked for, which a whole run reads."""
        return self.store.index()

    def identity(self) -> dict[str, Any]:
        return {
            "data": self.index.fingerprint(), "seed": self.seed, "buffer": self.buffer,
            "global_batch": self.batch_size * self.ranks()[1], "val_fraction": self.val_fraction,
            "buckets": self.buckets and self.samples.size, **asdict(self.samples.shares),
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
        self.store.check(self.index, self.check_hashes)
        self.stream()

    def stream(self) -> PhotoStream:
        return PhotoStream(self.samples, self.index, self.batch_size, *self.ranks(), self.layout,
                           self.buffer, self.val_fraction, self.buckets)  # fmt: skip

    @property
    def held(self) -> HeldOutPhotos:
        """The held-out photographs: to find them, 50 times as many are read where 2 % are held out."""
        if self._held_out is None:
            raws = self.stream().held_out() if self.val_fraction else ()
            self._held_out = HeldOutPhotos(self.samples, raws)
        return self._held_out

    def val_dataloader(self) -> DataLoader | list:
        """Batches of the first 256 held-out photographs, always equal; none where they are fewer than the ranks."""
        batches = self.held.batches(self.batch_size, *self.ranks())
        return DataLoader(batches, batch_size=None, num_workers=self.workers) if len(batches) else []

    def swaps(self, count: int) -> dict[str, Any] | None:
        """Up to `count` true swaps of held-out photographs, see `HeldOutPhotos.swaps`."""
        return self.held.swaps(count)

    def steps_per_epoch(self) -> int:
        return self.stream().steps

    def train_dataloader(self) -> DataLoader:
        stream = self.stream()
        if stream.rank == 0:
            self._warn(stream)
        place = {"module": self, "cursor": stream, "steps": stream.steps}
        # Workers start afresh each epoch, since they learn the start only then.
        return ResumableLoader(stream, batch_size=None, num_workers=self.workers, **place)

    def _warn(self, stream: PhotoStream) -> None:
        (lanes, turns), world, workers = self.layout, stream.world, max(self.workers, 1)
        if world > lanes or workers > turns:
            problem = f"the run began with {lanes} ranks x {turns} workers and goes on with {world} x {workers}"
            log.warning("%s: to keep the order, they read what others take, too; a new run reads faster", problem)
        elif lanes * turns > 2 * world * workers:
            count = -(-lanes // world) * -(-turns // workers)
            log.warning("every worker reads %d streams, as many as the run began with, each with its buffer", count)
        if lanes * turns > len(stream.shards):
            problem = f"{len(stream.shards)} shards for {lanes * turns} streams (ranks x workers)"
            log.warning(
                "%s: several read the same; smaller ones (`data_prep ingest --shard-size`) are read once", problem
            )
