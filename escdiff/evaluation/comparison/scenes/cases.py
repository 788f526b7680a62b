"""What the comparison of scenes asks for: the pictures that are learned from, and those that are painted then.

Relations and actions are such as no caption names.
"""

from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
from PIL import Image

from escdiff.concept import ATTRIBUTES, WHOLE
from escdiff.data.prompts import article
from escdiff.evaluation.bench.instances import SEEN_FAMILIES, draw_scene, stream
from escdiff.evaluation.bench.scenes.requests import (
    BESIDE,
    SceneRequest,
    alone,
    identity_of,
    on,
    phrase_of,
    two_things,
)
from escdiff.evaluation.report.writing import write, writing
from escdiff.mini.data.sheets import main_colors
from escdiff.mini.world import scenes
from escdiff.mini.world.arrangement import Arrangement
from escdiff.mini.world.captions import material_words
from escdiff.mini.world.geometry.faces import FACE
from escdiff.mini.world.geometry.figures import BODIES, POSES, UNNAMED_POSES, pose_angles
from escdiff.mini.world.rendering.render import render
from escdiff.mini.world.scene_captions import scene_caption
from escdiff.mini.world.scenes import sample_face

STREAM = 2000
EXEMPLARS = 4  # of a relation


@dataclass(frozen=True)
class Reference:
    """A picture to learn from; beside it its text, and its counterpart without what is learned."""

    picture: Arrangement
    text: str = ""
    other: Arrangement | None = None


@dataclass(frozen=True)
class Ask:
    """A picture to be made: ESCDiff's request, and the same in the words of methods ("" where there are none)."""

    request: SceneRequest
    prompt: str


@dataclass(frozen=True)
class Case:
    """What is learned at once, and what is asked for then.

    Attributes:
        words: of the things that are learned, to start from.
        names: under which each reference is a concept of its own; without them all make one.
    """

    references: tuple[Reference, ...]
    asks: tuple[Ask, ...]
    words: tuple[str, ...] = ()
    names: tuple[str, ...] = ()

    def save(self, folder: Path, size: int = 128) -> None:
        """Write the references as `escdiff.training.method.references.References` reads them."""
        with writing(folder):
            folder.mkdir(parents=True, exist_ok=True)
            for number, reference in enumerate(self.references):
                shown = render([reference.picture, *([reference.other] if reference.other else [])], size)
                pictures = {f"{number}": shown.image[0]}
                if self.names or len(reference.picture.things) > 1:
                    masks = (mask.astype(np.uint8) * 255 for mask in shown.visible[0])
                    pictures |= {f"{number}.mask{i}": mask for i, mask in enumerate(masks)}
                if reference.other:
                    pictures[f"{number}.other"] = shown.image[1]
                for name, pixels in pictures.items():
                    Image.fromarray(pixels).save(folder / f"{name}.png")
                if reference.text:
                    write(folder / f"{number}.txt", reference.text + "\n")


def several(rng: np.random.Generator, each: int) -> Case:
    """Two things of one picture: each alone and both again, on other backgrounds."""
    picture = two_things(rng, BESIDE, SEEN_FAMILIES)
    views = [replace(picture, things=picture.things[::way], relation="") for way in (1, -1)]  # the asked one first
    asks = []
    for number in range(each):
        if number % 3 == 2:
            scene = draw_scene(rng, picture.things[0].material, picture.scene.background)
            target = replace(picture, scene=scene)
            request = SceneRequest("pair", f"a photo of <one> next to <two> {on(target)}", target,
                                   {"one": views[0], "two": views[1]})  # fmt: skip
            asks.append(Ask(request, f"a photo of a <asset0> next to a <asset1> {on(target)}"))
        else:
            thing = number % 3
            target = alone(picture.things[thing], rng, picture.scene.background)
            references = dict.fromkeys(ATTRIBUTES, views[thing])
            request = SceneRequest("extract", f"a photo of <concept> {on(target)}", target, references)
            asks.append(Ask(request, f"a photo of a <asset{thing}> {on(target)}"))
    return Case((Reference(picture),), tuple(asks), families(picture))


