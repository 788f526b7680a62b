"""Runs of one evaluation side by side: what each scored, and whether it differs from the first."""

import json
from collections.abc import Hashable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from escdiff.evaluation.report import units
from escdiff.evaluation.report.page import Report, Section, Table, write_pages
from escdiff.evaluation.report.plot import score_against_time
from escdiff.evaluation.report.significance import Difference, holm, paired
from escdiff.support.errors import UserError
from escdiff.support.files import write_json

Values = dict[str, dict[Hashable, float]]  # "task/score" -> case -> value
NOTE = (
    "Differences are theirs minus the first run's, over the cases that both have, with 95 % intervals over subjects "
    "(of ESC-Bench: references); p is two-sided, by sign flips of the subjects' differences, at least 2^(1 - n) of n "
    "subjects, and corrected for the number of rows (Holm). A star: p below 0.05."
)
TIME = "score_time.svg"


@dataclass(frozen=True)
class Finished:
    """The contents of a finished run's folder."""

    name: str
    metrics: dict[str, dict[str, float]]
    values: Values
    groups: dict[Hashable, Hashable]
    about: dict[str, Any]
    seconds: float | None  # to customize, mean


def compare_runs(folders: Sequence[Path], out: Path, command: str) -> list[tuple[str, str, Difference, float]]:
    """Write runs.html, runs.md and runs.json; gives (run, score, difference, corrected p) of every row.

    Raises:
        UserError: fewer than two runs, one that is not finished, or runs with nothing in common.
    """
    if len(folders) < 2:
        raise UserError(f"{len(folders)} run given; give at least two, the first of which the others are compared with")
    names = [folder.name for folder in folders]
    names = names if len(set(names)) == len(names) else [str(folder) for folder in folders]
    runs = [read_run(folder, name) for folder, name in zip(folders, names, strict=True)]
    baseline, *compared = runs
    rows = [
        (run.name, key, difference)
        for run in compared
        for key in baseline.values
        if key in run.values
        and (difference := paired(baseline.values[key], run.values[key], baseline.groups)) is not None
    ]
    if not rows:
        raise UserError(f"{' and '.join(names)} share no cases of two subjects; compare runs of the same evaluation")
    corrected = holm([difference.p for *_, difference in rows])
    result = [(*row, p) for row, p in zip(rows, corrected, strict=True)]
    write_json(out / "runs.json", [[run, key, vars(d), p] for run, key, d, p in result])
    write_pages(_report(runs, result, out, command), out, "runs")
    return result


def read_run(folder: Path, name: str) -> Finished:
    """The figures of a run, case by case; also of one method in a comparison's `cells/`.

    Raises:
        UserError: it is no finished run.
    """
    try:
        metrics, about = (_json(folder / f) for f in ("metrics.json", "run.json"))
        tasks = {
            path: json.loads(path.read_text(encoding="utf-8")) for path in sorted((folder / "tasks").rglob("*.json"))
        }
    except (OSError, ValueError) as error:
        raise UserError(f"{folder} cannot be read as a run ({error}); run it again") from None
    if "protocol" in about and not all("unit" in summary for summary in metrics.values()):
        raise UserError(f"{folder} says no units, as older runs do not; give its command again: its pictures are kept")
    if not tasks:
        raise UserError(f"{folder} is no finished run of an evaluation; give the --out of one that has ended")
    values: Values = {}
    groups: dict[Hashable, Hashable] = {}
    seconds = []
    for path, task in tasks.items():
        name_of_task = path.relative_to(folder / "tasks").parts[0].removesuffix(".json")
        for record in task["records"]:
            case = json.dumps(record["request"], sort_keys=True)
            request = record["request"]
            # A subject or a reference, which several pictures may share.
            group = next((request[key] for key in ("shape", "appearance", "first") if request.get(key)), case)
            groups[case] = json.dumps(group, sort_keys=True)
            if "seconds_to_customize" in record["reading"]:
                seconds.append(record["reading"]["seconds_to_customize"])
            for score, value in record["values"].items():
                values.setdefault(f"{name_of_task}/{score}", {})[case] = value
    metrics = metrics or {key: _mean(key, cases, groups) for key, cases in values.items()}
    return Finished(name, metrics, values, groups, about, float(np.mean(seconds)) if seconds else None)


def _mean(key: str, cases: Mapping[Hashable, float], groups: Mapping[Hashable, Hashable]) -> dict[str, float]:
    """The mean over subjects' means, as a metrics.json holds it."""
    by_group: dict[Hashable, list[float]] = {}
    for case, value in cases.items():
        by_group.setdefault(groups[case], []).append(value)
    return units.summarise(_name(key), [float(np.mean(values)) for values in by_group.values()])


def _json(path: Path) -> dict:
    return json.loads(path.read_text(encoding="utf-8")) if path.is_file() else {}


def _report(runs: Sequence[Finished], result, out: Path, command: str) -> Report:
    keys = list(dict.fromkeys(key for run in runs for key in run.metrics))
    table = [(key, *(_cell(key, run.metrics.get(key)) for run in runs)) for key in keys]
    kinds = {key: m.get("unit", "") for run in runs for key, m in run.metrics.items()}
    rows = [
        (run, key, _signed(key, d.mean, kinds), f"{_signed(key, d.low, kinds)} – {_signed(key, d.high, kinds)}",
         str(d.n), f"{p:.4f}" + " *" * (p < 0.05))
        for run, key, d, p in result
    ]  # fmt: skip
    head = ("run", "task/score", f"minus {runs[0].name}", "95 % interval", "subjects", "p (Holm)")
    figures = {}
    if all(run.seconds is not None for run in runs) and (rank := _rank(runs)):
        points = {run.name: (run.seconds, run.metrics[rank]["mean"]) for run in runs}
        score_against_time(points, out / TIME, "seconds to customize", rank, [runs[0].name], 1.0)
        figures[f"{rank} against seconds to customize"] = TIME
    sections = [
        Section(
            "scores", "Every score of every run.", [Table(("task/score", *(r.name for r in runs)), table)], figures
        ),
        Section("differences", "From the first run, paired.", [Table(head, rows)], note=NOTE),
    ]
    config = {"command": command, **{run.name: run.about for run in runs}}
    return Report("Runs side by side", ", ".join(run.name for run in runs), sections, config)


def _rank(runs: Sequence[Finished]) -> str:
    ranking = ("prompts/dino", "prompts/clip_i", "prompts/clip_i_all")
    return next((key for key in ranking if all(key in run.metrics for run in runs)), "")


def _name(key: str) -> str:
    return key.split("/")[1]


def _cell(key: str, summary: dict | None) -> str:
    return units.text(_name(key), summary["mean"], summary.get("unit", "")) if summary else ""


def _signed(key: str, value: float, kinds: Mapping[str, str]) -> str:
    return units.signed(_name(key), value, kinds.get(key, ""))
