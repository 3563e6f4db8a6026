"""Is training going wrong? What long Quiet-STaR training is known to end in, told while there is time to stop it.

Each rule compares the means over the last `WINDOW` logged steps with those over the first ones.
"""

import math
from collections import deque
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


WATCHED = tuple(dict.fromkeys(rule.watched for rule in RULES))


class Watch:
    """Reads a training log, and tells of each rule once, at the first row where it is broken."""

    def __init__(self):
        self._last: deque[Mapping[str, float]] = deque(maxlen=WINDOW)
        self._start: dict[str, float] = {}
        self._told: set[Rule] = set()

    def add(self, row: Mapping[str, float]) -> Iterator[str]:
        """What to warn of after the next logged step; a column that it has not, or that is blank, breaks no rule."""
        self._last.append(row)
        if len(self._last) < WINDOW:
            return
        now = {name: sum(one.get(name, math.nan) for one in self._last) / WINDOW for name in WATCHED}
        start = self._start = self._start or now
        for rule in RULES:
            if rule not in self._told and rule.broken(start[rule.watched], now[rule.watched]):
                self._told.add(rule)
                yield _sentence(rule, int(row["step"]), start[rule.watched], now[rule.watched])


def warnings(steps: pd.DataFrame) -> Iterator[str]:
    """What a training log (a row a logged step) should be read with: each rule at the first step where it is broken."""
    watch = Watch()
    for row in steps.to_dict("records"):
        yield from watch.add(row)


def _sentence(rule: Rule, step: int, start: float, now: float) -> str:
    name = rule.watched.replace("_", " ")
    return f"step {step}: {rule.told}: {name} {now:.3g} over the last {WINDOW} steps, {start:.3g} over the first"
