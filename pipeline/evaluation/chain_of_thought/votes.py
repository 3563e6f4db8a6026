"""From samples to figures: how often one sample is right, and how often the majority of k is (cot-maj@k)."""

from collections import Counter
from collections.abc import Iterable, Sequence
from math import comb

import numpy as np
import pandas as pd

from pipeline.evaluation.statistics import interval, mcnemar
from pipeline.params import ChainOfThought


def sizes(samples: int) -> list[int]:
    """The k of maj@k: all powers of two up to ``samples``, and ``samples`` itself."""
    return sorted({2**i for i in range(samples.bit_length())} | {samples})


def measure(k: int) -> str:
    return f"maj@{k}" if k > 1 else "accuracy@1"


def majority(votes: Sequence[str], answer: str) -> np.ndarray:
    """How right the majority is, by `sizes`: the mean over all subsets of k of the ``votes``, none of them drawn.

    A subset has one point to share among its most frequent answers; "" is no vote, and nothing but those is wrong.
    Counted over how often each answer is in a subset: exact to rounding, at 64 samples in some milliseconds.
    """
    counts = Counter(votes)
    blank, right = counts.pop("", 0), counts.pop(answer, 0)
    points = np.zeros(len(votes) + 1)  # summed over all subsets, by their size
    for most in range(1, right + 1):
        ways = comb(right, most) * subsets(counts.values(), blank, most, len(votes) - most)
        points[most:] += ways @ (1 / np.arange(1, ways.shape[1] + 1))
    return np.array([points[k] / comb(len(votes), k) for k in sizes(len(votes))])


def subsets(counts: Iterable[int], blank: int, most: int, largest: int) -> np.ndarray:
    """How many subsets there are, by size (up to ``largest``) and by how many answers are in it ``most`` times.

    No answer is in it more often; ``counts`` says how often each one was given, ``blank`` how often none was.
    """
    ways = np.zeros((largest + 1, largest // most + 1))
    ways[: blank + 1, 0] = [comb(blank, size) for size in range(min(blank, largest) + 1)]
    for count in counts:
        before, ways = ways, np.zeros_like(ways)
        for taken in range(min(count, most, largest) + 1):
            tied = int(taken == most)
            ways[taken:, tied:] += comb(count, taken) * before[: largest + 1 - taken, : ways.shape[1] - tied]
    return ways


Points = dict[tuple[str, str], np.ndarray]  # by task and way


def points_of(rows: Iterable[dict]) -> Points:
    """`majority` (questions, sizes) of each task and way in the rows of `samples.Asker`."""
    points: dict[tuple[str, str], list[np.ndarray]] = {}
    for row in rows:
        points.setdefault((row["task"], row["way"]), []).append(majority(row["votes"], row["answer"]))
    return {key: np.stack(values) for key, values in points.items()}


def votes_of(points: Points, params: ChainOfThought) -> pd.DataFrame:
    """A row a task, way and k: accuracy with its 95 % interval over the n questions."""
    rows = []
    for (task, way), values in points.items():
        for k, column in zip(sizes(params.samples), values.T, strict=True):
            mean, low, high = _interval(column, params).values()
            about = {"task": task, "way": way, "k": k}
            rows.append(about | {"accuracy": mean, "ci_low": low, "ci_high": high, "n": len(column)})
    return pd.DataFrame(rows, columns=["task", "way", "k", "accuracy", "ci_low", "ci_high", "n"])


def metrics_of(points: Points, params: ChainOfThought) -> dict[str, dict]:
    """By task: accuracy@1 and maj@k of each way, and the paired difference where there are two."""
    metrics: dict[str, dict] = {}
    names = [measure(k) for k in sizes(params.samples)]
    for (task, way), values in points.items():
        about = metrics.setdefault(task, {"n": len(values), "samples": params.samples})
        about[way] = dict(zip(names, values.mean(0).tolist(), strict=True))
    for task, about in metrics.items():
        if "thought" in about:
            about["difference"] = _difference(points[task, "thought"], points[task, "no_thought"], params)
    return metrics


def _difference(thought: np.ndarray, no_thought: np.ndarray, params: ChainOfThought) -> dict[str, dict]:
    """Thought minus no_thought by k; with McNemar's p-value of the majority of all samples, right where it is alone."""
    columns = zip(sizes(params.samples), (thought - no_thought).T, strict=True)
    difference = {measure(k): _interval(column, params) for k, column in columns}
    difference[measure(params.samples)]["p_value"] = mcnemar(thought[:, -1] == 1, no_thought[:, -1] == 1)
    return difference


def _interval(values: np.ndarray, params: ChainOfThought) -> dict[str, float]:
    low, high = interval(values, None, params.bootstrap_samples, params.seed)
    return {"mean": float(values.mean()), "ci_low": low, "ci_high": high}
