"""Runs of one evaluation side by side: what each scored, and whether it differs from the first."""

import json
from collections.abc import Hashable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from escdiff.errors import UserError
from escdiff.evaluation import scores
from escdiff.evaluation.page import Report, Section, Table, write_pages
from escdiff.evaluation.plot import score_against_time
from escdiff.evaluation.significance import Difference, holm, paired

Values = dict[str, dict[Hashable, float]]  # "task/score" -> case -> value
NOTE = (
    "Differences are theirs minus the first run's, over the cases that both have, with 95 % intervals by a paired "
    "bootstrap over subjects (of ESC-Bench: references); p is two-sided and corrected for the number of rows (Holm). "
    "A star: p below 0.05."
)
TIME = "score_time.svg"


@dataclass(frozen=True)
class Finished:
    """What a run's folder holds."""

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
    found = [read_run(folder, name) for folder, name in zip(folders, names, strict=True)]
    ours, *others = found
    rows = [
        (run.name, key, difference)
        for run in others
        for key in ours.values
        if key in run.values and (difference := paired(ours.values[key], run.values[key], ours.groups)) is not None
    ]
    if not rows:
        raise UserError(f"{' and '.join(names)} share no cases of two subjects; compare runs of the same evaluation")
    corrected = holm([difference.p for *_, difference in rows])
    result = [(*row, p) for row, p in zip(rows, corrected, strict=True)]
    (out / "runs.json").write_text(json.dumps([[run, key, vars(d), p] for run, key, d, p in result], indent=1) + "\n")
    write_pages(_report(found, result, out, command), out, "runs")
    return result


def read_run(folder: Path, name: str) -> Finished:
    """The figures of a run, case by case; also of one method in a comparison's `cells/`.

    Raises:
        UserError: it is no finished run.
    """
    try:
        metrics, about = (_json(folder / f) for f in ("metrics.json", "run.json"))
        tasks = {path: json.loads(path.read_text()) for path in sorted((folder / "tasks").rglob("*.json"))}
    except (OSError, ValueError) as error:
        raise UserError(f"{folder} cannot be read as a run ({error}); run it again") from None
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
            groups[case] = json.dumps(request.get("shape") or request.get("appearance") or case, sort_keys=True)
            if "seconds_to_customize" in record["reading"]:
                seconds.append(record["reading"]["seconds_to_customize"])
            for score, value in record["values"].items():
                values.setdefault(f"{name_of_task}/{score}", {})[case] = value
    metrics = metrics or {key: _mean(key, found, groups) for key, found in values.items()}
    return Finished(name, metrics, values, groups, about, float(np.mean(seconds)) if seconds else None)


def _mean(key: str, found: Mapping[Hashable, float], groups: Mapping[Hashable, Hashable]) -> dict[str, float]:
    """As runs with a metrics.json have it: of means by subject."""
    by_group: dict[Hashable, list[float]] = {}
    for case, value in found.items():
        by_group.setdefault(groups[case], []).append(value)
    return scores.summarise(_name(key), [float(np.mean(values)) for values in by_group.values()])


def _json(path: Path) -> dict:
    return json.loads(path.read_text()) if path.is_file() else {}


def _report(found: Sequence[Finished], result, out: Path, command: str) -> Report:
    keys = list(dict.fromkeys(key for run in found for key in run.metrics))
    table = [(key, *(_cell(key, run.metrics.get(key)) for run in found)) for key in keys]
    rows = [
        (run, key, scores.signed(_name(key), d.mean), _interval(key, d), str(d.n), f"{p:.4f}" + " *" * (p < 0.05))
        for run, key, d, p in result
    ]
    head = ("run", "task/score", f"minus {found[0].name}", "95 % interval", "subjects", "p (Holm)")
    figures = {}
    if all(run.seconds is not None for run in found) and (rank := _rank(found)):
        points = {run.name: (run.seconds, run.metrics[rank]["mean"]) for run in found}
        score_against_time(points, out / TIME, "seconds to customize", rank, [found[0].name], 1.0)
        figures[f"{rank} against seconds to customize"] = TIME
    sections = [
        Section(
            "scores", "Every score of every run.", [Table(("task/score", *(r.name for r in found)), table)], figures
        ),
        Section("differences", "From the first run, paired.", [Table(head, rows)], note=NOTE),
    ]
    config = {"command": command, **{run.name: run.about for run in found}}
    return Report("Runs side by side", ", ".join(run.name for run in found), sections, config)


def _rank(found: Sequence[Finished]) -> str:
    wanted = ("prompts/dino", "prompts/clip_i", "prompts/clip_i_all")
    return next((key for key in wanted if all(key in run.metrics for run in found)), "")


def _name(key: str) -> str:
    return key.split("/")[1]


def _cell(key: str, found: dict | None) -> str:
    return scores.text(_name(key), found["mean"]) if found else ""


def _interval(key: str, difference: Difference) -> str:
    return f"{scores.signed(_name(key), difference.low)} – {scores.signed(_name(key), difference.high)}"
