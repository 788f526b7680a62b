"""Signed distances of the shape families.

Every family is `sdf(x, y, z, a, b, c, d) -> distance`, all arguments of one shape (points,), with `a..d` the
instance's parameters in 0..1. Objects are centred at the origin, y points up, the radius is about 1.
Distances may be lower bounds (the renderer steps carefully); primitives after Quilez, "Distance functions".
"""

import math
from collections.abc import Callable

import torch
from torch import Tensor


def _mix(lo: float, hi: float, t: Tensor) -> Tensor:
    return lo + (hi - lo) * t


def _len2(x: Tensor, y: Tensor) -> Tensor:
    return torch.sqrt(x * x + y * y + 1e-9)


def _len3(x: Tensor, y: Tensor, z: Tensor) -> Tensor:
    return torch.sqrt(x * x + y * y + z * z + 1e-9)


def _box(x, y, z, hx, hy, hz, r=0.04) -> Tensor:
    qx, qy, qz = x.abs() - (hx - r), y.abs() - (hy - r), z.abs() - (hz - r)
    outside = _len3(qx.clamp_min(0), qy.clamp_min(0), qz.clamp_min(0))
    return outside + torch.maximum(torch.maximum(qx, qy), qz).clamp_max(0) - r


def _cylinder(x, y, z, radius, half, r=0.04) -> Tensor:
    qx, qy = _len2(x, z) - (radius - r), y.abs() - (half - r)
    return _len2(qx.clamp_min(0), qy.clamp_min(0)) + torch.maximum(qx, qy).clamp_max(0) - r


def _capped_cone(x, y, z, low, high, half, r=0.03) -> Tensor:
    """A cone frustum along y with radius `low` at -half and `high` at +half."""
    slope = (low - high) / (2 * half)
    radius = (low + high) / 2 - slope * y
    side = (_len2(x, z) - radius) / torch.sqrt(1 + slope * slope)
    qx, qy = side + r, y.abs() - (half - r)
    return _len2(qx.clamp_min(0), qy.clamp_min(0)) + torch.maximum(qx, qy).clamp_max(0) - r


def _capsule(x, y, z, p, q, radius) -> Tensor:
    """A segment from p to q (triples of numbers or tensors), inflated by `radius`."""
    bx, by, bz = q[0] - p[0], q[1] - p[1], q[2] - p[2]
    ax, ay, az = x - p[0], y - p[1], z - p[2]
    h = ((ax * bx + ay * by + az * bz) / (bx * bx + by * by + bz * bz)).clamp(0, 1)
    return _len3(ax - bx * h, ay - by * h, az - bz * h) - radius


def _ellipsoid(x, y, z, rx, ry, rz) -> Tensor:
    k0 = _len3(x / rx, y / ry, z / rz)
    k1 = _len3(x / (rx * rx), y / (ry * ry), z / (rz * rz))
    return k0 * (k0 - 1) / k1


def _smooth_min(d1: Tensor, d2: Tensor, k: float) -> Tensor:
    h = (k - (d1 - d2).abs()).clamp_min(0) / k
    return torch.minimum(d1, d2) - h * h * k * 0.25


def _extrude(d2: Tensor, z: Tensor, half, r=0.04) -> Tensor:
    qx, qz = d2 + r, z.abs() - (half - r)
    return _len2(qx.clamp_min(0), qz.clamp_min(0)) + torch.maximum(qx, qz).clamp_max(0) - r


def ball(x, y, z, a, b, c, d):
    return _ellipsoid(x, y, z, _mix(0.72, 0.98, a), _mix(0.72, 0.98, b), _mix(0.72, 0.98, a))


def cube(x, y, z, a, b, c, d):
    return _box(x, y, z, _mix(0.52, 0.75, a), _mix(0.52, 0.75, b), _mix(0.52, 0.75, a), _mix(0.02, 0.14, c))


def cylinder(x, y, z, a, b, c, d):
    return _cylinder(x, y, z, _mix(0.42, 0.66, a), _mix(0.68, 0.95, b), _mix(0.02, 0.1, c))


def cone(x, y, z, a, b, c, d):
    return _capped_cone(x, y, z, _mix(0.58, 0.8, a), _mix(0.04, 0.14, c), _mix(0.72, 0.9, b))


def torus(x, y, z, a, b, c, d):
    # Lying back at an angle, so that the hole shows from any camera.
    s, k = math.sin(0.75), math.cos(0.75)
    y2, z2 = k * y - s * z, s * y + k * z
    return _len2(_len2(x, y2 * _mix(1.0, 1.25, c)) - _mix(0.6, 0.72, a), z2) - _mix(0.18, 0.31, b)


