"""A judge's scores of a protocol's pictures, from 0 to 1, put among the metrics' values.

Shape is held against the shape's reference and colour and texture against the appearance's, so that a swap is judged
by both of its references; the same questions the other way round are its leaks.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from math import prod
from pathlib import Path

from PIL import Image

from escdiff.evaluation.bench.records import RESULT, Record
from escdiff.evaluation.protocols.cases import PROMPTS, REAL, Case
from escdiff.evaluation.protocols.judge import Shown
from escdiff.evaluation.report.units import RATING
from escdiff.evaluation.vlm.panel import Item, Panel
from escdiff.evaluation.vlm.rubrics import Question, Rubrics
from escdiff.support.progress import sample_progress

JUDGED, OVERALL = "vlm_", "vlm_overall"  # beginning of the scores' names
TOGETHER = 64  # pictures whose questions are put at once


@dataclass
class Opinions:
    """A panel, the references, and the folder that the pictures lie in."""

    panel: Panel
    shown: Mapping[str, Shown]
    out: Path

    def add(self, records: Mapping[str, Sequence[Record]]) -> dict[str, str]:
        """Ask about all painted pictures and put the scores among their values; gives score -> unit.

        What stays without a score is named in the record's reading, under "missing".
        """
        painted = [record for task, task_records in records.items() if task != REAL for record in task_records]
        rubrics = self.panel.rubrics
        total = sum(1 for record in painted for _ in questions_of(record.request, rubrics))
        self.panel.expect(total)
        with sample_progress("asking the judge", total) as advance:
            for first in range(0, len(painted), TOGETHER):
                part = painted[first : first + TOGETHER]
                questions = [(record, *ask) for record in part for ask in questions_of(record.request, rubrics)]
                items = [self._item(record, question, names) for record, _, question, names in questions]
                for (record, name, *_), score in zip(questions, self.panel.ask(items, advance), strict=True):
                    if score is None:
                        record.reading.setdefault("missing", []).append(name)
                    else:
                        record.values[name] = score / rubrics.scale
                for shown in self.shown.values():  # references are read again if they are needed again
                    shown.__dict__.pop("real", None)
        if rubrics.overall == "geometric":
            _combine(painted, rubrics)
        print(f"judge: {self.panel.summary()}")
        return {JUDGED + name: RATING for name in (*rubrics.scores, "overall")}

    def overall(self, values: Mapping[str, Mapping]) -> dict[str, dict]:
        """The product of the means, without an interval, where the rubrics ask for it."""
        rubrics = self.panel.rubrics
        means = [values[key] for name in rubrics.overall_of if (key := f"{PROMPTS}/{JUDGED}{name}") in values]
        if rubrics.overall != "product" or len(means) < len(rubrics.overall_of):
            return {}
        value = prod(summary["mean"] for summary in means)
        number = min(summary["n"] for summary in means)
        return {f"{PROMPTS}/{OVERALL}": {"mean": value, "low": value, "high": value, "n": number, "unit": RATING}}

    def _item(self, record: Record, question: Question, names: Sequence[str]) -> Item:
        with Image.open(self.out / record.pictures[RESULT]) as picture:
            judged = picture.convert("RGB")
        references = [self.shown[name].reference for name in names]
        return Item(question.text.replace("{prompt}", record.request.text), (*references, judged))


def questions_of(case: Case, rubrics: Rubrics) -> Iterator[tuple[str, Question, tuple[str, ...]]]:
    """The score's name, the question, and the subjects whose references are shown beside the picture."""
    swap = case.swapped
    for question in rubrics.questions:
        name = JUDGED + question.score
        if question.against == "whole" and case.whole:
            yield name, question, (case.subject,)
        elif question.against == "style" and case.appearance and not case.shape:
            yield name, question, (case.appearance,)
        elif question.against == "pair" and case.second:
            yield name, question, (case.first, case.second)
        elif question.against == "text" and case.text:
            yield name, question, ()
        elif question.against in ("shape", "appearance") and (subject := getattr(case, question.against)):
            yield name, question, (subject,)
            if swap:
                yield "leak_" + name, question, (case.appearance if question.against == "shape" else case.shape,)


def forget(records: Sequence[Record]) -> Sequence[Record]:
    """The records without what a judge once said of them."""
    for record in records:
        record.reading.pop("missing", None)
        for name in [n for n in record.values if n.removeprefix("leak_").startswith(JUDGED)]:
            del record.values[name]
    return records


def _combine(records: Sequence[Record], rubrics: Rubrics) -> None:
    """Each picture's geometric mean, where all of its scores are there."""
    for record in records:
        scores = [record.values[key] for name in rubrics.overall_of if (key := JUDGED + name) in record.values]
        if len(scores) == len(rubrics.overall_of):
            record.values[OVERALL] = prod(scores) ** (1 / len(scores))
