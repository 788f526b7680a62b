"""Pattern families: where on an object the second colour shows.

`weight(pattern, p, n, scale, angle, seed)` gives the share of the second colour (points,) in 0..1 at object
points `p` (points, 3) with object normals `n`. Edges are softened over about a pixel against aliasing.
"""

import math

import torch
from torch import Tensor

from escdiff.mini.world.geometry import nameless

SOFT = 0.035  # object units; a pixel at 128 px is about 0.03


def _edge(distance: Tensor) -> Tensor:
    # A sigmoid rises from 5 to 95 % over 5.9 units, here over about 2 `SOFT`.
    return torch.sigmoid(distance / (SOFT * 0.35))


def _square_wave(u: Tensor, period: Tensor) -> Tensor:
    """1 in every second half period; the sine's slope turns the edge into a distance."""
    phase = u * (2 * math.pi) / period
    return _edge(torch.sin(phase) * period / (2 * math.pi))


def _box_map(p: Tensor, n: Tensor, c: Tensor, s: Tensor) -> tuple[Tensor, Tensor]:
    """Plane coordinates (u, v) on the face of a cube that the normal points to, turned by (cos, sin)."""
    x, y, z = p.unbind(-1)
    # A slight order of preference: where two axes tie (the diamond's faces), rounding must not decide per pixel.
    axis = (n.abs() * torch.tensor([1.0, 0.98, 0.95])).argmax(-1)
    u = torch.where(axis == 0, -z, x)  # seen from the right, z runs to the left: a slant keeps its side
    v = torch.where(axis == 1, z, y)
    return c * u + s * v, c * v - s * u


def _noise(p: Tensor, seed: Tensor) -> Tensor:
    """Smooth noise in about -1..1 (points,): a sum of sines along directions drawn from the seed."""
    total = torch.zeros_like(p[:, 0])
    for i in range(5):
        # Steps of the golden angle, 2.39996, spread the directions evenly.
        k = torch.remainder(seed * 0.61803, 2 * math.pi) + i * 2.39996
        direction = torch.stack([torch.sin(k), torch.cos(k * 1.7 + i), torch.sin(k * 2.3 + 1.0)], -1)
        direction = direction / direction.norm(dim=-1, keepdim=True).clamp_min(0.3)
        total = total + torch.sin((p * direction).sum(-1) * (3.2 + 0.8 * i) + k * 5.0)
    # Five sines of variance 1/2 have a standard deviation of 1.6: most of the sum lies within 2.5.
    return total / 2.5


def weight(pattern: str, p: Tensor, n: Tensor, scale: Tensor, angle: Tensor, seed: Tensor) -> Tensor:
    """Weight (0..1) of the second colour at points `p` with normals `n` (..., 3)."""
    x, y, z = p.unbind(-1)
    c, s = torch.cos(angle), torch.sin(angle)
    across, along = c * x + s * y, c * y - s * x
    if pattern == "plain":
        return torch.zeros_like(x)
    if pattern == "striped":  # upright bands
        return _square_wave(across + 0.35 * z, scale * 0.8)
    if pattern == "ringed":  # level bands
        return _square_wave(along, scale * 0.8)
    if pattern == "checkered":
        # Moved off 0, where symmetric shapes have their seams and rounding would choose the colour.
        u, v = _box_map(p + 0.013, n, c, s)
        a, b = _square_wave(u, scale), _square_wave(v, scale)
        # The soft form of exclusive or.
        return a + b - 2 * a * b
    if pattern == "dotted":
        u, v = _box_map(p, n, c, s)
        pitch = scale * 0.75
        # Every other row is moved by half a pitch, so that dots do not line up in columns.
        row = torch.floor(v / pitch)
        u = u + torch.remainder(row, 2) * pitch * 0.5
        du = torch.remainder(u, pitch) - pitch / 2
        dv = torch.remainder(v, pitch) - pitch / 2
        return _edge(pitch * 0.3 - torch.sqrt(du * du + dv * dv + 1e-9))
    if pattern == "zigzag":
        u, v = _box_map(p, n, c, s)
        tooth = (torch.remainder(u, scale) / scale - 0.5).abs() * scale * 1.3
        return _square_wave(v + tooth, scale * 0.85)
    if pattern == "wavy":
        return _square_wave(along + 0.14 * torch.sin((across + z) * 7.0), scale * 0.85)
    if pattern == "speckled":
        return _edge((_noise(p * 2.6 / scale.clamp_min(0.3)[:, None], seed) - 0.45) * 0.12)
    if pattern == "marbled":
        # Perlin's marble (1985): a sine whose phase is bent by noise.
        vein = torch.sin((across * 2.4 + 0.4) / scale + 2.4 * _noise(p * 0.7 / scale[:, None], seed))
        return (1 - vein.abs() * 1.5).clamp(0, 1)
    if pattern == "gradient":
        return torch.sigmoid(-along * 2.4 / (scale + 0.1))
    raise ValueError(f"unknown pattern {pattern!r}; known patterns are in escdiff.mini.world.world.PATTERNS")


def textured(seed: int, p: Tensor, first: Tensor, second: Tensor) -> Tensor:
    """sRGB colour (N, 3) at object points (N, 3) of the nameless texture of a seed: two colours (3,) and its own."""
    texture = nameless.texture(seed)
    for color, share in zip((second, torch.tensor(texture.rgb3)), texture(p), strict=True):
        first = first + (color - first) * share[:, None]
    return first
