"""The edit bench's table and sheet on figures that are known, and which editors a command line chooses."""

from collections import namedtuple

import pytest
from PIL import Image

from escdiff.evaluation.bench.records import RESULT, Record
from escdiff.evaluation.editing.report import SHOWN, draw_sheet, report
from escdiff.evaluation.editing.task import Task
from escdiff.support.errors import UserError
from escdiff.support.picture_grid import EMPTY, MARGIN

Edit = namedtuple("Edit", "instruction")
Case = namedtuple("Case", "before after edit")
EDITORS = {"unchanged": None, "img2img": None, "trained": None}
TASK = Task("edits", None, EDITORS, None, ("right", "kept", "psnr_same", "iou"), "A note.", ("right_color",))
ABOUT = {"date": "2026-01-02", "backbone": "tiny", "cases": 3, "steps": 4, "guidance": 2.0, "seed": 5,
         "command": "COMMAND", "seconds": {"unchanged": 0.04, "img2img": 12.345}}  # fmt: skip


def summary(mean):
    return {"mean": mean, "low": mean / 2, "high": mean * 1.5, "n": 3}


def table():
    unchanged = {"right": summary(0.5), "psnr_same": summary(20.0), "right_color": summary(0.25)}
    return {"unchanged": unchanged, "img2img": {"right": summary(0.125), "iou": summary(0.5)}}


def test_cells_have_the_units_of_their_scores_and_none_where_there_is_no_figure():
    text = report(TASK, table(), ABOUT)
    assert "# Edits\n" in text and "A note." in text and "`COMMAND`" in text
    assert "2026-01-02, backbone tiny, 3 cases, 4 steps, guidance 2, seed 5" in text
    assert "| method | right | psnr_same | iou | seconds |" in text  # a score that nobody has has no column
    assert "| unchanged | 50 [25, 75] | 20.0 [10.0, 30.0] |  | 0.0 |" in text
    assert "| img2img | 12 [6, 19] |  | 0.50 [0.25, 0.75] | 12.3 |" in text


def test_further_scores_stand_in_a_table_of_their_own():
    text = report(TASK, table(), ABOUT)
    assert "| method | right_color |" in text and "| unchanged | 25 [12, 38] |" in text and "| img2img |  |" in text
    without = report(Task("edits", None, EDITORS, None, TASK.scores, "A note."), table(), ABOUT)
    assert "right_color" not in without


def cases(count):
    gray = lambda level: Image.new("RGB", (4, 4), (level,) * 3)  # noqa: E731
    return [Case(gray(10 * i), gray(100 + 10 * i), Edit(f"edit {i}")) for i in range(count)]


def test_the_sheet_has_a_column_per_case_and_an_empty_cell_for_what_an_editor_left_out(tmp_path):
    shown = cases(2)
    for name, level in (("a", 200), ("b", 220)):
        Image.new("RGB", (4, 4), (level,) * 3).save(tmp_path / f"{name}.png")
    # The second editor serves the second case only, and its records are in another order.
    records = {
        "unchanged": [Record(shown[i].edit, {}, {}, {RESULT: f"{'ab'[i]}.png"}) for i in (1, 0)],
        "img2img": [Record(shown[1].edit, {}, {}, {RESULT: "a.png"})],
    }
    draw_sheet(tmp_path / "sheet.png", tmp_path, shown, records, TASK.reference)
    picture = Image.open(tmp_path / "sheet.png")
    step, top = 128 + MARGIN, picture.height - 4 * (128 + MARGIN)
    found = [[picture.getpixel((126 + c * step + 64, top + r * step + 64))[0] for c in range(2)] for r in range(4)]
    assert found == [[0, 10], [100, 110], [200, 220], [EMPTY[0], 200]]


def test_the_sheet_shows_the_first_cases(tmp_path):
    draw_sheet(tmp_path / "sheet.png", tmp_path, cases(SHOWN + 3), {}, TASK.reference)
    assert Image.open(tmp_path / "sheet.png").width == 126 + SHOWN * (128 + MARGIN)


def test_references_have_a_row_where_there_is_one(tmp_path):
    shown = cases(2)
    draw_sheet(tmp_path / "without.png", tmp_path, shown, {}, TASK.reference)
    draw_sheet(tmp_path / "sheet.png", tmp_path, shown, {}, lambda case: case.after if case is shown[1] else None)
    picture, without = Image.open(tmp_path / "sheet.png"), Image.open(tmp_path / "without.png")
    step = 128 + MARGIN
    assert picture.height == without.height + step
    row = [picture.getpixel((126 + c * step + 64, picture.height - step + 64))[0] for c in range(2)]
    assert row == [EMPTY[0], 110]


def test_chosen_editors_keep_the_order_of_the_table():
    assert TASK.choose("all") == list(EDITORS) and TASK.choose("all", ["trained"]) == ["unchanged", "img2img"]
    assert TASK.choose("img2img, unchanged,") == ["unchanged", "img2img"]


@pytest.mark.parametrize(
    ("names", "without", "words"),
    [
        ("img2img,other,more", (), "names other, more; give some of unchanged, img2img, trained"),
        ("trained", ("trained",), "names trained without its model"),
        (",", (), "is empty"),
    ],
)
def test_a_choice_that_cannot_be_served_is_one_sentence(names, without, words):
    with pytest.raises(UserError, match=words):
        TASK.choose(names, without)
