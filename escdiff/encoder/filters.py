"""The shape filter and the appearance filter: what each may see of CLIP's patch tokens.

Invariance is built in before any loss asks for it. The shape filter sees where things are but, after instance
normalisation over the patches, not the channel statistics that carry colour and texture. The appearance filter
sees those statistics but not where: every pooling it uses gives the same for patches in any order.
"""

import torch
import torch.nn.functional as F
from torch import Tensor, nn


def patch_weights(mask: Tensor | None, tokens: Tensor) -> Tensor:
    """Share of the mask in each patch: (B, 1, H, W) or None -> (B, N), at least 0.01 so that no picture vanishes."""
    count = tokens.shape[1]
    if mask is None:
        return tokens.new_ones(tokens.shape[:2])
    side = round(count**0.5)
    return F.adaptive_avg_pool2d(mask.to(tokens), side).flatten(1).clamp_min(0.01)


def moments(tokens: Tensor, weights: Tensor) -> tuple[Tensor, Tensor]:
    """Weighted mean and deviation over patches: (B, N, W), (B, N) -> (B, 1, W) each."""
    share = (weights / weights.sum(1, keepdim=True))[..., None]
    mean = (tokens * share).sum(1, keepdim=True)
    return mean, ((tokens - mean).square() * share).sum(1, keepdim=True).add(1e-5).sqrt()


class AttentionPool(nn.Module):
    """Learned queries look at the tokens, `depth` times: (B, N, C) -> (B, Q, C)."""

    def __init__(self, width: int, queries: int, heads: int = 4, depth: int = 1) -> None:
        super().__init__()
        self.queries = nn.Parameter(torch.randn(queries, width) * width**-0.5)
        self.norms = nn.ModuleList(nn.LayerNorm(width) for _ in range(2 * depth))
        self.looks = nn.ModuleList(nn.MultiheadAttention(width, heads, batch_first=True) for _ in range(depth))
        self.thinks = nn.ModuleList(
            nn.Sequential(nn.Linear(width, 2 * width), nn.GELU(), nn.Linear(2 * width, width)) for _ in range(depth)
        )

    def forward(self, tokens: Tensor, weights: Tensor) -> Tensor:
        """Tokens (B, N, W) with weights (B, N) to what the queries found, (B, Q, W)."""
        found = self.queries.expand(len(tokens), -1, -1)
        bias = weights.log()[:, None].expand(-1, found.shape[1], -1)
        for i, (look, think) in enumerate(zip(self.looks, self.thinks, strict=True)):
            bias_heads = bias.repeat_interleave(look.num_heads, 0).to(found.dtype)
            found = found + look(self.norms[2 * i](found), tokens, tokens, attn_mask=bias_heads, need_weights=False)[0]
            found = found + think(self.norms[2 * i + 1](found))
        return found


class ShapeFilter(nn.Module):
    """Mid and late tokens, normalised, with positions -> features (B, F)."""

    def __init__(
        self, width: int, depths: int, patches: int, features: int, inner: int = 192,
        queries: int = 4, positions: bool = True, instance_norm: bool = True,
    ) -> None:  # fmt: skip
        super().__init__()
        self.instance_norm = instance_norm
        self.enter = nn.Linear(width * depths, inner)
        self.positions = nn.Parameter(torch.randn(patches, inner) * 0.1) if positions else None
        self.norm = nn.LayerNorm(inner)
        self.pool = AttentionPool(inner, queries, depth=2)
        self.leave = nn.Sequential(nn.Linear(inner * queries, features), nn.LayerNorm(features))

    def forward(self, tokens_BNW: list[Tensor], mask: Tensor | None = None) -> Tensor:
        """Tokens by depth and masks (B, 1, H, W) of the object to features (B, F)."""
        weights = patch_weights(mask, tokens_BNW[0])
        if self.instance_norm:
            stats = [moments(tokens, weights) for tokens in tokens_BNW]
            tokens_BNW = [(t - mean) / std for t, (mean, std) in zip(tokens_BNW, stats, strict=True)]
        tokens = self.enter(torch.cat(tokens_BNW, -1))
        if self.positions is not None:
            tokens = tokens + self.positions
        return self.leave(self.pool(self.norm(tokens), weights).flatten(1))


class AppearanceFilter(nn.Module):
    """Early and mid tokens, without positions, pooled in ways that no order of patches changes -> (B, F)."""

    def __init__(
        self, width: int, depths: int, patches: int, features: int, inner: int = 192,
        queries: int = 4, rank: int = 16, positions: bool = False,
    ) -> None:  # fmt: skip
        super().__init__()
        total = width * depths
        self.positions = nn.Parameter(torch.randn(patches, inner) * 0.1) if positions else None
        self.enter_norm, self.enter = nn.LayerNorm(total), nn.Linear(total, inner)
        self.pool = AttentionPool(inner, queries)
        self.gram = nn.Linear(total, rank, bias=False)
        self.register_buffer("upper", torch.triu_indices(rank, rank), persistent=False)
        sizes = 2 * inner + inner * queries + self.upper.shape[1]
        self.leave = nn.Sequential(
            nn.LayerNorm(sizes), nn.Linear(sizes, features), nn.GELU(), nn.Linear(features, features),
            nn.LayerNorm(features),
        )  # fmt: skip

    def forward(self, tokens_BNW: list[Tensor], mask: Tensor | None = None) -> Tensor:
        """Tokens by depth and masks (B, 1, H, W) of the object to features (B, F)."""
        weights = patch_weights(mask, tokens_BNW[0])
        share = (weights / weights.sum(1, keepdim=True))[..., None]
        raw = self.enter_norm(torch.cat(tokens_BNW, -1))
        tokens = self.enter(raw)
        if self.positions is not None:
            tokens = tokens + self.positions
        mean, std = moments(tokens, weights)
        low = self.gram(raw)
        gram = (low * share).transpose(1, 2) @ low  # (B, rank, rank)
        parts = [mean[:, 0], std[:, 0], self.pool(tokens, weights).flatten(1), gram[:, self.upper[0], self.upper[1]]]
        return self.leave(torch.cat(parts, -1))
