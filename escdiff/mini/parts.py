"""The bundled model's architecture, in one table, and the folder it is stored in.

Stable Diffusion's exact structure at a size that two CPU cores can train; why these sizes: docs/decisions.md.
Every function builds a freshly initialised part.
"""

from functools import cache
from pathlib import Path

import torch
from diffusers import AutoencoderKL, DDIMScheduler, UNet2DConditionModel
from torch import nn
from transformers import CLIPConfig, CLIPModel, CLIPTextConfig, CLIPTokenizer, CLIPVisionConfig

from escdiff.backbone import mini_folder
from escdiff.support.files import keep_umask

SIZE = 128  # pixels
LENGTH = 48  # tokens of a prompt; the longest caption has 47, and every layer pays for each
LATENT_CHANNELS = 8  # four cannot hold small patterns at 128 pixels
WIDTH = 128  # of the text encoder, hence of the cross-attention
VAE_CHANNELS = (16, 32, 64, 128)
UNET_CHANNELS, UNET_HEADS = (64, 128, 128, 128), (2, 4, 4, 4)


def make_tokenizer(length: int = 77) -> CLIPTokenizer:
    """CLIP's byte-pair vocabulary as a transformers tokenizer, from the file that open_clip ships (no network).

    Args:
        length: tokens of a prompt, start and end included.
    """
    vocabulary, merges = _vocabulary()
    return CLIPTokenizer(vocab=dict(vocabulary), merges=list(merges), model_max_length=length)


@cache
def _vocabulary() -> tuple[dict[str, int], list[tuple[str, str]]]:
    """Token -> number, and the merges in order, read and sorted once: that takes longer than making a tokenizer."""
    from open_clip.tokenizer import SimpleTokenizer

    source = SimpleTokenizer()
    merges = [pair for pair, _ in sorted(source.bpe_ranks.items(), key=lambda item: item[1])]
    vocabulary = {
        {"<start_of_text>": "<|startoftext|>", "<end_of_text>": "<|endoftext|>"}.get(token, token): number
        for token, number in source.encoder.items()
    }
    return vocabulary, merges


def make_clip() -> CLIPModel:
    """Both towers of CLIP, the text tower with real CLIP's vocabulary."""
    text = CLIPTextConfig(
        hidden_size=WIDTH, intermediate_size=4 * WIDTH, num_hidden_layers=3, num_attention_heads=4,
        projection_dim=WIDTH, max_position_embeddings=77, vocab_size=49408, hidden_act="quick_gelu",
        bos_token_id=49406, eos_token_id=49407, pad_token_id=49407,
    )  # fmt: skip
    vision = CLIPVisionConfig(
        hidden_size=256, intermediate_size=1024, num_hidden_layers=4, num_attention_heads=8,
        projection_dim=WIDTH, image_size=SIZE, patch_size=16, hidden_act="quick_gelu",
    )  # fmt: skip
    return CLIPModel(CLIPConfig(text_config=text.to_dict(), vision_config=vision.to_dict(), projection_dim=WIDTH))


def make_vae() -> AutoencoderKL:
    """f=8. Every ResNet block's second convolution starts at zero: the network starts as a linear chain."""
    vae = AutoencoderKL(
        in_channels=3, out_channels=3, latent_channels=LATENT_CHANNELS, sample_size=SIZE,
        down_block_types=("DownEncoderBlock2D",) * 4, up_block_types=("UpDecoderBlock2D",) * 4,
        block_out_channels=VAE_CHANNELS, layers_per_block=1, norm_num_groups=8,
        mid_block_add_attention=False, scaling_factor=1.0,
    )  # fmt: skip
    for name, parameter in vae.named_parameters():
        if name.endswith(("conv2.weight", "conv2.bias")):
            nn.init.zeros_(parameter)
    return vae


def make_unet() -> UNet2DConditionModel:
    """Stable Diffusion's block types and 16 cross-attention layers (`attention_head_dim` is the number of heads).

    Every residual branch starts at zero, as in the original code of latent diffusion; diffusers, made to load
    trained weights, leaves that out.
    """
    unet = UNet2DConditionModel(
        sample_size=SIZE // 8, in_channels=LATENT_CHANNELS, out_channels=LATENT_CHANNELS,
        down_block_types=("CrossAttnDownBlock2D",) * 3 + ("DownBlock2D",),
        up_block_types=("UpBlock2D",) + ("CrossAttnUpBlock2D",) * 3,
        block_out_channels=UNET_CHANNELS, attention_head_dim=UNET_HEADS, layers_per_block=2,
        cross_attention_dim=WIDTH, norm_num_groups=16,
    )  # fmt: skip
    for name, parameter in unet.named_parameters():
        if name.endswith(("conv2.weight", "conv2.bias", "proj_out.weight", "proj_out.bias")):
            nn.init.zeros_(parameter)
    return unet


def make_scheduler() -> DDIMScheduler:
    """SD's noise schedule, ending in pure noise (Lin et al. 2023, arXiv 2305.08891), hence v-prediction."""
    return DDIMScheduler(
        num_train_timesteps=1000, beta_schedule="scaled_linear", beta_start=0.00085, beta_end=0.012,
        prediction_type="v_prediction", rescale_betas_zero_snr=True, timestep_spacing="trailing",
        clip_sample=False, set_alpha_to_one=True, steps_offset=1,
    )  # fmt: skip


def part(folder: Path, name: str) -> Path:
    """Folder of a part: `folder` if an earlier training exported it there, else the bundled model."""
    return folder / name if (folder / name).is_dir() else mini_folder() / name


def save_half(module: nn.Module, folder: Path) -> None:
    """Write a part as float16 safetensors, leaving the module's own weights as they are."""
    state = {name: tensor.detach().clone() for name, tensor in module.state_dict().items()}
    dtypes = {name: tensor.dtype for name, tensor in state.items()}
    module.half().save_pretrained(folder, safe_serialization=True)
    keep_umask(folder)
    module.to(next(iter(dtypes.values())) if dtypes else torch.float32)
    module.load_state_dict(state)
