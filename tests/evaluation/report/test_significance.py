import itertools
import json

import numpy as np
import pytest

from escdiff.evaluation.report.runs import compare_runs
from escdiff.evaluation.report.significance import holm, paired
from escdiff.support.errors import UserError


def draw(shift, subjects=30, each=4, seed=0):
    rng = np.random.default_rng(seed)
    keys = [(s, i) for s in range(subjects) for i in range(each)]
    ours = {key: float(rng.normal()) for key in keys}
    theirs = {key: value + shift + 0.3 * float(rng.normal()) for key, value in ours.items()}
    return ours, theirs, {key: key[0] for key in keys}


def test_a_true_difference_is_found_and_its_interval_holds_it():
    found = paired(*draw(0.2))
    assert found.p < 0.01 and found.low < 0.2 < found.high and found.n == 30
    assert found.mean == pytest.approx(0.2, abs=0.08)


def test_no_difference_is_rarely_found():
    """At 5 %, about one in twenty."""
    found = [paired(*draw(0.0, seed=seed)).p < 0.05 for seed in range(60)]
    assert np.mean(found) < 0.15


def of_subjects(differences):
    """`paired` of one case per subject."""
    cases = range(len(differences))
    return paired(dict.fromkeys(cases, 0.0), dict(enumerate(map(float, differences))), {i: i for i in cases})


def test_by_hand():
    """Two subjects that differ by 1 and 3: of the flipped means 2, 1, -1 and -2, two are as far from 0 as 2.

    Student's t of one degree of freedom is 12.706 at 97.5 %, the standard error 1.
    """
    found = of_subjects([1, 3])
    assert (found.mean, found.p, found.n) == (2, 0.5, 2)
    assert (found.low, found.high) == pytest.approx((2 - 12.706, 2 + 12.706), abs=1e-3)
    assert of_subjects([1]) is None


@pytest.mark.parametrize("differences", [[0.01, 0.02], [0.01, 0.02, 0.03], [5, 5], [-1, -1, -1], [0.1] * 3])
def test_two_or_three_subjects_prove_nothing(differences):
    assert of_subjects(differences).p >= 0.25


@pytest.mark.parametrize("n", [2, 3, 5, 8, 14, 30])
def test_noise_is_found_in_one_of_twenty_cases_and_its_interval_holds_zero(n):
    rng = np.random.default_rng(n)
    found = [of_subjects(rng.normal(size=n)) for _ in range(400 if n < 14 else 100)]
    assert np.mean([f.p < 0.05 for f in found]) <= 0.07
    assert np.mean([f.low <= 0 <= f.high for f in found]) >= 0.9


def test_the_flips_are_all_where_they_are_few_and_drawn_where_they_are_many():
    """Against plain lines over all flips, and close to them beyond 13 subjects."""
    for n, tolerance in ((6, 0), (13, 0), (15, 0.02)):
        data = np.random.default_rng(n).normal(size=n) + 0.3
        means = np.abs(np.array(list(itertools.product((1, -1), repeat=n))) @ data)
        assert of_subjects(data).p == pytest.approx(np.mean(means >= abs(data.sum()) - 1e-9), abs=tolerance)


def test_subjects_are_drawn_not_pictures():
    """Two subjects with a hundred pictures each are two samples."""
    ours = {(s, i): 0.0 for s in "ab" for i in range(100)}
    theirs = {key: 1.0 if key[0] == "a" else -0.9 for key in ours}
    assert paired(ours, theirs, {key: key[0] for key in ours}).p > 0.3


def test_holm_by_hand():
    assert holm([0.01, 0.04, 0.03]) == pytest.approx([0.03, 0.06, 0.06])


def write_run(folder, values, pictures=4):
    (folder / "tasks" / "prompts").mkdir(parents=True)
    for subject, value in values.items():
        records = [
            {"request": {"prompt": "p", "shape": subject, "seed": i}, "reading": {"seconds_to_customize": 1.0},
             "values": {"clip_i": value + 0.01 * i}, "pictures": {}}
            for i in range(pictures)
        ]  # fmt: skip
        (folder / "tasks" / "prompts" / f"{subject}.json").write_text(
            json.dumps({"records": records}), encoding="utf-8"
        )
    mean = float(np.mean(list(values.values())))
    (folder / "metrics.json").write_text(
        json.dumps({"prompts/clip_i": {"mean": mean, "low": 0, "high": 1, "n": 3}}), encoding="utf-8"
    )
    (folder / "run.json").write_text("{}", encoding="utf-8")


