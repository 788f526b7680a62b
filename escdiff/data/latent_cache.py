"""A cache of what a frozen model makes of pictures, beside the shards, so that a picture is encoded once.

Per shard one safetensors file under `latents/{key}/`, written at once, so a stopped run goes on where it was.
The key holds the VAE's hash, its dtype and the picture size: latents of another VAE are never taken for these.
Moments (mean | log-variance), not samples, are kept: drawing from them afresh costs nothing and regularises.
Tokens of a vision tower lie under `clip/{key}/` in the same way.
"""

import hashlib
import os
from collections.abc import Callable, Iterable, Iterator
from functools import partial
from pathlib import Path

import safetensors.torch
import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor, nn

from escdiff.data import schema
from escdiff.data.index import Index, Shard
from escdiff.data.pictures import expand, to_pixels
from escdiff.data.shards import read_shard
from escdiff.support.errors import UserError
from escdiff.support.files import save_tensors
from escdiff.support.progress import sample_progress

FOLDER = "latents"
FOLDERS = {"moments": FOLDER, "tokens": "clip"}  # what is kept -> its folder beside the shards
Pictures = Callable[[Shard], Iterator[Tensor]]


def vae_key(vae: nn.Module, size: int) -> str:
    """Name of a VAE's cache: a hash of its encoder's weights, their dtype, and the picture size in pixels."""
    return model_key(vae, size, but=("decoder", "post_quant_conv"))


def model_key(model: nn.Module, size: int, but: tuple[str, ...] = ()) -> str:
    """Hash of a model's weights (except those whose names start with `but`), dtype and picture size.

    It does not depend on the device.
    """
    digest = hashlib.sha256()
    for name, tensor in sorted(model.state_dict().items()):
        if not name.startswith(but or ("\0",)):
            digest.update(name.encode())
            digest.update(tensor.detach().float().cpu().contiguous().numpy().tobytes())
    dtype = str(next(model.parameters()).dtype).removeprefix("torch.")
    return f"{digest.hexdigest()[:16]}-{dtype}-{size}"


def encode_dataset(
    folder: str | os.PathLike,
    encode_fn: Callable[[Tensor], Tensor],
    key: str,
    batch_size: int = 64,
    size: int | None = None,
    device: str | torch.device = "cpu",
    name: str = "moments",
    pictures: Pictures | None = None,
) -> Path:
    """Encode every picture of a dataset that is not yet in its cache; returns the cache's folder.

    Args:
        encode_fn: pixels (B, 3, H, W) in [-1, 1] on `device` -> moments (B, 2C, h, w); `Backbone.moments`.
        key: of the VAE and size, see `vae_key`.
        size: pictures are cut to their centre square of this many pixels; None takes them as they are.
        name: of what is encoded, one of `FOLDERS`.
        pictures: what to encode instead of a shard's own pictures, in batches (B, 3, H, W) of as many in all.

    Raises:
        UserError: no finished dataset in `folder`, or a shard is damaged.
    """
    folder = expand(folder)
    index = Index.load(folder)
    index.check(folder)
    cache = folder / FOLDERS[name] / key
    cache.mkdir(parents=True, exist_ok=True)
    todo = [shard for shard in index.shards if not stands(cache, shard, name)]
    if not todo:
        return cache
    pictures = pictures or partial(pictures_of, folder, batch_size=batch_size, size=size)
    label, remaining = {"moments": "latents"}.get(name, name), sum(shard.samples for shard in todo)
    with sample_progress(f"encoding {label}", index.samples, index.samples - remaining) as advance:
        for shard in todo:
            encode_shard(folder, shard, pictures(shard), encode_fn, cache, device, advance, name)
    return cache


