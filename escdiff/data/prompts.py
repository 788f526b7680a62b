"""Training prompts with placeholders: never a word about an attribute that a placeholder stands for."""

import numpy as np

from escdiff.still_life.captions import TEMPLATES, article, material_words
from escdiff.still_life.world import Factors

BOTH, SHAPE_ONLY, APPEARANCE_ONLY = "both", "shape", "appearance"
PHRASES = {
    BOTH: (
        "<appearance> <shape>", "<appearance> <shape>", "<shape> with <appearance>",
        "<shape> in <appearance>", "<appearance> colored <shape>", "<shape> covered in <appearance>",
        "<shape> <appearance>", "<shape> made of <appearance>",
    ),
    SHAPE_ONLY: ("{material} <shape>",),
    APPEARANCE_ONLY: (
        "<appearance> {family}", "<appearance> {family}",
        "{family} with <appearance>", "{family} in <appearance>",
    ),
}  # fmt: skip
BACKGROUND_SHARE = 0.9


def still_life_prompt(factors: Factors, mode: str, rng: np.random.Generator) -> str:
    """E.g. "a photo of a <appearance> <shape> on a navy background".

    Args:
        mode: `BOTH` placeholders; `SHAPE_ONLY`: the material is said in words ("a glossy red <shape>");
            `APPEARANCE_ONLY`: the family is ("a <appearance> mug").
    """
    phrases = PHRASES[mode]
    phrase = phrases[rng.integers(len(phrases))]
    phrase = phrase.format(material=material_words(factors.material), family=factors.shape.family)
    if rng.random() < BACKGROUND_SHARE:
        phrase += f" on {article(factors.scene.background)} background"
    return frame(phrase, rng)


def photo_prompt(category: str | None, mode: str, rng: np.random.Generator) -> str:
    """A prompt for a photo of which at most the category word is known."""
    if mode == APPEARANCE_ONLY and category:
        phrases = PHRASES[APPEARANCE_ONLY]
        return frame(phrases[rng.integers(len(phrases))].format(family=category), rng)
    phrases = PHRASES[BOTH]
    return frame(phrases[rng.integers(len(phrases))], rng)


def frame(phrase: str, rng: np.random.Generator) -> str:
    """Put a noun phrase, still without its article, into one of the captions' templates."""
    template = TEMPLATES[rng.integers(len(TEMPLATES))] if rng.random() < 0.5 else TEMPLATES[0]
    return template.format(phrase if template.startswith("one") else article(phrase))


def uses(prompt: str, attribute: str) -> bool:
    """Whether a prompt holds the attribute's placeholder (or the one for both)."""
    return f"<{attribute}>" in prompt or "<concept>" in prompt
