"""Means over questions that come in groups, of one run or of several seeds: intervals, and tests of differences.

Questions of a group (about one fact, of one text) are alike, and so are the answers of one seed. Everything is computed
from `Totals` by seed and group; further leading axes are independent data sets. Simulations of the coverage are in
tests/evaluation/test_statistics_simulated.py.
"""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from scipy.special import expit, logit, stdtr, stdtrit  # stdtr, stdtrit: Student's distribution and its quantiles

LEVEL = 0.95
SHARE, SHARE_DIFFERENCE = (0.0, 1.0), (-1.0, 1.0)  # what bounds a mean of shares, and a difference of two
FEWEST = 6  # groups or seeds that a test needs: five coins that fall alike have p = 0.0625
FLIPS, FLIPS_AT_ONCE = 10_000, 1_000  # draws of the permutation test: p is at least 0.0001
SIGNS_AT_ONCE = 1_000_000  # of all groups: 16 MB
NOTHING = 1e-24  # a variance below this is rounding


class Totals(NamedTuple):
    """The sum of a measure by seed and group (..., S, G), and its weight: the number of questions or tokens."""

    sums: np.ndarray
    weights: np.ndarray


class Difference(NamedTuple):
    """A mean difference, its 95 % interval and its two-sided p-value, which is NaN where there is no test."""

    value: float
    low: float
    high: float
    p_value: float


def totals(values: np.ndarray, groups: Sequence | None = None) -> Totals:
    """Sum the values of S seeds on n questions (..., S, n), or of one run (n,); NaN where a question does not count.

    ``groups`` (n,) names each question's group; without it each is a group of its own.
    """
    values = np.atleast_2d(np.asarray(values, float))
    codes = np.arange(values.shape[-1]) if groups is None else np.unique(np.asarray(groups), return_inverse=True)[1]
    order = np.argsort(codes, kind="stable")
    starts = np.flatnonzero(np.diff(codes[order], prepend=-1))
    there = ~np.isnan(values[..., order])
    sums = np.add.reduceat(np.where(there, values[..., order], 0), starts, axis=-1)
    return Totals(sums, np.add.reduceat(there, starts, axis=-1, dtype=float))


def asked(side: Totals) -> Totals:
    """The totals (S, G) of those groups of which a seed was asked something: others must not count as groups."""
    there = side.weights.any(-2)
    return Totals(side.sums[:, there], side.weights[:, there])


def mean(side: Totals) -> np.ndarray:
    """The mean over seeds of each seed's mean over its questions (...,)."""
    return (side.sums.sum(-1) / side.weights.sum(-1)).mean(-1)


def mean_interval(side: Totals, bounds: tuple[float, float] | None) -> np.ndarray:
    """The 95 % interval (2, ...) of the `mean` of a measure that lies within ``bounds``."""
    return _interval(mean(side), *_variance(side), side.sums.shape[-1], bounds)


def difference(one: Totals, other: Totals, bounds: tuple[float, float] | None) -> Difference:
    """The `mean` of ``one`` minus that of ``other``, which were asked the same questions.

    Seed s of both belongs together, as both learned from one base model, on texts in one order. p of one run is a
    sign-flip permutation test over groups; of six seeds or more it is a t-test with the interval's variance and degrees
    of freedom, but at least 2 / 2^S, which S coins can show. There is no test of fewer than six groups, or of two to
    five seeds.
    """
    value, change = mean(one) - mean(other), one.sums - other.sums
    seeds, groups = change.shape[-2:]
    variance, freedom = _variance(Totals(change, one.weights))
    p_value = np.full(np.shape(value), np.nan)
    if groups >= FEWEST and seeds == 1:
        p_value = _flip_test(change[..., 0, :])
    elif groups >= FEWEST and seeds >= FEWEST:
        with np.errstate(divide="ignore", invalid="ignore"):
            tail = stdtr(freedom, -np.abs(value) / np.sqrt(variance))
        p_value = np.where(value == 0, 1.0, np.maximum(2 * tail, 2 / 2**seeds))
    return Difference(value, *_interval(value, variance, freedom, groups, bounds), p_value[()])


