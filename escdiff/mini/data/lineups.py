"""Line-ups for the judge: instances that share every name, each shown several times.

A line-up of kind "shape" holds `INSTANCES` shapes of one family, one of kind "material" as many materials of one
pattern and one pair of colours. Each instance stands in `VIEWS` pictures whose other factors are drawn anew, so that
nothing but the instance tells pictures of one from pictures of another. Factors come from streams of the judge's own.
"""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from escdiff.mini.data.chunks import Chunked, build_chunks
from escdiff.mini.oracle import CLASSES, EMBEDDINGS
from escdiff.mini.world import world
from escdiff.mini.world.colors import color_difference
from escdiff.mini.world.world import TEXTURED, THING, Factors, Material, Shape

KINDS = ("shape", "material")
INSTANCES, VIEWS = 4, 4
PICTURES = INSTANCES * VIEWS
PER_CHUNK = 32  # line-ups in one file
NAMELESS = 0.12  # share of line-ups of things or textures, and of the other factors
STREAM = 770_000  # of random numbers, apart from those of data_prep and of the bench
PURPOSE = "judge"
APART = 0.33  # least difference of two namesakes in one factor, as a share of its range
COLOR_RANGE = 25.0  # CIEDE2000, of a colour between its darkest and its palest; a third of it is seen at a glance
BOUNDS = {"scale": world.SCALES, "angle": (-world.TILT, world.TILT)}
TELLING = ("shade", "shade2", "scale", "angle")  # of a material, at a glance; the seed of speckles and veins is not
COLORS_OF = {"shade": "rgb", "shade2": "rgb2"}


def draw_shape(rng: np.random.Generator, nameless: float = NAMELESS, purpose: str = PURPOSE) -> Shape:
    """Any shape of the world, a nameless one in a `nameless` share of draws."""
    return world.sample_thing(rng, purpose) if rng.random() < nameless else world.sample_shape(rng)


def draw_material(rng: np.random.Generator, nameless: float = NAMELESS, purpose: str = PURPOSE) -> Material:
    """Any material of the world, a nameless one in a `nameless` share of draws."""
    return world.sample_texture(rng, purpose) if rng.random() < nameless else world.sample_material(rng)


def namesakes(
    instances: Sequence[Shape | Material], count: int, rng: np.random.Generator, purpose: str = PURPOSE
) -> list:
    """Draw instances with the names of `instances`: the family; or pattern, colours and finish.

    A person can tell each of them from all of `instances`, see `differ`; two new ones may be alike, and all of them
    where `tellable` is false.
    """
    first, drawn, apart = instances[0], [], APART
    while len(drawn) < count:
        candidate = _namesake(first, rng, purpose)
        if not tellable(first) or all(differ(instance, candidate, apart) for instance in instances):
            drawn.append(candidate)
        else:
            apart *= 0.995  # names that leave one factor free have room for few instances
    return drawn


def differ(first: Shape | Material, second: Shape | Material, apart: float = APART) -> bool:
    """Whether two namesakes can be told apart at a glance: by one factor that shows, by a share of its range."""
    if isinstance(first, Shape):
        if first.family == THING:
            return first.seed != second.seed
        return max(abs(a - b) for a, b in zip(first.params, second.params, strict=True)) >= apart
    if first.pattern == TEXTURED:
        return first.seed != second.seed
    return any(_distance(name, first, second) >= apart for name in _telling(first))


def _distance(name: str, first: Material, second: Material) -> float:
    """How far apart two materials are in a number, as a share of its range; in a shade by what is seen of it."""
    if name in COLORS_OF:
        return color_difference(getattr(first, COLORS_OF[name]), getattr(second, COLORS_OF[name])) / COLOR_RANGE
    return abs(getattr(first, name) - getattr(second, name)) / np.ptp(BOUNDS.get(name, (0, 1)))


def tellable(instance: Shape | Material) -> bool:
    """Whether namesakes can differ in anything that shows: plain white and black, matte, come in one kind only."""
    return isinstance(instance, Shape) or instance.pattern == TEXTURED or bool(_telling(instance))


def _telling(material: Material) -> list[str]:
    """Numbers of a material that tell it from its namesakes at a glance; gloss where there is nothing else."""
    shown = [name for name in TELLING if material.shows(name)]
    return shown or ["gloss"] * material.shows("gloss")


def _namesake(instance: Shape | Material, rng: np.random.Generator, purpose: str) -> Shape | Material:
    if isinstance(instance, Shape):
        thing = instance.family == THING
        return world.sample_thing(rng, purpose) if thing else world.sample_shape(rng, (instance.family,))
    names = {"color": instance.color, "color2": instance.color2, "finish": instance.finish}
    while True:
        textured = instance.pattern == TEXTURED
        material = world.sample_texture(rng, purpose) if textured else world.sample_material(rng, (instance.pattern,))
        material = replace(material, **names)
        if world.contrasting(material.rgb, material.rgb2):
            return material


