"""The token heat map: sample passages whose tokens are coloured by what the thought before them changed."""

from dataclasses import dataclass

import pandas as pd

from pipeline.report.results import decimal, nats

CLEAREST = 0.95  # the quantile of the improvement's size that gets the full colour: outliers would fade the rest
CONTROLS = {code: chr(0x2400 + code) for code in range(32)} | {ord("\t"): "⇥", ord("\n"): "⏎\n", 0x7F: "␡"}


@dataclass(frozen=True)
class Cell:
    """A token as the page shows it: ``strength`` (0..1) of the colour of ``side``; losses in nats."""

    shown: str
    side: str
    strength: str
    without: str
    with_thought: str
    improvement: str
    weight: str
    thought: str


@dataclass(frozen=True)
class HeatMap:
    """``passages``: a list of cells each; ``full_colour``: the improvement in nats that gets the full colour."""

    passages: list[list[Cell]]
    full_colour: str


def visible(text: str) -> str:
    """``text`` with signs for what would not show: line breaks (which stay), control characters, spaces alone."""
    if not text.strip(" "):
        return "␣" * len(text)
    return text.translate(CONTROLS)


def heat_map(tokens: pd.DataFrame, passages: int) -> HeatMap:
    """The first ``passages`` texts of ``tokens``, which are in reading order; one colour scale for all texts."""
    improvement = tokens["nll_no_thought"] - tokens["nll_thought"]
    full = improvement.abs().quantile(CLEAREST) or 1.0
    shown = tokens["text"].unique()[:passages]
    cells = [[_cell(row, full) for row in tokens[tokens["text"] == text].itertuples()] for text in shown]
    return HeatMap(passages=cells, full_colour=f"{full:.2f}")


def _cell(row, full: float) -> Cell:
    improvement = row.nll_no_thought - row.nll_thought
    return Cell(
        shown=visible(row.token),
        side="help" if improvement >= 0 else "hurt",
        strength=f"{min(abs(improvement) / full, 1):.2f}",
        without=decimal(row.nll_no_thought),
        with_thought=decimal(row.nll_thought),
        improvement=nats(improvement),
        weight=decimal(row.weight),
        thought=visible(row.thought),
    )
