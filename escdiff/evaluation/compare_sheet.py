"""The comparison as a picture: what every contender painted for the same requests."""

from collections.abc import Mapping, Sequence
from pathlib import Path

from PIL import Image

from escdiff.evaluation.contest import Ask
from escdiff.evaluation.records import RESULT, Record, writing
from escdiff.figure import picture_grid

TASKS = ("both", "swap")
SHOWN = 4  # references, the first picture of each


def draw_sheet(
    path: Path, references: Path, cells: Path, asks: Mapping[str, Sequence[Ask]],
    records: Mapping[str, Mapping[str, Sequence[Record]]], each: int,
) -> None:  # fmt: skip
    """Write a grid: on top the references of shape and appearance, below a row per contender; a column per request.

    Args:
        references: folder of the references, by number. cells: folder of the contenders' folders.
        asks: task -> requests. records: contender -> task -> what came of them.
        each: pictures per reference.
    """
    columns = [(task, number) for task in TASKS for number in range(0, len(asks[task]), each)[:SHOWN]]
    chosen = [asks[task][number] for task, number in columns]
    rows = [[Image.open(references / f"{ask.references[end]:02d}.png") for ask in chosen] for end in (0, -1)]
    for name, found in records.items():
        rows.append([Image.open(cells / name / found[task][number].pictures[RESULT]) for task, number in columns])
    with writing(path):
        picture_grid(
            rows, ["shape's reference", "appearance's reference", *records], [ask.request.prompt for ask in chosen]
        ).save(path)
