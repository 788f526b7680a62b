"""Stable Diffusion 1.5 and CLIP ViT-L/14 at their real sizes, without anybody's weights.

As shapes alone ("meta" tensors, for counting), or with random weights on disk (for running).
"""

from pathlib import Path

import torch
from diffusers import AutoencoderKL, ModelMixin, UNet2DConditionModel
from torch import nn
from transformers import AutoConfig, CLIPTextModel, CLIPVisionConfig, CLIPVisionModel

from escdiff.backbone.identify import ARCHITECTURES
from escdiff.mini.parts import make_tokenizer

SD15 = ARCHITECTURES / "sd15"
VIT_L = {"hidden_size": 1024, "intermediate_size": 4096, "num_hidden_layers": 24, "num_attention_heads": 16,
         "image_size": 224, "patch_size": 14, "projection_dim": 768, "hidden_act": "quick_gelu"}  # fmt: skip


def shapes() -> dict[str, nn.Module]:
    """Folder in a diffusers pipeline -> part of SD 1.5, and "vision", OpenAI's ViT-L/14; on the "meta" device."""
    diffusers: dict[str, type[ModelMixin]] = {"unet": UNet2DConditionModel, "vae": AutoencoderKL}
    with torch.device("meta"):
        parts = {name: kind.from_config(kind.load_config(SD15, subfolder=name)) for name, kind in diffusers.items()}
        parts["text_encoder"] = CLIPTextModel(AutoConfig.from_pretrained(SD15 / "text_encoder"))
        parts["vision"] = CLIPVisionModel(CLIPVisionConfig(**VIT_L))
    return {name: part.requires_grad_(False).eval() for name, part in parts.items()}


def write_random(folder: Path) -> tuple[Path, Path]:
    """A diffusers folder in float16, as it is on the hub, and a tower's folder in float32; returns both."""
    backbone, tower = folder / "sd15", folder / "vit-l-14"
    for name, part in shapes().items():
        dtype, place = (torch.float32, tower) if name == "vision" else (torch.float16, backbone / name)
        filled(nn.Module.to(part, dtype)).save_pretrained(place)  # without the advice that diffusers adds
    make_tokenizer().save_pretrained(backbone / "tokenizer")
    for name in ("scheduler/scheduler_config.json", "model_index.json"):
        (backbone / name).parent.mkdir(exist_ok=True)
        (backbone / name).write_bytes((SD15 / name).read_bytes())
    return backbone, tower


def filled(part: nn.Module) -> nn.Module:
    """Random weights, of the size that PyTorch's layers start with, for a module on the "meta" device."""
    part.to_empty(device="cpu")
    for name, parameter in part.named_parameters():
        if parameter.ndim > 1:
            bound = parameter[0].numel() ** -0.5
            nn.init.uniform_(parameter, -bound, bound)
        else:
            nn.init.constant_(parameter, float(name.endswith("weight")))  # norms
    return part
