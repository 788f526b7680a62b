"""Painting with a `Placer`: through diffusers' own ControlNet pipeline."""

from collections.abc import Callable

import torch
from diffusers import DDIMScheduler, StableDiffusionControlNetPipeline
from PIL import Image
from torch import Tensor

from escdiff.backbone import Backbone
from escdiff.control import controlled
from escdiff.control.boxes import Box, check_box, draw
from escdiff.control.keep import Keep, renoised
from escdiff.data.pictures import to_pixels
from escdiff.pipelines.collage import collage
from escdiff.pipelines.placer import Placer
from escdiff.support.errors import UserError


def make_pipeline(backbone: Backbone, placer: Placer) -> StableDiffusionControlNetPipeline:
    """The stock pipeline over the backbone and the placer's branch, with DDIM."""
    pipeline = StableDiffusionControlNetPipeline(
        vae=backbone.vae, text_encoder=backbone.text_encoder, tokenizer=backbone.tokenizer, unet=placer.unet,
        controlnet=placer.controlnet, scheduler=DDIMScheduler.from_config(backbone.scheduler.config),
        safety_checker=None, feature_extractor=None, requires_safety_checker=False,
    )  # fmt: skip
    pipeline.set_progress_bar_config(disable=True)
    return pipeline


@torch.no_grad()
def place(
    backbone: Backbone, placer: Placer, scene: Image.Image, reference: Image.Image, mask: Tensor, box: Box,
    steps: int = 25, guidance: float = 5.0, seed: int = 0, keep: bool = True,
    on_step: Callable[[int], None] | None = None,
) -> Image.Image:  # fmt: skip
    """The scene with the reference's object in a box.

    Args:
        scene: sides of multiples of 8 pixels.
        mask: (1, H, W) of the reference, 1 on the object.
        box: (left, top, right, bottom) as shares of the scene's sides.
        keep: outside of the box the latents are the scene's, with as much noise, at every step; else they are painted.

    Raises:
        UserError: a box that is no part of the scene, an empty mask or one of another size, a scene whose sides are no
            multiples.
    """
    box, factor = check_box("the object", box), backbone.vae_factor
    if any(side % factor for side in scene.size):
        what = f"a scene of {scene.width} x {scene.height} pixels was given"
        raise UserError(f"{what}; expected multiples of {factor}: resize it")
    if tuple(mask.shape) != (1, reference.height, reference.width):
        wanted = (1, reference.height, reference.width)
        raise UserError(f"a mask of shape {tuple(mask.shape)} was given; expected the reference's, {wanted}")
    device, dtype = backbone.device, backbone.dtype
    placer.to(device, dtype).vision.to(device)
    placer.unet.to(device, dtype)
    given = [to_pixels(picture)[None].to(device) for picture in (scene, reference)]
    shown = collage(given[0], given[1], mask[None].to(given[1]), [box]).to(dtype)
    states = placer.identity(given[1].to(dtype), mask[None].to(device, dtype)).to(dtype)
    pipeline = make_pipeline(backbone, placer)
    area = draw(box, scene.height, scene.width)[None]
    controls = [Keep(renoised(pipeline, scene, steps, seed), area)] if keep else []

    def after_step(pipe, step, timestep, values):
        if on_step:
            on_step(1)
        return values

    return controlled(pipeline, *controls)(
        prompt_embeds=states, negative_prompt_embeds=placer.empty(*states.shape[:2]).to(states), image=shown,
        width=scene.width, height=scene.height, num_inference_steps=steps, guidance_scale=guidance,
        generator=torch.Generator("cpu").manual_seed(seed), callback_on_step_end=after_step,
    ).images[0]  # fmt: skip
