"""Degree words as questions of their own: how tall is this mug, how pale is this red, how fine are these stripes?

In a batch of captions a picture is told apart without them, so contrast alone hardly teaches them.
"""

from collections.abc import Sequence

import torch
from torch import Tensor

from escdiff.mini.data.arrays import UNNAMED
from escdiff.mini.world import words
from escdiff.mini.world.captions import TRAITS, sentence
from escdiff.mini.world.colors import COLORS
from escdiff.mini.world.world import FAMILIES, PATTERNS, TWO_ALIKE, Factors

# Which attribute a degree belongs to, hence what the question names, and that attribute's words.
OF = dict.fromkeys(TRAITS, ("family", FAMILIES)) | {
    "shade": ("color", tuple(COLORS)), "scale": ("pattern", PATTERNS), "slant": ("pattern", PATTERNS),
}  # fmt: skip
TABLES = {"shade": words.SHADE, "scale": words.SCALE, "slant": words.SLANT}


def texts(kind: str) -> list[str]:
    """The captions of one kind of degree, `DEGREES` for each word of the attribute: "a photo of a very tall mug"."""
    attribute, choices = OF[kind]
    return [
        sentence({attribute: word, kind: wording} if (wording := _wording(kind, word, degree)) else {attribute: word})
        for word in choices
        for degree in range(words.DEGREES)
    ]


def labels(pictures: Sequence[Factors]) -> dict[str, Tensor]:
    """Per kind (B, 2): the attribute's word and the degree; `UNNAMED` twice where the picture does not say it."""
    targets = {kind: torch.full((len(pictures), 2), UNNAMED) for kind in OF}
    for row, picture in enumerate(pictures):
        if not isinstance(picture, Factors):
            continue
        degrees = words.shape_degrees(picture.shape) | words.material_degrees(picture.material)
        if picture.material.pattern in TWO_ALIKE:
            degrees.pop("shade", None)  # nobody can tell which colour is meant
        named = {"family": picture.shape.family, "color": picture.material.color, "pattern": picture.material.pattern}
        for kind, (attribute, choices) in OF.items():
            if kind in degrees and named[attribute] in choices:
                targets[kind][row] = torch.tensor([choices.index(named[attribute]), degrees[kind]])
    return targets


def logits(likeness: Tensor, attribute: Tensor) -> Tensor:
    """Each picture's likeness to the five degrees of its own attribute's word.

    Args:
        likeness: (B, words * DEGREES), of pictures to `texts` of a kind.
        attribute: (B,) numbers of words; rows with `UNNAMED` get those of the first word.

    Returns:
        (B, DEGREES)
    """
    degrees = likeness.unflatten(1, (-1, words.DEGREES))
    return degrees[torch.arange(len(degrees), device=degrees.device), attribute.clamp(min=0)]


def _wording(kind: str, word: str, degree: int) -> str:
    if kind in TABLES:
        return TABLES[kind][degree]
    return words.SHAPE_TRAITS[word][int(kind[-1])].phrase(degree) if word in words.SHAPE_TRAITS else ""
