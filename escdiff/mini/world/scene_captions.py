"""Captions of arrangements: each thing with its own words, and how they stand to each other."""

from collections.abc import Collection, Mapping

import numpy as np

from escdiff.data.prompts import SUBJECTS, TEMPLATES, article
from escdiff.mini.world import captions
from escdiff.mini.world.arrangement import Arrangement, Thing
from escdiff.mini.world.geometry.faces import FACE
from escdiff.mini.world.geometry.figures import BODIES, POSES
from escdiff.mini.world.scenes import RELATIONS
from escdiff.mini.world.world import Factors

JOINTS = ("next to", "with", "and")
NAMED = ("family", "color", "color2", "pattern")  # what a scene says of a thing without a generator
# The other way to say the same.
CONVERSE = {"left of": "right of", "right of": "left of", "in front of": "behind", "behind": "in front of"}
SAID = {"left of": "to the left of", "right of": "to the right of"}
FULLEST = {1: 1.0, 2: 0.3, 3: 0.1}  # of captions, by the number of things: all must fit the text encoder
JOINED = 0.25  # share of things side by side whose caption gives no direction


def thing_words(thing: Thing, names: Mapping[str, str]) -> dict[str, str]:
    """Attribute -> words for everything that words can say of a thing; "pose" and "expression" from `names`."""
    family = thing.shape.family
    if family == FACE:
        attributes = {"family": FACE, "expression": names.get("expression", ""), "hair": thing.material.color}
    else:
        attributes = captions.shape_words(thing.shape) | captions.look_words(thing.material)
        if family in BODIES and names.get("pose") in POSES:
            attributes["pose"] = names["pose"]
    return {name: word for name, word in attributes.items() if word}


def thing_phrase(attributes: Mapping[str, str]) -> str:
    """E.g. "a red robot waving", "a smiling face with brown hair"."""
    text = captions.phrase(attributes)
    if "expression" in attributes:
        text = f"{attributes['expression']} {text}"
    if "hair" in attributes:
        text += f" with {attributes['hair']} hair"
    if "pose" in attributes:
        text += f" {attributes['pose']}"
    return article(text)


def scene_caption(arrangement: Arrangement, rng: np.random.Generator | None = None) -> str:
    """Describe an arrangement; unnamed relations and poses are never said.

    Args:
        rng: draws which words are kept, synonyms, the side from which a relation is told and the template; without it
            families, colours, patterns, the relation, pose or expression and the background are said.
    """
    phrases = []
    for thing in arrangement.things:
        attributes = thing_words(thing, arrangement.names)
        if rng is None:
            chosen = {name: word for name, word in attributes.items() if name in (*NAMED, "pose", "expression", "hair")}
        else:
            chosen = captions.draw_words(attributes, rng, FULLEST[len(arrangement.things)])
        phrases.append(thing_phrase(chosen))
    return _whole(arrangement, phrases, rng)


def subject_caption(arrangement: Arrangement, rng: np.random.Generator) -> str:
    """A caption whose first things are `SUBJECTS`, of which nothing is said but an expression: what they are like is
    for their references to say. E.g. "a photo of a <one> on a <two> on a navy background", "a smiling <one>"."""
    phrases = []
    for number, thing in enumerate(arrangement.things):
        attributes = {"family": SUBJECTS[number] if number < len(SUBJECTS) else thing.shape.family}
        if thing.shape.family == FACE:
            attributes["expression"] = arrangement.names["expression"]
        phrases.append(thing_phrase(attributes))
    return _whole(arrangement, phrases, rng)


def _whole(arrangement: Arrangement, phrases: list[str], rng: np.random.Generator | None) -> str:
    text = _related(arrangement.relation, phrases, rng) if phrases else "nothing"
    background = article(arrangement.scene.background)
    if rng is None or rng.random() < 0.9:
        text += f" on {background} background"
    if rng is None:
        return TEMPLATES[0].format(text)
    template = TEMPLATES[int(rng.choice(4, p=(0.55, 0.15, 0.15, 0.15)))]
    return template.format(text)


def any_caption(
    picture: Factors | Arrangement, rng: np.random.Generator | None = None, hide: Collection[str] = (),
    least: float = 0.0,
) -> str:  # fmt: skip
    """A caption of either kind of picture; `hide` and `least` count for single objects only."""
    if isinstance(picture, Arrangement):
        return scene_caption(picture, rng)
    return captions.caption(picture, rng, hide, least)


def _related(relation: str, phrases: list[str], rng: np.random.Generator | None) -> str:
    if len(phrases) == 1:
        return phrases[0]
    first, second, *rest = phrases
    named = relation in RELATIONS
    if rng is not None and relation in CONVERSE:
        if rng.random() < 0.5:
            relation, first, second = CONVERSE[relation], second, first
        named = relation in ("in front of", "behind") or rng.random() >= JOINED
    joint = SAID.get(relation, relation) if named else _joint(rng)
    text = f"{first} {joint} {second}"
    for more in rest:
        text += f" {_joint(rng)} {more}"
    return text


def _joint(rng: np.random.Generator | None) -> str:
    return JOINTS[-1] if rng is None else str(rng.choice(JOINTS))
