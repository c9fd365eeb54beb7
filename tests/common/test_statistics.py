from __future__ import annotations

import itertools

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from common.statistics import (
    chance_of_difference,
    estimate,
    iqm,
    iqm_estimate,
    probability_of_improvement,
)

NUMBERS = st.floats(-1e6, 1e6)
SEEDS = arrays(np.float64, st.integers(2, 12), elements=NUMBERS)


@given(SEEDS, st.sampled_from(["mean", "iqm"]))
def test_an_interval_contains_its_estimate_and_equal_values_have_no_width(values, aggregate):
    value, low, high = estimate(values, aggregate)
    slack = 1e-9 * max(1.0, np.abs(values).max())
    assert low - slack <= value <= high + slack
    assert values.min() - slack <= value <= values.max() + slack
    same = estimate(np.full_like(values, values[0]), aggregate)
    np.testing.assert_allclose(np.stack(same), values[0], rtol=1e-12, atol=1e-9)


def test_the_iqm_leaves_out_the_lowest_and_the_highest_quarter():
    assert iqm(np.array([9.0, 1.0, 2.0, -1000.0, 4.0, 3.0, 1e9, -5.0])) == (1 + 2 + 3 + 4) / 4
    assert iqm(np.array([1.0, 2.0, 6.0])) == 3.0
    assert iqm(np.array([1.0, 2.0, 3.0, 4.0, 1e9])) == 3.0


def test_curves_are_aggregated_at_each_point():
    curves = np.random.default_rng(1).normal(size=(6, 5))
    for aggregate in ("mean", "iqm"):
        together = np.stack(estimate(curves, aggregate))
        for point in range(5):  # one bootstrap draws the same seeds for every point
            alone = np.stack(estimate(curves[:, point], aggregate))
            np.testing.assert_allclose(together[:, point], alone)


def test_the_bootstrap_draws_within_each_task():
    # within a task all seeds are equal, so that nothing can vary; over both tasks together it would
    value, low, high = iqm_estimate([np.full(4, 1.0), np.full(4, 9.0)])
    assert (value, low, high) == (5.0, 5.0, 5.0)


@given(SEEDS, SEEDS)
def test_the_probability_of_improvement_counts_pairs(x, y):
    value, low, high = probability_of_improvement(x, y)
    wins = sum(a > b for a in x for b in y) + 0.5 * sum(a == b for a in x for b in y)
    assert value == pytest.approx(wins / (len(x) * len(y)))
    assert 0 <= low <= high <= 1
    assert probability_of_improvement(y, x).value == pytest.approx(1 - value)
    assert probability_of_improvement(x, x).value == pytest.approx(0.5)


def test_one_seed_has_no_interval():
    one = np.array([3.0])
    nan = np.nan
    np.testing.assert_array_equal(np.stack(estimate(one, "mean")), [3.0, nan, nan])
    np.testing.assert_array_equal(np.stack(estimate(one, "iqm")), [3.0, nan, nan])
    np.testing.assert_array_equal(np.stack(probability_of_improvement(one, one)), [0.5, nan, nan])
    # also not one seed of each of several tasks
    tasks = iqm_estimate([np.array([value]) for value in (1.0, 2.0, 6.0)])
    np.testing.assert_array_equal(np.stack(tasks), [3.0, nan, nan])


@pytest.mark.parametrize(("count", "t"), [(2, 12.706), (11, 2.228), (12, 2.201), (100, 1.984)])
def test_the_interval_of_a_mean_is_students(count, t):
    values = np.random.default_rng(count).normal(size=count)
    value, low, high = estimate(values, "mean")
    half = t * values.std(ddof=1) / np.sqrt(count)
    np.testing.assert_allclose([value - low, high - value], half, rtol=3e-4)


@pytest.mark.parametrize("seeds", [2, 3, 4, 5])
def test_what_does_not_differ_is_seldom_said_to(seeds):
    """In all orders of so many different values, each as probable as any other."""
    ranks = set(range(2 * seeds))
    chances = [
        chance_of_difference(np.array(one, float), np.array(sorted(ranks - set(one)), float))
        for one in itertools.combinations(sorted(ranks), seeds)
    ]
    for level in (0.05, 0.1, 0.5):
        assert np.mean(np.array(chances) <= level) <= level + 1e-9
    assert min(chances) == pytest.approx(2 / len(chances))
