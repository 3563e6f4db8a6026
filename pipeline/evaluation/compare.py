"""Is it the thoughts? The figures of every arm (`arms`), and the differences that say what they rest on."""

import json
from pathlib import Path

import numpy as np
import pandas as pd

from pipeline.evaluation.arms import (
    ACCURACY,
    BEFORE,
    HELDOUT,
    LOSS,
    OFF,
    OWN_WHERE,
    RANDOM,
    SAME_LAST,
    SWAPPED,
    Sides,
    read_arms,
)
from pipeline.evaluation.statistics import SHARE, SHARE_DIFFERENCE, Difference, Totals, difference, mean, mean_interval
from pipeline.files import write_json, write_table
from pipeline.params import Arms

WHOLE = ("sampled", "mean16")  # ways of an untrained model that the run is compared with, as with other methods


def write_compare(arms: Arms, evaluations: Path, perplexities: Path, results: Path, summary: Path) -> None:
    """Compare the arms' answers and losses, which are in METHOD-SEED in ``evaluations`` and ``perplexities``.

    Writes each arm's figures (figures.csv), those of each seed (seeds.csv) and differences (comparisons.csv) to the
    folder ``results``, and the main figures of the run's method, the first, to ``summary``. Losses are in nats a token.
    Raises UserError as `read_arms` does.
    """
    run = arms.methods[0]
    figures, seeds, comparisons = [], [], []
    for (task, measure), sides in read_arms(arms, evaluations, perplexities).items():
        about = {"task": task, "measure": measure}
        for arm, side in sides.items():
            low, high = mean_interval(side, None if measure == LOSS else SHARE)
            figures.append({**about, "arm": arm, **_counts(side), "value": mean(side), "low": low, "high": high})
            each = side.sums.sum(-1) / side.weights.sum(-1)
            seeds += [{"arm": arm, "seed": s, **about, "value": v} for s, v in zip(arms.seeds, each, strict=True)]
        for arm, against in _pairs(run, sides):
            row = {**about, "arm": arm, "against": against, **_counts(sides[arm])}
            comparisons.append(row | _comparison(sides, arm, against, measure))
    tables = {"figures": figures, "seeds": seeds, "comparisons": comparisons}
    for name, rows in tables.items():
        write_table(results / f"{name}.csv", pd.DataFrame(rows))
    costs = [evaluations / f"{run}-{seed}/metrics.json" for seed in arms.seeds]
    write_json(summary, _summary(run, pd.DataFrame(figures), pd.DataFrame(comparisons)) | _mean_cost(costs))


def _pairs(run: str, arms: Sides) -> list[tuple[str, str]]:
    """Which arms are compared: (arm, against) for each difference."""
    mains = [arm for arm in arms if "/" not in arm or arm.endswith(WHOLE)]
    ways = [arm for arm in arms if arm.startswith(f"{run}/") and not arm.endswith(SAME_LAST)]
    found = [(run, other) for other in mains + ways]
    for arm in mains:
        found += [(arm, f"{arm}/{way}") for way in (SWAPPED, RANDOM)]  # what is due to what the thought says
        found += [(f"{arm}/{OWN_WHERE}", f"{arm}/{SAME_LAST}")]
        found += [(arm, BEFORE), (f"{arm}/{OFF}", BEFORE)]
    there = [pair for pair in found if pair[0] != pair[1] and pair[0] in arms and pair[1] in arms]
    return list(dict.fromkeys(there))


def _comparison(sides: Sides, arm: str, against: str, measure: str) -> dict[str, float | None]:
    """How much better ``arm`` is than ``against``; of its own swapped thoughts also which share of its gain that is."""

    def better(one: str, other: str) -> Difference:
        if measure == LOSS:
            return difference(sides[other], sides[one], None)
        return difference(sides[one], sides[other], SHARE_DIFFERENCE)

    found = better(arm, against)
    row = {"difference": found.value, "low": found.low, "high": found.high, "p_value": found.p_value, "share": None}
    if against == f"{arm}/{SWAPPED}":
        gain = better(arm, f"{arm}/{OFF}")
        row["share"] = found.value / gain.value if gain.low > 0 else None
    return row


def _counts(side: Totals) -> dict[str, int]:
    """Seeds, questions (or tokens; the mean over seeds) and groups that a figure rests on."""
    seeds, groups = side.sums.shape
    return {"seeds": seeds, "n": round(side.weights.sum(-1).mean()), "groups": groups}


def _summary(run: str, figures: pd.DataFrame, comparisons: pd.DataFrame) -> dict[str, float | None]:
    """The run's accuracy and content effect in each task, and its gain on held-out text; None: not known.

    base_harm: how much worse than before training it predicts that text without thoughts.
    """
    accuracies = figures[(figures["arm"] == run) & (figures["measure"] == ACCURACY)].set_index("task")["value"]
    rows = comparisons.set_index(["task", "measure", "arm", "against"])[["difference", "low"]]

    def row(*names: str) -> tuple[float | None, float | None]:
        return tuple(rows.loc[names]) if names in rows.index else (None, None)

    found = accuracies.to_dict()
    for task in accuracies.index:
        found[f"content_{task}"], found[f"content_{task}_low"] = row(task, ACCURACY, run, f"{run}/{SWAPPED}")
    found["heldout_gain"], _ = row(HELDOUT, LOSS, run, BEFORE)
    thinks = f"{run}/{OFF}" in set(figures["arm"])
    less = row(HELDOUT, LOSS, f"{run}/{OFF}" if thinks else run, BEFORE)
    found["base_harm"], found["base_harm_high"] = (None if value is None else -value for value in less)
    return found


def _mean_cost(paths: list[Path]) -> dict[str, float | None]:
    """Tokens of a thought, and operations a token in units of the base model's: means of what `evaluate` noted."""
    costs = [json.loads(path.read_text(encoding="utf-8")).get("cost", {}) for path in paths]
    names = {"thought_length": "thought_length", "cost": "operations"}
    noted = {name: [cost[key] for cost in costs if cost.get(key) is not None] for name, key in names.items()}
    return {name: float(np.mean(some)) if some else None for name, some in noted.items()}
