"""Intervals and tests: against scipy's and against what can be worked out by hand."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats

from pipeline.evaluation.statistics import SHARE, SHARE_DIFFERENCE, Totals, difference, mean, mean_interval, totals

RNG = np.random.default_rng(0)
RIGHT = st.lists(st.booleans(), min_size=2, max_size=30)


def students(values: np.ndarray) -> tuple[float, float]:
    """Student's interval of the mean of independent values."""
    return stats.ttest_1samp(values, 0).confidence_interval(0.95)


def test_totals_are_sums_by_group_of_what_is_there():
    values = np.array([[1, 2, 3, 4], [5, np.nan, 7, 8]])
    found = totals(values, ["b", "a", "b", "a"])
    assert found.sums.tolist() == [[6, 4], [8, 12]] and found.weights.tolist() == [[2, 2], [1, 2]]
    assert mean(found) == (10 / 4 + 20 / 3) / 2
    assert totals([True, False]).sums.tolist() == [[1, 0]]


def test_one_run_of_independent_questions_has_students_interval_and_groups_count_once():
    values = RNG.normal(size=40)
    assert mean_interval(totals(values), None) == pytest.approx(students(values))
    # asked three times, a question says no more than once; and a group of 30 tokens says no more than one of 3
    alike = mean_interval(totals(np.repeat(values, 3), np.repeat(np.arange(40), 3)), None)
    assert alike == pytest.approx(students(values))
    assert mean_interval(Totals(values[None] * 10, np.full((1, 40), 10.0)), None) == pytest.approx(students(values))


def test_a_ratio_is_weighted_by_tokens():
    """Texts of 9 tokens lose 1 each, texts of 1 token nothing."""
    side = Totals(np.tile([9.0, 0.0], 200)[None], np.tile([9.0, 1.0], 200)[None])
    low, high = mean_interval(side, None)
    assert mean(side) == pytest.approx(0.9) and low < 0.9 < high < low + 0.1


@pytest.mark.parametrize("seeds", [1, 3])
def test_one_text_has_no_interval_of_its_loss(seeds: int):
    """Nothing says how much other texts would differ; a share has an interval by its bounds."""
    one, other = (Totals(RNG.normal(size=(seeds, 1)), np.ones((seeds, 1))) for _ in range(2))
    found = difference(one, other, None)
    assert np.isfinite(found.value) and np.isnan([*mean_interval(one, None), *found[1:]]).all()
    assert np.isfinite(mean_interval(Totals(np.ones((seeds, 1)), np.ones((seeds, 1))), SHARE)).all()


@given(RIGHT, RIGHT)
def test_shares_and_their_differences_stay_where_they_can_be_and_have_a_width(first: list[bool], second: list[bool]):
    first, second = first[: len(second)], second[: len(first)]
    low, high = mean_interval(totals(first), SHARE)
    assert 0 <= low <= np.mean(first) <= high <= 1 and low < high
    found = difference(totals(first), totals(second), SHARE_DIFFERENCE)
    assert -1 <= found.low <= found.value <= found.high <= 1 and found.low < found.high


def test_all_right_has_wilsons_interval_of_the_groups():
    for groups in (10, 500):
        t = stats.t.ppf(0.975, groups - 1)
        low, high = mean_interval(totals(np.ones(1000), np.arange(1000) % groups), SHARE)
        assert (low, high) == pytest.approx((groups / (groups + t**2), 1))
    assert mean_interval(totals(np.zeros(9)), SHARE)[0] == 0


@pytest.mark.parametrize("seeds", [2, 3, 5])
def test_further_seeds_that_are_as_alike_widen_nothing(seeds: int):
    for values, bounds in ((np.ones(479), SHARE), (np.zeros(30), SHARE_DIFFERENCE)):
        assert mean_interval(totals(np.tile(values, (seeds, 1))), bounds) == pytest.approx(
            mean_interval(totals(values), bounds)
        )


def test_two_seeds_one_of_them_perfect_have_students_interval_within_bounds():
    answers = np.ones((2, 500))
    answers[0, :2] = 0
    low, high = mean_interval(totals(answers), SHARE)
    assert (low, high) == pytest.approx((students(answers.mean(1))[0], 1)) and low == pytest.approx(0.9726, abs=1e-4)


def test_one_group_says_as_little_of_several_seeds_as_of_one():
    values, one_group = np.repeat([[1.0] * 60 + [0.0] * 40], 3, axis=0), np.zeros(100)
    values[1, 0] = 0.0
    low, high = mean_interval(totals(values, one_group), SHARE)
    assert low < 0.05 and high > 0.95


def test_seeds_that_differ_have_students_interval_of_their_means_and_equal_ones_count_once():
    means = RNG.normal(size=10)
    seeds = totals(np.repeat(means[:, None], 50, axis=1))
    assert mean_interval(seeds, None) == pytest.approx(students(means))  # nine degrees of freedom
    run = RNG.normal(size=50)
    assert mean_interval(totals(np.tile(run, (5, 1))), None) == pytest.approx(students(run))
    # answers that have neither in common are as independent as they are many
    noise = RNG.normal(size=(100, 100))
    assert np.diff(mean_interval(totals(noise), None)) == pytest.approx(np.diff(students(noise.ravel())), rel=0.2)
    # both: the two variances add up
    both = np.diff(mean_interval(totals(means[:, None] + run), None)).item()
    parts = [np.diff(students(values)).item() for values in (means, run)]
    assert max(parts) < both < np.hypot(*parts)


def test_differences_are_paired_by_question_and_by_seed():
    one, other = RNG.normal(size=(2, 8))[:, :, None] + RNG.normal(size=40)  # questions differ, but alike in both arms
    sides = totals(one), totals(other)
    found = difference(*sides, None)
    expected = stats.ttest_rel(one.mean(1), other.mean(1))
    assert found[1:3] == pytest.approx(tuple(expected.confidence_interval()))
    assert found.p_value == pytest.approx(max(expected.pvalue, 2 / 2**8))


@pytest.mark.parametrize(
    "only_first, only_second, p", [(0, 0, 1.0), (1, 0, 1.0), (5, 0, 2 / 32), (0, 7, 2 / 128), (1, 9, 2 * 11 / 1024)]
)
def test_the_test_of_one_run_tosses_a_coin_for_each_group(only_first: int, only_second: int, p: float):
    """Ungrouped it is McNemar's (1947); three questions of a group are one coin."""
    first = np.array([True] * only_first + [False] * only_second + [True, False] * 10)
    second = np.array([False] * only_first + [True] * only_second + [True, False] * 10)
    for times in (1, 3):
        groups = np.repeat(np.arange(len(first)), times)
        found = difference(*(totals(np.repeat(way, times), groups) for way in (first, second)), SHARE_DIFFERENCE)
        assert found.p_value == pytest.approx(p, rel=0.1, abs=1e-4)


@pytest.mark.parametrize("seeds, groups, tested", [(1, 5, False), (1, 6, True), (2, 40, False), (5, 40, False)])
def test_there_is_no_p_value_of_few_seeds_or_groups(seeds: int, groups: int, tested: bool):
    sides = (totals(RNG.normal(size=(seeds, groups))) for _ in range(2))
    assert np.isnan(difference(*sides, None).p_value) != tested


def test_seeds_alone_cannot_be_surer_than_coins():
    found = difference(totals(np.ones((6, 20))), totals(np.zeros((6, 20))), SHARE_DIFFERENCE)
    assert found.value == 1 and found.p_value == 2 / 64
