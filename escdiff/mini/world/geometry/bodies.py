"""Signed distances that are built one by one: nameless things, figures, faces."""

from collections.abc import Callable
from functools import lru_cache

from torch import Tensor

from escdiff.mini.world.arrangement import Thing
from escdiff.mini.world.geometry import nameless
from escdiff.mini.world.geometry.faces import FACE, Face
from escdiff.mini.world.geometry.figures import BODIES, Figure
from escdiff.mini.world.world import THING


@lru_cache(1024)
def sdf(thing: Thing) -> Callable[[Tensor, Tensor, Tensor], Tensor]:
    """The signed distance of a thing whose family is not in `shapes.SDF`, without further arguments."""
    shape = thing.shape
    if shape.family == THING:
        return nameless.thing(shape.seed)
    if shape.family in BODIES:
        return Figure(shape.family, shape.params, thing.pose)
    if shape.family == FACE:
        return Face(shape.params, thing.face, thing.material.rgb)
    raise ValueError(f"unknown family {shape.family!r}")


def painted(thing: Thing, p: Tensor) -> tuple[Tensor, Tensor] | None:
    """Colours (N, 3) painted over the material at object points (N, 3) and how much they cover (N,), if any."""
    return sdf(thing).painted(p) if thing.shape.family in (*BODIES, FACE) else None
