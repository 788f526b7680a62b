"""Head: from an attribute's features to residual word embeddings for every layer and stage."""

import torch
from torch import Tensor, nn

from escdiff.encoder.vocabulary import Vocabulary


class Head(nn.Module):
    """Features to residual word embeddings: `base + layer[l] + stage[s]`, the latter two of low rank.

    With a vocabulary the last of the features are the shares of its words, whose mixture is added.
    """

    def __init__(
        self, features: int, layers: int, stages: int, tokens: int, width: int, rank: int,
        vocabulary: Vocabulary | None = None,
    ) -> None:  # fmt: skip
        super().__init__()
        self.shape, self.features, self.vocabulary = (tokens, width), features, vocabulary
        self.base = nn.Sequential(nn.Linear(features, 2 * features), nn.GELU(), nn.Linear(2 * features, tokens * width))
        self.codes = nn.Linear(features, rank)
        self.layer = nn.Parameter(torch.randn(layers, rank, tokens * width) * 0.1 * (max(rank, 1) * width) ** -0.5)
        self.stage = nn.Parameter(torch.zeros(stages, rank, tokens * width)) if stages > 1 else None
        nn.init.normal_(self.base[-1].weight, std=0.5 * (2 * features * width) ** -0.5)

    def forward(self, features: Tensor) -> Tensor:
        """(B, F) or (B, F + V) -> (B, L, S, K, D), in units of the encoder's `embedding_scale`."""
        features, shares = features[:, : self.features], features[:, self.features :]
        codes = self.codes(features)
        out = self.base(features)[:, None, None] + torch.einsum("br,lrk->blk", codes, self.layer)[:, :, None]
        if self.stage is not None:
            out = out + torch.einsum("br,srk->bsk", codes, self.stage)[:, None]
        out = out.unflatten(-1, self.shape)
        return out if self.vocabulary is None else out + self.vocabulary(shares)[:, None, None]
