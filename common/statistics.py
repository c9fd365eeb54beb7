"""Statistics over few runs: means with intervals, and how probably one method is better.

Agarwal et al. 2021, "Deep Reinforcement Learning at the Edge of the Statistical Precipice", arXiv
2108.13264, and their rliable advise the interquartile mean, its stratified bootstrap, and the
probability of improvement. A bootstrap draws with a fixed seed, so the same runs give the same numbers.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Literal, NamedTuple

import numpy as np

_DRAWS = 2000
_PERCENT = (2.5, 97.5)

Aggregate = Literal["mean", "iqm"]


class Estimate(NamedTuple):
    """A statistic, and the ends of its 95% interval, NaN where one value is all there is.

    Each is a number, or an array [P] where the values are curves of P points.
    """

    value: np.ndarray
    low: np.ndarray
    high: np.ndarray


def iqm(values: np.ndarray, axis: int = 0) -> np.ndarray:
    """The interquartile mean over an axis: the mean without the lowest and the highest quarter.

    A quarter is rounded down, as in rliable: of fewer than four values nothing is left out.
    """
    count = values.shape[axis]
    middle = np.arange(count // 4, count - count // 4)
    return np.sort(values, axis).take(middle, axis).mean(axis)


def mean_estimate(values: np.ndarray) -> Estimate:
    """The mean of values [N] or [N, P] over N, with Student's 95% confidence interval."""
    from scipy.special import stdtrit  # imported here, as it takes a tenth of a second

    count, mean = len(values), values.mean(0)
    if count == 1:
        return _without_interval(mean)
    half = stdtrit(count - 1, _PERCENT[1] / 100) * values.std(0, ddof=1) / np.sqrt(count)
    return Estimate(mean, mean - half, mean + half)


def iqm_estimate(strata: Sequence[np.ndarray]) -> Estimate:
    """The interquartile mean of values [N] or [N, P] over all strata, with a bootstrap interval.

    Args:
        strata: the seeds' values of each task; the bootstrap draws anew within each task. The interval
            is NaN where every task has a single seed, so that nothing else can be drawn.
    """
    value = iqm(np.concatenate(strata))
    if max(map(len, strata)) == 1:
        return _without_interval(value)
    return Estimate(value, *_bootstrap(strata, lambda *drawn: iqm(np.concatenate(drawn, 1), 1)))


def estimate(values: np.ndarray, aggregate: Aggregate) -> Estimate:
    """The mean or the interquartile mean of values [N] or [N, P] over N seeds, with its interval."""
    return mean_estimate(values) if aggregate == "mean" else iqm_estimate([values])


def probability_of_improvement(values: np.ndarray, others: np.ndarray) -> Estimate:
    """P(X > Y) for values X [N] and others Y [M], over all pairs; a tie counts as half.

    The interval is that of a bootstrap over both; it is NaN where one of them has a single value,
    from which nothing else can be drawn.
    """

    value = _share_above(values[None], others[None])[0]
    if min(len(values), len(others)) == 1:
        return _without_interval(value)
    return Estimate(value, *_bootstrap([values, others], _share_above))


def chance_of_difference(values: np.ndarray, others: np.ndarray) -> float:
    """How probably chance alone brings P(X > Y) so far from one half, where X [N] and Y [M] do not differ.

    A two-sided permutation test, twice the smaller tail: exact up to 9,999 ways to share the values out, by
    a draw of as many beyond. Of a few values the bootstrap's interval is too narrow to decide by: with three
    against three it leaves one half out in a fifth of all cases without a difference. It is 1 where one of
    them has a single value.
    """
    if min(len(values), len(others)) == 1:
        return 1.0
    from scipy.stats import permutation_test  # imported here, as it takes half a second

    found = permutation_test(
        (values, others), lambda x, y, axis: _share_above(x, y), vectorized=True, axis=-1, rng=0
    )
    return float(found.pvalue)


def _share_above(x: np.ndarray, y: np.ndarray) -> np.ndarray:
    """P(X > Y) over all pairs: [..., N] and [..., M] -> [...]."""
    x, y = x[..., :, None], y[..., None, :]
    return ((x > y) + 0.5 * (x == y)).mean((-2, -1))


def _without_interval(value: np.ndarray) -> Estimate:
    nothing = np.full_like(value, np.nan)
    return Estimate(value, nothing, nothing)


def _bootstrap(
    strata: Sequence[np.ndarray], statistic: Callable[..., np.ndarray]
) -> tuple[np.ndarray, np.ndarray]:
    """The 2.5th and the 97.5th percentile of a statistic over strata that are drawn anew.

    Args:
        strata: arrays [N, ...], each with its own N.
        statistic: takes each stratum's draws [draws, N, ...] and returns [draws, ...].
    """
    generator = np.random.default_rng(0)
    drawn = [
        values[generator.integers(len(values), size=(_DRAWS, len(values)))] for values in strata
    ]
    low, high = np.percentile(statistic(*drawn), _PERCENT, axis=0)
    return low, high
