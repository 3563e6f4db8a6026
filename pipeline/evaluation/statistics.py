"""Bootstrap intervals of means, and McNemar's test of two answers to the same questions.

Differences are paired: each bootstrap draw takes the same questions (or texts) for both sides.
"""

from collections.abc import Iterator
from math import sqrt

import numpy as np

LEVEL = 0.95
NORMAL = 1.959964  # a normal variable is within this many standard deviations of its mean at that level
NUMBERS_AT_ONCE = 2_000_000  # drawn indices held in memory


def interval(values: np.ndarray, weights: np.ndarray | None, samples: int, seed: int) -> tuple[float, float]:
    """The 95 % percentile interval of the mean of ``values`` (n,), from ``samples`` bootstrap draws.

    With ``weights`` (n,) each value is the sum over a group (a text) of that many members, groups are drawn as a whole,
    and the mean is over members.
    """
    rng = np.random.default_rng(seed)
    weights = np.ones(len(values)) if weights is None else weights
    means = []
    for drawn in _draws(rng, len(values), samples):
        means.append(values[drawn].sum(1) / weights[drawn].sum(1).clip(min=1))
    return _ends(np.concatenate(means))


def interval_over_seeds(values: np.ndarray, samples: int, seed: int) -> tuple[float, float]:
    """The 95 % interval of the mean of ``values`` (seeds, n): each draw resamples the seeds and the questions.

    With one seed this is the `interval` of its questions and does not cover other seeds; with few it is too narrow.
    """
    seeds, questions = values.shape
    rng, seed_rng = np.random.default_rng(seed), np.random.default_rng([seed, seeds])
    means = []
    for drawn in _draws(rng, questions, samples):
        times = seed_rng.multinomial(seeds, np.full(seeds, 1 / seeds), size=len(drawn))  # how often each seed is drawn
        means.append(sum(times[:, s] * values[s][drawn].mean(1) for s in range(seeds)) / seeds)
    return _ends(np.concatenate(means))


def share_interval(right: int, n: int) -> tuple[float, float]:
    """Wilson's 95 % interval (1927) of the share ``right / n``, which has a width even if none or all are right."""
    share, spread = right / n, NORMAL**2 / n
    middle = (share + spread / 2) / (1 + spread)
    half = NORMAL / (1 + spread) * sqrt(share * (1 - share) / n + spread / (4 * n))
    return max(0.0, middle - half), min(1.0, middle + half)


def mcnemar(first: np.ndarray, second: np.ndarray) -> float:
    """McNemar's exact two-sided p-value (1947) that two ways of answering, each (n,), are right equally often.

    Only questions that exactly one way has right count: if the ways are equally good, each is a fair coin toss.
    """
    one, other = int((first & ~second).sum()), int((~first & second).sum())
    tail = term = 1  # the sum of the binomial coefficients up to the smaller number, and the last of them
    for k in range(min(one, other)):
        term = term * (one + other - k) // (k + 1)
        tail += term
    return min(1.0, 2 * tail / 2 ** (one + other))


def _draws(rng: np.random.Generator, n: int, samples: int) -> Iterator[np.ndarray]:
    """Indices drawn with replacement, ``samples`` rows of n in all, as many rows at a time as fit in memory."""
    rows = max(1, NUMBERS_AT_ONCE // n)
    for start in range(0, samples, rows):
        yield rng.integers(n, size=(min(rows, samples - start), n))


def _ends(means: np.ndarray) -> tuple[float, float]:
    low, high = np.quantile(means, [(1 - LEVEL) / 2, (1 + LEVEL) / 2])
    return float(low), float(high)
