"""Signed distances of the shape families.

Every family is `sdf(x, y, z, a, b, c, d) -> distance`, all arguments of one shape (points,), with `a..d` the
instance's parameters in 0..1: what each of them does has words in `escdiff.mini.world.words`. Objects are centred at
the origin, y points up, the radius is about 1. Distances may be lower bounds (the renderer steps carefully).
"""

import math
from collections.abc import Callable

import torch
from torch import Tensor

from escdiff.mini.world.geometry import primitives as solid
from escdiff.mini.world.geometry.primitives import extrude, length2, length3, mix


def _bore(lo, hi, t: Tensor) -> Tensor:
    """Radius of a hole; the lowest fifth of the parameter means that there is none."""
    return torch.where(t < 0.2, -1.0, mix(lo, hi, t))


def ball(x, y, z, a, b, c, d):
    height, width = mix(0.5, 0.98, a), mix(0.52, 0.98, b)
    k = 1 - 0.4 * c * (y / height).clamp(-1, 1)  # an egg: narrow above, wide below
    k = k / (1 + 0.2 * c)
    body = solid.ellipsoid(x / k, y, z / k, width, height, width)
    # Times the radius: ribs that met at the poles would be infinitely steep.
    ribs = torch.cos(8 * torch.atan2(x, z)) * length2(x, z) * 0.11 * d * d
    # Dividing by k and adding ribs stretches distances; the factor makes them bounds again, so that no step of the
    # tracer jumps through. All families that bend space end like this.
    return (body + ribs) * mix(0.85, 0.58, torch.maximum(c, d))


def cube(x, y, z, a, b, c, d):
    half = mix(0.36, 0.78, b)
    k = 1 - 0.32 * d * (y / half).clamp(-1, 1)
    width = mix(0.36, 0.66, a)
    return solid.box(x / k, y, z / k, width, half, width, mix(0.01, 0.3, c)) * mix(0.95, 0.64, d)


def cylinder(x, y, z, a, b, c, d):
    radius, half = mix(0.3, 0.66, a), mix(0.42, 0.95, b)
    # A parabola along the height: barrel or hourglass, unchanged at both ends.
    swell = 1 + mix(-0.4, 0.3, c) * (1 - (y / half).square()).clamp_min(0)
    hole = torch.maximum(length2(x, z) - _bore(radius * 0.2, radius * 0.76, d), half * 0.2 - y)
    body = solid.cylinder(x / swell, y, z / swell, radius, half)
    return torch.maximum(body * 0.72, -hole)


def cone(x, y, z, a, b, c, d):
    base, half, tip = mix(0.4, 0.84, a), mix(0.45, 0.88, b), mix(0.02, 0.36, c)
    h = ((y / half).clamp(-1, 1) + 1) / 2  # 0 at the foot, 1 at the tip
    radius = base + (tip - base) * h + mix(-0.3, 0.3, d) * 4 * h * (1 - h) * base
    # A bent side is steeper than the straight one, so the slope is taken larger.
    slope = (base - tip) / (2 * half) * 1.4 + 0.35
    side = (length2(x, z) - radius) / torch.sqrt(1 + slope * slope)
    return torch.maximum(side, y.abs() - half) - 0.02


def torus(x, y, z, a, b, c, d):
    # Lying back at an angle, so that the hole shows from any camera.
    s, k = math.sin(0.75), math.cos(0.75)
    y2, z2 = k * y - s * z, s * y + k * z
    y2 = y2 * mix(1.0, 1.7, c)
    tube = mix(0.1, 0.32, b)
    bumps = 1 + 0.34 * d * d * torch.cos(9 * torch.atan2(x, y2))
    return (length2(length2(x, y2) - mix(0.48, 0.76, a), z2) - tube * bumps) * mix(0.95, 0.6, torch.maximum(c, d))


def capsule(x, y, z, a, b, c, d):
    half, radius = mix(0.2, 0.62, b), mix(0.2, 0.42, a)
    x = x - 0.5 * c * (0.45 - y.square())
    along = (y / half).clamp(-1, 1)
    return (length3(x, (y.abs() - half).clamp_min(0), z) - radius * (1 - 0.5 * d * along)) * mix(0.9, 0.62, c)


