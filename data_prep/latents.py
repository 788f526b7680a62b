"""`latents`: VAE moments (and, if asked for, CLIP tokens) beside the shards, so that training encodes nothing.

One file per shard under `latents/KEY` and `clip/KEY`; the key holds a hash of the model's weights, their dtype
and the picture size, so values of another model are never taken for these.
"""

import functools
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import torch
import typer
from torch import Tensor

from data_prep.dataset import Job, Run, dataset_jobs, map_jobs
from escdiff.backbone import DTYPES, Backbone, load_backbone
from escdiff.data import latents as cached
from escdiff.data.images import expand
from escdiff.data.index import Index, sha256
from escdiff.errors import UserError


@dataclass(frozen=True)
class Latents:
    """What to encode with."""

    backbone: str = "mini"
    size: int = 512  # pixels, centre square
    dtype: str = "float32"
    clip: str | None = None  # CLIP whose patch tokens are kept too
    batch: int = 16

    def validate(self) -> None:
        if self.size < 16 or self.size % 8:
            raise UserError(f"--size is {self.size}; give a multiple of 8 from 16 up")
        if self.dtype not in DTYPES:
            raise UserError(f"--dtype is {self.dtype!r}; give one of {', '.join(DTYPES)}")


def latents(folder: Path, options: Latents, run: Run) -> dict[str, str]:
    """Encode every picture of a dataset that is not encoded yet.

    Returns the cache's key per kind: "moments", and "tokens" with `options.clip`.

    Raises:
        UserError: no such dataset or model, or a shard is damaged.
    """
    options.validate()
    folder = expand(folder)
    index, jobs = dataset_jobs(folder)
    keys = {"moments": cached.vae_key(vae_of(options).vae, options.size)}
    if options.clip:
        keys["tokens"] = cached.model_key(clip_of(options.clip), options.size)
    for name, key in keys.items():
        cache = folder / cached.FOLDERS[name] / key
        if not run.dry:
            cache.mkdir(parents=True, exist_ok=True)
        by_name = {Path(shard.name).stem: shard for shard in index.shards}
        work = partial(encode, folder, index, cache, options, name)
        map_jobs(name, work, jobs, lambda job, c=cache, n=name, s=by_name: cached.stands(c, s[job.name], n), run)
        typer.echo(f"latents: {name} {key}: {cache}")
    return keys


def encode(folder: Path, index: Index, cache: Path, options: Latents, name: str, job: Job) -> None:
    """Encode one shard; runs in a worker."""
    shard = next(shard for shard in index.shards if Path(shard.name).stem == job.name)
    if sha256(folder / shard.name) != shard.sha256:
        raise UserError(f"shard {folder / shard.name} is damaged: its SHA-256 differs from the index; make it again")
    torch.set_num_threads(1)  # the processes fill the cores, and more threads may sum in another order
    same = index.name == "still_life" and index.options["size"] == options.size
    size = None if same else options.size
    device = "cuda" if torch.cuda.is_available() else "cpu"
    if name == "moments":
        backbone = vae_of(options)
        backbone.vae.to(device)
        encode_fn = backbone.moments
    else:
        encode_fn = partial(_tokens, clip_of(options.clip).to(device))
    pictures = cached.pictures_of(folder, index, shard, options.batch, size)
    cached.encode_shard(folder, shard, pictures, encode_fn, cache, device, name=name)


@functools.lru_cache(1)
def _backbone(name: str, dtype: str) -> Backbone:
    return load_backbone(name, dtype=DTYPES[dtype])


def vae_of(options: Latents) -> Backbone:
    return _backbone(options.backbone, options.dtype)


def clip_of(name: str):
    """The vision tower of a CLIP.

    Raises:
        UserError: no such model.
    """
    from data_prep.models import clip_name, load

    model, _ = load("AutoModel", clip_name(name), "AutoImageProcessor")
    if not hasattr(model, "vision_model"):
        raise UserError(f"the model {name} has no vision tower; give a CLIP")
    return model.vision_model


MEAN, STD = (0.48145466, 0.4578275, 0.40821073), (0.26862954, 0.26130258, 0.27577711)  # CLIP's own


def _tokens(vision, pixels: Tensor) -> Tensor:
    """Last hidden states (B, N, W) of the patches of pixels (B, 3, H, W) in [-1, 1], without the class token."""
    side = vision.config.image_size
    pixels = torch.nn.functional.interpolate(pixels, (side, side), mode="bicubic", antialias=True).clamp(-1, 1)
    mean, std = (pixels.new_tensor(v).view(3, 1, 1) for v in (MEAN, STD))
    return vision((pixels * 0.5 + 0.5 - mean) / std).last_hidden_state[:, 1:]
