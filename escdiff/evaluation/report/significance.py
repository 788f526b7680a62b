"""Whether two runs differ: paired bootstrap over subjects, corrected for the number of questions."""

from collections.abc import Hashable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np

RESAMPLES = 10_000


@dataclass(frozen=True)
class Difference:
    """Mean of theirs minus ours, its 95 % interval, the two-sided p, and over how many subjects."""

    mean: float
    low: float
    high: float
    p: float
    n: int


def paired(ours: Mapping[Hashable, float], theirs: Mapping[Hashable, float], groups: Mapping[Hashable, Hashable]):
    """The paired difference of two runs over their common cases (Efron and Tibshirani 1993, sections 13.3 and 16.4).

    Pictures of a subject are no independent samples: subjects are drawn, not pictures. The p-value is twice the smaller
    share of resampled means on one side of zero, at least 2 / (RESAMPLES + 1).

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
    means = data[rng.integers(len(data), size=(RESAMPLES, len(data)))].mean(1)
    low, high = np.quantile(means, [0.025, 0.975])
    side = min((means <= 0).sum(), (means >= 0).sum())
    # Plus one: the observed mean counts as a resample, so that p is never 0 (Davison and Hinkley 1997, section 4.2).
    p = min(1.0, 2 * (side + 1) / (RESAMPLES + 1))
    return Difference(float(data.mean()), float(low), float(high), float(p), len(data))


def holm(values: Sequence[float]) -> list[float]:
    """Correct p-values for their number: the k-th smallest of m is multiplied by m - k + 1 (Holm 1979)."""
    order, corrected, most = np.argsort(values), [0.0] * len(values), 0.0
    for rank, i in enumerate(order):
        # The running maximum keeps corrected values in the order of the raw ones.
        most = max(most, min(1.0, values[i] * (len(values) - rank)))
        corrected[i] = most
    return corrected
