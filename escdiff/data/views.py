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


def shape_view(pixels: Tensor, mask: Tensor, rng: np.random.Generator) -> tuple[Tensor, Tensor]:
    """Same outline and parts, other colours and place, and the object's mask there: for the shape filter."""
    return reframe_both(recolor(pixels, rng), mask, rng)


def appearance_view(pixels: Tensor, rng: np.random.Generator, mask: Tensor | None = None) -> Tensor:
    """Same colours and texture, no outline: for the appearance filter. `mask` (1, H, W), 1 on the object."""
    if rng.random() < 0.5:
        return patch_shuffle(pixels, rng, mask)
    return warp(patch_shuffle(pixels, rng, mask, grid=3), rng)


def recolor(pixels: Tensor, rng: np.random.Generator) -> Tensor:
    """Turn the colours by a random rotation about grey, then invert, drain or bend them."""
    # At least a quarter turn: after a smaller one red may still be called red.
    turn = float(rng.uniform(0.25, 0.75))
    sign = -1.0 if rng.random() < 0.3 else 1.0
    # Inverting turns the hue by a half, which would undo the rotation.
    mix = _hue_rotation((turn if sign > 0 else turn + 0.5) * 2 * math.pi)
    saturation = float(rng.choice([0.0, 0.5, 1.0, 1.5], p=[0.2, 0.2, 0.4, 0.2]))
    mix = sign * (saturation * mix + (1 - saturation) * mix.mean(0))  # of each pixel and its grey
    gamma = float(np.exp(rng.uniform(-0.6, 0.6)))
    out = (mix.to(pixels.dtype) @ pixels.flatten(1)).view_as(pixels)
    return out.clamp_(-1, 1).add_(1).div_(2).pow_(gamma).mul_(2).sub_(1)


def reframe(pixels: Tensor, rng: np.random.Generator, mirror: bool = True) -> Tensor:
    """Mirror (half of the time), zoom, tilt and shift a little; what comes in at the rim is mirrored."""
    zoom = float(rng.uniform(0.8, 1.15))
    tilt = float(rng.uniform(-0.2, 0.2))
    sign = -1.0 if rng.random() < 0.5 and mirror else 1.0
    # The matrix maps places of the view to places of the picture, so a zoom above 1 shows more of it.
    c, s = math.cos(tilt) * zoom, math.sin(tilt) * zoom
    dx, dy = (float(v) for v in rng.uniform(-0.15, 0.15, 2))
    y, x = _places(pixels)
    return _sample(pixels, torch.stack([sign * c * x - s * y + dx, sign * s * x + c * y + dy], -1), "reflection")


def reframe_both(pixels: Tensor, mask: Tensor, rng: np.random.Generator) -> tuple[Tensor, Tensor]:
    """Another framing of a picture and the same of its mask (1, H, W)."""
    view = reframe(torch.cat([pixels, mask * 2 - 1]), rng)
    return view[:-1], (view[-1:] > 0).float()


def warp(pixels: Tensor, rng: np.random.Generator, strength: float = 0.2) -> Tensor:
    """Bend the picture by a smooth random displacement of up to about `strength` half-widths."""
    # A 4 x 4 grid enlarged smoothly bends outlines and keeps textures.
    coarse = torch.from_numpy(rng.uniform(-1, 1, (1, 2, 4, 4)).astype(np.float32))
    dx, dy = F.interpolate(coarse, pixels.shape[1:], mode="bicubic", align_corners=True)[0] * strength
    y, x = _places(pixels)
    return _sample(pixels, torch.stack([x + dx, y + dy], -1), "border")  # what comes in at the rim is the rim itself


def patch_shuffle(pixels: Tensor, rng: np.random.Generator, mask: Tensor | None = None, grid: int = 4) -> Tensor:
    """Crop to the object, cut into grid x grid patches, and lay them in random order, turned at random.

    With a mask only patches that lie mostly on the object are laid, some of them more than once.
    """
    height, width = pixels.shape[1:]
    # A multiple of the grid, so that all patches have one size.
    side = grid * math.ceil(max(height, width) / grid)
    top, bottom, left, right = box(mask, height, width)
    patches = _patches(_resized(pixels[:, top:bottom, left:right], side, side), grid)
    choice = np.arange(grid * grid)
    if mask is not None and mask.any():
        share = F.adaptive_avg_pool2d(mask[:, top:bottom, left:right].float(), grid).flatten().numpy()
        # At least the fullest patch, where the object is too thin to fill any by 60 %.
        good = np.flatnonzero(share > min(0.6, float(share.max()) * 0.99))
        choice = rng.permutation(np.resize(rng.permutation(good), grid * grid))
    else:
        choice = rng.permutation(choice)
    turned = [torch.rot90(patches[i], int(rng.integers(4)), (1, 2)) for i in choice]
    rows = [torch.cat(turned[r * grid : (r + 1) * grid], 2) for r in range(grid)]
    return _resized(torch.cat(rows, 1), height, width).clamp(-1, 1)


def box(mask: Tensor | None, height: int, width: int) -> tuple[int, int, int, int]:
    """Top, bottom, left, right of the mask's object; the middle 3/4 where there is no mask."""
    if mask is None or not mask.any():
        return height // 8, height - height // 8, width // 8, width - width // 8
    rows, columns = (mask[0] > 0.5).any(1).nonzero(), (mask[0] > 0.5).any(0).nonzero()
    return int(rows[0]), int(rows[-1]) + 1, int(columns[0]), int(columns[-1]) + 1


def _places(pixels: Tensor) -> tuple[Tensor, Tensor]:
    """Coordinates of the pixels' middles, from -1 to 1: y (H, 1) and x (1, W)."""
    # Middles of pixels, as `align_corners=False` counts them.
    y, x = (torch.linspace(1 / n - 1, 1 - 1 / n, n, dtype=pixels.dtype) for n in pixels.shape[1:])
    return y[:, None], x[None]


def _resized(pixels: Tensor, height: int, width: int) -> Tensor:
    if pixels.shape[1:] == (height, width):
        return pixels
    return F.interpolate(pixels[None], (height, width), mode="bilinear")[0]


def _patches(image: Tensor, grid: int) -> Tensor:
    """(C, S, S) -> (grid*grid, C, S/grid, S/grid), row by row."""
    channels, side = image.shape[0], image.shape[1] // grid
    cut = image.reshape(channels, grid, side, grid, side)
    return cut.permute(1, 3, 0, 2, 4).reshape(grid * grid, channels, side, side)


def _sample(pixels: Tensor, grid: Tensor, outside: str) -> Tensor:
    """Pixels at the places (H, W, 2), x before y; `outside` is a padding mode of `grid_sample`."""
    return F.grid_sample(pixels[None], grid[None], padding_mode=outside, align_corners=False)[0].clamp(-1, 1)


def _hue_rotation(angle: float) -> Tensor:
    """Rotation of RGB about the grey axis (Rodrigues' formula)."""
    # cos I + (1 - cos) a a' + sin [a]x about a = (1, 1, 1) / sqrt(3): greys stay, and so does the mean of the channels.
    c, s, k = math.cos(angle), math.sin(angle), 1 / math.sqrt(3)
    axis = torch.full((3, 3), (1 - c) / 3)
    cross = torch.tensor([[0, -k, k], [k, 0, -k], [-k, k, 0]]) * s
    return c * torch.eye(3) + axis + cross
