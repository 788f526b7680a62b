"""Shapes and textures that come from a seed and have no name: what only a picture can show.

`thing`: a smooth union of three to five primitives, scaled to the radius of the named families. `textured`: two or
three colours laid by band-limited, anisotropic noise.
"""

import math
from functools import lru_cache

import numpy as np
import torch
from torch import Tensor

from escdiff.mini.world.geometry import primitives as solid

SEAM = 0.16  # over which the parts of a thing run into each other
REACH = 1.0  # furthest point of a thing from the origin
WAVES = 20  # of a texture's noise


class Thing:
    """The signed distance of the nameless thing of a seed."""

    def __init__(self, seed: int) -> None:
        rng = np.random.default_rng([7, seed])
        count = int(rng.integers(3, 6))
        self.kinds = rng.choice(4, count)
        self.sizes = rng.uniform(0.2, 0.62, (count, 3)).round(4)
        self.turns = np.stack([_turn(rng) for _ in range(count)])
        centres = np.zeros((count, 3))
        for i in range(1, count):  # each part stands on the surface of an earlier one
            host = int(rng.integers(i))
            way = rng.normal(size=3)
            way /= np.linalg.norm(way)
            centres[i] = centres[host] + way * 1.15 * self.sizes[host].mean()
        reach = np.linalg.norm(self.sizes, axis=1)
        middle = (centres + reach[:, None]).max(0) / 2 + (centres - reach[:, None]).min(0) / 2
        self.centres = centres - middle
        self.scale = REACH / float((np.linalg.norm(self.centres, axis=1) + reach * 0.8).max())

    def __call__(self, x: Tensor, y: Tensor, z: Tensor) -> Tensor:
        """Points (N,) each -> distances (N,)."""
        k, total = self.scale, None
        x, y, z = x / k, y / k, z / k
        parts = zip(self.kinds.tolist(), self.centres.tolist(), self.sizes.tolist(), self.turns.tolist(), strict=True)
        for kind, (cx, cy, cz), (rx, ry, rz), turn in parts:
            u, v, w = x - cx, y - cy, z - cz
            p = [row[0] * u + row[1] * v + row[2] * w for row in turn]
            if kind == 0:
                part = solid.ellipsoid(*p, rx, ry, rz)
            elif kind == 1:
                part = solid.box(*p, rx * 0.8, ry * 0.8, rz * 0.8, 0.05)
            elif kind == 2:
                part = solid.cylinder(*p, rx * 0.7, ry, 0.05)
            else:
                part = solid.ring(*p, max(rx, ry), 0.09 + rz * 0.15)
            total = part if total is None else solid.smooth_min(total, part, SEAM)
        return total * k


class Texture:
    """Weights of the second and the third colour of the nameless texture of a seed."""

    def __init__(self, seed: int) -> None:
        rng = np.random.default_rng([11, seed])
        # Anisotropy: a third each of round, long and very long blots.
        stretch = float(rng.choice([1.0, 2.2, 4.0], p=[0.35, 0.35, 0.3]))
        pitch = float(rng.uniform(6.5, 12.5)) * (1.2 if stretch > 1 else 1.0)
        way = rng.normal(size=(WAVES, 3))
        # Wave numbers of nearly one length: blots of nearly one size, so no picture shows noise finer than its pixels.
        k = way / np.linalg.norm(way, axis=1, keepdims=True) * rng.uniform(0.8, 1.2, (WAVES, 1)) * pitch
        axis = np.array([math.cos(t := float(rng.uniform(0, math.pi))), math.sin(t), float(rng.uniform(-0.4, 0.4))])
        axis /= np.linalg.norm(axis)
        k = k - (k @ axis)[:, None] * axis * (1 - 1 / stretch)  # long along `axis`
        self.k = torch.from_numpy(k.T.astype(np.float32))
        self.phase = torch.from_numpy(rng.uniform(0, 2 * math.pi, (2, WAVES)).astype(np.float32))
        self.kind = int(rng.integers(4))  # blots, veins, terraces, islands
        self.level = float(rng.uniform(-0.35, 0.35))
        self.third = bool(rng.random() < 0.5)
        self.rgb3 = tuple(float(v) for v in rng.choice([0.08, 0.5, 0.92], 3))
        self.soft = float(rng.choice([0.06, 0.22], p=[0.75, 0.25]))

    def __call__(self, p: Tensor) -> tuple[Tensor, Tensor]:
        """Object points (N, 3) -> weight of the second and of the third colour, each (N,) in 0..1."""
        angle = p @ self.k
        # Scaled to variance 1, so that the levels below cut the same shares whatever `WAVES` is.
        a, b = (torch.sin(angle + phase).sum(-1) * (2 / WAVES) ** 0.5 for phase in self.phase)
        if self.kind == 0:
            value = a - self.level
        elif self.kind == 1:
            value = 0.42 - self.level * 0.4 - a.abs()
        elif self.kind == 2:
            value = torch.sin(a * 3.4 + self.level * 6)
        else:
            value = torch.maximum(a, b) - 0.75 - self.level
        # A soft edge as wide as the texture's own softness.
        second = torch.sigmoid(value / self.soft)
        third = torch.sigmoid((b - 0.7) / self.soft) if self.third else torch.zeros_like(second)
        return second, third


@lru_cache(1024)
def thing(seed: int) -> Thing:
    """The shape of a seed."""
    return Thing(seed)


@lru_cache(1024)
def texture(seed: int) -> Texture:
    """The texture of a seed."""
    return Texture(seed)


def _turn(rng: np.random.Generator) -> np.ndarray:
    """A random rotation (3, 3) from a unit quaternion."""
    # Normal numbers have no preferred direction, so all rotations are equally likely (Shoemake 1992).
    a, b, c, d = (q := rng.normal(size=4)) / np.linalg.norm(q)
    return np.array(
        [
            [1 - 2 * (c * c + d * d), 2 * (b * c - a * d), 2 * (b * d + a * c)],
            [2 * (b * c + a * d), 1 - 2 * (b * b + d * d), 2 * (c * d - a * b)],
            [2 * (b * d - a * c), 2 * (c * d + a * b), 1 - 2 * (b * b + c * c)],
        ]
    )
