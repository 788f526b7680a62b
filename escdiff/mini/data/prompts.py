"""Training prompts of Still Life: never a word about an attribute that a placeholder stands for."""

import numpy as np

from escdiff.data.prompts import PHRASES, article, frame
from escdiff.mini.world.captions import material_words
from escdiff.mini.world.world import Factors

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
