"""A U-Net that reads more channels than its latents, such as those of a picture to edit."""

import copy

import torch
from diffusers import UNet2DConditionModel
from torch import nn


def widened(unet: UNet2DConditionModel, extra: int) -> UNet2DConditionModel:
    """A copy that reads `extra` channels behind the latents, at first without taking notice of them.

    The new weights of its first layer are zero (Brooks, Holynski, Efros 2023, "InstructPix2Pix", section 3.2).
    """
    wide = copy.deepcopy(unet)
    old = wide.conv_in
    channels, like = old.in_channels + extra, {"dtype": old.weight.dtype, "device": old.weight.device}
    wide.conv_in = nn.utils.skip_init(
        nn.Conv2d, channels, old.out_channels, old.kernel_size, stride=old.stride, padding=old.padding, **like
    )
    with torch.no_grad():
        wide.conv_in.weight.zero_()
        wide.conv_in.weight[:, : old.in_channels] = old.weight
        wide.conv_in.bias.copy_(old.bias)
    wide.register_to_config(in_channels=channels)
    return wide
