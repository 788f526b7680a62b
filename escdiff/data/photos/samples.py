"""One training sample out of a photograph: the target, references drawn anew at every visit, and a prompt.

References have the vision tower's size, and the views are drawn at it: from the target, or from another photograph of
the same object where the data have one.
"""

from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor
from torchvision.transforms import InterpolationMode
from torchvision.transforms.v2 import functional as transforms

from escdiff.concept import ATTRIBUTES
from escdiff.data import prompts, schema
from escdiff.data.index import Shard
from escdiff.data.latent_cache import shard_file
from escdiff.data.photos.objects import GROUP, OBJECT, Objects, number_of
from escdiff.data.photos.prompts import photo_prompt
from escdiff.data.pictures import fit
from escdiff.data.shard_store import ShardStore
from escdiff.data.shards import decode
from escdiff.data.views import appearance_view, reframe_both, shape_view
from escdiff.support.config.data import DataConfig
from escdiff.support.errors import UserError

AGREE = {"shape": "same_shape", "appearance": "same_appearance"}  # json entries: keys of photographs that agree in it
STORED = {"shape": schema.SHAPE_VIEW, "appearance": schema.APPEARANCE_VIEW}  # references that the data bring
Picture = tuple[Tensor, Tensor | None]  # (3, H, W) and its mask (1, H, W), uint8; None where no mask is known
ENTRIES = (*schema.IMAGES, schema.META, schema.MASK, *STORED.values())


@dataclass(frozen=True)
class Shares:
    """Shares of the samples with each kind of reference and prompt."""

    one_reference: float = (
        DataConfig.one_reference
    )  # samples whose only reference is a photograph as it is, framed anew
    shape_only: float = DataConfig.shape_only  # prompts that say the appearance in words, where the caption does
    appearance_only: float = DataConfig.appearance_only  # prompts that say the noun, where it is known
    drop_caption: float = DataConfig.drop_caption  # prompts without the caption's scene

    def __post_init__(self) -> None:
        kinds = self.one_reference, self.shape_only, self.appearance_only
        if min(*kinds, self.drop_caption) < 0 or sum(kinds) > 1 or self.drop_caption > 1:
            raise UserError(f"the {self} must be at least 0 and sum to at most 1; change them")

    def draw(self, rng: np.random.Generator) -> tuple[bool, str]:
        """Whether a sample has one reference only, and its prompt's mode."""
        modes = (prompts.BOTH, self.one_reference), (prompts.SHAPE_ONLY, self.shape_only)
        left = rng.random()
        for mode, share in (*modes, (prompts.APPEARANCE_ONLY, self.appearance_only)):
            if left < share:
                return mode == prompts.BOTH, mode
            left -= share
        return False, prompts.BOTH


