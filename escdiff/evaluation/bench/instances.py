"""Instances and scenes of the bench's own random streams, from which no training set draws."""

from collections.abc import Collection, Sequence
from dataclasses import dataclass, replace

import numpy as np

from escdiff.mini.world import world
from escdiff.mini.world.world import Factors, Material, Scene, Shape

SEEN_FAMILIES = tuple(f for f in world.FAMILIES if f not in world.HELD_OUT_FAMILIES)
SEEN_PATTERNS = tuple(p for p in world.PATTERNS if p not in world.HELD_OUT_PATTERNS)
PURPOSE = "bench"  # of nameless seeds, see `world.purpose_of`
STREAM = 990_000  # far beyond the streams of data_prep, which count splits and groups


@dataclass(frozen=True)
class Request:
    """One picture to be made and what it should show."""

    prompt: str
    expected: Factors  # of its scene only the background is ever asked for
    shape: Factors | None = None  # the reference that the shape is read from
    appearance: Factors | None = None  # the reference that the appearance is read from
    other: Factors | None = None  # an instance with no part in the picture: what chance would find
    shown: Factors | None = None  # what is rendered in the place of `expected`

    @property
    def references(self) -> dict[str, Factors]:
        """Attribute -> its reference, for the attributes that are read from one."""
        return {a: f for a in ("shape", "appearance") if (f := getattr(self, a)) is not None}

    def to_dict(self) -> dict:
        """Plain values, for JSON."""
        factors = {name: value.to_dict() for name, value in self._factors().items()}
        return {"prompt": self.prompt, **factors}

    @classmethod
    def from_dict(cls, values: dict) -> "Request":
        """The inverse of `to_dict`."""
        factors = {name: Factors.from_dict(value) for name, value in values.items() if name != "prompt"}
        return cls(values["prompt"], **factors)

    def _factors(self) -> dict[str, Factors]:
        named = {name: getattr(self, name) for name in ("expected", "shape", "appearance", "other", "shown")}
        return {name: value for name, value in named.items() if value is not None}


def stream(seed: int, task: int) -> np.random.Generator:
    """The random stream of a task."""
    return np.random.default_rng((seed, STREAM + task))


def draw_shape(rng: np.random.Generator, families: Sequence[str] = SEEN_FAMILIES, avoid: Collection[str] = ()) -> Shape:
    """A new instance of a family that is not in `avoid`."""
    return world.sample_shape(rng, tuple(f for f in families if f not in avoid))


def draw_material(
    rng: np.random.Generator, patterns: Sequence[str] = SEEN_PATTERNS, avoid: Collection[str] = ()
) -> Material:
    """A new material with no colour of `avoid`, as its first or its second."""
    while True:
        material = world.sample_material(rng, tuple(patterns))
        if not {material.color, material.color2} & set(avoid):
            return material


def draw_scene(rng: np.random.Generator, material: Material, avoid: str = "") -> Scene:
    """A new scene that shows this material well, on another background than `avoid`."""
    while True:
        scene = world.sample_scene(rng, material)
        if scene.background != avoid:
            return scene


def draw_instance(
    rng: np.random.Generator,
    families: Sequence[str] = SEEN_FAMILIES,
    patterns: Sequence[str] = SEEN_PATTERNS,
    avoid_families: Collection[str] = (),
    avoid_colors: Collection[str] = (),
) -> Factors:
    """A new object in a scene of its own."""
    material = draw_material(rng, patterns, avoid_colors)
    return Factors(draw_shape(rng, families, avoid_families), material, draw_scene(rng, material))


def in_new_scene(factors: Factors, rng: np.random.Generator) -> Factors:
    """Draw another scene, on another background, for an object."""
    return replace(factors, scene=draw_scene(rng, factors.material, factors.scene.background))
