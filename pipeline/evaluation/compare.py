"""Is it the thoughts? The figures of every arm (`arms`), and the differences that say what they rest on."""

import json
from pathlib import Path

import numpy as np
import pandas as pd

from pipeline.evaluation.arms import pairs, read_arms
from pipeline.evaluation.names import ACCURACY, BEFORE, HELDOUT, LOSS, LOSSES, MARKED, OFF, SWAPPED
from pipeline.evaluation.statistics import (
    SHARE,
    SHARE_DIFFERENCE,
    Difference,
    Totals,
    asked,
    difference,
    mean,
    mean_interval,
)
from pipeline.files import replacing, write_json, write_table
from pipeline.params import Arms

COMPARISONS = ["task", "measure", "arm", "against", "seeds", "n", "groups"]
COMPARISONS += ["difference", "low", "high", "p_value", "share"]


def write_compare(arms: Arms, evaluations: Path, perplexities: Path, results: Path, summary: Path) -> None:
    """Compare the arms' answers and losses, which are in METHOD-SEED in ``evaluations`` and ``perplexities``.

    Writes each arm's figures (figures.csv), those of each seed (seeds.csv) and differences (comparisons.csv) to the
    folder ``results``, and the main figures of the run's method, the first, to ``summary``. Parts of a task
    (TASK/PART) are in figures.csv only. Losses are in nats a token.
    n: questions or tokens, the mean over seeds; share: of the gain from an arm's thoughts, what is due to what they
    say. A loss on one text has no interval (blank). Raises UserError as `read_arms` does.
    """
    run = arms.methods[0]
    figures, seeds, comparisons = [], [], []
    for (task, measure), by_arm in read_arms(arms, evaluations, perplexities).items():
        about, sizes = {"task": task, "measure": measure}, {}
        by_arm = {arm: asked(side) for arm, side in by_arm.items()}
        for arm, side in by_arm.items():
            sizes[arm] = {"seeds": len(arms.seeds), "n": round(side.weights.sum(-1).mean())}
            sizes[arm]["groups"] = side.sums.shape[-1]
            low, high = mean_interval(side, None if measure in LOSSES else SHARE)
            figures.append({**about, "arm": arm, **sizes[arm], "value": mean(side), "low": low, "high": high})
            each = zip(arms.seeds, side.sums.sum(-1) / side.weights.sum(-1), strict=True)
            seeds += [{"arm": arm, "seed": s, **about, "value": v} for s, v in each if "/" not in task]
        for arm, against in pairs(run, list(by_arm)) if "/" not in task else ():
            found, share = better(by_arm[arm], by_arm[against], measure), None
            if against == f"{arm}/{SWAPPED}":
                gain = better(by_arm[arm], by_arm[f"{arm}/{OFF}"], measure)
                share = found.value / gain.value if gain.low > 0 else None
            row = {**about, "arm": arm, "against": against, **sizes[arm], "difference": found.value}
            comparisons.append(row | {"low": found.low, "high": found.high, "p_value": found.p_value, "share": share})
    figures, seeds = map(pd.DataFrame, (figures, seeds))
    comparisons = pd.DataFrame(comparisons, columns=COMPARISONS)  # there are none of one arm alone
    noted = [(evaluations / f"{run}-{seed}/metrics.json").read_text(encoding="utf-8") for seed in arms.seeds]
    with replacing(results) as folder:
        for name, table in {"figures": figures, "seeds": seeds, "comparisons": comparisons}.items():
            write_table(folder / f"{name}.csv", table)
        write_json(summary, _summary(run, figures, comparisons, [json.loads(text)["cost"] for text in noted]))


def better(one: Totals, other: Totals, measure: str) -> Difference:
    """How much better ``one`` is than ``other``: right more often, or with a lower loss."""
    return difference(other, one, None) if measure in LOSSES else difference(one, other, SHARE_DIFFERENCE)


def _summary(run: str, figures: pd.DataFrame, comparisons: pd.DataFrame, costs: list[dict]) -> dict[str, float | None]:
    """The run's accuracy and content effect in each task, its gain on held-out text and its cost; None: not known.

    base_harm: how much worse than before training it predicts that text without thoughts. thought_length, cost: tokens
    of a thought, and operations a token in units of the base model's, means of what `evaluate` noted.
    """
    whole = figures[~figures["task"].str.contains("/")]
    accuracies = whole[(whole["arm"] == run) & (whole["measure"] == ACCURACY)].set_index("task")["value"]
    rows = comparisons.set_index(["task", "measure", "arm", "against"])[["difference", "low"]]

    def row(*names: str) -> tuple[float | None, float | None]:
        return tuple(rows.loc[names]) if names in rows.index else (None, None)

    found = accuracies.to_dict()
    for task in accuracies.index:
        found[f"content_{task}"], found[f"content_{task}_low"] = row(task, ACCURACY, run, f"{run}/{SWAPPED}")
    for name, measure in (("heldout_gain", LOSS), ("heldout_gain_after_marker", MARKED)):
        found[name], _ = row(HELDOUT, measure, run, BEFORE)
    thinks = f"{run}/{OFF}" in set(figures["arm"])
    less = row(HELDOUT, LOSS, f"{run}/{OFF}" if thinks else run, BEFORE)
    found["base_harm"], found["base_harm_high"] = (None if pd.isna(value) else -value for value in less)
    found["thought_length"] = float(np.mean([cost["thought_length"] for cost in costs]))
    found["cost"] = float(np.mean([cost["operations"] for cost in costs]))
    return found
