"""Labels of grids: where their lines end."""

import pytest
from PIL import ImageFont

from escdiff.support.picture_grid import _wrap


@pytest.mark.parametrize(
    ("text", "lines"),
    [
        ("", []),
        ("my_photo", ["my_photo"]),
        ("make  the house white and red", ["make the house", "white and red"]),
        ("plug_and_play_masked", ["plug_and_play_", "masked"]),
        ("a_ b", ["a_ b"]),
        ("examples/photographs/mug.png", ["examples/", "photographs/", "mug.png"]),
        ("a two-coloured umbrella", ["a two-coloured", "umbrella"]),
        ("W" * 25, ["W" * 10, "W" * 10, "W" * 5]),
    ],
)
def test_a_label_ends_its_lines_where_words_and_names_may_end(text, lines):
    assert _wrap(text, ImageFont.load_default(12), 120) == lines
