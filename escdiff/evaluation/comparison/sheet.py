"""The comparison as a picture: what every contender painted for the same requests."""

from collections.abc import Mapping, Sequence
from pathlib import Path

from PIL import Image

from escdiff.evaluation.bench.records import RESULT, Record
from escdiff.evaluation.comparison.cases import Case
from escdiff.evaluation.report.writing import writing
from escdiff.support.picture_grid import picture_grid

TASKS = ("both", "swap")
SHOWN = 4  # references, the first picture of each


def draw_sheet(
    path: Path, references: Path, cells: Path, cases: Mapping[str, Sequence[Case]],
    records: Mapping[str, Mapping[str, Sequence[Record]]], per_reference: int,
) -> None:  # fmt: skip
    """Write a grid: on top the references of shape and appearance, below a row per contender; a column per request.

    Args:
        references: folder of the references, by number. cells: folder of the contenders' folders.
        cases: task -> requests. records: contender -> task -> what came of them.
        per_reference: pictures of each reference, of which the first is shown.
    """
    columns = [(task, number) for task in TASKS for number in range(0, len(cases[task]), per_reference)[:SHOWN]]
    chosen = [cases[task][number] for task, number in columns]
    rows = [[Image.open(references / f"{case.references[end]:02d}.png") for case in chosen] for end in (0, -1)]
    for name, by_task in records.items():
        rows.append([Image.open(cells / name / by_task[task][number].pictures[RESULT]) for task, number in columns])
    with writing(path):
        picture_grid(
            rows, ["shape's reference", "appearance's reference", *records], [case.request.prompt for case in chosen]
        ).save(path)
