"""The edit bench's table and its sheet of pictures."""

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from PIL import Image

from escdiff.evaluation.bench.records import RESULT, Record
from escdiff.evaluation.editing.cases import Case
from escdiff.evaluation.editing.task import Task
from escdiff.evaluation.report import units
from escdiff.evaluation.report.writing import markdown_table, writing
from escdiff.support.picture_grid import picture_grid

SHOWN = 8  # cases in the sheet


def unit_of(score: str) -> str:
    """Its unit, of `escdiff.evaluation.report.units`."""
    if score.startswith("psnr"):
        return "dB"
    return {"iou": "overlap", "passes": "count"}.get(score, units.SHARE)


def report(task: Task, table: Mapping[str, Mapping[str, Mapping[str, float]]], about: Mapping[str, Any]) -> str:
    """Scores and seconds by editor, then the task's further scores."""
    names = [score for score in task.scores if any(score in summary for summary in table.values())]
    rows = [
        (name, *(_cell(score, summary.get(score)) for score in names), f"{about['seconds'][name]:.1f}")
        for name, summary in table.items()
    ]
    run = (
        f"{about['date']}, backbone {about['backbone']}, {about['cases']} cases, {about['steps']} steps, guidance "
        f"{about['guidance']:g}, seed {about['seed']}. Made by `{about['command']}`."
    )
    parts = [f"# {task.name.capitalize()}", run, markdown_table(("method", *names, "seconds"), rows)]
    if task.more:
        more = [(name, *(_cell(score, summary.get(score)) for score in task.more)) for name, summary in table.items()]
        parts.append(markdown_table(("method", *task.more), more))
    return "\n\n".join([*parts, f"![the first cases]({task.name}.png)", task.note]) + "\n"


def draw_sheet(
    path: Path, out: Path, cases: Sequence[Case], records: Mapping[str, Sequence[Record]],
    reference: Callable[[Case], Image.Image | None],
) -> None:  # fmt: skip
    """A column per edit: the picture before and after, the reference, and below what every editor made of it.

    Args:
        reference: of a case; without any of them the row is left out.
    """
    shown = cases[:SHOWN]
    rows: list[list[Image.Image | None]] = [[case.before for case in shown], [case.after for case in shown]]
    names, references = ["before", "after"], [reference(case) for case in shown]
    if any(references):
        rows.append(references)
        names.append("reference")
    for editor_records in records.values():
        results = {record.request: record.pictures[RESULT] for record in editor_records}
        paths = [results.get(case.edit) for case in shown]
        rows.append([Image.open(out / name) if name else None for name in paths])
    with writing(path):
        picture_grid(rows, [*names, *records], [case.edit.instruction for case in shown]).save(path)


def _cell(name: str, summary: Mapping[str, float] | None) -> str:
    if summary is None:
        return ""
    factor, places = {"dB": (1, 1), "overlap": (1, 2), "count": (1, 0)}.get(unit_of(name), (100, 0))
    mean, low, high = (f"{factor * summary[part]:.{places}f}" for part in ("mean", "low", "high"))
    return f"{mean} [{low}, {high}]"
