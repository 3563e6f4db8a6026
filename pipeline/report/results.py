"""The run's own results: each task and held-out text, with thoughts and without."""

from dataclasses import dataclass

from pipeline.report.estimates import (
    ABOVE,
    BELOW,
    UNDECIDED,
    Estimate,
    Finding,
    decimal,
    nats,
    p_value,
    percent,
    points,
    spoken,
    whole,
)
from pipeline.report.method import Method
from pipeline.report.reading import Metrics

OPENINGS = {ABOVE: "{act} helps on {where}", BELOW: "{act} hurts on {where}", UNDECIDED: "Undecided on {where}"}


@dataclass(frozen=True)
class Measure:
    """One measure by way of answering (shares from 0 to 1), and what thoughts change, where there are any."""

    label: str
    by_way: dict[str, float]
    difference: Estimate | None


@dataclass(frozen=True)
class Task:
    """A task's results over ``n`` questions; ``p_value``: McNemar's on accuracy."""

    name: str
    n: int
    accuracy: Measure
    probability: Measure
    p_value: float | None


@dataclass(frozen=True)
class HeldOut:
    """Results on held-out text by way of reading: ``loss`` in nats per token; a positive ``improvement`` is a gain."""

    texts: int
    tokens: int
    loss: dict[str, float]
    perplexity: dict[str, float]
    improvement: Estimate | None


def tasks(metrics: Metrics, method: Method) -> list[Task]:
    return [
        Task(
            name=name,
            n=int(metrics.number(name, "n")),
            accuracy=_measure(metrics, method, name, "accuracy", "accuracy", ""),
            probability=_measure(metrics, method, name, "probability of the right answer", "prob", "prob_"),
            p_value=metrics.number(name, "difference", "p_value") if method.thinks else None,
        )
        for name in metrics.values
    ]


def _measure(metrics: Metrics, method: Method, task: str, label: str, key: str, prefix: str) -> Measure:
    ends = (key, f"{prefix}ci_low", f"{prefix}ci_high")
    difference = Estimate(*(metrics.number(task, "difference", name) for name in ends)) if method.thinks else None
    return Measure(label, {way: metrics.number(task, way, key) for way in method.ways}, difference)


def held_out(metrics: Metrics, method: Method) -> HeldOut:
    ways = [way for way in method.ways if way != "base"]
    return HeldOut(
        texts=int(metrics.number("n_texts")),
        tokens=int(metrics.number("n_tokens")),
        loss={way: metrics.number("loss", way) for way in ways},
        perplexity={way: metrics.number("perplexity", way) for way in ways},
        improvement=read_estimate(metrics, "mean", "improvement") if method.thinks else None,
    )


def read_estimate(metrics: Metrics, mean: str, *keys: str) -> Estimate:
    """The estimate at ``keys``, whose mean has the name ``mean``."""
    return Estimate(*(metrics.number(*keys, name) for name in (mean, "ci_low", "ci_high")))


def own_findings(found: list[Task], text: HeldOut, method: Method) -> list[Finding]:
    """The verdicts that the run's intervals allow; none where nothing thinks."""
    if not method.thinks:
        return []
    return [*(_task_finding(task, method) for task in found), _held_out_finding(text, method)]


def _task_finding(task: Task, method: Method) -> Finding:
    difference, shares = task.accuracy.difference, task.accuracy.by_way
    change = f"accuracy is {percent(shares['no_thought'])} without {method.many} and {percent(shares['thought'])} with"
    gain = spoken(difference, points, "points", p_value(task.p_value), f"{whole(task.n)} questions")
    return Finding(f"{opening(difference, task.name, method)}: {change}, {gain}.", difference.verdict)


def _held_out_finding(text: HeldOut, method: Method) -> Finding:
    change = f"the loss is {decimal(text.loss['no_thought'])} without {method.many} and {decimal(text.loss['thought'])}"
    gain = spoken(text.improvement, nats, "nats per token", f"{whole(text.texts)} texts")
    sentence = f"{opening(text.improvement, 'held-out text', method)}: {change} with, an improvement of {gain}."
    return Finding(sentence, text.improvement.verdict)


def opening(estimate: Estimate, where: str, method: Method) -> str:
    """How a sentence about this estimate may begin."""
    return OPENINGS[estimate.verdict].format(act=method.act, where=where)
