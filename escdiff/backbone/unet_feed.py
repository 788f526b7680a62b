"""A training's prompts as the conditioning of a U-Net's layers."""

from collections.abc import Callable, Mapping, Sequence

import torch
from torch import Tensor, nn

from escdiff.backbone.branches import is_routed
from escdiff.concept import token_masks
from escdiff.conditioning import ConditioningSpace, PromptEncoder
from escdiff.conditioning.layer_feed import LayerFeed
from escdiff.conditioning.tied_layers import encode_tied


class UNetFeed:
    """See `escdiff.backbone.frozen.Feed`."""

    def __init__(self, unet: nn.Module, space: ConditioningSpace, prompts: PromptEncoder) -> None:
        self.unet, self.space, self.prompts = unet, space, prompts
        self.layers = LayerFeed(unet, space)

    def load(
        self, texts: Sequence[str], vectors: Mapping[str, Tensor], stage_B: Tensor, repeats: int = 1,
        runs: int | None = None, recompute: bool = False, fuse: Callable[[Tensor], Tensor] | None = None,
    ) -> Tensor:  # fmt: skip
        """See `Feed.load`.

        Args:
            runs: of neighbouring layers that share a row of the text encoder, see `encode_tied`; vectors are then those
                of every sample's own stage (B, L, 1, K, D). Without, layers are encoded as they are, equal texts once.
            recompute: see `encode_tied`.
            fuse: changes the conditioning (B, L|1, T, D) behind the text encoder; without `runs`.
        """
        if runs is None:
            grid = condition(self.prompts, texts, vectors, stage_B)
            grid = (fuse(grid) if fuse else grid).expand(-1, self.space.num_layers, -1, -1)
        else:
            grid = encode_tied(self.prompts, texts, vectors, runs, recompute)
        counts = {name: value.shape[3] for name, value in vectors.items()}
        masks = token_masks(self.prompts, texts, counts) if is_routed(self.unet) else None
        return self.layers.load(grid, repeats, masks)

    def clear(self) -> None:
        """See `Feed.clear`."""
        self.layers.clear()

    def remove(self) -> None:
        """See `Feed.remove`."""
        self.layers.remove()


def condition(prompts: PromptEncoder, texts: Sequence[str], vectors: Mapping[str, Tensor], stage_B: Tensor) -> Tensor:
    """The conditioning (B, L|1, T, D) of every sample's own stage.

    What is equal is encoded once: texts, where all samples share the vectors, and stages that several samples drew.

    Args:
        vectors: "<name>" -> (B|1, L|1, S|1, K, D).
        stage_B: int64.
    """
    several = any(value.shape[2] > 1 for value in vectors.values())
    stages, own_stage_B = stage_B.unique(return_inverse=True)
    chosen = {
        name: value if value.shape[2] == 1 else value[:, :, stages.to(value.device)] for name, value in vectors.items()
    }
    shared = all(len(value) == 1 for value in chosen.values())
    unique = list(dict.fromkeys(texts)) if shared else list(texts)
    grid = prompts.encode(unique, chosen)  # (texts, L, stages, T, D)
    row_B = torch.tensor([unique.index(text) for text in texts] if shared else range(len(texts)), device=grid.device)
    if not several or len(stages) == 1:
        grid = grid[:, :, 0]
        return grid.expand(len(texts), -1, -1, -1) if len(unique) == 1 else grid[row_B]
    return grid[row_B, :, own_stage_B.to(grid.device)]
