"""The renderer: things traced by family, laid over their backdrop by depth.

The same batch gives the same bytes; in another batch a pixel may differ by one level where rounding falls the other
way.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from escdiff.mini.world.arrangement import Arrangement, as_arrangement
from escdiff.mini.world.geometry import shapes
from escdiff.mini.world.rendering.shading import shade
from escdiff.mini.world.rendering.tracing import CAMERA, Tracer, rays
from escdiff.mini.world.world import BACKGROUNDS, Factors, Scene

__all__ = ["CAMERA", "Rendered", "boxes", "render"]

CHUNK = 8  # things traced together: their working set stays in a core's cache


@dataclass
class Rendered:
    """A batch of rendered pictures."""

    image: np.ndarray  # (B, size, size, 3) uint8, sRGB
    mask: np.ndarray  # (B, size, size) bool, what is no backdrop
    depth: np.ndarray  # (B, size, size) float32, distance from the camera in object units; floor and wall: 0
    whole: list[np.ndarray]  # per picture (things, size, size) bool, each thing as if it were alone
    visible: list[np.ndarray]  # per picture (things, size, size) bool, what of it can be seen


@dataclass
class _Layer:
    """One thing's part of its picture; P pixels."""

    pixel: Tensor  # (N,) that it covers
    depth: Tensor  # (N,)
    coverage: Tensor  # (N,)
    color: Tensor  # (N, 3) linear
    lit: Tensor  # (P,) share of light on the floor
    floor: float


@torch.no_grad()
def render(pictures: Sequence[Factors | Arrangement], size: int = 128) -> Rendered:
    """Render pictures of factors or arrangements, in their order."""
    arrangements = [as_arrangement(picture) for picture in pictures]
    layers = _layers(arrangements, size)
    count = len(pictures)
    out = Rendered(
        np.zeros((count, size, size, 3), np.uint8),
        np.zeros((count, size, size), bool),
        np.zeros((count, size, size), np.float32),
        [], [],
    )  # fmt: skip
    for i, arrangement in enumerate(arrangements):
        thing_layers = [layers[i, k] for k in range(len(arrangement.things))]
        color, depth, solid = _compose(arrangement, thing_layers, size)
        # The nearest solid thing is seen; elsewhere none is.
        near = depth.masked_fill(~solid, float("inf"))
        front = solid & (near == near.amin(0)) if thing_layers else solid
        mask = solid.any(0)
        # A gamma of 2.2 stands for the sRGB curve, here and where colours are read.
        out.image[i] = (color.clamp(0, 1) ** (1 / 2.2) * 255 + 0.5).to(torch.uint8).reshape(size, size, 3).numpy()
        out.mask[i] = mask.reshape(size, size).numpy()
        if thing_layers:
            out.depth[i] = near.amin(0).masked_fill(~mask, 0).reshape(size, size).numpy()
        out.whole.append(solid.reshape(-1, size, size).numpy())
        out.visible.append(front.reshape(-1, size, size).numpy())
    return out


def boxes(masks: np.ndarray) -> np.ndarray:
    """Masks (things, H, W) -> (things, 4): left, top, right, bottom as shares of the side; zeros where nothing is."""
    edges = np.zeros((len(masks), 4), np.float32)
    for row, mask in zip(edges, masks, strict=True):
        ys, xs = np.nonzero(mask)
        if len(xs):
            height, width = mask.shape
            row[:] = xs.min() / width, ys.min() / height, (xs.max() + 1) / width, (ys.max() + 1) / height
    return edges


def _layers(arrangements: Sequence[Arrangement], size: int) -> dict[tuple[int, int], _Layer]:
    """(picture, thing) -> its layer; things of one family are traced together."""
    families: dict[str, list[tuple[int, int]]] = {}
    for i, arrangement in enumerate(arrangements):
        for k, thing in enumerate(arrangement.things):
            families.setdefault(thing.shape.family, []).append((i, k))
    layers = {}
    for family, members in families.items():
        chunk = CHUNK if family in shapes.SDF else 1  # those that are built one by one are traced so
        for first in range(0, len(members), chunk):
            places = members[first : first + chunk]
            things = [arrangements[i].things[k] for i, k in places]
            tracer = Tracer(things, [arrangements[i].scene for i, _ in places], size)
            floors = [arrangements[i].floor for i, _ in places]
            if None in floors:
                low = tracer.lowest()
                floors = [float(foot) if floor is None else floor for floor, foot in zip(floors, low, strict=True)]
            lit = tracer.shadow(torch.tensor(floors, dtype=torch.float32))
            image, pixel, t, coverage = tracer.trace()
            color = shade(tracer, image, pixel, t)
            t = t * tracer.scale[image]
            for row, place in enumerate(places):
                hits = image == row
                parts = pixel[hits], t[hits], coverage[hits], color[hits]
                layers[place] = _Layer(*parts, lit[row], floors[row])
    return layers


def _compose(arrangement: Arrangement, layers: list[_Layer], size: int) -> tuple[Tensor, Tensor, Tensor]:
    """Linear colour (P, 3), depth (things, P) and where each thing is solid (things, P)."""
    floor = min((layer.floor for layer in layers), default=arrangement.floor or 0.0)
    lit = torch.ones(size * size)
    for layer in layers:
        # Each thing takes its share of the light that the others leave.
        lit = lit * layer.lit
    canvas = _backdrop(arrangement.scene, floor, lit, size)
    shape = (len(layers), size * size)
    color, depth, coverage = torch.zeros(*shape, 3), torch.zeros(shape), torch.zeros(shape)
    for k, layer in enumerate(layers):
        color[k, layer.pixel], depth[k, layer.pixel] = layer.color, layer.depth
        coverage[k, layer.pixel] = layer.coverage
    order = depth.argsort(0, descending=True) if len(layers) > 1 else torch.zeros(shape, dtype=torch.long)
    for rank in order:  # the furthest first
        on = coverage.gather(0, rank[None])[0, :, None]
        # Blended, not chosen: a rim that covers half a pixel lets through what is behind it.
        over = color.gather(0, rank[None, :, None].expand(1, -1, 3))[0]
        canvas = canvas + (over - canvas) * on
    return canvas, depth, coverage > 0.5


def _backdrop(scene: Scene, floor: float, lit: Tensor, size: int) -> Tensor:
    """Wall and floor with the things' soft shadows: (P, 3) linear."""
    palette = torch.tensor(BACKGROUNDS[scene.background]) ** 2.2  # (3, 3)
    origin, direction = rays(scene, size)
    down = direction[:, 1]
    wall = palette[1] + (palette[0] - palette[1]) * ((down + 0.42) / 0.5).clamp(0, 1)[:, None]
    # Rays to the horizon or above never meet the floor; their length stays finite and `fade` hides it.
    away = (floor - origin[1]) / down.clamp_max(-1e-3)
    z = origin[2] + direction[:, 2] * away
    fade = torch.exp(-(((-z + 2.0).clamp_min(0) / 5.0) ** 2))  # the floor melts into the wall
    fade = torch.where(down < -1e-3, fade, torch.zeros_like(fade))
    return wall + (palette[2] * lit[:, None] - wall) * fade[:, None]
