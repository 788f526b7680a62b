"""The comparison's table and its figure of score against customization time."""

import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from escdiff.evaluation.report import units
from escdiff.evaluation.report.plot import score_against_time
from escdiff.evaluation.report.writing import markdown_table, write

GROUPS = {
    "both": ("both/family", "both/pattern", "both/color"),
    "which of 8": ("both/shape_id", "both/material_id", "swap/shape_id", "swap/material_id"),
    "swap": ("swap/shape", "swap/appearance"),
    "text edit": ("edit/background", "edit/color", "edit/family"),
}
MAIN = [key for keys in GROUPS.values() for key in keys]
AT_LEAST, ABOVE = ("both", "which of 8"), ("swap", "text edit")  # of the claim
NOTE = (
    "Shares in percent, `_id` which of 8 (chance 12.5), delta_e the median CIEDE2000, params and gloss mean absolute "
    "errors. Scores are means over references of the mean over a reference's pictures, with 95 % intervals over "
    "references. Seconds to customize leave out loading the backbone and, for methods with an encoder, learning it "
    "once; pictures of the class that a method paints for itself count. Bytes are of one concept with the weights that "
    "are its own; weights that all concepts share come after the plus. Methods without shape and appearance of their "
    "own are split {split} where they have layers, and otherwise speak whole."
)
SPLITS = {"hand": "by hand (layers 4 to 8 to the shape)", "gates": "by the gates that ESCDiff's encoder learned"}


def write_comparison(out: Path, table: Mapping[str, dict], about: Mapping[str, Any]) -> None:
    """Write comparison.md and comparison.svg; comparison.png is `compare_sheet`'s."""
    draw_figure(table, out / "comparison.svg")
    write(out / "comparison.md", report(table, about))


def report(table: Mapping[str, dict], about: Mapping[str, Any]) -> str:
    """Costs and main scores, the claim and whether it holds, then every score."""
    head = ("method", "steps", "seconds to customize", "seconds per picture", "KB stored", "parameters", *MAIN)
    rows = [
        (
            f"{name}: {m['about']}", str(m["steps"]), _seconds(m["seconds"]), f"{m['seconds_per_picture']:.2f}",
            _kilobytes(m), f"{m['parameters']:,.0f}", *(score_cell(key, m["scores"].get(key)) for key in MAIN),
        )
        for name, m in table.items()
    ]  # fmt: skip
    keys = list(dict.fromkeys(key for m in table.values() for key in m["scores"]))
    every = [(key, *(score_cell(key, m["scores"].get(key)) for m in table.values())) for key in keys]
    run = (
        f"{about['date']}, backbone {about['backbone']}, {about['references']} references x {about['pictures']} "
        f"pictures per task, {about['sampling_steps']} sampling steps, guidance {about['guidance']:g}, "
        f"seed {about['seed']}, steps scaled by {about['scale']:g}{', --quick' if about['quick'] else ''}. "
        f"Made by `{about['command']}`."
    )
    parts = ["# Every method on one grid", run, "![score against customization time](comparison.svg)"]
    parts.append("![what each painted for the same requests](comparison.png)")
    parts += [markdown_table(head, rows), *claim(table), *density(table), markdown_table(("score", *table), every)]
    parts.append(NOTE.format(split=SPLITS[about["split"]]))
    return "\n\n".join(parts) + "\n"


def density(table: Mapping[str, dict]) -> list[str]:
    """How near the learned vectors are to real words, by which P+ explains its editability (arXiv 2303.09522, 4.2)."""
    measured = {name: m for name, m in table.items() if "density" in m}
    if not measured:
        return []
    rows = [(name, f"{m['density']:.2f}", f"{m['density_of_word']:.2f}") for name, m in measured.items()]
    head = ("negative log density among the vocabulary", "of the vectors", "of the word they started from")
    return [markdown_table(head, rows)]


def claim(table: Mapping[str, dict], ours: str = "escdiff", theirs: str = "xti") -> list[str]:
    """Whether one pass at least matches the optimisation on `AT_LEAST` and beats it on `ABOVE`."""
    if not {ours, theirs} <= set(table):
        return []
    a, b = table[ours], table[theirs]
    lines = [f"{ours} against {theirs}, mean of each group's shares:"]
    ahead = {}
    for group in GROUPS:
        x, y = group_score(a, group), group_score(b, group)
        if not math.isnan(x - y):  # an oracle may tell no instances apart
            lines.append(f"- {group}: {100 * x:.1f} % against {100 * y:.1f} % ({100 * (x - y):+.1f})")
            ahead[group] = x - y
    ratio = b["seconds"] / max(a["seconds"], 1e-9)
    lines.append(
        f"- customization: {_seconds(a['seconds'])} s against {_seconds(b['seconds'])} s, {ratio:,.0f} times less"
    )
    holds = ratio >= 1000 and all(ahead.get(group, 0) >= 0 for group in AT_LEAST)
    holds = holds and all(ahead.get(group, 0) > 0 for group in ABOVE)
    verdict = "holds" if holds else "does not hold"
    lines.append(
        "\nThe claim (at least equal on both and which of 8, better on swap and text edit, 1,000 times less) "
        f"{verdict} here."
    )
    return ["\n".join(lines)]


def group_score(method: Mapping[str, Any], group: str) -> float:
    """Mean of a method's scores in a group of `GROUPS`; NaN where it has none."""
    means = [method["scores"][key]["mean"] for key in GROUPS[group] if key in method["scores"]]
    return sum(means) / len(means) if means else math.nan


def draw_figure(table: Mapping[str, dict], path: Path) -> None:
    """Mean of the groups' scores over seconds to customize."""
    points = {name: (method["seconds"], 100 * _overall(method)) for name, method in table.items()}
    ours = [name for name in table if name.startswith("escdiff")]
    score_against_time(points, path, "seconds to customize", "% (mean of both, swap, text edit)", ours)


def _overall(method: Mapping[str, Any]) -> float:
    scores = [v for group in GROUPS if not math.isnan(v := group_score(method, group))]
    return sum(scores) / max(len(scores), 1)


def score_cell(key: str, summary: Mapping[str, float] | None) -> str:
    """A mean with its interval as a table shows it; "" where there is none. `key` is "task/score"."""
    if summary is None:
        return ""
    name = key.split("/")[1]
    factor, places = (100, 0) if units.is_share(name) else (1, 1 if name in units.MEDIANS else 2)
    mean, low, high = (f"{factor * summary[part]:.{places}f}" for part in ("mean", "low", "high"))
    return f"{mean} [{low}, {high}]"


def _seconds(value: float) -> str:
    return f"{value:.3f}" if value < 1 else f"{value:.1f}"


def _kilobytes(method: Mapping[str, Any]) -> str:
    shared = f" + {method['shared_bytes'] / 1000:,.0f}" if method["shared_bytes"] else ""
    return f"{method['bytes'] / 1000:,.1f}{shared}"
