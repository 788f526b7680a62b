"""Give every cross-attention layer of a stock U-Net its own slice of a packed conditioning.

Legend: B batch, L layer cell, T token position, D width of the text encoder.
"""

from collections.abc import Callable
from functools import partial

import torch
from torch import Tensor, nn

from escdiff.conditioning.space import ConditioningSpace, cross_attention_layers
from escdiff.errors import UserError

TOKENS = 77  # positions of CLIP's text encoders


class Binding:
    """What `bind` installed. A context manager; `remove` may be called more than once."""

    def __init__(self, handles: list) -> None:
        self._handles = handles

    def remove(self) -> None:
        """Restore the stock U-Net, bit for bit."""
        while self._handles:
            self._handles.pop().remove()

    def __enter__(self) -> "Binding":
        return self

    def __exit__(self, *_) -> None:
        self.remove()


def bind(model: nn.Module, space: ConditioningSpace, tokens: int = TOKENS, whole: bool = True) -> Binding:
    """Let each cross-attention layer narrow a packed conditioning to the (B, T, D) of its cell.

    It may be packed over layers, (B, L*T, D), or over stages too, (B, S*L*T, D): then every sample's timestep chooses
    its stage, so no callback is needed. A plain conditioning (B, T, D) passes unchanged, so a bound U-Net still serves
    stock prompts. Every layer's index is fixed here by its name: a call counter would be wrong under gradient
    checkpointing.

    Args:
        tokens: T, the token positions of one cell.
        whole: expect all of the space's layers. A ControlNet has those of the U-Net's first half, by the same names.

    Raises:
        UserError: the space's layers are not this model's; later, in the forward pass, a conditioning of
            neither length.
    """
    model, compiled = getattr(model, "_orig_mod", model), is_compiled(model)
    ours, theirs = set(space.layer_names), set(cross_attention_layers(model))
    if theirs - ours or (whole and ours != theirs):
        raise UserError(
            f"the space names {len(ours)} cross-attention layers and the U-Net has {len(theirs)}; they "
            f"differ in {sorted(ours ^ theirs)[0]!r}: build the space from this U-Net"
        )
    handles = []
    if space.num_stages > 1:
        hook = partial(_own_stages, space=space, length=space.num_layers * tokens)
        handles.append(model.register_forward_pre_hook(hook, with_kwargs=True))
    for cell, names in enumerate(space.cells):
        own_slice = partial(narrow, cell=cell, num_layers=space.num_layers, tokens=tokens)
        hook = partial(narrow_inputs, narrow=own_slice)
        for name in theirs.intersection(names):
            handles.append(model.get_submodule(name).register_forward_pre_hook(hook, with_kwargs=True))
    if compiled:
        # A compiled graph does not look for hooks that came after it.
        handles.append(_Reset())
        torch.compiler.reset()
    return Binding(handles)


def is_compiled(model: nn.Module) -> bool:
    """Whether `torch.compile` or `compile` was called on the model or on a part of it."""
    return hasattr(model, "_orig_mod") or any(
        getattr(module, "_compiled_call_impl", None) is not None for module in model.modules()
    )


class _Reset:
    """A handle whose removal lets everything compile again, without the hooks."""

    def remove(self) -> None:
        torch.compiler.reset()


def narrow(conditioning: Tensor, cell: int, num_layers: int, tokens: int = TOKENS) -> Tensor:
    """(B, T, D): one cell's rows of a packed conditioning, or the plain conditioning as it is."""
    length = conditioning.shape[1]
    if length == tokens:
        return conditioning
    if length != num_layers * tokens:
        raise UserError(
            f"the U-Net was given a conditioning of length {length}, but it is bound to {num_layers} layer "
            f"cells: expected {tokens} (plain) or {num_layers} x {tokens} = {num_layers * tokens} (packed); "
            "pack positive and negative prompt alike, and bind the space that the grid was made for"
        )
    return conditioning.narrow(1, cell * tokens, tokens)


def narrow_inputs(
    module: nn.Module, args: tuple, kwargs: dict, narrow: Callable[[Tensor], Tensor]
) -> tuple[tuple, dict]:
    """Forward pre-hook of an attention layer; `encoder_hidden_states` is its second argument or a keyword.

    With an image adapter the states are a pair of the text's and the image's; the text's are narrowed.
    """

    def own(states):
        return (narrow(states[0]), *states[1:]) if isinstance(states, tuple) else narrow(states)

    if len(args) > 1 and args[1] is not None:
        args = (args[0], own(args[1]), *args[2:])
    elif kwargs.get("encoder_hidden_states") is not None:
        kwargs = kwargs | {"encoder_hidden_states": own(kwargs["encoder_hidden_states"])}
    return args, kwargs


def _own_stages(
    module: nn.Module, args: tuple, kwargs: dict, space: ConditioningSpace, length: int
) -> tuple[tuple, dict]:
    """Forward pre-hook of a U-Net or ControlNet: from (B, S*L*T, D) the stage of every sample's timestep."""
    named = dict(zip(("sample", "timestep", "encoder_hidden_states"), args, strict=False)) | kwargs
    states = named["encoder_hidden_states"]
    if states.shape[1] != space.num_stages * length:
        return args, kwargs
    timestep = torch.as_tensor(named["timestep"], device=states.device)
    stage_B = space.stage_of(timestep).expand(len(states))
    own = states.unflatten(1, (space.num_stages, length))[torch.arange(len(states), device=states.device), stage_B]
    if len(args) > 2:
        return (*args[:2], own, *args[3:]), kwargs
    return args, kwargs | {"encoder_hidden_states": own}
