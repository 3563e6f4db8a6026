"""The ways of training (arms) against each other: their names on the page, and what their comparisons say.

A comparison is a row of results/compare/comparisons.csv: ``difference`` is ``arm`` minus ``against``, in shares.
"""

from pathlib import Path

import pandas as pd

from pipeline.report.estimates import ABOVE, BELOW, UNDECIDED, Estimate, Finding, interval, listed, points
from pipeline.report.method import Method
from pipeline.report.reading import read_csv

COLUMNS = ("task", "measure", "arm", "against", "seeds", "n", "difference", "ci_low", "ci_high")
TESTED = ("only_arm", "only_against", "p_value")  # blank for the probability of the right answer
ARMS = {
    "base": "base model",
    "no_thought": "no thoughts",
    "pause": "pauses",
    "pause, thoughts off": "pauses, left out",
    "quiet_star": "Quiet-STaR",
    "quiet_star, thoughts off": "Quiet-STaR, thoughts off",
}
NOUNS = {"base": "the base model", "no_thought": "training without thoughts", "pause": "training with pauses"}
SPOKEN = ARMS | NOUNS
STANDS = {
    ABOVE: "has a higher accuracy than",
    BELOW: "has a lower accuracy than",
    UNDECIDED: "cannot be told apart from",
}


def read_comparisons(results: Path) -> list[dict]:
    return read_csv(results / "compare/comparisons.csv", *COLUMNS, *TESTED).to_dict("records")


def arm_name(arm: str) -> str:
    """The arm in words; an unknown arm keeps its name."""
    return ARMS.get(arm, arm)


def comparison_findings(comparisons: list[dict], method: Method) -> list[Finding]:
    """For each task, how the run's accuracy stands against that of other ways of training."""
    by_task: dict[str, dict[str, list[str]]] = {}
    for row in comparisons:
        if row["measure"] == "accuracy" and row["arm"] == method.key and row["against"] != method.off:
            difference = Estimate.of(row, "difference")
            other = f"{SPOKEN.get(row['against'], row['against'])} ({interval(difference, points)} points)"
            by_task.setdefault(row["task"], {}).setdefault(difference.verdict, []).append(other)
    found = []
    for task, by_verdict in by_task.items():
        parts = [f"{STANDS[verdict]} {listed(by_verdict[verdict])}" for verdict in STANDS if verdict in by_verdict]
        text = f"On {task}, {SPOKEN[method.key]} {'; it '.join(parts)}."
        found.append(Finding(text, next(iter(by_verdict)) if len(by_verdict) == 1 else UNDECIDED))
    return found


def right_alone(row: dict) -> str:
    """How many questions only ``arm`` and only ``against`` has right (means over seeds). Empty for a probability."""
    if pd.isna(row["only_arm"]):
        return ""
    return " : ".join(f"{row[side]:,.1f}".removesuffix(".0") for side in ("only_arm", "only_against"))
