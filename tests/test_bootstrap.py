"""Bootstrap intervals."""

from math import comb

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from pipeline.bootstrap import interval

VALUES = st.lists(st.floats(-10, 10), min_size=1, max_size=20)


def binomial_quantile(n: int, p: float, level: float) -> int:
    """The smallest k with P(X <= k) >= level."""
    total = 0.0
    for k in range(n + 1):
        total += comb(n, k) * p**k * (1 - p) ** (n - k)
        if total >= level:
            return k
    return n


@pytest.mark.parametrize("right, n", [(30, 100), (50, 200), (7, 40)])
def test_of_yes_and_no_the_interval_is_the_binomial_one(right: int, n: int):
    values = np.array([1.0] * right + [0.0] * (n - right))
    low, high = interval(values, None, 20_000, seed=1)
    assert low == pytest.approx(binomial_quantile(n, right / n, 0.025) / n, abs=1 / n)
    assert high == pytest.approx(binomial_quantile(n, right / n, 0.975) / n, abs=1 / n)


def test_of_many_values_the_interval_is_the_normal_one():
    values = np.random.default_rng(0).normal(3, 2, 2000)
    low, high = interval(values, None, 5000, seed=1)
    half = 1.96 * values.std() / np.sqrt(2000)
    assert low == pytest.approx(values.mean() - half, abs=half / 10)
    assert high == pytest.approx(values.mean() + half, abs=half / 10)


def test_groups_are_drawn_whole_and_weighted_by_their_members():
    """A text of 9 tokens and one of 1: the mean is over tokens, and a draw has both, or one of them twice."""
    sums, counts = np.array([9.0, 0.0]), np.array([9, 1])
    assert interval(sums, counts, 2000, seed=1) == (0.0, 1.0)
    many = interval(np.tile(sums, 200), np.tile(counts, 200), 4000, seed=1)
    assert many[0] < 0.9 < many[1] and many[1] - many[0] < 0.1


@given(VALUES, st.integers(0, 5))
def test_the_same_seed_gives_the_same_interval_within_the_values(values: list[float], seed: int):
    array = np.array(values)
    low, high = interval(array, None, 50, seed)
    assert (low, high) == interval(array, None, 50, seed)
    assert array.min() - 1e-9 <= low <= high <= array.max() + 1e-9


def test_equal_weights_are_no_weights():
    values = np.random.default_rng(0).normal(size=30)
    assert interval(values, None, 100, 1) == pytest.approx(interval(values * 7, np.full(30, 7), 100, 1))


@pytest.mark.parametrize("samples", [1, 499, 500, 501, 1200])
def test_any_number_of_samples(samples: int):
    assert interval(np.array([2.0, 2.0]), None, samples, 1) == (2.0, 2.0)
