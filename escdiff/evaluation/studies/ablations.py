"""One table of many runs of the encoder: what each changed and what ESC-Bench says of it."""

import json
import re
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from statistics import mean
from typing import NamedTuple

from escdiff.evaluation.report import units
from escdiff.evaluation.report.writing import write
from escdiff.support.errors import UserError

NOTES = "## What it says"  # of an older table: from here on people wrote, and it is kept
TASKS = ("both", "swap", "nameless", "held_out", "leak", "copy")
COLUMNS = (
    "both/shape_id", "both/material_id", "both/family", "both/pattern", "both/delta_e", "swap/shape_id",
    "swap/material_id", "nameless/shape_id", "nameless/material_id", "held_out/family", "shape/leak_material_id",
    "appearance/leak_shape_id", "copy/rate",
)  # fmt: skip
BY_PICTURES = (
    COLUMNS,
    "Shares in percent (shape_id, material_id: re-identified among 8 instances of its names, chance 12.5), delta_e the "
    "median CIEDE2000 of the first colour",
)
NOTE = (
    "in brackets the 95 % interval, or, of several seeds, the lowest and the highest around their mean. `default` is "
    "the recipe that the sweep starts from; every other row changes what its name says and nothing else. Made by"
)
SEED = re.compile(r"(^|,)seed=\d+")  # in the name of a run


class Judging(NamedTuple):
    """How encoders are judged.

    Attributes:
        columns: scores of the table. note: what they are, for people.
        judge: folder of an encoder -> score -> mean, low, high, n.
    """

    columns: Sequence[str]
    note: str
    judge: Callable[[Path], Mapping[str, dict]]


def find_runs(folders: Sequence[Path]) -> list[Path]:
    """The run folders among `folders`, or directly below those that are none, `default` first.

    Raises:
        UserError: there is none.
    """
    is_run = lambda path: (path / "manifest.json").is_file()  # noqa: E731
    # A run's own checkpoints have a manifest too.
    groups = [[folder] if is_run(folder) else sorted(folder.glob("[!.]*")) for folder in folders]
    runs = list(dict.fromkeys(path for group in groups for path in group if is_run(path)))
    if not runs:
        names = ", ".join(map(str, folders))
        raise UserError(f"no run in {names}; give run folders of `python train.py`, or a sweep's folder of them")
    return sorted(runs, key=lambda run: bool(SEED.sub("", run.name)) and run.name != "default")


def tabulate(runs: Sequence[Path], judging: Judging, out: Path, command: str) -> None:
    """Judge every run and write the Markdown table; runs that differ by their seed are one row.

    A run without a result is a row that says so.
    """
    head = ["run", "steps", *judging.columns]
    rows = [head, ["---", *("---:" for _ in head[1:])]]
    for name, group in by_recipe(runs).items():
        done = [run for run in group if _about(run).get("status") == "finished" and _exported(run)]
        if done:
            metrics, seeds = [judging.judge(run / "export") for run in done], f" ({len(done)} seeds)" * (len(done) > 1)
            rows.append([name + seeds, str(_about(done[0])["step"]), *(_cell(key, metrics) for key in judging.columns)])
        for run in (run for run in group if run not in done):
            about, empty = _about(run), [""] * (len(judging.columns) - 1)
            rows.append([run.name, str(about.get("step", "")), f"no result: {about.get('status')}", *empty])
    lines = [f"| {' | '.join(row)} |" for row in rows]
    _, heading, notes = (out.read_text(encoding="utf-8") if out.is_file() else "").partition(NOTES)
    below = f"{judging.note}; {NOTE}"
    write(out, "\n".join(["# Ablations", "", *lines, "", below, "", f"    {command}", "", f"{heading}{notes}"]))


def by_recipe(runs: Sequence[Path]) -> dict[str, list[Path]]:
    """Name without its seed -> the runs of that name, in their order."""
    groups: dict[str, list[Path]] = {}
    for run in runs:
        groups.setdefault(SEED.sub("", run.name).lstrip(",") or "default", []).append(run)
    return groups


def _exported(run: Path) -> bool:
    return (run / "export" / "config.json").is_file()


def _about(run: Path) -> dict:
    return json.loads((run / "manifest.json").read_text(encoding="utf-8"))


def _cell(key: str, metrics: Sequence[Mapping[str, dict]]) -> str:
    if not all(key in each for each in metrics):
        return ""
    factor, digits = (100, 0) if units.is_share(key.split("/")[1]) else (1, 1)
    means = [each[key]["mean"] for each in metrics]
    low, high = (min(means), max(means)) if len(means) > 1 else (metrics[0][key]["low"], metrics[0][key]["high"])
    middle, low, high = (f"{factor * value:.{digits}f}" for value in (mean(means), low, high))
    return f"{middle} ({low}–{high})"
