"""The placement "fused": a concept enters behind the text encoder, where a word's state h becomes f(h, e).

FastComposer (arXiv 2305.10431) fuses so: `LN(MLP2(MLP1[h; e] + h))` at the last token of a noun phrase. A share s in
[0, 1] per cell goes from the word, `h + s (f(h, e) - h)`, so that a stage can still read the plain prompt.

Legend: B batch, L layer cell, S stage, T token position, D width of the text encoder, E of what is fused, N places.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn


class Fuse(nn.Module):
    """f, from a word's state (N, D) and a concept's embedding (N, E) to the state (N, D) that takes its place."""

    def __init__(self, width: int, embedding: int) -> None:
        super().__init__()
        self.join, self.refine = _mlp(width + embedding, width), _mlp(width, width)
        self.norm = nn.LayerNorm(width)

    @property
    def sizes(self) -> tuple[int, int]:
        """(D, E)."""
        width = self.norm.normalized_shape[0]
        return width, self.join[0].normalized_shape[0] - width

    def forward(self, states_ND: Tensor, embeddings_NE: Tensor) -> Tensor:
        h = states_ND.to(self.norm.weight.dtype)
        joined = self.join(torch.cat([h, embeddings_NE.to(h)], -1)) + h
        return self.norm(self.refine(joined) + joined).to(states_ND)


def _mlp(before: int, width: int) -> nn.Sequential:
    return nn.Sequential(nn.LayerNorm(before), nn.Linear(before, width), nn.GELU(), nn.Linear(width, width))


@dataclass(frozen=True, eq=False)
class Fusion:
    """What is fused at one token of a placeholder.

    Attributes:
        offset: of the token among the placeholder's.
        embedding: (B or 1, E).
        share: (B or 1, L, S), how far each cell goes from the word; 0 is the word to the bit.
    """

    offset: int
    embedding: Tensor
    share: Tensor

    def rows(self, part: slice) -> "Fusion":
        """That of some of the batch."""
        return Fusion(self.offset, *(x[part] if len(x) > 1 else x for x in (self.embedding, self.share)))


Fusions = Mapping[str, Sequence[Fusion]]  # by placeholder


def fuse_at(
    states_RTD: Tensor, fuse: Fuse, rows_N: Tensor, positions_N: Tensor, embeddings_NE: Tensor, share_N: Tensor | float
) -> Tensor:
    """States with N of their tokens, at (row, position) pairs, replaced by what f makes of them."""
    place = rows_N.to(states_RTD.device), positions_N.to(states_RTD.device)
    h_ND = states_RTD[place]
    share = torch.as_tensor(share_N, device=h_ND.device, dtype=h_ND.dtype).expand(len(h_ND))[:, None]
    return states_RTD.index_put(place, torch.lerp(h_ND, fuse(h_ND, embeddings_NE.to(h_ND.device)), share))


def fuse_grid(grid_BLSTD: Tensor, slots: Sequence[Sequence[tuple[str, int]]], fusions: Fusions, fuse: Fuse) -> Tensor:
    """A grid (B, L|1, S|1, T, D) with the fusions of its placeholders, of as many cells as they need.

    Args:
        slots: of every prompt, (placeholder, first position) pairs.
    """
    found = [(b, first, one) for b, own in enumerate(slots) for name, first in own for one in fusions.get(name, ())]
    if not found:
        return grid_BLSTD
    layers, stages = torch.broadcast_shapes(grid_BLSTD.shape[1:3], *(one.share.shape[1:] for _, _, one in found))
    grid = grid_BLSTD.expand(-1, layers, stages, -1, -1)
    cells = layers * stages
    rows, positions, embeddings, shares = [], [], [], []
    for b, first, one in found:
        rows.append(torch.arange(b * cells, (b + 1) * cells))
        positions.append(torch.full((cells,), first + one.offset))
        embeddings.append(one.embedding[min(b, len(one.embedding) - 1)].expand(cells, -1))
        shares.append(one.share[min(b, len(one.share) - 1)].expand(layers, stages).flatten())
    parts = (torch.cat(part) for part in (rows, positions, embeddings, shares))
    return fuse_at(grid.flatten(0, 2), fuse, *parts).unflatten(0, (-1, layers, stages))
