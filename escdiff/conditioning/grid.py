"""The conditioning grid: hidden states of the text encoder for every cell of a space. Pure tensor functions.

Legend: B batch, L layer cell, S stage, T token position, D width of the text encoder.
"""

import torch
from torch import Tensor

from escdiff.conditioning.space import ConditioningSpace
from escdiff.errors import UserError


def expand(grid_BLSTD: Tensor, num_layers: int, num_stages: int) -> Tensor:
    """Repeat the layer and stage axes of size 1 to the space's size, without copying.

    Raises:
        ValueError: an axis has neither size 1 nor the size asked for.
    """
    batch, layers, stages, tokens, width = grid_BLSTD.shape
    if layers not in (1, num_layers) or stages not in (1, num_stages):
        raise ValueError(f"a {layers} x {stages} grid does not expand to {num_layers} x {num_stages} cells")
    return grid_BLSTD.expand(batch, num_layers, num_stages, tokens, width)


def select(grid_BLSTD: Tensor, stage_B: Tensor) -> Tensor:
    """(B, L, T, D): every sample's own stage. A grid with one stage serves all of them.

    Args:
        stage_B: int64 stage index of every sample, as from `ConditioningSpace.stage_of`.
    """
    if grid_BLSTD.shape[2] == 1:
        return grid_BLSTD[:, :, 0]
    sample_B = torch.arange(len(grid_BLSTD), device=grid_BLSTD.device)
    return grid_BLSTD[sample_B, :, stage_B.to(grid_BLSTD.device)]


def pack(grid_BLTD: Tensor) -> Tensor:
    """(B, L*T, D): the layers one behind the other, which stock pipelines take as `prompt_embeds`."""
    return grid_BLTD.flatten(1, 2)


def pack_stages(grid_BLSTD: Tensor) -> Tensor:
    """(B, S*L*T, D): all stages one behind the other, for a bound U-Net to choose from by the timestep."""
    return grid_BLSTD.transpose(1, 2).flatten(1, 3)


def unpack(packed: Tensor, num_layers: int) -> Tensor:
    """(B, L, T, D): inverse of `pack`.

    Raises:
        ValueError: the length is no multiple of `num_layers`.
    """
    if packed.shape[1] % num_layers:
        raise ValueError(f"a conditioning of length {packed.shape[1]} does not hold {num_layers} layers")
    return packed.unflatten(1, (num_layers, -1))


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


def validate(grid_BLSTD: Tensor, space: ConditioningSpace, width: int) -> Tensor:
    """The grid itself, if it fills this space at this width.

    Raises:
        UserError: it does not; names both sides.
    """
    expected = f"(batch, {space.num_layers} layers, {space.num_stages} stages, tokens, width {width})"
    shape = tuple(grid_BLSTD.shape)
    if len(shape) != 5 or shape[1:3] != (space.num_layers, space.num_stages) or shape[4] != width:
        raise UserError(
            f"a conditioning grid of shape {shape} was given, expected {expected}: "
            "encode the prompt with this backbone and expand it to this space"
        )
    if not torch.isfinite(grid_BLSTD).all():
        raise UserError("the conditioning grid holds NaN or infinite values: check the concept's vectors")
    return grid_BLSTD
