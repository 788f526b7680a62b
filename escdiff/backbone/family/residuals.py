"""Per-layer residuals of a prompt's text, and how they travel: in further rows behind the text itself.

A pipeline repeats, joins and moves its `prompt_embeds`, calls a transformer that other threads use too, and gradient
checkpointing runs a block again in another thread. What a layer adds therefore stands in the same tensor as the text:
nothing is stored anywhere, so nothing has to be removed afterwards.

Legend: B batch, L layers, S stages, K positions, T tokens, D width of the text as the model takes it, W width of the
text as a layer reads it, R rows behind the text.
"""

from dataclasses import dataclass

import torch
from torch import Tensor

from escdiff.conditioning import ConditioningSpace
from escdiff.support.errors import UserError

SIGNATURE = (70.0, -65.0, 77.0, -73.0)  # whole numbers up to 256, which float16 and bfloat16 hold exactly
TAIL = len(SIGNATURE) + 3  # of the last row: signature, L, S, K
BASE = 128  # a position is written as two digits


@dataclass(frozen=True)
class Residuals:
    """What is added to the text of each layer, at some positions.

    Attributes:
        values: (B, L, S, K, W).
        positions: (B, K) int64, token positions from 0; -1: nowhere. No position twice in a row.

    Raises:
        UserError: shapes that do not fit each other, or more than 256 layers, stages or positions.
    """

    values: Tensor
    positions: Tensor

    def __post_init__(self) -> None:
        values, positions = tuple(self.values.shape), tuple(self.positions.shape)
        if len(values) != 5 or positions != (values[0], values[3]):
            raise UserError(
                f"residuals of shape {values} at positions of shape {positions} were given; expected "
                "(batch, layers, stages, positions, width) and (batch, positions)"
            )
        if max(values[1:4]) > 2 * BASE:
            raise UserError(f"residuals of shape {values} were given; expected at most 256 layers, stages, positions")

    @classmethod
    def none(cls, batch: int, space: ConditioningSpace, width: int) -> "Residuals":
        """Of prompts without a placeholder: the stock text for every layer."""
        values = torch.zeros(batch, space.num_layers, space.num_stages, 0, width)
        return cls(values, torch.zeros(batch, 0, dtype=torch.long))

    def expand(self, batch: int) -> "Residuals":
        """One row for all prompts, or as they are.

        Raises:
            UserError: another number of rows.
        """
        if len(self.values) not in (1, batch):
            raise UserError(f"residuals of {len(self.values)} prompts were given for {batch} prompts")
        return Residuals(self.values.expand(batch, -1, -1, -1, -1), self.positions.expand(batch, -1))

    def at(self, stage_B: Tensor) -> tuple[Tensor, ...]:
        """Of each layer (B, K, W), for every sample's stage."""
        if self.values.shape[2] == 1:
            return self.values[:, :, 0].unbind(1)
        rows = torch.arange(len(self.values), device=self.values.device)
        return self.values[rows, :, stage_B.to(rows.device)].unbind(1)


def add_residual(text_BTW: Tensor, values_BKW: Tensor, positions_BK: Tensor) -> Tensor:
    """The text with values added at positions; rows of position -1 change nothing. Zeros leave every bit."""
    keep = (positions_BK >= 0)[..., None]
    where = positions_BK.clamp(min=0)[..., None].expand_as(values_BKW)
    return text_BTW.scatter_add(1, where, torch.where(keep, values_BKW, 0).to(text_BTW))


def write_rows(text_BTD: Tensor, residuals: Residuals) -> Tensor:
    """(B, T + R, D): the text with its residuals behind.

    Raises:
        UserError: positions beyond the text, or a text narrower than seven numbers.
    """
    batch, tokens, width = text_BTD.shape
    residuals = residuals.expand(batch)
    check_positions(residuals, tokens)
    if width < TAIL:
        raise UserError(f"text of width {width} was given; residuals need a width of {TAIL} to travel with it")
    values, positions = residuals.values, residuals.positions.to(text_BTD.device) + 1
    digits = torch.stack([positions // BASE, positions % BASE], -1)
    numbers = torch.cat([digits.flatten(1).to(text_BTD), values.flatten(1).to(text_BTD)], 1)
    rows = -(-numbers.shape[1] // width)
    padded = torch.nn.functional.pad(numbers, (0, rows * width - numbers.shape[1]))
    tail = torch.tensor([*SIGNATURE, *values.shape[1:4]] + [0.0] * (width - TAIL)).to(text_BTD)
    return torch.cat([text_BTD, padded.view(batch, rows, width), tail.expand(batch, 1, width)], 1)


def read_rows(packed: Tensor, layer_width: int) -> tuple[Tensor, Residuals] | None:
    """The text (B, T, D) and its residuals; None where none stand behind it.

    Args:
        layer_width: W.
    """
    width = packed.shape[2]
    if width < TAIL or packed.shape[1] < 2:
        return None
    tail = packed[0, -1, :TAIL].detach().tolist()
    if tuple(tail[: len(SIGNATURE)]) != SIGNATURE:
        return None
    layers, stages, count = (int(number) for number in tail[len(SIGNATURE) :])
    size = layers * stages * count * layer_width
    rows = -(-(2 * count + size) // width)
    tokens = packed.shape[1] - rows - 1
    if tokens < 1:
        raise UserError(
            f"text with residuals of {layers} layers was given, which is too short for the layers' width "
            f"{layer_width}: it was packed for another model, pack it with this one's family"
        )
    numbers = packed[:, tokens:-1].flatten(1)
    digits = numbers[:, : 2 * count].detach().round().long().unflatten(1, (count, 2))
    values = numbers[:, 2 * count : 2 * count + size].unflatten(1, (layers, stages, count, layer_width))
    return packed[:, :tokens].contiguous(), Residuals(values, digits[..., 0] * BASE + digits[..., 1] - 1)


def check_positions(residuals: Residuals, tokens: int) -> None:
    """Refuse positions that the text lacks.

    Raises:
        UserError: naming the position.
    """
    last = int(residuals.positions.max()) if residuals.positions.numel() else -1
    if last >= tokens:
        raise UserError(f"a residual at token {last} was given for a text of {tokens} tokens: cut neither, or both")
