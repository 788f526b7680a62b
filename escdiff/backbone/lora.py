"""Low-rank adapters of a U-Net (PEFT; Hu et al. 2021, arXiv 2106.09685) and their files.

There is one layout, that of diffusers' `unet.save_lora_adapter`, so `unet.load_lora_adapter` reads every file of ours.
"""

import warnings
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

import safetensors.torch
import torch
from diffusers import UNet2DConditionModel
from diffusers.utils.torch_utils import unwrap_module
from peft import LoraConfig
from peft.tuners.lora import LoraLayer
from peft.utils import get_peft_model_state_dict
from safetensors import SafetensorError
from torch import Tensor, nn

from escdiff.support.errors import UserError
from escdiff.support.files import save_tensors


def lora_layers(unet: nn.Module) -> list[LoraLayer]:
    """PEFT's layers inside a U-Net."""
    return [module for module in unet.modules() if isinstance(module, LoraLayer)]


def lora_state(unet: nn.Module, name: str) -> dict[str, Tensor]:
    """The weights of one adapter, on the CPU, as `save_lora` writes them."""
    state = get_peft_model_state_dict(unet, adapter_name=name)
    return {key: value.detach().cpu().clone() for key, value in state.items()}


def save_lora(state: Mapping[str, Tensor], path: Path) -> None:
    """Write an adapter's weights, as `lora_state` gives them."""
    save_tensors(path, state, {"format": "pt"})


def read_lora(path: Path) -> dict[str, Tensor]:
    """Read an adapter's weights in float32.

    Raises:
        UserError: no such file, or a damaged one.
    """
    try:
        return {key: value.to(torch.float32) for key, value in safetensors.torch.load_file(path).items()}
    except (OSError, SafetensorError) as error:
        raise UserError(f"the adapter {path} cannot be read ({error}); copy or make it again") from error


def check_lora(unet: nn.Module, state: Mapping[str, Tensor], source: str | Path) -> None:
    """Refuse an adapter of another U-Net, before anything changes.

    Args:
        source: where the adapter is from, for the sentence.

    Raises:
        UserError: a layer that the U-Net lacks, or one of another size.
    """
    layers = dict(unet.named_modules())
    for key, value in state.items():
        name, _, part = key.partition(".lora_")
        layer = layers.get(name)
        if layer is None:
            what = f"this one has no {name}"
        else:
            weight = getattr(layer, "base_layer", layer).weight
            axis = 1 if part.startswith("A") else 0
            if value.shape[axis] == weight.shape[axis]:
                continue
            what = f"{name} has {weight.shape[axis]} channels there, the adapter {value.shape[axis]}"
        raise UserError(f"the adapter {source} is for another U-Net ({what}); use the backbone it was made with")


def put_lora(unet: nn.Module, name: str, state: Mapping[str, Tensor], source: str | Path) -> None:
    """Add an adapter under a name and make it the active one.

    Raises:
        UserError: see `check_lora`.
    """
    check_lora(unet, state, source)
    with _beside_others():
        unet.load_lora_adapter(dict(state), prefix=None, adapter_name=name)


def add_lora(unet: nn.Module, name: str, config: LoraConfig) -> None:
    """Add a new adapter under a name and make it the active one."""
    with _beside_others():
        unet.add_adapter(config, adapter_name=name)


@contextmanager
def _beside_others() -> Iterator[None]:
    """Adapters stand side by side here, of which PEFT warns whenever one is added to another."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "Already found a `peft_config`")
        yield


def without_adapters(unet: nn.Module) -> nn.Module:
    """The stock U-Net under what was put into another, LoRA, image adapter, gates or fused words, with its weights."""
    image = unet.config.get("encoder_hid_dim_type") == "ip_image_proj"  # as diffusers' loader leaves it
    with torch.device("meta"):
        plain = UNet2DConditionModel.from_config(unet.config, **({"encoder_hid_dim_type": None} if image else {}))
    stock, state = plain.state_dict().keys(), unwrap_module(unet).state_dict()
    if state.keys() == stock:
        return unet
    state = {key.replace(".base_layer.", "."): value for key, value in state.items()}
    plain.load_state_dict({key: state[key] for key in stock}, assign=True)
    return plain
