"""How many intervals the page shows, so that a reader can tell how many would mislead by chance."""

from pipeline.report.chain_of_thought import Reasoning
from pipeline.report.comparisons import Comparison
from pipeline.report.estimates import whole
from pipeline.report.method import Method
from pipeline.report.results import Task


def compared(
    tasks: list[Task], arms: list[Comparison], reasoning: list[Reasoning], groups: int, method: Method
) -> list[tuple[str, int]]:
    """(what, how many intervals) of every difference on the page; ``groups``: bars of groups of tokens."""
    own = [
        (f"{method.many} on against off: accuracy and probability of each task", 2 * len(tasks)),
        (f"{method.many} on against off with written reasoning", sum(len(one.votes) for one in reasoning)),
        (f"{method.many} on against off: loss on held-out text", 1),
        ("improvement by group of held-out tokens", groups),
    ]
    every = [("ways of training against each other", len(arms)), *(own if method.thinks else [])]
    return [(what, count) for what, count in every if count]


def chance_sentence(found: list[tuple[str, int]]) -> str:
    total = sum(count for _, count in found)
    if not total:
        return "This page compares nothing."
    return (
        f"In all {whole(total)} differences with an interval. If nothing had any effect, one in twenty of them, about "
        f"{whole(max(1, total / 20))}, would still leave out zero: a single one "
        "proves little. Nothing is corrected for this."
    )
