"""The conditioning grid: hidden states of the text encoder for every cell of a space. Pure tensor functions.

Legend: B batch, L layer cell, S stage, T token position, D width of the text encoder, H rows of the header.
"""

import torch
from torch import Tensor

from escdiff.conditioning.header import Marks, write_header


def expand(grid_BLSTD: Tensor, num_layers: int, num_stages: int) -> Tensor:
    """Repeat the layer and stage axes of size 1 to the space's size, without copying.

    Raises:
        ValueError: an axis has neither size 1 nor the size asked for.
    """
    batch, layers, stages, tokens, width = grid_BLSTD.shape
    if layers not in (1, num_layers) or stages not in (1, num_stages):
        raise ValueError(f"a {layers} x {stages} grid does not expand to {num_layers} x {num_stages} cells")
    return grid_BLSTD.expand(batch, num_layers, num_stages, tokens, width)


def pack(grid_BLTD: Tensor, marks: Marks | None = None) -> Tensor:
    """(B, L*T + H, D) of one stage, see `pack_stages`."""
    return pack_stages(grid_BLTD[:, :, None], marks)


def pack_stages(grid_BLSTD: Tensor, marks: Marks | None = None) -> Tensor:
    """(B, S*L*T + H, D), which stock pipelines take as `prompt_embeds`: all cells one behind the other, stage by stage.

    A bound U-Net chooses from them by the layer and the timestep.

    Args:
        marks: for the header behind the cells; without, no placeholder stands anywhere.
    """
    batch, layers, stages, tokens, _ = grid_BLSTD.shape
    marks = marks or Marks.none(batch, tokens)
    header = write_header(marks, layers, stages, grid_BLSTD)
    return torch.cat([grid_BLSTD.transpose(1, 2).flatten(1, 3), header], 1)


def blend(a: Tensor, b: Tensor, weight: float | Tensor) -> Tensor:
    """(B, L, S, ...): `a` where the weight is 0, `b` where it is 1, both exactly; linear between.

    Args:
        weight: a number, one per layer `(L)`, or one per cell `(L, S)`.

    Raises:
        ValueError: a weight with more axes.
    """
    weight = torch.as_tensor(weight, dtype=a.dtype, device=a.device)
    if weight.ndim > 2:
        raise ValueError(f"a weight of shape {tuple(weight.shape)} was given, expected (), (L) or (L, S)")
    if weight.ndim:
        axes = a.ndim - 1 - weight.ndim
        weight = weight.reshape(*weight.shape, *([1] * axes))
    return torch.lerp(a, b, weight)
