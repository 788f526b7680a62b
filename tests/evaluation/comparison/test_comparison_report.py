"""The comparison's numbers by hand: groups, cells, the claim, means over references."""

import math
from types import SimpleNamespace

import pytest

from escdiff.evaluation.bench.instances import Request
from escdiff.evaluation.bench.records import Record
from escdiff.evaluation.comparison import report
from escdiff.evaluation.comparison.customize import status
from escdiff.evaluation.comparison.run import Comparison


def method(seconds=1.0, **means):
    """A row of the table whose scores have these means; "both__family" is "both/family"."""
    scores = {
        name.replace("__", "/"): {"mean": v, "low": v - 0.125, "high": v + 0.125, "n": 3} for name, v in means.items()
    }
    return {"about": "x", "steps": 1, "seconds": seconds, "seconds_per_picture": 1.0, "bytes": 2048.0,
            "shared_bytes": 0, "parameters": 16, "scores": scores}  # fmt: skip


BOTH = {"both__family": 0.9, "both__pattern": 0.6, "both__color": 0.3}
SWAP = {"swap__shape": 0.8, "swap__appearance": 0.4}
EDIT = {"edit__background": 0.9, "edit__color": 0.9, "edit__family": 0.3}


def test_a_group_is_the_mean_of_its_scores_and_no_number_without_them():
    one = method(**BOTH, swap__shape=0.8)
    assert report.group_score(one, "both") == pytest.approx(0.6)
    assert report.group_score(one, "swap") == 0.8 and math.isnan(report.group_score(one, "text edit"))
    assert report._overall(one) == pytest.approx((0.6 + 0.8) / 2) and report._overall(method()) == 0


def shifted(by, **scores):
    return {name: value + by for name, value in scores.items()}


@pytest.mark.parametrize(("seconds", "both", "swap", "edit", "holds"), [
    (0.001, 0.0, 0.05, 0.05, True),  # as good on both, better on the others, 1,000 times less
    (0.0011, 0.0, 0.05, 0.05, False),  # 909 times less
    (0.001, -0.05, 0.05, 0.05, False),
    (0.001, 0.0, 0.0, 0.05, False),  # equal on swap is not better
    (0.001, 0.0, 0.05, 0.0, False),
])  # fmt: skip
def test_every_part_of_the_claim_decides(seconds, both, swap, edit, holds):
    theirs = method(1.0, **BOTH, **SWAP, **EDIT)
    ours = method(seconds, **shifted(both, **BOTH), **shifted(swap, **SWAP), **shifted(edit, **EDIT))
    (text,) = report.claim({"escdiff": ours, "xti": theirs})
    assert ("does not hold here" not in text) == holds
    assert f"- both: {60 + 100 * both:.1f} % against 60.0 % ({100 * both:+.1f})" in text
    assert f"- swap: {60 + 100 * swap:.1f} % against 60.0 %" in text


def test_cells_are_shares_in_per_cent_and_errors_as_they_are():
    found = {"mean": 0.875, "low": 0.75, "high": 1.0}
    assert report.score_cell("both/family", found) == "88 [75, 100]" and report.score_cell("both/family", None) == ""
    assert report.score_cell("both/delta_e", {"mean": 7.25, "low": 6.0, "high": 9.5}) == "7.2 [6.0, 9.5]"
    assert report.score_cell("both/params", found) == "0.88 [0.75, 1.00]"


def test_costs_as_people_read_them():
    assert [report._seconds(v) for v in (0.0123, 0.9996, 1.25, 300.0)] == ["0.012", "1.000", "1.2", "300.0"]
    assert report._kilobytes({"bytes": 2050, "shared_bytes": 0}) == "2.0"
    assert report._kilobytes({"bytes": 500, "shared_bytes": 12_345_678}) == "0.5 + 12,346"


def test_densities_stand_beside_the_words_they_started_from():
    assert report.density({"a": method()}) == []
    (text,) = report.density({"a": method() | {"density": 1.234, "density_of_word": 0.5}, "b": method()})
    assert "| a | 1.23 | 0.50 |" in text and "| b" not in text


def test_a_score_is_the_mean_over_references_of_the_mean_over_their_pictures(mug):
    """Reference a: 1, 0, 0; reference b: 1. So (1/3 + 1) / 2, and not 2/4."""
    from dataclasses import replace

    other = replace(mug, scene=replace(mug.scene, background="white"))
    records = [Record(Request("", mug, reference, reference), {}, {"family": value})
               for reference, value in ((mug, 1.0), (mug, 0.0), (mug, 0.0), (other, 1.0))]  # fmt: skip
    found = Comparison._scores(SimpleNamespace(), records)["family"]
    assert found["mean"] == pytest.approx((1 / 3 + 1) / 2) and found["n"] == 2
    by_appearance = [replace(r, request=Request("", mug, appearance=r.request.appearance)) for r in records]
    assert Comparison._scores(SimpleNamespace(), by_appearance)["family"] == found


def test_what_became_of_a_run(tmp_path):
    assert status(tmp_path) == ""
    for text, expected in (('{"status": "finished"}', "finished"), ("{}", ""), ("{", "")):
        (tmp_path / "manifest.json").write_text(text, encoding="utf-8")
        assert status(tmp_path) == expected
