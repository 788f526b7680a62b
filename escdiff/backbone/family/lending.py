"""Some layers of a model read another sample's text: how a study asks what a layer's text decides.

Legend: B batch, T tokens, W width of the text as a layer reads it.
"""

import inspect
from collections.abc import Callable, Collection
from functools import partial

from diffusers.utils.torch_utils import unwrap_module
from torch import Tensor, nn

from escdiff.backbone.family.blocks import TEXT
from escdiff.conditioning import Binding

Lender = Callable[[int], Tensor]


def lend_text(model: nn.Module, names: Collection[str], lender: Lender) -> Binding:
    """Within the binding, layers read for each sample the text of another one of the batch.

    A block that hands the text on gives its own sample's, changed as it changed what was lent: only the named layers
    read another text. With cross-attention that is exact; in joint attention later blocks see what this one made of it.

    Args:
        names: modules that take the text (B, T, W), as a family's `layers` gives them.
        lender: of B, (B,) rows of the batch, whose texts are as long.
    """
    model, handles = unwrap_module(model), []
    for name in names:
        layer, own = model.get_submodule(name), {}
        take = partial(_take, own=own, lender=lender, order=tuple(inspect.signature(layer.forward).parameters))
        handles.append(layer.register_forward_pre_hook(take, with_kwargs=True))
        handles.append(layer.register_forward_hook(partial(_return, own=own)))
    return Binding(handles)


def _take(
    layer: nn.Module, args: tuple, kwargs: dict, own: dict, lender: Lender, order: tuple[str, ...]
) -> tuple[tuple, dict]:
    given = dict(zip(order, args, strict=False)) | kwargs
    text = given[TEXT]
    given[TEXT] = text[lender(len(text)).to(text.device)]
    own["less"] = text - given[TEXT]
    return (), given


def _return(layer: nn.Module, args: tuple, output: Tensor | tuple, own: dict) -> tuple | None:
    less = own.pop("less")
    if not isinstance(output, tuple) or output[0] is None:  # no text behind it
        return None
    return output[0] + less, *output[1:]
