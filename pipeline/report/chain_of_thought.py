"""Results where the model writes its reasoning out before it answers, several times, and the majority counts."""

from dataclasses import dataclass

import pandas as pd

from pipeline.report.estimates import Estimate, Finding, p_value, percent, points, spoken, whole
from pipeline.report.method import Method
from pipeline.report.reading import Metrics
from pipeline.report.results import opening, read_estimate


@dataclass(frozen=True)
class Vote:
    """Accuracy by one measure (accuracy@1, maj@2, ...), shares.

    ``difference``: thoughts minus none, where any think; ``p_value``: McNemar's, of the largest majority alone.
    """

    measure: str
    by_way: dict[str, float]
    difference: Estimate | None
    p_value: float | None


@dataclass(frozen=True)
class Reasoning:
    """A task's votes over ``n`` questions of ``samples`` samples each."""

    task: str
    n: int
    samples: int
    votes: list[Vote]


def reasoning(metrics: Metrics, method: Method) -> list[Reasoning]:
    """One a task that has chain-of-thought figures, which may be none."""
    return [
        Reasoning(
            task=task,
            n=int(metrics.number(task, "n")),
            samples=int(metrics.number(task, "samples")),
            votes=[_vote(metrics, method, task, measure) for measure in metrics.names(task, "no_thought")],
        )
        for task in metrics.values
    ]


def _vote(metrics: Metrics, method: Method, task: str, measure: str) -> Vote:
    ways = [way for way in method.ways if way != "base"]
    shares = {way: metrics.number(task, way, measure) for way in ways}
    if not method.thinks:
        return Vote(measure, shares, None, None)
    difference = (task, "difference", measure)
    tested = "p_value" in metrics.names(*difference)
    test = metrics.number(*difference, "p_value") if tested else None
    return Vote(measure, shares, read_estimate(metrics, "mean", *difference), test)


def without_reasoning(tasks: list[str], found: list[Reasoning]) -> list[str]:
    """The tasks that have no chain-of-thought figures."""
    return [task for task in tasks if task not in {one.task for one in found}]


def findings(found: list[Reasoning], method: Method) -> list[Finding]:
    """A verdict a task, from the largest majority."""
    return [_finding(one, one.votes[-1], method) for one in found if method.thinks and one.votes]


def _finding(one: Reasoning, vote: Vote, method: Method) -> Finding:
    shares = vote.by_way
    change = f"{vote.measure} is {percent(shares['no_thought'])} without {method.many} and {percent(shares['thought'])}"
    test = [] if vote.p_value is None else [p_value(vote.p_value)]
    gain = spoken(vote.difference, points, "points", *test, f"{whole(one.n)} questions")
    where = f"{one.task} with written reasoning"
    return Finding(f"{opening(vote.difference, where, method)}: {change} with, {gain}.", vote.difference.verdict)


def of_task(votes: pd.DataFrame, task: str, method: Method) -> pd.DataFrame:
    """This task's rows of the ways that the run has."""
    return votes[(votes["task"] == task) & votes["way"].isin(method.ways)]
