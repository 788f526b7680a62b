"""Line-ups that tell whether the scene fools a judge: one picture is looked for among portraits in its own
background, light and yaw, and among the same portraits in others."""

from collections.abc import Iterable, Iterator
from concurrent.futures import ProcessPoolExecutor
from contextlib import nullcontext
from dataclasses import dataclass, replace
from functools import partial

import numpy as np
import torch

from escdiff.evaluation.bench.identity import VIEWS, lineup
from escdiff.evaluation.bench.instances import PURPOSE, STREAM
from escdiff.evaluation.bench.pictures import SIZE
from escdiff.mini.data.lineups import KINDS, draw_material, draw_shape, draw_tellable
from escdiff.mini.world import world
from escdiff.mini.world.colors import BACKGROUNDS, readable
from escdiff.mini.world.rendering.render import render
from escdiff.mini.world.world import Factors, Material, Scene, Shape

CASES = 600  # the streams of cases start here
AT_ONCE = 4  # cases that are rendered together


@dataclass(frozen=True)
class Case:
    """A picture, and portraits of its instance and of seven namesakes, `VIEWS` of each behind each other.

    Attributes:
        same, independent: the portraits, whose background, light and yaw are the picture's, or drawn by themselves;
            all else is the same in both.
    """

    query: Factors
    same: tuple[Factors, ...]
    independent: tuple[Factors, ...]

    @property
    def pictures(self) -> list[Factors]:
        """The query, then the two kinds of portraits."""
        return [self.query, *self.same, *self.independent]


def draw_case(kind: str, seed: int, number: int) -> Case:
    """Case `number` of a kind of `lineups.KINDS`."""
    rng = np.random.default_rng((seed, STREAM + CASES + KINDS.index(kind), number))
    while True:
        instance = draw_tellable(kind, rng, PURPOSE)
        instances = lineup(instance, seed)
        materials = instances if kind == "material" else []
        backgrounds = [b for b in BACKGROUNDS if all(_stands_out(m, b) for m in materials)]
        if backgrounds:
            break
    background = str(rng.choice(backgrounds))
    query = _on(instance, background, rng)
    scene = replace(query.scene, background=background)
    views = [_on(member, background, rng) for member in instances for _ in range(VIEWS)]
    same = [replace(v, scene=_as_in(scene, v.scene)) for v in views]
    independent = [replace(v, scene=_as_in(world.sample_scene(rng, v.material), v.scene)) for v in views]
    return Case(replace(query, scene=scene), tuple(same), tuple(independent))


def render_cases(kind: str, seed: int, count: int, workers: int = 0, first: int = 0) -> Iterator[np.ndarray]:
    """Cases `first` to `count` as pictures (pictures of a case, SIZE, SIZE, 3) uint8, in their order.

    Args:
        workers: processes; 0 renders in this one.
    """
    parts = [range(i, min(i + AT_ONCE, count)) for i in range(first, count, AT_ONCE)]
    pool = ProcessPoolExecutor(workers, initializer=torch.set_num_threads, initargs=(1,)) if workers else nullcontext()
    with pool as running:
        rendered: Iterable = (
            running.map(partial(_render, kind, seed), parts) if running else map(partial(_render, kind, seed), parts)
        )
        for images in rendered:
            yield from images


def _render(kind: str, seed: int, numbers: range) -> np.ndarray:
    cases = [draw_case(kind, seed, number) for number in numbers]
    images = render([picture for case in cases for picture in case.pictures], SIZE).image
    return images.reshape(len(cases), -1, *images.shape[1:])


def _on(instance: Shape | Material, background: str, rng: np.random.Generator) -> Factors:
    """The instance with a partner that stands out from the background, in a scene of its own."""
    shape = instance if isinstance(instance, Shape) else draw_shape(rng, purpose=PURPOSE)
    material = instance if isinstance(instance, Material) else draw_material(rng, purpose=PURPOSE)
    while not _stands_out(material, background):
        material = draw_material(rng, purpose=PURPOSE)
    return Factors(shape, material, world.sample_scene(rng, material))


def _stands_out(material: Material, background: str) -> bool:
    return readable(material.rgb, material.color, background)


def _as_in(scene: Scene, view_scene: Scene) -> Scene:
    """`view_scene` in the background, light and yaw of `scene`."""
    return replace(view_scene, background=scene.background, light=scene.light, yaw=scene.yaw)
