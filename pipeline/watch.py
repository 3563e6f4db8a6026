"""Is training going wrong? What long Quiet-STaR training is known to end in, told while there is time to stop it.

Each rule compares the means over the last `WINDOW` logged steps with those over the first ones.
"""

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass

import pandas as pd

WINDOW = 20  # logged steps


@dataclass(frozen=True)
class Rule:
    """``broken`` says whether the mean of the column ``watched`` is bad, given those at the start and now."""

    watched: str
    broken: Callable[[float, float], bool]
    told: str


RULES = (
    Rule("thought_entropy", lambda start, now: now < start / 10, "thoughts have become nearly always the same"),
    Rule("thought_entropy", lambda start, now: now > start * 2, "thoughts have become noise"),
    Rule("reward", lambda start, now: now < -0.1, "thoughts make the text after them less likely"),
    Rule("mixing_weight", lambda start, now: now < -0.05, "predictions are pushed away from what thoughts say"),
    Rule("mixing_weight", lambda start, now: now > 0.95, "predictions without thoughts no longer count"),
)


def broken(start: Mapping[str, float], now: Mapping[str, float]) -> list[Rule]:
    """The rules that are broken, given the columns' means at the start and now; a missing column breaks none."""
    return [rule for rule in RULES if rule.watched in now and rule.broken(start[rule.watched], now[rule.watched])]


def warnings(steps: pd.DataFrame) -> Iterator[str]:
    """What a training log (a row a logged step) should be read with: each rule at the first step where it is broken."""
    names = [name for name in dict.fromkeys(rule.watched for rule in RULES) if steps[name].notna().all()]
    means = steps[names].rolling(WINDOW).mean()[WINDOW - 1 :]
    told: set[Rule] = set()
    for place, now in means.iterrows():
        for rule in broken(means.iloc[0], now):
            if rule not in told:
                told.add(rule)
                yield sentence(rule, int(steps["step"][place]), means.iloc[0][rule.watched], now[rule.watched])


def sentence(rule: Rule, step: int, start: float, now: float) -> str:
    name = rule.watched.replace("_", " ")
    return f"step {step}: {rule.told}: {name} {now:.3g} over the last {WINDOW} steps, {start:.3g} over the first"
