"""Files and figures of an evaluation."""

from xml.etree import ElementTree

import pytest

from escdiff.evaluation.report import units
from escdiff.evaluation.report.page import Card, Report, Section, html
from escdiff.evaluation.report.plot import score_against_time
from escdiff.evaluation.report.writing import write, writing
from escdiff.support.errors import UserError


def test_a_file_is_replaced_whole_or_stays(tmp_path):
    write(tmp_path / "new" / "a.txt", "one")
    with pytest.raises(ZeroDivisionError), writing(tmp_path / "a.txt"):
        raise ZeroDivisionError
    assert (tmp_path / "new" / "a.txt").read_text(encoding="utf-8") == "one"
    assert [path.name for path in tmp_path.rglob("*") if path.is_file()] == ["a.txt"]


def test_a_folder_that_refuses_is_one_sentence(tmp_path):
    (tmp_path / "file").write_text("", encoding="utf-8")
    with pytest.raises(UserError, match=r"cannot be written \(.*give --out a folder"):
        write(tmp_path / "file" / "a.txt", "one")


def test_the_figure_names_every_point_at_its_place(tmp_path):
    points = {"fast": (0.1, 90.0), "slow": (100.0, 30.0), "instant": (0.0, 50.0)}
    score_against_time(points, tmp_path / "a" / "f.svg", "seconds", "% right", ours=("fast",))
    svg = ElementTree.parse(tmp_path / "a" / "f.svg").getroot()
    texts = {e.text: e for e in svg.iter("{http://www.w3.org/2000/svg}text") if e.text}
    assert {"fast", "slow", "instant", "seconds", "% right"} <= set(texts)
    place = {name: tuple(float(texts[name].get(axis) or 0) for axis in "xy") for name in points}
    if all(x for x, _ in place.values()):
        assert place["instant"][0] < place["fast"][0] < place["slow"][0]  # seconds to the right
        assert place["fast"][1] < place["instant"][1] < place["slow"][1]  # an SVG's y goes down
    first = (tmp_path / "a" / "f.svg").read_bytes()
    score_against_time(points, tmp_path / "a" / "f.svg", "seconds", "% right", ours=("fast",))
    assert (tmp_path / "a" / "f.svg").read_bytes() == first  # no date, no random names


@pytest.mark.parametrize(("unit", "value", "text"), [
    ("share", 0.125, "12.5 %"), ("cosine", 0.12345, "0.123"), ("overlap", 1.0, "1.000"), ("distance", 0.5, "0.500"),
    ("delta E", 7.25, "7.2"), ("dB", 29.96, "30.0"),
])  # fmt: skip
def test_every_unit_as_people_read_it(unit, value, text):
    assert units.text("anything", value, unit) == text
    assert units.signed("anything", -value, unit) == "−" + text and units.signed("anything", value, unit) == "+" + text


@pytest.mark.parametrize(("name", "unit"), [
    ("family", "share"), ("shape_id", "share"), ("delta_e", "delta E"), ("other_delta_e", "delta E"),
    ("params", "distance"), ("gloss", "distance"), ("psnr", "dB"), ("clip_t", "cosine"),
])  # fmt: skip
def test_our_own_scores_have_their_units(name, unit):
    assert units.unit_of(name) == unit and units.is_share(name) == (unit == "share")
    assert units.text(name, 0.5) == units.text("x", 0.5, unit)


def test_a_score_goes_back_to_its_metric():
    assert [units.base(name) for name in ("clip_i", "clip_i_all", "leak_mask_iou")] == ["clip_i", "clip_i", "mask_iou"]


def test_the_mean_of_a_share_and_the_median_of_a_colour():
    values = [0.0, 0.0, 1.0, 1.0, 1.0]
    assert units.summarise("family", values)["mean"] == pytest.approx(0.6)
    assert units.summarise("delta_e", [1.0, 2.0, 90.0])["mean"] == 2
    assert units.summarise("lab_distance", [1.0, 2.0, 90.0], "delta E")["mean"] == pytest.approx(31)  # not by its name


def test_a_colour_is_shown_and_a_text_that_looks_like_one_is_not(tmp_path):
    def page(text):
        card = Card("t", {}, [("colour", text)])
        return html(Report("T", "", [Section("s", cards=[card])], {}), tmp_path)

    assert '<i style="background:#00ff7f"></i>#00ff7f' in page("#00ff7f")
    for text in ("#00ff7", "#00ff7f;x", "#GG0000"):
        assert "<i style" not in page(text)