def capsule(x, y, z, a, b, c, d):
    half, radius = _mix(0.4, 0.58, b), _mix(0.3, 0.46, a)
    return _len3(x, (y.abs() - half).clamp_min(0), z) - radius


def pyramid(x, y, z, a, b, c, d):
    half, base = _mix(0.6, 0.8, b), _mix(0.56, 0.68, a)
    slope = base / half  # from nothing at the top to `base` at the bottom, over 2 * half
    side = torch.maximum(x.abs(), z.abs()) - (half - y) * slope * 0.5
    return torch.maximum(side / torch.sqrt(1 + slope * slope * 0.25), y.abs() - half) - 0.02


def star(x, y, z, a, b, c, d):
    points = torch.round(_mix(4.51, 6.49, c))
    angle = torch.atan2(x, y)
    sector = 2 * math.pi / points
    folded = (torch.remainder(angle + sector / 2, sector) - sector / 2).abs()
    r = _len2(x, y)
    px, py = r * torch.cos(folded), r * torch.sin(folded)
    outer, inner = 1.0, _mix(0.42, 0.6, a)
    qx, qy = inner * torch.cos(sector / 2), inner * torch.sin(sector / 2)
    nx, ny = qy, outer - qx  # normal of the edge from the tip (outer, 0) to the notch (qx, qy)
    d2 = ((px - outer) * nx + py * ny) / _len2(nx, ny)
    return _extrude(d2, z, _mix(0.18, 0.36, b))


def heart(x, y, z, a, b, c, d):
    # Quilez' exact 2-D heart, 0..1.1 in height, moved and scaled to the unit radius.
    scale = _mix(1.35, 1.6, a)
    u, v = x.abs() / scale, (y + 0.9) / scale
    far = _len2(u - 0.25, v - 0.75) - 0.3535534
    m = 0.5 * (u + v).clamp_min(0)
    near = torch.sqrt(torch.minimum(u * u + (v - 1) ** 2, (u - m) ** 2 + (v - m) ** 2) + 1e-9) * torch.sign(u - v)
    return _extrude(torch.where(u + v > 1, far, near) * scale, z, _mix(0.22, 0.42, b), 0.1)


def mug(x, y, z, a, b, c, d):
    radius, half = _mix(0.46, 0.62, a), _mix(0.55, 0.8, b)
    body = _cylinder(x, y, z, radius, half)
    hollow = _cylinder(x, y - 0.14, z, radius - 0.09, half)
    size = _mix(0.26, 0.4, c)
    handle = _len2(_len2(x - radius, y) - size, z) - _mix(0.07, 0.12, d)
    return torch.maximum(torch.minimum(body, handle), -hollow)


def gear(x, y, z, a, b, c, d):
    teeth = torch.round(_mix(5.51, 9.49, c))
    angle = torch.atan2(x, y)
    r = _len2(x, y)
    wave = torch.tanh(2.6 * torch.cos(angle * teeth)) * _mix(0.1, 0.15, d)
    d2 = (r - (0.8 + wave)) * 0.72
    return torch.maximum(_extrude(d2, z, _mix(0.18, 0.32, b)), _mix(0.22, 0.42, a) - r)


def cross(x, y, z, a, b, c, d):
    arm, thick = _mix(0.78, 0.95, b), _mix(0.2, 0.32, a)
    bars = torch.minimum(_box(x, y, z, arm, thick, thick), _box(x, y, z, thick, arm, thick))
    return torch.minimum(bars, _box(x, y, z, thick, thick, arm))


def chair(x, y, z, a, b, c, d):
    width, seat = _mix(0.42, 0.56, a), _mix(-0.15, 0.05, c)
    leg, top = _mix(0.06, 0.11, d), _mix(0.75, 0.98, b)
    depth = width * 0.9
    plate = _box(x, y - seat, z, width, 0.08, depth)
    legs = _box(x.abs() - (width - leg), y - (seat - 0.9) / 2, z.abs() - (depth - leg), leg, (0.9 + seat) / 2, leg)
    back = _box(x, y - (seat + top) / 2, z + depth - 0.07, width, (top - seat) / 2, 0.07)
    return torch.minimum(torch.minimum(plate, legs), back)


def rocket(x, y, z, a, b, c, d):
    radius, half = _mix(0.26, 0.38, a), _mix(0.45, 0.6, b)
    body = _cylinder(x, y + 0.1, z, radius, half)
    nose = _capped_cone(x, y - (half + 0.1), z, radius, radius * 0 + 0.05, radius * 0 + 0.26)
    fin = _mix(0.22, 0.36, c)
    u = torch.maximum(x.abs(), z.abs())
    w = torch.minimum(x.abs(), z.abs())
    sloped = (u - radius) + (y + half + 0.1 - 0.15) * 0.6 - fin
    fins = torch.maximum(torch.maximum(sloped * 0.8, w - 0.07), torch.maximum(y + half - 0.3, -y - half - 0.3))
    return torch.minimum(torch.minimum(body, nose), fins)


