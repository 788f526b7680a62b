"""The "shape diffusion model" and the "appearance diffusion model": two low-rank adapters over one frozen U-Net.

PEFT adapters named `shape` and `appearance` on the keys and values of every cross-attention (Hu et al. 2021, LoRA),
added and switched through diffusers' own interface, so community tools read them.
"""

from collections.abc import Iterator, Mapping
from pathlib import Path

import safetensors.torch
from peft import LoraConfig
from peft.utils import get_peft_model_state_dict, set_peft_model_state_dict
from torch import nn

from escdiff.concept import ATTRIBUTES
from escdiff.errors import UserError


def add_branches(unet: nn.Module, rank: int = 4, names: tuple[str, ...] = ATTRIBUTES) -> None:
    """Add one adapter per name, all of them active. They start as no change at all."""
    for name in names:
        config = LoraConfig(
            r=rank, lora_alpha=rank, target_modules=r".*\.attn2\.to_(k|v)", init_lora_weights="gaussian"
        )
        unet.add_adapter(config, adapter_name=name)
    set_branches(unet, dict.fromkeys(names, 1.0))


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


def save_branches(unet: nn.Module, folder: Path, names: tuple[str, ...] = ATTRIBUTES) -> None:
    """Write `{name}.safetensors` per adapter."""
    folder.mkdir(parents=True, exist_ok=True)
    for name in names:
        state = get_peft_model_state_dict(unet, adapter_name=name)
        state = {key: value.detach().cpu().contiguous() for key, value in state.items()}
        rank = next(value.shape[0] for key, value in state.items() if "lora_A" in key)
        safetensors.torch.save_file(state, folder / f"{name}.safetensors", {"rank": str(rank)})


def load_branches(unet: nn.Module, folder: Path, names: tuple[str, ...] = ATTRIBUTES) -> None:
    """Add the adapters of `folder` to a U-Net.

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
