"""Runs read from their folders: what counts as one case, whose mean it is, what is refused."""

import json

import pytest

from escdiff.evaluation.report.runs import compare_runs, read_run
from escdiff.support.errors import UserError


def write_run(folder, tasks, metrics=None, about=None):
    """tasks: path below `tasks/` -> [(request, values, seconds)]."""
    for path, rows in tasks.items():
        file = folder / "tasks" / f"{path}.json"
        file.parent.mkdir(parents=True, exist_ok=True)
        records = [
            {"request": request, "values": values, "pictures": {},
             "reading": {} if seconds is None else {"seconds_to_customize": seconds}}
            for request, values, seconds in rows
        ]  # fmt: skip
        file.write_text(json.dumps({"records": records}), encoding="utf-8")
    for name, content in (("metrics", metrics), ("run", about or {})):
        if content is not None:
            (folder / f"{name}.json").write_text(json.dumps(content), encoding="utf-8")
    return folder


def of(subject, seed=0):
    return {"prompt": "p", "shape": subject, "appearance": "", "seed": seed}


def test_values_by_task_score_and_case(tmp_path):
    tasks = {
        "prompts/mug": [(of("mug", 0), {"clip_i": 0.2}, 3.0), (of("mug", 1), {"clip_i": 0.4, "copy": 1.0}, 5.0)],
        "swap": [(of("dog"), {"mask_iou": 0.5}, None)],
    }
    run = read_run(write_run(tmp_path / "a", tasks), "mine")
    assert run.name == "mine" and run.seconds == 4
    assert {key: sorted(found.values()) for key, found in run.values.items()} == {
        "prompts/clip_i": [0.2, 0.4], "prompts/copy": [1.0], "swap/mask_iou": [0.5],
    }  # fmt: skip
    assert len(run.groups) == 3 and len(set(run.groups.values())) == 2  # two subjects


def test_without_a_table_of_its_own_a_run_gets_means_by_subject(tmp_path):
    """Two pictures of one subject and one of another: (0.1 + 0.3) / 2 and 0.8, hence 0.5 of two."""
    tasks = {"both": [(of("a", 0), {"family": 0.1}, None), (of("a", 1), {"family": 0.3}, None),
                      (of("b"), {"family": 0.8}, None)]}  # fmt: skip
    found = read_run(write_run(tmp_path / "a", tasks), "a").metrics["both/family"]
    assert found["mean"] == pytest.approx(0.5) and found["n"] == 2


def test_requests_in_words_alone_are_groups_of_their_own(tmp_path):
    words = {"prompt": "a red mug", "expected": {}}
    run = read_run(write_run(tmp_path / "a", {"text": [(words, {"family": 1.0}, None)]}), "a")
    assert list(run.groups) == [json.dumps(words, sort_keys=True)] and run.seconds is None


def test_what_is_no_finished_run_is_said(tmp_path):
    with pytest.raises(UserError, match="no finished run"):
        read_run(write_run(tmp_path / "empty", {}) if (tmp_path / "empty").mkdir() is None else None, "x")
    broken = write_run(tmp_path / "broken", {"text": []})
    (broken / "metrics.json").write_text("{", encoding="utf-8")
    with pytest.raises(UserError, match="cannot be read as a run"):
        read_run(broken, "x")
    metrics = {"prompts/clip_i": {"mean": 0.5, "low": 0.5, "high": 0.5, "n": 1}}
    rows = {"prompts/a": [(of("a"), {"clip_i": 0.5}, None)]}
    old = write_run(tmp_path / "old", rows, metrics, {"protocol": "folder"})
    with pytest.raises(UserError, match="says no units"):
        read_run(old, "x")


def finished(folder, shift, unit="delta E"):
    rows = [(of(f"s{i}"), {"lab_distance": 10.0 + i + shift}, 2.0) for i in range(8)]
    metrics = {"prompts/lab_distance": {"mean": 12.0 + shift, "low": 10.0, "high": 14.0, "n": 8, "unit": unit}}
    return write_run(folder, {"prompts/all": rows}, metrics, {"protocol": "folder"})


def test_a_difference_is_written_in_the_unit_of_its_metric(tmp_path):
    """Every subject is worse by exactly 3 delta E: no spread, so the interval is the number itself."""
    folders = [finished(tmp_path / "a", 0.0), finished(tmp_path / "b", 3.0)]
    ((run, key, difference, p),) = compare_runs(folders, tmp_path / "out", "cmd")
    assert (run, key, difference.n) == ("b", "prompts/lab_distance", 8)
    assert (difference.mean, difference.low, difference.high) == (3, 3, 3) and p == 2 / 2**8
    text = (tmp_path / "out" / "runs.md").read_text(encoding="utf-8")
    assert "| b | prompts/lab_distance | +3.0 | +3.0 – +3.0 | 8 | 0.0078 * |" in text
    assert "| prompts/lab_distance | 12.0 | 15.0 |" in text and "cmd" in text
    ((*row, kept, again),) = json.loads((tmp_path / "out" / "runs.json").read_text(encoding="utf-8"))
    assert row == ["b", "prompts/lab_distance"] and kept["mean"] == 3 and again == p


def test_runs_of_one_name_are_told_apart_by_their_paths(tmp_path):
    folders = [finished(tmp_path / "x" / "run", 0.0), finished(tmp_path / "y" / "run", 1.0)]
    ((name, *_),) = compare_runs(folders, tmp_path / "out", "cmd")
    assert name == str(folders[1])


def test_scores_of_one_run_alone_are_shown_and_not_compared(tmp_path):
    one = finished(tmp_path / "a", 0.0)
    rows = [(of(f"s{i}"), {"lab_distance": 1.0, "clip_i": 0.5}, 2.0) for i in range(3)]
    metrics = {
        f"prompts/{name}": {"mean": mean, "low": mean, "high": mean, "n": 3, "unit": unit}
        for name, mean, unit in (("lab_distance", 1.0, "delta E"), ("clip_i", 0.5, "cosine"))
    }
    two = write_run(tmp_path / "b", {"prompts/all": rows}, metrics, {"protocol": "folder"})
    got = compare_runs([one, two], tmp_path / "out", "cmd")
    assert [key for _, key, *_ in got] == ["prompts/lab_distance"]
    assert "| prompts/clip_i |  | 0.500 |" in (tmp_path / "out" / "runs.md").read_text(encoding="utf-8")
