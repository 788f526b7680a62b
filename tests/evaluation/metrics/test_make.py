"""Metrics by what they declare: everything that can be added is asked, or refused before anything is painted."""

import re
from pathlib import Path

import pytest
import torch
from PIL import Image

from escdiff.evaluation.metrics.base import AGAINST, PictureMetric
from escdiff.evaluation.metrics.build import KINDS, make_metrics
from escdiff.evaluation.protocols.cases import Case
from escdiff.evaluation.protocols.judge import Shown, judge, judge_real, masker
from escdiff.evaluation.protocols.subjects import Subject
from escdiff.evaluation.report import units
from escdiff.support.errors import UserError

DOCS = Path(__file__).parents[3] / "docs" / "extending.md"


@pytest.fixture
def shown(tmp_path):
    """A subject with three real pictures: a square before a plain background, lighter and lighter."""
    for i, level in enumerate((0, 100, 150)):
        picture = Image.new("RGB", (64, 64), (200, 200, 200))
        picture.paste((level, level, level), (16, 16, 48, 48))
        picture.save(tmp_path / f"{i}.png")
    files = tuple(sorted(tmp_path.glob("*.png")))
    return Shown(Subject("square", files, "square", ("a {}",)), 0, masker("plain"))


@pytest.fixture
def kinds(monkeypatch):
    """KINDS, as it was again afterwards."""
    monkeypatch.setattr("escdiff.evaluation.metrics.build.KINDS", KINDS)
    before = dict(KINDS)
    yield KINDS
    KINDS.clear()
    KINDS.update(before)


def test_the_documented_metric_is_asked_and_written_in_its_unit(shown):
    section = DOCS.read_text(encoding="utf-8").partition("## A metric")[2]
    names: dict = {}
    exec(re.search(r"```python\n(.*?)```", section, re.DOTALL).group(1), names)
    metrics = {"brightness": names["make"]("cpu")}
    case = Case("a <concept>", "a square", "square", "square", 0)
    (row,) = judge(metrics, [case], [shown.real[1]], {"square": shown})
    assert row["brightness"] == pytest.approx(25 / 4 / 255, abs=1e-3)  # against the others: 150 - 100 on a quarter
    assert all("brightness" in values for values in judge_real(metrics, shown))
    assert units.text("brightness", row["brightness"], metrics["brightness"].unit) == "0.025"


@pytest.mark.parametrize("against", sorted(set(AGAINST) - {"set"}))
def test_whatever_a_metric_is_against_it_is_asked(against, shown):
    class Asked(PictureMetric):
        unit = "share"

        def score(self, pictures, *others):
            return torch.full((len(pictures),), float(1 + len(others)))

    metric = Asked()
    metric.against = against
    case = Case("a <concept>", "a square", "square", "square", 0)
    (row,) = judge({"mine": metric}, [case], [shown.real[1]], {"square": shown})
    assert row["mine"] == {"text": 2, "real": 2, "shape": 2, "appearance": 4}[against]


@pytest.mark.parametrize(("against", "unit", "words"), [
    ("outline", "share", "declares against = 'outline'; expected one of text, real"),
    ("real", "percent", "declares unit = 'percent'; expected one of share"),
    (None, None, "declares against = None"),
])  # fmt: skip
def test_what_nobody_would_ask_is_refused(kinds, against, unit, words):
    class Mine(PictureMetric):
        pass

    for name, value in (("against", against), ("unit", unit)):
        if value is not None:
            setattr(Mine, name, value)
    kinds["mine"] = lambda device: Mine()
    with pytest.raises(UserError, match=words):
        make_metrics({"my_metric": {"kind": "mine"}})


def test_a_metrics_name_decides_nothing():
    """What was in no list of names was printed as per cent."""
    assert units.text("my_cosine", 0.5, "cosine") == "0.500"
    assert units.text("my_share", 0.5, "share") == "50.0 %"
    assert units.signed("my_colours", -3.21, "delta E") == "−3.2"
    assert units.summarise("my_cosine", [1.0] * 40, "cosine")["low"] == 1.0  # no interval of a share
