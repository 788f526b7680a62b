"""From what the oracle reads in a picture to scores, and from scores to means with intervals.

A reading is a dict with a word per name of `oracle.CLASSES` and lists of numbers: `params` (4), `rgb` and `rgb2`
(3, sRGB in 0..1), `gloss` (1).
"""

import math
from collections.abc import Sequence
from functools import cache

import numpy as np
import torch
from scipy import stats
from skimage.color import deltaE_ciede2000, rgb2lab
from torch import Tensor

from escdiff.still_life.oracle import CLASSES, Oracle
from escdiff.still_life.world import TWO_ALIKE, Factors

RESAMPLES, CONFIDENCE = 2000, 0.95
MEDIANS = ("delta_e", "other_delta_e")  # heavy tails: their median stands for them
ERRORS = ("delta_e", "params", "gloss", "other_delta_e", "other_params")  # less is better
DECIBELS = ("psnr",)
# Of `evaluation.metrics`; the same names come with `leak_` and `_all`. Everything else is a share of pictures.
COSINES = ("clip_t", "clip_i", "dino", "dinov2", "mask_iou")
DISTANCES = ("lpips", "dreamsim", "kid", "lab_distance", "gram_distance")  # less is better


def read(oracle: Oracle, pixels: Tensor, batch_size: int = 32) -> list[dict]:
    """What the oracle reads in pixels (B, 3, 128, 128) in [-1, 1], one reading per picture."""
    readings = []
    for part in pixels.split(batch_size):
        out = {name: value.float().cpu() for name, value in oracle.read(part).items()}
        words = {name: [CLASSES[name][i] for i in out[name].argmax(-1)] for name in CLASSES}
        values = {name: value.clamp(0, 1).tolist() for name, value in out.items() if name not in CLASSES}
        columns = words | values
        readings += [{name: column[i] for name, column in columns.items()} for i in range(len(part))]
    return readings


def truth(factors: Factors) -> dict:
    """The reading of a perfect oracle."""
    shape, m = factors.shape, factors.material
    return {
        "family": shape.family, "pattern": m.pattern, "color": m.color, "color2": m.color2, "finish": m.finish,
        "background": factors.scene.background, "params": list(shape.params), "rgb": list(m.rgb), "rgb2": list(m.rgb2),
        "gloss": [m.gloss],
    }  # fmt: skip


def score(name: str, reading: dict, factors: Factors) -> float | None:
    """One score of one picture; None where there is nothing to judge.

    Names: those of `oracle.CLASSES` (1 right, 0 wrong); `shape` (the family) and `appearance` (pattern and colour
    both right); `params` and `gloss` (mean absolute error, 0..1); `delta_e` (CIEDE2000 of the first colour).
    A plain material shows no second colour, a matte one no gloss.
    """
    true = matching_order(reading, truth(factors))
    if name == "shape":
        return float(reading["family"] == true["family"])
    if name == "appearance":
        return float(all(reading[part] == true[part] for part in ("pattern", "color")))
    if name == "delta_e":
        return color_difference(reading["rgb"], true["rgb"])
    hidden = {"color2": true["pattern"] == "plain", "gloss": true["finish"] == "matte"}
    if hidden.get(name):
        return None
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


def color_difference(first: Sequence[float], second: Sequence[float]) -> float:
    """CIEDE2000 between two sRGB colours in 0..1 (Sharma et al. 2005)."""
    lab = [rgb2lab(np.asarray(color, float)[None, None])[0, 0] for color in (first, second)]
    return float(deltaE_ciede2000(*lab))


def psnr(pixels: Tensor, target: Tensor) -> list[float]:
    """Peak signal-to-noise ratio in dB of each picture; both (B, 3, H, W) in [-1, 1]."""
    error = ((pixels - target) / 2).square().mean((1, 2, 3)).clamp_min(1e-10)
    return (-10 * torch.log10(error)).tolist()


def summarise(name: str, values: Sequence[float]) -> dict[str, float | int]:
    """Mean (median for `MEDIANS`) with its 95 % bootstrap interval and the number of pictures.

    A share that is 0 or 1 has no spread to resample; it gets Wilson's interval (1927).

    Raises:
        ValueError: no values, or one that is not finite.
    """
    data = np.asarray(values, float)
    if not len(data) or not np.isfinite(data).all():
        raise ValueError(f"the score {name!r} has {len(data)} values, expected at least one and all of them finite")
    mean = float((np.median if name in MEDIANS else np.mean)(data))
    low, high = _interval(name, tuple(data.tolist()))
    return {"mean": mean, "low": min(low, mean), "high": max(high, mean), "n": len(data)}


def is_share(name: str) -> bool:
    return base(name) not in (*ERRORS, *DECIBELS, *COSINES, *DISTANCES)


def base(name: str) -> str:
    """The metric behind a score, such as "clip_i" behind "clip_i_all"."""
    return name.removeprefix("leak_").removesuffix("_all")


def text(name: str, value: float) -> str:
    """A score as people read it."""
    if is_share(name):
        return f"{100 * value:.1f} %"
    return f"{value:.1f}" if base(name) in (*MEDIANS, *DECIBELS, "lab_distance") else f"{value:.3f}"


def signed(name: str, value: float) -> str:
    """A difference of scores as people read it."""
    return ("+" if value >= 0 else "−") + text(name, abs(value))


@cache
def _interval(name: str, values: tuple[float, ...]) -> tuple[float, float]:
    if len(set(values)) == 1:
        if not is_share(name) or values[0] not in (0, 1):
            return values[0], values[0]
        wilson = stats.binomtest(int(sum(values)), len(values)).proportion_ci(CONFIDENCE, "wilson")
        return float(wilson.low), float(wilson.high)
    statistic = np.median if name in MEDIANS else np.mean
    result = stats.bootstrap(
        (np.array(values),), statistic, n_resamples=RESAMPLES, confidence_level=CONFIDENCE, method="percentile",
        rng=np.random.default_rng(0),
    )  # fmt: skip
    low, high = (float(v) for v in result.confidence_interval)
    return (low, high) if math.isfinite(low + high) else (min(values), max(values))
