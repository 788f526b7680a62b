"""From prompts and concepts to pictures, through diffusers' own pipelines."""

import copy
import logging
from collections.abc import Callable, Mapping, Sequence

import numpy as np
import torch
from diffusers import DiffusionPipeline
from PIL import Image
from torch import Tensor

from escdiff.backbone import Backbone
from escdiff.backbone.adapters.gated import is_gated, patches_argument
from escdiff.backbone.branches import check_branches
from escdiff.backbone.frozen import Frozen
from escdiff.concept import IMAGE_TOKENS, Concept
from escdiff.conditioning import ConditioningSpace
from escdiff.conditioning.fuse import Fusion
from escdiff.control import Control, controlled
from escdiff.pipelines.load_concept import loaded
from escdiff.pipelines.paint_transformer import paint
from escdiff.support.errors import UserError

log = logging.getLogger(__name__)


def generate(
    backbone: Frozen,
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
    height: int | None = None,
    width: int | None = None,
    controls: Sequence[Control] = (),
    free_text: bool = False,
) -> list[Image.Image]:
    """Paint one picture per prompt.

    Args:
        concept: one for all prompts, one per prompt, or "<name>" -> vectors (1 or B, L, S, K, D), as
            `Concept.placeholders` gives them.
        space: of those vectors; a concept brings its own, otherwise P+ of the backbone.
        guidance: classifier-free guidance scale (Ho and Salimans 2022); 1 or less switches it off.
        seeds: one per prompt, 0, 1, 2, ... without; a picture depends on its own seed only.
        on_step: called after every sampling step with the number of pictures that took it; `count_calls` says how many
            there will be.
        watch: called after every sampling step with its number, from 0, and the batch's latents (B, C, h, w).
        height, width: pixels, see `check_size`; without them the backbone's own.
        controls: what steers the sampling, see `escdiff.control`.
        free_text: encode all prompts first and let go of the text encoders, see `Backbone.free_text`; controls, which
            read the prompts, keep them.

    Raises:
        UserError: more steps than the backbone has, or a size that it cannot paint; a prompt with an unknown
            placeholder or one beyond the last token; a concept for another backbone; a picture that is not finite; what
            a control cannot serve.
    """
    if isinstance(concept, Concept):
        concept = [concept]
    count_calls(backbone, steps)  # refuses too many
    check_size(backbone, height=height, width=width)
    seeds = list(range(len(prompts))) if seeds is None else list(seeds)
    if backbone.family.reading is not None:
        if controls or isinstance(concept, Mapping):
            raise UserError("controls or vectors without their words were given; transformers take concepts alone")

        def report(count: int, step: int, latents: Tensor) -> None:
            if on_step:
                on_step(count)
            if watch:
                watch(step, latents)

        painted = paint(
            backbone, prompts, concept or (), steps, guidance, seeds, negative_prompt, batch_size, report,
            height=height, width=width,
        )  # fmt: skip
        return DiffusionPipeline.numpy_to_pil(painted)
    image, fusions = None, {}
    if concept and not isinstance(concept, Mapping):
        image, fusions = image_tokens(concept, len(prompts)), stack_fusions(concept)
        space, concept = concept[0].space, stack(concept, backbone)
    vectors, space = dict(concept or {}), space or backbone.p_plus()
    counts = {name: value.shape[3] for name, value in vectors.items()}
    for prompt in dict.fromkeys(prompts):
        backbone.prompts.tokenize(prompt, counts)  # refuses before anything is painted
    pipeline, pictures = backbone.pipeline(), []
    pipeline.set_progress_bar_config(disable=True)
    parts = [slice(first, first + batch_size) for first in range(0, len(prompts), batch_size)]
    owns = [{name: value[part] if len(value) > 1 else value for name, value in vectors.items()} for part in parts]
    fuses = [{name: [one.rows(part) for one in own] for name, own in fusions.items()} for part in parts]
    texts = [_texts(prompts[part], negative_prompt) for part in parts]
    if free_text and not controls:
        for i, own in enumerate(owns):
            with loaded(pipeline, own, space, fuses[i]):
                texts[i] = _encoded(pipeline, texts[i], guidance > 1)
        backbone.free_text()
    for part, own, fused, text in zip(parts, owns, fuses, texts, strict=True):
        count, latents = len(prompts[part]), {}

        def after_step(pipe, step, timestep, values, count=count, latents=latents):
            latents["last"] = values["latents"]
            if on_step:
                on_step(count)
            if watch:
                watch(step, values["latents"])
            return values

        added = {}
        if image is not None:  # the unconditional half sees no picture
            shown = image[part].to(backbone.device, backbone.dtype)
            shown = torch.cat([torch.zeros_like(shown), shown]) if guidance > 1 else shown
            if is_gated(backbone.unet):
                added["cross_attention_kwargs"] = patches_argument(shown[:, 0])
            else:
                added["ip_adapter_image_embeds"] = [shown]
        with loaded(pipeline, own, space, fused):
            out = controlled(pipeline, *controls)(
                **text, num_inference_steps=steps, guidance_scale=guidance, callback_on_step_end=after_step,
                generator=[torch.Generator("cpu").manual_seed(int(seed)) for seed in seeds[part]],
                height=height, width=width, output_type="np", **added,
            )  # fmt: skip
        pictures += pipeline.numpy_to_pil(finite(out.images, latents["last"], backbone))
    return pictures


