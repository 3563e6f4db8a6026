"""Bootstrap intervals."""

from math import comb

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from pipeline.evaluation.statistics import interval, interval_over_seeds, mcnemar, share_interval

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
def test_the_interval_of_a_share_is_the_binomial_one(right: int, n: int):
    values = np.array([1.0] * right + [0.0] * (n - right))
    low, high = interval(values, None, 20_000, seed=1)
    assert low == pytest.approx(binomial_quantile(n, right / n, 0.025) / n, abs=1 / n)
    assert high == pytest.approx(binomial_quantile(n, right / n, 0.975) / n, abs=1 / n)


def test_groups_are_drawn_whole_and_weighted_by_their_members():
    """A text of 9 tokens and one of 1: the mean is over tokens; a draw has both texts, or one of them twice."""
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


def test_equal_weights_are_no_weights_and_any_number_of_samples_will_do():
    assert all(interval(np.array([2.0, 2.0]), None, samples, 1) == (2.0, 2.0) for samples in (1, 499, 500, 1200))
    values = np.random.default_rng(0).normal(size=30)
    assert interval(values, None, 100, 1) == pytest.approx(interval(values * 7, np.full(30, 7), 100, 1))


def test_one_seed_is_the_interval_of_its_questions_and_seeds_that_differ_widen_it_as_their_means_spread():
    values = np.random.default_rng(0).normal(size=(1, 40))
    assert interval_over_seeds(values, 300, 5) == pytest.approx(interval(values[0], None, 300, 5))
    # all questions of a seed agree, so only the draw of seeds varies
    low, high = interval_over_seeds(np.repeat([[0.0], [1.0]], 30, axis=1), 4000, 1)
    assert (low, high) == (0.0, 1.0)
    many = np.repeat(np.random.default_rng(0).normal(size=(100, 1)), 50, axis=1)
    low, high = interval_over_seeds(many, 4000, 1)
    assert high - low == pytest.approx(2 * 1.96 * many[:, 0].std() / 10, rel=0.1)


@pytest.mark.parametrize(
    "only_first, only_second, p",
    [(0, 0, 1.0), (1, 0, 1.0), (5, 0, 2 / 32), (0, 6, 2 / 64), (3, 3, 1.0), (1, 9, 2 * 11 / 1024)],
)
def test_mcnemar_is_a_coin_for_each_question_that_one_way_alone_has_right(only_first: int, only_second: int, p: float):
    first = np.array([True] * only_first + [False] * only_second + [True, False] * 10)
    second = np.array([False] * only_first + [True] * only_second + [True, False] * 10)
    assert mcnemar(first, second) == pytest.approx(p)
    rng = np.random.default_rng(0)
    assert 0 < mcnemar(rng.random(5000) < 0.5, rng.random(5000) < 0.5) <= 1  # no overflow


@pytest.mark.parametrize("right, n", [(0, 20), (20, 20), (3, 50), (250, 500), (499, 500)])
def test_wilsons_interval_holds_the_shares_that_a_score_test_keeps(right: int, n: int):
    """At its ends the observed share is 1.96 of the end's own standard deviations away, or the end is 0 or 1."""
    low, high = share_interval(right, n)
    assert 0 <= low <= right / n <= high <= 1
    for end, extreme in ((low, 0.0), (high, 1.0)):
        away = abs(right / n - end) / (end * (1 - end) / n) ** 0.5 if 1e-12 < end < 1 - 1e-12 else None
        assert end == pytest.approx(extreme) if away is None else away == pytest.approx(1.96, abs=1e-3)
