"""The renderer: sphere tracing of signed distances (Hart, 1996), batched by shape family.

Everything is computed on flat lists of points, so that rays which have ended cost nothing. The same batch gives
the same bytes; in another batch a pixel may differ by one level where rounding falls the other way.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from escdiff.still_life import materials, shapes
from escdiff.still_life.world import BACKGROUNDS, Factors

RADIUS = 1.34  # of the sphere that holds every object
CAMERA = 5.2  # distance of the camera, object units
FIELD = 0.262  # tangent of half the field of view
FLOOR = -0.98  # height of the floor
BLOCK = 4  # pixels; the side of the blocks that cone marching starts from
CHUNK = 8  # pictures traced together: their working set stays in a core's cache
TOUCH = 0.06  # pixels; a ray that comes so near has hit
STEPS, CAREFUL = 48, 0.85  # some distances are bounds only, so steps are shortened


@dataclass
class Rendered:
    image: np.ndarray  # (B, size, size, 3) uint8, sRGB
    mask: np.ndarray  # (B, size, size) bool, the object
    depth: np.ndarray  # (B, size, size) float32, distance from the camera in object units; floor and wall: 0


def _rotation(factors: Factors) -> Tensor:
    """World to object: undo the yaw about y, then the pitch about x. (3, 3)."""
    cy, sy = math.cos(factors.scene.yaw), math.sin(factors.scene.yaw)
    cp, sp = math.cos(factors.scene.pitch), math.sin(factors.scene.pitch)
    yaw = torch.tensor([[cy, 0, -sy], [0, 1, 0], [sy, 0, cy]])
    pitch = torch.tensor([[1, 0, 0], [0, cp, sp], [0, -sp, cp]])
    return pitch @ yaw


def _rays(factors: Factors, size: int) -> tuple[Tensor, Tensor]:
    """Camera origin (3,) and unit directions (size*size, 3), object at the world's origin."""
    s = factors.scene
    ce, se = math.cos(s.elevation), math.sin(s.elevation)
    forward = torch.tensor([0.0, -se, -ce])
    right, up = torch.tensor([1.0, 0.0, 0.0]), torch.tensor([0.0, ce, -se])
    pixel = (torch.arange(size) + 0.5) / size * 2 - 1
    v, u = torch.meshgrid(-pixel, pixel, indexing="ij")
    tangent = FIELD / s.zoom
    direction = forward + (u.reshape(-1, 1) * right + v.reshape(-1, 1) * up) * tangent
    origin = -forward * CAMERA - right * s.dx - up * s.dy
    return origin, direction / direction.norm(dim=-1, keepdim=True)


