"""Hand every cross-attention layer its conditioning without packing it first.

`escdiff.conditioning.bind` narrows one packed tensor, which stock pipelines want; but the backward pass of
a narrow fills a whole packed gradient with zeros for each of the layers, a tenth of the bundled U-Net's
step. The same values from one `unbind` cost one stack. Layers are found by name, so gradient checkpointing
gets the same slices.
"""

from functools import partial

from torch import Tensor, nn

from escdiff.conditioning import ConditioningSpace
from escdiff.conditioning.unet import narrow_inputs


class LayerFeed:
    """Gives the layers of `space` their slices of a grid.

    Example:
        feed = LayerFeed(unet, space)
        plain = feed.load(grid, repeats=4)  # then call the U-Net with `plain`, which the layers ignore
        feed.remove()
    """

    def __init__(self, unet: nn.Module, space: ConditioningSpace) -> None:
        self._slices: tuple[Tensor, ...] = ()
        self._handles = [
            unet.get_submodule(name).register_forward_pre_hook(partial(self._give, cell), with_kwargs=True)
            for cell, names in enumerate(space.cells)
            for name in names
        ]

    def load(self, grid_BLTD: Tensor, repeats: int = 1) -> Tensor:
        """Keep a grid, each of its rows `repeats` times, for the next forward and backward pass.

        Returns a conditioning (B * repeats, T, D) to call the U-Net with.
        """
        self._slices = tuple(part.repeat_interleave(repeats, 0) for part in grid_BLTD.unbind(1))
        return self._slices[0].detach()

    def clear(self) -> None:
        """Let go of the grid: the U-Net is the stock one until the next `load`."""
        self._slices = ()

    def remove(self) -> None:
        self.clear()
        while self._handles:
            self._handles.pop().remove()

    def _give(self, cell: int, module: nn.Module, args: tuple, kwargs: dict) -> tuple[tuple, dict] | None:
        if not self._slices:
            return None
        given = self._slices[cell]
        return narrow_inputs(module, args, kwargs, lambda states: given.to(states.dtype))
