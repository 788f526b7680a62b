import pytest

from escdiff.data.photos.captions import MAX_WORDS, describe, neutral, noun


@pytest.mark.parametrize(
    ("caption", "wanted"),
    [
        ("a photo of a shiny red and white striped mug on a wooden table", "a photo of a mug on a table"),
        ("a photo of a matte olive mug on a navy background", "a photo of a mug on a background"),
        ("an orange cat", "a cat"),
        ("an orange on a plate", "an orange on a plate"),
        ("a glass of water", "a glass of water"),
        ("a glass vase", "a vase"),
        ("a vase made of glass", "a vase"),
        ("a chair made out of wood and metal", "a chair"),
        ("a dress in red", "a dress"),
        ("a cup with white stripes", "a cup"),
        ("a cup with red flowers", "a cup with flowers"),
        ("a dark-blue car, a light green door", "a car, a door"),
        ("a black-and-white dog", "a dog"),
        ("Red, green and blue balls in a box.", "balls in a box."),
        ("A red apple and a green pear", "An apple and a pear"),
        ("the ball is blue", "the ball"),
        ("a dark room", "a dark room"),
        ("a gold ring", "a ring"),
        ("a dog in a park", "a dog in a park"),
        ("", ""),
        ("red", ""),
        ("ein rotes Haus", "ein rotes Haus"),
    ],
)
def test_neutral(caption, wanted):
    assert neutral(caption) == wanted
    assert neutral(wanted) == wanted


def test_every_still_life_caption_becomes_the_one_that_hides_appearance():
    import numpy as np

    from escdiff.mini.world import world
    from escdiff.mini.world.captions import caption
    from escdiff.mini.world.world import Factors

    rng = np.random.default_rng(0)
    for _ in range(200):
        shape, material = world.sample_shape(rng), world.sample_material(rng)
        factors = Factors(shape, material, world.sample_scene(rng, material))
        said = neutral(caption(factors, hide=("background",)))
        assert said == caption(factors, hide=("background", "appearance")), caption(factors)
        assert noun(caption(factors)) == shape.family.split()[-1]


@pytest.mark.parametrize(
    ("caption", "wanted"),
    [
        ("a photo of a red mug on a table", "mug"),
        ("A close-up of a fluffy cat sleeping on a sofa", "cat"),
        ("two wooden chairs", "chairs"),
        ("an old fire engine", "engine"),
        ("the dog, which barks", "dog"),
        ("rendering of a rocket", "rocket"),
        ("12 3", ""),
        ("", ""),
    ],
)
def test_noun(caption, wanted):
    assert noun(caption) == wanted


@pytest.mark.parametrize(
    ("caption", "category", "wanted"),
    [
        (
            "a photo of a shiny red and white striped coffee mug on a wooden table", "mug",
            ("a photo of a ", "shiny red and white striped", "coffee mug", " on a wooden table"),
        ),
        ("man holding red mug", "mug", ("man holding ", "red", "mug", "")),
        ("a cat, a dog", "", ("a ", "", "cat", ", a dog")),
        ("two red mugs on a shelf", "coffee mug", ("two ", "red", "mugs", " on a shelf")),
        ("a kitten in the grass", "cat", ("a ", "", "kitten", " in the grass")),
        ("eine <concept> auf dem Tisch", "Tasse", ("eine ", "", "Tasse", " auf dem Tisch")),
    ],
)  # fmt: skip
def test_a_caption_is_cut_around_its_noun(caption, category, wanted):
    assert describe(caption, category) == wanted


def test_captions_without_a_noun_and_long_ones():
    assert describe("") is None and describe("", "mug") is None and describe("'s s") is None
    long = describe("a red mug " + "and then another word " * 30, "mug")
    assert len(f"{long.before}{long.looks} {long.noun}{long.after}".split()) == MAX_WORDS
    assert describe("well, " * MAX_WORDS + "a mug", "mug").noun == "well"
