import math

import numpy as np
import pytest

from escdiff.evaluation.report import units


@pytest.mark.parametrize("name", ["family", "delta_e", "psnr"])
@pytest.mark.parametrize("values", [[1.0], [0.0], [0.0] * 40, [1.0] * 40, [0.0, 1.0], [0.25] * 3, [0.0] * 39 + [1.0]])
def test_intervals_are_finite_and_hold_the_mean(name, values):
    got = units.summarise(name, values)
    assert set(got) == {"mean", "low", "high", "n"} and got["n"] == len(values)
    assert all(math.isfinite(v) for v in got.values()) and got["low"] <= got["mean"] <= got["high"]


def test_a_share_without_spread_has_wilsons_interval():
    got = units.summarise("family", [1.0] * 40)
    assert got["high"] == 1 and got["low"] == pytest.approx(40 / (40 + 1.96**2), abs=1e-3)


def test_intervals_cover_and_repeat():
    values = (np.random.default_rng(0).random(200) < 0.7).astype(float)
    got = units.summarise("family", values)
    assert 0.05 < got["high"] - got["low"] < 0.16 and got == units.summarise("family", values)
    assert units.summarise("delta_e", [1.0, 2.0, 30.0])["mean"] == 2  # the median


def test_no_score_without_numbers():
    for values in ([], [math.nan]):
        with pytest.raises(ValueError, match="finite"):
            units.summarise("family", values)


def test_the_interval_is_the_percentile_bootstraps():
    """Against plain lines that draw their own resamples: the same quantiles but for the draws."""
    values = np.random.default_rng(3).normal(size=50)
    rng = np.random.default_rng(7)
    means = values[rng.integers(50, size=(20_000, 50))].mean(1)
    got = units.summarise("gloss", values.tolist())
    assert got["mean"] == pytest.approx(values.mean())
    assert (got["low"], got["high"]) == pytest.approx(np.quantile(means, [0.025, 0.975]), abs=0.02)


@pytest.mark.parametrize("n", [1, 5, 60])
def test_wilsons_interval_by_its_formula(n):
    """Wilson 1927: with no failure the lower bound is n / (n + z^2), with no success the upper one z^2 / (n + z^2)."""
    z2 = 1.959964**2
    assert units.summarise("family", [1.0] * n)["low"] == pytest.approx(n / (n + z2), rel=1e-5)
    assert units.summarise("family", [0.0] * n)["high"] == pytest.approx(z2 / (n + z2), rel=1e-5)


def test_only_shares_that_are_all_right_or_all_wrong_have_it():
    """Equal values that are no share have no spread to speak of, and a half is neither right nor wrong."""
    for name, value in (("psnr", 1.0), ("family", 0.5), ("clip_t", 0.0)):
        got = units.summarise(name, [value] * 9)
        assert (got["low"], got["high"]) == (value, value)
    assert units.summarise("dino", [1.0] * 9, "cosine")["low"] == 1  # a metric's unit decides, not its name
    assert units.summarise("dino", [1.0] * 9, units.SHARE)["low"] < 1


@pytest.mark.parametrize("n", [3, 5, 12, 19])
def test_few_values_have_an_interval_that_holds_their_mean(n):
    """Of 95 % intervals of noise, as many hold the truth; a percentile bootstrap's of 5 values hold it in 83 %."""
    rng = np.random.default_rng(n)
    got = [units.summarise("clip_t", (0.3 + 0.05 * rng.normal(size=n)).tolist()) for _ in range(500)]
    assert 0.92 < np.mean([g["low"] <= 0.3 <= g["high"] for g in got]) < 0.98


def test_the_interval_of_few_values_is_students():
    """1, 2, 3: mean 2, standard error 1 / sqrt(3), t of two degrees of freedom 4.3027 at 97.5 %."""
    got = units.summarise("psnr", [1.0, 2.0, 3.0])
    assert (got["low"], got["high"]) == pytest.approx((2 - 4.3027 / 3**0.5, 2 + 4.3027 / 3**0.5), abs=1e-3)


def test_few_right_or_wrong_have_wilsons_interval_and_other_shares_stay_between_none_and_all():
    got = units.summarise("family", [1.0, 0.0, 0.0, 0.0, 0.0])
    assert (got["low"], got["high"]) == pytest.approx((0.036, 0.624), abs=1e-3)
    got = units.summarise("family", [0.5, 1.0, 1.0])
    assert 0 <= got["low"] < 0.5 and got["high"] == 1


def test_the_interval_of_few_medians_is_that_of_their_order():
    """Of 10 values, the second and the ninth hold the median in 97.9 % of draws, the third and eighth in 89 %."""
    values = np.random.default_rng(0).permutation(10).astype(float) ** 2
    got = units.summarise("delta_e", values.tolist())
    assert (got["low"], got["high"]) == (1, 64)
    assert units.summarise("delta_e", [1.0, 2.0, 30.0])["high"] == 30  # no interval of three: their range
