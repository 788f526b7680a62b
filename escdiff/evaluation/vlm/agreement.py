"""How far raters agree: Krippendorff's alpha and rank correlations, over the things that they rated."""

import math
from collections.abc import Hashable, Mapping, Sequence

import numpy as np
from scipy import stats

Ratings = Mapping[Hashable, float]  # thing -> rating


def alpha(raters: Sequence[Ratings]) -> float:
    """Krippendorff's alpha for interval data (Krippendorff 2011): 1 - observed / expected squared difference.

    Ratings may be missing; things with fewer than two of them do not count. nan where nothing varies or counts.

    Args:
        raters: the ratings of each, all on one scale.
    """
    things = dict.fromkeys(key for ratings in raters for key in ratings)
    units = [np.array([ratings[key] for ratings in raters if key in ratings], float) for key in things]
    units = [unit for unit in units if len(unit) > 1]
    if not units:
        return math.nan
    pooled = np.concatenate(units)
    # A thing with m ratings has m (m - 1) ordered pairs; by m - 1, every rating counts once.
    observed = sum(_squares(unit) / (len(unit) - 1) for unit in units) / len(pooled)
    expected = _squares(pooled) / (len(pooled) * (len(pooled) - 1))
    return 1 - observed / expected if expected else math.nan


def _squares(values: np.ndarray) -> float:
    """The sum of squared differences of all ordered pairs: 2 n times the sum of squares about the mean."""
    return float(2 * len(values) * ((values - values.mean()) ** 2).sum())


def correlations(first: Ratings, second: Ratings) -> dict[str, float]:
    """`n`, and Spearman's rho, Kendall's tau-b, Pearson's r over what both rated; nan where one does not vary."""
    keys = [key for key in first if key in second]
    a, b = ([ratings[key] for key in keys] for ratings in (first, second))
    names = {"spearman": stats.spearmanr, "kendall": stats.kendalltau, "pearson": stats.pearsonr}
    varies = len(set(a)) > 1 and len(set(b)) > 1
    return {"n": len(keys)} | {
        name: float(measure(a, b).statistic) if varies else math.nan for name, measure in names.items()
    }


def agreement(first: Ratings, second: Ratings) -> dict[str, float]:
    """All figures of two raters, `n` among them."""
    keys = [key for key in first if key in second]
    pair = [{key: ratings[key] for key in keys} for ratings in (first, second)]
    return {**correlations(*pair), "alpha": alpha(pair)}
