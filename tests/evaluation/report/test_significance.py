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
    """At 5 %, about one in twenty; the bootstrap of 30 subjects is a little generous."""
    found = [paired(*draw(0.0, seed=seed)).p < 0.05 for seed in range(60)]
    assert np.mean(found) < 0.15


def test_by_hand():
    """Two subjects that differ by 1 and 3: the means of all draws are 1, 2, 2 and 3."""
    found = paired({"a": 0.0, "b": 0.0}, {"a": 1.0, "b": 3.0}, {"a": "a", "b": "b"})
    assert (found.mean, found.low, found.high, found.n) == (2, 1, 3, 2) and found.p < 0.001
    assert paired({"a": 0.0}, {"a": 1.0}, {"a": "a"}) is None


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


def test_the_least_p_is_that_of_its_resamples():
    """All subjects differ alike: no resample lies on the other side, and p is 2 / (10,000 + 1)."""
    ours = dict.fromkeys(range(5), 0.0)
    assert paired(ours, dict.fromkeys(range(5), 1.0), {i: i for i in range(5)}).p == pytest.approx(2 / 10_001)
    assert paired(ours, ours, {i: i for i in range(5)}).p == 1


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