def dog(x, y, z, a, b, c, d):
    length, girth, leg = _mix(0.42, 0.58, a), _mix(0.2, 0.3, b), _mix(0.4, 0.6, c)
    zero = torch.zeros_like(a)
    ground, lift = -0.85, zero - 0.85 + leg
    body = _capsule(x, y, z, (-length, lift, zero), (length, lift, zero), girth)
    neck = _capsule(x, y, z, (length, lift, zero), (length + 0.16, lift + 0.42, zero), girth * 0.62)
    head = _capsule(x, y, z, (length + 0.12, lift + 0.5, zero), (length + 0.4, lift + 0.42, zero), girth * 0.68)
    ear = _capsule(x, y, z.abs(), (length + 0.06, lift + 0.6, zero + 0.13), (length, lift + 0.86, zero + 0.17), 0.07)
    ends = (length - 0.05, zero + lift, zero + 0.16), (length, zero + ground + 0.06, zero + 0.18)
    legs = _capsule(x.abs(), y, z.abs(), *ends, 0.095)
    rise = _mix(0.3, 0.6, d)
    tail = _capsule(x, y, z, (-length - 0.1, lift + 0.1, zero), (-length - 0.38, lift + rise, zero), 0.065)
    trunk = _smooth_min(body, torch.minimum(neck, legs), 0.12)
    return torch.minimum(torch.minimum(trunk, head), torch.minimum(ear, tail))


def mushroom(x, y, z, a, b, c, d):
    cap, stem, foot = _mix(0.66, 0.92, a), _mix(0.18, 0.3, b), _mix(0.5, 0.75, c)
    dome = torch.maximum(_ellipsoid(x, y - 0.05, z, cap, _mix(0.55, 0.8, d), cap), -(y - 0.05)) - 0.03
    return torch.minimum(dome, _capped_cone(x, y + foot * 0.5, z, stem * 1.15, stem * 0.85, foot * 0.5 + 0.1))


def snowman(x, y, z, a, b, c, d):
    low, mid, top = _mix(0.42, 0.51, a), _mix(0.3, 0.38, b), _mix(0.21, 0.28, c)
    y0 = low - 0.98
    y1 = y0 + (low + mid) * 0.82
    y2 = y1 + (mid + top) * 0.85
    lower = torch.minimum(_len3(x, y - y0, z) - low, _len3(x, y - y1, z) - mid)
    return torch.minimum(lower, _len3(x, y - y2, z) - top)


def diamond(x, y, z, a, b, c, d):
    width, half = _mix(0.62, 0.85, a), _mix(0.82, 1.0, b)
    k = width / half
    return (x.abs() + z.abs() + y.abs() * k - width) / torch.sqrt(2 + k * k) - 0.02


def house(x, y, z, a, b, c, d):
    width, wall, depth = _mix(0.5, 0.68, a), _mix(0.36, 0.5, b), _mix(0.42, 0.6, c)
    body = _box(x, y + 0.85 - wall, z, width, wall, depth)
    eaves, rise = width + 0.14, _mix(0.5, 0.75, d)
    y0 = 2 * wall - 0.87
    slope = rise / eaves
    roof = torch.maximum((y - y0 - rise + x.abs() * slope) / torch.sqrt(1 + slope * slope), y0 - y)
    roof = torch.maximum(roof, z.abs() - depth - 0.1)
    chimney = _box(x - width * 0.55, y - y0 - rise * 0.62, z, width * 0 + 0.1, rise * 0.42, width * 0 + 0.1)
    return torch.minimum(torch.minimum(body, roof), chimney)


def table(x, y, z, a, b, c, d):
    width, depth, top = _mix(0.64, 0.82, a), _mix(0.45, 0.62, b), _mix(0.1, 0.35, c)
    leg = _mix(0.07, 0.13, d)
    plate = _box(x, y - top, z, width, 0.09, depth)
    span = (top + 0.85) / 2
    legs = _box(x.abs() - (width - leg - 0.06), y - (top - 0.85) / 2, z.abs() - (depth - leg - 0.06), leg, span, leg)
    return torch.minimum(plate, legs)


SDF: dict[str, Callable[..., Tensor]] = {
    f.__name__: f
    for f in (
        ball, cube, cylinder, cone, torus, capsule, pyramid, star, heart, mug,
        gear, cross, chair, rocket, dog, mushroom, snowman, diamond, house, table,
    )
}  # fmt: skip
