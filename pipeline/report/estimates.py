"""Estimates with their intervals, the verdict that an interval allows, and how numbers are written."""

from collections.abc import Callable, Mapping
from typing import NamedTuple, Self

import pandas as pd

MINUS, SPACE = "\N{MINUS SIGN}", "\N{NO-BREAK SPACE}"
ABOVE, BELOW, UNDECIDED = "above", "below", "undecided"


class Estimate(NamedTuple):
    """A mean and the ends of its 95% interval, in one unit; NaN where it has no interval."""

    mean: float
    low: float
    high: float

    @classmethod
    def of(cls, values: Mapping, mean: str = "mean", ends: str = "ci_") -> Self:
        """Read a row or a section of metrics; ``ends`` comes before the names low and high of the interval's ends."""
        return cls(values[mean], values[f"{ends}low"], values[f"{ends}high"])

    @property
    def verdict(self) -> str:
        """On which side of zero the whole interval lies."""
        if self.low > 0:
            return ABOVE
        return BELOW if self.high < 0 else UNDECIDED


class Finding(NamedTuple):
    """A sentence and the verdict that it states."""

    text: str
    verdict: str


def decimal(value: float) -> str:
    return _signed(f"{value:.3f}")


def percent(share: float) -> str:
    return _signed(f"{100 * share:.1f}%")


def points(share: float) -> str:
    """A difference of shares in percentage points."""
    return _signed(f"{100 * share:+.1f}")


def nats(value: float) -> str:
    """A difference of losses."""
    return _signed(f"{value:+.3f}")


def p_value(value: float | None) -> str:
    """Nothing where no test was made (None or NaN)."""
    if pd.isna(value):
        return ""
    return f"p{SPACE}<{SPACE}0.001" if value < 0.001 else f"p{SPACE}={SPACE}{value:.3f}"


def whole(value: float) -> str:
    return f"{value:,.0f}"


def counted(number: float, what: str) -> str:
    return f"{number:,.0f} {what}" if number == 1 else f"{number:,.0f} {what}s"


def interval(estimate: Estimate, show: Callable[[float], str]) -> str:
    """The mean and its interval, written by ``show``, without a line break inside."""
    if pd.isna(estimate.low):
        return f"{show(estimate.mean)} (no{SPACE}interval)"
    return f"{show(estimate.mean)} [{show(estimate.low)},{SPACE}{show(estimate.high)}]"


def listed(parts: list[str]) -> str:
    """The parts as a list in a sentence."""
    return " and ".join(part for part in [", ".join(parts[:-1]), *parts[-1:]] if part)


def _signed(number: str) -> str:
    """``number`` with a true minus sign, and without a sign where it is rounded to zero."""
    if not number.strip("+-0.%"):
        return number.lstrip("+-")
    return number.replace("-", MINUS)
