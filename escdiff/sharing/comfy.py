"""Functions behind the ComfyUI nodes: concepts from pictures, prompts with placeholders, per-layer words.

The cells of a prompt travel packed in the conditioning's own tensor, see `escdiff.conditioning.grid`, and a patch of
each cross-attention takes its own. Any other conditioning of the same model passes unchanged. Of ComfyUI's model the
public `clone`, `set_model_attn2_patch` and `get_model_object("model_sampling")` are used.
Legend: B pictures, L layer cell, S stage, T token position, D width.
"""

import re
from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor

from escdiff.concept import ATTRIBUTES, Concept
from escdiff.conditioning import ConditioningSpace
from escdiff.conditioning.binding import TOKENS
from escdiff.conditioning.grid import pack_stages
from escdiff.conditioning.header import header_rows
from escdiff.data.pictures import to_mask, to_pil
from escdiff.encoder import ConceptEncoder
from escdiff.sharing.blocks import block_of
from escdiff.sharing.comfy_prompt import encode_prompt
from escdiff.support.errors import UserError

BOTH = "shape and appearance"
MOST_SECTIONS = 16  # of 77 tokens, into which ComfyUI breaks a long prompt


def encode_picture(
    encoder: ConceptEncoder, image_BHWC: Tensor, attribute: str = BOTH, mask_BHW: Tensor | None = None
) -> Concept:
    """A concept of the first picture of an IMAGE, in [0, 1]; the MASK is 1 on the object.

    Raises:
        UserError: an unknown attribute, or several pictures.
    """
    if len(image_BHWC) != 1:
        raise UserError(f"{len(image_BHWC)} pictures were given; expected one: pick one of the batch")
    picture = to_pil(image_BHWC[0, ..., :3].movedim(-1, 0) * 2 - 1)
    mask = None
    if mask_BHW is not None and mask_BHW.any():  # of a picture without transparency ComfyUI's mask is black
        mask = to_pil(mask_BHW.reshape(-1, *mask_BHW.shape[-2:])[:1].expand(3, -1, -1) * 2 - 1)
        mask = to_mask(mask, encoder.vision.image_size)
    return encoder.encode(picture, mask, ATTRIBUTES if attribute == BOTH else (attribute,))


def strengthen(concept: Concept, strengths: Mapping[str, float], curve: str = "") -> Concept:
    """A concept at strengths by attribute, times a curve over the layers; attributes that it lacks are left out.

    Raises:
        UserError: see `read_curve`.
    """
    weights = read_curve(curve, concept.space.num_layers)
    return concept.scaled({name: float(strengths.get(name, 1.0)) * weights for name in concept.attributes})


def read_curve(text: str, layers: int) -> Tensor:
    """(L,) of numbers such as "1, 1, 0.5, 0" in execution order, one per layer or fewer, straight lines between.

    Raises:
        UserError: it is no list of numbers, or has more of them than there are layers.
    """
    try:
        points = [float(part) for part in re.split(r"[\s,;]+", text.strip()) if part] or [1.0]
    except ValueError:
        raise UserError(f"curve={text!r} given; expected numbers with commas between, such as 1, 0.5, 0") from None
    if len(points) > layers:
        raise UserError(f"curve={text!r} has {len(points)} numbers; expected at most {layers}, one per layer")
    values = torch.tensor(points)[None, None]
    return torch.nn.functional.interpolate(values, size=layers, mode="linear", align_corners=True)[0, 0]


def apply_concept(model: Any, clip: Any, concept: Concept, prompt: str) -> tuple[Any, list]:
    """A MODEL whose layers take their own words, and the CONDITIONING of a prompt with placeholders.

    Raises:
        UserError: a placeholder that the concept lacks, a text encoder of another width, a concept that needs branches
            or brings weights along.
    """
    if concept.branches or "adapter" in concept.notes:
        raise UserError("the concept needs weights in the U-Net besides words, which ComfyUI's nodes do not load yet")
    grid, pooled = encode_prompt(clip, concept, prompt)
    more = {} if pooled is None else {"pooled_output": pooled}
    if grid.shape[1] * grid.shape[2] == 1:
        return model, [[grid[:, 0, 0], more]]
    # A ControlNet is not patched: it reads the mean over the cells.
    more["cross_attn_controlnet"] = grid.mean((1, 2))
    patched = model.clone()
    patched.set_model_attn2_patch(attn2_patch(concept.space, model.get_model_object("model_sampling")))
    return patched, [[pack_stages(grid), more]]


def attn2_patch(space: ConditioningSpace, sampling: Any = None) -> Callable:
    """The patch that ComfyUI calls before each cross-attention: (n, context, value, extra_options) -> first three.

    Args:
        sampling: with `timestep(sigma)`, for a space of several stages.

    Raises:
        UserError: later, in a layer that the space lacks.
    """
    cells = {block_of(name): cell for cell, names in enumerate(space.cells) for name in names}

    def patch(n: Tensor, context: Tensor, value: Tensor, extra_options: Mapping[str, Any]) -> tuple:
        tokens = packed_tokens(context, space)
        if tokens is None:
            return n, context, value
        place = (*extra_options["block"], extra_options["block_index"])
        if place not in cells:
            raise UserError(f"the concept has no words for the layer {place} of this model; use the model it is for")
        cell = cells[place]
        if space.num_stages > 1:
            sigma = torch.as_tensor(extra_options["sigmas"]).flatten()[:1]
            cell += space.num_layers * int(space.stage_of(sampling.timestep(sigma).float().cpu()))
        cell_states = context.narrow(1, cell * tokens, tokens)
        return n, cell_states, cell_states

    return patch


def packed_tokens(context: Tensor, space: ConditioningSpace) -> int | None:
    """T of a conditioning that was packed for this space, or None: plain ones are multiples of 77 rows long."""
    cells = space.num_layers * space.num_stages
    for tokens in range(TOKENS, TOKENS * (MOST_SECTIONS + 1), TOKENS):
        if context.shape[1] == cells * tokens + header_rows(tokens, context.shape[2]):
            return tokens
    return None
