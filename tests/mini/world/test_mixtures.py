"""Word targets between the degrees: continuous, in a caption's order, of as many places for every instance."""

from dataclasses import replace

import numpy as np
import pytest

from escdiff.mini.world import words, world
from escdiff.mini.world.mixtures import blend, material_mixture, shape_mixture
from escdiff.mini.world.world import THING, Shape, sample_factors

TALL = ("very short", "short", "", "tall", "very tall")


def apart(one, other):
    """How much two phrases differ, place by place."""
    pairs = zip(one, other, strict=True)
    return sum(abs(a.get(word, 0) - b.get(word, 0)) for a, b in pairs for word in a.keys() | b.keys())


def test_a_degree_in_the_middle_of_its_range_is_its_own_words():
    assert blend(0.1, TALL, "mug") == {"very": 0.5, "short": 0.5}
    assert blend(0.3, TALL, "mug") == {"short": 1.0} and blend(0.5, TALL, "mug") == {"mug": 1.0}
    assert blend(0.0, TALL, "mug") == blend(0.1, TALL, "mug") and blend(1.0, TALL, "mug") == blend(0.9, TALL, "mug")


def test_between_two_degrees_both_are_said_in_part():
    assert blend(0.65, TALL, "mug") == pytest.approx({"mug": 0.25, "tall": 0.75})
    assert blend(0.8, TALL, "mug") == pytest.approx({"tall": 0.75, "very": 0.25})


def test_whole_numbers_have_nothing_between_them():
    points = words.SHAPE_TRAITS["star"][2].words
    assert [blend(value, points, "points") for value in (0.19, 0.21, 0.99)] == [{w: 1.0} for w in
                                                                               ("four", "five", "eight")]  # fmt: skip


def test_a_mug_in_the_order_of_its_caption():
    mug = shape_mixture(Shape("mug", (0.3, 0.9, 0.7, 0.5)))
    assert mug == ({"narrow": 1.0}, {"very": 0.5, "tall": 0.5}, {"mug": 1.0}, {"mug": 1.0}, {"large": 1.0},
                   {"handle": 1.0})  # fmt: skip
    assert shape_mixture(Shape(THING, (0.5,) * 4, 3)) == ({THING: 1.0},)


def test_every_instance_of_a_family_and_every_material_has_the_same_places():
    rng = np.random.default_rng(0)
    for family in world.FAMILIES:
        assert len({len(shape_mixture(world.sample_shape(rng, (family,)))) for _ in range(20)}) == 1
    phrases = [material_mixture(world.sample_material(rng)) for _ in range(200)]
    assert {len(phrase) for phrase in phrases} == {9}
    assert all(sum(place.values()) == pytest.approx(1) for phrase in phrases for place in phrase)


def test_a_small_change_moves_the_phrase_a_little_and_nothing_hidden_moves_it():
    material = replace(sample_factors(np.random.default_rng(5)).material, color="red", color2="white",
                       pattern="striped", finish="glossy", shade=0.3, scale=0.5, angle=0.1, gloss=0.6)  # fmt: skip
    for name, step in (("shade", 0.02), ("shade2", 0.0), ("scale", 0.01), ("angle", 0.02), ("gloss", 0.02)):
        moved = replace(material, **{name: getattr(material, name) + step})
        assert (0 < apart(material_mixture(material), material_mixture(moved)) < 0.5) == bool(step)
    matte = replace(material, finish="matte", pattern="plain")
    assert material_mixture(matte) == material_mixture(replace(matte, gloss=0.1, color2="blue", scale=0.7, angle=0.4))
    assert set().union(*material_mixture(replace(matte, shade=0.5))) == {"red"}
