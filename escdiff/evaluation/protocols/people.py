"""People's ratings as DreamBench++ released them, and how far a judge agrees with people on the same pictures."""

import json
import math
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

from PIL import Image

from escdiff.evaluation.protocols.subjects import read_text
from escdiff.evaluation.report.writing import write
from escdiff.evaluation.vlm.agreement import Ratings, agreement, alpha
from escdiff.evaluation.vlm.panel import Item, Panel
from escdiff.evaluation.vlm.rubrics import Rubrics
from escdiff.support.errors import UserError
from escdiff.support.progress import sample_progress

ASPECTS = {"cp": "concept preservation", "pf": "prompt following"}
STYLE = "style"
FIGURES = ("n", "alpha", "spearman", "kendall", "pearson")

Group = Mapping[str, Mapping[str, Ratings]]  # aspect -> method -> "SUBJECT-PROMPT" -> 0 to 4


def read_ratings(root: Path) -> dict[str, Group]:
    """Group of people -> their ratings.

    Read are `raw_data/GROUP/*-METHOD.json`, which map "SUBJECT-PROMPT" to [concept preservation, prompt following], or
    else `merged_data/GROUP/METHOD-cp.json` and `METHOD-pf.json`.

    Raises:
        UserError: neither is there, or a file is none of these.
    """
    raw, merged = root / "raw_data", root / "merged_data"
    folder = raw if raw.is_dir() else merged
    groups = sorted(path for path in folder.iterdir() if path.is_dir()) if folder.is_dir() else []
    ratings: dict[str, dict] = {group.name: {aspect: {} for aspect in ASPECTS} for group in groups}
    for group in groups:
        for path in sorted(group.glob("*.json")):
            values = _load(path)
            if folder == raw:
                _, _, method = path.stem.rpartition("-")
                for place, aspect in enumerate(ASPECTS):
                    rated = {key: pair[place] for key, pair in values.items() if isinstance(pair, list)}
                    ratings[group.name][aspect].setdefault(method, {}).update(_numbers(rated))
            else:
                method, _, aspect = path.stem.rpartition("-")
                if aspect in ASPECTS:
                    ratings[group.name][aspect][method] = _numbers(values)
    if not any(group["cp"] for group in ratings.values()):
        raise UserError(f"{root} has no raw_data/GROUP/*.json; give DreamBench++'s data_human_rating folder")
    return ratings


def read_samples(root: Path, method: str) -> Iterator[tuple[str, Path, Path, str]]:
    """ "SUBJECT-PROMPT", reference, painting and prompt of every picture of a method, in `METHOD_.../`.

    Raises:
        UserError: there is no such folder, or more than one.
    """
    folders = sorted(path for path in root.glob(f"{method}_*") if (path / "tgt_image").is_dir())
    if len(folders) != 1:
        raise UserError(
            f"{root} has {len(folders)} folders {method}_*; give DreamBench++'s samples, one of each method"
        )
    for painting in sorted((folders[0] / "tgt_image").rglob("*_0.jpg")):
        subject, number = painting.parent.name, painting.stem.removesuffix("_0")
        reference = folders[0] / "src_image" / subject / painting.name
        text = read_text(folders[0] / "text" / subject / f"{number}_0.txt").splitlines()
        yield f"{subject}-{number}", reference, painting, text[0].strip() if text else ""


def rate(panel: Panel, questions: Sequence[tuple], method: str) -> dict[str, dict[str, float]]:
    """Aspect -> "SUBJECT-PROMPT" -> the judge's score, 0 to the scale; what has none is left out."""
    scores: dict[str, dict[str, float]] = {aspect: {} for aspect in ASPECTS}
    with sample_progress(f"asking about {method}", len(questions)) as advance:
        for first in range(0, len(questions), 128):
            part = questions[first : first + 128]
            items = [Item(text, tuple(map(_open, pictures))) for _, _, text, pictures in part]
            for (aspect, key, *_), score in zip(part, panel.ask(items, advance), strict=True):
                if score is not None:
                    scores[aspect][key] = score
    return scores


