"""Concepts under names of their own, so that several stand in one prompt: <mug> beside <dog>."""

from dataclasses import replace

import torch

from escdiff.concept import ATTRIBUTES, Concept
from escdiff.support.errors import UserError


def under(name: str, concept: Concept) -> dict[str, Concept]:
    """Attribute -> concept that has it: all of a concept as `name`, and its shape and appearance where it has both."""
    found = {name: renamed(concept, name)}
    if set(ATTRIBUTES) <= set(concept.attributes):
        found |= {f"{name}-{part}": renamed(concept.only(part), f"{name}-{part}") for part in ATTRIBUTES}
    return found


def renamed(concept: Concept, name: str) -> Concept:
    """A concept with all of its vectors under one name.

    Raises:
        UserError: one that is fused at several of its words.
    """
    vectors, anchors = torch.cat(list(concept.vectors.values()), 2), torch.cat(list(concept.anchors.values()))
    if concept.fused and len(concept.vectors) > 1:
        raise UserError(f"the concept for <{name}> is fused at one of several words; give it alone, without a name")
    fused = dict(zip([name], concept.fused.values(), strict=False))
    gates = dict(zip([name], concept.gates.values(), strict=False)) if fused else {}
    words = {name: " ".join(concept.words.values())} if concept.words else {}
    return replace(concept, vectors={name: vectors}, anchors={name: anchors}, gates=gates, fused=fused, words=words)
