"""From prompts and concepts to pictures, through diffusers' own pipelines."""

from collections.abc import Callable, Mapping, Sequence

import torch
from PIL import Image
from torch import Tensor

from escdiff.backbone import Backbone
from escdiff.concept import IMAGE_TOKENS, Concept
from escdiff.conditioning import ConditioningSpace
from escdiff.encoder.branches import routed
from escdiff.errors import UserError
from escdiff.loading import loaded


def generate(
    backbone: Backbone,
    prompts: Sequence[str],
    concept: Concept | Sequence[Concept] | Mapping[str, Tensor] | None = None,
    space: ConditioningSpace | None = None,
    steps: int = 25,
    guidance: float = 5.0,
    seeds: Sequence[int] | None = None,
    negative_prompt: str = "",
    batch_size: int = 8,
    on_step: Callable[[int], None] | None = None,
    watch: Callable[[int, Tensor], None] | None = None,
) -> list[Image.Image]:
    """Paint one picture per prompt.

    Args:
        concept: one for all prompts, one per prompt, or "<name>" -> vectors (1 or B, L, S, K, D), as
            `Concept.placeholders` gives them.
        space: of those vectors; a concept brings its own, otherwise P+ of the backbone.
        guidance: classifier-free guidance scale (Ho and Salimans 2022); 1 or less switches it off.
        seeds: one per prompt, 0, 1, 2, ... without; a picture depends on its own seed only.
        on_step: called after every sampling step with the number of pictures that took it.
        watch: called after every sampling step with its number, from 0, and the batch's latents (B, C, h, w).

    Raises:
        UserError: more steps than the backbone has; a prompt with an unknown placeholder or one beyond the last token;
            a concept for another backbone.
    """
    if isinstance(concept, Concept):
        concept = [concept]
    image = None
    if concept and not isinstance(concept, Mapping):
        image = image_tokens(concept, len(prompts))
        space, concept = concept[0].space, stack(concept, backbone)
    if steps > (most := backbone.scheduler.config.num_train_timesteps):
        raise UserError(f"steps={steps} given; expected at most {most}, which the backbone was trained with")
    vectors, space = dict(concept or {}), space or backbone.p_plus()
    counts = {name: value.shape[3] for name, value in vectors.items()}
    seeds = list(range(len(prompts))) if seeds is None else list(seeds)
    for prompt in dict.fromkeys(prompts):
        backbone.prompts.tokenize(prompt, counts)  # refuses before anything is painted
    pipeline, pictures = backbone.pipeline(), []
    pipeline.set_progress_bar_config(disable=True)
    for first in range(0, len(prompts), batch_size):
        part = slice(first, first + batch_size)
        own = {name: value[part] if len(value) > 1 else value for name, value in vectors.items()}
        count = len(prompts[part])

        def after_step(pipe, step, timestep, values, count=count):
            if on_step:
                on_step(count)
            if watch:
                watch(step, values["latents"])
            return values

        added = {}
        if image is not None:  # the unconditional half sees no picture
            shown = image[part].to(backbone.device, backbone.dtype)
            added["ip_adapter_image_embeds"] = [torch.cat([torch.zeros_like(shown), shown]) if guidance > 1 else shown]
        where = routed(backbone.unet, backbone.prompts, prompts[part], counts, guided=guidance > 1)
        with loaded(pipeline, own, space), where:
            out = pipeline(
                prompt=list(prompts[part]), negative_prompt=[negative_prompt] * count if negative_prompt else None,
                num_inference_steps=steps, guidance_scale=guidance, callback_on_step_end=after_step,
                generator=[torch.Generator("cpu").manual_seed(int(seed)) for seed in seeds[part]], **added,
            )  # fmt: skip
        pictures += out.images
    return pictures


def stack(concepts: Sequence[Concept], backbone: Backbone) -> dict[str, Tensor]:
    """Placeholder -> (B, L, S, K, D) of several concepts, as far as all of them have it.

    Raises:
        UserError: one of them is for another backbone or space, or they are not of one placement.
    """
    space, expected = concepts[0].space, backbone.p_plus()
    if set(space.layer_names) == set(expected.layer_names):
        expected = space  # any partition of this backbone's layers will do, but one for all
    for concept in {id(concept): concept for concept in concepts}.values():
        concept.check_fits(expected, backbone.width, backbone.text_hash)
    if len({concept.placement for concept in concepts}) > 1:
        raise UserError("some concepts are words and some are added behind the text encoder; paint them one by one")
    parts = [concept.placeholders() for concept in concepts]
    shared = [name for name in parts[0] if all(name in part for part in parts)]
    return {name: torch.cat([part[name] for part in parts]) for name in shared}


def image_tokens(concepts: Sequence[Concept], count: int) -> Tensor | None:
    """(count, 1, N, W) or (count, 1, W) of concepts with image tokens, for the U-Net's image adapter; None without.

    Raises:
        UserError: some of them have image tokens and others have none.
    """
    found = [concept.extras.get(IMAGE_TOKENS) for concept in concepts]
    if all(tokens is None for tokens in found):
        return None
    if any(tokens is None for tokens in found):
        raise UserError("some of the concepts have image tokens and some have none; paint them one after the other")
    tokens = torch.stack(found)[:, None].float()
    return tokens.expand(count, *tokens.shape[1:]) if len(tokens) == 1 else tokens