class _Family:
    """The pictures of one shape family, traced together."""

    def __init__(self, factors: Sequence[Factors], size: int) -> None:
        self.factors, self.size = factors, size
        self.sdf = shapes.SDF[factors[0].shape.family]
        self.rotation = torch.stack([_rotation(f) for f in factors])  # (B, 3, 3)
        self.params = torch.tensor([f.shape.params for f in factors])  # (B, 4)
        rays = [_rays(f, size) for f in factors]
        self.origin = torch.stack([o for o, _ in rays])  # (B, 3)
        self.direction = torch.stack([d for _, d in rays])  # (B, P, 3)
        zoom = torch.tensor([f.scene.zoom for f in factors])
        self.width = 2 * FIELD / size / zoom  # of a pixel at unit length (B,)
        light = torch.tensor([[1.1 * math.sin(f.scene.light), 1.0, 0.75] for f in factors])
        self.light = light / light.norm(dim=-1, keepdim=True)  # (B, 3)

    def to_object(self, p: Tensor, image: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """World vectors (N, 3) of pictures `image` (N,) in object space, one contiguous tensor per axis."""
        r = self.rotation[image]
        return tuple((r[:, i] * p).sum(-1) for i in range(3))

    def distance(self, p: Tensor, image: Tensor) -> Tensor:
        """Distance of world points (N, 3) of pictures `image` (N,) from their objects."""
        return self.sdf(*self.to_object(p, image), *self.params[image].T.contiguous())

    def march(self, image: Tensor, direction: Tensor, t: Tensor, thick: float) -> tuple[Tensor, Tensor]:
        """Step rays (N,) of pictures `image`, `thick` pixels in radius, from length `t` until they touch the object.

        Returns the length at the nearest approach (N,) and that approach in pixels (N,), 9 where there is none.
        """
        b = (direction * self.origin[image]).sum(-1)
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
            t += (d - thick * width * t).clamp_min(0.004) * CAREFUL * going
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
        count, blocks = len(self.factors), self.size // BLOCK
        grid = self.direction.reshape(count, blocks, BLOCK, blocks, BLOCK, 3)
        centre = grid.mean((2, 4)).reshape(count, -1, 3)
        centre = centre / centre.norm(dim=-1, keepdim=True)
        b = (centre * self.origin[:, None]).sum(-1)
        disc = b * b - (self.origin.square().sum(-1)[:, None] - RADIUS**2)
        image, block = torch.nonzero(disc > 0, as_tuple=True)
        start = -b[image, block] - disc[image, block].sqrt()
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
        for corner in ((1, -1, -1), (-1, -1, 1), (-1, 1, -1), (1, 1, 1)):
            offset = torch.tensor(corner, dtype=p.dtype)
            total += offset * self.distance(p + 0.004 * offset, image)[:, None]
        return total / total.norm(dim=-1, keepdim=True).clamp_min(1e-6)

    def albedo(self, p: Tensor, n: Tensor, image: Tensor) -> Tensor:
        """Colour (N, 3) in linear light: two colours mixed by the pattern in object space."""
        p, n = (torch.stack(self.to_object(v, image), -1) for v in (p, n))
        mix = torch.empty(len(p))
        for i, f in enumerate(self.factors):
            own = image == i
            m, count = f.material, int(own.sum())
            full = [torch.full((count,), float(v)) for v in (m.scale, m.angle, m.seed)]
            mix[own] = materials.weight(m.pattern, p[own], n[own], *full)
        first = torch.tensor([f.material.rgb for f in self.factors])[image]
        second = torch.tensor([f.material.rgb2 for f in self.factors])[image]
        return (first + (second - first) * mix[:, None]).clamp(0, 1) ** 2.2

    def shade(self, image: Tensor, pixel: Tensor, t: Tensor) -> Tensor:
        """Blinn-Phong with ambient occlusion; returns linear colour (N, 3)."""
        view = self.direction[image, pixel]
        p = self.origin[image] + view * t[:, None]
        n, light = self.normal(p, image), self.light[image]
        albedo = self.albedo(p, n, image)
        facing = (n * light).sum(-1).clamp_min(0)
        sky = 0.5 + 0.5 * n[:, 1]
        hollow = (self.distance(p + 0.22 * n, image) / 0.22).clamp(0.25, 1)
        half = light - view
        half = half / half.norm(dim=-1, keepdim=True)
        spec = (n * half).sum(-1).clamp_min(0)
        fresnel = (1 + (n * view).sum(-1)).clamp(0, 1) ** 3
        finish = torch.tensor([{"matte": 0, "glossy": 1, "metallic": 2}[f.material.finish] for f in self.factors])
        finish = finish[image]
        gloss = torch.tensor([f.material.gloss for f in self.factors])[image]
        diffuse = albedo * ((0.72 * facing + 0.34 * sky + 0.06) * hollow)[:, None]
        glossy = diffuse + ((0.5 + 0.4 * gloss) * spec**60 + 0.12 * fresnel * hollow)[:, None]
        mirrored = 2 * (n * -view).sum(-1, keepdim=True) * n + view  # the reflected ray sees a plain studio
        studio = 0.18 + 0.95 * torch.sigmoid((mirrored[:, 1] - 0.25) * (5 + 4 * gloss))
        metal = albedo * (0.25 * facing + 0.95 * studio * hollow)[:, None]
        metal = metal + (0.25 * albedo + 0.3) * ((0.4 + 0.4 * gloss) * spec**24)[:, None]
        return torch.where((finish == 1)[:, None], glossy, torch.where((finish == 2)[:, None], metal, diffuse))

    def backdrop(self) -> Tensor:
        """Wall and floor with the object's soft shadow: (B, P, 3) linear."""
        palette = torch.tensor([BACKGROUNDS[f.scene.background] for f in self.factors]) ** 2.2  # (B, 3, 3)
        down = self.direction[..., 1]
        wall_mix = ((down + 0.42) / 0.5).clamp(0, 1)[..., None]
        wall = palette[:, None, 1] + (palette[:, None, 0] - palette[:, None, 1]) * wall_mix
        t = (FLOOR - self.origin[:, None, 1]) / down.clamp_max(-1e-3)
        point = self.origin[:, None] + self.direction * t[..., None]
        fade = torch.exp(-(((-point[..., 2] + 2.0).clamp_min(0) / 5.0) ** 2))  # the floor melts into the wall
        fade = torch.where(down < -1e-3, fade, torch.zeros_like(fade))
        floor = palette[:, None, 2].expand_as(wall) * self._shadow(point)[..., None]
        return wall + (floor - wall) * fade[..., None]

    def _shadow(self, point: Tensor) -> Tensor:
        """Share of light (B, P) on the floor, by stepping from the floor to the light through the distances."""
        lit = torch.ones(point.shape[:2])
        near = point[..., 0].square() + point[..., 2].square() < 2.1**2
        image, pixel = torch.nonzero(near, as_tuple=True)
        p, light = point[image, pixel], self.light[image]
        shade = torch.ones(len(p))
        for h in (0.08, 0.3, 0.65, 1.1):
            shade = torch.minimum(shade, self.distance(p + light * h, image) / (0.16 + 0.34 * h) + 0.25)
        lit[image, pixel] = 0.45 + 0.55 * shade.clamp(0, 1)
        return lit

    def render(self) -> Rendered:
        count, size = len(self.factors), self.size
        canvas = self.backdrop()
        image, pixel, t, coverage = self.trace()
        shaded = self.shade(image, pixel, t)
        canvas[image, pixel] += (shaded - canvas[image, pixel]) * coverage[:, None]
        mask, depth = torch.zeros(count, size * size, dtype=torch.bool), torch.zeros(count, size * size)
        solid = coverage > 0.5
        mask[image[solid], pixel[solid]] = True
        depth[image[solid], pixel[solid]] = t[solid]
        srgb = (canvas.clamp(0, 1) ** (1 / 2.2) * 255 + 0.5).to(torch.uint8)
        shape = (count, size, size)
        return Rendered(srgb.reshape(*shape, 3).numpy(), mask.reshape(shape).numpy(), depth.reshape(shape).numpy())


@torch.no_grad()
def render(factors: Sequence[Factors], size: int = 128) -> Rendered:
    """Render pictures of `factors`, in their order."""
    out = Rendered(
        np.zeros((len(factors), size, size, 3), np.uint8),
        np.zeros((len(factors), size, size), bool),
        np.zeros((len(factors), size, size), np.float32),
    )
    families: dict[str, list[int]] = {}
    for i, f in enumerate(factors):
        families.setdefault(f.shape.family, []).append(i)
    for members in families.values():
        for first in range(0, len(members), CHUNK):
            rows = members[first : first + CHUNK]
            part = _Family([factors[i] for i in rows], size).render()
            out.image[rows], out.mask[rows], out.depth[rows] = part.image, part.mask, part.depth
    return out
