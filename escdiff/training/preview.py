"""The sample grid of an encoder training: references, and what encoder and frozen U-Net make of them."""

from collections.abc import Sequence

import torch
from PIL import Image
from torch import Tensor

from escdiff.backbone import Backbone
from escdiff.conditioning import ConditioningSpace
from escdiff.data.images import to_pil, to_pixels
from escdiff.pipeline import generate


def paint(backbone: Backbone, space: ConditioningSpace, texts: Sequence[str], vectors: dict[str, Tensor]) -> Tensor:
    """Pixels (B, 3, H, W) in [-1, 1] for texts and vectors "<name>" -> (B, L, S, K, D), quickly."""
    pictures = generate(backbone, texts, vectors, space, steps=15, guidance=3.0)
    return torch.stack([to_pixels(picture) for picture in pictures])


def sheet(rows: Sequence[Tensor]) -> Image.Image:
    """Rows of pictures (B, 3, H, W) in [-1, 1], of one size, as one picture."""
    return to_pil(torch.cat([torch.cat(list(row.float().cpu()), 2) for row in rows], 1))
