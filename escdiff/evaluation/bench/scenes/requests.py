"""Requests of the tasks of scenes, figures, faces and edits. More requests begin with the same ones."""

from collections.abc import Mapping
from dataclasses import dataclass, field, replace

import numpy as np

from escdiff.concept import ATTRIBUTES
from escdiff.data.prompts import article
from escdiff.evaluation.bench.instances import SEEN_FAMILIES, STREAM, draw_scene
from escdiff.mini.world import scenes
from escdiff.mini.world.arrangement import Arrangement, Thing
from escdiff.mini.world.captions import look_words, material_words, phrase
from escdiff.mini.world.edits import sample_edit
from escdiff.mini.world.geometry.faces import EXPRESSIONS
from escdiff.mini.world.geometry.figures import BODIES, POSES, UNNAMED_POSES, pose_angles
from escdiff.mini.world.rendering.render import boxes, render
from escdiff.mini.world.scene_captions import scene_caption
from escdiff.mini.world.world import Factors, sample_material

KINDS = ("pair", "bind", "extract", "relation", "place")  # of task "scene", by turns
EDITS = ("color", "pattern", "shape", "background", "remove", "add")  # those that change the caption
SCENE, POSE, IDENTITY, EDIT = 30, 31, 32, 33  # streams
BESIDE = ("left of", "right of")

Box = tuple[float, float, float, float]


@dataclass(frozen=True)
class SceneRequest:
    """One picture to be made and what it should show.

    Attributes:
        kind: one of `KINDS`, "compose", "pose", "identity", or the kind of an edit.
        references: name -> picture: an attribute, or any name for a whole concept, see `Models.paint`. Of a picture
            with several things the mask of the first is given, too.
        boxes: phrase of the prompt -> where its thing should be; shares of the side: left, top, right, bottom.
        before: the picture that is to be edited, and what leads from there to what is expected.
    """

    kind: str
    prompt: str
    expected: Arrangement
    references: Mapping[str, Arrangement] = field(default_factory=dict)
    boxes: Mapping[str, Box] = field(default_factory=dict)
    before: Arrangement | None = None
    instruction: str = ""

    @property
    def source(self) -> str:
        """Words for the picture that is to be edited."""
        return scene_caption(self.before)

    def to_dict(self) -> dict:
        """Plain values, for JSON."""
        parts = {"expected": self.expected.to_dict(), "before": self.before.to_dict() if self.before else None}
        references = {name: picture.to_dict() for name, picture in self.references.items()}
        return {**vars(self), **parts, "references": references, "boxes": dict(self.boxes)}

    @classmethod
    def from_dict(cls, values: dict) -> "SceneRequest":
        """The inverse of `to_dict`."""
        references = {name: Arrangement.from_dict(picture) for name, picture in values["references"].items()}
        before = Arrangement.from_dict(values["before"]) if values["before"] else None
        placed = {phrase: tuple(box) for phrase, box in values["boxes"].items()}
        arrangements = {"expected": Arrangement.from_dict(values["expected"]), "before": before}
        return cls(**{**values, **arrangements, "references": references, "boxes": placed})


def scene(seed: int, count: int) -> list[SceneRequest]:
    """Requests of each of `KINDS` by turns."""
    draws = {"pair": _pair, "bind": _bind, "extract": _extract, "relation": _relation, "place": _place}
    requests = []
    for i in range(count):
        kind, turn = KINDS[i % len(KINDS)], i // len(KINDS)
        requests.append(draws[kind](_stream(seed, SCENE, i), turn))
    return requests


def pose(seed: int, count: int) -> list[SceneRequest]:
    """The pose of one figure on another body: a pose with a name and one without by turns."""
    requests = []
    for i in range(count):
        rng = _stream(seed, POSE, i)
        names = tuple(POSES) if i % 2 == 0 else tuple(f"unnamed{k}" for k in range(len(UNNAMED_POSES)))
        reference = scenes.sample_figure(rng, names)
        figure = reference.things[0]
        target = scenes.sample_figure(rng, names, tuple(b for b in BODIES if b != figure.shape.family))
        material = replace(sample_material(rng, ("plain",)), finish="matte")
        while material.color in (figure.material.color, figure.material.color2):
            material = replace(sample_material(rng, ("plain",)), finish="matte")
        body = replace(target.things[0], material=material, pose=pose_angles(reference.names["pose"]))
        scene = draw_scene(rng, material, reference.scene.background)
        target = Arrangement((body,), scene, names=reference.names)
        prompt = f"a photo of {article(material_words(material))} <shape> {body.shape.family} {on(target)}"
        requests.append(SceneRequest("pose", prompt, target, {"shape": reference}))
    return requests


