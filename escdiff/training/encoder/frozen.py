"""The frozen backbone of a training: how it is loaded, the type it computes in, the pictures it is made for."""

import torch

from escdiff.backbone import Backbone, blueprint_of, load_backbone, loading_options, pick_dtype
from escdiff.backbone.compile import compile_regions
from escdiff.backbone.frozen import Frozen
from escdiff.support.config.backbone import BackboneConfig
from escdiff.support.errors import UserError


def make_backbone(settings: BackboneConfig, whole: bool = False) -> Frozen:
    """Load a backbone: the denoiser in its own type, the others in float32 until `cast`.

    The cache of latents is named after the VAE's weights as they are, and concepts after the text encoder's.

    Args:
        whole: the U-Net in float32, too, to paint with before `cast`.
    """
    plan, options = blueprint_of(settings), loading_options(settings)
    whole = whole and plan.family.reading is None  # a transformer is too large for that, and paints no prior
    backbone = load_backbone(plan, unet_dtype=None if whole else pick_dtype(settings.dtype), **options)
    if settings.gradient_checkpointing:
        backbone.denoiser.enable_gradient_checkpointing()
    if settings.channels_last:
        backbone.denoiser.to(memory_format=torch.channels_last)
    if settings.compile:
        compile_regions(backbone.denoiser)
    return backbone


def make_small_sd(settings: BackboneConfig, learner: str) -> Backbone:
    """As `make_backbone` whole, of Stable Diffusion 1.x and 2.x alone.

    Args:
        learner: what is trained, for the sentence.

    Raises:
        UserError: an SDXL or a transformer, before weights are read.
    """
    plan = blueprint_of(settings)
    if plan.is_xl or plan.family.reading is not None:
        kind = "an SDXL" if plan.is_xl else f"of the family {plan.family.name!r}"
        raise UserError(f"backbone {plan.name} is {kind}; {learner} learns from Stable Diffusion 1.x or 2.x")
    return make_backbone(settings, whole=True)


def picture_size(size: int | None, backbone: Frozen) -> int:
    """Pixels per side of what is trained on: `data.size`, or where that is null what the backbone was made for.

    Raises:
        UserError: the VAE halves pictures more often than the size can be halved.
    """
    size, step = size or backbone.picture_size, backbone.side_step
    if size % step:
        raise UserError(f"data.size={size} given; the VAE needs a multiple of {step}, such as {size - size % step}")
    return size


def cast(backbone: Frozen, dtype: torch.dtype) -> None:
    """The frozen weights to a type, those that are trained to float32.

    Last of all, since the cache of latents is named after the weights as they were read.
    """
    trained = [(p, p.data.float()) for part in backbone.modules() for p in part.parameters() if p.requires_grad]
    backbone.to(dtype=dtype)
    for parameter, data in trained:
        parameter.data = data
