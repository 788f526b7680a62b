"""The sample grid of an encoder training: references, and what encoder and frozen U-Net make of them."""

from collections.abc import Sequence

from PIL import Image
from torch import Tensor

from escdiff.data.pictures import to_pil
from escdiff.support.picture_grid import picture_grid

STEPS = 15
CELL = 160  # pixels


def sheet(rows: Sequence[tuple[str, Sequence[Image.Image] | Tensor]], prompts: Sequence[str]) -> Image.Image:
    """Rows of a label and pictures, PIL or pixels (B, 3, H, W) in [-1, 1], below the prompts of their columns."""
    pictures = [[to_pil(p) if isinstance(p, Tensor) else p for p in row] for _, row in rows]
    return picture_grid(pictures, [label for label, _ in rows], prompts, cell=CELL)
