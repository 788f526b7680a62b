from dataclasses import replace

import numpy as np
import pytest

from escdiff.mini.parts import make_tokenizer
from escdiff.mini.world import captions, words, world
from escdiff.mini.world.captions import all_words, caption, describe
from escdiff.mini.world.colors import BACKGROUNDS, COLORS, luma, readable, shaded
from escdiff.mini.world.world import Factors, Shape, sample_factors

LIMIT = 48  # tokens, start and end included


def draws(count: int, seed: int = 0) -> list[Factors]:
    return [sample_factors(np.random.default_rng([seed, i])) for i in range(count)]


def test_every_parameter_of_every_family_has_words_in_five_degrees():
    assert set(words.SHAPE_TRAITS) == set(world.FAMILIES)
    for family, traits in words.SHAPE_TRAITS.items():
        said = [[trait.phrase(degree) for degree in range(5)] for trait in traits]
        assert len(traits) == 4 and all(len(set(row)) == 5 for row in said)
        assert all(sum(not word for word in row) <= 1 for row in said), family
        assert len({word for row in said for word in row if word}) >= 16


def test_the_full_caption_changes_with_every_factor_that_has_words():
    first = draws(1)[0]
    first = replace(first, shape=Shape("mug", (0.1, 0.3, 0.7, 0.9)))
    looks = {"color": "red", "color2": "white", "pattern": "wavy", "scale": 0.4, "angle": -0.4, "finish": "glossy"}
    first = replace(first, material=replace(first.material, **looks, gloss=0.1, shade=0.1))
    text = describe(first).text
    changes = [
        {"scale": 0.8},
        {"angle": 0.4},
        {"gloss": 0.9},
        {"shade": 0.9},
        {"finish": "metallic"},
        {"color2": "black"},
    ]
    others = [replace(first, material=replace(first.material, **change)) for change in changes]
    params = first.shape.params
    others += [replace(first, shape=Shape("mug", (*params[:i], 1 - params[i], *params[i + 1 :]))) for i in range(4)]
    assert len({text, *(describe(other).text for other in others)}) == 11


def test_lengths_say_more_and_more():
    for factors in draws(100):
        brief, medium, full = (set(describe(factors, length).words) for length in captions.LENGTHS)
        assert brief <= medium <= full == set(all_words(factors))
        assert all(word in describe(factors).text for word in describe(factors).words.values() if "with" not in word)
    with pytest.raises(ValueError, match="length is 'long'"):
        describe(factors, "long")


def test_full_captions_fit_48_tokens():
    tokenizer = make_tokenizer()
    longest = max(len(tokenizer(describe(f).text).input_ids) for f in draws(1000))
    assert longest <= LIMIT


def test_drawn_captions_are_brief_and_full_and_say_only_what_is_true():
    factors = draws(2, seed=3)[1]
    said = {caption(factors, np.random.default_rng(i)) for i in range(300)}
    lengths = [len(text.split()) for text in said]
    assert len(said) > 150 and max(lengths) > 2 * min(lengths)
    known = {w for name, phrase in all_words(factors).items() for w in phrase.split()}
    known |= {other for table in (words.FAMILY_SYNONYMS, words.PATTERN_SYNONYMS) for o in table.values() for other in o}
    glue = {"a", "an", "photo", "picture", "render", "of", "one", "on", "background", "and", "with", "object"}
    assert {word for text in said for word in text.split()} <= known | glue


def test_hidden_attributes_take_their_degrees_along():
    for factors in draws(100):
        shape = describe(factors, hide=("shape",)).words
        look = describe(factors, hide=("appearance",)).words
        assert not set(shape) & set(captions.SHAPE) and not set(look) & set(captions.MATERIAL)


def test_no_two_words_share_a_synonym():
    nouns = [*world.FAMILIES, *(o for others in words.FAMILY_SYNONYMS.values() for o in others)]
    patterns = [*world.PATTERNS, *(o for others in words.PATTERN_SYNONYMS.values() for o in others)]
    assert len(set(nouns + patterns)) == len(nouns + patterns)


@pytest.mark.parametrize("color", COLORS)
def test_the_shades_of_a_color_stay_nearest_to_its_name(color):
    for shade in np.linspace(0, 1, 11):
        rgb = shaded(color, float(shade))
        nearest = min(COLORS, key=lambda name: np.linalg.norm(np.subtract(COLORS[name], rgb)))
        assert nearest == color
    assert luma(shaded(color, 0.0)) <= luma(shaded(color, 0.5)) == luma(COLORS[color]) <= luma(shaded(color, 1.0))


def test_no_drawn_object_is_unreadable():
    for f in draws(300):
        m = f.material
        assert readable(m.rgb, m.color, f.scene.background)
        assert abs(luma(shaded(m.color, m.shade)) - luma(shaded(m.color2, m.shade2))) > 0.2
    assert all(any(readable(COLORS[c], c, b) for b in BACKGROUNDS) for c in COLORS)


def test_nameless_seeds_of_the_bench_are_never_trained_on():
    rng = np.random.default_rng(0)
    seeds = {p: {world.nameless_seed(rng, p) for _ in range(300)} for p in ("train", "judge", "bench")}
    assert all(world.purpose_of(s) == p for p, drawn in seeds.items() for s in drawn)
    share = np.mean([world.purpose_of(i) == "train" for i in range(4000)])
    assert 0.65 < share < 0.75


def test_captions_cannot_tell_nameless_things_apart():
    rng = np.random.default_rng(0)
    base = draws(1)[0]
    texts = {describe(replace(base, shape=world.sample_thing(rng))).text for _ in range(20)}
    assert len(texts) == 1
    textures = [replace(base.material, pattern=world.TEXTURED, seed=seed) for seed in range(20)]
    assert len({describe(replace(base, material=material)).text for material in textures}) == 1
