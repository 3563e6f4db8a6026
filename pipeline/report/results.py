"""The headline numbers and the verdict that each interval allows."""

from collections.abc import Callable
from dataclasses import dataclass

from pipeline.report.inputs import Metrics

MINUS = "\N{MINUS SIGN}"
HELPS, HURTS, UNDECIDED = "helps", "hurts", "undecided"


@dataclass(frozen=True)
class Estimate:
    """A mean and the ends of its 95% interval, in one unit; above zero means that thoughts help."""

    mean: float
    low: float
    high: float

    @property
    def verdict(self) -> str:
        if self.low > 0:
            return HELPS
        return HURTS if self.high < 0 else UNDECIDED


@dataclass(frozen=True)
class Measure:
    """One measure without and with thoughts."""

    without: float
    thought: float
    difference: Estimate


@dataclass(frozen=True)
class Task:
    """A task's results over ``n`` questions: shares from 0 to 1."""

    name: str
    n: int
    accuracy: Measure
    probability: Measure


@dataclass(frozen=True)
class HeldOut:
    """Results on held-out text: ``loss`` in nats per token, its difference being the improvement."""

    texts: int
    tokens: int
    loss: Measure
    perplexity_without: float
    perplexity_thought: float
    mixing_weight: float


def tasks(metrics: Metrics) -> list[Task]:
    return [
        Task(
            name=name,
            n=int(metrics.number(name, "n")),
            accuracy=_measure(metrics, name, "accuracy", ""),
            probability=_measure(metrics, name, "prob", "prob_"),
        )
        for name in metrics.values
    ]


def _measure(metrics: Metrics, task: str, key: str, prefix: str) -> Measure:
    difference = (metrics.number(task, "difference", name) for name in (key, f"{prefix}ci_low", f"{prefix}ci_high"))
    return Measure(
        without=metrics.number(task, "no_thought", key),
        thought=metrics.number(task, "thought", key),
        difference=Estimate(*difference),
    )


def held_out(metrics: Metrics) -> HeldOut:
    improvement = Estimate(*(metrics.number("improvement", name) for name in ("mean", "ci_low", "ci_high")))
    return HeldOut(
        texts=int(metrics.number("n_texts")),
        tokens=int(metrics.number("n_tokens")),
        loss=Measure(metrics.number("loss", "no_thought"), metrics.number("loss", "thought"), improvement),
        perplexity_without=metrics.number("perplexity", "no_thought"),
        perplexity_thought=metrics.number("perplexity", "thought"),
        mixing_weight=metrics.number("mixing_weight"),
    )


def training_facts(metrics: Metrics) -> list[tuple[str, str]]:
    """What was trained, as (label, value) pairs; the working share only where it was measured."""
    facts = [
        ("parameters", f"{metrics.number('parameters'):,.0f}"),
        ("optimizer steps", f"{metrics.number('steps'):,.0f}"),
        ("tokens of text read", f"{metrics.number('text_tokens'):,.0f}"),
        ("held-out loss without thoughts, nats", _change(metrics, decimal, "heldout", "base_loss")),
        ("held-out loss with thoughts, nats", _change(metrics, decimal, "heldout", "talk_loss")),
    ]
    if metrics.at("working_share") is not None:
        facts.append(("thoughts that hold the right working", _change(metrics, percent, "working_share")))
    return facts


def _change(metrics: Metrics, show: Callable[[float], str], section: str, *keys: str) -> str:
    first, last = (show(metrics.number(section, when, *keys)) for when in ("first", "last"))
    return f"{first} → {last}"


def task_sentence(task: Task) -> str:
    """The verdict on a task in words, from the interval of the difference in accuracy."""
    accuracy = task.accuracy
    change = f"accuracy went from {percent(accuracy.without)} to {percent(accuracy.thought)}"
    return f"{_opening(accuracy.difference, task.name)}: {change}, {_spoken(accuracy.difference, points, 'points')}."


def held_out_sentence(text: HeldOut) -> str:
    """The verdict on held-out text in words, from the interval of the improvement."""
    improvement = text.loss.difference
    change = f"the loss went from {decimal(text.loss.without)} to {decimal(text.loss.thought)}"
    gain = _spoken(improvement, nats, "nats per token")
    return f"{_opening(improvement, 'held-out text')}: {change}, an improvement of {gain}."


def _opening(estimate: Estimate, where: str) -> str:
    return f"Undecided on {where}" if estimate.verdict == UNDECIDED else f"Thinking {estimate.verdict} on {where}"


def _spoken(estimate: Estimate, show: Callable[[float], str], unit: str) -> str:
    zero = ", which includes zero" if estimate.verdict == UNDECIDED else ""
    return f"{show(estimate.mean)} {unit} (95% interval {show(estimate.low)} to {show(estimate.high)}{zero})"


def interval(estimate: Estimate, show: Callable[[float], str]) -> str:
    """The mean and its interval, written by ``show``."""
    return f"{show(estimate.mean)} [{show(estimate.low)}, {show(estimate.high)}]"


def decimal(value: float) -> str:
    return f"{value:.3f}".replace("-", MINUS)


def percent(share: float) -> str:
    return f"{100 * share:.1f}%".replace("-", MINUS)


def points(share: float) -> str:
    """A difference of shares in percentage points."""
    return f"{100 * share:+.1f}".replace("-", MINUS)


def nats(value: float) -> str:
    return f"{value:+.3f}".replace("-", MINUS)
