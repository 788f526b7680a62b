import json

import pytest

from escdiff.evaluation.studies.ablations import BY_PICTURES, COLUMNS, Judging, find_runs, tabulate
from escdiff.support.errors import UserError


def make_run(folder, status="finished", exported=True):
    (folder / "export").mkdir(parents=True)
    (folder / "manifest.json").write_text(json.dumps({"status": status, "step": 7}), encoding="utf-8")
    if exported:
        (folder / "export" / "config.json").write_text("{}", encoding="utf-8")
    return folder


def judge(folder):
    share = {"mean": 0.5, "low": 0.4, "high": 0.625, "n": 8}
    return dict.fromkeys(COLUMNS, share) | {"both/delta_e": {"mean": 7.25, "low": 6.0, "high": 9.0, "n": 8}}


PICTURES = Judging(*BY_PICTURES, judge)


def test_one_row_per_run_default_first_failures_too(tmp_path):
    sweep = tmp_path / "sweep"
    make_run(sweep / "a=1"), make_run(sweep / "b=2", "stopped", exported=False), make_run(sweep / "default")
    (sweep / ".hydra").mkdir()
    tabulate(find_runs([sweep]), PICTURES, tmp_path / "table.md", "the command")
    rows = [
        line.split(" | ")
        for line in (tmp_path / "table.md").read_text(encoding="utf-8").splitlines()
        if line.startswith("| ")
    ]
    assert [row[0] for row in rows[2:]] == ["| default", "| a=1", "| b=2"]
    assert len({len(row) for row in rows}) == 1
    default = dict(zip(rows[0], rows[2], strict=True))
    assert default["both/family"] == "50 (40–62)" and default["both/delta_e"] == "7.2 (6.0–9.0)"
    assert "no result: stopped" in rows[4]
    assert "the command" in (tmp_path / "table.md").read_text(encoding="utf-8")


def test_runs_that_differ_by_their_seed_are_one_row(tmp_path):
    values = {"seed=0": 0.2, "seed=1": 0.3, "seed=2": 0.7, "a=1,seed=0": 0.5, "a=1,seed=1": 0.6}
    for name in (*values, "b=1"):
        make_run(tmp_path / "sweep" / name)
    score = lambda folder: {"mean": values.get(folder.parent.name, 0.4), "low": 0.3, "high": 0.45}  # noqa: E731
    judging = Judging(("shape/words",), "What is told", lambda folder: {"shape/words": score(folder)})
    tabulate(find_runs([tmp_path / "sweep"]), judging, tmp_path / "table.md", "the command")
    text = (tmp_path / "table.md").read_text(encoding="utf-8")
    rows = [line for line in text.splitlines() if line.startswith("| ")][2:]
    assert rows == ["| default (3 seeds) | 7 | 40 (20–70) |", "| a=1 (2 seeds) | 7 | 55 (50–60) |",
                    "| b=1 | 7 | 40 (30–45) |"]  # fmt: skip
    assert "What is told; in brackets" in text


def test_what_people_wrote_below_the_table_is_kept(tmp_path):
    run, table = make_run(tmp_path / "default"), tmp_path / "table.md"
    tabulate([run], PICTURES, table, "the first command")
    with table.open("a", encoding="utf-8") as file:
        file.write("\n## What it says\n\nOpen gates do as well.\n")
    tabulate([run], PICTURES, table, "the second command")
    found = table.read_text(encoding="utf-8")
    assert found.endswith("the second command\n\n## What it says\n\nOpen gates do as well.\n")
    assert found.count("| default") == 1


def test_a_run_is_one_row_with_the_manifest_of_its_checkpoints(tmp_path):
    run = make_run(tmp_path / "default")
    (run / "checkpoints").mkdir()
    (run / "checkpoints" / "manifest.json").write_text("{}", encoding="utf-8")
    assert find_runs([run]) == find_runs([tmp_path]) == [run]


def test_a_folder_without_runs_is_refused(tmp_path):
    with pytest.raises(UserError, match="no run in"):
        find_runs([tmp_path])
