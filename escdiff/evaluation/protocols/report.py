"""A protocol's report: all scores, every subject, the worst pictures."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from escdiff.evaluation.bench.records import Record
from escdiff.evaluation.protocols.cases import ABOUT, PROMPTS, REAL
from escdiff.evaluation.report import units
from escdiff.evaluation.report.page import Card, Report, Section, Table, write_pages
from escdiff.evaluation.report.plot import score_against_time

RANK = (
    "dino",
    "dinov2",
    "clip_i",
    "clip_i_all",
    "mask_iou",
    "clip_t",
    "vlm_concept",
    "vlm_overall",
    "vlm_prompt",
)  # the first that is there orders the pictures
TIME = "pictures/score_time.svg"
NOTE = (
    "clip_t, clip_i, dino and dinov2 are plain cosines (others publish them times 2.5 or times 100); clip_i, dino, "
    "dinov2, lpips and dreamsim are means over all pairs of a picture and a real one, the reference left out; with "
    "_all it counts too. CLIP's texts hold the class word and no placeholder. mask_iou is after alignment, "
    "lab_distance in units of delta E, gram_distance from 0 to 1, all three against the reference; leak_ is the same "
    "against the reference that should not show (high mask_iou or low distance: it leaks). copy: share of pictures "
    "nearer to the reference's pixels than any other real picture. Scores are means over subjects of the mean over a "
    "subject's pictures, with 95 % intervals over subjects; kid is of all pictures at once. vlm_ are a "
    "judge's ratings from 0 to 1: concept against the reference, shape against the shape's, color and texture against "
    "the appearance's, prompt against the text, leak_ against the other one; what it would not rate is in no mean."
)


def write_protocol_report(
    out: Path, name: str, records: Mapping[str, Sequence[Record]], metrics: Mapping[str, dict], about: Mapping[str, Any]
) -> None:
    """Write report.html and report.md."""
    rows = [(key, _text(key, m, "mean"), _interval(key, m), str(m["n"])) for key, m in metrics.items()]
    metric_units = {_name(key): m["unit"] for key, m in metrics.items()}
    painted = sum(len(task_records) for task, task_records in records.items() if task != REAL)
    run = f"{len(about['subjects'])} subjects, {painted} pictures; backbone {about['backbone']}, "
    run += f"{about['scheduler']} {about['steps']} steps, guidance {about['guidance']:g}, seeds {about['seeds']}."
    if judge := about.get("judge"):
        run += f" Judge {judge['model']}: {judge['scored']} scores, {judge['missing']} missing and in no mean."
    figures = {}
    if points := _points(records.get(PROMPTS, [])):
        rank, by_subject = points
        top = 1.0 if max(score for _, score in by_subject.values()) <= 1 else 100.0
        score_against_time(by_subject, out / TIME, "seconds to customize", rank, top=top)
        figures[f"{rank} against seconds to customize, by subject"] = TIME
    sections = [Section("scores", "", [Table(("task/score", "mean", "95 % interval", "n"), rows)], figures, note=NOTE)]
    for task, task_records in records.items():
        if not (rank := _rank(task_records)):  # such as real pictures that are the only ones of their subjects
            continue
        ordered = sorted(task_records, key=lambda r, rank=rank: r.values.get(rank, np.inf))
        cards = [_card(record, metric_units) for record in ordered]
        sections.append(Section(task, ABOUT[task], [_by_subject(task_records, metric_units)], {}, cards))
    write_pages(Report(f"Protocol {name}", run, sections, about), out)


def _rank(records: Sequence[Record]) -> str:
    names = {name for record in records for name in record.values}
    return next((name for name in RANK if name in names), "")


def _points(records: Sequence[Record]) -> tuple[str, dict[str, tuple[float, float]]] | None:
    """Subject -> (seconds to customize, mean of the score that ranks), where seconds are known."""
    rank, points = _rank(records), {}
    for subject in dict.fromkeys(r.request.subject for r in records):
        subject_records = [r for r in records if r.request.subject == subject and rank in r.values]
        if subject_records and "seconds_to_customize" in subject_records[0].reading:
            mean = float(np.mean([r.values[rank] for r in subject_records]))
            points[subject] = subject_records[0].reading["seconds_to_customize"], mean
    return (rank, points) if points else None


def _by_subject(records: Sequence[Record], metric_units: Mapping[str, str]) -> Table:
    names = list(dict.fromkeys(name for record in records for name in record.values))
    rows = []
    for subject in dict.fromkeys(r.request.subject for r in records):
        subject_records = [r for r in records if r.request.subject == subject]
        means = {n: [r.values[n] for r in subject_records if n in r.values] for n in names}
        cells = [units.text(n, float(np.mean(v)), metric_units[n]) if v else "" for n, v in means.items()]
        rows.append((subject, str(len(subject_records)), *cells))
    return Table(("subject", "pictures", *names), rows)


def _card(record: Record, metric_units: Mapping[str, str]) -> Card:
    case = record.request
    facts = [("shape of", case.shape or "words"), ("appearance of", case.appearance or "words")]
    facts = [("subjects", f"{case.first}, {case.second}")] if case.second else facts
    facts += [("scored text", case.text), ("seed", str(case.seed))] if case.text else []
    facts += [(name, units.text(name, value, metric_units[name])) for name, value in record.values.items()]
    facts += [(name, "no score in the judge's answers") for name in record.reading.get("missing", ())]
    wrong = ["copied from its reference"] if record.values.get("copy") == 1 else []
    return Card(f"{case.subject}: {case.prompt}", record.pictures, facts, wrong)


def _name(key: str) -> str:
    return key.split("/")[1]


def _text(key: str, summary: Mapping[str, Any], part: str) -> str:
    return units.text(_name(key), summary[part], summary["unit"])


def _interval(key: str, summary: Mapping[str, Any]) -> str:
    if summary["low"] == summary["high"] == summary["mean"]:
        return ""
    return f"{_text(key, summary, 'low')} – {_text(key, summary, 'high')}"