def test_runs_side_by_side(tmp_path):
    rng = np.random.default_rng(0)
    base = {f"s{i}": float(rng.random() / 2) for i in range(12)}
    write_run(tmp_path / "ours", base)
    write_run(tmp_path / "same", base)
    write_run(tmp_path / "better", {k: v + 0.1 + rng.random() / 50 for k, v in base.items()})
    got = compare_runs([tmp_path / n for n in ("ours", "same", "better")], tmp_path, "cmd")
    p = {run: value for run, _, _, value in got}
    assert p["better"] < 0.01 and p["same"] == 1
    assert "| better | prompts/clip_i | +0.1" in (tmp_path / "runs.md").read_text(encoding="utf-8")
    assert "prompts/clip_i" in (tmp_path / "runs.html").read_text(encoding="utf-8")


def test_what_cannot_be_compared_is_refused(tmp_path):
    write_run(tmp_path / "a", {"s": 1.0})
    with pytest.raises(UserError, match="at least two"):
        compare_runs([tmp_path / "a"], tmp_path, "")
    with pytest.raises(UserError, match="no finished run"):
        compare_runs([tmp_path / "a", tmp_path / "b"], tmp_path, "")
    write_run(tmp_path / "c", {"t": 1.0})
    with pytest.raises(UserError, match="share no cases"):
        compare_runs([tmp_path / "a", tmp_path / "c"], tmp_path, "")


def test_exchanged_runs_have_the_negative_difference():
    ours, theirs, groups = draw(0.15, subjects=12)
    there, back = paired(ours, theirs, groups), paired(theirs, ours, groups)
    assert (back.mean, back.low, back.high) == pytest.approx((-there.mean, -there.high, -there.low))
    assert back.p == there.p and back.n == there.n


def test_the_order_of_cases_changes_nothing():
    ours, theirs, groups = draw(0.1, subjects=9)
    reverse = lambda values: dict(reversed(values.items()))  # noqa: E731
    assert paired(reverse(ours), reverse(theirs), groups) == paired(ours, theirs, groups)


def test_cases_of_one_run_alone_do_not_count():
    ours, theirs, groups = draw(0.1, subjects=6)
    expected = paired(ours, theirs, groups)
    more = {("new", 0): 100.0}
    assert paired(ours | more, theirs, groups | {("new", 0): "new"}) == expected
    assert paired(ours, theirs | more, groups | {("new", 0): "new"}) == expected


def test_a_subject_counts_once_however_many_pictures_it_has():
    """Subject a: differences 0 and 4; subject b: 8. So (2 + 8) / 2, and not 12 / 3."""
    ours, groups = dict.fromkeys("xyz", 0.0), {"x": "a", "y": "a", "z": "b"}
    assert paired(ours, {"x": 0.0, "y": 4.0, "z": 8.0}, groups).mean == 5


def test_the_least_p_is_that_of_its_flips():
    """All subjects differ alike: only all signs as they are and all exchanged are as far from zero."""
    assert of_subjects([1] * 5).p == 2 / 2**5
    assert of_subjects([0.1] * 13).p == 2 / 2**13
    assert of_subjects([1] * 40).p == pytest.approx(1 / 10_001)
    assert of_subjects([0] * 5).p == 1


@pytest.mark.parametrize("seed", range(3))
def test_holm_is_step_down(seed):
    """Against plain lines: the k-th smallest of m times m - k + 1, never below the one before, at most 1."""
    values = np.random.default_rng(seed).random(7) ** 3
    expected, most = {}, 0.0
    for k, value in enumerate(sorted(values), 1):
        most = max(most, (len(values) - k + 1) * value)
        expected[value] = min(most, 1.0)
    assert holm(values) == pytest.approx([expected[value] for value in values])
    assert holm([0.2]) == [0.2] and holm([]) == []
