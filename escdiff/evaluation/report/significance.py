"""Whether two runs differ: sign flips of the subjects' differences, corrected for the number of questions."""

from collections.abc import Hashable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from escdiff.evaluation.report.units import FEW, students_interval

RESAMPLES = 10_000
ALL_FLIPS = 13  # subjects up to which all sign flips are tried, 8,192 of 13


@dataclass(frozen=True)
class Difference:
    """Mean of theirs minus ours, its 95 % interval, the two-sided p, and over how many subjects."""

    mean: float
    low: float
    high: float
    p: float
    n: int


def paired(ours: Mapping[Hashable, float], theirs: Mapping[Hashable, float], groups: Mapping[Hashable, Hashable]):
    """The paired difference of two runs over their common cases.

    Pictures of a subject are no independent samples: subjects are flipped and drawn, not pictures. The p-value is the
    share of sign flips of the subjects' differences whose mean is at least as far from zero (Davison and Hinkley 1997,
    section 4.3): of all 2^n up to `ALL_FLIPS` subjects, so at least 2^(1 - n); else of `RESAMPLES` random ones and the
    one observed. The interval is Student's below `FEW` subjects, else the percentile bootstrap's (Efron and Tibshirani
    1993, section 13.3).

    Args:
        ours, theirs: case -> value. groups: case -> its subject.

    Returns:
        A `Difference`, or None where they share fewer than two subjects.
    """
    by_group: dict[Hashable, list[float]] = {}
    for case in ours.keys() & theirs.keys():
        by_group.setdefault(groups[case], []).append(theirs[case] - ours[case])
    # In one order whatever the runs' own, so that equal runs draw equal resamples.
    data = np.array([np.mean(by_group[group]) for group in sorted(by_group, key=str)])
    if len(data) < 2:
        return None
    rng = np.random.default_rng(0)
    if len(data) < FEW:
        low, high = students_interval(data)
    else:
        means = data[rng.integers(len(data), size=(RESAMPLES, len(data)))].mean(1)
        low, high = (float(v) for v in np.quantile(means, [0.025, 0.975]))
    return Difference(float(data.mean()), low, high, _flipped(data, rng), len(data))


def _flipped(data: np.ndarray, rng: np.random.Generator) -> float:
    """The two-sided p of `paired` for the subjects' differences (n,)."""
    n, exact = len(data), len(data) <= ALL_FLIPS
    if exact:
        flips = np.arange(2**n)[:, None] >> np.arange(n) & 1
    else:
        flips = rng.integers(2, size=(RESAMPLES, n), dtype=np.int8)
    # Flips that give the observed mean again, or its negative, differ from it by rounding.
    as_far = np.abs(2 * (flips @ data) - data.sum()) >= abs(data.sum()) - 1e-9 * np.abs(data).sum()
    return float(as_far.mean() if exact else (as_far.sum() + 1) / (RESAMPLES + 1))


def holm(values: Sequence[float]) -> list[float]:
    """Correct p-values for their number: the k-th smallest of m is multiplied by m - k + 1 (Holm 1979)."""
    order, corrected, most = np.argsort(values), [0.0] * len(values), 0.0
    for rank, i in enumerate(order):
        # The running maximum keeps corrected values in the order of the raw ones.
        most = max(most, min(1.0, values[i] * (len(values) - rank)))
        corrected[i] = most
    return corrected
