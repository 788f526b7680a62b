"""ESC-Bench's report: report.html and report.md."""

from collections.abc import Mapping, Sequence
from pathlib import Path

from PIL import Image

from escdiff.evaluation.bench import headline, scores
from escdiff.evaluation.bench.records import RESULT, Record
from escdiff.evaluation.bench.scenes.requests import SceneRequest
from escdiff.evaluation.bench.tasks import DERIVE, TASKS
from escdiff.evaluation.report import units
from escdiff.evaluation.report.page import Card, Report, Section, Table, write_pages
from escdiff.evaluation.report.plot import score_against_time
from escdiff.mini.oracle import CLASSES
from escdiff.support.picture_grid import picture_grid

LOWER = ("leak", "copy")  # tasks whose shares are mistakes
CONTROLS = ("chance", "rate_of_renders", units.OWN)  # shares that say nothing about the picture
# What the oracle has to read for a score that has no name of its own among the oracle's.
READ_AS = {
    "shape": "family", "shape_to_appearance": "color", "chance_shape_to_appearance": "color",
    "appearance_to_shape": "family", "chance_appearance_to_shape": "family",
}  # fmt: skip
HEAD = ("task/score", "mean", "95 % interval", "n", "the oracle's own")
HEADLINE = (
    "Shares of pictures whose instance is nearer than seven namesakes for the oracle, with 95 % intervals; full words "
    "are all that the language can say of the same instances. Differences are paired by instance, p is by sign flips "
    "of the instances' differences and corrected for the number of comparisons (Holm). A leak is the re-identification "
    "of what was not asked for."
)
NOTE = (
    "Shares of pictures in percent; delta_e is the median CIEDE2000, params and gloss the mean "
    "absolute error on a scale of 1, psnr in dB, clip_t and clip_i cosines. Intervals are over pictures, bootstrapped "
    "from 20 on (Wilson's where all agree); the cells of the swap matrix share references, so theirs are too narrow. "
    "The last column is the same score on fresh renders, or on renders of what was asked for, where a perfect judge "
    "would make no mistake. Floor: family to delta_e by captions alone, other_ by the reference of another instance."
)
TIME = "pictures/score_time.svg"


def write_report(out: Path, records: Mapping[str, Sequence[Record]], metrics: Mapping[str, dict], about: dict) -> None:
    """Write both, the worst pictures of each task first."""
    rows = [_row(key, metrics) for key in metrics if not key.split("/")[1].startswith(units.OWN)]
    run = f"Backbone {about['backbone']}, weights {' and '.join(about['weights'])}, {about['steps']} steps, "
    run += f"guidance {about['guidance']:g}, seed {about['seed']}."
    _draw_time(out, records, metrics, about)
    caption = "mean share of right answers against seconds per picture, by task"
    sections = []
    if first := headline.tables(records, metrics):
        sections.append(Section("headline", "Is it this very instance?", first, note=HEADLINE))
    sections += [Section("scores", "Every figure of every task.", [Table(HEAD, rows)], {caption: TIME}, note=NOTE)]
    for name, task_records in records.items():
        ordered = sorted(task_records, key=lambda record, name=name: _mistakes(name, record), reverse=True)
        table = Table(HEAD, [row for row in rows if row[0].startswith(f"{name}/")])
        figures = (
            {"every shape (down) in every appearance (across)": _matrix(out, task_records)} if name == "swap" else {}
        )
        sections.append(Section(name, TASKS[name].about, [table], figures, [card(record) for record in ordered]))
    write_pages(Report("ESC-Bench", run, sections, about), out)


def card(record: Record) -> Card:
    """Pictures, what was asked for, what the oracle read; words that were judged wrong are marked."""
    if isinstance(record.request, SceneRequest):
        return _scene_card(record)
    read = record.reading
    true = scores.matching_order(read, scores.truth(record.request.expected))
    wrong = [f"{_word(n, read[n])}, not {true[n]}" for n in CLASSES if record.values.get(n) == 0]
    facts = [(f"{name} read", str(read[name])) for name in CLASSES]
    facts += [("colour asked", _hex(true["rgb"])), ("colour read", _hex(read["rgb"]))]
    facts += [(name, f"{value:.3g}") for name, value in record.values.items()]
    return Card(record.request.prompt, record.pictures, facts, wrong)


def _scene_card(record: Record) -> Card:
    """A card of the scene oracle's reading; missed scores are marked."""
    read = dict(record.reading)
    things = ", ".join(f"{thing['color']} {thing['family']}" for thing in read.pop("things", []))
    facts = [("things read", things), *((f"{name} read", str(word)) for name, word in read.items())]
    facts += [(name, f"{value:.3g}") for name, value in record.values.items() if not name.startswith(units.OWN)]
    missed = [n for n, v in record.values.items() if v == 0 and units.is_share(n) and not _is_mistake("", n)]
    return Card(record.request.prompt, record.pictures, facts, [n for n in missed if not n.startswith(CONTROLS)])


def _word(name: str, read: str) -> str:
    return f"{name} {read}" if name in ("color2", "background") else read


def _hex(rgb: Sequence[float]) -> str:
    return "#" + "".join(f"{min(max(round(255 * v), 0), 255):02x}" for v in rgb)


def _draw_time(out: Path, records: Mapping[str, Sequence[Record]], metrics: Mapping[str, dict], about: dict) -> None:
    points = {}
    for task, task_records in records.items():
        shares = [100 * m["mean"] for key, m in metrics.items() if key.startswith(f"{task}/") and _is_right(task, key)]
        if shares and TASKS[task].make != DERIVE:
            points[task] = about["seconds"].get(task, 0) / max(len(task_records), 1), sum(shares) / len(shares)
    score_against_time(points, out / TIME, "seconds per picture", "% right", ("both", "swap", "shape", "appearance"))


def _is_right(task: str, key: str) -> bool:
    name = key.split("/")[1]
    return units.is_share(name) and not _is_mistake(task, name) and not name.startswith(("other_", *CONTROLS))


def _is_mistake(task: str, name: str) -> bool:
    """Whether a share counts what went wrong."""
    return task in LOWER or "leak" in name


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
    (task, name), summary = key.split("/"), metrics[key]
    base = name.removeprefix("other_")
    ceiling = metrics.get(f"{task}/{units.OWN}{name}") or metrics.get(f"oracle/{READ_AS.get(base, base)}")
    interval = f"{units.text(name, summary['low'])} – {units.text(name, summary['high'])}"
    mean = units.text(name, summary["mean"])
    return key, mean, interval, str(summary["n"]), units.text(base, ceiling["mean"]) if ceiling else ""


def _mistakes(task: str, record: Record) -> tuple[float, float]:
    """How many shares went wrong, then how far off the colour is."""
    shares = {n: v for n, v in record.values.items() if units.is_share(n) and not n.startswith(CONTROLS)}
    wrong = sum(v if _is_mistake(task, n) else 1 - v for n, v in shares.items())
    return wrong, record.values.get("delta_e", 0.0)
