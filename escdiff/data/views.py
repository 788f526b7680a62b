"""Views of one picture that destroy one attribute and keep the other.

With real photos there is one picture per object, and reconstructing it from itself teaches copying. So the
shape reference is a view whose colours are wrong, the appearance reference one whose arrangement is wrong.

All functions take pixels (3, H, W) in [-1, 1], keep that size and draw from the numpy generator given.
"""

import math

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor


def shape_view(pixels: Tensor, rng: np.random.Generator) -> Tensor:
    """Same outline and parts, other colours and place: for the shape filter."""
    return reframe(recolor(pixels, rng), rng)


def appearance_view(pixels: Tensor, rng: np.random.Generator, mask: Tensor | None = None) -> Tensor:
    """Same colours and texture, no outline: for the appearance filter. `mask` (1, H, W), 1 on the object."""
    if rng.random() < 0.5:
        return patch_shuffle(pixels, rng, mask)
    return warp(patch_shuffle(pixels, rng, mask, grid=3), rng)


def recolor(pixels: Tensor, rng: np.random.Generator) -> Tensor:
    """Turn the colours by a random rotation about grey, then invert, drain or bend them."""
    angle = float(rng.uniform(0.25, 0.75)) * 2 * math.pi
    out = torch.einsum("ij,jhw->ihw", _hue_rotation(angle), pixels)
    if rng.random() < 0.3:
        out = -out
    saturation = float(rng.choice([0.0, 0.5, 1.0, 1.5], p=[0.2, 0.2, 0.4, 0.2]))
    grey = out.mean(0, keepdim=True)
    out = grey + (out - grey) * saturation
    gamma = float(np.exp(rng.uniform(-0.6, 0.6)))
    return out.clamp(-1, 1).add(1).div(2).pow(gamma).mul(2).sub(1)


def reframe(pixels: Tensor, rng: np.random.Generator) -> Tensor:
    """Mirror, zoom, tilt and shift a little; what comes in at the rim is mirrored."""
    zoom = float(rng.uniform(0.8, 1.15))
    tilt = float(rng.uniform(-0.2, 0.2))
    sign = -1.0 if rng.random() < 0.5 else 1.0
    c, s = math.cos(tilt) * zoom, math.sin(tilt) * zoom
    dx, dy = (float(v) for v in rng.uniform(-0.15, 0.15, 2))
    theta = torch.tensor([[[sign * c, -s, dx], [sign * s, c, dy]]], dtype=pixels.dtype)
    grid = F.affine_grid(theta, [1, *pixels.shape], align_corners=False)
    return _sample(pixels, grid)


def warp(pixels: Tensor, rng: np.random.Generator, strength: float = 0.2) -> Tensor:
    """Bend the picture by a smooth random displacement of up to about `strength` half-widths."""
    coarse = torch.from_numpy(rng.uniform(-1, 1, (1, 2, 4, 4)).astype(np.float32))
    flow = F.interpolate(coarse, pixels.shape[1:], mode="bicubic", align_corners=True) * strength
    identity = torch.eye(2, 3, dtype=pixels.dtype)[None]
    grid = F.affine_grid(identity, [1, *pixels.shape], align_corners=False)
    return _sample(pixels, grid + flow.permute(0, 2, 3, 1).to(pixels.dtype))


def patch_shuffle(pixels: Tensor, rng: np.random.Generator, mask: Tensor | None = None, grid: int = 4) -> Tensor:
    """Crop to the object, cut into grid x grid patches, and lay them in random order, turned at random.

    With a mask only patches that lie mostly on the object are laid, some of them more than once.
    """
    height, width = pixels.shape[1:]
    side = grid * math.ceil(max(height, width) / grid)
    top, bottom, left, right = box(mask, height, width)
    crop = F.interpolate(pixels[None, :, top:bottom, left:right], (side, side), mode="bilinear")[0]
    patches = _patches(crop, grid)
    choice = np.arange(grid * grid)
    if mask is not None and mask.any():
        inside = F.interpolate(mask[None, :, top:bottom, left:right].float(), (side, side), mode="area")[0]
        share = _patches(inside, grid).mean((1, 2, 3)).numpy()
        good = np.flatnonzero(share > min(0.6, float(share.max()) * 0.99))
        choice = rng.permutation(np.resize(rng.permutation(good), grid * grid))
    else:
        choice = rng.permutation(choice)
    turned = [torch.rot90(patches[i], int(rng.integers(4)), (1, 2)) for i in choice]
    rows = [torch.cat(turned[r * grid : (r + 1) * grid], 2) for r in range(grid)]
    return F.interpolate(torch.cat(rows, 1)[None], (height, width), mode="bilinear")[0].clamp(-1, 1)


def box(mask: Tensor | None, height: int, width: int) -> tuple[int, int, int, int]:
    """Top, bottom, left, right of the mask's object; the middle 3/4 where there is no mask."""
    if mask is None or not mask.any():
        return height // 8, height - height // 8, width // 8, width - width // 8
    rows, columns = (mask[0] > 0.5).any(1).nonzero(), (mask[0] > 0.5).any(0).nonzero()
    return int(rows[0]), int(rows[-1]) + 1, int(columns[0]), int(columns[-1]) + 1


def _patches(image: Tensor, grid: int) -> Tensor:
    """(C, S, S) -> (grid*grid, C, S/grid, S/grid), row by row."""
    channels, side = image.shape[0], image.shape[1] // grid
    cut = image.reshape(channels, grid, side, grid, side)
    return cut.permute(1, 3, 0, 2, 4).reshape(grid * grid, channels, side, side)


def _sample(pixels: Tensor, grid: Tensor) -> Tensor:
    return F.grid_sample(pixels[None], grid, padding_mode="reflection", align_corners=False)[0].clamp(-1, 1)


def _hue_rotation(angle: float) -> Tensor:
    """Rotation of RGB about the grey axis (Rodrigues' formula)."""
    c, s, k = math.cos(angle), math.sin(angle), 1 / math.sqrt(3)
    axis = torch.full((3, 3), (1 - c) / 3)
    cross = torch.tensor([[0, -k, k], [k, 0, -k], [-k, k, 0]]) * s
    return c * torch.eye(3) + axis + cross
