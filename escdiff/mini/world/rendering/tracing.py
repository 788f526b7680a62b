"""Sphere tracing of signed distances (Hart, 1996), batched by shape family.

Everything is computed on flat lists of points, so that rays which have ended cost nothing. Each thing is traced in
units of its own size with itself at the origin; lengths are multiplied by its size afterwards.
"""

import math
from collections.abc import Sequence

import torch
from torch import Tensor

from escdiff.mini.world.arrangement import Thing
from escdiff.mini.world.geometry import bodies, shapes
from escdiff.mini.world.geometry.extents import lowest, rotation
from escdiff.mini.world.world import Scene

RADIUS = 1.34  # of the sphere that holds every object
CAMERA = 5.2  # distance of the camera, object units
FIELD = 0.262  # tangent of half the field of view
BLOCK = 4  # pixels; the side of the blocks that cone marching starts from
TOUCH = 0.06  # pixels; a ray that comes so near has hit
STEPS, CAREFUL = 48, 0.85  # some distances are bounds only, so steps are shortened


def rays(scene: Scene, size: int) -> tuple[Tensor, Tensor]:
    """Camera origin (3,) and unit directions (size*size, 3), the scene's centre at the world's origin."""
    ce, se = math.cos(scene.elevation), math.sin(scene.elevation)
    forward = torch.tensor([0.0, -se, -ce])
    right, up = torch.tensor([1.0, 0.0, 0.0]), torch.tensor([0.0, ce, -se])
    pixel = (torch.arange(size) + 0.5) / size * 2 - 1
    v, u = torch.meshgrid(-pixel, pixel, indexing="ij")
    tangent = FIELD / scene.zoom
    direction = forward + (u.reshape(-1, 1) * right + v.reshape(-1, 1) * up) * tangent
    origin = -forward * CAMERA - right * scene.dx - up * scene.dy
    return origin, direction / direction.norm(dim=-1, keepdim=True)


