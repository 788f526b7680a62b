"""Training prompts of photographs: never a word about an attribute that a placeholder stands for."""

import re
from collections.abc import Mapping
from typing import Any

import numpy as np

from escdiff.data.photos import captions
from escdiff.data.prompts import APPEARANCE_ONLY, BOTH, PHRASES, SHAPE_ONLY, article, frame


def photo_prompt(meta: Mapping[str, Any], mode: str, rng: np.random.Generator, drop_caption: float = 0.0) -> str:
    """A prompt for a photo out of its caption, with placeholders where the noun stood and the scene kept.

    "a photo of a <appearance> <shape> on a table" of "a photo of a shiny red mug on a wooden table".

    Args:
        meta: the sample's json. Read are "caption_neutral" (else "caption" without its words about appearance) for
            `BOTH` and `APPEARANCE_ONLY`, "caption" for `SHAPE_ONLY`, and "category", the noun (else the caption's).
        mode: which placeholders the prompt holds, see `PHRASES`; `BOTH` where words about the attribute are wanted
            and there are none.
        drop_caption: probability that the scene is left out: "a photo of a <appearance> <shape>".
    """
    full, category = _text(meta, "caption"), _text(meta, "category")
    plain = _text(meta, "caption_neutral") or captions.neutral(full)
    described = captions.describe(full if mode == SHAPE_ONLY else plain, category)
    if mode == SHAPE_ONLY and not (described and described.looks):
        mode, described = BOTH, captions.describe(plain, category)
    thing = described.noun if described and described.noun else category
    if mode == APPEARANCE_ONLY and not thing:
        mode = BOTH
    phrase = PHRASES[mode][rng.integers(len(PHRASES[mode]))]
    phrase = phrase.format(material=described.looks if described else "", family=thing)
    if rng.random() < drop_caption or described is None or (mode != APPEARANCE_ONLY and _names(described, thing)):
        return frame(phrase, rng)
    before = re.sub(
        r"\b([Aa])n?\s+$", lambda match: f"{match[1]}{article(phrase)[1:].split(' ')[0]} ", described.before
    )
    return before + phrase + described.after


def _text(meta: Mapping[str, Any], name: str) -> str:
    value = meta.get(name)
    return " ".join(value.split()) if isinstance(value, str) else ""


def _names(described: captions.Described, thing: str) -> bool:
    """Whether the caption says its noun a second time."""
    around = {word.lower() for word in captions.TOKEN.findall(f"{described.before} {described.after}")}
    return any(word.lower() in around for word in thing.split()[-1:])
