"""Prompts of photographs: their captions with placeholders where the noun stood."""

import numpy as np
import pytest

from escdiff.data.photos.prompts import photo_prompt
from escdiff.data.prompts import APPEARANCE_ONLY, BOTH, SHAPE_ONLY, uses

MUG = {
    "caption": "an old photo of a shiny red and white striped mug on a wooden table",
    "caption_neutral": "an old photo of a mug on a table",
    "category": "mug",
}


def drawn(meta, mode, drop=0.0, count=60) -> set[str]:
    return {photo_prompt(meta, mode, np.random.default_rng(seed), drop) for seed in range(count)}


def test_the_scene_stays_and_the_placeholders_stand_where_the_noun_stood():
    for prompt in drawn(MUG, BOTH):
        assert prompt.startswith("an old photo of a <") and prompt.endswith(" on a table")
        assert uses(prompt, "shape") and uses(prompt, "appearance")
        assert not {"mug", "red", "striped", "wooden"} & set(prompt.split())
    assert "an old photo of a <appearance> <shape> on a table" in drawn(MUG, BOTH)


def test_appearance_only_says_the_noun_and_shape_only_the_looks():
    for prompt in drawn(MUG, APPEARANCE_ONLY):
        assert "mug" in prompt.split() and prompt.endswith("on a table")
        assert uses(prompt, "appearance") and not uses(prompt, "shape") and "red" not in prompt
    assert drawn(MUG, SHAPE_ONLY) == {"an old photo of a shiny red and white striped <shape> on a wooden table"}
    orange = {"caption": "an orange octopus", "category": "octopus"}
    assert drawn(orange, SHAPE_ONLY) == {"an orange <shape>"}
    assert {"a <appearance> octopus", "an octopus with <appearance>"} <= drawn(orange, APPEARANCE_ONLY)


def test_captions_are_dropped_at_their_share_and_by_the_seed():
    def scenes(drop, seeds=20):
        return [
            "table" in photo_prompt(MUG, mode, np.random.default_rng([seed, n]), drop)
            for seed in range(seeds)
            for n, mode in enumerate((BOTH, SHAPE_ONLY, APPEARANCE_ONLY))
        ]

    assert all(scenes(0.0)) and not any(scenes(1.0))
    assert 0.2 < 1 - np.mean(scenes(0.3, 300)) < 0.4 and scenes(0.3) == scenes(0.3)
    assert all("<shape>" in prompt for prompt in drawn(MUG, BOTH, drop=1.0))


@pytest.mark.parametrize("mode", [BOTH, SHAPE_ONLY, APPEARANCE_ONLY])
def test_what_is_not_known_is_left_to_the_placeholders(mode):
    for meta in ({}, {"caption": "", "category": None}, {"caption": ["no text"]}):
        assert all(uses(prompt, "shape") and uses(prompt, "appearance") for prompt in drawn(meta, mode))
    for prompt in drawn({"category": "vase"}, mode):
        assert ("vase" in prompt.split()) == (mode == APPEARANCE_ONLY)


def test_without_a_category_the_captions_noun_is_taken():
    bare = {"caption": "a shiny red mug on a table"}
    assert "a <appearance> <shape> on a table" in drawn(bare, BOTH)
    assert drawn(bare, SHAPE_ONLY) == {"a shiny red <shape> on a table"}
    assert all("mug" in prompt for prompt in drawn(bare, APPEARANCE_ONLY))


def test_a_caption_that_says_its_noun_twice_gives_no_scene():
    twice = {"caption": "a mug beside another mug", "category": "mug"}
    assert not any("mug" in prompt.split() for prompt in drawn(twice, BOTH))


def test_a_shape_without_words_about_its_looks_keeps_both_placeholders():
    assert all(uses(prompt, "appearance") for prompt in drawn({"caption": "a mug on a table"}, SHAPE_ONLY))


def test_a_place_may_be_marked_in_any_language():
    marked = {"caption_neutral": "eine <concept> auf dem Tisch", "category": "Tasse"}
    assert "eine <appearance> <shape> auf dem Tisch" in drawn(marked, BOTH)
    assert "eine <appearance> Tasse auf dem Tisch" in drawn(marked, APPEARANCE_ONLY)
