"""An examination of the judges: their readings of fresh renders and through a VAE, and whether a scene fools them.

For the last, each picture is looked for twice among the same eight instances: in portraits with its own background,
light and yaw, and in portraits whose background, light and yaw are drawn independently; all else is equal.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from escdiff.evaluation.bench import scores
from escdiff.evaluation.bench.agreement import agreements
from escdiff.evaluation.bench.identity import OTHERS, VIEWS, mean_vectors, recognised
from escdiff.evaluation.bench.pictures import draw, pixels_of
from escdiff.evaluation.bench.requests import fresh
from escdiff.evaluation.bench.scenes import requests as scenes
from escdiff.evaluation.bench.scenes.verdicts import judged, known_faces
from escdiff.evaluation.bench.tasks import VALUES, WORDS
from escdiff.evaluation.report import units
from escdiff.evaluation.report.significance import Difference, paired
from escdiff.evaluation.studies.lineup_cases import render_cases
from escdiff.mini.data.chunks import to_pixels
from escdiff.mini.data.lineups import KINDS
from escdiff.mini.oracle import Oracle
from escdiff.mini.scene_oracle import SceneOracle
from escdiff.support.progress import sample_progress

BATCH = 32
SEED = 77  # added to the seed: other pictures than the bench's
SHOWN = ("renders", "vae")
RARER = 4  # scenes to a figure or a face, whose renders take longer
Through = Callable[[Tensor], Tensor]
Table = dict[str, dict[str, float | int]]


@dataclass
class Verdict:
    """The figures of an examination.

    Attributes:
        tables: "renders" and "vae" -> score -> mean, low, high, n.
        same: "shape_id" and "material_id" -> the same, among portraits in the picture's own scene.
        differences: likewise, independent minus same.
    """

    tables: dict[str, Table]
    same: Table
    differences: dict[str, Difference]


def examine(
    oracle: Oracle, scene_oracle: SceneOracle | None, through: Through, count: int, seed: int = 0, workers: int = 0
) -> Verdict:
    """Examine the judges on `count` pictures per figure, of scenes on `count` in all.

    Args:
        scene_oracle: None leaves out what it reads.
        through: pixels (B, 3, H, W) in [-1, 1] through a VAE and back.
        workers: processes that render line-ups; 0 renders in this one.
    """
    seed += SEED
    tables = _factors(oracle, through, count, seed)
    same, differences = {}, {}
    if oracle.config.embeddings:
        for kind in KINDS:
            name, hits = f"{kind}_id", _identities(oracle, kind, through, count, seed, workers)
            tables["renders"][name], tables["vae"][name] = (
                units.summarise(name, hits[condition]) for condition in ("independent", "vae")
            )
            same[name] = units.summarise(name, hits["same"])
            columns = [dict(enumerate(hits[condition])) for condition in ("same", "independent")]
            differences[name] = paired(*columns, {i: i for i in range(count)})
    if scene_oracle is not None:
        for name, table in _scenes(scene_oracle, through, count, seed).items():
            tables[name] |= table
    return Verdict(tables, same, differences)


def _factors(oracle: Oracle, through: Through, count: int, seed: int) -> dict[str, Table]:
    """The oracle's readings of single objects."""
    pictures = [request.expected for request in fresh(seed, count)]
    readings: dict[str, list[dict]] = {name: [] for name in SHOWN}
    with sample_progress("fresh renders", count) as advance:
        for first in range(0, count, BATCH):
            pixels = pixels_of(draw(pictures[first : first + BATCH]))
            for name, shown in (("renders", pixels), ("vae", through(pixels))):
                readings[name] += scores.read(oracle, shown)
            advance(len(pixels))
    tables = {}
    for name, read in readings.items():
        values = [scores.judge((*WORDS, *VALUES), r, factors) for r, factors in zip(read, pictures, strict=True)]
        tables[name] = _summary(values) | agreements(list(zip(pictures, read, strict=True)))
    return tables


def _identities(
    oracle: Oracle, kind: str, through: Through, count: int, seed: int, workers: int
) -> dict[str, list[float]]:
    """Whether each picture's instance was re-identified, by what it was looked for in."""
    name, portraits = f"{kind}_id", (1 + OTHERS) * VIEWS
    hits: dict[str, list[float]] = {condition: [] for condition in ("same", "independent", "vae")}
    with sample_progress(f"{kind} line-ups", count) as advance:
        for images in render_cases(kind, seed, count, workers):
            pixels = to_pixels(images)
            query = pixels[:1]
            same, independent = (mean_vectors(oracle, name, part, VIEWS) for part in pixels[1:].split(portraits))
            vector, softened = oracle.embed(name, torch.cat([query, through(query)]))
            pairs = {"same": (vector, same), "independent": (vector, independent), "vae": (softened, independent)}
            for condition, pair in pairs.items():
                hits[condition].append(float(recognised(*pair)))
            advance(1)
    return hits


def _scenes(oracle: SceneOracle, through: Through, count: int, seed: int) -> dict[str, Table]:
    """The scene oracle's readings of scenes, figures and faces."""
    values: dict[str, list[dict]] = {name: [] for name in SHOWN}
    tasks = {"scene": scenes.scene, "pose": scenes.pose, "identity": scenes.identity}
    numbers = {task: count if task == "scene" else -(-count // RARER) for task in tasks}
    with sample_progress("scenes, figures, faces", sum(numbers.values())) as advance:
        for task, drawn in tasks.items():
            requests = drawn(seed, numbers[task])
            for first in range(0, numbers[task], BATCH):
                part = requests[first : first + BATCH]
                pixels, galleries = pixels_of(draw([request.expected for request in part])), known_faces(oracle, part)
                for name, shown in (("renders", pixels), ("vae", through(pixels))):
                    _, judgements = judged(oracle, part, shown, galleries)
                    values[name] += [{f"{task}/{score}": v for score, v in row.items()} for row in judgements]
                advance(len(part))
    return {name: _summary(rows) for name, rows in values.items()}


def _summary(values: Sequence[Mapping[str, float]]) -> Table:
    columns: dict[str, list[float]] = {}
    for row in values:
        for name, value in row.items():
            columns.setdefault(name, []).append(value)
    return {name: units.summarise(name.split("/")[-1], column) for name, column in columns.items()}
