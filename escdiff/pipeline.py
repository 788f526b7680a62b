"""From prompts and concepts to pictures, through the stock `StableDiffusionPipeline` and a bound U-Net."""

from collections.abc import Callable, Mapping, Sequence

import torch
from PIL import Image
from torch import Tensor

from escdiff.backbone import Backbone
from escdiff.concept import IMAGE_TOKENS, Concept
from escdiff.conditioning import ConditioningSpace, bind
from escdiff.conditioning.grid import expand, pack, select
from escdiff.encoder.branches import routed
from escdiff.errors import UserError


class StageSwap:
    """A `callback_on_step_end` that gives the next step's stage its conditioning, both guided halves at once."""

    def __init__(self, space: ConditioningSpace, grid_BLSTD: Tensor, negative_BLSTD: Tensor | None) -> None:
        self.space, self.grid, self.negative = space, grid_BLSTD, negative_BLSTD

    def embeds(self, timestep: Tensor, guided: bool) -> Tensor:
        """Packed conditioning at a timestep: (B, L*T, D), or (2B, L*T, D) when guided."""
        parts = [self.grid] if not guided or self.negative is None else [self.negative, self.grid]
        stage = self.space.stage_of(timestep.reshape(1).cpu())
        return torch.cat([pack(select(part, stage.expand(len(part)))) for part in parts])

    def __call__(self, pipeline, step: int, timestep: Tensor, values: dict) -> dict:
        steps = pipeline.scheduler.timesteps
        if step + 1 < len(steps):
            values["prompt_embeds"] = self.embeds(steps[step + 1], pipeline.do_classifier_free_guidance)
        return values


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
) -> list[Image.Image]:
    """Paint one picture per prompt.

    Args:
        concept: one for all prompts, one per prompt, or "<name>" -> vectors (1 or B, L, S, K, D), as
            `Concept.placeholders` gives them.
        space: of those vectors; a concept brings its own, otherwise P+ of the backbone.
        guidance: classifier-free guidance scale (Ho and Salimans 2022); 1 or less switches it off.
        seeds: one per prompt, 0, 1, 2, ... without; a picture depends on its own seed only.
        on_step: called after every sampling step with the number of pictures that took it.

    Raises:
        UserError: a prompt with an unknown placeholder or one beyond the last token; a concept for another backbone.
    """
    if isinstance(concept, Concept):
        concept = [concept]
    image = None
    if concept and not isinstance(concept, Mapping):
        image = image_tokens(concept, len(prompts))
        space, concept = concept[0].space, stack(concept, backbone)
    vectors, space = dict(concept or {}), space or backbone.p_plus()
    counts = {name: value.shape[3] for name, value in vectors.items()}
    seeds = list(range(len(prompts))) if seeds is None else list(seeds)
    pipeline, pictures = backbone.pipeline(), []
    pipeline.set_progress_bar_config(disable=True)
    for first in range(0, len(prompts), batch_size):
        part = slice(first, first + batch_size)
        own = {name: value[part] if len(value) > 1 else value for name, value in vectors.items()}
        with torch.no_grad():
            grid, negative = (
                expand(backbone.prompts.encode(texts, values), space.num_layers, space.num_stages)
                for texts, values in ((prompts[part], own), ([negative_prompt] * len(prompts[part]), None))
            )
        swap = StageSwap(space, grid, negative if guidance > 1 else None)

        def after_step(pipe, step, timestep, values, swap=swap):
            if on_step:
                on_step(len(swap.grid))
            return swap(pipe, step, timestep, values) if space.num_stages > 1 else values

        added = {}
        if image is not None:  # the unconditional half sees no picture
            shown = image[part].to(backbone.device, backbone.dtype)
            added["ip_adapter_image_embeds"] = [torch.cat([torch.zeros_like(shown), shown]) if guidance > 1 else shown]
        start = torch.tensor(backbone.scheduler.config.num_train_timesteps - 1)
        where = routed(backbone.unet, backbone.prompts, prompts[part], counts, guided=guidance > 1)
        with bind(backbone.unet, space), where:
            out = pipeline(
                prompt_embeds=swap.embeds(start, guided=False),
                negative_prompt_embeds=pack(select(negative, space.stage_of(start.expand(len(negative))))),
                num_inference_steps=steps, guidance_scale=guidance, callback_on_step_end=after_step,
                callback_on_step_end_tensor_inputs=["prompt_embeds"],
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
