"""Prompts that begin alike, encoded once up to the placeholder and once per cell from there.

Attention in CLIP's text encoder is causal: what stands before a placeholder is equal in all cells of a prompt. The
beginnings go through the encoder once each; the rest attends to their keys and values.

Legend: R rows, U different beginnings, P positions of a beginning, T positions of all, D width.
"""

from collections.abc import Callable, Mapping

import torch
import torch.nn.functional as F
from torch import Tensor
from transformers import CLIPTextModel, CLIPTextModelWithProjection, PreTrainedModel
from transformers.utils import ModelOutput

from escdiff.conditioning.replacing import Replacing

LEAST = 0.05  # of the work; what two calls in place of one cost


class Prefix:
    """Keys and values of beginnings by attention layer, in the order in which the layers run.

    Both methods stand in for `F.scaled_dot_product_attention`: (R, heads, positions, D / heads). The encoder's own mask
    is causal, and so is theirs.

    Args:
        row: of each row of the rest, which beginning it goes on from, (R,) int64.
    """

    def __init__(self, row: Tensor) -> None:
        self.row, self.kept, self.layers_read = row, [], 0

    def keep(self, query: Tensor, key: Tensor, value: Tensor, scale: float | None = None, **_) -> Tensor:
        """Attention within the beginnings."""
        self.kept.append((key, value))
        return F.scaled_dot_product_attention(query, key, value, is_causal=True, scale=scale)

    def read(self, query: Tensor, key: Tensor, value: Tensor, scale: float | None = None, **_) -> Tensor:
        """Attention of the rest, to the beginnings too."""
        before = (kept.index_select(0, self.row) for kept in self.kept[self.layers_read])
        self.layers_read += 1
        key, value = (torch.cat(pair, 2) for pair in zip(before, (key, value), strict=True))
        seen = torch.ones(query.shape[2], key.shape[2], dtype=torch.bool, device=query.device)
        seen = seen.tril(key.shape[2] - query.shape[2])
        return F.scaled_dot_product_attention(query, key, value, attn_mask=seen, scale=scale)


def find_beginnings(text_encoder: PreTrainedModel, ids_RT: Tensor, length: int) -> tuple[Tensor, Tensor] | None:
    """The different first `length` ids (U, length), and which each row has, (R,); None if not worth two calls."""
    if not isinstance(text_encoder, CLIPTextModel | CLIPTextModelWithProjection) or length == 0:
        return None
    beginnings_UP, row_R = torch.unique(ids_RT[:, :length], dim=0, return_inverse=True)
    saved = (len(ids_RT) - len(beginnings_UP)) * length
    return (beginnings_UP, row_R) if saved > LEAST * ids_RT.numel() else None


def run_shared(
    text_encoder: PreTrainedModel, beginnings_UP: Tensor, row_R: Tensor, rest: Tensor,
    replaced: Mapping[Callable, Callable], **options,
) -> tuple[ModelOutput, ModelOutput] | None:  # fmt: skip
    """The outputs for the beginnings (U, P), and for the rest (R, T - P) of the rows that go on from them.

    None of an encoder whose attention is another function than torch's own: encode whole rows then.

    Args:
        replaced: torch functions that the rest calls others for, see `Replacing`.
        options: of the text encoder's `forward`.
    """
    length = beginnings_UP.shape[1]
    positions = torch.arange(length, length + rest.shape[1], device=rest.device)[None]
    prefix = Prefix(row_R)
    with Replacing({F.scaled_dot_product_attention: prefix.keep}):
        first = text_encoder(beginnings_UP, **options)
    if len(prefix.kept) != text_encoder.config.num_hidden_layers:
        return None
    with Replacing({F.scaled_dot_product_attention: prefix.read, **replaced}):
        return first, text_encoder(rest, position_ids=positions, **options)
