"""Colours by name and their shades. All values are sRGB in 0..1."""

from collections.abc import Sequence
from functools import cache

import numpy as np

# Far enough apart that an instance's jitter and shade never cross into a neighbour's name.
COLORS = {
    "red": (0.80, 0.09, 0.09),
    "orange": (0.96, 0.48, 0.06),
    "yellow": (0.96, 0.86, 0.16),
    "green": (0.13, 0.58, 0.18),
    "cyan": (0.10, 0.72, 0.76),
    "blue": (0.10, 0.24, 0.82),
    "purple": (0.47, 0.14, 0.66),
    "pink": (0.96, 0.56, 0.74),
    "brown": (0.42, 0.23, 0.10),
    "white": (0.94, 0.94, 0.93),
    "gray": (0.50, 0.50, 0.52),
    "black": (0.09, 0.09, 0.10),
}
# Wall colour at the top, wall colour at the horizon, floor colour.
BACKGROUNDS = {
    "white": ((0.97, 0.97, 0.97), (0.90, 0.90, 0.90), (0.93, 0.93, 0.93)),
    "gray": ((0.52, 0.52, 0.53), (0.38, 0.38, 0.39), (0.45, 0.45, 0.46)),
    "black": ((0.04, 0.04, 0.05), (0.07, 0.07, 0.08), (0.12, 0.12, 0.13)),
    "beige": ((0.95, 0.88, 0.72), (0.86, 0.77, 0.58), (0.80, 0.70, 0.52)),
    "navy": ((0.04, 0.05, 0.24), (0.07, 0.09, 0.34), (0.06, 0.08, 0.28)),
    "green": ((0.10, 0.34, 0.18), (0.13, 0.42, 0.22), (0.10, 0.36, 0.19)),
    "lavender": ((0.76, 0.68, 0.92), (0.66, 0.58, 0.84), (0.61, 0.54, 0.78)),
    "sky": ((0.55, 0.78, 0.98), (0.72, 0.87, 0.99), (0.50, 0.68, 0.86)),
}
# An object that its background swallows teaches nothing.
CLASHES = {
    "white": ("white",), "gray": ("gray",), "black": ("black",), "beige": (),
    "navy": ("black", "blue"), "green": ("green",), "lavender": (), "sky": (),
}  # fmt: skip
APART = 0.24  # least distance of an object's colour from its background's
DARKEST, PALEST = 0.5, 0.55  # share of black, of white, that a shade mixes in at most
OWN = 0.85  # a shade's distance from its own colour, at most, in distances from the nearest other one
SHADELESS = ("white", "black")  # too near the end of the scale for shades that can be seen


def luma(rgb: tuple[float, ...]) -> float:
    """Brightness of an sRGB colour, 0..1 (Rec. 601)."""
    return 0.299 * rgb[0] + 0.587 * rgb[1] + 0.114 * rgb[2]


def color_difference(first: Sequence[float], second: Sequence[float]) -> float:
    """CIEDE2000 between two sRGB colours in 0..1 (Sharma et al. 2005)."""
    from skimage.color import deltaE_ciede2000, rgb2lab  # half a second that rendering need not wait for

    lab = [rgb2lab(np.asarray(color, float)[None, None])[0, 0] for color in (first, second)]
    return float(deltaE_ciede2000(*lab))


def shaded(color: str, shade: float) -> tuple[float, ...]:
    """The colour from its darkest (shade 0) over its named value (0.5) to its palest (1)."""
    dark, pale = _reach(color)
    share = (0.5 - shade) * 2 * dark if shade < 0.5 else (shade - 0.5) * 2 * pale
    return _mixed(color, share, 0.0 if shade < 0.5 else 1.0)


def readable(rgb: tuple[float, ...], color: str, background: str) -> bool:
    """Whether an object of this colour stands out from the background."""
    apart = min(float(np.linalg.norm(np.subtract(rgb, other))) for other in BACKGROUNDS[background])
    return color not in CLASHES[background] and apart > APART


def _mixed(color: str, share: float, end: float) -> tuple[float, ...]:
    return tuple(c + (end - c) * share for c in COLORS[color])


@cache
def _reach(color: str) -> tuple[float, float]:
    """Most black and most white that can be mixed into a colour before another name fits it as well."""
    if color in SHADELESS:
        return 0.0, 0.0
    return _limit(color, 0.0, DARKEST), _limit(color, 1.0, PALEST)


def _limit(color: str, end: float, most: float) -> float:
    for share in np.arange(most, 0, -0.01):
        rgb = _mixed(color, float(share), end)
        far = {name: float(np.linalg.norm(np.subtract(rgb, other))) for name, other in COLORS.items()}
        if far.pop(color) < OWN * min(far.values()):
            return float(share)
    return 0.0