def draw_tellable(kind: str, rng: np.random.Generator, purpose: str = PURPOSE) -> Shape | Material:
    """Any shape, or any material that can be told from its namesakes."""
    while True:
        instance = (draw_shape if kind == "shape" else draw_material)(rng, purpose=purpose)
        if tellable(instance):
            return instance


def draw_lineup(kind: str, rng: np.random.Generator) -> list[Factors]:
    """`PICTURES` factors, those of one instance behind each other."""
    instances = [draw_tellable(kind, rng)]
    while len(instances) < INSTANCES:
        instances += namesakes(instances, 1, rng)
    pictures = []
    for instance in instances:
        for _ in range(VIEWS):
            shape = instance if kind == "shape" else draw_shape(rng)
            material = instance if kind == "material" else draw_material(rng)
            pictures.append(Factors(shape, material, world.sample_scene(rng, material)))
    return pictures


def lineup(seed: int, number: int) -> list[Factors]:
    """Line-up `number` of a seed; kinds take turns."""
    return draw_lineup(KINDS[number % 2], np.random.default_rng((seed, STREAM, number)))


def build_lineups(folder: Path, count: int, seed: int, size: int = 128, workers: int = 0) -> None:
    """Render line-ups into `folder`, chunk by chunk; what is there already is kept.

    Args:
        count: of line-ups, rounded up to whole chunks.
        size: pixels a side.
        workers: processes; 0 renders in this one.
    """
    build_chunks(folder, -(-count // PER_CHUNK), PER_CHUNK * PICTURES, partial(_chunk, seed), size, workers)


def _chunk(seed: int, chunk: int) -> list[Factors]:
    numbers = range(chunk * PER_CHUNK, (chunk + 1) * PER_CHUNK)
    return [factors for number in numbers for factors in lineup(seed, number)]


class LineUps(Chunked):
    """Batches of pixels (B * 16, 3, H, W) in [-1, 1] with what each picture shows: half line-ups, half single pictures.

    The pictures of a line-up share their names, so that a batch of line-ups alone teaches names slowly.

    Labels are (N,) classes, (N, n) values in 0..1 and "shows_{name}": (N,) bool, whether the picture shows that value
    at all; "shape_id" and "material_id" are (N,) the instance, -1 for single pictures and line-ups of the other kind.
    """

    def __init__(self, folder: Path) -> None:
        super().__init__(folder, PICTURES, PER_CHUNK * PICTURES)
        self.labels = labels_of([Factors.from_dict(record) for record in self.described()])

    def __getitems__(self, visits: list[tuple[int, int]]) -> tuple[Tensor, dict[str, Tensor]]:
        whole = visits[: len(visits) // 2]
        together = [row * PICTURES + place for _, row in whole for place in range(PICTURES)]
        rng = np.random.default_rng((STREAM, *visits[0]))
        single = rng.integers(len(self) * PICTURES, size=(len(visits) - len(whole)) * PICTURES)
        pixels, labels = self.pictures(np.concatenate([together, single]).astype(int))
        for name in EMBEDDINGS:
            labels[name][len(together) :] = -1
        return pixels, labels


def labels_of(factors: list[Factors]) -> dict[str, Tensor]:
    """Targets of an oracle for pictures of line-ups, in order; see `LineUps`."""
    shapes, materials = [f.shape for f in factors], [f.material for f in factors]
    words: Mapping[str, list[str]] = {
        "family": [s.family for s in shapes], "background": [f.scene.background for f in factors],
        **{name: [getattr(m, name) for m in materials] for name in ("pattern", "color", "color2", "finish")},
    }  # fmt: skip
    labels = {name: torch.tensor([CLASSES[name].index(word) for word in words[name]]) for name in CLASSES}
    values = {
        "params": [s.params for s in shapes],
        "rgb": [m.rgb for m in materials],
        "rgb2": [m.rgb2 for m in materials],
        "gloss": [(m.gloss,) for m in materials],
    }
    values |= {name: [(unit(getattr(m, name), bounds),) for m in materials] for name, bounds in BOUNDS.items()}
    labels |= {name: torch.tensor(value, dtype=torch.float32) for name, value in values.items()}
    labels |= {f"shows_{name}": torch.tensor([shows(name, f) for f in factors]) for name in (*CLASSES, *values)}
    numbers = torch.arange(len(factors))
    lineups, instances = numbers // PICTURES, numbers // VIEWS
    for turn, kind in enumerate(KINDS):
        labels[f"{kind}_id"] = torch.where(lineups % 2 == turn, instances, -1)
    return labels


def unit(value: float, bounds: tuple[float, float]) -> float:
    """A value between `bounds` as a number in 0..1."""
    return (value - bounds[0]) / (bounds[1] - bounds[0])


def shows(name: str, factors: Factors) -> bool:
    """Whether a picture can tell this factor."""
    if name == "params":
        return factors.shape.family != THING
    return factors.material.shows(name)
