import json
from dataclasses import replace

import numpy as np
import pytest

from escdiff.mini.world import world
from escdiff.mini.world.captions import caption
from escdiff.mini.world.world import Factors, Material, Scene, Shape, held_out, sample_factors


@pytest.fixture
def mug() -> Factors:
    material = Material("red", "white", "striped", 0.5, 0.0, "glossy", 0.5, (0.0,) * 3, (0.0,) * 3, 1)
    return Factors(Shape("mug", (0.5,) * 4), material, Scene("navy", 0, 0, 0, 0.3, 1, 0, 0))


def test_the_world_is_as_large_as_promised():
    assert len(world.FAMILIES) >= 18
    assert (len(world.PATTERNS), len(world.COLORS), len(world.BACKGROUNDS)) == (10, 12, 8)
    assert len(world.HELD_OUT_FAMILIES) >= 3 and len(world.HELD_OUT_PATTERNS) >= 2


def test_same_seed_same_factors_and_json_round_trip():
    first, again = (sample_factors(np.random.default_rng(7)) for _ in range(2))
    assert first == again
    assert Factors.from_dict(json.loads(json.dumps(first.to_dict()))) == first


def test_an_object_is_never_swallowed_by_its_background():
    rng = np.random.default_rng(0)
    for _ in range(300):
        factors = sample_factors(rng)
        assert factors.material.color not in world.CLASHES[factors.scene.background]


def test_about_a_twentieth_of_the_combinations_is_held_out(mug):
    names = [(f, p, c) for f in world.FAMILIES for p in world.PATTERNS for c in world.COLORS]
    share = np.mean([held_out(Shape(f, (0.5,) * 4), replace(mug.material, pattern=p, color=c)) for f, p, c in names])
    assert 0.03 < share < 0.07


def test_captions_say_category_words_only(mug):
    assert caption(mug) == "a photo of a glossy red and white striped mug on a navy background"
    assert caption(mug, hide=("shape",)) == "a photo of a glossy red and white striped object on a navy background"
    assert caption(mug, hide=("appearance",)) == "a photo of a mug on a navy background"
    assert caption(mug, hide=("background",)) == "a photo of a glossy red and white striped mug"
    other = replace(mug, shape=Shape("mug", (0.1, 0.9, 0.2, 0.8)))
    assert caption(other) == caption(mug)


def test_plain_and_matte_have_no_word_and_articles_fit(mug):
    plain = replace(mug.material, color="orange", pattern="plain", finish="matte")
    assert caption(replace(mug, material=plain), hide=("background",)) == "a photo of an orange mug"


def test_a_drawn_caption_depends_on_its_generator_only(mug):
    texts = {caption(mug, np.random.default_rng(seed)) for seed in range(40)}
    assert len(texts) > 4
    assert caption(mug, np.random.default_rng(3)) == caption(mug, np.random.default_rng(3))