def pyramid(x, y, z, a, b, c, d):
    half, base = mix(0.38, 0.76, b), mix(0.45, 0.78, a)
    slope = base / (2 * half)  # from nothing at the top to `base` at the bottom, over 2 * half
    depth = mix(0.5, 1.0, d)
    side = torch.maximum(x.abs(), z.abs() / depth) - (half - y) * slope
    side = side / torch.sqrt(1 + slope * slope) * depth
    return torch.maximum(side, torch.maximum(y - half * mix(1.0, 0.15, c), -y - half)) - 0.02


def star(x, y, z, a, b, c, d):
    points = torch.round(mix(3.51, 8.49, c))
    angle = torch.atan2(x, y)
    sector = 2 * math.pi / points
    # Half of one point stands for all of them: angles are folded onto it.
    folded = (torch.remainder(angle + sector / 2, sector) - sector / 2).abs()
    r = length2(x, y)
    px, py = r * torch.cos(folded), r * torch.sin(folded)
    outer, inner = 1.0, mix(0.3, 0.68, a)
    qx, qy = inner * torch.cos(sector / 2), inner * torch.sin(sector / 2)
    nx, ny = qy, outer - qx  # normal of the edge from the tip (outer, 0) to the notch (qx, qy)
    # Signed distance from the line through tip and notch.
    d2 = ((px - outer) * nx + py * ny) / length2(nx, ny)
    d2 = torch.maximum(d2, px - 0.97)  # beyond a sharp tip its two edges alone would seem near
    return torch.maximum(extrude(d2, z, mix(0.1, 0.42, b)), _bore(inner * 0.2, inner * 0.74, d) - r)


def heart(x, y, z, a, b, c, d):
    # Quilez' exact 2-D heart, 0..1.1 in height, moved and scaled to the unit radius.
    wide, tall = mix(1.05, 1.75, a), mix(1.15, 1.65, c)
    u, v = x.abs() / wide, (y + 0.55 * tall) / tall
    far = length2(u - 0.25, v - 0.75) - 0.3535534
    m = 0.5 * (u + v).clamp_min(0)
    near = torch.sqrt(torch.minimum(u * u + (v - 1) ** 2, (u - m) ** 2 + (v - m) ** 2) + 1e-9) * torch.sign(u - v)
    outline = torch.where(u + v > 1, far, near) * torch.minimum(wide, tall)
    hole = _bore(0.08, 0.36, d) - length2(x, y - 0.12 * tall)
    return torch.maximum(extrude(outline, z, mix(0.12, 0.46, b), 0.08), hole)


def mug(x, y, z, a, b, c, d):
    radius, half = mix(0.32, 0.62, a), mix(0.42, 0.86, b)
    k = 1 + mix(-0.32, 0.32, d) * (y / half).clamp(-1, 1)
    u, w = x / k, z / k
    body = solid.cylinder(u, y, w, radius, half) * 0.72
    hollow = solid.cylinder(u, y - 0.14, w, radius - 0.08, half) * 0.72
    size = mix(0.17, 0.5, c)
    handle = length2(length2(x - radius, y) - size, z) - mix(0.06, 0.11, c)
    return torch.maximum(torch.minimum(body, handle), -hollow)


def gear(x, y, z, a, b, c, d):
    teeth = torch.round(mix(5.51, 12.49, c))
    angle = torch.atan2(x, y)
    r = length2(x, y)
    depth = mix(0.05, 0.19, d)
    # A square wave whose flanks are steep, yet have a slope.
    wave = torch.tanh(2.6 * torch.cos(angle * teeth)) * depth
    d2 = (r - (0.78 + wave)) * mix(0.85, 0.5, d)
    return torch.maximum(extrude(d2, z, mix(0.1, 0.42, b)), mix(0.1, 0.52, a) - r)


