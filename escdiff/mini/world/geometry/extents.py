"""How far a thing reaches: what stands on what, and how much room it takes."""

import math
from collections.abc import Callable
from dataclasses import replace
from functools import lru_cache

import numpy as np
import torch
from torch import Tensor

from escdiff.mini.world.arrangement import Thing
from escdiff.mini.world.geometry import bodies, shapes

GRID, ROUNDS = 18, 8
HALF = 1.15  # half side of the square of points that is moved until it touches; beyond it nothing is looked for


def rotation(thing: Thing) -> Tensor:
    """World to object: undo the roll about z, the yaw about y, then the pitch about x. (3, 3)."""
    cy, sy = math.cos(thing.yaw), math.sin(thing.yaw)
    cp, sp = math.cos(thing.pitch), math.sin(thing.pitch)
    yaw = torch.tensor([[cy, 0, -sy], [0, 1, 0], [sy, 0, cy]])
    pitch = torch.tensor([[1, 0, 0], [0, cp, sp], [0, -sp, cp]])
    if not thing.roll:
        return pitch @ yaw
    cr, sr = math.cos(thing.roll), math.sin(thing.roll)
    return pitch @ yaw @ torch.tensor([[cr, sr, 0], [-sr, cr, 0], [0, 0, 1]])


def lowest(distance: Callable[[Tensor, Tensor], Tensor], count: int) -> Tensor:
    """Height (count,) of objects' lowest points: a level of points rises until it touches.

    `distance(p, image)` gives the distances of points (N, 3) from the objects numbered `image` (N,).
    """
    side = torch.linspace(-HALF, HALF, GRID)
    p = torch.stack(torch.meshgrid(side, torch.zeros(1), side, indexing="ij"), -1).reshape(-1, 3)
    image = torch.arange(count).repeat_interleave(len(p))
    # Below every object.
    height, p = torch.full((count,), -1.2), p.repeat(count, 1)
    for _ in range(ROUNDS):
        p[:, 1] = height[image]
        # A rise by the least distance cannot pass through the object (Hart 1996).
        height = height + distance(p, image).reshape(count, -1).amin(1).clamp_min(0)
    return height


def extent(thing: Thing) -> np.ndarray:
    """(2, 3): lowest and highest x, y, z that the thing reaches from its place, at its size."""
    return _extent(replace(thing, size=1.0, place=(0.0, 0.0, 0.0))) * thing.size


@lru_cache(512)
def _extent(thing: Thing) -> np.ndarray:
    if thing.shape.family in shapes.SDF:
        params = torch.tensor(thing.shape.params)
        family = shapes.SDF[thing.shape.family]
        solid = lambda *p: family(*p, *params[:, None].expand(4, len(p[0])))  # noqa: E731
    else:
        solid = bodies.sdf(thing)
    # Frames whose y axis points along +x, +y, +z, -x, -y, -z.
    frames = torch.stack([torch.eye(3).roll(1 - i, 0) * sign for sign in (1.0, -1.0) for i in range(3)])
    turn = rotation(thing)

    def distance(p: Tensor, image: Tensor) -> Tensor:
        world = (frames[image].transpose(1, 2) @ p[:, :, None])[:, :, 0]
        return solid(*(world @ turn.T).T)

    with torch.no_grad():
        reach = lowest(distance, 6).double().numpy()
    return np.stack([reach[:3], -reach[3:]])
