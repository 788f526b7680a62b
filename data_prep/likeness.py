"""Likeness of two pictures in outline and in colour.

Pixels are (3, H, W) in [-1, 1], masks (1, H, W) with 1 on the object; everything is measured at 64 pixels.
"""

import numpy as np
import torch
import torch.nn.functional as F
from skimage.color import deltaE_ciede2000, rgb2lab
from torch import Tensor

from escdiff.data.views import box

SIDE = 64


def outline_overlap(first: Tensor, second: Tensor) -> float:
    """Intersection over union of two masks, each cut to its box and scaled; mirrored where that fits better."""
    if not (first > 0.5).any() or not (second > 0.5).any():
        return 0.0
    a, b = _boxed(first), _boxed(second)
    return max(_iou(a, b), _iou(a, b.flip(-1)))


def colour_change(before: Tensor, after: Tensor, mask: Tensor | None = None) -> float:
    """Mean CIEDE2000 distance, pixel by pixel, of two pictures in the same frame."""
    distance = deltaE_ciede2000(_lab(before), _lab(after))
    return float(distance[_inside(mask)].mean())


def colour_distance(first: Tensor, second: Tensor, mask: Tensor | None = None, other: Tensor | None = None) -> float:
    """CIEDE2000 distance of the mean colours of two pictures, each within its mask."""
    means = [_lab(x)[_inside(m)].mean(0, keepdims=True) for x, m in ((first, mask), (second, other))]
    return float(deltaE_ciede2000(*means)[0])


def same_arrangement(first: Tensor, second: Tensor) -> float:
    """Correlation of brightness, place by place: 1 for the same picture, 0 for unrelated or flat ones."""
    a, b = (_lab(x)[..., 0].ravel() for x in (first, second))
    a, b = a - a.mean(), b - b.mean()
    size = float(np.linalg.norm(a) * np.linalg.norm(b))
    return float(a @ b) / size if size > 1e-3 else 0.0


def _boxed(mask: Tensor) -> Tensor:
    top, bottom, left, right = box(mask, *mask.shape[1:])
    return F.interpolate(mask[None, :, top:bottom, left:right].float(), (SIDE, SIDE), mode="area")[0] > 0.5


def _iou(a: Tensor, b: Tensor) -> float:
    return float((a & b).sum() / (a | b).sum().clamp(min=1))


def _lab(pixels: Tensor) -> np.ndarray:
    small = F.interpolate(pixels[None], (SIDE, SIDE), mode="area")[0]
    return rgb2lab(small.add(1).div(2).clamp(0, 1).permute(1, 2, 0).numpy())


def _inside(mask: Tensor | None) -> np.ndarray:
    """bool (64, 64); everywhere without a mask, or where it is too small to be seen."""
    if mask is not None:
        small = F.interpolate(mask[None].to(torch.float32), (SIDE, SIDE), mode="area")[0, 0].numpy() > 0.5
        if small.any():
            return small
    return np.ones((SIDE, SIDE), bool)