def _variance(side: Totals) -> tuple[np.ndarray, np.ndarray]:
    """The variance (...,) of the `mean`, and its degrees of freedom.

    Seeds and groups are crossed: every seed is asked the same questions. With e (S, G) a group's part of its seed's
    deviation from the seed's mean, the variance is

        between seeds (the variance of seed means, over S)
        + between groups (G / (G - 1) sum of squares of e's mean over seeds)
        - residual (G / (G - 1) sum of squares of what then is left of e, over S (S - 1)), which both contain,

    and at least the residual. Its degrees of freedom are Welch and Satterthwaite's, from S - 1, G - 1 and
    (S - 1)(G - 1), and at least the smallest: nine for ten seeds that differ more than the questions do. Of one seed
    only the groups can be seen: the interval then holds for this trained model, not for others of its method.
    """
    seeds, groups = side.sums.shape[-2:]
    scale, group_freedom = groups / max(groups - 1, 1), max(groups - 1, 1)
    number = side.weights.sum(-1, keepdims=True)
    means = side.sums.sum(-1, keepdims=True) / number
    e = (side.sums - means * side.weights) / number
    by_group = e.mean(-2)
    parts, residual = [], 0.0
    if seeds > 1:
        residual = scale * ((e - by_group[..., None, :]) ** 2).sum((-1, -2)) / (seeds * (seeds - 1))
        parts = [(means[..., 0].var(-1, ddof=1) / seeds, seeds - 1), (-residual, (seeds - 1) * group_freedom)]
    parts.append((scale * (by_group**2).sum(-1), group_freedom))
    variance = np.maximum(sum(part for part, _ in parts), residual)
    spread = sum(part**2 / freedom for part, freedom in parts)
    freedom = np.divide(variance**2, spread, out=np.ones_like(variance), where=spread > 0)
    return variance, np.maximum(freedom, min(freedom for _, freedom in parts))


def _interval(
    value: np.ndarray, variance: np.ndarray, freedom: np.ndarray, groups: int, bounds: tuple[float, float] | None
) -> np.ndarray:
    """Student's interval (2, ...) of a mean; between ``bounds`` it is symmetrical on the logit scale of their distance.

    With fewer than two degrees of freedom (of two seeds) it is the plain one within the bounds, as the logit scale,
    which is right for small steps, then stretches an interval near a bound over all there is.
    Without bounds one group has none (NaN), as nothing says how much others would differ.
    Where nothing varies (all are right), or there is one group, the data do not say how wide it is. Then a share u of
    the groups may have any other value, where u is what Wilson's interval (1927) leaves for wrong answers if G of G are
    right: t^2 / (G + t^2).
    """
    t = stdtrit(freedom, (1 + LEVEL) / 2)
    half = t * np.sqrt(variance)
    if bounds is None:
        half = np.where(groups > 1, half, np.nan)
        return np.stack([value - half, value + half])
    low, high = bounds
    place = (value - low) / (high - low)
    unseen = stdtrit(max(groups - 1, 1), (1 + LEVEL) / 2) ** 2
    unseen /= groups + unseen
    width = half / (high - low)
    with np.errstate(divide="ignore", invalid="ignore"):
        step = width / (place * (1 - place))
        ends = np.stack([expit(logit(place) - step), expit(logit(place) + step)])
    ends = np.where(freedom < 2, np.stack([place - width, place + width]).clip(0, 1), ends)
    alike = np.stack([place * (1 - unseen), place + unseen * (1 - place)])
    return low + (high - low) * np.where((variance < NOTHING) | (groups == 1), alike, ends)


def _flip_test(sums: np.ndarray) -> np.ndarray:
    """The two-sided p (...,) that the groups' total differences (..., G) are as likely to have the other sign.

    The signs are drawn from a fixed seed, the same for all data sets.
    """
    rng = np.random.default_rng(0)
    observed = np.abs(sums.sum(-1))[..., None]
    as_far = np.zeros(sums.shape[:-1])
    at_once = max(1, min(FLIPS_AT_ONCE, SIGNS_AT_ONCE // sums.shape[-1]))
    for start in range(0, FLIPS, at_once):
        signs = rng.integers(0, 2, (sums.shape[-1], min(at_once, FLIPS - start))) * 2.0 - 1
        # sums that are equal but for rounding count as equal
        as_far += (np.abs(sums @ signs) >= observed - 1e-9 * (1 + observed)).sum(-1)
    return (as_far + 1) / (FLIPS + 1)
