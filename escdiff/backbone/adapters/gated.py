"""Gated attention of every transformer block to a picture's patches, between its self- and its cross-attention.

`y = x + beta tanh(a) SA(LN[x, W p])`: InstantBooth's adapter (arXiv 2304.03411), in the form that diffusers ships as
GLIGEN's `attention_type="gated"`, whose U-Net calls `fuser` of a block with what `position_net` makes of the patches.
Theirs has a gated feed-forward besides; ours leaves it out, which its gate at 0 would do as well. At a = 0 the U-Net is
the stock one to the bit.

Legend: R rows of the U-Net's batch, N patches, W their width, D width of the text encoder.
"""

from collections.abc import Mapping
from pathlib import Path

import torch
from diffusers.models.attention import BasicTransformerBlock, GatedSelfAttentionDense
from torch import Tensor, nn

from escdiff.backbone.backbone import Backbone
from escdiff.backbone.weights import Weights
from escdiff.support.errors import UserError
from escdiff.support.files import save_tensors

GATES = "gated_attention.safetensors"
NET, GATE = "position_net", "fuser"  # as diffusers calls them
UNUSED = ("ff", "norm2", "alpha_dense")  # of diffusers' block


class Gate(GatedSelfAttentionDense):
    """diffusers' gated self-attention without its feed-forward; a row whose patches are all zero passes untouched.

    Attributes:
        beta: factor of the gate, 1 in training.
    """

    def __init__(self, block: BasicTransformerBlock, context: int) -> None:
        attention = block.attn1
        width = attention.query_dim
        super().__init__(width, context, attention.heads, attention.inner_dim // attention.heads)
        for name in UNUSED:
            delattr(self, name)
        self.beta = 1.0

    def forward(self, x: Tensor, objs: Tensor) -> Tensor:
        shown_R = objs.flatten(1).any(1)
        found = self.attn(self.norm1(torch.cat([x, self.linear(objs)], 1)))[:, : x.shape[1]]
        return torch.where(shown_R[:, None, None], x + self.beta * self.alpha_attn.tanh() * found, x)


class Patches(nn.Module):
    """A picture's patches as what the gates attend to: (R, N, W) -> (R, N, D), zero where all of a row's are."""

    def __init__(self, before: int, after: int) -> None:
        super().__init__()
        self.norm, self.linear = nn.LayerNorm(before), nn.Linear(before, after)

    def forward(self, patches: Tensor) -> Tensor:
        shown_R = patches.flatten(1).any(1)
        found = self.linear(self.norm(patches.to(self.linear.weight.dtype)))
        return found * shown_R[:, None, None].to(found)


class Gated(Weights):
    """New gates in every transformer block; they start as no change at all.

    Args:
        patches: W.
    """

    def __init__(self, backbone: Backbone, patches: int) -> None:
        self.unet = backbone.unet
        take_gates(self.unet)  # of an earlier method on this backbone
        _put(self.unet, patches, backbone.width)

    def parameters(self) -> list[nn.Parameter]:
        return [p for part in _parts(self.unet).values() for p in part.parameters()]

    def save(self, folder: Path) -> None:
        """Write the names that diffusers' U-Net of `attention_type="gated"` has."""
        parts = _parts(self.unet).items()
        state = {f"{name}.{key}": value for name, part in parts for key, value in part.state_dict().items()}
        save_tensors(folder / GATES, state, {"format": "pt"})

    def remove(self) -> None:
        take_gates(self.unet)


def is_gated(unet: nn.Module) -> bool:
    """Whether a U-Net takes patches through gates."""
    return isinstance(getattr(unet, NET, None), Patches)


def patches_argument(patches: Tensor) -> dict[str, dict[str, Tensor]]:
    """`cross_attention_kwargs` of a gated U-Net for patches (R, N, W); rows of zeros take none."""
    return {"gligen": {"patches": patches}}


def put_gates(unet: nn.Module, state: Mapping[str, Tensor], source: str | Path, beta: float = 1.0) -> None:
    """Give a U-Net gates, frozen.

    Raises:
        UserError: it has gates already, or these are another U-Net's.
    """
    if getattr(unet, NET, None) is not None:
        raise UserError(f"the U-Net has gated attention already, and {source} brings more; unload the other one")
    try:
        after, before = state[f"{NET}.linear.weight"].shape
        _put(unet, before, after)
        parts = _parts(unet)
        for name, part in parts.items():
            start = name + "."
            part.load_state_dict({k.removeprefix(start): v for k, v in state.items() if k.startswith(start)})
            part.requires_grad_(False).to(unet.device, unet.dtype)
        if len(state) != sum(len(part.state_dict()) for part in parts.values()):
            raise KeyError("a block that this U-Net lacks")
    except (KeyError, RuntimeError) as error:
        take_gates(unet)
        raise UserError(f"{source} is for another U-Net ({error}); use the backbone it was made for") from error
    set_beta(unet, beta)


def set_beta(unet: nn.Module, beta: float) -> None:
    """How much of the gated attention counts, 1 as trained."""
    for part in unet.modules():
        if isinstance(part, Gate):
            part.beta = beta


def take_gates(unet: nn.Module) -> None:
    """Take the gates out, if there are any."""
    if is_gated(unet):
        for name in _parts(unet):
            parent, _, child = name.rpartition(".")
            delattr(unet.get_submodule(parent), child)


def _put(unet: nn.Module, patches: int, context: int) -> None:
    for block in [part for part in unet.modules() if isinstance(part, BasicTransformerBlock)]:
        block.fuser = Gate(block, context).to(unet.device)
    unet.position_net = Patches(patches, context).to(unet.device)


def _parts(unet: nn.Module) -> dict[str, nn.Module]:
    """Name -> module of all that `_put` put in."""
    return {name: part for name, part in unet.named_modules() if isinstance(part, Gate | Patches)}
