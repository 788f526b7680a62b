"""Give every cross-attention layer of a stock U-Net its own slice of a packed conditioning.

Legend: B batch, L layer cell, T token position, D width of the text encoder, H rows of the header.
"""

from collections.abc import Callable
from functools import partial

import torch
from diffusers.utils.torch_utils import unwrap_module
from torch import Tensor, nn

from escdiff.conditioning.acting import set_masks
from escdiff.conditioning.header import header_rows, read_masks
from escdiff.conditioning.space import ConditioningSpace, cross_attention_layers
from escdiff.support.errors import UserError

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

    It may be packed over layers, (B, L*T + H, D), or over stages too, (B, S*L*T + H, D): then every sample's timestep
    chooses its stage, so no callback is needed. Any other conditioning passes unchanged, plain (B, T, D) or longer, so
    a bound U-Net still serves stock prompts and other tools. Every layer's index is fixed here by its name: a call
    counter would be wrong under gradient checkpointing.

    Routed branches of the model act where the header says, see `escdiff.backbone.branches`.

    Args:
        tokens: T, the token positions of one cell.
        whole: expect all of the space's layers. A ControlNet has those of the U-Net's first half, by the same names.

    Raises:
        UserError: the space's layers are not this model's; later, in the forward pass, a conditioning that was packed
            for another space.
    """
    model, compiled = unwrap_module(model), is_compiled(model)
    ours, theirs = set(space.layer_names), set(cross_attention_layers(model))
    if theirs - ours or (whole and ours != theirs):
        raise UserError(
            f"the space names {len(ours)} cross-attention layers and the U-Net has {len(theirs)}; they "
            f"differ in {sorted(ours ^ theirs)[0]!r}: build the space from this U-Net"
        )
    handles = []
    if space.num_stages > 1:
        hook = partial(_own_stages, space=space, length=space.num_layers * tokens, tokens=tokens)
        handles.append(model.register_forward_pre_hook(hook, with_kwargs=True))
    for cell, names in enumerate(space.cells):
        own_slice = partial(narrow, cell=cell, num_layers=space.num_layers, tokens=tokens)
        hook = partial(narrow_inputs, narrow=own_slice)
        for name in theirs.intersection(names):
            layer = model.get_submodule(name)
            if hasattr(model, "routing"):
                length = space.num_layers * tokens
                handles.append(layer.register_forward_pre_hook(partial(_say_where, length, tokens), with_kwargs=True))
                handles.append(layer.register_forward_hook(forget_where, always_call=True))
            handles.append(layer.register_forward_pre_hook(hook, with_kwargs=True))
    return Binding([*handles, *forget_compiled(compiled)])


def is_compiled(model: nn.Module) -> bool:
    """Whether `torch.compile` or `compile` was called on the model or on a part of it."""
    return unwrap_module(model) is not model or any(
        getattr(module, "_compiled_call_impl", None) is not None for module in model.modules()
    )


def forget_compiled(compiled: bool) -> list:
    """Let a compiled model compile again, since its graph does not look for hooks that came after it.

    Returns:
        A handle that does the same when the hooks are gone; none for a model that is not compiled.
    """
    if not compiled:
        return []
    torch.compiler.reset()
    return [_Reset()]


class _Reset:
    """A handle whose removal lets everything compile again, without the hooks."""

    def remove(self) -> None:
        torch.compiler.reset()


def narrow(conditioning: Tensor, cell: int, num_layers: int, tokens: int = TOKENS) -> Tensor:
    """(B, T, D): one cell's rows of a packed conditioning; any other conditioning as it is.

    Raises:
        UserError: it was packed for another number of cells.
    """
    length, rows = conditioning.shape[1], header_rows(tokens, conditioning.shape[2])
    if length == num_layers * tokens + rows:
        return conditioning.narrow(1, cell * tokens, tokens)
    if length > rows and (length - rows) % tokens == 0 and rows % tokens:
        raise UserError(
            f"the U-Net was given a conditioning of {(length - rows) // tokens} packed cells, but it is bound to "
            f"{num_layers} layer cells; bind the space that the grid was made for"
        )
    return conditioning


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


def _say_where(length: int, tokens: int, module: nn.Module, args: tuple, kwargs: dict) -> None:
    """Forward pre-hook of an attention layer: tell its routed adapters what the header says."""
    states = args[1] if len(args) > 1 else kwargs.get("encoder_hidden_states")
    states = states[0] if isinstance(states, tuple) else states
    packed = states is not None and states.shape[1] == length + header_rows(tokens, states.shape[2])
    set_masks(read_masks(states, tokens) if packed else None)


def forget_where(*_) -> None:
    """Forward hook of an attention layer: adapters act nowhere until the next one says where."""
    set_masks(None)


def _own_stages(
    module: nn.Module, args: tuple, kwargs: dict, space: ConditioningSpace, length: int, tokens: int
) -> tuple[tuple, dict]:
    """Forward pre-hook of a U-Net or ControlNet: from (B, S*L*T + H, D) the stage of every sample's timestep."""
    named = dict(zip(("sample", "timestep", "encoder_hidden_states"), args, strict=False)) | kwargs
    states = named["encoder_hidden_states"]
    cells = space.num_stages * length
    if states.shape[1] != cells + header_rows(tokens, states.shape[2]):
        return args, kwargs
    timestep = torch.as_tensor(named["timestep"], device=states.device)
    stage_B = space.stage_of(timestep).expand(len(states))
    staged = states[:, :cells].unflatten(1, (space.num_stages, length))
    own = staged[torch.arange(len(states), device=states.device), stage_B]
    own = torch.cat([own, states[:, cells:]], 1)
    if len(args) > 2:
        return (*args[:2], own, *args[3:]), kwargs
    return args, kwargs | {"encoder_hidden_states": own}
