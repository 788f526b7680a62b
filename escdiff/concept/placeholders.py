"""Placeholders: the pseudo-words of a prompt, the attributes they stand for, and the tokens they take."""

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from escdiff.conditioning import PromptEncoder
from escdiff.conditioning.text_tower import normalized
from escdiff.support.errors import UserError

ATTRIBUTES = ("shape", "appearance")
WHOLE = "concept"  # `<concept>` stands for all attributes


def placeholder(attribute: str) -> str:
    """The pseudo-word of an attribute or a name: "shape" -> "<shape>", "red mug" -> "<red mug>".

    Raises:
        UserError: a name that cannot stand in a prompt.
    """
    name = normalized(attribute)
    if not name or name != name.strip() or not name.isprintable() or "<" in name or ">" in name:
        raise UserError(
            f"the name {attribute!r} cannot stand in a prompt; expected text without < or >, without line breaks and "
            "without blanks at its ends, such as mug"
        )
    return f"<{name}>"


def plain_prompt(attributes: Sequence[str]) -> str:
    """All that a concept has, in one phrase."""
    if attributes == ATTRIBUTES:
        return "a photo of a <appearance> <shape>"
    if attributes == ("appearance",):
        return "a photo of a <appearance> object"
    return f"a photo of a {placeholder(attributes[0] if len(attributes) == 1 else WHOLE)}"


def attribute_parts(counts: Mapping[str, int], name: str | None = None) -> dict[str, list[tuple[str, int]]]:
    """Placeholder -> the attributes that it stands for, each with its K; `<concept>` for all in their order.

    Args:
        counts: placeholder -> K.
        name: of the concept, see `Concept.placeholders`.
    """
    prefix = f"{name}-" if name else ""
    sizes = {a: counts[word] for a in ATTRIBUTES if (word := placeholder(prefix + a)) in counts}
    return {placeholder(prefix + a): [(a, size)] for a, size in sizes.items()} | {
        placeholder(name or WHOLE): list(sizes.items())
    }


def mask_slots(
    slots: Sequence[Sequence[tuple[str, int]]], parts: Mapping[str, Sequence[tuple[str, int]]], length: int,
    attributes: Sequence[str] = ATTRIBUTES,
) -> Tensor:  # fmt: skip
    """(B, A, T), 1 at the tokens of each of the attributes.

    Args:
        slots: of every prompt, (placeholder, first position) pairs.
        parts: see `attribute_parts`.
        length: T.
    """
    masks = torch.zeros(len(slots), len(attributes), length)
    for row, own in enumerate(slots):
        for name, position in own:
            for attribute, size in parts.get(name, ()):
                masks[row, attributes.index(attribute), position : position + size] = 1
                position += size
    return masks


def token_masks(prompts: PromptEncoder, texts: Sequence[str], counts: Mapping[str, int]) -> Tensor:
    """`mask_slots` of texts whose placeholders have no concept's name.

    Args:
        counts: placeholder -> K.
    """
    slots = [prompts.tokenize(text, counts).slots for text in texts]
    return mask_slots(slots, attribute_parts(counts), prompts.max_length)
