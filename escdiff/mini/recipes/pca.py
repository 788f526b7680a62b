"""A VAE encoder that starts as principal components of 8x8 blocks, exactly, inside AutoencoderKL's own layers.

Linear PCA is the bar an autoencoder at this rate must beat, and on two cores a learned encoder takes hours to
reach it. So the encoder is *set* to it and only the decoder, which can use a block's neighbours and its knowledge
of the world, has to be learned; latents, and with them the U-Net, are ready at once.

How a chain of convolutions, GroupNorm and SiLU computes a linear map: the stride-2 convolutions gather 2x2
blocks; the residual branches are zero; each component u enters the last norm as the pair (+u, -u) beside a
constant pair (+C, -C) that fixes the group's mean at 0 and its deviation at about C / sqrt(8); and
silu(u) - silu(-u) = u for every u.
"""

import torch
from diffusers import AutoencoderKL
from torch import Tensor

CONSTANT = 30.0  # against components of about unit size, so the deviation varies by less than 1 in 1,000
LOGVAR = -8.0  # a deviation of 0.018


def principal(features: Tensor, count: int) -> Tensor:
    """The `count` leading principal directions (count, F) of features (M, F)."""
    centred = features - features.mean(0)
    _, vectors = torch.linalg.eigh(centred.T @ centred / len(features))
    return vectors.flip(1)[:, :count].T.contiguous()


def blocks(maps: Tensor) -> Tensor:
    """Space to depth by two: (B, C, H, W) -> (B, 4C, H/2, W/2), ordered (row, column, channel)."""
    b, c, h, w = maps.shape
    return maps.reshape(b, c, h // 2, 2, w // 2, 2).permute(0, 3, 5, 1, 2, 4).reshape(b, 4 * c, h // 2, w // 2)


def _rows(maps: Tensor) -> Tensor:
    return maps.permute(0, 2, 3, 1).flatten(0, 2)


def _gather(convolution, matrix: Tensor) -> None:
    """Set a stride-2 3x3 convolution to `matrix` (out, 4 * in) applied to 2x2 blocks."""
    out, channels = matrix.shape[0], matrix.shape[1] // 4
    convolution.weight.zero_()
    convolution.bias.zero_()
    convolution.weight[:out, :channels, :2, :2] = matrix.reshape(out, 2, 2, channels).permute(0, 3, 1, 2)


def _copy(convolution, channels: int) -> None:
    """Set a 1x1 or 3x3 convolution to pass its first `channels` channels on."""
    convolution.weight.zero_()
    convolution.bias.zero_()
    middle = convolution.weight.shape[-1] // 2
    convolution.weight[range(channels), range(channels), middle, middle] = 1.0


@torch.no_grad()
def set_to_pca(vae: AutoencoderKL, pixels: Tensor, flatten: float = 0.5) -> Tensor:
    """Set the encoder of a `mini.make_vae()` to the principal components of `pixels` (B, 3, H, W) in [-1, 1].

    Args:
        flatten: components are scaled by deviation^-flatten; 0 keeps PCA's own scale, 1 whitens. In between,
            coarse components stand above the fine ones, as in an image pyramid, so a diffusion model gets them first.

    Returns:
        The deviation of each component before scaling, (latent channels,), in pixel units of [-1, 1].
    """
    encoder, count = vae.encoder, vae.config.latent_channels
    quarter = blocks(pixels)  # 12 values
    half_project = principal(_rows(blocks(quarter)), encoder.down_blocks[1].downsamplers[0].conv.out_channels)
    half = torch.einsum("oc,bchw->bohw", half_project, blocks(quarter))
    whole = _rows(blocks(half))
    project = principal(whole, count)
    values = whole @ project.T
    mean, deviation = values.mean(0), values.std(0)
    scale = deviation**-flatten
    scale = scale / (deviation * scale).square().mean().sqrt()  # latents of about unit variance as a whole

    _copy(encoder.conv_in, 3)
    _gather(encoder.down_blocks[0].downsamplers[0].conv, torch.eye(12))
    _copy(encoder.down_blocks[1].resnets[0].conv_shortcut, 12)
    _gather(encoder.down_blocks[1].downsamplers[0].conv, half_project)
    _copy(encoder.down_blocks[2].resnets[0].conv_shortcut, len(half_project))
    _gather(encoder.down_blocks[2].downsamplers[0].conv, project * scale[:, None])
    encoder.down_blocks[2].downsamplers[0].conv.bias[:count] = -mean * scale

    shortcut, norm, last = encoder.down_blocks[3].resnets[0].conv_shortcut, encoder.conv_norm_out, encoder.conv_out
    width = shortcut.out_channels // norm.num_groups
    for convolution in (shortcut, last):
        convolution.weight.zero_()
        convolution.bias.zero_()
    norm.weight.fill_(1.0)
    norm.bias.zero_()
    for k in range(count):
        group = k % norm.num_groups * width
        plus, minus = group, group + 1
        shortcut.weight[plus, k], shortcut.weight[minus, k] = 1.0, -1.0
        shortcut.bias[group + 2], shortcut.bias[group + 3] = CONSTANT, -CONSTANT
        last.weight[k, plus, 1, 1], last.weight[k, minus, 1, 1] = (CONSTANT * (2 / width) ** 0.5 * s for s in (1, -1))
    last.bias[count:] = LOGVAR
    _copy(vae.quant_conv, 2 * count)
    _copy(vae.post_quant_conv, count)
    return deviation
