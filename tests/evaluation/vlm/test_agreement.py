"""Figures of agreement, computed by hand."""

import math

import pytest

from escdiff.evaluation.vlm.agreement import agreement, alpha, correlations

ONE, OTHER = {"a": 1, "b": 2, "c": 4}, {"a": 1, "b": 3, "c": 4}


def test_alpha_by_hand():
    # Observed: only b differs, twice 1 squared, over 6 ratings: 2/6.
    # Expected: the squared differences of the 30 ordered pairs of 1, 1, 2, 3, 4, 4 add up to 114: 114/30.
    assert alpha([ONE, OTHER]) == pytest.approx(1 - (2 / 6) / (114 / 30))
    assert alpha([ONE, ONE]) == 1
    assert alpha([{"a": 0, "b": 1}, {"a": 1, "b": 0}]) == pytest.approx(1 - 1 / (2 / 3))


def test_alpha_of_krippendorffs_own_table():
    """Krippendorff 2011, "Computing Krippendorff's alpha-reliability", section D: 0.849 for interval data."""
    rows = ["123321412...", "1233224125.3", ".3332342251.", "12332441251."]
    raters = [{i: int(c) for i, c in enumerate(row) if c != "."} for row in rows]
    assert alpha(raters) == pytest.approx(0.849, abs=5e-4)


def test_correlations_by_hand():
    found = correlations({"a": 1, "b": 2, "c": 3, "d": 4, "e": 9}, {"a": 1, "b": 3, "c": 2, "d": 4, "f": 0})
    # Ranks differ by 1 at b and c: 1 - 6 x 2 / (4 x 15). Of six pairs five agree and one does not.
    assert found == {
        "n": 4,
        "spearman": pytest.approx(0.8),
        "kendall": pytest.approx(4 / 6),
        "pearson": pytest.approx(0.8),
    }


def test_what_says_nothing_is_no_figure():
    assert math.isnan(alpha([])) and math.isnan(alpha([ONE, {}])) and math.isnan(alpha([{"a": 1}, {"a": 1}]))
    found = agreement({"a": 1, "b": 1}, {"a": 1, "b": 2})
    assert found["n"] == 2 and math.isnan(found["spearman"]) and math.isnan(found["kendall"])
    assert agreement(ONE, {})["n"] == 0
