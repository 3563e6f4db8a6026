"""How sure a figure is: bootstrap intervals, and McNemar's test of two answers to the same questions.

Both are paired: the same questions, or texts, are drawn for both sides of a difference.
"""

from collections.abc import Iterator
from math import sqrt

import numpy as np

LEVEL = 0.95
NORMAL = 1.959964  # within so many deviations a normal variable is at that level
NUMBERS_AT_ONCE = 2_000_000  # drawn indices in memory


def interval(values: np.ndarray, weights: np.ndarray | None, samples: int, seed: int) -> tuple[float, float]:
    """The 95 % percentile interval of the mean of ``values`` (n,), from ``samples`` draws of n with replacement.

    With ``weights`` (n,) the values are sums over groups (texts) of that many members, and the mean is over members.
    """
    rng = np.random.default_rng(seed)
    weights = np.ones(len(values)) if weights is None else weights
    means = []
    for drawn in _draws(rng, len(values), samples):
        means.append(values[drawn].sum(1) / weights[drawn].sum(1).clip(min=1))
    return _ends(np.concatenate(means))


def interval_over_seeds(values: np.ndarray, samples: int, seed: int) -> tuple[float, float]:
    """The 95 % interval of the mean of ``values`` (seeds, n): seeds and questions are both drawn with replacement.

    With one seed it is `interval` of its questions, and says nothing of other seeds; with few it is too narrow.
    """
    seeds, questions = values.shape
    rng, seed_rng = np.random.default_rng(seed), np.random.default_rng([seed, seeds])
    means = []
    for drawn in _draws(rng, questions, samples):
        times = seed_rng.multinomial(seeds, np.full(seeds, 1 / seeds), size=len(drawn))  # each seed is drawn
        means.append(sum(times[:, s] * values[s][drawn].mean(1) for s in range(seeds)) / seeds)
    return _ends(np.concatenate(means))


def share_interval(right: int, n: int) -> tuple[float, float]:
    """Wilson's 95 % interval (1927) of a share of ``right`` in ``n``: not empty where all or none are."""
    share, spread = right / n, NORMAL**2 / n
    middle = (share + spread / 2) / (1 + spread)
    half = NORMAL / (1 + spread) * sqrt(share * (1 - share) / n + spread / (4 * n))
    return max(0.0, middle - half), min(1.0, middle + half)


def _draws(rng: np.random.Generator, n: int, samples: int) -> Iterator[np.ndarray]:
    """Indices (some, n), ``samples`` rows in all."""
    rows = max(1, NUMBERS_AT_ONCE // n)
    for start in range(0, samples, rows):
        yield rng.integers(n, size=(min(rows, samples - start), n))


def _ends(means: np.ndarray) -> tuple[float, float]:
    low, high = np.quantile(means, [(1 - LEVEL) / 2, (1 + LEVEL) / 2])
    return float(low), float(high)


def mcnemar(first: np.ndarray, second: np.ndarray) -> float:
    """The exact two-sided p-value that two ways (n,) of answering the same questions are right equally often.

    Only questions that one way alone has right tell them apart (McNemar 1947): a fair coin each, if they are alike.
    """
    one, other = int((first & ~second).sum()), int((~first & second).sum())
    tail = term = 1  # the sum of the binomial coefficients up to the smaller number, and the last of them
    for k in range(min(one, other)):
        term = term * (one + other - k) // (k + 1)
        tail += term
    return min(1.0, 2 * tail / 2 ** (one + other))
