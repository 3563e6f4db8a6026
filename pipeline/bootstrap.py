"""Paired bootstrap intervals: the same questions, or texts, are drawn for both sides of a difference."""

import numpy as np

LEVEL = 0.95
ROWS_AT_ONCE = 500


def interval(values: np.ndarray, weights: np.ndarray | None, samples: int, seed: int) -> tuple[float, float]:
    """The 95 % percentile interval of the mean of ``values`` (n,), from ``samples`` draws of n with replacement.

    With ``weights`` (n,) the values are sums over groups (texts) of that many members, and the mean is over members.
    """
    rng = np.random.default_rng(seed)
    weights = np.ones(len(values)) if weights is None else weights
    means = []
    for start in range(0, samples, ROWS_AT_ONCE):
        drawn = rng.integers(len(values), size=(min(ROWS_AT_ONCE, samples - start), len(values)))
        means.append(values[drawn].sum(1) / weights[drawn].sum(1).clip(min=1))
    low, high = np.quantile(np.concatenate(means), [(1 - LEVEL) / 2, (1 + LEVEL) / 2])
    return float(low), float(high)
