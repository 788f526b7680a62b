"""Who is asked what: hand-made subjects whose outlines, colours and neighbours are known."""

import numpy as np
import pytest
import torch
from PIL import Image

from escdiff.evaluation.metrics.attributes import LabDistance, MaskIoU
from escdiff.evaluation.metrics.base import PictureMetric
from escdiff.evaluation.protocols.cases import Case
from escdiff.evaluation.protocols.judge import Shown, judge, judge_real, masker
from escdiff.evaluation.protocols.subjects import Subject
from escdiff.support.errors import UserError

GREY = (200, 200, 200)


def picture(box, color, size=(64, 64)):
    """An object of one colour before a plain background."""
    made = Image.new("RGB", size, GREY)
    made.paste(color, box)
    return made


@pytest.fixture
def shown(tmp_path):
    """Name -> a subject: "square" in red, "bar" in blue, "lonely" with its reference alone."""
    looks = {
        "square": [picture((20, 20, 44, 44), (200, 0, 0)), picture((20, 20, 44, 44), (180, 0, 0)),
                   picture((4, 4, 28, 28), (60, 0, 0))],
        "bar": [picture((4, 28, 60, 36), (0, 0, 200)), picture((4, 10, 60, 18), (0, 0, 150))],
        "lonely": [picture((20, 20, 44, 44), (0, 150, 0))],
    }  # fmt: skip
    found = {}
    for name, pictures in looks.items():
        files = []
        for i, one in enumerate(pictures):
            files.append(tmp_path / f"{name}{i}.png")
            one.save(files[-1])
        found[name] = Shown(Subject(name, tuple(files), name, ("a {}",)), 0, masker("plain"))
    return found


class Counting(PictureMetric):
    """How many real pictures, or which texts, each picture was held against."""

    unit = "share"

    def __init__(self, against):
        super().__init__()
        self.against, self.asked = against, []

    def score(self, pictures, others):
        self.asked.append((len(pictures), list(others)))
        return torch.full((len(pictures),), float(len(others)))


def whole(name, text="a text"):
    return Case("a <concept>", text, name, name, 0)


def test_the_reference_is_left_out_and_counted_under_all(shown):
    metric = Counting("real")
    (row,) = judge({"m": metric}, [whole("square")], [shown["square"].real[1]], shown)
    assert (row["m"], row["m_all"]) == (2, 3)
    assert metric.asked[0][1] == shown["square"].others and metric.asked[1][1] == shown["square"].real


def test_a_subject_with_its_reference_alone_has_no_score_without_it(shown):
    (row,) = judge({"m": Counting("real")}, [whole("lonely")], [shown["lonely"].reference], shown)
    assert "m" not in row and row["m_all"] == 1 and "copy" not in row  # nothing to be nearer than


def test_texts_are_asked_for_cases_that_have_one(shown):
    metric, cases = Counting("text"), [whole("square", "a square"), whole("square", "")]
    rows = judge({"m": metric}, cases, [shown["square"].reference] * 2, shown)
    assert metric.asked == [(1, ["a square"])] and rows[0]["m"] == 1 and "m" not in rows[1]


def test_a_swap_is_no_real_picture_of_anybody(shown):
    swap = Case("a <appearance> <shape>", "a square", "square", "bar", 0)
    (row,) = judge({"m": Counting("real")}, [swap], [shown["square"].reference], shown)
    assert not {"m", "m_all", "copy"} & set(row)


def test_shape_and_appearance_are_held_against_their_own_references_and_leaks_against_the_other(shown):
    """A blue square: the square's outline in the bar's colour, as a perfect swap paints it."""
    metrics = {"iou": MaskIoU(), "lab": LabDistance()}
    swap = Case("a <appearance> <shape>", "", "square", "bar", 0)
    blue = picture((20, 20, 44, 44), (0, 0, 200))
    (good,) = judge(metrics, [swap], [blue], shown)
    assert good["iou"] == 1 and good["lab"] == pytest.approx(0, abs=1e-6)
    assert good["leak_iou"] < 0.5 and good["leak_lab"] > 50  # the bar's outline and the square's red do not show
    (bad,) = judge(metrics, [swap], [shown["bar"].reference], shown)  # all of the appearance's reference
    assert bad["leak_iou"] == 1 and bad["iou"] == pytest.approx(good["leak_iou"])
    (red,) = judge(metrics, [swap], [shown["square"].reference], shown)  # all of the shape's
    assert red["leak_lab"] == pytest.approx(0, abs=1e-6) and red["lab"] == pytest.approx(good["leak_lab"], rel=1e-6)


def test_a_case_of_one_reference_leaks_into_the_attribute_that_words_give(shown):
    metrics = {"iou": MaskIoU(), "lab": LabDistance()}
    shape_only = Case("a blue <shape>", "", "square", "", 0)
    (row,) = judge(metrics, [shape_only], [picture((20, 20, 44, 44), (0, 0, 200))], shown)
    assert set(row) == {"iou", "leak_lab"} and row["iou"] == 1 and row["leak_lab"] > 50
    (row,) = judge(metrics, [Case("a <appearance> ball", "", "", "square", 0)], [shown["bar"].reference], shown)
    assert set(row) == {"lab", "leak_iou"}


def test_without_masks_no_attribute_is_judged(shown):
    for one in shown.values():
        one.find = None
    (row,) = judge({"iou": MaskIoU()}, [whole("square")], [shown["square"].reference], shown)
    assert row == {}


def test_copies_are_nearer_to_the_reference_than_any_other_photo(shown):
    square = shown["square"]
    assert square.nearest == pytest.approx(((200 - 180) / 255) ** 2 / 3, rel=0.05)  # red less 20; rim blurred
    near, far = picture((20, 20, 44, 44), (195, 0, 0)), picture((20, 20, 44, 44), (100, 0, 0))
    rows = judge({"iou": MaskIoU()}, [whole("square")] * 2, [near, far], shown)
    assert [row["copy"] for row in rows] == [1, 0]


def test_real_pictures_are_held_against_the_others(shown):
    metrics = {"m": Counting("real"), "t": Counting("text")}
    assert judge_real(metrics, shown["square"]) == [{"m": 2.0}] * 3
    assert judge_real(metrics, shown["lonely"]) == [{}]


def test_values_that_are_no_numbers_are_left_out(shown):
    class Nan(Counting):
        def score(self, pictures, others):
            return torch.tensor([float("nan"), 0.5])

    rows = judge({"m": Nan("text")}, [whole("square")] * 2, [shown["square"].reference] * 2, shown)
    assert "m" not in rows[0] and rows[1]["m"] == 0.5


def test_photographs_are_cut_to_the_square_that_the_encoder_sees(tmp_path):
    wide = picture((40, 0, 60, 60), (0, 0, 0), (100, 60))
    wide.save(tmp_path / "wide.png")
    (cut,) = Shown(Subject("w", (tmp_path / "wide.png",), "w", ()), 0, None).real
    assert cut.size == (60, 60) and np.array_equal(np.asarray(cut), np.asarray(wide.crop((20, 0, 80, 60))))


def test_masks_by_request():
    assert masker("none") is None
    assert masker("plain")(picture((0, 0, 0, 0), GREY), "x").shape == (64, 64)
    with pytest.raises(UserError, match="cannot be loaded"):
        masker("/nowhere/segmenter")
