"""Example questions with the thought right before the answer, chosen by a rule and not by hand."""

from dataclasses import dataclass

import pandas as pd

from pipeline.report.heat_map import visible
from pipeline.report.results import percent


@dataclass(frozen=True)
class Answer:
    """What was predicted, whether it is right, and the probability of the right answer."""

    predicted: str
    right: bool
    probability: str


@dataclass(frozen=True)
class Example:
    task: str
    chosen: str
    prompt: str
    thought: str
    answer: str
    without: Answer
    with_thought: Answer


def examples(predictions: pd.DataFrame) -> list[Example]:
    """Per task the questions whose probability rose most, changed by the median and fell most."""
    found = []
    for task, rows in predictions.groupby("task", sort=False):
        gain = rows["prob_thought"] - rows["prob_no_thought"]
        ranked = rows.assign(gain=gain).sort_values(["gain", "index"], ascending=[False, True], ignore_index=True)
        places = {0: "largest gain", (len(ranked) - 1) // 2: "median change", len(ranked) - 1: "smallest gain"}
        found += [_example(task, chosen, ranked.iloc[place]) for place, chosen in sorted(places.items())]
    return found


def _example(task: str, chosen: str, row: pd.Series) -> Example:
    return Example(
        task=task,
        chosen=chosen,
        prompt=row["prompt"].translate({ord("\r"): None}),
        thought=visible(row["thought"]).strip(" ") or "—",
        answer=row["answer"],
        without=_answer(row, "no_thought"),
        with_thought=_answer(row, "thought"),
    )


def _answer(row: pd.Series, kind: str) -> Answer:
    return Answer(row[f"predicted_{kind}"], bool(row[f"correct_{kind}"]), percent(row[f"prob_{kind}"]))