def identity(seed: int, count: int) -> list[SceneRequest]:
    """A face again, in another scene and with an expression that a word gives."""
    requests = []
    for i in range(count):
        rng = _stream(seed, IDENTITY, i)
        requests.append(identity_of(scenes.sample_face(rng), rng))
    return requests


def identity_of(reference: Arrangement, rng: np.random.Generator) -> SceneRequest:
    """The face of a reference with another expression on another background."""
    face = reference.things[0]
    target = scenes.sample_face(rng, tuple(e for e in EXPRESSIONS if e != reference.names["expression"]))
    target = target.with_thing(0, shape=face.shape, material=face.material)
    target = replace(target, scene=draw_scene(rng, face.material, reference.scene.background))
    prompt = f"a photo of {article(target.names['expression'])} <concept> {on(target)}"
    return SceneRequest("identity", prompt, target, dict.fromkeys(ATTRIBUTES, reference))


def edit_pair(seed: int, count: int) -> list[SceneRequest]:
    """A picture and what one instruction should make of it; kinds of `EDITS` by turns."""
    requests = []
    for i in range(count):
        edit = sample_edit(_stream(seed, EDIT, i), (EDITS[i % len(EDITS)],))
        prompt = scene_caption(edit.after)
        requests.append(SceneRequest(edit.kind, prompt, edit.after, before=edit.before, instruction=edit.instruction))
    return requests


def _pair(rng: np.random.Generator, _: int) -> SceneRequest:
    """Two references in one picture."""
    target = two_things(rng, BESIDE, SEEN_FAMILIES)
    first, second = (alone(thing, rng, target.scene.background) for thing in target.things)
    return SceneRequest("pair", f"a photo of <one> next to <two> {on(target)}", target, {"one": first, "two": second})


def _bind(rng: np.random.Generator, _: int) -> SceneRequest:
    """Two things in words, each with its own colours."""
    target = two_things(rng, BESIDE)
    return SceneRequest("bind", scene_caption(replace(target, relation="")), target)


def _extract(rng: np.random.Generator, _: int) -> SceneRequest:
    """One of two things of a reference, which a mask tells, alone."""
    reference = two_things(rng, BESIDE, SEEN_FAMILIES)
    target = alone(reference.things[0], rng, reference.scene.background)
    references = dict.fromkeys(ATTRIBUTES, reference)
    return SceneRequest("extract", f"a photo of <concept> {on(target)}", target, references)


def _relation(rng: np.random.Generator, turn: int) -> SceneRequest:
    """Two things in words and how they stand to each other, every named relation by turns."""
    target = two_things(rng, (scenes.RELATIONS[turn % len(scenes.RELATIONS)],))
    return SceneRequest("relation", scene_caption(target), target)


def _place(rng: np.random.Generator, _: int) -> SceneRequest:
    """Two things in words and in boxes."""
    target = two_things(rng, BESIDE)
    (visible,) = render([target]).visible
    phrases = [phrase_of(thing) for thing in target.things]
    placed = {text: tuple(box) for text, box in zip(phrases, boxes(visible).tolist(), strict=True)}
    return SceneRequest("place", scene_caption(replace(target, relation="")), target, boxes=placed)


def phrase_of(thing: Thing) -> str:
    """The words that `scene_caption` says of a thing, without an article."""
    looks = {n: w for n, w in look_words(thing.material).items() if n in ("color", "color2", "pattern")}
    return phrase({"family": thing.shape.family, **looks})


def two_things(rng: np.random.Generator, relations: tuple[str, ...], families: tuple[str, ...] = ()) -> Arrangement:
    """Two things in one of the relations, of some families or of any."""
    while True:
        arrangement = scenes.sample_arrangement(rng, relations, *([families] if families else []))
        if len(arrangement.things) == 2:
            return arrangement


def alone(thing: Thing, rng: np.random.Generator, avoid: str) -> Arrangement:
    """The thing by itself, on another background."""
    return Arrangement.of(Factors(thing.shape, thing.material, draw_scene(rng, thing.material, avoid)))


def on(picture: Arrangement) -> str:
    """The end of a prompt that says the background."""
    return f"on {article(picture.scene.background)} background"


def _stream(seed: int, task: int, number: int) -> np.random.Generator:
    return np.random.default_rng((seed, STREAM + task, number))
