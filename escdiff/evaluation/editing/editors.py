"""Editors: functions from a case to the edited picture, or to None for a kind of edit that they do not serve."""

import torch
from diffusers import StableDiffusionImg2ImgPipeline
from PIL import Image

from escdiff.data.pictures import to_pil
from escdiff.evaluation.bench.pictures import pixels_of
from escdiff.evaluation.editing.cases import Case
from escdiff.evaluation.editing.tools import Tools
from escdiff.pipelines.instruct import instruct

STRENGTH = 0.6  # of img2img: share of the noise
IMAGE_GUIDANCE = 1.5


def unchanged(tools: Tools, case: Case) -> Image.Image:
    """The picture before, through the VAE."""
    return _through_vae(tools, case.before)


def truth(tools: Tools, case: Case) -> Image.Image:
    """The picture after, through the VAE."""
    return _through_vae(tools, case.after)


def img2img(tools: Tools, case: Case) -> Image.Image:
    """Noised and painted again with the new caption (Meng et al. 2022, "SDEdit")."""
    parts = {name: part for name, part in tools.pipeline.components.items() if name != "safety_checker"}
    pipeline = StableDiffusionImg2ImgPipeline(**parts, safety_checker=None, requires_safety_checker=False)
    pipeline.set_progress_bar_config(disable=True)
    tools.models.use_branches(False)
    return pipeline(
        case.words[1], image=case.before, strength=STRENGTH, num_inference_steps=tools.models.steps,
        guidance_scale=tools.models.guidance, generator=torch.Generator().manual_seed(case.number),
    ).images[0]  # fmt: skip


def plug_and_play(tools: Tools, case: Case) -> Image.Image:
    """The new caption in the old layout."""
    return tools.edit(case, "plug_and_play", case.words[1])


def plug_and_play_masked(tools: Tools, case: Case) -> Image.Image | None:
    """Edit by `plug_and_play` with the latents outside of the object kept."""
    return None if case.edit.kind == "background" else tools.edit(case, "plug_and_play", case.words[1], case.objects)


def pix2pix_zero(tools: Tools, case: Case) -> Image.Image:
    """From the old caption's states towards the new one's, with the old attention maps."""
    return tools.edit(case, "pix2pix_zero", case.words[1])


def attribute_transfer(tools: Tools, case: Case) -> Image.Image | None:
    """The reference's attribute onto the object, inside of its mask; nothing is said of it in words."""
    if case.reference is None:
        return None
    attribute, picture, prompt = case.reference
    concept = tools.models.encoder.encode(picture).only(attribute)
    return tools.edit(case, "transfer", prompt, case.objects, concept)


def instruct_pix2pix(tools: Tools, case: Case) -> Image.Image:
    """The instruction, by a model that was trained for it."""
    return instruct(
        tools.instruct, [case.before], [case.edit.instruction], tools.models.steps, tools.models.guidance,
        IMAGE_GUIDANCE, [case.number],
    )[0]  # fmt: skip


@torch.no_grad()
def _through_vae(tools: Tools, picture: Image.Image) -> Image.Image:
    return to_pil(tools.models.reconstruct(pixels_of([picture]), lambda count: None)[0])
