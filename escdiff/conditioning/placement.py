"""Where learned vectors enter: as words in front of the text encoder, or added to its hidden states behind it.

Behind it, the text encoder reads ordinary words in the placeholder's place, one row per prompt instead of one per
cell, and every cell adds its own to their hidden states. Either way a placeholder has one tensor: word vectors
(B, L, S, K, D), or pairs (B, L, S, K, 2, D) of the word and what is added. What selects, stacks or repeats along B, L,
S and K need not know which.
Legend: B batch, L layer cell, S stage, K vectors per placeholder, T token position, D width.
"""

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

PLACEMENTS = ("words", "states")


def place(vectors_BLSKD: Tensor, words_KD: Tensor, placement: str) -> Tensor:
    """What `PromptEncoder.encode` takes for vectors that depart from ordinary words.

    Returns:
        "words": the vectors themselves. "states": pairs of the words and the vectors' difference from them.
    """
    if placement == "words":
        return vectors_BLSKD
    words = words_KD.to(vectors_BLSKD).expand_as(vectors_BLSKD)
    return torch.stack([words, vectors_BLSKD - words], dim=4)


def split(values: Mapping[str, Tensor]) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    """Placeholder -> words for the text encoder, of one cell where they come in pairs; placeholder -> what is added."""
    pairs = {name: value for name, value in values.items() if value.ndim == 6 and value.shape[4] == 2}
    words = {name: value[:, :1, :1, :, 0] if name in pairs else value for name, value in values.items()}
    return words, {name: value[..., 1, :] for name, value in pairs.items()}


def add_behind(grid_BLSTD: Tensor, slots: Sequence[Sequence[tuple[str, int]]], added: Mapping[str, Tensor]) -> Tensor:
    """The grid with (B|1, L|1, S|1, K, D) added where the placeholders stand, no other value changed.

    Args:
        slots: (placeholder, first position) pairs of every prompt.
    """
    cells, where, values = grid_BLSTD.shape[1:3], [], []
    for sample, own in enumerate(slots):
        for name, first in own:
            if name in added:
                value_LSKD = added[name][min(sample, len(added[name]) - 1)].expand(*cells, -1, -1)
                values.append(value_LSKD.permute(2, 0, 1, 3))
                where += [(sample, first + k) for k in range(value_LSKD.shape[2])]
    if not where:
        return grid_BLSTD
    sample_N, position_N = torch.tensor(where, device=grid_BLSTD.device).unbind(1)
    result = grid_BLSTD.clone(memory_format=torch.contiguous_format)
    result[sample_N, :, :, position_N] += torch.cat(values).to(result)  # (N, L, S, D)
    return result
