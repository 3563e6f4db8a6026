"""cot-maj@k: does thinking help if reasoning is written out and the majority of k answers counts?

Zelikman et al. 2024 (arXiv 2403.09629), section 5; the vote is self-consistency (Wang et al. 2022, arXiv 2203.11171).
`samples` is the protocol (reason, then answer) and reads the votes, from which this file computes accuracy and maj@k.
"""

from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from itertools import islice
from math import comb
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pandas as pd
import pyarrow as pa

from pipeline.data.tasks.questions import read_tasks
from pipeline.evaluation.chain_of_thought.samples import ask
from pipeline.evaluation.names import NO_THOUGHT, THOUGHT
from pipeline.evaluation.prompts import AskedModel
from pipeline.evaluation.shared import shared_scratch
from pipeline.evaluation.statistics import SHARE, SHARE_DIFFERENCE, Totals, difference, mean, mean_interval, totals
from pipeline.files import write_json, write_rows, write_table
from pipeline.models.base import read_tokenizer
from pipeline.models.device import autocast, pick_device
from pipeline.models.trained import base_of, load_trained, put
from pipeline.params import ChainOfThought
from pipeline.thought.sampler import Sampling
from pipeline.training.processes import is_main

QUESTION = {"task": pa.string(), "index": pa.int64(), "way": pa.string(), "sample": pa.int64()}
SAMPLES = pa.schema(QUESTION | dict.fromkeys(("text", "vote", "answer"), pa.string()) | {"correct": pa.bool_()})


class Points(NamedTuple):
    """The points of `majority` (questions, sizes), and the questions' groups (questions,)."""

    points: np.ndarray
    groups: list[str]

    def totals(self) -> Iterator[Totals]:
        """The totals by group for each of `sizes`."""
        for column in self.points.T:
            yield totals(column, self.groups)


def write_chain_of_thought(params: ChainOfThought, trained: Path, tasks: Path, results: Path) -> None:
    """Ask the model in ``trained`` to reason, then answer; write samples.parquet, votes.csv and metrics.json.

    Only the tasks in ``tasks`` with a chain_of_thought section are asked. Several processes, which all call this, share
    the batches, and the main one writes. After a kill the same call samples only what is missing and writes the same
    bytes (`pipeline.resume`).
    """
    device = pick_device(params.device)
    inputs = [path for path in (trained, base_of(trained), tasks) if path is not None]
    with (
        shared_scratch("chain_of_thought", params, device, inputs, Path(__file__)) as scratch,
        autocast(device, params.precision),
    ):
        model = put(load_trained(trained), device, params.precision)
        sampling = Sampling(params.thought_temperature, params.seed)
        asked, places = AskedModel(model, read_tokenizer(trained), sampling, params.batch_size), []
        for name, (task, questions) in read_tasks(tasks).items():
            if task.chain_of_thought is not None:
                places += ask(asked, params, name, task.chain_of_thought, islice(questions, params.questions), scratch)
        if not is_main():
            return
        write_rows(results / "samples.parquet", samples_of(scratch.rows[place] for place in places), SAMPLES)
        points = points_of(scratch.rows[place] for place in places)
        write_table(results / "votes.csv", votes_of(points, params.samples))
        write_json(results / "metrics.json", metrics_of(points, params.samples))


def samples_of(rows: Iterable[dict]) -> Iterator[dict]:
    """A row of `SAMPLES` for each sample; its index is the question's, and its vote "" if there is none."""
    for row in rows:
        about = {name: row[name] for name in ("task", "index", "way", "answer")}
        for i, (text, vote) in enumerate(zip(row["texts"], row["votes"], strict=True)):
            yield about | {"sample": i, "text": text, "vote": vote, "correct": vote == row["answer"]}


def sizes(samples: int) -> list[int]:
    """The k of maj@k: the powers of two up to ``samples``, and ``samples`` itself."""
    return sorted({2**i for i in range(samples.bit_length())} | {samples})


def majority(votes: Sequence[str], answer: str) -> np.ndarray:
    """How right the majority of k ``votes`` is, for each k of `sizes`: the exact mean over all subsets of k.

    A subset gives one point, shared among its most frequent answers. "" is no vote; a subset of nothing else is wrong.
    The sum runs over how often each answer is in a subset, so that 64 samples take only some milliseconds.
    """
    counts = Counter(votes)
    blank, right = counts.pop("", 0), counts.pop(answer, 0)
    points = np.zeros(len(votes) + 1)  # summed over all subsets, by their size
    for most in range(1, right + 1):
        # count the subsets of wrong answers and blanks with no answer more than `most` times: by their size, and by
        # how many answers are in them exactly `most` times, as often as the right answer
        largest = len(votes) - most
        ways = np.zeros((largest + 1, largest // most + 1))
        ways[: blank + 1, 0] = [comb(blank, size) for size in range(min(blank, largest) + 1)]
        for count in counts.values():
            before, ways = ways, np.zeros_like(ways)
            for taken in range(min(count, most, largest) + 1):
                tied = int(taken == most)
                ways[taken:, tied:] += comb(count, taken) * before[: largest + 1 - taken, : ways.shape[1] - tied]
        points[most:] += (comb(right, most) * ways) @ (1 / np.arange(1, ways.shape[1] + 1))
    return np.array([points[k] / comb(len(votes), k) for k in sizes(len(votes))])


def points_of(rows: Iterable[dict]) -> dict[tuple[str, str], Points]:
    """The points of the rows of `samples.ask`, by task and way."""
    found: dict[tuple[str, str], Points] = {}
    for row in rows:
        points, groups = found.setdefault((row["task"], row["way"]), Points([], []))
        points.append(majority(row["votes"], row["answer"]))
        groups.append(row["group"])
    return {key: Points(np.stack(points), groups) for key, (points, groups) in found.items()}


def votes_of(points: dict[tuple[str, str], Points], samples: int) -> pd.DataFrame:
    """A row for each task, way and k: the accuracy of n questions with its 95 % interval over their groups."""
    rows = []
    for (task, way), asked in points.items():
        n, groups = len(asked.groups), len(set(asked.groups))
        for k, side in zip(sizes(samples), asked.totals(), strict=True):
            rows.append((task, way, k, mean(side), *mean_interval(side, SHARE), n, groups))
    return pd.DataFrame(rows, columns=["task", "way", "k", "accuracy", "ci_low", "ci_high", "n", "groups"])


def metrics_of(points: dict[tuple[str, str], Points], samples: int) -> dict[str, dict]:
    """By task: accuracy@1 and maj@k of each way and, if there are two, thought minus no thought with its interval.

    Intervals are over groups of questions. The p-value (None for fewer than six groups) compares the majorities of all
    samples.
    """
    metrics: dict[str, dict] = {}
    names = [f"maj@{k}" if k > 1 else "accuracy@1" for k in sizes(samples)]
    for (task, way), asked in points.items():
        counts = {"n": len(asked.groups), "groups": len(set(asked.groups)), "samples": samples}
        about = metrics.setdefault(task, counts)
        about[way] = {name: float(mean(side)) for name, side in zip(names, asked.totals(), strict=True)}
        if way == NO_THOUGHT and (task, THOUGHT) in points:
            about["difference"] = {}
            for name, one, other in zip(names, points[task, THOUGHT].totals(), asked.totals(), strict=True):
                found = difference(one, other, SHARE_DIFFERENCE)
                about["difference"][name] = {"mean": found.value, "ci_low": found.low, "ci_high": found.high}
            p_value = float(found.p_value)  # of all samples, the last
            about["difference"][names[-1]]["p_value"] = None if np.isnan(p_value) else p_value
    return metrics
