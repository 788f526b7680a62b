"""Requests of each task: (seed, number of pictures) -> requests. More pictures begin with the same ones."""

from collections.abc import Sequence
from dataclasses import replace

import numpy as np

from escdiff.data.prompts import article
from escdiff.evaluation.bench.instances import (
    PURPOSE,
    Request,
    draw_instance,
    draw_material,
    draw_scene,
    draw_shape,
    in_new_scene,
    stream,
)
from escdiff.evaluation.bench.instances import SEEN_FAMILIES as FAMILIES
from escdiff.evaluation.bench.instances import SEEN_PATTERNS as PATTERNS
from escdiff.mini.data.lineups import namesakes
from escdiff.mini.world import world
from escdiff.mini.world.captions import caption, describe, material_words
from escdiff.mini.world.world import Factors


def _on(factors: Factors) -> str:
    return f"on {article(factors.scene.background)} background"


def fresh(seed: int, count: int) -> list[Request]:
    """Objects of the whole world, held-out ones too, with their captions."""
    rng = stream(seed, 0)
    drawn = [world.sample_factors(rng) for _ in range(count)]
    return [Request(caption(f), f) for f in drawn]


def text(seed: int, count: int) -> list[Request]:
    """Fresh renders, other ones than those of `fresh`."""
    rng = stream(seed, 1)
    drawn = [world.sample_factors(rng) for _ in range(count)]
    return [Request(caption(f), f) for f in drawn]


def both_of(reference: Factors, rng: np.random.Generator) -> Request:
    """The object of a reference in another scene."""
    target = in_new_scene(reference, rng)
    return Request(f"a photo of <concept> {_on(target)}", target, reference, reference)


def shape_of(reference: Factors, rng: np.random.Generator) -> Request:
    """The shape of a reference in a material that words give, without a colour of the reference."""
    colors = {reference.material.color, reference.material.color2}
    material = draw_material(rng, avoid=colors)
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


def swap_of(shape: Factors, appearance: Factors, rng: np.random.Generator) -> Request:
    """The shape of one reference in the appearance of another."""
    target = Factors(shape.shape, appearance.material, draw_scene(rng, appearance.material))
    return Request(f"a photo of a <appearance> <shape> {_on(target)}", target, shape, appearance)


def both(seed: int, count: int, families=FAMILIES, patterns=PATTERNS, number: int = 2) -> list[Request]:
    """An unseen instance in another scene: one reference for both attributes."""
    rng = stream(seed, number)
    return [both_of(draw_instance(rng, families, patterns), rng) for _ in range(count)]


def held_out(seed: int, count: int) -> list[Request]:
    """Requests as of `both`, in families and patterns that the encoder has never seen."""
    return both(seed, count, world.HELD_OUT_FAMILIES, world.HELD_OUT_PATTERNS, 3)


def shape(seed: int, count: int) -> list[Request]:
    """Requests of `shape_of` the references of `both`."""
    rng = stream(seed, 4)
    return [shape_of(request.shape, rng) for request in both(seed, count)]


def appearance(seed: int, count: int) -> list[Request]:
    """Requests of `appearance_of` the references of `both`."""
    rng = stream(seed, 5)
    return [appearance_of(request.appearance, rng) for request in both(seed, count)]


def swap(seed: int, count: int) -> list[Request]:
    """All pairs of N shapes and N appearances, N*N = count, from 2 N references of different families and materials."""
    rng, side = stream(seed, 6), round(count**0.5)
    families, patterns, colors = (rng.permutation(names).tolist() for names in (FAMILIES, PATTERNS, list(world.COLORS)))
    shapes = [draw_instance(rng, (families[i % len(families)],)) for i in range(side)]
    materials = [_colored(rng, patterns[i % len(patterns)], colors[i % len(colors)]) for i in range(side)]
    return [swap_of(shape, material, rng) for shape in shapes for material in materials]


def _colored(rng, pattern: str, color: str) -> Factors:
    """A new instance of a pattern and a first colour."""
    while (instance := draw_instance(rng, patterns=(pattern,))).material.color != color:
        pass
    return instance


def ceiling(seed: int, count: int) -> list[Request]:
    """The pictures that a perfect model would paint for `both`."""
    return [Request("", request.expected) for request in both(seed, count)]


def floor(seed: int, count: int) -> list[Request]:
    """All that words can say of what `both` asks for."""
    return [Request(caption(request.expected), request.expected) for request in both(seed, count)]


def words_brief(seed: int, count: int) -> list[Request]:
    """The instances of `both` in the words that a person would type."""
    return in_words(both(seed, count), "brief")


def words_full(seed: int, count: int) -> list[Request]:
    """All that words can say of the instances of `both`, degrees included."""
    return in_words(both(seed, count), "full")


def nameless(seed: int, count: int) -> list[Request]:
    """Requests as of `both`: a thing in a named material, or a texture on a named shape, by turns."""
    rng, requests = stream(seed, 7), []
    for i in range(count):
        named = draw_instance(rng)
        if i % 2:
            material = world.sample_texture(rng, PURPOSE)
            named = Factors(named.shape, material, draw_scene(rng, material))
        else:
            named = replace(named, shape=world.sample_thing(rng, PURPOSE))
        requests.append(both_of(named, rng))
    return requests


def nameless_words(seed: int, count: int) -> list[Request]:
    """All that words can say of the instances of `nameless`."""
    return in_words(nameless(seed, count), "full")


def swap_words(seed: int, count: int) -> list[Request]:
    """All that words can say of what `swap` asks for."""
    return in_words(swap(seed, count), "full")


def nameless_ceiling(seed: int, count: int) -> list[Request]:
    """The pictures that a perfect model would paint for `nameless`."""
    return [Request("", request.expected) for request in nameless(seed, count)]


def stranger(seed: int, count: int) -> list[Request]:
    """The requests of `both`, answered by another instance of the same names: see `Request.shown`."""
    rng, requests = stream(seed, 8), []
    for request in both(seed, count):
        expected = request.expected
        (shape,) = namesakes([expected.shape], 1, rng, PURPOSE)
        (material,) = namesakes([expected.material], 1, rng, PURPOSE)
        requests.append(Request("", expected, shown=replace(expected, shape=shape, material=material)))
    return requests


def in_words(requests: Sequence[Request], length: str) -> list[Request]:
    """What is expected of requests, by captions of one of `captions.LENGTHS` alone."""
    return [Request(describe(request.expected, length).text, request.expected) for request in requests]
