"""`latents`: VAE moments beside the shards, so that training encodes nothing.

One file per shard under `latents/KEY`; the key holds a hash of the VAE's weights, their dtype and the picture size, so
values of another one are never taken for these.
"""

import functools
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import typer
from diffusers import AutoencoderKL

from data_prep.dataset import Job, Run, clear_killed, dataset_jobs, map_jobs
from data_prep.models import device_here
from escdiff.backbone import DTYPES
from escdiff.backbone.vae import load_vae_encoder, moments_of
from escdiff.data import latent_cache as cached
from escdiff.data.index import Index, sha256
from escdiff.data.pictures import expand
from escdiff.data.pretrained import one_thread
from escdiff.mini.data.arrays import array_pictures
from escdiff.mini.data.still_life import NAME as STILL_LIFE
from escdiff.support.errors import UserError


@dataclass(frozen=True)
class Latents:
    """Options of the encoding."""

    backbone: str = "mini"
    size: int = 512  # pixels, centre square
    dtype: str = "float32"
    batch: int = 0  # pictures at once; 0: 16 on a GPU, 1 on the CPU, where more take memory and no less time
    device: str = "auto"

    def validate(self) -> None:
        """Raise `UserError` for values out of range."""
        if self.batch < 0:
            raise UserError(f"--batch is {self.batch}; give a number from 0 up")
        if self.size < 16 or self.size % 8:
            raise UserError(f"--size is {self.size}; give a multiple of 8 from 16 up")
        if self.dtype not in DTYPES:
            raise UserError(f"--dtype is {self.dtype!r}; give one of {', '.join(DTYPES)}")


def latents(folder: Path, options: Latents, run: Run) -> str:
    """Encode every picture of a dataset that is not encoded yet; returns the cache's key.

    Raises:
        UserError: no such dataset or model, or a shard is damaged.
    """
    options.validate()
    folder = expand(folder)
    index, jobs = dataset_jobs(folder)
    device_here(options.device)
    key = cached.vae_key(vae_of(options.backbone, options.dtype), options.size)
    cache = folder / cached.FOLDER / key
    if not run.dry:
        cache.mkdir(parents=True, exist_ok=True)
        clear_killed(cache)
    by_name = {Path(shard.name).stem: shard for shard in index.shards}
    work = partial(encode, folder, index, cache, options)
    map_jobs("latents", work, jobs, lambda job: cached.stands(cache, by_name[job.name]), run)
    typer.echo(f"latents: {key}: {cache}")
    return key


def encode(folder: Path, index: Index, cache: Path, options: Latents, job: Job) -> None:
    """Encode one shard; runs in a worker."""
    shard = next(shard for shard in index.shards if Path(shard.name).stem == job.name)
    if sha256(folder / shard.name) != shard.sha256:
        raise UserError(f"shard {folder / shard.name} is damaged: its SHA-256 differs from the index; make it again")
    device = device_here(options.device)
    encode_fn = partial(moments_of, vae_of(options.backbone, options.dtype).to(device))
    batch = options.batch or (1 if device == "cpu" else 16)
    if index.name == STILL_LIFE and index.options["size"] == options.size:
        pictures = array_pictures(folder, shard, batch)
    else:
        pictures = cached.pictures_of(folder, shard, batch, options.size)
    with one_thread():
        cached.encode_shard(folder, shard, pictures, encode_fn, cache, device)


@functools.lru_cache(1)
def vae_of(backbone: str, dtype: str) -> AutoencoderKL:
    """The frozen VAE, its encoder's half, in the type that latents are encoded in."""
    return load_vae_encoder(backbone, DTYPES[dtype])
