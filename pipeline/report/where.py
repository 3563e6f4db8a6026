"""Where thoughts helped: tables and sentences about groups of held-out tokens and about the mixing weight."""

import re

import pandas as pd

from pipeline.report.estimates import ABOVE, BELOW, MINUS, UNDECIDED, Estimate, decimal, interval, nats, percent, whole
from pipeline.report.results import Cell, Table

TOGETHER = {
    ABOVE: "a larger mixing weight goes with a larger improvement",
    BELOW: "a larger mixing weight goes with a smaller improvement",
    UNDECIDED: "it is undecided whether mixing weight and improvement go together",
}


def group_name(group: str) -> str:
    """The name of a group of tokens; ranges of numbers get a typographic minus and dash."""
    return re.sub(r"(?<![\w–])-(?=[\d.])", MINUS, re.sub(r"(?<=\d)-(?=\d)", "–", group))


def group_table(title: str, what: str, groups: pd.DataFrame) -> Table:
    shows = {"base_loss": decimal, "helped": percent, "hurt": percent, "n": whole, "share": percent}
    rows = []
    for row in groups.to_dict("records"):
        cells = [Cell(group_name(row["group"])), Cell(interval(Estimate.of(row, "improvement"), nats))]
        rows.append([*cells, *(Cell(show(row[name])) for name, show in shows.items())])
    return Table(title, [what, "improvement", "loss before training", "helped", "hurt", "tokens", "share"], rows)


def range_sentence(groups: pd.DataFrame, what: str) -> str:
    """The groups with the largest and the smallest improvement, with their intervals."""
    improvement = groups["improvement"]
    largest, smallest = (
        f"{what} {group_name(row['group'])}, {interval(Estimate.of(row, 'improvement'), nats)} nats"
        for row in (groups.loc[improvement.idxmax()], groups.loc[improvement.idxmin()])
    )
    return f"Largest improvement: {largest}. Smallest: {smallest}."


def agreement_sentence(text: dict) -> str:
    """Whether the mixing weight is larger where a thought helps, from the metrics of held-out text."""
    agreement = text["agreement"]
    if agreement["spearman"] is None:
        return "The mixing weight or the improvement is the same everywhere, so they have no correlation."
    rho = Estimate.of(agreement, "spearman")
    size = interval(rho, "{:.2f}".format).replace("-", MINUS)
    among = f"Among tokens whose loss changed by more than {text['threshold']:g} nats, "
    return f"{among}{TOGETHER[rho.verdict]}: Spearman’s ρ {size}."
