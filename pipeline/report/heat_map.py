"""The token heat map: sample passages whose tokens are coloured by what the thought before them changed."""

from dataclasses import dataclass

import pandas as pd

from pipeline.report.estimates import decimal, nats

CLEAREST = 0.95  # the quantile of the improvement's size that gets the full colour: outliers would fade the rest
CONTROLS = {code: chr(0x2400 + code) for code in range(32)} | {ord("\t"): "⇥", ord("\n"): "⏎\n", 0x7F: "␡"}


@dataclass(frozen=True)
class Cell:
    """A token as the page shows it: ``strength`` (0..1) of the colour of ``side``; losses in nats.

    ``clearest``: the improvement is the largest of its passage.
    """

    shown: str
    side: str
    strength: str
    without: str
    with_thought: str
    improvement: str
    weight: str
    thought: str
    clearest: bool


@dataclass(frozen=True)
class HeatMap:
    """``passages``: a list of cells each; ``full_colour``: the improvement in nats that gets the full colour."""

    passages: list[list[Cell]]
    full_colour: str


def visible(text: str, breaks: bool = True) -> str:
    """``text`` with signs for what would not show: line breaks, control characters, spaces alone.

    A line breaks after its sign or, without ``breaks``, goes on.
    """
    if not text.strip(" "):
        return "␣" * len(text)
    shown = text.translate(CONTROLS)
    return shown if breaks else shown.replace("\n", " ")


def heat_map(tokens: pd.DataFrame, passages: int) -> HeatMap:
    """The first ``passages`` texts of ``tokens``, which are in reading order; one colour scale for all texts."""
    tokens = tokens.assign(improvement=tokens["nll_no_thought"] - tokens["nll_thought"])
    full = tokens["improvement"].abs().quantile(CLEAREST) or 1.0
    shown = tokens["text"].unique()[:passages]
    return HeatMap([_passage(tokens[tokens["text"] == text], full) for text in shown], full_colour=f"{full:.2f}")


def _passage(tokens: pd.DataFrame, full: float) -> list[Cell]:
    clearest = tokens["improvement"].idxmax()
    return [_cell(row, full, row.Index == clearest) for row in tokens.itertuples()]


def _cell(row, full: float, clearest: bool) -> Cell:
    return Cell(
        shown=visible(row.token),
        side="help" if row.improvement >= 0 else "hurt",
        strength=f"{min(abs(row.improvement) / full, 1):.2f}",
        without=decimal(row.nll_no_thought),
        with_thought=decimal(row.nll_thought),
        improvement=nats(row.improvement),
        weight=decimal(row.weight),
        thought=visible(row.thought),
        clearest=clearest,
    )
