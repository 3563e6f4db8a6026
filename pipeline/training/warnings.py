"""Warnings of what long Quiet-STaR training is known to drift into, while there is time to stop it.

Each rule compares the means over the last `WINDOW` logged steps with those over the first ones. The exception is harm:
the held-out loss without thoughts is compared with what it was before the first step.
"""

import math
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass

import pandas as pd

WINDOW = 20  # logged steps
HELDOUT_LOSS = "eval_base_loss"  # in the Trainer's log: held-out, without thoughts, nats a token
HARM = 0.005  # nats a token that predictions without thoughts may lose through training


@dataclass(frozen=True)
class Rule:
    """``broken`` takes the column's mean at the start and now; ``message`` says what it means if it is true."""

    column: str
    broken: Callable[[float, float], bool]
    message: str


RULES = (
    Rule("thought_entropy", lambda start, now: now < start / 10, "thoughts have become nearly always the same"),
    Rule("thought_entropy", lambda start, now: now > start * 2, "thoughts have become noise"),
    Rule("reward", lambda start, now: now < -0.1, "thoughts make the text after them less likely"),
    Rule("mixing_weight", lambda start, now: now < -0.05, "predictions are pushed away from what thoughts say"),
    Rule("mixing_weight", lambda start, now: start <= 0.95 < now, "predictions without thoughts no longer count"),
)
WATCHED = tuple(dict.fromkeys(rule.column for rule in RULES))


class Watch:
    """Reads a training log row by row, and reports each rule once, at the first row where it is broken."""

    def __init__(self):
        self._last: deque[Mapping[str, float]] = deque(maxlen=WINDOW)
        self._start: dict[str, float] = {}
        self._reported: set[Rule] = set()
        self._before: float | None = None
        self._harmed = False

    def add(self, row: Mapping[str, float]) -> Iterator[str]:
        """The new warnings after the next logged row, of a step or of held-out text; a blank column breaks no rule."""
        if HELDOUT_LOSS in row:
            self._before = row[HELDOUT_LOSS] if self._before is None else self._before
            if not self._harmed and row[HELDOUT_LOSS] > self._before + HARM:
                self._harmed = True
                yield (
                    f"step {int(row['step'])}: training harms the model: held-out loss without thoughts "
                    f"{row[HELDOUT_LOSS]:.4f}, {self._before:.4f} before training"
                )
            return
        self._last.append(row)
        if len(self._last) < WINDOW:
            return
        means = {name: _mean(one.get(name, math.nan) for one in self._last) for name in WATCHED}
        self._start = {name: mean for name, mean in means.items() if not math.isnan(mean)} | self._start
        for rule in RULES:
            start, now = self._start.get(rule.column, math.nan), means[rule.column]
            if rule not in self._reported and rule.broken(start, now):
                self._reported.add(rule)
                yield (
                    f"step {int(row['step'])}: {rule.message}: {rule.column.replace('_', ' ')} {now:.3g} over the last "
                    f"{WINDOW} steps, {start:.3g} over the first"
                )


def _mean(values: Iterable[float]) -> float:
    """The mean of those that are there; steps in which nothing thinks are blank."""
    there = [value for value in values if not math.isnan(value)]
    return sum(there) / len(there) if there else math.nan


def warnings(steps: pd.DataFrame, heldout: pd.DataFrame) -> Iterator[str]:
    """The warnings of a whole training log: a row a logged step, and a row a measurement of held-out text."""
    watch, measured = Watch(), heldout[["step", "base_loss"]].rename(columns={"base_loss": HELDOUT_LOSS})
    for row in steps.to_dict("records") + measured.to_dict("records"):
        yield from watch.add(row)