def encode_shard(
    folder: Path,
    shard: Shard,
    pictures: Iterable[Tensor],
    encode_fn: Callable[[Tensor], Tensor],
    cache: Path,
    device: str | torch.device = "cpu",
    advance: Callable[[int], None] = lambda samples: None,
    name: str = "moments",
) -> None:
    """Encode one shard's pictures, in batches, into its file of the cache; arguments as for `encode_dataset`.

    Raises:
        UserError: the shard is damaged, or the model gives values that are not finite.
    """
    parts = []
    for pixels in pictures:
        with torch.inference_mode():
            parts.append(encode_fn(pixels.to(device)).to("cpu", torch.float16))
        advance(len(pixels))
    encoded = torch.cat(parts) if parts else torch.zeros(0)
    if len(encoded) != shard.samples:
        problem = f"{len(encoded)} samples, the index says {shard.samples}"
        raise UserError(f"shard {folder / shard.name} holds {problem}; make or copy it again")
    if not torch.isfinite(encoded).all():
        problem = f"the model gave values for {shard.name} that are not finite, or too large for float16"
        raise UserError(f"{problem}; use float32 or bfloat16, or do without the cache")
    _save(cache, shard, encoded, name)


def load_latents(folder: str | os.PathLike, key: str) -> Tensor:
    """All moments of a dataset in sample order: (N, 2C, h, w) float16 in memory.

    Raises:
        UserError: the cache is missing or incomplete; says how to make it.
    """
    folder = expand(folder)
    index = Index.load(folder)
    if incomplete := missing(folder, index, key):
        problem = f"{len(incomplete)} of {len(index.shards)} shards of {folder} have no latents of key {key}"
        raise UserError(f"{problem}; make them with `python -m data_prep latents`")
    files = [folder / shard_file(key, shard) for shard in index.filled]
    return torch.cat([safetensors.torch.load_file(file)["moments"] for file in files])


def missing(folder: Path, index: Index, key: str, name: str = "moments") -> list[Shard]:
    """The shards that hold samples and are not encoded yet."""
    cache = folder / FOLDERS[name] / key
    return [shard for shard in index.filled if not stands(cache, shard, name)]


def without_latents(root: str | os.PathLike, key: str, caches: Iterable[str]) -> str:
    """Why a training encodes pictures live: the reason why none of the data's `caches` is that of `key`."""
    model, dtype, size = key.rsplit("-", 2)
    parsed = [name.rsplit("-", 2) for name in caches if name.count("-") >= 2]
    sizes = sorted({cache[2] for cache in parsed if cache[:2] == [model, dtype]} - {size}, key=int)
    if key in caches:
        reason = "they are unfinished, or of other shards"
    elif sizes:
        reason = f"they are of {', '.join(sizes)} pixels and data.size is {size}"
    else:
        reason = "they are of another VAE or dtype" if parsed else "there are none"
    command = f"`python -m data_prep latents {root} --size {size}`"
    return f"no latents fit {root}: {reason}; the VAE encodes every picture anew at every step, {command} saves that"


def pictures_of(folder: Path, shard: Shard, batch_size: int, size: int | None) -> Iterator[Tensor]:
    """The shard's pictures, (B, 3, H, W) in [-1, 1], cut to their centre square of `size` pixels; None: as they are."""
    pending: list[Tensor] = []
    for sample in read_shard(folder / shard.name, only=schema.IMAGES):
        pending.append(to_pixels(sample[schema.image_key(sample)], size))
        if len(pending) == batch_size:
            yield torch.stack(pending)
            pending = []
    if pending:
        yield torch.stack(pending)


def shard_file(key: str, shard: Shard, name: str = "moments") -> str:
    """Path of a shard's part of a cache, from the dataset's folder on; `name` is one of `FOLDERS`."""
    return f"{FOLDERS[name]}/{key}/{Path(shard.name).stem}.safetensors"


def _file(cache: Path, shard: Shard) -> Path:
    return cache / f"{Path(shard.name).stem}.safetensors"


def _save(cache: Path, shard: Shard, encoded: Tensor, name: str) -> None:
    save_tensors(_file(cache, shard), {name: encoded}, {"shard": shard.sha256})


def stands(cache: Path, shard: Shard, name: str = "moments") -> bool:
    """Whether the shard's latents are there and were made from this very shard."""
    try:
        with safe_open(_file(cache, shard), "pt") as file:
            same = (file.metadata() or {}).get("shard") == shard.sha256
            return same and file.get_slice(name).get_shape()[0] == shard.samples
    except (OSError, SafetensorError):
        return False
