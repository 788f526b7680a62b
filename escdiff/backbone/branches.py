"""The "shape diffusion model" and the "appearance diffusion model": two low-rank adapters over one frozen U-Net.

PEFT adapters named `shape` and `appearance` on the keys and values of every cross-attention (Hu et al. 2021, LoRA),
added and switched through diffusers' own interface, so community tools read them. They act on every token, or, routed,
each on the tokens of its own placeholder.
"""

import hashlib
import logging
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cached_property, partial
from pathlib import Path

import torch
from peft import LoraConfig
from torch import Tensor, nn

from escdiff.backbone.lora import add_lora, check_lora, lora_layers, lora_state, put_lora, read_lora, save_lora
from escdiff.concept import ATTRIBUTES, Concept
from escdiff.conditioning.acting import current_masks
from escdiff.support.errors import UserError

log = logging.getLogger(__name__)


class Routing(nn.Module):
    """Lets adapters act at the tokens of their own placeholder, and nowhere before somebody says where these stand.

    What an adapter adds to keys and values is zero elsewhere, hence those are the stock ones to the bit. Where they act
    is said to each cross-attention layer as it runs, in its own thread (`escdiff.conditioning.acting`): by the header
    of a packed conditioning in a bound U-Net, by `LayerFeed` in training. A child of the U-Net, without weights, so
    that whoever has the U-Net sees that it is routed and a copy of the U-Net is routed too.
    """

    def __init__(self, unet: nn.Module, names: Sequence[str]) -> None:
        super().__init__()
        for layer in lora_layers(unet):
            for name in set(names) & set(layer.lora_A):
                layer.lora_A[name].register_forward_hook(partial(_limit, ATTRIBUTES.index(name)))


def _limit(attribute: int, module: nn.Module, args: tuple, output_BTR: Tensor) -> Tensor:
    masks = current_masks()
    if masks is None:
        return torch.zeros_like(output_BTR)
    return output_BTR * masks[:, attribute].to(output_BTR)[..., None]


def is_routed(unet: nn.Module) -> bool:
    """Whether the U-Net has branches that act at placeholders only."""
    return hasattr(unet, "routing")


def add_branches(unet: nn.Module, rank: int = 4, names: tuple[str, ...] = ATTRIBUTES, routed: bool = False) -> None:
    """Add one adapter per name, all of them active and to be trained. They start as no change at all.

    Args:
        routed: they act at their placeholders only, see `Routing`.
    """
    for name in names:
        config = LoraConfig(
            r=rank, lora_alpha=rank, target_modules=r".*\.attn2\.to_(k|v)", init_lora_weights="gaussian"
        )
        add_lora(unet, name, config)
    set_branches(unet, dict.fromkeys(names, 1.0))
    for parameter in (p for name in names for p in branch_parameters(unet, name)):
        parameter.requires_grad_(True)
    if routed:
        unet.routing = Routing(unet, names)


def set_branches(unet: nn.Module, weights: Mapping[str, float]) -> None:
    """Switch adapters: only those named are active, each with its weight; an empty mapping switches all off.

    Adapters that come later act, whatever was switched off.
    """
    active = {name: float(weight) for name, weight in weights.items() if weight}
    with training_kept(unet):
        unet.enable_adapters()
        if active:
            unet.set_adapters(list(active), list(active.values()))
        else:
            for layer in lora_layers(unet):
                layer.set_adapter([])


@contextmanager
def training_kept(unet: nn.Module) -> Iterator[None]:
    """What requires gradients does so again afterwards, and nothing else; PEFT trains whatever it makes active."""
    trained = {parameter for parameter in unet.parameters() if parameter.requires_grad}
    try:
        yield
    finally:
        for parameter in unet.parameters():
            parameter.requires_grad_(parameter in trained)


def branch_parameters(unet: nn.Module, name: str) -> Iterator[nn.Parameter]:
    """The weights of one adapter."""
    return (p for key, p in unet.named_parameters() if ".lora_" in key and f".{name}." in key)


