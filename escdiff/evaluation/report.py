"""report.md, report.html and one page per task."""

from collections.abc import Mapping, Sequence
from pathlib import Path

from PIL import Image

from escdiff.evaluation import scores
from escdiff.evaluation.page import card, document, image, table
from escdiff.evaluation.records import RESULT, Record, write
from escdiff.evaluation.tasks import TASKS
from escdiff.figure import picture_grid

LOWER = ("leak", "copy")  # tasks whose shares are mistakes
CONTROLS = ("chance", "rate_of_renders")  # shares that say nothing about the picture
# What the oracle has to read for a score that has no name of its own among the oracle's.
READ_AS = {
    "shape": "family", "shape_to_appearance": "color", "chance_shape_to_appearance": "color",
    "appearance_to_shape": "family", "chance_appearance_to_shape": "family",
}  # fmt: skip
HEAD = ("task/score", "mean", "95 % interval", "n", "the oracle's own")
NOTE = (
    "Shares of pictures in percent; delta_e is the median CIEDE2000 of the first colour, params and gloss the mean "
    "absolute error on a scale of 1, psnr in dB, clip_t and clip_i cosines. Intervals are bootstrapped over pictures "
    "(Wilson's where all pictures agree); the cells of the swap matrix share references, so theirs are too narrow. "
    "The last column is the same score on fresh renders, where a perfect oracle would make no mistake. Floor: family "
    "to delta_e by captions alone, other_ by the reference of another instance."
)


def write_report(out: Path, records: Mapping[str, Sequence[Record]], metrics: Mapping[str, dict], about: dict) -> None:
    """Write the table as Markdown and HTML, and the pictures of each task, the worst first."""
    rows = [_row(key, metrics) for key in metrics]
    lines = [f"| {' | '.join(row)} |" for row in (HEAD, ("---", "---:", "---:", "---:", "---:"), *rows)]
    run = f"Backbone {about['backbone']}, weights {' and '.join(about['weights'])}, {about['steps']} steps, "
    run += f"guidance {about['guidance']:g}, seed {about['seed']}."
    write(out / "report.md", "\n".join(["# ESC-Bench", "", run, "", *lines, "", NOTE, ""]))
    links = [(name, f"{name}.html", TASKS[name].about) for name in records]
    write(out / "report.html", document("ESC-Bench", run, table(HEAD, rows), links, note=NOTE))
    for name, found in records.items():
        ordered = sorted(found, key=lambda record, name=name: _mistakes(name, record), reverse=True)
        own = table(HEAD, [row for row in rows if row[0].startswith(f"{name}/")])
        if name == "swap":
            own += image(_matrix(out, found))
        cards = "\n".join(card(record) for record in ordered)
        write(out / f"{name}.html", document(f"ESC-Bench: {name}", TASKS[name].about, own, home=True, cards=cards))


def _matrix(out: Path, records: Sequence[Record]) -> str:
    """Draw the swap matrix, shapes down and appearances across; its path below `out`."""
    side, path = round(len(records) ** 0.5), "pictures/swap/matrix.png"

    def load(record: Record, caption: str) -> Image.Image:
        with Image.open(out / record.pictures[caption]) as picture:
            return picture.convert("RGB")

    rows = [records[i : i + side] for i in range(0, side * side, side)]
    head = [None, *(load(record, "appearance reference") for record in rows[0])]
    body = [[load(row[0], "shape reference"), *(load(record, RESULT) for record in row)] for row in rows]
    picture_grid([head, *body], cell=96).save(out / path)
    return path


def _row(key: str, metrics: Mapping[str, dict]) -> tuple[str, ...]:
    name, found = key.split("/")[1], metrics[key]
    base = name.removeprefix("other_")
    own = metrics.get(f"oracle/{READ_AS.get(base, base)}")
    interval = f"{_number(name, found['low'])} – {_number(name, found['high'])}"
    return key, _number(name, found["mean"]), interval, str(found["n"]), _number(base, own["mean"]) if own else ""


def _number(name: str, value: float) -> str:
    if scores.is_share(name):
        return f"{100 * value:.1f} %"
    return f"{value:.1f}" if name in (*scores.MEDIANS, *scores.DECIBELS) else f"{value:.3f}"


def _mistakes(task: str, record: Record) -> tuple[float, float]:
    """How many shares went wrong, then how far off the colour is."""
    shares = [v for name, v in record.values.items() if scores.is_share(name) and not name.startswith(CONTROLS)]
    wrong = sum(shares) if task in LOWER else sum(1 - v for v in shares)
    return wrong, record.values.get("delta_e", 0.0)
