"""Texts and paths reach the configuration as people type them."""

import pytest

from escdiff.support.config.compose import compose, set_aside

TYPED = [
    "a photo of a <shape>, red",
    "it's \"quoted\" and 'quoted'",
    "[a] {b} (c) $d ${e} \\f \\${g} \\\\${h}",
    "a=b, c=d",
    "Tür aus Glas, Größe 3 — 写真",
    "  blanks around  ",
    "# not a comment",
    "null and void",
]


@pytest.mark.parametrize("text", TYPED)
def test_texts_reach_the_config_as_typed(text):
    config = compose("infer", [f"prompt={text}", "num_images=2"])
    assert (config.prompt, config.num_images) == (text, 2)


def test_paths_with_brackets_and_equal_signs():
    config = compose("infer", ["shape=dir [1]/a=b,c.png", "out=/tmp/x (2)", "encoder=a,b"])
    assert (config.shape, config.out, config.encoder.name) == ("dir [1]/a=b,c.png", "/tmp/x (2)", "a,b")


def test_the_last_of_two_wins_and_nothing_else_is_touched():
    arguments = ["prompt=a", "steps=3", "prompt=b", "encoder=c", "--multirun"]
    texts, rest = set_aside(arguments, {"prompt": "prompt", "encoder": "encoder.name"})
    assert (texts, rest) == ({"prompt": "b", "encoder.name": "c"}, ["steps=3", "--multirun"])


@pytest.mark.parametrize("nothing", ["", "null"])
def test_an_empty_text_is_none(nothing):
    assert compose("infer", [f"shape={nothing}"]).shape is None


def test_what_follows_from_a_text_follows_it():
    assert compose("train", ["run_id=a/${b},c"]).run_dir == "outputs/runs/a/${b},c"
