"""Readings of the scene oracle, and their scores.

A reading is a dict: "things", a list of {"family", "color", "box"}, and a word for each of the scene oracle's classes.
"""

from collections.abc import Sequence
from dataclasses import replace

from torch import Tensor

from escdiff.evaluation.bench.scenes.requests import KINDS, SceneRequest
from escdiff.mini.data.sheets import main_colors, picture_words
from escdiff.mini.scene_oracle import SceneOracle, find_things, overlap
from escdiff.mini.world.arrangement import Arrangement, Thing
from escdiff.mini.world.rendering.render import boxes, render
from escdiff.mini.world.world import TWO_ALIKE

PLACED = 0.5  # overlap from which a thing is in its box
FIRST_ABOVE = ("on", "inside", "hovering above", "stacked upside down")


def read(judge: SceneOracle, pixels: Tensor, batch_size: int = 32) -> list[dict]:
    """Read pixels (B, 3, 128, 128) in [-1, 1]: one reading per picture."""
    readings = []
    for part in pixels.split(batch_size):
        out = judge.read(part)
        words = {name: [choices[i] for i in out[name].argmax(-1)] for name, choices in judge.config.classes.items()}
        for i, things in enumerate(find_things(out, judge.config)):
            seen = [{"family": t.family, "color": t.color, "box": list(t.box)} for t in things]
            readings.append({"things": seen, **{name: column[i] for name, column in words.items()}})
    return readings


def truths(pictures: Sequence[Arrangement]) -> list[dict]:
    """The readings of a perfect judge; "" for a word that a picture has not."""
    readings = []
    for picture, masks in zip(pictures, render(pictures).visible, strict=True):
        things = [
            {"family": thing.shape.family, "color": thing.material.color, "box": box}
            for thing, box in zip(picture.things, boxes(masks).tolist(), strict=True)
            if any(box)
        ]
        words = dict.fromkeys(("relation", "pose", "expression"), "")
        readings.append({"things": things, **words, **picture_words(picture)})
    return readings


def judge(request: SceneRequest, reading: dict) -> dict[str, float]:
    """Score -> 1.0 or 0.0, "iou" 0..1; see docs/bench.md for what each says."""
    values = (_edited if request.before else JUDGES[request.kind])(request, reading)
    return {name: value if isinstance(value, float) else float(bool(value)) for name, value in values.items()}


def as_expected(picture: Arrangement, reading: dict) -> bool:
    """Whether the judge sees the picture's things, each in its main colour, no others, on its background."""
    whole = len(reading["things"]) == len(picture.things) and reading["background"] == picture.scene.background
    return whole and all(find(thing, reading, colored=True) for thing in picture.things)


def find(thing: Thing, reading: dict, colored: bool = False) -> dict | None:
    """The seen thing of this one's family, and, if `colored`, of its main colour."""
    for seen in reading["things"]:
        if seen["family"] == thing.shape.family and (not colored or seen["color"] in main_colors(thing)):
            return seen
    return None


def _pair(request: SceneRequest, reading: dict) -> dict:
    things = request.expected.things
    return {"pair": all(find(thing, reading) for thing in things),
            "pair_bind": all(find(thing, reading, colored=True) for thing in things)}  # fmt: skip


def _compose(request: SceneRequest, reading: dict) -> dict:
    """As `_pair`; "swapped": one of the two is there in the other's main colour, and not in its own."""
    first, second = request.expected.things

    def exchanged(thing: Thing, other: Thing) -> bool:
        wrong = replace(thing, material=other.material)
        return bool(find(wrong, reading, colored=True)) and not find(thing, reading, colored=True)

    return _pair(request, reading) | {"swapped": exchanged(first, second) or exchanged(second, first)}


def _bind(request: SceneRequest, reading: dict) -> dict:
    scores = _pair(request, reading)
    return {"there": scores["pair"], "bind": scores["pair_bind"]}


def _extract(request: SceneRequest, reading: dict) -> dict:
    (thing,), other = request.expected.things, request.references["shape"].things[1]
    alone = len(reading["things"]) == 1
    return {"extract": alone and find(thing, reading, colored=True), "extract_leak": find(other, reading)}


def _relation(request: SceneRequest, reading: dict) -> dict:
    relation = request.expected.relation
    first, second = (find(thing, reading) for thing in request.expected.things)
    both_seen = first is not None and second is not None
    bond = reading["relation"] == picture_words(request.expected)["relation"]
    return {"relation": both_seen and bond and in_order(relation, first["box"], second["box"])}


def in_order(relation: str, first: Sequence[float], second: Sequence[float]) -> bool:
    """Whether boxes lie as the relation of the first to the second says; "leaning against" says nothing of it."""
    (x1, y1), (x2, y2) = (((left + right) / 2, (top + bottom) / 2) for left, top, right, bottom in (first, second))
    rules = {"left of": x1 < x2, "right of": x1 > x2, "under": y1 > y2}
    rules |= {"in front of": first[3] > second[3], "behind": first[3] < second[3]}
    rules |= dict.fromkeys(FIRST_ABOVE, y1 < y2)
    return rules.get(relation, True)


def _place(request: SceneRequest, reading: dict) -> dict:
    overlaps = []
    for thing, box in zip(request.expected.things, request.boxes.values(), strict=True):
        seen = find(thing, reading)
        overlaps.append(overlap(seen["box"], box) if seen else 0.0)
    return {"place": min(overlaps) >= PLACED, "iou": sum(overlaps) / len(overlaps)}


def _pose(request: SceneRequest, reading: dict) -> dict:
    (figure,) = request.expected.things
    pose = request.expected.names["pose"]
    right = {"pose": reading["pose"] == pose, "body": find(figure, reading)}
    right["color"] = any(seen["color"] in main_colors(figure) for seen in reading["things"])
    scores = {name: bool(value) for name, value in right.items()} | {"all": all(right.values())}
    return scores | ({"unnamed": scores["pose"]} if pose.startswith("unnamed") else {})


def _identity(request: SceneRequest, reading: dict) -> dict:
    (face,) = request.expected.things
    expression = reading["expression"] == request.expected.names["expression"]
    return {"expression": expression, "hair": find(face, reading, colored=True)}


def _edited(request: SceneRequest, reading: dict) -> dict:
    """Nothing where the judge cannot tell: of patterns, and of one of two colours that are alike."""
    before = request.before.things
    changed = [thing for thing in request.expected.things if thing not in before]
    alike = request.kind == "color" and changed[0].material.pattern in TWO_ALIKE
    return {} if alike or request.kind == "pattern" else {"reads": as_expected(request.expected, reading)}


JUDGES = dict(zip(KINDS, (_pair, _bind, _extract, _relation, _place), strict=True))
JUDGES |= {"compose": _compose, "pose": _pose, "identity": _identity}
