"""A backbone's VAE: encoding pictures takes neither its denoiser nor its text encoders.

Legend: B batch, C latent channels, h, w latent height and width (H, W divided by the VAE's factor).
"""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import diffusers
import torch
from diffusers import AutoencoderKL
from torch import Tensor, nn

from escdiff.backbone.identify import cannot_load, read_blueprint
from escdiff.support.errors import UserError

CERTAIN = -30.0  # log-variance


def load_vae_encoder(name: str | Path = "mini", dtype: torch.dtype = torch.float32, **options) -> nn.Module:
    """The encoding half of a backbone's VAE, frozen and in evaluation mode.

    Args:
        name: see `escdiff.backbone.load_backbone`.
        options: for `read_blueprint`, such as `revision` and `local_files_only`.

    Raises:
        UserError: nothing loadable under this name, or pickled weights.
    """
    plan = read_blueprint(name, **options)
    try:
        if plan.config is not None:
            vae = AutoencoderKL.from_single_file(plan.source, config=plan.config, subfolder="vae", torch_dtype=dtype)
        else:
            named = AutoencoderKL.load_config(plan.source, subfolder="vae", **options).get("_class_name")
            vae = getattr(diffusers, named or "AutoencoderKL").from_pretrained(
                plan.source, subfolder="vae", torch_dtype=dtype, use_safetensors=True, **options
            )
    except Exception as error:  # three libraries raise what they like
        raise cannot_load(plan.name, error) from error
    _drop(vae, "decoder", "post_quant_conv")
    return vae.requires_grad_(False).eval()


def drop_encoder(vae: nn.Module) -> None:
    """Leave the decoding half of a VAE, where pictures come as latents already."""
    _drop(vae, "encoder", "quant_conv")


def _drop(vae: nn.Module, *parts: str) -> None:
    for part in parts:
        if hasattr(vae, part):
            setattr(vae, part, nn.Identity())


def factor_of(vae: nn.Module) -> int:
    """Pixels per latent along a side."""
    config = vae.config
    if (halvings := getattr(config, "temperal_downsample", None)) is not None:  # diffusers' spelling, of video VAEs
        return 2 ** len(halvings)
    return 2 ** (len(getattr(config, "encoder_block_out_channels", None) or config.block_out_channels) - 1)


def of_video(vae: nn.Module) -> bool:
    """Whether it takes frames, a picture being one of them."""
    return hasattr(vae.config, "temperal_downsample")


@torch.no_grad()
def moments_of(vae: nn.Module, pixels: Tensor) -> Tensor:
    """(B, 2C, h, w) mean and log-variance of the latents of pixels (B, 3, H, W) in [-1, 1].

    Sana's autoencoder gives latents, not a distribution: their log-variance is the least that diffusers samples with.

    Raises:
        UserError: not three channels, or a side that is no multiple of the VAE's factor.
    """
    factor = factor_of(vae)
    if pixels.ndim != 4 or pixels.shape[1] != 3 or pixels.shape[2] % factor or pixels.shape[3] % factor:
        raise UserError(
            f"pixels of shape {tuple(pixels.shape)} were given, expected (batch, 3, height, width) "
            f"with sides that are multiples of {factor}: resize the image"
        )
    pixels = pixels.to(vae.device, vae.dtype)
    encoded = vae.encode(pixels[:, :, None] if of_video(vae) else pixels)
    if hasattr(encoded, "latent"):
        return torch.cat([encoded.latent, torch.full_like(encoded.latent, CERTAIN)], 1)
    moments = encoded.latent_dist.parameters
    return moments[:, :, 0] if of_video(vae) else moments


def decoded(vae: nn.Module, latents: Tensor) -> Tensor:
    """(B, 3, H, W) pixels in [-1, 1] of the VAE's own latents (B, C, h, w)."""
    if of_video(vae):
        return vae.decode(latents[:, :, None]).sample[:, :, 0].clamp(-1, 1)
    return vae.decode(latents).sample.clamp(-1, 1)


@contextmanager
def sliced(vae: AutoencoderKL) -> Iterator[None]:
    """Within the block a VAE on the CPU takes pictures one by one, whose activations are large; last bits differ."""
    change = vae.device.type == "cpu" and not vae.use_slicing
    if change:
        vae.enable_slicing()
    try:
        yield
    finally:
        if change:
            vae.disable_slicing()
