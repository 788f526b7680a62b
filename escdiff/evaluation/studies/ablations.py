"""One table of many runs of the encoder: what each changed and what ESC-Bench says of it."""

import json
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

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
NOTE = (
    "Shares in percent (shape_id, material_id: re-identified among 8 instances of its names, chance 12.5), delta_e the "
    "median CIEDE2000 of the first colour; in brackets the 95 % interval. `default` "
    "is the recipe that the sweep starts from; every other row changes what its name says and nothing else. Made by"
)


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
    return sorted(runs, key=lambda run: run.name != "default")


def tabulate(runs: Sequence[Path], judge: Callable[[Path], Mapping[str, dict]], out: Path, command: str) -> None:
    """Judge every run and write the Markdown table; a run without a result is a row that says so.

    Args:
        judge: folder of an encoder -> metrics, as `Bench.run` returns them.
    """
    head = ["run", "steps", *COLUMNS]
    rows = [head, ["---", *("---:" for _ in head[1:])]]
    for run in runs:
        about = json.loads((run / "manifest.json").read_text(encoding="utf-8"))
        if about.get("status") == "finished" and (run / "export" / "config.json").is_file():
            metrics = judge(run / "export")
            cells = [str(about["step"]), *(_cell(key, metrics) for key in COLUMNS)]
        else:
            cells = [str(about.get("step", "")), f"no result: {about.get('status')}", *("" for _ in COLUMNS[1:])]
        rows.append([run.name, *cells])
    lines = [f"| {' | '.join(row)} |" for row in rows]
    _, heading, notes = (out.read_text(encoding="utf-8") if out.is_file() else "").partition(NOTES)
    write(out, "\n".join(["# Ablations", "", *lines, "", NOTE, "", f"    {command}", "", f"{heading}{notes}"]))


def _cell(key: str, metrics: Mapping[str, dict]) -> str:
    if key not in metrics:
        return ""
    factor = 100 if units.is_share(key.split("/")[1]) else 1
    mean, low, high = (factor * metrics[key][name] for name in ("mean", "low", "high"))
    return f"{mean:.0f} ({low:.0f}–{high:.0f})" if factor == 100 else f"{mean:.1f} ({low:.1f}–{high:.1f})"
