"""InstructPix2Pix: an instruction and a picture in, the edited picture out, through diffusers' own pipeline.

Brooks, Holynski, Efros 2023. Rows with instruction and picture, with the picture alone and with neither; their outputs
e are combined as e_0 + text guidance * (e_both - e_picture) + image guidance * (e_picture - e_0).
"""

from collections.abc import Callable, Sequence
from pathlib import Path

import torch
from diffusers import StableDiffusionInstructPix2PixPipeline, UNet2DConditionModel
from PIL import Image

from escdiff.backbone import Backbone
from escdiff.support.errors import UserError, reason_of


def make_instruct(backbone: Backbone, unet: UNet2DConditionModel) -> StableDiffusionInstructPix2PixPipeline:
    """The pipeline of a backbone's parts and a widened U-Net."""
    pipeline = StableDiffusionInstructPix2PixPipeline(
        vae=backbone.vae, text_encoder=backbone.text_encoder, tokenizer=backbone.tokenizer, unet=unet,
        scheduler=type(backbone.scheduler).from_config(backbone.scheduler.config), safety_checker=None,
        feature_extractor=None, image_encoder=None, requires_safety_checker=False,
    )  # fmt: skip
    pipeline.set_progress_bar_config(disable=True)
    return pipeline


def load_instruct(
    source: str | Path, device: str | torch.device = "cpu", dtype: torch.dtype = torch.float32
) -> StableDiffusionInstructPix2PixPipeline:
    """From a folder that `python train.py experiment=mini/instruct_pix2pix` wrote, or a hub id.

    Raises:
        UserError: nothing loadable there, or a model that reads no picture.
    """
    place = Path(source).expanduser()
    try:
        pipeline = StableDiffusionInstructPix2PixPipeline.from_pretrained(
            str(place) if place.exists() else str(source), dtype=dtype, safety_checker=None,
            requires_safety_checker=False, use_safetensors=True,
        )  # fmt: skip
    except Exception as error:  # the loaders of three libraries raise what they like
        raise UserError(
            f"no InstructPix2Pix model from {str(source)!r} ({reason_of(error)}); train one with "
            "`python train.py experiment=mini/instruct_pix2pix` or give its folder"
        ) from error
    reads, latents = pipeline.unet.config.in_channels, pipeline.vae.config.latent_channels
    if reads != 2 * latents:
        raise UserError(
            f"the U-Net of {str(source)!r} reads {reads} channels; InstructPix2Pix expects {2 * latents}, latents and "
            "a picture: give a model that was trained for it"
        )
    pipeline.set_progress_bar_config(disable=True)
    return pipeline.to(device)


def instruct(
    pipeline: StableDiffusionInstructPix2PixPipeline,
    pictures: Sequence[Image.Image],
    instructions: Sequence[str],
    steps: int = 25,
    guidance: float = 7.5,
    image_guidance: float = 1.5,
    seeds: Sequence[int] | None = None,
    batch_size: int = 8,
    on_step: Callable[[int], None] | None = None,
) -> list[Image.Image]:
    """Edit pictures of one size, each by its instruction.

    Args:
        guidance: towards the instruction; more changes more. 1 or less switches both guidances off.
        image_guidance: towards the picture; more keeps more. 1 or more.
        seeds: one per picture, 0, 1, 2, ... without.
        on_step: called after every sampling step with the number of pictures that took it.

    Raises:
        UserError: no instruction, pictures of several sizes or with sides that are no multiples of 8.
    """
    factor = pipeline.vae_scale_factor
    if not all(text.strip() for text in instructions):
        raise UserError("an empty instruction was given; say what to change, as in 'make it red'")
    sizes = {picture.size for picture in pictures}
    if len(sizes) > 1 or any(side % factor for size in sizes for side in size):
        given = ", ".join(f"{width} x {height}" for width, height in sorted(sizes))
        raise UserError(f"pictures of {given} pixels were given; expected one size, of multiples of {factor}: resize")
    if image_guidance < 1:
        raise UserError(f"image_guidance={image_guidance} was given; expected 1 or more")
    seeds, edited = list(range(len(pictures))) if seeds is None else list(seeds), []
    for first in range(0, len(pictures), batch_size):
        part = slice(first, first + batch_size)
        count = len(pictures[part])

        def after_step(pipe, step, timestep, values, count=count):
            if on_step:
                on_step(count)
            return values

        edited += pipeline(
            list(instructions[part]), image=list(pictures[part]), num_inference_steps=steps, guidance_scale=guidance,
            image_guidance_scale=image_guidance, callback_on_step_end=after_step,
            generator=[torch.Generator("cpu").manual_seed(int(seed)) for seed in seeds[part]],
        ).images  # fmt: skip
    return edited
