"""The comparison's sheet: every picture in the cell of its request and contender."""

import pytest
from PIL import Image

from escdiff.evaluation.bench.instances import Request
from escdiff.evaluation.bench.records import RESULT, Record
from escdiff.evaluation.comparison.cases import Case
from escdiff.evaluation.comparison.sheet import SHOWN, TASKS, draw_sheet
from escdiff.support.errors import UserError
from escdiff.support.picture_grid import MARGIN

CELL, LABEL = 128, 120 + MARGIN


def gray(level: int) -> Image.Image:
    return Image.new("RGB", (4, 4), (level,) * 3)


@pytest.fixture
def sheet(tmp_path, mug):
    """Three references of two pictures each; a picture's gray says whose it is."""
    for number in range(3):
        (tmp_path / "references").mkdir(exist_ok=True)
        gray(10 * number).save(tmp_path / "references" / f"{number:02d}.png")
    requests = {
        "both": [Case(Request(f"both {i}", mug), (i // 2,)) for i in range(6)],
        "swap": [Case(Request(f"swap {i}", mug), (i // 2, (i // 2 + 1) % 3)) for i in range(6)],
    }
    records = {name: {task: [] for task in TASKS} for name in ("escdiff", "xti")}
    for row, (name, by_task) in enumerate(records.items()):
        for offset, task in enumerate(TASKS):
            for i in range(6):
                path = f"{task}{i}.png"
                (tmp_path / "cells" / name).mkdir(parents=True, exist_ok=True)
                gray(100 + 50 * row + 20 * offset + i).save(tmp_path / "cells" / name / path)
                by_task[task].append(Record(Request("", mug), {}, {}, {RESULT: path}))
    return tmp_path, requests, records


def levels(path, columns):
    """Gray of the middle of each cell, row by row."""
    picture = Image.open(path)
    rows = 4
    top = picture.height - rows * (CELL + MARGIN)
    place = lambda n: n * (CELL + MARGIN) + CELL // 2  # noqa: E731
    return [[picture.getpixel((LABEL + place(c), top + place(r)))[0] for c in range(columns)] for r in range(rows)]


def test_a_column_is_a_request_and_a_row_a_contender(sheet):
    root, requests, records = sheet
    draw_sheet(root / "sheet.png", root / "references", root / "cells", requests, records, 2)
    found = levels(root / "sheet.png", 6)
    assert found[0] == [0, 10, 20, 0, 10, 20]  # the shape's reference
    assert found[1] == [0, 10, 20, 10, 20, 0]  # the appearance's, another one in a swap
    assert found[2] == [100, 102, 104, 120, 122, 124]  # the first picture of each reference
    assert found[3] == [150, 152, 154, 170, 172, 174]


def test_no_more_references_than_people_can_look_at(sheet):
    root, requests, records = sheet
    draw_sheet(root / "sheet.png", root / "references", root / "cells", requests, records, 1)
    width = Image.open(root / "sheet.png").width
    assert width == LABEL + 2 * SHOWN * (CELL + MARGIN)


def test_a_folder_that_cannot_be_written_is_one_sentence(sheet):
    root, requests, records = sheet
    with pytest.raises(UserError, match="cannot be written"):
        draw_sheet(root / "missing" / "sheet.png", root / "references", root / "cells", requests, records, 2)
