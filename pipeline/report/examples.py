"""Example questions with the thought right before the answer, chosen by a rule and not by hand."""

from dataclasses import dataclass

import pandas as pd

from pipeline.report.estimates import percent
from pipeline.report.heat_map import visible
from pipeline.report.method import Method


@dataclass(frozen=True)
class Answer:
    """What was predicted in one way, whether it is right, and the probability of the right answer."""

    way: str
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
    answers: list[Answer]


def examples(predictions: pd.DataFrame, method: Method) -> list[Example]:
    """Per task the questions whose probability rose most, changed by the median and fell most."""
    before, after = method.contrast
    found = []
    for task, rows in predictions.groupby("task", sort=False):
        probability = rows.pivot(index="index", columns="way", values="prob")
        ranked = (probability[after] - probability[before]).sort_values(ascending=False, kind="stable").index
        places = {0: "largest gain", (len(ranked) - 1) // 2: "median change", len(ranked) - 1: "smallest gain"}
        for place, chosen in sorted(places.items()):
            found.append(_example(task, chosen, rows[rows["index"] == ranked[place]].set_index("way"), method))
    return found


def _example(task: str, chosen: str, by_way: pd.DataFrame, method: Method) -> Example:
    row = by_way.loc[method.contrast[1]]
    return Example(
        task=task,
        chosen=chosen,
        prompt=row["prompt"].translate({ord("\r"): None}),
        thought=visible(row["thought"]).strip(" "),
        answer=row["answer"],
        answers=[_answer(by_way.loc[way], name) for way, name in method.ways.items()],
    )


def _answer(row: pd.Series, name: str) -> Answer:
    return Answer(name, row["predicted"], bool(row["correct"]), percent(row["prob"]))
