"""Pictures through the stock pipelines of transformers, for `escdiff.pipelines.generate`."""

import inspect
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import torch
from diffusers import DiffusionPipeline
from torch import Tensor

from escdiff.backbone.family import Family
from escdiff.backbone.family.spelling import spell
from escdiff.backbone.transformer import TransformerBackbone
from escdiff.concept import Concept
from escdiff.pipelines.load_concept import load_concept, unload_concept
from escdiff.support.errors import UserError

NOTHING = " "  # a negative prompt for pipelines that guide away from one only


def paint(
    backbone: TransformerBackbone, prompts: Sequence[str], concepts: Sequence[Concept], steps: int, guidance: float,
    seeds: Sequence[int], negative_prompt: str, batch_size: int, after_step: Callable[[int, int, Tensor], None],
    **sides: int | None,
) -> np.ndarray:  # fmt: skip
    """(B, H, W, 3) in 0..1, one picture per prompt.

    Args:
        concepts: none, one for all prompts, or one per prompt; pictures of one concept are painted together.
        sides: "height" and "width" in pixels, None for the backbone's own.
        after_step: called with the number of pictures, of the step, and the latents as the pipeline has them.

    Raises:
        UserError: a concept for another model, an unknown placeholder, or a picture that is not finite.
    """
    own = list(concepts) * len(prompts) if len(concepts) == 1 else list(concepts) or [None] * len(prompts)
    for prompt, concept in zip(prompts, own, strict=True):  # refuses before anything is painted
        spell(prompt, dict.fromkeys(concept.placeholders() if concept else (), ()))
    groups: dict[int, list[int]] = {}
    for index, concept in enumerate(own):
        groups.setdefault(id(concept), []).append(index)
    pipeline, pictures = backbone.pipeline(), {}
    pipeline.set_progress_bar_config(disable=True)
    call = {"num_inference_steps": steps, "output_type": "np"}
    call |= {name: side or backbone.picture_size for name, side in sides.items()}
    for indices in groups.values():
        if concept := own[indices[0]]:
            load_concept(pipeline, concept)
        try:
            for first in range(0, len(indices), batch_size):
                part = indices[first : first + batch_size]
                more = _arguments(pipeline, backbone.family, guidance, negative_prompt, len(part), after_step)
                noise = [torch.Generator("cpu").manual_seed(int(seeds[index])) for index in part]
                out = pipeline([prompts[index] for index in part], generator=noise, **call, **more)
                pictures |= dict(zip(part, out.images, strict=True))
        finally:
            if concept:
                unload_concept(pipeline)
    painted = np.stack([pictures[index] for index in range(len(prompts))])
    if not np.isfinite(painted).all():
        kind = str(backbone.dtype).removeprefix("torch.")
        raise UserError(f"the painted picture holds values that are no numbers: {kind} overflows; try another dtype")
    return painted


def _arguments(
    pipeline: DiffusionPipeline, family: Family, guidance: float, negative: str, count: int,
    after_step: Callable[[int, int, Tensor], None],
) -> dict[str, Any]:  # fmt: skip
    """What the pipelines of different families call differently."""
    taken, reading = inspect.signature(pipeline.__call__).parameters, family.reading
    found = {name: value for name, value in reading.options.items() if name in taken} | {reading.guidance: guidance}
    if negative or reading.guidance == "true_cfg_scale":
        found["negative_prompt"] = [negative or NOTHING] * count
    if "callback_on_step_end" in taken:

        def end(pipe: DiffusionPipeline, step: int, time: Tensor, values: dict) -> dict:
            after_step(count, step, values["latents"])
            return values

        return found | {"callback_on_step_end": end}
    return found | {"callback": lambda step, time, latents: after_step(count, step, latents), "callback_steps": 1}
