"""From what the oracle reads in a picture to scores; `escdiff.evaluation.report.units` makes means of them.

A reading is a dict with a word per name of `oracle.CLASSES` and lists of numbers: `params` (4), `rgb` and `rgb2`
(3, sRGB in 0..1), `gloss` (1).
"""

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from escdiff.mini.data.lineups import BOUNDS, shows, unit
from escdiff.mini.oracle import CLASSES, Oracle
from escdiff.mini.world.colors import color_difference
from escdiff.mini.world.words import degree
from escdiff.mini.world.world import TWO_ALIKE, Factors


def read(oracle: Oracle, pixels: Tensor, batch_size: int = 32) -> list[dict]:
    """Read pixels (B, 3, 128, 128) in [-1, 1]: one reading per picture."""
    readings = []
    for part in pixels.split(batch_size):
        out = {name: value.float().cpu() for name, value in oracle.read(part).items()}
        words = {name: [choices[i] for i in out[name].argmax(-1)] for name, choices in oracle.config.classes.items()}
        values = {name: out[name].clamp(0, 1).tolist() for name in oracle.config.values}
        columns = words | values
        readings += [{name: column[i] for name, column in columns.items()} for i in range(len(part))]
    return readings


def truth(factors: Factors) -> dict:
    """The reading of a perfect oracle."""
    shape, m = factors.shape, factors.material
    return {
        "family": shape.family, "pattern": m.pattern, "color": m.color, "color2": m.color2, "finish": m.finish,
        "background": factors.scene.background, "params": list(shape.params), "rgb": list(m.rgb), "rgb2": list(m.rgb2),
        "gloss": [m.gloss], **{name: [unit(getattr(m, name), bounds)] for name, bounds in BOUNDS.items()},
    }  # fmt: skip


def score(name: str, reading: dict, factors: Factors) -> float | None:
    """One score of one picture; None where there is nothing to judge.

    Names: those of `oracle.CLASSES` (1 right, 0 wrong); `shape` (the family) and `appearance` (pattern and colour
    both right); `degrees` (share of the four proportions that are read within one degree word of the five); `params`,
    `gloss`, `scale`, `angle` (mean absolute error, 0..1); `delta_e` (CIEDE2000 of the first colour). What the picture
    cannot show is not judged: see `lineups.shows`; nor what this oracle does not read.
    """
    true = matching_order(reading, truth(factors))
    if name == "shape":
        return float(reading["family"] == true["family"])
    if name == "appearance":
        return float(all(reading[part] == true[part] for part in ("pattern", "color")))
    if name == "delta_e":
        return color_difference(reading["rgb"], true["rgb"])
    source = "params" if name == "degrees" else name
    if not shows(source, factors) or source not in reading:
        return None
    if name == "degrees":
        steps = [abs(degree(a) - degree(b)) for a, b in zip(reading["params"], true["params"], strict=True)]
        return sum(step <= 1 for step in steps) / len(steps)
    if name in CLASSES:
        return float(reading[name] == true[name])
    return float(np.abs(np.subtract(reading[name], true[name])).mean())


def matching_order(reading: dict, true: dict) -> dict:
    """The truth with its colours exchanged if that fits better, in patterns that treat the two alike."""
    if true["pattern"] not in TWO_ALIKE:
        return true
    names = {"color": "color2", "color2": "color", "rgb": "rgb2", "rgb2": "rgb"}
    swapped = {name: true[names.get(name, name)] for name in true}

    def fit(order: dict) -> tuple:
        right = sum(reading[name] == order[name] for name in ("color", "color2"))
        return right, -sum(color_difference(reading[name], order[name]) for name in ("rgb", "rgb2"))

    return max((true, swapped), key=fit)


def judge(names: Sequence[str], reading: dict, factors: Factors) -> dict[str, float]:
    """Those of the named scores that can be judged."""
    scores = {name: score(name, reading, factors) for name in names}
    return {name: value for name, value in scores.items() if value is not None}


def psnr(pixels: Tensor, target: Tensor) -> list[float]:
    """Peak signal-to-noise ratio in dB of each picture; both (B, 3, H, W) in [-1, 1]."""
    error = ((pixels - target) / 2).square().mean((1, 2, 3)).clamp_min(1e-10)
    return (-10 * torch.log10(error)).tolist()
