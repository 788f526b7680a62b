"""All that words can say, and what lies between them: noun phrases whose degree words are mixed as the parameters ask.

"Very tall" and "tall" are two of five degrees; a mug between the two is told by a mixture of both. The encoder's word
loss has these mixtures as its targets (`escdiff.training.encoder.word_targets`). A phrase of one family, and of every
material, has the same number of places, so that mixtures of two instances are mixtures place by place.
"""

import math
from collections.abc import Sequence

from escdiff.mini.world import words
from escdiff.mini.world.world import PATTERNS, Material, Shape

Mixture = dict[str, float]  # word -> its share of one place of a phrase; the shares sum to 1


def shape_mixture(shape: Shape) -> tuple[Mixture, ...]:
    """The family between the degrees of the whole and those of its parts, in a caption's order, without its "with"."""
    whole: list[Mixture] = []
    parts: dict[str, list[Mixture]] = {}
    for trait, value in zip(words.SHAPE_TRAITS.get(shape.family, ()), shape.params, strict=False):
        places = whole if not trait.part else parts.setdefault(trait.part, [])
        places.append(blend(value, trait.words, trait.part or shape.family))
    return (*whole, {shape.family: 1.0}, *(place for part in parts for place in (*parts[part], {part: 1.0})))


def material_mixture(material: Material) -> tuple[Mixture, ...]:
    """The finish mixed with its gloss, each colour behind its shade, the pattern behind its scale and slant.

    What has no word, or does not show, gives its place to the word that it would be said of.
    """
    color = material.color
    color2 = material.color2 if material.shows("color2") else color
    pattern = material.pattern if material.pattern != PATTERNS[0] else color
    finish = material.finish if material.shows("gloss") else color
    shown = words.material_values(material)

    def degree(name: str, table: Sequence[str], head: str) -> Mixture:
        return blend(shown.get(name, 0.5), table, head)

    gloss = degree("gloss", words.GLOSS, finish)
    glossy = {word: gloss.get(word, 0.0) / 2 + (word == finish) / 2 for word in (*gloss, finish)}
    return (
        glossy,
        degree("shade", words.SHADE, color), {color: 1.0}, degree("shade2", words.SHADE, color2), {color2: 1.0},
        degree("scale", words.SCALE, pattern), degree("slant", words.SLANT, pattern), {pattern: 1.0}, {pattern: 1.0},
    )  # fmt: skip


def blend(value: float, degrees: Sequence[str], head: str) -> Mixture:
    """A parameter in 0..1 between the words of the two nearest of its degrees, each in the middle of its range.

    Args:
        degrees: five wordings; the words of one have equal shares. Where the middle one has words, too, all of them
            are whole numbers, and nothing lies between.
        head: what the degrees are said of; stands for the middle one, which has no word.
    """
    whole = bool(degrees[len(degrees) // 2])
    position = words.degree(value) if whole else min(max(value * len(degrees) - 0.5, 0.0), len(degrees) - 1.0)
    low = math.floor(position)
    share = position - low
    mixed: Mixture = {}
    for degree, weight in ((low, 1 - share), (low + 1, share)):
        said = degrees[degree].split() or [head] if weight else []
        for word in said:
            mixed[word] = mixed.get(word, 0.0) + weight / len(said)
    return mixed
