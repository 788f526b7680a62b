"""The "shape diffusion model" and the "appearance diffusion model": two low-rank adapters over one frozen U-Net.

PEFT adapters named `shape` and `appearance` on the keys and values of every cross-attention (Hu et al. 2021, LoRA),
added and switched through diffusers' own interface, so community tools read them. They act on every token, or, routed,
each on the tokens of its own placeholder.
"""

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import partial
from pathlib import Path

import safetensors.torch
import torch
from peft import LoraConfig
from peft.tuners.lora import LoraLayer
from peft.utils import get_peft_model_state_dict, set_peft_model_state_dict
from torch import Tensor, nn

from escdiff.concept import ATTRIBUTES, token_masks
from escdiff.conditioning import PromptEncoder
from escdiff.errors import UserError


class Routing(nn.Module):
    """Lets adapters act at given token positions, and nowhere before they are given.

    What an adapter adds to keys and values is zero elsewhere, hence those are the stock ones to the bit. A child of the
    U-Net, without weights, so that whoever has the U-Net finds it and a copy of the U-Net has its own.

    Attributes:
        masks: adapter -> (B, T), 1 where it acts; B rows as the layers see their conditioning.
    """

    def __init__(self, unet: nn.Module, names: Sequence[str]) -> None:
        super().__init__()
        self.masks: dict[str, Tensor] = {}
        for layer in [layer for layer in unet.modules() if isinstance(layer, LoraLayer)]:
            for name in set(names) & set(layer.lora_A):
                layer.lora_A[name].register_forward_hook(partial(self._limit, name))

    def _limit(self, name: str, module: nn.Module, args: tuple, output_BTR: Tensor) -> Tensor:
        if name not in self.masks:
            return torch.zeros_like(output_BTR)
        return output_BTR * self.masks[name].to(output_BTR)[..., None]


def route(
    unet: nn.Module, prompts: PromptEncoder, texts: Sequence[str], counts: Mapping[str, int], guided: bool = False
) -> None:
    """Let routed branches act at the placeholders of B texts from now on; for any other U-Net, nothing.

    Args:
        counts: placeholder -> K.
        guided: the texts' rows follow as many without a text (classifier-free guidance), where no branch acts.
    """
    if routing := getattr(unet, "routing", None):
        masks = token_masks(prompts, texts, counts)
        routing.masks = {a: torch.cat([torch.zeros_like(m), m]) for a, m in masks.items()} if guided else masks


def unroute(unet: nn.Module) -> None:
    """Let routed branches act nowhere."""
    if routing := getattr(unet, "routing", None):
        routing.masks = {}


@contextmanager
def routed(unet: nn.Module, *args, **kwargs) -> Iterator[None]:
    """`route` as long as this stands."""
    route(unet, *args, **kwargs)
    try:
        yield
    finally:
        unroute(unet)


def add_branches(unet: nn.Module, rank: int = 4, names: tuple[str, ...] = ATTRIBUTES, routed: bool = False) -> None:
    """Add one adapter per name, all of them active. They start as no change at all.

    Args:
        routed: they act where `route` says, and nowhere before.
    """
    for name in names:
        config = LoraConfig(
            r=rank, lora_alpha=rank, target_modules=r".*\.attn2\.to_(k|v)", init_lora_weights="gaussian"
        )
        unet.add_adapter(config, adapter_name=name)
    set_branches(unet, dict.fromkeys(names, 1.0))
    if routed:
        unet.routing = Routing(unet, names)


def set_branches(unet: nn.Module, weights: Mapping[str, float]) -> None:
    """Switch adapters: only those named are active, each with its weight; an empty mapping switches all off."""
    active = {name: float(weight) for name, weight in weights.items() if weight}
    if active:
        unet.enable_adapters()
        unet.set_adapters(list(active), list(active.values()))
    else:
        unet.disable_adapters()


def branch_parameters(unet: nn.Module, name: str) -> Iterator[nn.Parameter]:
    """The weights of one adapter."""
    return (p for key, p in unet.named_parameters() if ".lora_" in key and f".{name}." in key)


def remove_branches(unet: nn.Module, names: tuple[str, ...] = ATTRIBUTES) -> None:
    """Take the adapters out; the U-Net is the stock one again."""
    unet.delete_adapters(list(names))
    if hasattr(unet, "routing"):
        del unet.routing


def save_branches(unet: nn.Module, folder: Path, names: tuple[str, ...] = ATTRIBUTES) -> None:
    """Write `{name}.safetensors` per adapter."""
    folder.mkdir(parents=True, exist_ok=True)
    for name in names:
        state = get_peft_model_state_dict(unet, adapter_name=name)
        state = {key: value.detach().cpu().contiguous() for key, value in state.items()}
        rank = next(value.shape[0] for key, value in state.items() if "lora_A" in key)
        safetensors.torch.save_file(state, folder / f"{name}.safetensors", {"rank": str(rank)})


def load_branches(unet: nn.Module, folder: Path, names: tuple[str, ...] = ATTRIBUTES, routed: bool = False) -> None:
    """Add the adapters of `folder` to a U-Net, see `add_branches`.

    Raises:
        UserError: they are of another U-Net.
    """
    for name in names:
        path = folder / f"{name}.safetensors"
        state = safetensors.torch.load_file(path)
        rank = next(value.shape[0] for key, value in state.items() if "lora_A" in key)
        add_branches(unet, rank, (name,))
        try:
            problems = set_peft_model_state_dict(unet, state, adapter_name=name)
        except RuntimeError:
            problems = None
        if problems is None or problems.unexpected_keys:
            remove_branches(unet, (name,))
            raise UserError(f"the branch {path} was trained for another U-Net; use the backbone its encoder names")
    set_branches(unet, dict.fromkeys(names, 1.0))
    if routed:
        unet.routing = Routing(unet, names)
