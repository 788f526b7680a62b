"""Edits: pairs of pictures that differ in one thing alone, and the instruction that leads from one to the other."""

from collections.abc import Callable
from dataclasses import dataclass, replace

import numpy as np

from escdiff.data.prompts import article
from escdiff.mini.world import captions, scenes, world
from escdiff.mini.world.arrangement import Arrangement, Thing
from escdiff.mini.world.colors import BACKGROUNDS, luma, readable
from escdiff.mini.world.geometry.extents import extent
from escdiff.mini.world.world import FINISHES, Material


@dataclass(frozen=True)
class Edit:
    """Two arrangements that are equal but for what the instruction says."""

    before: Arrangement
    after: Arrangement
    instruction: str
    kind: str  # one of KINDS

    def to_dict(self) -> dict:
        """Plain values, for JSON."""
        parts = {"before": self.before.to_dict(), "after": self.after.to_dict()}
        return {**parts, "instruction": self.instruction, "kind": self.kind}

    @classmethod
    def from_dict(cls, values: dict) -> "Edit":
        """The inverse of `to_dict`."""
        parts = {name: Arrangement.from_dict(values[name]) for name in ("before", "after")}
        return cls(**{**values, **parts})


def sample_edit(rng: np.random.Generator, kinds: tuple[str, ...] = ()) -> Edit:
    """An edit of one of `kinds` (of all); the picture before holds one or two things."""
    kind = str(rng.choice(kinds or tuple(KINDS)))
    while True:
        pair = kind in ("add", "remove") or (kind not in ("shape", "move") and rng.random() < 0.4)
        before = scenes.sample_arrangement(rng, ("left of", "right of")) if pair else alone(rng)
        before = replace(before, things=before.things[:2])
        done = KINDS[kind](before, rng)
        if done is not None:
            return Edit(*done, kind)


def alone(rng: np.random.Generator) -> Arrangement:
    """One thing on a floor that stays where it is whatever happens to the thing."""
    factors = world.sample_factors(rng)
    thing = Thing(factors.shape, factors.material, factors.scene.yaw, size=0.85)
    floor = round(float(extent(thing)[0, 1]), 4)
    return Arrangement((thing,), factors.scene, floor=floor)


Done = tuple[Arrangement, Arrangement, str] | None


def _recolor(before: Arrangement, rng: np.random.Generator) -> Done:
    return _painted(before, rng, lambda m: {"color": _other(rng, world.COLORS, m.color)}, "{} {{color}}")


def _repattern(before: Arrangement, rng: np.random.Generator) -> Done:
    return _painted(before, rng, lambda m: {"pattern": _other(rng, scenes.PATTERNS, m.pattern)}, "{} {{pattern}}")


def _refinish(before: Arrangement, rng: np.random.Generator) -> Done:
    return _painted(before, rng, lambda m: {"finish": _other(rng, FINISHES, m.finish), "gloss": 0.8}, "{} {{finish}}")


def _painted(before: Arrangement, rng: np.random.Generator, change: Callable[[Material], dict], words: str) -> Done:
    """Another material on one of the things, if it can be seen there."""
    number = int(rng.integers(len(before.things)))
    old = before.things[number].material
    new = replace(old, **change(old))
    if not readable(new.rgb, new.color, before.scene.background) or new.color == new.color2:
        return None
    if new.pattern != "plain" and abs(luma(new.rgb) - luma(new.rgb2)) < 0.2:
        return None
    text = words.format(f"make the {before.things[number].shape.family}")
    fields = {"color": new.color, "finish": new.finish}
    fields["pattern"] = "plain" if new.pattern == "plain" else f"{new.color} and {new.color2} {new.pattern}"
    return before, before.with_thing(number, material=new), text.format(**fields)


def _reshape(before: Arrangement, rng: np.random.Generator) -> Done:
    (thing,) = before.things
    shape = world.sample_shape(rng, tuple(f for f in world.FAMILIES if f != thing.shape.family))
    after = _on_floor(before.with_thing(0, shape=shape), 0)
    return before, after, f"turn the {thing.shape.family} into {article(shape.family)}"


def _proportion(before: Arrangement, rng: np.random.Generator) -> Done:
    """A parameter moved by two or more degrees: "make the mug very tall", "make the mug with a large handle"."""
    number, trait = int(rng.integers(len(before.things))), int(rng.integers(4))
    shape = before.things[number].shape
    value = round(float(rng.random()), 5)
    params = (*shape.params[:trait], value, *shape.params[trait + 1 :])
    wording = captions.shape_words(replace(shape, params=params)).get(f"trait{trait}")
    if wording is None or abs(value - shape.params[trait]) < 0.4:
        return None
    after = _on_floor(before.with_thing(number, shape=replace(shape, params=params)), number)
    verb = "show" if wording.startswith("with") else "make"
    return before, after, f"{verb} the {shape.family} {wording}"


def _resize(before: Arrangement, rng: np.random.Generator) -> Done:
    number, larger = int(rng.integers(len(before.things))), bool(rng.random() < 0.5)
    thing = before.things[number]
    size = round(thing.size * (1.25 if larger else 0.7), 4)
    after = _on_floor(before.with_thing(number, size=size), number)
    return before, after, f"make the {thing.shape.family} {'larger' if larger else 'smaller'}"


def _background(before: Arrangement, rng: np.random.Generator) -> Done:
    able = [b for b in BACKGROUNDS if all(readable(t.material.rgb, t.material.color, b) for t in before.things)]
    able = [b for b in able if b != before.scene.background]
    if not able:
        return None
    name = str(rng.choice(able))
    after = replace(before, scene=replace(before.scene, background=name))
    return before, after, f"put it on {article(name)} background"


def _move(before: Arrangement, rng: np.random.Generator) -> Done:
    (thing,) = before.things
    way = str(rng.choice(["left", "right"]))
    before = _on_floor(before.with_thing(0, size=0.6), 0)
    x = 0.55 * (-1 if way == "left" else 1)
    after = before.with_thing(0, place=(x, *before.things[0].place[1:]))
    return before, after, f"move the {thing.shape.family} to the {way}"


def _remove(before: Arrangement, rng: np.random.Generator) -> Done:
    number = int(rng.integers(len(before.things)))
    return before, before.without(number), f"remove the {before.things[number].shape.family}"


def _add(before: Arrangement, rng: np.random.Generator) -> Done:
    number = int(rng.integers(len(before.things)))
    thing, other = before.things[number], before.things[1 - number]
    look = captions.material_words(thing.material)
    side = "left" if thing.place[0] < other.place[0] else "right"
    text = f"add {article(f'{look} {thing.shape.family}')} on the {side}"
    return before.without(number), before, text


def _on_floor(arrangement: Arrangement, number: int) -> Arrangement:
    """The thing stands on the floor again after its shape or size has changed."""
    thing = arrangement.things[number]
    x, _, z = thing.place
    height = arrangement.floor - float(extent(thing)[0, 1])
    return arrangement.with_thing(number, place=(x, round(height, 4), z))


def _other(rng: np.random.Generator, words, word: str) -> str:
    return str(rng.choice([w for w in words if w != word]))


KINDS: dict[str, Callable[[Arrangement, np.random.Generator], Done]] = {
    "color": _recolor, "pattern": _repattern, "finish": _refinish, "shape": _reshape, "proportion": _proportion,
    "size": _resize, "background": _background, "move": _move, "remove": _remove, "add": _add,
}  # fmt: skip
