"""Phrases of training prompts, in which placeholders stand for attributes, and the templates around them."""

import numpy as np

TEMPLATES = ("a photo of {}", "a picture of {}", "{}", "a render of {}", "one {}")
SUBJECTS = ("<one>", "<two>")  # where the things of a scene that have references of their own stand in its caption
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


def article(phrase: str) -> str:
    """The phrase behind its article: "an orange mug", "a mug"."""
    return f"an {phrase}" if phrase[0] in "aeio" else f"a {phrase}"


def frame(phrase: str, rng: np.random.Generator) -> str:
    """Put a noun phrase, still without its article, into one of the captions' templates."""
    template = TEMPLATES[rng.integers(len(TEMPLATES))] if rng.random() < 0.5 else TEMPLATES[0]
    return template.format(phrase if template.startswith("one") else article(phrase))


def uses(prompt: str, attribute: str) -> bool:
    """Whether a prompt holds the attribute's placeholder (or the one for both)."""
    return f"<{attribute}>" in prompt or "<concept>" in prompt
