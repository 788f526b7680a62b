"""The tables of the comparison of scenes, and what every method painted."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from PIL import Image

from escdiff.evaluation.bench.pictures import draw
from escdiff.evaluation.bench.records import RESULT, Record
from escdiff.evaluation.comparison.report import score_cell
from escdiff.evaluation.report.units import OWN
from escdiff.evaluation.report.writing import markdown_table, write, writing
from escdiff.support.picture_grid import picture_grid

SHOWN = 6  # pictures of a task
NOTE = (
    "Shares in percent with 95 % intervals over cases, means over a case's pictures first; docs/bench.md "
    f"says what each score is. Those of `{OWN}` are the judge's own, shown the truth. Seconds are for what is "
    "learned per case; an encoder is learned once before, in the steps that the column says."
)
UNJUDGED = "There is no judge of scenes here, so these pictures have no scores: give --scene-oracle."


def write_report(
    out: Path, table: Mapping[str, Mapping[str, dict]], records: Mapping[str, Mapping[str, Sequence[Record]]],
    about: Mapping[str, Any], each: int,
) -> None:  # fmt: skip
    """Write scenes.md and a sheet of every task."""
    run = (
        f"{about['date']}, backbone {about['backbone']}, {about['cases']} cases x {about['pictures']} pictures per "
        f"task, {about['sampling_steps']} sampling steps, guidance {about['guidance']:g}, seed {about['seed']}, steps "
        f"scaled by {about['scale']:g}{', --quick' if about['quick'] else ''}. Made by `{about['command']}`."
    )
    parts = ["# Several things, relations, actions", run, NOTE if about["judged"] else UNJUDGED]
    for task, rows in table.items():
        scores = list(dict.fromkeys(score for row in rows.values() for score in row["scores"]))
        lines = [
            (f"{name}: {row['about']}", str(row["steps"]), str(row["learning_steps"]),
             "" if row["seconds"] is None else f"{row['seconds']:.1f}",
             *(score_cell(f"{task}/{score}", row["scores"].get(score)) for score in scores))
            for name, row in rows.items()
        ]  # fmt: skip
        parts += [f"## {task}", markdown_table(("method", "steps", "learned in steps", "seconds", *scores), lines)]
        parts.append(f"![{task}](scenes-{task}.png)")
        draw_sheet(out, task, records[task])
    write(out / "scenes.md", "\n\n".join(parts) + "\n")


def draw_sheet(out: Path, task: str, records: Mapping[str, Sequence[Record]]) -> None:
    """What was asked for, rendered, and below it what each contender painted."""
    requests = [record.request for record in next(iter(records.values()))[:SHOWN]]
    rows = [draw([request.expected for request in requests])]
    for name, task_records in records.items():
        rows.append([Image.open(out / "cells" / name / record.pictures[RESULT]) for record in task_records[:SHOWN]])
    with writing(out / f"scenes-{task}.png"):
        picture_grid(rows, ["truth", *records], [request.prompt for request in requests]).save(
            out / f"scenes-{task}.png"
        )
