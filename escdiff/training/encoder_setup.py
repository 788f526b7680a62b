"""What the encoder's training is made of, from a configuration."""

from copy import copy
from dataclasses import fields
from pathlib import Path
from typing import Any

import torch

from escdiff.backbone import Backbone, load_backbone, loading_options, pick_dtype
from escdiff.conditioning import ConditioningSpace
from escdiff.data.datamodule import EncoderDataModule
from escdiff.data.images import expand
from escdiff.data.index import Index
from escdiff.data.latents import FOLDER, missing, model_key, shard_file, vae_key
from escdiff.data.resumable import Place, Request
from escdiff.data.store import ShardStore, is_address
from escdiff.data.streaming import PhotoDataModule
from escdiff.encoder.encoder import ConceptEncoder, EncoderConfig
from escdiff.encoder.packing import Packing
from escdiff.encoder.vision import load_vision
from escdiff.errors import UserError
from escdiff.training.encoder_module import Objective
from escdiff.training.feeding import ensure_latents, ensure_tokens
from escdiff.training.options import option, own_device, to_plain
from escdiff.training.regions import compile_regions

PREVIEWS = 6


def make_backbone(config: Any) -> Backbone:
    """Load `backbone.name`, in float32 first: the cache of latents is named after the weights as they are."""
    settings = to_plain(option(config, "backbone", {}))
    backbone = load_backbone(settings.get("name", "mini"), **loading_options(settings))
    if option(config, "backbone.gradient_checkpointing", False):
        backbone.unet.enable_gradient_checkpointing()
    if option(config, "backbone.channels_last", False):
        backbone.unet.to(memory_format=torch.channels_last)
    if option(config, "backbone.compile", False):
        compile_regions(backbone.unet)
    return backbone


def make_encoder(config: Any, backbone: Backbone) -> ConceptEncoder:
    """A new encoder of `encoder` and `space`, with the weights of `init` where it is given."""
    space = ConditioningSpace.build(
        backbone.unet,
        layers=option(config, "space.layers", "each"),
        stages=_stages(option(config, "space.stages", 1)),
    )
    settings = EncoderConfig(**_known(EncoderConfig, option(config, "encoder")))
    encoder = ConceptEncoder.for_backbone(settings, load_vision(settings.vision), backbone, space)
    if init := option(config, "init"):
        encoder.load_state_dict(ConceptEncoder.from_pretrained(init, backbone).state_dict())
    return encoder


def make_objective(config: Any) -> Objective:
    """The weights of `loss`."""
    return Objective(**_known(Objective, option(config, "loss")))


class SwapData(EncoderDataModule):
    """Still Life triples with the target's pixels beside its latents, for the losses on features."""

    def on_before_batch_transfer(self, batch: Any, dataloader_idx: int) -> Any:
        if "target_tokens" not in batch:
            self.add_pixels(batch, self.train_set)
        return super().on_before_batch_transfer(batch, dataloader_idx)

    @staticmethod
    def add_pixels(batch: Any, dataset: Any) -> Any:
        if "pixels" not in batch:
            batch["pixels"] = dataset.arrays.pixels([int(key) for key in batch["key"]])
        return batch

    def preview(self) -> dict[str, Any]:
        """A few held-out triples, or training ones where none are held out, with all their pictures."""
        self.setup()
        dataset = copy(self.val_set or self.train_set)
        dataset.tokens = None
        return self.add_pixels(dataset[Request(0, 0, min(PREVIEWS, len(dataset)), Place(0, 0))], dataset)


class PhotoData(PhotoDataModule):
    """Photos; targets come with their pixels already."""

    def preview(self) -> dict[str, Any]:
        return _first(next(iter(self.stream())), PREVIEWS)


def make_data(config: Any, backbone: Backbone, tokens: str | None = None):
    """Still Life with cached latents, and tokens if a key is given; or photos; by what `data.root` holds."""
    root, batch_size = config.data.root, config.data.batch_size
    common = {
        "batch_size": batch_size,
        "seed": config.seed,
        "num_workers": option(config, "data.num_workers", 0),
    }
    index = ShardStore(root).index()
    if index.name != "still_life":
        size = option(config, "data.size", backbone.unet.config.sample_size * 8)
        more = _given(config, "appearance_only", "buffer", "check_hashes", "cache", "cache_gb")
        key = _cached(root, index, backbone, size) if _wants_cache(config) else None
        cast(config, backbone)
        return PhotoData(root, size=size, latents=key, **common, **more)
    root = expand(root)
    key = None
    if _wants_cache(config):
        key = vae_key(backbone.vae, index.options["size"])
        ensure_latents(root, backbone.vae, backbone.moments, key, own_device(config))
    cast(config, backbone)
    shares = _given(config, "one_reference", "shape_only", "appearance_only", "reframed", "val_fraction")
    return SwapData(root, latents=key, tokens=tokens, **common, **shares)


def store_tokens(config: Any, encoder: ConceptEncoder) -> str | None:
    """The key of a cache of what the encoder reads of its tower, made where it is missing; None without `data.tokens`.

    Raises:
        UserError: photos, whose references are not known beforehand; see also `escdiff.data.tokens.encode_tokens`.
    """
    if option(config, "data.tokens") != "auto":
        return None
    root = config.data.root
    index = ShardStore(root).index()
    if index.name != "still_life":
        what = f"data.tokens=auto given with photos ({root}), whose references are drawn anew at every visit"
        raise UserError(f"{what}; set data.tokens=null")
    packing = Packing.of(encoder)
    vision = encoder.vision
    key = f"{model_key(vision, index.options['size'])}-{vision.fingerprint()}-{packing.name}"
    encode = lambda pixels: packing.pack(encoder.tokens(pixels))  # noqa: E731
    ensure_tokens(root, vision, encode, key, packing.values, own_device(config))
    return key


def cast(config: Any, backbone: Backbone) -> None:
    """The frozen weights to `backbone.dtype`; last: the cache of latents is named after them as they were read."""
    dtype = pick_dtype(option(config, "backbone.dtype", "float32"))
    if backbone.dtype != dtype:
        backbone.to(dtype=dtype)


def _cached(root: Any, index: Index, backbone: Backbone, size: int) -> str | None:
    """The key of the photos' latents if `python -m data_prep latents` made all of them."""
    key = vae_key(backbone.vae, size)
    if is_address(root):  # the stream looks into each file when it fetches it
        there = ShardStore(root).names(f"{FOLDER}/{key}")
        named = [Path(shard_file(key, shard)).name for shard in index.filled]
        return key if there.issuperset(named) else None
    return None if missing(expand(root), index, key) else key


def _wants_cache(config: Any) -> bool:
    return getattr(config.data, "latents", "auto") == "auto"  # null means without one


def _given(config: Any, *names: str) -> dict[str, Any]:
    values = {name: option(config, f"data.{name}") for name in names}
    return {name: value for name, value in values.items() if value is not None}


def _known(kind: type, part: Any) -> dict[str, Any]:
    """The fields of a dataclass that a part of the configuration has, with tuples for lists."""
    found = {f.name: option(part, f.name) for f in fields(kind)} if part is not None else {}
    return {name: _plain(value) for name, value in found.items() if value is not None}


def _plain(value: Any) -> Any:
    if isinstance(value, str | int | float | Path):
        return value
    return dict(value) if hasattr(value, "items") else tuple(value)


def _stages(value: Any) -> Any:
    return value if isinstance(value, int) else [int(bound) for bound in value]


def _first(batch: dict[str, Any], count: int) -> dict[str, Any]:
    return {name: value if name == "position" else value[:count] for name, value in batch.items()}