class PhotoSamples:
    """Makes samples of undecoded ones, which know their shard and row as "__shard__" and "__row__".

    Args:
        size: pixels; targets are centre squares of this size, or of the shape that is asked for.
        reference_size: pixels; side of references, and of targets of which `latents` holds the moments.
        latents: key of the cache, see `escdiff.data.latent_cache.vae_key`.
        val_fraction: of the objects, which are held out: no references of others.
    """

    def __init__(
        self, store: ShardStore, size: int, reference_size: int, seed: int, shares: Shares, latents: str | None = None,
        val_fraction: float = 0.0,
    ) -> None:  # fmt: skip
        self.store, self.size, self.reference_size, self.seed = store, size, reference_size, seed
        self.shares, self.latents, self.objects = shares, latents, Objects(store, val_fraction)
        self._last: tuple[tuple[str, str] | None, Picture | None] = None, None  # the other photograph read last

    @property
    def side(self) -> int:
        """Pixels of the targets."""
        return self.reference_size if self.latents else self.size

    def __call__(self, raw: dict[str, Any], epoch: int, shape: tuple[int, int] | None = None) -> dict[str, Any]:
        """A sample, of which `collate` makes a batch.

        What is drawn depends on seed, epoch and key.

        Args:
            shape: (height, width) of the target, a square without.

        Raises:
            UserError: an entry is damaged, or its latents are missing.
        """
        rng = np.random.default_rng([self.seed, epoch, number_of(raw["__key__"])])
        sample, target = self.read(raw, *(shape or (self.side, self.side)))
        single, mode = self.shares.draw(rng)
        if single:
            source = self.other(sample, OBJECT, rng) or self.squared(target)
            references = dict.fromkeys(ATTRIBUTES, reframe_both(*floats(source), rng))
        else:
            references = {a: self.reference(a, sample, target, rng) for a in ATTRIBUTES}
        item = {"target": target, "references": references, "key": sample["__key__"]}
        item["prompt"] = photo_prompt(sample[schema.META], mode, rng, self.shares.drop_caption)
        if self.latents:
            item["latent"] = self.moments(sample["__shard__"], sample["__row__"])
        return item

    def read(self, raw: dict[str, Any], height: int, width: int) -> tuple[dict[str, Any], Picture]:
        """The decoded sample, and its picture cut to the shape."""
        entries = {k: v for k, v in raw.items() if k.startswith("__") or k in ENTRIES}
        sample = decode(entries, max(height, width))
        if not isinstance(sample.get(schema.META), dict):
            sample[schema.META] = {}
        pixels = fit(sample[schema.image_key(sample)], height, width)
        mask = sample.get(schema.MASK)
        return sample, (pixels, None if mask is None else fit(mask.convert("L"), height, width))

    def whole(self, raw: dict[str, Any]) -> tuple[Tensor, Tensor]:
        """A photograph as it is and its mask, at the references' size: (3, R, R) in [-1, 1] and (1, R, R)."""
        return floats(self.read(raw, self.reference_size, self.reference_size)[1])

    def reference(
        self, attribute: str, sample: dict[str, Any], target: Picture, rng: np.random.Generator
    ) -> tuple[Tensor, Tensor]:
        """A reference and the object's mask in it.

        The same shape in other colours; or a view, in which the other attribute is destroyed, of another photograph of
        the object; or what the data bring; or such a view of the target.
        """
        if attribute == "shape" and (recoloured := self.other(sample, GROUP, rng)):
            return reframe_both(*floats(recoloured), rng)
        source = self.other(sample, OBJECT, rng, sample[schema.META].get(AGREE[attribute]))
        if source is None and STORED[attribute] in sample:
            stored = fit(sample[STORED[attribute]], self.reference_size, self.reference_size)
            return reframe_both(*floats((stored, None)), rng)
        source = source or self.squared(target)
        pixels, mask = floats(source)
        if attribute == "shape":
            return shape_view(pixels, mask, rng)
        return appearance_view(pixels, rng, None if source[1] is None else mask), torch.ones_like(mask)

    def other(
        self, sample: dict[str, Any], kind: tuple[str, ...], rng: np.random.Generator, among: Any = None
    ) -> Picture | None:
        """Another photograph of the object or group, see `Objects.other`."""
        raw = self.objects.other(sample["__shard__"], sample["__key__"], sample[schema.META], kind, rng, among)
        if raw is None:
            return None
        name = raw["__url__"], raw["__key__"]
        if self._last[0] != name:  # both references may be of the same one
            self._last = name, self.read(raw, self.reference_size, self.reference_size)[1]
        return self._last[1]

    def squared(self, target: Picture) -> Picture:
        """The middle of the target at the references' size."""
        side, size = min(target[0].shape[1:]), [self.reference_size] * 2
        pixels, mask = (None if t is None else transforms.center_crop(t, [side, side]) for t in target)
        if side == size[0]:
            return pixels, mask
        resize = partial(transforms.resize, size=size, interpolation=InterpolationMode.BILINEAR, antialias=True)
        return resize(pixels), None if mask is None else resize(mask)

    def moments(self, shard: Shard, row: int) -> Tensor:
        """(2C, h, w) float32 of one sample, read from its shard's file alone.

        Raises:
            UserError: the file is missing or was made from another shard.
        """
        name = shard_file(self.latents, shard)
        path = self.store.file(name)
        moments = _moments(path, shard, row)
        if moments is None and self.store.address is not None:
            moments = _moments(self.store.file(name, afresh=True), shard, row)  # the data may have been made anew
        if moments is None:
            problem = f"the latents {path} are missing or were made from another shard"
            raise UserError(f"{problem}; make them with `python -m data_prep latents {self.store}`")
        return moments


def _moments(path: Path, shard: Shard, row: int) -> Tensor | None:
    try:
        with safe_open(path, "pt") as file:
            if (file.metadata() or {}).get("shard") == shard.sha256:
                return file.get_slice("moments")[row].float()
    except (OSError, SafetensorError):
        pass
    return None


def floats(picture: Picture) -> tuple[Tensor, Tensor]:
    """Pixels in [-1, 1], and a mask of 0 and 1, which is 1 where none is known."""
    return to_floats(picture[0]), known(picture)


def to_floats(levels: Tensor) -> Tensor:
    """Levels 0..255 to pixels in [-1, 1]."""
    return levels.float().div_(127.5).sub_(1)


def known(picture: Picture) -> Tensor:
    """The mask (1, H, W) of a picture, 1 everywhere where none is known."""
    pixels, mask = picture
    return torch.ones(1, *pixels.shape[1:]) if mask is None else (mask > 127).float()


def collate(items: list[dict[str, Any]]) -> dict[str, Any]:
    """A batch, as `PhotoDataModule` describes it, of what `PhotoSamples` gives."""
    batch: dict[str, Any] = {
        "pixels": to_floats(torch.stack([item["target"][0] for item in items])),  # copied as bytes
        "mask": torch.stack([known(item["target"]) for item in items]),
        "prompt": [item["prompt"] for item in items],
        "key": [item["key"] for item in items],
    }
    for a in ATTRIBUTES:
        batch[f"{a}_ref"], batch[f"{a}_mask"] = (
            torch.stack(tensors) for tensors in zip(*(item["references"][a] for item in items), strict=True)
        )
        batch[f"uses_{a}"] = torch.tensor([prompts.uses(prompt, a) for prompt in batch["prompt"]])
    if "latent" in items[0]:
        batch["latent"] = torch.stack([item["latent"] for item in items])
    return batch
