"""Hand every cross-attention layer its conditioning without packing or repeating it first.

`escdiff.conditioning.bind` narrows one packed tensor, which stock pipelines want; but the backward pass of
a narrow fills a whole packed gradient with zeros for each of the layers, a tenth of the bundled U-Net's
step. The same values from one `unbind` cost one stack. Several noised copies of a sample share its keys and
values: the layer sees their queries as one long sequence. Layers are found by name, so gradient
checkpointing gets the same slices.
"""

from functools import partial

from torch import Tensor, nn

from escdiff.conditioning import ConditioningSpace
from escdiff.conditioning.acting import set_masks
from escdiff.conditioning.binding import forget_where, narrow_inputs


class LayerFeed:
    """Gives the layers of `space` their slices of a grid.

    Example:
        feed = LayerFeed(unet, space)
        plain = feed.load(grid, repeats=4)  # then call the U-Net with `plain`, which the layers ignore
        feed.remove()
    """

    def __init__(self, unet: nn.Module, space: ConditioningSpace) -> None:
        self._slices: tuple[Tensor, ...] = ()
        self._masks: Tensor | None = None
        self._repeats = 1
        self._handles = []
        for cell, names in enumerate(space.cells):
            for name in names:
                layer = unet.get_submodule(name)
                self._handles += [
                    layer.register_forward_pre_hook(partial(self._give, cell), with_kwargs=True),
                    layer.register_forward_hook(self._restore),
                    layer.register_forward_hook(forget_where, always_call=True),
                ]

    def load(self, grid_BLTD: Tensor, repeats: int = 1, masks: Tensor | None = None) -> Tensor:
        """Keep a grid for the next forward and backward pass, each of its rows for `repeats` samples running.

        Args:
            masks: (B, A, T), where routed branches act; None: nowhere.

        Returns a conditioning (B, T, D) to call the U-Net with.
        """
        self._slices, self._repeats, self._masks = grid_BLTD.unbind(1), repeats, masks
        return self._slices[0].detach()

    def clear(self) -> None:
        """Let go of the grid: the U-Net is the stock one until the next `load`."""
        self._slices, self._masks = (), None

    def remove(self) -> None:
        """Take the hooks out of the U-Net."""
        self.clear()
        while self._handles:
            self._handles.pop().remove()

    def _give(self, cell: int, module: nn.Module, args: tuple, kwargs: dict) -> tuple[tuple, dict] | None:
        if not self._slices:
            return None
        set_masks(self._masks)  # by the thread that runs the layer: a recomputed one may run in another
        given, hidden = self._slices[cell], args[0].unflatten(0, (-1, self._repeats)).flatten(1, 2)
        return narrow_inputs(module, (hidden, *args[1:]), kwargs, lambda states: given.to(states.dtype))

    def _restore(self, module: nn.Module, args: tuple, output: Tensor) -> Tensor | None:
        if not self._slices:
            return None
        return output.unflatten(1, (self._repeats, -1)).flatten(0, 1)
