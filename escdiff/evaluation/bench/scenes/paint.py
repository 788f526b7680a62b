"""Pictures of scene requests, read by the scene oracle and judged."""

from collections.abc import Sequence

import numpy as np
from PIL import Image

from escdiff.control.boxes import Boxes
from escdiff.evaluation.bench.models import Advance, Models
from escdiff.evaluation.bench.pictures import SIZE, draw, pixels_of
from escdiff.evaluation.bench.records import RESULT, Record
from escdiff.evaluation.bench.scenes.edits import score_edits
from escdiff.evaluation.bench.scenes.requests import SceneRequest
from escdiff.evaluation.bench.scenes.verdicts import judged, known_faces
from escdiff.evaluation.report.units import OWN
from escdiff.mini.world.arrangement import Arrangement
from escdiff.mini.world.rendering.render import render

Pictures = dict[str, Image.Image]


def make_scenes(
    models: Models, requests: Sequence[SceneRequest], seeds: Sequence[int], advance: Advance
) -> list[tuple[Record, Pictures]]:
    """Make the pictures of a task; each comes with its record and the pictures beside it, by caption."""
    expected = draw([request.expected for request in requests])
    beside, results = _paint(models, requests, seeds, advance)
    readings, values = judge_scenes(models, requests, results, expected)
    if requests[0].before:
        pixels = (pixels_of(pictures) for pictures in (results, [b["before"] for b in beside], expected))
        values = [value | edited for value, edited in zip(values, score_edits(*pixels), strict=True)]
    records = [Record(*fields) for fields in zip(requests, readings, values, strict=True)]
    pictures = [shown | {RESULT: result} for shown, result in zip(beside, results, strict=True)]
    return list(zip(records, pictures, strict=True))


def judge_scenes(
    models: Models, requests: Sequence[SceneRequest], results: Sequence[Image.Image], expected: Sequence[Image.Image]
) -> tuple[list[dict], list[dict[str, float]]]:
    """Readings and scores of the results, the scores with those of what was expected beside them (`OWN`).

    Both are empty without a judge.
    """
    if models.scene_oracle is None:
        return [{} for _ in requests], [{} for _ in requests]
    galleries = known_faces(models.scene_oracle, requests)
    readings, values = judged(models.scene_oracle, requests, pixels_of(results), galleries)
    _, expected_values = judged(models.scene_oracle, requests, pixels_of(expected), galleries)
    return readings, [
        a | {OWN + name: v for name, v in b.items()} for a, b in zip(values, expected_values, strict=True)
    ]


def _paint(models: Models, requests: Sequence[SceneRequest], seeds: Sequence[int], advance: Advance):
    """The pictures beside the results, by caption, and the results."""
    references = _references([request.references for request in requests])
    if requests[0].before:
        before = draw([request.before for request in requests])
        results = []
        for request, picture, seed in zip(requests, before, seeds, strict=True):
            results.append(models.edit(picture, request.source, request.prompt, seed))
            advance(1)
        return [{"before": picture} for picture in before], results
    results: dict[int, Image.Image] = {}
    for rows in _bunches(requests):
        controls = [Boxes(requests[rows[0]].boxes)] if requests[rows[0]].boxes else []
        columns = [[column[i] for i in rows] for column in (requests, references, seeds)]
        results |= dict(zip(rows, models.paint(*columns, advance, controls), strict=True))
    beside = [{f"{name} reference": picture for name, picture in shown.items()} for shown in references]
    return beside, [results[i] for i in range(len(requests))]


def _bunches(requests: Sequence[SceneRequest]) -> list[list[int]]:
    """Numbers of requests that are painted together: references have the same names; boxes are those of one picture."""
    bunches: dict[object, list[int]] = {}
    for i, request in enumerate(requests):
        bunches.setdefault(i if request.boxes else tuple(request.references), []).append(i)
    return list(bunches.values())


def _references(named: Sequence[dict[str, Arrangement]]) -> list[Pictures]:
    """Name -> reference; of several things the first alone is opaque."""
    pictures = {arrangement: _reference(arrangement) for group in named for arrangement in group.values()}
    return [{name: pictures[arrangement] for name, arrangement in group.items()} for group in named]


def _reference(picture: Arrangement) -> Image.Image:
    rendered = render([picture], SIZE)
    shown = Image.fromarray(rendered.image[0])
    if len(picture.things) > 1:
        shown.putalpha(Image.fromarray(rendered.visible[0][0].astype(np.uint8) * 255))
    return shown