def cross(x, y, z, a, b, c, d):
    thick, arm, rise = mix(0.1, 0.26, a), mix(0.5, 0.86, b), mix(0.5, 0.94, c)
    bars = torch.minimum(solid.box(x, y, z, arm, thick, thick), solid.box(x, y, z, thick, rise, thick))
    bars = torch.minimum(bars, solid.box(x, y, z, thick, thick, arm))
    knob = 0.06 + thick * mix(0.5, 1.35, d)
    u, v, w = x.abs(), y.abs(), z.abs()
    ends = torch.minimum(length3(u - arm + 0.12, v, w), length3(u, v, w - arm + 0.12))
    return torch.minimum(bars, torch.minimum(ends, length3(u, v - rise + 0.12, w)) - knob)


def chair(x, y, z, a, b, c, d):
    width, seat = mix(0.3, 0.64, a), mix(-0.5, 0.12, c)
    leg, back = mix(0.045, 0.15, d), mix(0.25, 0.85, b)
    depth = width * 0.5 + 0.22
    plate = solid.box(x, y - seat, z, width, 0.08, depth)
    legs = solid.box(
        x.abs() - (width - leg), y - (seat - 0.95) / 2, z.abs() - (depth - leg), leg, (0.95 + seat) / 2, leg
    )
    rest = solid.box(x, y - seat - back / 2, z + depth - 0.07, width, back / 2, 0.07)
    return torch.minimum(torch.minimum(plate, legs), rest)


def rocket(x, y, z, a, b, c, d):
    radius, half, nose = mix(0.16, 0.37, a), mix(0.26, 0.48, b), mix(0.1, 0.26, d)
    y = y + 0.13
    body = solid.cylinder(x, y, z, radius, half)
    cap = solid.frustum(x, y - half - nose + 0.03, z, radius, mix(0.14, 0.03, d), nose)
    fin = mix(0.08, 0.34, c)
    u = torch.maximum(x.abs(), z.abs())
    w = torch.minimum(x.abs(), z.abs())
    sloped = (u - radius) + (y + half - 0.05) * 0.8 - fin
    fins = torch.maximum(torch.maximum(sloped * 0.75, w - 0.06), torch.maximum(y + half - 0.1 - fin, -y - half - 0.25))
    return torch.minimum(torch.minimum(body, cap), fins)


def dog(x, y, z, a, b, c, d):
    span, girth, leg, skull = mix(0.3, 0.62, a), mix(0.15, 0.32, b), mix(0.3, 0.72, c), mix(0.13, 0.27, d)
    zero = torch.zeros_like(a)
    ground, lift = -0.9, zero - 0.9 + leg
    body = solid.capsule(x, y, z, (-span, lift, zero), (span, lift, zero), girth)
    hx, hy = span + 0.1, lift + 0.26 + skull
    neck = solid.capsule(x, y, z, (span, lift, zero), (hx, hy, zero), girth * 0.5 + 0.03)
    head = solid.capsule(x, y, z, (hx, hy, zero), (hx + 0.12 + skull * 0.6, hy - 0.06, zero), skull)
    side = zero + skull * 0.62
    ear = solid.capsule(x, y, z.abs(), (hx - 0.02, hy + skull * 0.6, side), (hx - 0.08, hy + skull * 1.9, side), 0.065)
    ends = (span - 0.03, zero + lift, zero + girth * 0.6), (span, zero + ground + 0.06, zero + girth * 0.6 + 0.02)
    legs = solid.capsule(x.abs(), y, z, ends[0], ends[1], 0.085)
    legs = torch.minimum(legs, solid.capsule(x.abs(), y, -z, ends[0], ends[1], 0.085))
    tail = solid.capsule(x, y, z, (-span - 0.08, lift + 0.08, zero), (-span - 0.3, lift + 0.4, zero), 0.06)
    # Only what grows out of the body is blended; head and ears keep their outline.
    trunk = solid.smooth_min(body, torch.minimum(neck, legs), 0.1)
    return torch.minimum(torch.minimum(trunk, head), torch.minimum(ear, tail))


