"""The ways of training against each other: what the page calls them, and what their comparisons say."""

from dataclasses import dataclass

import pandas as pd

from pipeline.report.estimates import (
    ABOVE,
    BELOW,
    UNDECIDED,
    Estimate,
    Finding,
    interval,
    listed,
    points,
    whole,
)
from pipeline.report.method import Method

ARMS = {
    "base": "base model",
    "no_thought": "no thoughts",
    "pause": "pauses",
    "pause, thoughts off": "pauses, left out",
    "quiet_star": "Quiet-STaR",
    "quiet_star, thoughts off": "Quiet-STaR, thoughts off",
}
SPOKEN = {
    "base": "the base model",
    "no_thought": "training without thoughts",
    "pause": "training with pauses",
}
MEASURES = {"accuracy": "accuracy", "prob": "probability of the right answer"}
STANDS = {
    ABOVE: "has a higher accuracy than",
    BELOW: "has a lower accuracy than",
    UNDECIDED: "cannot be told apart from",
}


@dataclass(frozen=True)
class Comparison:
    """``arm`` minus ``against``, a difference of shares; the last three are None for a probability."""

    task: str
    measure: str
    arm: str
    against: str
    seeds: int
    n: int
    difference: Estimate
    only_arm: float | None
    only_against: float | None
    p_value: float | None


@dataclass(frozen=True)
class Arm:
    """A row of the table behind the figure: a mean and its interval, shares."""

    task: str
    measure: str
    name: str
    seeds: int
    n: int
    mean: Estimate


def arm_name(arm: str) -> str:
    """The arm in words; one that is not known keeps its name."""
    return ARMS.get(arm, arm)


def arms(figures: pd.DataFrame) -> list[Arm]:
    return [
        Arm(
            task=row.task,
            measure=MEASURES.get(row.measure, row.measure),
            name=arm_name(row.arm),
            seeds=int(row.seeds),
            n=int(row.n),
            mean=Estimate(row.mean, row.ci_low, row.ci_high),
        )
        for row in figures.itertuples()
    ]


def comparisons(table: pd.DataFrame) -> list[Comparison]:
    return [
        Comparison(
            task=row.task,
            measure=row.measure,
            arm=row.arm,
            against=row.against,
            seeds=int(row.seeds),
            n=int(row.n),
            difference=Estimate(row.difference, row.ci_low, row.ci_high),
            only_arm=_optional(row.only_arm),
            only_against=_optional(row.only_against),
            p_value=_optional(row.p_value),
        )
        for row in table.itertuples()
    ]


def _optional(value: float) -> float | None:
    return None if pd.isna(value) else value


def findings(found: list[Comparison], method: Method) -> list[Finding]:
    """A sentence a task: how the run's accuracy stands against other ways of training."""
    about = [
        one
        for one in found
        if one.measure == "accuracy" and one.arm == method.key and one.against != thoughts_off(method)
    ]
    return [_finding(task, [one for one in about if one.task == task]) for task in dict.fromkeys(o.task for o in about)]


def thoughts_off(method: Method) -> str:
    """The arm of the trained model that answers without its thoughts."""
    return f"{method.key}, thoughts off"


def _finding(task: str, against: list[Comparison]) -> Finding:
    by_verdict = {verdict: [one for one in against if one.difference.verdict == verdict] for verdict in STANDS}
    parts = [
        f"{STANDS[verdict]} {listed([_stand(one) for one in some])}" for verdict, some in by_verdict.items() if some
    ]
    found = [verdict for verdict, some in by_verdict.items() if some]
    text = f"On {task}, {_spoken(against[0].arm)} {'; it '.join(parts)}."
    return Finding(text, found[0] if len(found) == 1 else UNDECIDED)


def _stand(one: Comparison) -> str:
    return f"{_spoken(one.against)} ({interval(one.difference, points)} points)"


def _spoken(arm: str) -> str:
    return SPOKEN.get(arm, arm_name(arm))


def seeds_sentence(found: list[Arm]) -> str:
    """How many runs and questions the arms' figures rest on."""
    if not found:
        return "No other ways of training were compared with this run."
    seeds, questions = (sorted({getattr(arm, name) for arm in found}) for name in ("seeds", "n"))
    runs = "1 seed" if seeds == [1] else f"{_span(seeds)} seeds"
    return f"{runs} for each way of training, {_span(questions)} questions for each task."


def coverage_sentence(found: list[Arm]) -> str:
    """What the intervals of the comparisons leave out, or hardly hold."""
    if any(arm.seeds > 1 for arm in found):
        return "Those of the ways of training cover the choice of seed as well, but with few seeds they are too narrow."
    return "They do not cover the choice of seed."


def right_alone(one: Comparison) -> str:
    """Questions that only the one and only the other has right, means over seeds; blank for a probability."""
    if one.only_arm is None or one.only_against is None:
        return ""
    return f"{_count(one.only_arm)} : {_count(one.only_against)}"


def _count(value: float) -> str:
    return f"{value:,.1f}".removesuffix(".0")


def _span(numbers: list[int]) -> str:
    return whole(numbers[0]) if len(numbers) == 1 else f"{whole(numbers[0])} to {whole(numbers[-1])}"