class Tracer:
    """Things of one family, each in a picture of its own, traced together."""

    def __init__(self, things: Sequence[Thing], scenes: Sequence[Scene], size: int) -> None:
        self.things, self.size = things, size
        if things[0].shape.family in shapes.SDF:
            self.sdf = shapes.SDF[things[0].shape.family]
            self.params = torch.tensor([t.shape.params for t in things])  # (B, 4)
        else:
            (only,) = things
            self.sdf, self.params = bodies.sdf(only), torch.zeros(1, 0)
        self.rotation = torch.stack([rotation(t) for t in things])  # (B, 3, 3)
        self.scale = torch.tensor([t.size for t in things], dtype=torch.float32)
        self.place = torch.tensor([t.place for t in things], dtype=torch.float32)
        cameras = [rays(scene, size) for scene in scenes]
        self.origin = (torch.stack([o for o, _ in cameras]) - self.place) / self.scale[:, None]  # (B, 3)
        self.direction = torch.stack([d for _, d in cameras])  # (B, P, 3)
        zoom = torch.tensor([scene.zoom for scene in scenes])
        self.width = 2 * FIELD / size / zoom  # of a pixel at unit length (B,)
        light = torch.tensor([[1.1 * math.sin(scene.light), 1.0, 0.75] for scene in scenes])
        self.light = light / light.norm(dim=-1, keepdim=True)  # (B, 3)

    def to_object(self, p: Tensor, image: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """World vectors (N, 3) of pictures `image` (N,) in object space, one contiguous tensor per axis."""
        r = self.rotation[image]
        return tuple((r[:, i] * p).sum(-1) for i in range(3))

    def distance(self, p: Tensor, image: Tensor) -> Tensor:
        """Distance of points (N, 3) of pictures `image` (N,) from their objects."""
        return self.sdf(*self.to_object(p, image), *self.params[image].T.contiguous())

    def lowest(self) -> Tensor:
        """Height (B,) of the objects' lowest points, the world's units."""
        return lowest(self.distance, len(self.things)) * self.scale + self.place[:, 1]

    def march(self, image: Tensor, direction: Tensor, t: Tensor, thick: float) -> tuple[Tensor, Tensor]:
        """Step rays (N,) of pictures `image`, `thick` pixels in radius, from length `t` until they touch the object.

        Returns the length at the nearest approach (N,) and that approach in pixels (N,), 9 where there is none.
        """
        b = (direction * self.origin[image]).sum(-1)
        # Where the ray leaves the sphere around the object; behind it nothing can be hit.
        far = (b * b - self.origin[image].square().sum(-1) + RADIUS**2).clamp_min(0).sqrt() - b
        near, best, index = torch.full_like(t, 9.0), t.clone(), torch.arange(len(t))
        # One contiguous row per quantity; rays that have ended are dropped, so later steps cost less.
        origin, direction = self.to_object(self.origin[image], image), self.to_object(direction, image)
        rows = torch.stack([*origin, *direction, *self.params[image].T, self.width[image], far, t, near, best])
        for step in range(STEPS):
            ox, oy, oz, dx, dy, dz, *params, width, far, t, near_row, best_row = rows
            d = self.sdf(ox + dx * t, oy + dy * t, oz + dz * t, *params)
            pixels = d / (width * t)
            torch.where(pixels < near_row, t, best_row, out=best_row)
            torch.minimum(near_row, pixels, out=near_row)
            going = (near_row > thick * 1.4 + TOUCH) & (t < far)
            # A ray that grazes would stand still without a least step.
            t += (d - thick * width * t).clamp_min(0.004) * CAREFUL * going
            # Dropping rays copies all rows, so it is done now and then.
            if step % 4 == 3 or step == STEPS - 1:
                near[index], best[index] = near_row, best_row
                keep = torch.nonzero(going).squeeze(1)
                if not len(keep):
                    break
                rows, index = rows[:, keep], index[keep]
        return best, near

    def trace(self) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """Rays that hit or graze: picture (N,), pixel (N,), length (N,), coverage (N,) in 0..1.

        Cone marching: the centre ray of each block goes first, with the block's radius as its thickness; where it
        passes, its whole block does, and where it stops, the block's rays start.
        """
        count, blocks = len(self.things), self.size // BLOCK
        grid = self.direction.reshape(count, blocks, BLOCK, blocks, BLOCK, 3)
        centre = grid.mean((2, 4)).reshape(count, -1, 3)
        centre = centre / centre.norm(dim=-1, keepdim=True)
        b = (centre * self.origin[:, None]).sum(-1)
        # Rays that miss the sphere around the object never enter; the others start where they meet it.
        disc = b * b - (self.origin.square().sum(-1)[:, None] - RADIUS**2)
        image, block = torch.nonzero(disc > 0, as_tuple=True)
        start = -b[image, block] - disc[image, block].sqrt()
        # Half the diagonal of a block, and a pixel for the rays that only graze.
        reach = BLOCK * 0.7072 + 1
        t, near = self.march(image, centre[image, block], start, reach)
        met = near <= reach * 1.4 + TOUCH
        image, block, t = image[met], block[met], t[met]
        inside = torch.arange(BLOCK)
        row = (block // blocks * BLOCK)[:, None, None] + inside[:, None]
        column = (block % blocks * BLOCK)[:, None, None] + inside
        pixel = (row * self.size + column).reshape(-1)
        image, t = image.repeat_interleave(BLOCK**2), t.repeat_interleave(BLOCK**2)
        t, near = self.march(image, self.direction[image, pixel], t, 0.0)
        coverage = (1 + TOUCH - near).clamp(0, 1)  # a ray that passes within a pixel covers part of it
        hit = coverage > 0
        return image[hit], pixel[hit], t[hit], coverage[hit]

    def normal(self, p: Tensor, image: Tensor) -> Tensor:
        """Unit normals by the tetrahedron technique (Quilez)."""
        total = torch.zeros_like(p)
        # Four distances in place of the six of central differences, and as exact.
        for corner in ((1, -1, -1), (-1, -1, 1), (-1, 1, -1), (1, 1, 1)):
            offset = torch.tensor(corner, dtype=p.dtype)
            total += offset * self.distance(p + 0.004 * offset, image)[:, None]
        return total / total.norm(dim=-1, keepdim=True).clamp_min(1e-6)

    def shadow(self, floor: Tensor) -> Tensor:
        """Share of light (B, P) on a floor of height `floor` (B,), the world's units.

        By stepping from the floor to the light through the distances.
        """
        level = (floor - self.place[:, 1]) / self.scale
        t = (level - self.origin[:, 1])[:, None] / self.direction[..., 1].clamp_max(-1e-3)
        point = self.origin[:, None] + self.direction * t[..., None]
        lit = torch.ones(point.shape[:2])
        # Most of the floor is far from the object; it is taken as lit without being asked.
        near = point[..., 0].square() + point[..., 2].square() < 2.1**2
        image, pixel = torch.nonzero(near, as_tuple=True)
        p, light = point[image, pixel], self.light[image]
        shade = torch.ones(len(p))
        # The nearest distance on the way to the light, over a width that grows with the way: a penumbra (Quilez).
        for h in (0.08, 0.3, 0.65, 1.1):
            shade = torch.minimum(shade, self.distance(p + light * h, image) / (0.16 + 0.34 * h) + 0.25)
        # A shadow keeps the light of the sky.
        lit[image, pixel] = 0.45 + 0.55 * shade.clamp(0, 1)
        return lit
