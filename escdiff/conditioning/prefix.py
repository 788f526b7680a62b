"""Prompts that begin alike, encoded once up to the placeholder and once per cell from there.

Attention in CLIP's text encoder is causal: what stands before a placeholder is equal in all cells of a prompt. The
beginnings go through the encoder once each; the rest attends to their keys and values.

Legend: R rows, U different beginnings, P positions of a beginning, T positions of all, D width.
"""

from contextlib import AbstractContextManager

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers import AttentionInterface, CLIPTextModel, CLIPTextModelWithProjection, PreTrainedModel
from transformers.utils import ModelOutput

NAME = "escdiff_prefix"
LEAST = 0.05  # of the work; what two calls in place of one cost


class Prefix:
    """Keys and values of beginnings by attention layer, filled while `row` is None and then read.

    Attributes:
        row: of each row of the rest, which beginning it goes on from, (R,) int64.
    """

    def __init__(self) -> None:
        self.kept: dict[nn.Module, tuple[Tensor, Tensor]] = {}
        self.row: Tensor | None = None


def attend(
    module: nn.Module, query: Tensor, key: Tensor, value: Tensor, mask: Tensor | None, scaling: float | None = None,
    prefix: Prefix | None = None, **_,
) -> tuple[Tensor, None]:  # fmt: skip
    """transformers' attention interface: (R, heads, positions, D / heads) -> (R, positions, heads, D / heads)."""
    if prefix.row is None:
        prefix.kept[module] = key, value
        out = F.scaled_dot_product_attention(query, key, value, is_causal=True, scale=scaling)
    else:
        before = (kept.index_select(0, prefix.row) for kept in prefix.kept[module])
        key, value = (torch.cat(pair, 2) for pair in zip(before, (key, value), strict=True))
        seen = torch.ones(query.shape[2], key.shape[2], dtype=torch.bool, device=query.device)
        seen = seen.tril(key.shape[2] - query.shape[2])
        out = F.scaled_dot_product_attention(query, key, value, attn_mask=seen, scale=scaling)
    return out.transpose(1, 2).contiguous(), None


AttentionInterface.register(NAME, attend)


def find_beginnings(text_encoder: PreTrainedModel, ids_RT: Tensor, length: int) -> tuple[Tensor, Tensor] | None:
    """The different first `length` ids (U, length), and which each row has, (R,); None if not worth two calls."""
    if not isinstance(text_encoder, CLIPTextModel | CLIPTextModelWithProjection) or length == 0:
        return None
    beginnings_UP, row_R = torch.unique(ids_RT[:, :length], dim=0, return_inverse=True)
    saved = (len(ids_RT) - len(beginnings_UP)) * length
    return (beginnings_UP, row_R) if saved > LEAST * ids_RT.numel() else None


def run_shared(
    text_encoder: PreTrainedModel, beginnings_UP: Tensor, row_R: Tensor, rest: Tensor,
    splicing: AbstractContextManager, **options,
) -> tuple[ModelOutput, ModelOutput]:  # fmt: skip
    """The outputs for the beginnings (U, P), and for the rest (R, T - P) of the rows that go on from them.

    Args:
        splicing: a context in which the rest's word embeddings are replaced.
        options: of the text encoder's `forward`.
    """
    length = beginnings_UP.shape[1]
    positions = torch.arange(length, length + rest.shape[1], device=rest.device)[None]
    prefix, usual = Prefix(), text_encoder.config._attn_implementation
    text_encoder.set_attn_implementation(NAME)
    try:
        first = text_encoder(beginnings_UP, prefix=prefix, **options)
        prefix.row = row_R
        with splicing:
            return first, text_encoder(rest, position_ids=positions, prefix=prefix, **options)
    finally:
        text_encoder.set_attn_implementation(usual)
