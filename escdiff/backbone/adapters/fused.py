"""f of the placement "fused" (`escdiff.conditioning.fuse`), which travels with a U-Net that was trained beside it.

It is a child of the U-Net, so that whoever has the U-Net finds it and both move and are cast together; the U-Net's own
forward pass does not call it.
"""

from collections.abc import Mapping
from pathlib import Path

from torch import Tensor, nn

from escdiff.backbone.backbone import Backbone
from escdiff.backbone.weights import Weights
from escdiff.conditioning.fuse import Fuse
from escdiff.support.errors import UserError
from escdiff.support.files import save_tensors

FUSE = "fuse.safetensors"
CHILD = "fuse"


class Fused(Weights):
    """A new f for embeddings of a width."""

    def __init__(self, backbone: Backbone, embedding: int) -> None:
        self.unet = backbone.unet
        take_fuse(self.unet)  # of an earlier method on this backbone
        self.unet.fuse = Fuse(backbone.width, embedding).to(self.unet.device)

    def parameters(self) -> list[nn.Parameter]:
        return list(self.unet.fuse.parameters())

    def save(self, folder: Path) -> None:
        save_tensors(folder / FUSE, self.unet.fuse.state_dict(), {"format": "pt"})

    def remove(self) -> None:
        take_fuse(self.unet)


def fuse_of(unet: nn.Module) -> Fuse | None:
    """The f that a U-Net carries."""
    return getattr(unet, CHILD, None)


def put_fuse(unet: nn.Module, state: Mapping[str, Tensor], source: str | Path) -> None:
    """Give a U-Net an f, frozen.

    Raises:
        UserError: it has another one, or the state is no f's, or one of another text width.
    """
    if fuse_of(unet) is not None:
        raise UserError(f"the U-Net has fused words already, and {source} brings others; unload the other one")
    try:
        width = len(state["norm.weight"])
        fuse = Fuse(width, len(state["join.0.weight"]) - width)
        fuse.load_state_dict(state)
    except (KeyError, RuntimeError) as error:
        raise UserError(f"{source} holds no fused words ({error}); copy or make it again") from error
    if width != (text := unet.config.cross_attention_dim):
        what = f"{source} fuses words of width {width}, and this U-Net reads words of width {text}"
        raise UserError(f"{what}; paint with the backbone that it was trained on")
    unet.fuse = fuse.requires_grad_(False).to(unet.device)


def take_fuse(unet: nn.Module) -> None:
    """Take f out, if there is one."""
    if fuse_of(unet) is not None:
        delattr(unet, CHILD)
