"""Cross-attention maps of chosen layers, kept from the last forward pass of a U-Net.

Legend: B batch, H heads, h, w pixels of a map, P all of them, T token position, K chosen positions.
"""

from collections.abc import Sequence
from contextlib import ExitStack

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from escdiff.conditioning.attention import factors, layers_at, probabilities, read_attention


class AttentionMaps:
    """A context manager: as long as it is entered, the last pass's maps can be read.

    Only queries and keys are kept; the maps are computed when they are asked for, outside of the U-Net's forward, so
    gradients pass gradient checkpointing unchanged.

    Args:
        layers: their names, or how many times smaller than the latents their maps are; None for the U-Net's default.

    Raises:
        UserError: no layer at this factor.
    """

    def __init__(self, unet: nn.Module, layers: Sequence[str] | int | None = None) -> None:
        self.unet = unet
        self.layers = layers_at(unet, layers) if layers is None or isinstance(layers, int) else tuple(layers)
        self._factors = factors(unet)
        self._seen: dict[str, tuple[Tensor, Tensor]] = {}
        self._size = (0, 0)

    def __enter__(self) -> "AttentionMaps":
        self._stack = ExitStack()
        start = self.unet.register_forward_pre_hook(self._begin, with_kwargs=True)
        self._stack.callback(start.remove)
        self._stack.callback(self._seen.clear)
        self._stack.enter_context(read_attention(self.unet, self.layers, self._read))
        return self

    def __exit__(self, *_) -> None:
        self._stack.close()

    def _begin(self, module: nn.Module, args: tuple, kwargs: dict) -> None:
        self._seen.clear()
        self._size = (args[0] if args else kwargs["sample"]).shape[-2:]

    def _read(self, name: str, query: Tensor, key: Tensor) -> None:
        self._seen[name] = query, key

    def layer(self, name: str, rows: int | None = None) -> Tensor:
        """(B, H, P, T) of one layer.

        Args:
            rows: of the batch, from its beginning; all without.
        """
        query, key = self._seen[name]
        return probabilities(self.unet.get_submodule(name), query[:rows], key[:rows])

    def average(self, rows: int | None = None) -> Tensor:
        """(B, h, w, T): the mean over the heads of all layers, smaller maps enlarged to the largest."""
        shaped = [self._shaped(name, self.layer(name, rows)) for name in self.layers]
        size = max(maps.shape[-2:] for maps in shaped)
        shaped = [maps if maps.shape[-2:] == size else self._enlarged(maps, size) for maps in shaped]
        return torch.cat(shaped, 1).mean(1).movedim(1, -1)

    def of(self, positions: Sequence[Sequence[int]], rows: int | None = None) -> Tensor:
        """(B, K, h, w): the maps of K token positions per sample."""
        return choose(self.average(rows), positions)

    def _shaped(self, name: str, probs: Tensor) -> Tensor:
        """(B, H, T, h, w)."""
        factor = self._factors[name]
        return probs.movedim(-1, -2).unflatten(-1, tuple(-(-side // factor) for side in self._size))

    @staticmethod
    def _enlarged(maps: Tensor, size: tuple[int, int]) -> Tensor:
        flat = F.interpolate(maps.flatten(0, 1), size, mode="bilinear", align_corners=False)
        return flat.unflatten(0, maps.shape[:2])


def choose(maps_BhwT: Tensor, positions: Sequence[Sequence[int]]) -> Tensor:
    """(B, K, h, w): of every sample its own K token positions."""
    index = torch.tensor(positions, device=maps_BhwT.device)[:, None, None]
    return maps_BhwT.gather(-1, index.expand(-1, *maps_BhwT.shape[1:3], -1)).movedim(-1, 1)
