"""Renders as pictures, and pictures as pixels."""

from collections.abc import Sequence

import torch
from PIL import Image
from torch import Tensor

from escdiff.data.pictures import to_pixels
from escdiff.mini.world.arrangement import Arrangement
from escdiff.mini.world.rendering.render import render
from escdiff.mini.world.world import Factors

SIZE = 128  # pixels, of the renders and of what the judges read


def draw(pictures: Sequence[Factors | Arrangement]) -> list[Image.Image]:
    """Render pictures, equal ones once."""
    unique = list(dict.fromkeys(pictures))
    rendered = dict(zip(unique, map(Image.fromarray, render(unique, SIZE).image), strict=True)) if unique else {}
    return [rendered[picture] for picture in pictures]


def pixels_of(pictures: Sequence[Image.Image], size: int = SIZE) -> Tensor:
    """Pictures of any size as (B, 3, size, size) in [-1, 1]."""
    return torch.stack([to_pixels(picture, size) for picture in pictures])