def delete_adapters(unet: nn.Module, names: Sequence[str]) -> None:
    """Take adapters out, as far as they are there; with the last one PEFT's layers go too, and no trace remains.

    Of the others those that were active are so afterwards, and no more.
    """
    there = [name for name in names if name in getattr(unet, "peft_config", {})]
    if there and set(there) == set(unet.peft_config):
        unet.unload_lora()
    elif there:
        with training_kept(unet):
            for layer in lora_layers(unet):  # or PEFT makes another one active in their place, and says so
                layer.set_adapter([name for name in layer.active_adapters if name not in there])
        unet.delete_adapters(there)


def remove_branches(unet: nn.Module) -> None:
    """Take the adapters out; without others the U-Net is the stock one again, its modules' names included."""
    delete_adapters(unet, ATTRIBUTES)
    for mark in ("routing", "branch_hash"):
        if hasattr(unet, mark):
            delattr(unet, mark)


@dataclass(frozen=True, eq=False)
class Branches:
    """The weights of an encoder's branches, apart from any U-Net.

    Attributes:
        states: attribute -> an adapter's weights, see `escdiff.backbone.lora`.
        routed: whether each acts on the tokens of its own placeholder only.
        source: where they are from, for errors.
    """

    states: Mapping[str, Mapping[str, Tensor]]
    routed: bool = False
    source: str = "of the encoder"

    @classmethod
    def of(cls, unet: nn.Module, names: tuple[str, ...] = ATTRIBUTES) -> "Branches":
        """A copy of those in a U-Net."""
        return cls({name: lora_state(unet, name) for name in names}, hasattr(unet, "routing"))

    @classmethod
    def read(cls, folder: Path, routed: bool = False, names: tuple[str, ...] = ATTRIBUTES) -> "Branches":
        """Read `{name}.safetensors` per adapter.

        Raises:
            UserError: one is missing or damaged.
        """
        return cls({name: read_lora(folder / f"{name}.safetensors") for name in names}, routed, str(folder))

    @cached_property
    def hash(self) -> str:
        """Of the weights' values, whatever type they are stored in."""
        digest = hashlib.sha256()
        for name, state in sorted(self.states.items()):
            for key, value in sorted(state.items()):
                digest.update(f"{name} {key} {tuple(value.shape)}".encode())
                digest.update(value.float().numpy().tobytes())
        return digest.hexdigest()[:16]

    def save(self, folder: Path) -> None:
        """Write `{name}.safetensors` per adapter, which `unet.load_lora_adapter(..., prefix=None)` reads too."""
        for name, state in self.states.items():
            save_lora(state, folder / f"{name}.safetensors")

    def put(self, unet: nn.Module) -> None:
        """Give them to a U-Net, frozen and all of them active, in place of branches that it has.

        Raises:
            UserError: they are of another U-Net, which stays as it was.
        """
        for state in self.states.values():
            check_lora(unet, state, self.source)
        names = tuple(self.states)
        with training_kept(unet):
            remove_branches(unet)
            for name, state in self.states.items():
                put_lora(unet, name, state, self.source)
            set_branches(unet, dict.fromkeys(names, 1.0))
        if self.routed:
            unet.routing = Routing(unet, names)
        unet.branch_hash = self.hash


def hash_of(unet: nn.Module) -> str | None:
    """`Branches.hash` of what a U-Net has; "" for branches that are being trained, None for a U-Net without."""
    has_some = set(ATTRIBUTES) & set(getattr(unet, "peft_config", {}))
    return getattr(unet, "branch_hash", "") if has_some else None


def _act(unet: nn.Module) -> bool:
    """Whether a branch is switched on."""
    layers = lora_layers(unet)
    return any(set(ATTRIBUTES) & set(layer.active_adapters) and not layer.disable_adapters for layer in layers)


def check_branches(unet: nn.Module, concept: Concept) -> None:
    """Refuse a concept whose encoder has branches, unless the U-Net has the same; warn of some that act on another's.

    Raises:
        UserError: says which encoder's branches are needed.
    """
    there, needed = hash_of(unet), concept.branches.get("hash")
    if needed is None:
        if _act(unet):
            log.warning("the U-Net has an encoder's branches, which act on a concept that was made without them")
        return
    if there is not None and needed in ("", there):
        return
    what = f"the concept needs the branches of the encoder {concept.branches['encoder']!r} ({needed or 'unnamed'})"
    has = "none" if there is None else f"others ({there or 'being trained'})"
    raise UserError(f"{what}, the U-Net has {has}; load them first: encoder=DIR, or escdiff.load_branches(pipe, DIR)")
