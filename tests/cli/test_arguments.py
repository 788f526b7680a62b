import pytest

from escdiff.cli.arguments import put_back, set_aside
from escdiff.cli.compose import compose
from escdiff.cli.infer import TEXTS

TYPED = [
    "a photo of a <shape>, red",
    "it's \"quoted\" and 'quoted'",
    "[a] {b} (c) $d ${e} \\f",
    "a=b, c=d",
    "Tür aus Glas, Größe 3 — 写真",
    "  blanks around  ",
    "# not a comment",
    "null and void",
]


@pytest.mark.parametrize("text", TYPED)
def test_texts_reach_the_config_as_typed(text):
    config = compose("infer", [f"prompt={text}", "num_images=2"], TEXTS)
    assert config["prompt"] == text
    assert config["num_images"] == 2


def test_paths_with_brackets_and_equal_signs():
    config = compose("infer", ["shape=dir [1]/a=b,c.png", "out=/tmp/x (2)"], TEXTS)
    assert (config["shape"], config["out"]) == ("dir [1]/a=b,c.png", "/tmp/x (2)")


def test_the_last_of_two_wins_and_nothing_else_is_touched():
    texts, rest = set_aside(["prompt=a", "steps=3", "prompt=b", "--multirun"], ("prompt",))
    assert (texts, rest) == ({"prompt": "b"}, ["steps=3", "--multirun"])


@pytest.mark.parametrize("nothing", ["", "null"])
def test_an_empty_text_is_none(nothing):
    config = {"data": {"root": "x"}}
    put_back(config, {"data.root": nothing})
    assert config == {"data": {"root": None}}