def compare(ratings: Path, samples: Path | None, panel: Panel | None, out: Path, command: str) -> list[dict]:
    """Write agreement.md and agreement.json; a row per aspect and method.

    `people` are the figures of the first two groups and alpha of all; `judge` means over the groups.

    Raises:
        UserError: a judge without samples or samples without a judge, or what the readers refuse.
    """
    if (samples is None) != (panel is None):
        raise UserError("a judge and the pictures that people rated go together; give both --judge and --samples")
    groups = read_ratings(ratings)
    keys = {
        method: {key for other in groups.values() for key in other["cp"].get(method, {})}
        for group in groups.values()
        for method in sorted(group["cp"])
    }
    questions = {}
    if panel:
        questions = {method: list(_questions(panel.rubrics, samples, method, rated)) for method, rated in keys.items()}
        panel.expect(sum(map(len, questions.values())))
    rows = []
    for method in keys:
        judged = rate(panel, questions[method], method) if panel else {}
        for aspect in ASPECTS:
            people = [group[aspect][method] for group in groups.values() if method in group[aspect]]
            row = {"aspect": aspect, "method": method, "people": _agreement_among(people)}
            rows.append(row | ({"judge": _against(judged[aspect], people)} if panel else {}))
    about = {"command": command, **({"judge": panel.about()} if panel else {})}
    write(out / "agreement.json", json.dumps({"about": about, "rows": _plain(rows)}, indent=1) + "\n")
    write(out / "agreement.md", _page(rows, command, panel))
    return rows


def _questions(rubrics: Rubrics, root: Path, method: str, keys: set[str]) -> Iterator[tuple]:
    texts = {question.against: question.text for question in rubrics.questions}
    if not {"whole", "style", "text"} <= texts.keys():
        raise UserError(
            "the rubrics need questions against whole, style and text; see configs/judge/dreambench_plus.yaml"
        )
    for key, reference, painting, prompt in read_samples(root, method):
        if key in keys:
            kind = "style" if key.startswith(STYLE) else "whole"
            yield "cp", key, texts[kind], (reference, painting)
            yield "pf", key, texts["text"].replace("{prompt}", prompt), (painting,)


def _agreement_among(people: Sequence[Ratings]) -> dict[str, float]:
    first = agreement(people[0], people[1]) if len(people) > 1 else dict.fromkeys(FIGURES, math.nan)
    return first | {"alpha": alpha(people)}


def _against(judged: Ratings, people: Sequence[Ratings]) -> dict[str, float]:
    agreements = [agreement(judged, ratings) for ratings in people]
    return {name: sum(figures[name] for figures in agreements) / len(agreements) for name in FIGURES}


def _page(rows: Sequence[dict], command: str, panel: Panel | None) -> str:
    lines = ["# Agreement with people", "", f"`{command}`", ""]
    if panel:
        lines += [f"Judge {panel.model.identity}: {panel.summary()}.", ""]
    head = ["aspect", "method", "people: alpha", *(f"judge: {name}" for name in FIGURES if panel)]
    lines += ["| " + " | ".join(head) + " |", "|---|---|" + "---:|" * (len(head) - 2)]
    for row in rows:
        judge = [
            f"{row['judge'][name]:.0f}" if name == "n" else f"{row['judge'][name]:.3f}" for name in FIGURES if panel
        ]
        cells = [ASPECTS[row["aspect"]], row["method"], f"{row['people']['alpha']:.3f}", *judge]
        lines.append("| " + " | ".join(cells) + " |")
    note = (
        "alpha is Krippendorff's, for interval data; kendall is tau-b. The judge's figures are means over the groups."
    )
    return "\n".join([*lines, "", note, ""])


def _plain(rows: Sequence[dict]) -> list[dict]:
    """Without numbers that JSON has no word for."""
    clean = lambda part: {k: v if math.isfinite(v) else None for k, v in part.items()}  # noqa: E731
    return [{k: clean(v) if isinstance(v, dict) else v for k, v in row.items()} for row in rows]


def _numbers(values: Mapping) -> dict[str, float]:
    return {key: float(v) for key, v in values.items() if isinstance(v, int | float) and math.isfinite(v)}


def _load(path: Path) -> Mapping:
    try:
        values = json.loads(read_text(path))
    except ValueError:
        values = None
    if not isinstance(values, dict):
        raise UserError(f"{path} is no table of ratings; fetch the data again")
    return values


def _open(path: Path) -> Image.Image:
    try:
        with Image.open(path) as picture:
            return picture.convert("RGB")
    except OSError as error:
        raise UserError(f"{path} cannot be read ({error}); fetch the samples again") from None