def mushroom(x, y, z, a, b, c, d):
    cap, stem, foot, dome = mix(0.5, 0.98, a), mix(0.1, 0.36, b), mix(0.35, 0.9, c), mix(0.25, 0.85, d)
    y = y + (dome - foot) / 2
    crown = torch.maximum(solid.ellipsoid(x, y - 0.05, z, cap, dome, cap), -(y - 0.05)) - 0.03
    return torch.minimum(crown, solid.frustum(x, y + foot * 0.5, z, stem * 1.2, stem * 0.85, foot * 0.5 + 0.1))


def snowman(x, y, z, a, b, c, d):
    low, mid, top = mix(0.28, 0.49, a), mix(0.18, 0.35, b), mix(0.14, 0.27, c)
    hat = mix(0.03, 0.19, d)
    y0 = low - 1.02
    y1 = y0 + (low + mid) * 0.8
    y2 = y1 + (mid + top) * 0.82
    lower = torch.minimum(length3(x, y - y0, z) - low, length3(x, y - y1, z) - mid)
    brim = solid.cylinder(x, y - y2 - top * 0.75, z, top * 1.25, hat * 0 + 0.045, 0.02)
    crown = solid.cylinder(x, y - y2 - top * 0.75 - hat, z, top * 0.8, hat, 0.02)
    return torch.minimum(torch.minimum(lower, length3(x, y - y2, z) - top), torch.minimum(brim, crown))


def diamond(x, y, z, a, b, c, d):
    width, half, waist = mix(0.42, 0.92, a), mix(0.55, 1.05, b), mix(-0.42, 0.42, c)
    # Above and below the waist the sides have slopes of their own.
    rise = torch.where(y > waist * half, half * (1 - waist), half * (1 + waist))
    k = width / rise
    sides = (x.abs() + z.abs() + (y - waist * half).abs() * k - width) / torch.sqrt(2 + k * k)
    return torch.maximum(sides, y - half * (waist + (1 - waist) * mix(1.02, 0.35, d))) - 0.02


def house(x, y, z, a, b, c, d):
    width, wall, rise = mix(0.36, 0.74, a), mix(0.2, 0.52, b), mix(0.22, 0.88, d)
    depth = width * 0.4 + 0.28
    foot = -0.9 + (0.72 - wall) * 0.6 - (rise - 0.5) * 0.3
    body = solid.box(x, y - foot - wall, z, width, wall, depth)
    eaves = width + 0.12
    y0 = foot + 2 * wall - 0.03
    slope = rise / eaves
    roof = torch.maximum((y - y0 - rise + x.abs() * slope) / torch.sqrt(1 + slope * slope), y0 - y)
    roof = torch.maximum(roof, z.abs() - depth - 0.1)
    stack, girth = mix(0.05, 0.42, c), mix(0.06, 0.16, c)
    chimney = solid.box(x - width * 0.55, y - y0 - rise * 0.5 - stack * 0.5, z, girth, stack, girth)
    return torch.minimum(torch.minimum(body, roof), chimney)


def table(x, y, z, a, b, c, d):
    width, top, leg = mix(0.45, 0.92, a), mix(-0.55, 0.42, c), mix(0.045, 0.15, d)
    depth = width * 0.3 + 0.36
    corner = depth * mix(0.05, 0.99, b)
    # A rectangle whose corners are quarter circles.
    d2 = length2((x.abs() - width + corner).clamp_min(0), (z.abs() - depth + corner).clamp_min(0)) - corner
    plate = extrude(d2, y - top, 0.085, 0.03)
    span = (top + 0.9) / 2
    inset = leg + corner * 0.3
    legs = solid.box(x.abs() - (width - inset), y - (top - 0.9) / 2, z.abs() - (depth - inset), leg, span, leg)
    return torch.minimum(plate, legs)


SDF: dict[str, Callable[..., Tensor]] = {
    f.__name__: f
    for f in (
        ball, cube, cylinder, cone, torus, capsule, pyramid, star, heart, mug,
        gear, cross, chair, rocket, dog, mushroom, snowman, diamond, house, table,
    )
}  # fmt: skip
