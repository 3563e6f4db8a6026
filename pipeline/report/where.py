"""Where thoughts helped: groups of held-out tokens, shares, and the largest gains and losses."""

import re
from dataclasses import dataclass

import pandas as pd

from pipeline.report.estimates import ABOVE, BELOW, MINUS, UNDECIDED, Estimate, interval, nats
from pipeline.report.heat_map import visible
from pipeline.report.reading import Metrics
from pipeline.report.results import read_estimate

SHOWN = 5  # extremes of a kind and side
SHOWN_TEXT = 220  # characters of an extreme's text
TOGETHER = {
    ABOVE: "the larger the mixing weight, the larger the improvement",
    BELOW: "the larger the mixing weight, the smaller the improvement",
    UNDECIDED: "whether mixing weight and improvement go together is undecided",
}


@dataclass(frozen=True)
class Shares:
    """Shares of tokens whose loss fell or rose by more than ``threshold`` nats; ``agreement``: Spearman's rho."""

    threshold: float
    helped: Estimate
    hurt: Estimate
    mixing_weight: float
    agreement: Estimate | None


@dataclass(frozen=True)
class Extreme:
    """A passage, or a token with the thought before it; ``before`` is the text that leads to it."""

    before: str
    thought: str
    token: str
    base_loss: float
    improvement: float


@dataclass(frozen=True)
class Group:
    """A row of the table behind a figure: a group of tokens, ``share`` of all; losses in nats per token."""

    name: str
    n: int
    share: float
    base_loss: float
    improvement: Estimate
    helped: float
    hurt: float


def group_name(group: str) -> str:
    """A range of numbers with the dashes that print has; other names as they are."""
    return re.sub(r"(?<![\w–])-(?=[\d.])", MINUS, re.sub(r"(?<=\d)-(?=\d)", "–", group))


def groups(table: pd.DataFrame) -> list[Group]:
    return [
        Group(
            name=group_name(row.group),
            n=int(row.n),
            share=row.share,
            base_loss=row.base_loss,
            improvement=Estimate(row.improvement, row.ci_low, row.ci_high),
            helped=row.helped,
            hurt=row.hurt,
        )
        for row in table.itertuples()
    ]


def shares(metrics: Metrics) -> Shares:
    """From the metrics of held-out text; the agreement is None where the weight is the same everywhere."""
    agreement = metrics.at("agreement")
    known = isinstance(agreement, dict) and agreement.get("spearman") is not None
    return Shares(
        threshold=metrics.number("threshold"),
        helped=read_estimate(metrics, "share", "helped"),
        hurt=read_estimate(metrics, "share", "hurt"),
        mixing_weight=metrics.number("mixing_weight"),
        agreement=read_estimate(metrics, "spearman", "agreement") if known else None,
    )


def agreement_sentence(found: Shares) -> str:
    if found.agreement is None:
        return "The mixing weight, or the improvement, is the same everywhere: they cannot agree or differ."
    rank = f"Spearman’s ρ {interval(found.agreement, '{:.2f}'.format)}".replace("-", MINUS)
    among = f"Of the tokens whose loss changed by more than {found.threshold:g} nats: "
    return f"{among}{TOGETHER[found.agreement.verdict]}: {rank}."


def range_sentence(groups: pd.DataFrame, what: str) -> str:
    """The groups with the largest and the smallest improvement, with their intervals."""
    largest, smallest = (groups.loc[rows] for rows in (groups["improvement"].idxmax(), groups["improvement"].idxmin()))
    return f"Largest improvement: {what} {_group(largest)}. Smallest: {what} {_group(smallest)}."


def _group(row: pd.Series) -> str:
    estimate = Estimate(row["improvement"], row["ci_low"], row["ci_high"])
    return f"{group_name(row['group'])}, {interval(estimate, nats)} nats"


def by_improvement(groups: pd.DataFrame) -> pd.DataFrame:
    """Groups that have no order of their own, from the largest improvement down."""
    return groups.sort_values("improvement", ascending=False, kind="stable", ignore_index=True)


def extremes(table: pd.DataFrame, what: str, side: str) -> list[Extreme]:
    """The passages or thoughts with the largest gain or loss, the largest first."""
    rows = table[(table["what"] == what) & (table["side"] == side)]
    rows = rows.drop_duplicates(["excerpt", "thought", "token"])  # texts that begin alike share their first thoughts
    return [
        Extreme(
            before=_shortened(visible(row.excerpt, breaks=False), from_start=what == "passage"),
            thought=visible(row.thought, breaks=False).strip(" "),
            token=visible(row.token, breaks=False),
            base_loss=row.base_loss,
            improvement=row.improvement,
        )
        for row in rows.head(SHOWN).itertuples()
    ]


def _shortened(text: str, from_start: bool) -> str:
    """The start of a passage, but the end of what leads to a token."""
    if len(text) <= SHOWN_TEXT:
        return text
    return f"{text[:SHOWN_TEXT]}…" if from_start else f"…{text[-SHOWN_TEXT:]}"
