"""Units of scores: how values become a mean with an interval, and how they are written for people."""

import math
from collections.abc import Sequence
from functools import cache

import numpy as np
from scipy import stats

RESAMPLES, CONFIDENCE = 2000, 0.95
FEW = 20  # values below which resamples of them spread too little
MEDIANS = ("delta_e", "other_delta_e")  # heavy tails: their median stands for them
ERRORS = ("delta_e", "params", "gloss", "scale", "angle", "other_delta_e", "other_params")  # less is better
DECIBELS = ("psnr", "kept")
COSINES = ("clip_t", "clip_i")
CORRELATIONS = ("params_r2", "gloss_r", "scale_r", "angle_r")
OVERLAPS = ("iou",)
OWN = "own_"  # before a score: the judge's own, where a perfect picture was shown
SHARE = "share"  # of pictures, 0..1
RATING = "rating"  # a judge's, from 0 to 1
# unit -> how a value is written; `evaluation.metrics` declare theirs
UNITS = {
    SHARE: "{:.1%}",
    "cosine": "{:.3f}",
    "correlation": "{:.3f}",
    "overlap": "{:.3f}",
    RATING: "{:.3f}",
    "distance": "{:.3f}",
    "count": "{:.0f}",
    "delta E": "{:.1f}",
    "dB": "{:.1f}",
}
BOUNDS = {
    SHARE: (0, 1), RATING: (0, 1), "overlap": (0, 1), "cosine": (-1, 1), "correlation": (-1, 1),
    "distance": (0, math.inf), "delta E": (0, math.inf),
}  # fmt: skip


def summarise(name: str, values: Sequence[float], unit: str = "") -> dict[str, float | int]:
    """Mean (median for `MEDIANS`) with its 95 % interval and the number of values.

    The interval is the percentile bootstrap's. Below `FEW` values that is too narrow: then it is Student's, the order
    statistics' for a median (the range, which holds less, below six values), Wilson's (1927) for rights and wrongs.
    A share that is 0 or 1 has no spread to resample; it has Wilson's interval however many values there are.

    Args:
        unit: of `UNITS`; else that of our score of this name.

    Raises:
        ValueError: no values, or one that is not finite.
    """
    data = np.asarray(values, float)
    if not len(data) or not np.isfinite(data).all():
        raise ValueError(f"the score {name!r} has {len(data)} values, expected at least one and all of them finite")
    mean = float((np.median if name in MEDIANS else np.mean)(data))
    low, high = _interval(name, tuple(data.tolist()), unit or unit_of(name))
    return {"mean": mean, "low": min(low, mean), "high": max(high, mean), "n": len(data)}


def is_share(name: str) -> bool:
    """Whether a score is a share of pictures."""
    return unit_of(name) == SHARE


def unit_of(name: str) -> str:
    """The unit of one of ESC-Bench's scores; metrics of protocols say theirs."""
    groups = {"distance": ERRORS, "delta E": MEDIANS, "dB": DECIBELS, "cosine": COSINES}
    groups |= {"correlation": CORRELATIONS, "overlap": OVERLAPS}
    units = {score: unit for unit, names in groups.items() for score in names}
    return units.get(name.removeprefix(OWN), SHARE)


def base(name: str) -> str:
    """The metric behind a score, such as "clip_i" behind "clip_i_all"."""
    return name.removeprefix("leak_").removesuffix("_all")


def text(name: str, value: float, unit: str = "") -> str:
    """A score as people read it, in its unit of `UNITS`; without, in that of our score of this name."""
    return UNITS[unit or unit_of(name)].format(value).replace("%", " %")


def signed(name: str, value: float, unit: str = "") -> str:
    """A difference of scores as people read it."""
    return ("+" if value >= 0 else "−") + text(name, abs(value), unit)


def students_interval(values: Sequence[float]) -> tuple[float, float]:
    """The 95 % interval of the mean by Student's t, of two values or more."""
    half = stats.t.ppf((1 + CONFIDENCE) / 2, len(values) - 1) * np.std(values, ddof=1) / math.sqrt(len(values))
    return float(np.mean(values) - half), float(np.mean(values) + half)


@cache
def _interval(name: str, values: tuple[float, ...], unit: str) -> tuple[float, float]:
    different, few = set(values), len(values) < FEW
    if unit == SHARE and different <= {0, 1} and (few or len(different) == 1):
        # Resampling n equal values gives n equal values, however small n is.
        wilson = stats.binomtest(int(sum(values)), len(values)).proportion_ci(CONFIDENCE, "wilson")
        return float(wilson.low), float(wilson.high)
    if len(different) == 1:
        return values[0], values[0]
    if few and name not in MEDIANS:
        low, high = students_interval(values)
        least, most = BOUNDS.get(unit, (-math.inf, math.inf))
        return max(low, least), min(high, most)
    if few:
        result = stats.quantile_test(values).confidence_interval(CONFIDENCE)
    else:
        result = stats.bootstrap(
            (np.array(values),), np.median if name in MEDIANS else np.mean, n_resamples=RESAMPLES,
            confidence_level=CONFIDENCE, method="percentile", rng=np.random.default_rng(0),
        ).confidence_interval  # fmt: skip
    low, high = (float(v) for v in result)
    # Medians of few values can leave scipy without an interval; the range is the honest one.
    return (low, high) if math.isfinite(low + high) else (min(values), max(values))
