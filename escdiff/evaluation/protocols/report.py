"""A protocol's report: all scores, every subject, the worst pictures."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from escdiff.evaluation import scores
from escdiff.evaluation.page import Card, Report, Section, Table, write_pages
from escdiff.evaluation.plot import score_against_time
from escdiff.evaluation.protocols.cases import ABOUT, PROMPTS
from escdiff.evaluation.records import Record

RANK = ("dino", "dinov2", "clip_i", "clip_i_all", "mask_iou", "clip_t")  # the first that is there orders the pictures
TIME = "pictures/score_time.svg"
NOTE = (
    "clip_t, clip_i, dino and dinov2 are plain cosines (others publish them times 2.5 or times 100); clip_i, dino, "
    "dinov2, lpips and dreamsim are means over all pairs of a picture and a real one, the reference left out; with "
    "_all it counts too. CLIP's texts hold the class word and no placeholder. mask_iou is after alignment, "
    "lab_distance in units of delta E, gram_distance from 0 to 1, all three against the reference; leak_ is the same "
    "against the reference that should not show (high mask_iou or low distance: it leaks). copy: share of pictures "
    "nearer to the reference's pixels than any other real picture. Scores are means over subjects of the mean over a "
    "subject's pictures, with 95 % bootstrap intervals over subjects; kid is of all pictures at once."
)


def write_protocol_report(
    out: Path, name: str, records: Mapping[str, Sequence[Record]], metrics: Mapping[str, dict], about: Mapping[str, Any]
) -> None:
    """Write report.html and report.md."""
    rows = [(key, scores.text(_name(key), m["mean"]), _interval(key, m), str(m["n"])) for key, m in metrics.items()]
    run = f"{len(about['subjects'])} subjects, {len(records[PROMPTS])} pictures; backbone {about['backbone']}, "
    run += f"{about['scheduler']} {about['steps']} steps, guidance {about['guidance']:g}, seeds {about['seeds']}."
    figures = {}
    if points := _points(records[PROMPTS]):
        rank, found = points
        top = 1.0 if max(score for _, score in found.values()) <= 1 else 100.0
        score_against_time(found, out / TIME, "seconds to customize", rank, top=top)
        figures[f"{rank} against seconds to customize, by subject"] = TIME
    sections = [Section("scores", "", [Table(("task/score", "mean", "95 % interval", "n"), rows)], figures, note=NOTE)]
    for task, found in records.items():
        if not (rank := _rank(found)):  # such as real pictures that are the only ones of their subjects
            continue
        ordered = sorted(found, key=lambda r, rank=rank: r.values.get(rank, np.inf))
        cards = [_card(record) for record in ordered]
        sections.append(Section(task, ABOUT[task], [_by_subject(found)], {}, cards))
    write_pages(Report(f"Protocol {name}", run, sections, about), out)


def _rank(records: Sequence[Record]) -> str:
    there = {name for record in records for name in record.values}
    return next((name for name in RANK if name in there), "")


def _points(records: Sequence[Record]) -> tuple[str, dict[str, tuple[float, float]]] | None:
    """Subject -> (seconds to customize, mean of the score that ranks), where seconds are known."""
    rank, found = _rank(records), {}
    for subject in dict.fromkeys(r.request.subject for r in records):
        own = [r for r in records if r.request.subject == subject and rank in r.values]
        if own and "seconds_to_customize" in own[0].reading:
            found[subject] = own[0].reading["seconds_to_customize"], float(np.mean([r.values[rank] for r in own]))
    return (rank, found) if found else None


def _by_subject(records: Sequence[Record]) -> Table:
    names = list(dict.fromkeys(name for record in records for name in record.values))
    rows = []
    for subject in dict.fromkeys(r.request.subject for r in records):
        own = [r for r in records if r.request.subject == subject]
        means = {n: [r.values[n] for r in own if n in r.values] for n in names}
        cells = [scores.text(n, float(np.mean(v))) if v else "" for n, v in means.items()]
        rows.append((subject, str(len(own)), *cells))
    return Table(("subject", "pictures", *names), rows)


def _card(record: Record) -> Card:
    case = record.request
    facts = [("shape of", case.shape or "words"), ("appearance of", case.appearance or "words")]
    facts += [("scored text", case.text), ("seed", str(case.seed))] if case.text else []
    facts += [(name, scores.text(name, value)) for name, value in record.values.items()]
    wrong = ["copied from its reference"] if record.values.get("copy") == 1 else []
    return Card(f"{case.subject}: {case.prompt}", record.pictures, facts, wrong)


def _name(key: str) -> str:
    return key.split("/")[1]


def _interval(key: str, found: Mapping[str, float]) -> str:
    if found["low"] == found["high"] == found["mean"]:
        return ""
    return f"{scores.text(_name(key), found['low'])} – {scores.text(_name(key), found['high'])}"
