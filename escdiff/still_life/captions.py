"""Captions from category words only: what is continuous about an instance is never said."""

from collections.abc import Collection

import numpy as np

from escdiff.still_life.world import Factors, Material

TEMPLATES = ("a photo of {}", "a picture of {}", "{}", "a render of {}", "one {}")


def material_words(material: Material) -> str:
    """E.g. "glossy red and white striped"; matte and plain have no word."""
    words = [] if material.finish == "matte" else [material.finish]
    words.append(material.color)
    if material.pattern != "plain":
        words += ["and", material.color2, material.pattern]
    return " ".join(words)


def article(phrase: str) -> str:
    return f"an {phrase}" if phrase[0] in "aeio" else f"a {phrase}"


def caption(factors: Factors, rng: np.random.Generator | None = None, hide: Collection[str] = ()) -> str:
    """Describe `factors` in words.

    Args:
        rng: draws the template and may drop the background; without it the canonical caption is given.
        hide: "shape" says "object" for the family, "appearance" drops the material words,
            "background" drops the background.
    """
    noun = "object" if "shape" in hide else factors.shape.family
    if "appearance" not in hide:
        noun = f"{material_words(factors.material)} {noun}"
    phrase = article(noun)
    if "background" not in hide and not (rng is not None and rng.random() < 0.1):
        phrase += f" on {article(factors.scene.background)} background"
    if rng is None:
        return TEMPLATES[0].format(phrase)
    template = str(rng.choice(TEMPLATES, p=(0.5, 0.15, 0.15, 0.1, 0.1)))
    return template.format(phrase.split(" ", 1)[1] if template.startswith("one") else phrase)
