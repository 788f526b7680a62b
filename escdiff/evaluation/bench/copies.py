"""Whether a picture repeats the pixels of its reference rather than its object."""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor

from escdiff.evaluation.bench.instances import in_new_scene, stream
from escdiff.evaluation.bench.pictures import SIZE, pixels_of
from escdiff.evaluation.bench.records import RESULT, Record
from escdiff.mini.world.rendering.render import render

SIDE = 32  # pixels, at which pictures are compared
QUANTILE = 0.05
STREAM = 20


def distance(pixels: Tensor, reference: Tensor, mask: Tensor) -> np.ndarray:
    """Mean squared error (B,) at 32 x 32 pixels, colours in 0..1, within the reference's object.

    Args:
        pixels, reference: (B, 3, H, W) in [-1, 1].
        mask: (B, H, W) bool, the object in the reference.
    """
    small, like = (F.interpolate(x, (SIDE, SIDE), mode="area") / 2 for x in (pixels, reference))
    inside = F.interpolate(mask[:, None].float(), (SIDE, SIDE), mode="area")
    error = ((small - like).square().mean(1, keepdim=True) * inside).sum((1, 2, 3))
    return (error / inside.sum((1, 2, 3)).clamp_min(1e-6)).numpy()


def copy(done: Mapping[str, Sequence[Record]], out: Path, seed: int) -> list[Record]:
    """`rate`: pictures of `both` nearer to their reference than the threshold; `rate_of_renders`: the same of renders.

    The threshold is the 5 % quantile of the distance between the reference and independent renders of its object in
    two other scenes; the renders that are counted show a third one.
    """
    records, rng = done["both"], stream(seed, STREAM)
    references = render([r.request.shape for r in records], SIZE)
    mask, like = torch.from_numpy(references.mask), _pixels(references.image)
    scenes = []
    for _ in range(3):
        factors = [in_new_scene(r.request.shape, rng) for r in records]
        scenes.append(distance(_pixels(render(factors, SIZE).image), like, mask))
    threshold = float(np.quantile(np.concatenate(scenes[:2]), QUANTILE))
    pictures = []
    for record in records:
        with Image.open(out / record.pictures[RESULT]) as picture:
            pictures.append(picture.convert("RGB"))
    near = distance(pixels_of(pictures), like, mask) < threshold
    return [
        replace(record, values={"rate": float(a), "rate_of_renders": float(b)})
        for record, a, b in zip(records, near, scenes[2] < threshold, strict=True)
    ]


def _pixels(images: np.ndarray) -> Tensor:
    """(B, H, W, 3) uint8 -> (B, 3, H, W) in [-1, 1]."""
    return torch.from_numpy(images).permute(0, 3, 1, 2).float() / 127.5 - 1
