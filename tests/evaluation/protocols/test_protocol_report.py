"""The report of a protocol, on records whose means are known."""

import pytest
from PIL import Image

from escdiff.evaluation.bench.records import Record
from escdiff.evaluation.protocols import report
from escdiff.evaluation.protocols.cases import Case

UNITS = {"clip_i": "cosine", "clip_t": "cosine", "copy": "share", "lab_distance": "delta E"}


def record(subject, seed=0, seconds=None, **values):
    reading = {} if seconds is None else {"seconds_to_customize": seconds}
    return Record(Case("a <concept>", f"a {subject}", subject, subject, seed), reading, values, {"result": "a.png"})


@pytest.fixture
def records():
    return [
        record("mug", 0, 2.0, clip_i=0.25, copy=0.0), record("mug", 1, 2.0, clip_i=0.75, copy=1.0),
        record("dog", 0, 4.0, clip_i=0.9),
    ]  # fmt: skip


def write(tmp_path, records, metrics, name="dreambench"):
    Image.new("RGB", (8, 8)).save(tmp_path / "a.png")
    about = {"subjects": ["mug", "dog"], "backbone": "tiny", "scheduler": "DDIM", "steps": 3, "guidance": 7.5,
             "seeds": [0, 1]}  # fmt: skip
    report.write_protocol_report(tmp_path, name, records, metrics, about)
    return (tmp_path / "report.md").read_text(encoding="utf-8")


def test_subjects_have_the_means_of_their_own_pictures(records):
    table = report._by_subject(records, UNITS)
    assert table.head == ("subject", "pictures", "clip_i", "copy")
    assert [tuple(row) for row in table.rows] == [("mug", "2", "0.500", "50.0 %"), ("dog", "1", "0.900", "")]


def test_the_first_score_of_the_ranking_that_is_there_orders_the_pictures(records):
    assert report._rank(records) == "clip_i"
    assert report._rank([record("mug", clip_t=0.3, lab_distance=4.0)]) == "clip_t"
    assert report._rank([record("mug", lab_distance=4.0)]) == ""


def test_points_are_seconds_and_the_mean_score(records):
    assert report._points(records) == ("clip_i", {"mug": (2.0, 0.5), "dog": (4.0, 0.9)})
    assert report._points([record("mug", clip_i=0.5)]) is None  # given concepts: nobody knows the seconds


def test_the_worst_pictures_come_first_and_copies_are_marked(tmp_path, records):
    metrics = {
        "prompts/clip_i": {"mean": 0.633, "low": 0.5, "high": 0.9, "n": 2, "unit": "cosine"},
        "prompts/copy": {"mean": 0.5, "low": 0.5, "high": 0.5, "n": 1, "unit": "share"},
    }
    text = write(tmp_path, {"prompts": records}, metrics)
    assert "| prompts/clip_i | 0.633 | 0.500 – 0.900 | 2 |" in text
    assert "| prompts/copy | 50.0 % |  | 1 |" in text  # no interval where there is nothing to resample
    assert "2 subjects, 3 pictures; backbone tiny, DDIM 3 steps, guidance 7.5" in text
    first, second, third = (text.index(f"clip_i {value}") for value in ("0.250", "0.750", "0.900"))
    assert first < second < third and text.count("copied from its reference") == 1
    assert (tmp_path / report.TIME).is_file() and report.TIME in text


def test_a_task_that_nobody_ranks_has_no_section(tmp_path, records):
    metrics = {
        f"prompts/{n}": {"mean": 0.5, "low": 0.5, "high": 0.5, "n": 1, "unit": UNITS[n]} for n in ("clip_i", "copy")
    }
    text = write(tmp_path, {"prompts": records, "real": [record("lonely")]}, metrics)
    assert "## prompts" in text and "## real" not in text
