"""The headline: which of 8, for shape and for material, beside what words can do on the same instances."""

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass

from escdiff.evaluation.bench.identity import CHANCE, LOOKED_FOR
from escdiff.evaluation.bench.records import Record
from escdiff.evaluation.report import units
from escdiff.evaluation.report.page import Table
from escdiff.evaluation.report.significance import Difference, holm, paired

SCORES = ("shape_id", "material_id")
# Row -> the words for the same instances, request by request; None: nothing to compare with.
ROWS = {
    "both": "words_full", "shape": "words_full", "appearance": "words_full", "swap": "swap_words",
    "nameless": "nameless_words", "held_out": None, "words_brief": None, "words_full": None, "swap_words": None,
    "nameless_words": None, "stranger": None, "ceiling": None, "nameless_ceiling": None,
}  # fmt: skip
LEAKS = ("shape/leak_material_id", "appearance/leak_shape_id")
HEAD = ("re-identified, of 8", "shape", "material", "shape, above full words", "material, above full words")
LEAK_HEAD = ("leak", "re-identified", "95 % interval", "above chance", "n")


@dataclass(frozen=True)
class Lead:
    """By how much a task re-identifies more than full words do; `holm` is p corrected for the number of questions."""

    task: str
    score: str
    words: str
    difference: Difference
    holm: float


def leads(records: Mapping[str, Sequence[Record]]) -> list[Lead]:
    """Every comparison with full words that the records allow, paired by instance."""
    rows = []
    for task, words in ROWS.items():
        if words not in records or task not in records:
            continue
        for score in SCORES:
            ours, theirs = ({i: r.values[score] for i, r in enumerate(records[name]) if score in r.values}
                            for name in (words, task))  # fmt: skip
            instances = {i: str(LOOKED_FOR[score](r.request)) for i, r in enumerate(records[task])}
            if difference := paired(ours, theirs, instances):
                rows.append((task, score, words, difference))
    corrected = holm([difference.p for *_, difference in rows])
    return [Lead(*row, p) for row, p in zip(rows, corrected, strict=True)]


def tables(records: Mapping[str, Sequence[Record]], metrics: Mapping[str, dict]) -> list[Table]:
    """The headline and the leak as tables; empty where no instance was told apart."""
    ahead = {(lead.task, lead.score): lead for lead in leads(records)}
    rows = []
    for task in ROWS:
        summaries = [metrics.get(f"{task}/{score}") for score in SCORES]
        if any(summaries):
            differences = [_lead(ahead.get((task, score))) for score in SCORES]
            rows.append((task, *(_share(result) for result in summaries), *differences))
    result = [Table(HEAD, [*rows, ("chance", *[units.text("shape_id", CHANCE)] * 2, "", "")])] if rows else []
    leaks = [(key, metrics[key]) for key in LEAKS if key in metrics]
    if leaks:
        result.append(Table(LEAK_HEAD, [_leak(key, value) for key, value in leaks]))
    return result


def to_json(records: Mapping[str, Sequence[Record]]) -> dict:
    """Task/score -> the comparison with full words."""
    return {f"{lead.task}/{lead.score}": asdict(lead) for lead in leads(records)}


def _share(summary: dict | None) -> str:
    if not summary:
        return ""
    low, high = (units.text("shape_id", summary[side]) for side in ("low", "high"))
    return f"{units.text('shape_id', summary['mean'])} ({low} – {high})"


def _lead(lead: Lead | None) -> str:
    if lead is None:
        return ""
    mean, low, high = (
        units.signed("shape_id", v) for v in (lead.difference.mean, lead.difference.low, lead.difference.high)
    )
    return f"{mean} ({low} – {high}), p {lead.holm:.3g}"


def _leak(key: str, summary: dict) -> tuple[str, ...]:
    low, high = (units.text("shape_id", summary[side]) for side in ("low", "high"))
    above = units.signed("shape_id", summary["mean"] - CHANCE)
    return key, units.text("shape_id", summary["mean"]), f"{low} – {high}", above, str(summary["n"])
