"""The concept: what was learned from a reference, its file, and mixing two of them."""

from escdiff.concept.concept import IMAGE_TOKENS, LAYERS, TEXT_ENCODER, Concept
from escdiff.concept.placeholders import (
    ATTRIBUTES,
    WHOLE,
    attribute_parts,
    mask_slots,
    placeholder,
    plain_prompt,
    token_masks,
)

__all__ = [
    "ATTRIBUTES",
    "IMAGE_TOKENS",
    "LAYERS",
    "TEXT_ENCODER",
    "WHOLE",
    "Concept",
    "attribute_parts",
    "mask_slots",
    "placeholder",
    "plain_prompt",
    "token_masks",
]
