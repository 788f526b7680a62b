"""ESC-Bench's report: report.html and report.md."""

from collections.abc import Mapping, Sequence
from pathlib import Path

from PIL import Image

from escdiff.evaluation import scores
from escdiff.evaluation.page import Card, Report, Section, Table, write_pages
from escdiff.evaluation.plot import score_against_time
from escdiff.evaluation.records import RESULT, Record
from escdiff.evaluation.tasks import DERIVE, TASKS
from escdiff.figure import picture_grid
from escdiff.still_life.oracle import CLASSES

LOWER = ("leak", "copy")  # tasks whose shares are mistakes
CONTROLS = ("chance", "rate_of_renders")  # shares that say nothing about the picture
# What the oracle has to read for a score that has no name of its own among the oracle's.
READ_AS = {
    "shape": "family", "shape_to_appearance": "color", "chance_shape_to_appearance": "color",
    "appearance_to_shape": "family", "chance_appearance_to_shape": "family",
}  # fmt: skip
HEAD = ("task/score", "mean", "95 % interval", "n", "the oracle's own")
NOTE = (
    "Shares of pictures in percent; delta_e is the median CIEDE2000, params and gloss the mean "
    "absolute error on a scale of 1, psnr in dB, clip_t and clip_i cosines. Intervals are bootstrapped over pictures "
    "(Wilson's where all pictures agree); the cells of the swap matrix share references, so theirs are too narrow. "
    "The last column is the same score on fresh renders, where a perfect oracle would make no mistake. Floor: family "
    "to delta_e by captions alone, other_ by the reference of another instance."
)
TIME = "pictures/score_time.svg"


def write_report(out: Path, records: Mapping[str, Sequence[Record]], metrics: Mapping[str, dict], about: dict) -> None:
    """Write both, the worst pictures of each task first."""
    rows = [_row(key, metrics) for key in metrics]
    run = f"Backbone {about['backbone']}, weights {' and '.join(about['weights'])}, {about['steps']} steps, "
    run += f"guidance {about['guidance']:g}, seed {about['seed']}."
    _draw_time(out, records, metrics, about)
    caption = "mean share of right answers against seconds per picture, by task"
    sections = [Section("scores", "Every figure of every task.", [Table(HEAD, rows)], {caption: TIME}, note=NOTE)]
    for name, found in records.items():
        ordered = sorted(found, key=lambda record, name=name: _mistakes(name, record), reverse=True)
        own = Table(HEAD, [row for row in rows if row[0].startswith(f"{name}/")])
        figures = {"every shape (down) in every appearance (across)": _matrix(out, found)} if name == "swap" else {}
        sections.append(Section(name, TASKS[name].about, [own], figures, [card(record) for record in ordered]))
    write_pages(Report("ESC-Bench", run, sections, about), out)


def card(record: Record) -> Card:
    """Pictures, what was asked for, what the oracle read; words that were judged wrong are marked."""
    read = record.reading
    true = scores.matching_order(read, scores.truth(record.request.expected))
    wrong = [f"{_word(n, read[n])}, not {true[n]}" for n in CLASSES if record.values.get(n) == 0]
    facts = [(f"{name} read", str(read[name])) for name in CLASSES]
    facts += [("colour asked", _hex(true["rgb"])), ("colour read", _hex(read["rgb"]))]
    facts += [(name, f"{value:.3g}") for name, value in record.values.items()]
    return Card(record.request.prompt, record.pictures, facts, wrong)


def _word(name: str, read: str) -> str:
    return f"{name} {read}" if name in ("color2", "background") else read


def _hex(rgb: Sequence[float]) -> str:
    return "#" + "".join(f"{min(max(round(255 * v), 0), 255):02x}" for v in rgb)


def _draw_time(out: Path, records: Mapping[str, Sequence[Record]], metrics: Mapping[str, dict], about: dict) -> None:
    points = {}
    for task, found in records.items():
        shares = [100 * m["mean"] for key, m in metrics.items() if key.startswith(f"{task}/") and _is_right(task, key)]
        if shares and TASKS[task].make != DERIVE:
            points[task] = about["seconds"].get(task, 0) / max(len(found), 1), sum(shares) / len(shares)
    score_against_time(points, out / TIME, "seconds per picture", "% right", ("both", "swap", "shape", "appearance"))


def _is_right(task: str, key: str) -> bool:
    name = key.split("/")[1]
    return task not in LOWER and scores.is_share(name) and not name.startswith(("other_", *CONTROLS))


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
    interval = f"{scores.text(name, found['low'])} – {scores.text(name, found['high'])}"
    mean = scores.text(name, found["mean"])
    return key, mean, interval, str(found["n"]), scores.text(base, own["mean"]) if own else ""


def _mistakes(task: str, record: Record) -> tuple[float, float]:
    """How many shares went wrong, then how far off the colour is."""
    shares = [v for name, v in record.values.items() if scores.is_share(name) and not name.startswith(CONTROLS)]
    wrong = sum(shares) if task in LOWER else sum(1 - v for v in shares)
    return wrong, record.values.get("delta_e", 0.0)