def _texts(prompts: Sequence[str], negative: str) -> dict[str, list[str] | None]:
    """Prompts as a pipeline takes them."""
    return {"prompt": list(prompts), "negative_prompt": [negative] * len(prompts) if negative else None}


@torch.no_grad()
def _encoded(pipeline, texts: Mapping[str, list[str] | None], guided: bool) -> dict[str, Tensor]:
    """Embeddings in place of prompts, as the pipeline itself encodes them."""
    found = pipeline.encode_prompt(
        **texts, device=pipeline.device, num_images_per_prompt=1, do_classifier_free_guidance=guided
    )
    names = ("prompt_embeds", "negative_prompt_embeds", "pooled_prompt_embeds", "negative_pooled_prompt_embeds")
    return {name: value for name, value in zip(names, found, strict=False) if value is not None}


def count_calls(backbone: Frozen, steps: int) -> int:
    """How often the denoiser is called for a picture: nearly twice a step by second-order samplers, once more by PNDM.

    Raises:
        UserError: more steps than the backbone was trained with.
    """
    if steps > (most := backbone.scheduler.config.num_train_timesteps):
        raise UserError(f"steps={steps} given; expected at most {most}, which the backbone was trained with")
    scheduler = type(backbone.scheduler).from_config(backbone.scheduler.config)
    if scheduler.config.get("use_dynamic_shifting"):  # by a picture's size; of the first order
        return steps
    scheduler.set_timesteps(steps)
    return len(scheduler.timesteps)


def check_size(backbone: Frozen, **sides: int | None) -> None:
    """Refuse a height or width that the backbone cannot paint.

    Args:
        sides: name -> pixels, None for the backbone's own.

    Raises:
        UserError: a side that is no positive multiple of the VAE's factor.
    """
    factor = backbone.side_step
    for name, side in sides.items():
        if side is not None and (side < factor or side % factor):
            near = max(factor, round(side / factor) * factor)
            raise UserError(f"{name}={side} given; expected a multiple of {factor} pixels, such as {near}")


def finite(pictures: np.ndarray, latents: Tensor, backbone: Backbone) -> np.ndarray:
    """The pictures (B, H, W, 3) in 0..1; where some values are no numbers, which would be saved as black, those of the
    latents (B, C, h, w) by a copy of the VAE in float32.

    Raises:
        UserError: float32 does not help either.
    """
    if np.isfinite(pictures).all():
        return pictures
    kind = str(backbone.dtype).removeprefix("torch.")
    if backbone.dtype != torch.float32 and torch.isfinite(latents).all():
        log.warning(
            "the VAE overflows in %s, its pictures would be black: decoded once more in float32; load the backbone in "
            "bfloat16 or float32, or with a VAE made for %s", kind, kind,
        )  # fmt: skip
        whole = backbone.with_part("vae", copy.deepcopy(backbone.vae).float())  # others may be painting with this one
        with torch.no_grad():
            pictures = whole.decode(latents).add(1).div(2).permute(0, 2, 3, 1).float().cpu().numpy()
        if np.isfinite(pictures).all():
            return pictures
    raise UserError(
        f"the painted picture holds values that are no numbers and would be black: the U-Net or the VAE overflows in "
        f"{kind}, or their weights or the concept's are damaged; try bfloat16 or float32, then without the concept"
    )


def stack(concepts: Sequence[Concept], backbone: Backbone, name: str | None = None) -> dict[str, Tensor]:
    """Placeholder -> (B, L, S, K, D) of several concepts, as far as all of them have it.

    Args:
        name: see `Concept.placeholders`.

    Raises:
        UserError: one of them is for another backbone or space, or needs branches that the U-Net lacks.
    """
    space, expected = concepts[0].space, backbone.p_plus()
    if set(space.layer_names) == set(expected.layer_names):
        expected = space  # any partition of this backbone's layers will do, but one for all
    for concept in {id(concept): concept for concept in concepts}.values():
        concept.check_fits(expected, backbone.width, backbone.text_hash)
        check_branches(backbone.unet, concept)
    parts = [concept.placeholders(name) for concept in concepts]
    shared = [name for name in parts[0] if all(name in part for part in parts)]
    return {name: torch.cat([part[name] for part in parts]) for name in shared}


def stack_fusions(concepts: Sequence[Concept]) -> dict[str, list[Fusion]]:
    """Placeholder -> what is fused there, of several concepts, as far as all of them have it; see `stack`.

    Raises:
        UserError: some of them are fused and some are not, or at other tokens.
    """
    parts = [concept.fusions() for concept in concepts]
    first = {name: [one.offset for one in own] for name, own in parts[0].items()}
    if any({name: [one.offset for one in own] for name, own in part.items()} != first for part in parts):
        raise UserError("the concepts are fused at different words; paint them one after the other")
    found = {}
    for name, offsets in first.items():
        columns = [[part[name][i] for part in parts] for i in range(len(offsets))]
        found[name] = [
            Fusion(own[0].offset, torch.cat([one.embedding for one in own]), torch.cat([one.share for one in own]))
            for own in columns
        ]
    return found


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
