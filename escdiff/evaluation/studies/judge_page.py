"""The judges' table as a page of the documentation, and as JSON."""

import json
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path

from escdiff.evaluation.report import units
from escdiff.evaluation.report.page import Report, Section, Table, markdown
from escdiff.evaluation.report.writing import write
from escdiff.evaluation.studies.judge import Verdict

ALLOWED = 0.03  # by how much the scene may change re-identification
ABOUT = (
    "The judges of the bundled model on pictures that they have never seen, with 95 % intervals. What a picture does "
    "not show is not judged; what each score says: [ESC-Bench](bench.md)."
)
FOOLED = (
    "Each picture is looked for twice among the same eight instances: in portraits with its own background, light and "
    "yaw, and in portraits whose background, light and yaw are drawn independently; all else is equal. The difference "
    "is paired by picture; it may be at most 3 points."
)
BLIND = "This oracle tells no instances apart: which of 8, and what the scene does to that, are left out."


def write_verdict(verdict: Verdict, out: Path, about: Mapping[str, object]) -> None:
    """Write `out`, Markdown, and beside it the same as JSON."""
    renders, softened = verdict.tables["renders"], verdict.tables["vae"]
    rows = [
        (name, _cell(name, renders[name]), _cell(name, softened.get(name)), str(renders[name]["n"])) for name in renders
    ]
    sections = [Section("What is read", tables=[Table(("score", "fresh renders", "through the VAE", "n"), rows)])]
    head = ("score", "same scene", "independent", "difference", "within 3 points")
    rows = []
    for name, d in verdict.differences.items():
        change = f"{units.signed(name, d.mean)} ({units.signed(name, d.low)} – {units.signed(name, d.high)})"
        within = "yes" if abs(d.mean) <= ALLOWED else "no"
        rows.append((name, _cell(name, verdict.same[name]), _cell(name, renders[name]), change, within))
    sections.append(Section("Can the scene fool it?", FOOLED if rows else BLIND, [Table(head, rows)] if rows else []))
    write(out, markdown(Report("What the judges can do", ABOUT, sections, about)))
    write(out.with_suffix(".json"), json.dumps({**about, **asdict(verdict)}, indent=1) + "\n")


def _cell(name: str, summary: Mapping[str, float] | None) -> str:
    if not summary:
        return ""
    name = name.split("/")[-1]
    mean, low, high = (units.text(name, summary[key]) for key in ("mean", "low", "high"))
    return f"{mean} ({low} – {high})"