def compose(rng: np.random.Generator, each: int) -> Case:
    """Two things, each of a picture of its own, in one picture; their families and main colours differ."""
    while True:
        picture = two_things(rng, BESIDE, SEEN_FAMILIES)
        first, second = picture.things
        alike = set(main_colors(first)) & set(main_colors(second))
        if not alike and first.shape.family != second.shape.family:
            break
    avoid = picture.scene.background
    shown = {"one": alone(first, rng, avoid), "two": alone(second, rng, avoid)}
    asks = []
    for _ in range(each):
        target = replace(picture, scene=draw_scene(rng, first.material, avoid))
        request = SceneRequest("compose", f"a photo of <one> next to <two> {on(target)}", target, shown)
        asks.append(Ask(request, f"a photo of a <one> next to a <two> {on(target)}"))
    return Case(tuple(map(Reference, shown.values())), tuple(asks), families(picture), tuple(shown))


def relation(rng: np.random.Generator, each: int) -> Case:
    """A relation without a name, of other pairs than those it was learned from."""
    name = str(rng.choice(scenes.UNNAMED_RELATIONS))
    shown = [two_things(rng, (name,)) for _ in range(EXEMPLARS)]
    references = tuple(Reference(picture, " <relation> ".join(map(article, families(picture)))) for picture in shown)
    asks = []
    while len(asks) < each:
        target = two_things(rng, (name,))
        if families(target) not in [families(picture) for picture in shown]:
            words = " <relation> ".join(article(phrase_of(thing)) for thing in target.things)
            request = SceneRequest("relation", scene_caption(target), target)
            asks.append(Ask(request, f"a photo of {words} {on(target)}"))
    return Case(references, tuple(asks))


def action(rng: np.random.Generator, each: int) -> Case:
    """A pose without a name, of another body than those it was learned from."""
    name = f"unnamed{rng.integers(len(UNNAMED_POSES))}"
    *shown_bodies, unseen = rng.permutation(BODIES).tolist()
    references = []
    for body in shown_bodies:
        picture, another = scenes.sample_figure(rng, (name,), (body,)), str(rng.choice(list(POSES)))
        other = replace(picture.with_thing(0, pose=pose_angles(another)), names={"pose": another})
        references.append(Reference(picture, f"a photo of {article(body)} <action>", other))
    asks = []
    for _ in range(each):
        target = scenes.sample_figure(rng, (name,), (unseen,))
        look, background = material_words(target.things[0].material), on(target)
        exemplar = {"shape": references[0].picture}
        request = SceneRequest("pose", f"a photo of {article(look)} <shape> {unseen} {background}", target, exemplar)
        asks.append(Ask(request, f"a photo of {article(f'{look} {unseen}')} <action> {background}"))
    return Case(tuple(references), tuple(asks))


def identity(rng: np.random.Generator, each: int) -> Case:
    """A face again, with other expressions, which a word gives."""
    face = sample_face(rng)
    requests = [identity_of(face, rng) for _ in range(each)]
    return Case((Reference(face),), tuple(Ask(request, request.prompt) for request in requests), (FACE,), (WHOLE,))


TASKS: dict[str, Callable[[np.random.Generator, int], Case]] = {
    "several": several, "relation": relation, "action": action, "compose": compose, "identity": identity,
}  # fmt: skip


def draw_cases(task: str, seed: int, count: int, each: int) -> list[Case]:
    """The cases of a task; more of them begin with the same ones."""
    rng = stream(seed, STREAM + list(TASKS).index(task))
    return [TASKS[task](rng_of_case, each) for rng_of_case in rng.spawn(count)]


def families(picture: Arrangement) -> tuple[str, ...]:
    """What its things are."""
    return tuple(thing.shape.family for thing in picture.things)
