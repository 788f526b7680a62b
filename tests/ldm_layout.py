"""Writes a tiny backbone as the single file in which Stable Diffusion was first released (CompVis keys)."""

import re
from pathlib import Path

from safetensors.torch import save_file

LAYERS = 3  # positions per block: two layers and a down- or upsampler

UNET = [
    (r"^conv_in\.", "input_blocks.0.0."),
    (r"^time_embedding\.linear_1\.", "time_embed.0."),
    (r"^time_embedding\.linear_2\.", "time_embed.2."),
    (r"^conv_norm_out\.", "out.0."),
    (r"^conv_out\.", "out.2."),
    (r"^mid_block\.resnets\.0\.", "middle_block.0."),
    (r"^mid_block\.attentions\.0\.", "middle_block.1."),
    (r"^mid_block\.resnets\.1\.", "middle_block.2."),
    (
        r"^down_blocks\.(\d)\.resnets\.(\d)\.",
        lambda m: f"input_blocks.{1 + LAYERS * int(m[1]) + int(m[2])}.0.",
    ),
    (
        r"^down_blocks\.(\d)\.attentions\.(\d)\.",
        lambda m: f"input_blocks.{1 + LAYERS * int(m[1]) + int(m[2])}.1.",
    ),
    (
        r"^down_blocks\.(\d)\.downsamplers\.0\.conv\.",
        lambda m: f"input_blocks.{LAYERS * (int(m[1]) + 1)}.0.op.",
    ),
    (r"^up_blocks\.(\d)\.resnets\.(\d)\.", lambda m: f"output_blocks.{LAYERS * int(m[1]) + int(m[2])}.0."),
    (r"^up_blocks\.(\d)\.attentions\.(\d)\.", lambda m: f"output_blocks.{LAYERS * int(m[1]) + int(m[2])}.1."),
    (r"^up_blocks\.0\.upsamplers\.0\.conv\.", "output_blocks.2.1.conv."),
    (r"^up_blocks\.(\d)\.upsamplers\.0\.conv\.", lambda m: f"output_blocks.{LAYERS * int(m[1]) + 2}.2.conv."),
]
RESNET = [
    (r"\.norm1\.", ".in_layers.0."), (r"\.conv1\.", ".in_layers.2."),
    (r"\.norm2\.", ".out_layers.0."), (r"\.conv2\.", ".out_layers.3."),
    (r"\.time_emb_proj\.", ".emb_layers.1."), (r"\.conv_shortcut\.", ".skip_connection."),
]  # fmt: skip
VAE = [
    (r"down_blocks\.(\d)\.resnets\.", r"down.\1.block."),
    (r"down_blocks\.(\d)\.downsamplers\.0\.", r"down.\1.downsample."),
    (r"up_blocks\.(\d)\.resnets\.", lambda m: f"up.{3 - int(m[1])}.block."),
    (r"up_blocks\.(\d)\.upsamplers\.0\.", lambda m: f"up.{3 - int(m[1])}.upsample."),
    (r"mid_block\.resnets\.(\d)\.", lambda m: f"mid.block_{int(m[1]) + 1}."),
    (r"mid_block\.attentions\.0\.", "mid.attn_1."),
    (r"\.group_norm\.", ".norm."), (r"\.to_([qkv])\.", r".\1."), (r"\.to_out\.0\.", ".proj_out."),
    (r"\.conv_shortcut\.", ".nin_shortcut."), (r"\.conv_norm_out\.", ".norm_out."),
]  # fmt: skip


def rename(key: str, rules) -> str:
    for pattern, replacement in rules:
        key = re.sub(pattern, replacement, key)
    return key


def unet_key(key: str) -> str:
    inside_resnet = ".resnets." in key
    key = rename(key, UNET)
    return "model.diffusion_model." + (rename(key, RESNET) if inside_resnet else key)


def save_single_file(backbone, path: Path) -> None:
    parts = [
        (backbone.unet, unet_key),
        (backbone.vae, lambda key: "first_stage_model." + rename(key, VAE)),
        (backbone.text_encoder, lambda key: "cond_stage_model.transformer.text_model." + key),
    ]
    tensors = {
        name(key): value.clone().contiguous() for part, name in parts for key, value in part.state_dict().items()
    }
    save_file(tensors, path)
