"""Signed distances of the parts that shapes are built from, after Quilez, "Distance functions".

Arguments are tensors of one shape (points,), or numbers; y points up.
"""

import torch
from torch import Tensor


def mix(lo: float, hi: float, t: Tensor) -> Tensor:
    """From `lo` at t = 0 to `hi` at t = 1."""
    return lo + (hi - lo) * t


def length2(x: Tensor, y: Tensor) -> Tensor:
    """Euclidean length, with a gradient at zero."""
    return torch.sqrt(x * x + y * y + 1e-9)


def length3(x: Tensor, y: Tensor, z: Tensor) -> Tensor:
    """Euclidean length, with a gradient at zero."""
    return torch.sqrt(x * x + y * y + z * z + 1e-9)


def box(x, y, z, hx, hy, hz, r=0.04) -> Tensor:
    """A box of half sides `hx, hy, hz` with edges rounded by `r`."""
    qx, qy, qz = x.abs() - (hx - r), y.abs() - (hy - r), z.abs() - (hz - r)
    # Outside, the nearest face, edge or corner; inside all three are negative, and the nearest face counts.
    outside = length3(qx.clamp_min(0), qy.clamp_min(0), qz.clamp_min(0))
    return outside + torch.maximum(torch.maximum(qx, qy), qz).clamp_max(0) - r


def cylinder(x, y, z, radius, half, r=0.04) -> Tensor:
    """A cylinder along y of half height `half`."""
    qx, qy = length2(x, z) - (radius - r), y.abs() - (half - r)
    return length2(qx.clamp_min(0), qy.clamp_min(0)) + torch.maximum(qx, qy).clamp_max(0) - r


def frustum(x, y, z, low, high, half, r=0.03) -> Tensor:
    """A cone frustum along y with radius `low` at -half and `high` at +half."""
    slope = (low - high) / (2 * half)
    radius = (low + high) / 2 - slope * y
    # Across the slanted side, which is shorter than the level way.
    side = (length2(x, z) - radius) / (1 + slope * slope) ** 0.5
    qx, qy = side + r, y.abs() - (half - r)
    return length2(qx.clamp_min(0), qy.clamp_min(0)) + torch.maximum(qx, qy).clamp_max(0) - r


def capsule(x, y, z, p, q, radius) -> Tensor:
    """The segment from p to q (triples), inflated by `radius`."""
    bx, by, bz = q[0] - p[0], q[1] - p[1], q[2] - p[2]
    ax, ay, az = x - p[0], y - p[1], z - p[2]
    # The point's foot on the segment, as a share of its length.
    h = ((ax * bx + ay * by + az * bz) / (bx * bx + by * by + bz * bz)).clamp(0, 1)
    return length3(ax - bx * h, ay - by * h, az - bz * h) - radius


def ellipsoid(x, y, z, rx, ry, rz) -> Tensor:
    """Approximate distance to an ellipsoid of radii rx, ry, rz around the origin."""
    # To first order, value over gradient: exact on the surface, and no bound far from it.
    k0 = length3(x / rx, y / ry, z / rz)
    k1 = length3(x / (rx * rx), y / (ry * ry), z / (rz * rz))
    return k0 * (k0 - 1) / k1


def ring(x, y, z, radius, tube) -> Tensor:
    """A torus around the y axis."""
    # Distance from the circle in the middle of the tube.
    return length2(length2(x, z) - radius, y) - tube


def extrude(d2: Tensor, z: Tensor, half, r=0.04) -> Tensor:
    """A flat outline of distance `d2`, `half` deep to both sides."""
    qx, qz = d2 + r, z.abs() - (half - r)
    return length2(qx.clamp_min(0), qz.clamp_min(0)) + torch.maximum(qx, qz).clamp_max(0) - r


def smooth_min(d1: Tensor, d2: Tensor, k: float) -> Tensor:
    """Union whose seams are rounded over about `k`."""
    # Quilez' quadratic form: a seam as wide as `k`, nothing changed beyond.
    h = (k - (d1 - d2).abs()).clamp_min(0) / k
    return torch.minimum(d1, d2) - h * h * k * 0.25
