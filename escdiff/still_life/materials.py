"""Pattern families: where on an object the second colour shows.

`weight(pattern, p, n, scale, angle, seed)` gives the share of the second colour (points,) in 0..1 at object
points `p` (points, 3) with object normals `n`. Edges are softened over about a pixel against aliasing.
"""

import math

import torch
from torch import Tensor

SOFT = 0.035  # object units; a pixel at 128 px is about 0.03


def _edge(distance: Tensor) -> Tensor:
    return torch.sigmoid(distance / (SOFT * 0.35))


def _square_wave(u: Tensor, period: Tensor) -> Tensor:
    """1 in every second half period; the sine's slope turns the edge into a distance."""
    phase = u * (2 * math.pi) / period
    return _edge(torch.sin(phase) * period / (2 * math.pi))


def _box_map(p: Tensor, n: Tensor) -> tuple[Tensor, Tensor]:
    """Plane coordinates (u, v) on the face of a cube that the normal points to."""
    x, y, z = p.unbind(-1)
    # A slight order of preference: where two axes tie (the diamond's faces), rounding must not decide per pixel.
    axis = (n.abs() * torch.tensor([1.0, 0.98, 0.95])).argmax(-1)
    u = torch.where(axis == 0, z, x)
    v = torch.where(axis == 1, z, y)
    return u, v


def _noise(p: Tensor, seed: Tensor) -> Tensor:
    """Smooth noise in about -1..1 (points,): a sum of sines along directions drawn from the seed."""
    total = torch.zeros_like(p[:, 0])
    for i in range(5):
        k = torch.remainder(seed * 0.61803, 2 * math.pi) + i * 2.39996
        direction = torch.stack([torch.sin(k), torch.cos(k * 1.7 + i), torch.sin(k * 2.3 + 1.0)], -1)
        direction = direction / direction.norm(dim=-1, keepdim=True).clamp_min(0.3)
        total = total + torch.sin((p * direction).sum(-1) * (3.2 + 0.8 * i) + k * 5.0)
    return total / 2.5


def weight(pattern: str, p: Tensor, n: Tensor, scale: Tensor, angle: Tensor, seed: Tensor) -> Tensor:
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
        u, v = _box_map(p + 0.013, n)
        a, b = _square_wave(u, scale), _square_wave(v, scale)
        return a + b - 2 * a * b
    if pattern == "dotted":
        u, v = _box_map(p, n)
        pitch = scale * 0.75
        row = torch.floor(v / pitch)
        u = u + torch.remainder(row, 2) * pitch * 0.5
        du = torch.remainder(u, pitch) - pitch / 2
        dv = torch.remainder(v, pitch) - pitch / 2
        return _edge(pitch * 0.3 - torch.sqrt(du * du + dv * dv + 1e-9))
    if pattern == "zigzag":
        u, v = _box_map(p, n)
        tooth = (torch.remainder(u, scale) / scale - 0.5).abs() * scale * 1.3
        return _square_wave(v + tooth, scale * 0.85)
    if pattern == "wavy":
        return _square_wave(along + 0.14 * torch.sin((across + z) * 7.0), scale * 0.85)
    if pattern == "speckled":
        return _edge((_noise(p * 2.6 / scale.clamp_min(0.3)[:, None], seed) - 0.45) * 0.12)
    if pattern == "marbled":
        vein = torch.sin(across * 3.2 / scale + 2.4 * _noise(p * 1.3, seed))
        return (1 - vein.abs() * 1.5).clamp(0, 1)
    if pattern == "gradient":
        return torch.sigmoid(-(y + 0.3 * s) * 3.5)
    raise ValueError(f"unknown pattern {pattern!r}; known patterns are in escdiff.still_life.world.PATTERNS")
