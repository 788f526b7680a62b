"""Another library's error as a part of a sentence of ours."""

import pytest

from escdiff.support.errors import reason_of


@pytest.mark.parametrize(
    ("error", "reason"),
    [
        (OSError("no such\n  file"), "no such file"),
        (AssertionError(), "AssertionError"),
        (RuntimeError(" \n"), "RuntimeError"),
        (ValueError("a " * 200), "a " * 148 + " ..."),
        (ValueError("a" * 300), "a" * 300),
    ],
)
def test_a_reason_is_one_short_line_and_never_empty(error, reason):
    assert reason_of(error) == reason and len(reason_of(error)) <= 300
