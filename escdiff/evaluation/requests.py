"""What each task asks for: (seed, number of pictures) -> requests. More pictures begin with the same ones."""

from dataclasses import replace

import numpy as np

from escdiff.evaluation.references import SEEN_FAMILIES as FAMILIES
from escdiff.evaluation.references import SEEN_PATTERNS as PATTERNS
from escdiff.evaluation.references import (
    Request,
    draw_instance,
    draw_material,
    draw_scene,
    draw_shape,
    in_new_scene,
    stream,
)
from escdiff.still_life import world
from escdiff.still_life.captions import article, caption, material_words
from escdiff.still_life.world import Factors


def _on(factors: Factors) -> str:
    return f"on {article(factors.scene.background)} background"


def fresh(seed: int, count: int) -> list[Request]:
    """Objects of the whole world, held-out ones too, with their captions."""
    rng = stream(seed, 0)
    drawn = [world.sample_factors(rng) for _ in range(count)]
    return [Request(caption(f), f) for f in drawn]


def text(seed: int, count: int) -> list[Request]:
    """As `fresh`, other ones."""
    rng = stream(seed, 1)
    drawn = [world.sample_factors(rng) for _ in range(count)]
    return [Request(caption(f), f) for f in drawn]


def both_of(reference: Factors, rng: np.random.Generator) -> Request:
    """The object of a reference in another scene."""
    target = in_new_scene(reference, rng)
    return Request(f"a photo of <concept> {_on(target)}", target, reference, reference)


def shape_of(reference: Factors, rng: np.random.Generator) -> Request:
    """The shape of a reference in a material that words give, without a colour of the reference."""
    own = {reference.material.color, reference.material.color2}
    material = draw_material(rng, avoid=own)
    target = Factors(reference.shape, material, draw_scene(rng, material, reference.scene.background))
    words = {reference.material.color, material.color, material.color2}
    other = draw_instance(rng, avoid_colors=words)
    prompt = f"a photo of {article(material_words(material))} <shape> {_on(target)}"
    return Request(prompt, target, shape=reference, other=other)


def appearance_of(reference: Factors, rng: np.random.Generator) -> Request:
    """The appearance of a reference on an object of another family, which a word gives."""
    target = replace(in_new_scene(reference, rng), shape=draw_shape(rng, avoid=(reference.shape.family,)))
    families = (reference.shape.family, target.shape.family)
    other = draw_instance(rng, avoid_families=families)
    prompt = f"a photo of a <appearance> {target.shape.family} {_on(target)}"
    return Request(prompt, target, appearance=reference, other=other)


def swap_of(one: Factors, two: Factors, rng: np.random.Generator) -> Request:
    """The shape of one reference in the appearance of another."""
    target = Factors(one.shape, two.material, draw_scene(rng, two.material))
    return Request(f"a photo of a <appearance> <shape> {_on(target)}", target, one, two)


def both(seed: int, count: int, families=FAMILIES, patterns=PATTERNS, number: int = 2) -> list[Request]:
    """An unseen instance in another scene: one reference for both attributes."""
    rng = stream(seed, number)
    return [both_of(draw_instance(rng, families, patterns), rng) for _ in range(count)]


def held_out(seed: int, count: int) -> list[Request]:
    """As `both`, of families and patterns that the encoder has never seen."""
    return both(seed, count, world.HELD_OUT_FAMILIES, world.HELD_OUT_PATTERNS, 3)


def shape(seed: int, count: int) -> list[Request]:
    """See `shape_of`, of unseen instances."""
    rng = stream(seed, 4)
    return [shape_of(draw_instance(rng), rng) for _ in range(count)]


def appearance(seed: int, count: int) -> list[Request]:
    """See `appearance_of`, of unseen instances."""
    rng = stream(seed, 5)
    return [appearance_of(draw_instance(rng), rng) for _ in range(count)]


def swap(seed: int, count: int) -> list[Request]:
    """All pairs of N shapes and N appearances, N*N = count, from 2 N references of different families and materials."""
    rng, side = stream(seed, 6), round(count**0.5)
    families, patterns, colors = (rng.permutation(names).tolist() for names in (FAMILIES, PATTERNS, list(world.COLORS)))
    shapes = [draw_instance(rng, (families[i % len(families)],)) for i in range(side)]
    materials = [_colored(rng, patterns[i % len(patterns)], colors[i % len(colors)]) for i in range(side)]
    return [swap_of(one, two, rng) for one in shapes for two in materials]


def _colored(rng, pattern: str, color: str) -> Factors:
    """A new instance of a pattern and a first colour."""
    while (found := draw_instance(rng, patterns=(pattern,))).material.color != color:
        pass
    return found


def ceiling(seed: int, count: int) -> list[Request]:
    """What a perfect model would paint for `both`."""
    return [Request("", request.expected) for request in both(seed, count)]


def floor(seed: int, count: int) -> list[Request]:
    """All that words can say of what `both` asks for."""
    return [Request(caption(request.expected), request.expected) for request in both(seed, count)]
