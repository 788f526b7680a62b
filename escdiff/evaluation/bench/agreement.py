"""Agreement of an oracle's numbers with the truth over many pictures: figures that no single picture has."""

from collections.abc import Callable, Sequence

import numpy as np

from escdiff.evaluation.bench.scores import truth
from escdiff.evaluation.report.units import CONFIDENCE
from escdiff.mini.data.lineups import shows
from escdiff.mini.world.world import Factors

RESAMPLES = 1000
FEWEST = 3  # pictures


def r_squared(true: np.ndarray, read: np.ndarray) -> float:
    """Share of the variance of `true` (N, K) that `read` explains, over all K values; 0 says the mean does as well."""
    return float(1 - np.square(read - true).sum() / np.square(true - true.mean(0)).sum())


def correlation(true: np.ndarray, read: np.ndarray) -> float:
    """Pearson's r of two columns (N, 1)."""
    return float(np.corrcoef(true[:, 0], read[:, 0])[0, 1])


# Score -> what is read, and how the agreement is measured.
AGREEMENTS: dict[str, tuple[str, Callable[[np.ndarray, np.ndarray], float]]] = {
    "params_r2": ("params", r_squared), "gloss_r": ("gloss", correlation), "scale_r": ("scale", correlation),
    "angle_r": ("angle", correlation),
}  # fmt: skip


def agreements(pictures: Sequence[tuple[Factors, dict]]) -> dict[str, dict[str, float | int]]:
    """Score -> value, its 95 % bootstrap interval over pictures, and how many show what is read.

    Args:
        pictures: what each shows and how it was read. Scores of what the oracle does not read, or of which the
            pictures say too little, are left out.
    """
    figures = {}
    for score, (name, statistic) in AGREEMENTS.items():
        shown = [
            (truth(factors)[name], read[name]) for factors, read in pictures if name in read and shows(name, factors)
        ]
        if len(shown) < FEWEST:
            continue
        true, read = (np.asarray(column, float) for column in zip(*shown, strict=True))
        rng = np.random.default_rng(0)
        # A resample of one value repeated has no variance to explain: not finite, and left out below.
        with np.errstate(invalid="ignore", divide="ignore"):
            drawn = rng.integers(len(true), size=(RESAMPLES, len(true)))
            value, resampled = statistic(true, read), np.array([statistic(true[i], read[i]) for i in drawn])
        resampled = resampled[np.isfinite(resampled)]
        if np.isfinite(value) and len(resampled):
            low, high = np.quantile(resampled, [(1 - CONFIDENCE) / 2, (1 + CONFIDENCE) / 2])
            figures[score] = {
                "mean": value,
                "low": min(float(low), value),
                "high": max(float(high), value),
                "n": len(true),
            }
    return figures
