"""What the arms answered and lost, as totals by seed and group.

An arm is a method as it answers by itself (``quiet_star``), or the same models with something else in the thought's
place (``quiet_star/swapped``, ``quiet_star/thoughts_off``). A part of a task (``part`` in its file) is named
TASK/PART.
"""

from itertools import product
from pathlib import Path

import numpy as np
import pandas as pd
import pyarrow.parquet as pq

from pipeline.errors import UserError
from pipeline.evaluation.names import (
    ACCURACY,
    AFTER,
    BEFORE,
    CONTINUED,
    HELDOUT,
    LOSS,
    LOSSES,
    MARKED,
    MEAN,
    NO_THOUGHT,
    NORM,
    OFF,
    OWN_WHERE,
    PROB,
    RANDOM,
    SAME_LAST,
    SAMPLED,
    SWAPPED,
    THOUGHT,
)
from pipeline.evaluation.statistics import Totals, totals
from pipeline.params import Arms

COLUMNS = {ACCURACY: "correct", PROB: "prob", NORM: "correct_norm"}  # of predictions.parquet
WHOLE = (SAMPLED, MEAN)  # ways of an untrained model, compared as if they were methods


def read_arms(arms: Arms, evaluations: Path, perplexities: Path) -> dict[tuple[str, str], dict[str, Totals]]:
    """The totals of each arm by task and measure, from METHOD-SEED/predictions.parquet and METHOD-SEED/tokens.parquet.

    Seeds are in the order of ``arms``; all arms of a task have its groups, in one order, with weight 0 where they were
    not asked (`SAME_LAST`; see `statistics.asked`). A task lacks the arms whose ways it does not have (nothing is
    swapped where all questions are of one group). Where its questions are of several parts, each part is a task, too,
    with the accuracies of the methods as they answer by themselves. Raises UserError where a file is missing or broken,
    or the arms were not asked the same questions.
    """
    answers = pd.concat(_answers(evaluations, *run) for run in product(arms.methods, arms.seeds))
    found: dict[tuple[str, str], dict[str, Totals]] = {}
    for task, rows in answers.groupby("task", sort=False):
        questions = rows.groupby("index")
        groups = questions["group"].first().to_numpy()
        parts = questions["part"].first().to_numpy()
        names = sorted(set(parts), key=lambda part: (len(part), part))  # numbers in their order
        alike = questions[["prompt", "group", "part"]].nunique().max().max() == 1
        alike &= set(arms.methods) <= set(rows["arm"])
        for measure, column in COLUMNS.items():
            if measure == NORM and rows[column].isna().all():
                continue
            found[task, measure] = {}
            table = rows.pivot(index=["arm", "seed"], columns="index", values=column)
            for arm in rows["arm"].unique():
                values = table.reindex([(arm, seed) for seed in arms.seeds]).to_numpy(float)
                there = ~np.isnan(values)
                if arm.endswith(SAME_LAST):  # some questions have such a thought; a seed may have none
                    if not there.any(1).all():
                        continue
                elif not (alike and there.all()):
                    raise UserError(f"{task}: the arms were not asked the same questions: run `dvc repro` to ask again")
                found[task, measure][arm] = totals(values, groups)
                for part in names if len(names) > 1 and measure == ACCURACY and "/" not in arm else ():
                    own = parts == part
                    found.setdefault((f"{task}/{part}", measure), {})[arm] = totals(values[:, own], groups[own])
    return found | _losses(arms, perplexities)


def pairs(run: str, arms: list[str]) -> list[tuple[str, str]]:
    """Which arms are compared: (arm, against) for each difference."""
    mains = [arm for arm in arms if "/" not in arm or arm.endswith(WHOLE)]
    ways = [arm for arm in arms if arm.startswith(f"{run}/") and not arm.endswith(SAME_LAST)]
    found = [(run, other) for other in mains + ways]
    found.append((f"{run}/{OFF}", CONTINUED))  # what learning to think costs the prediction without thoughts
    for arm in mains:
        found += [(arm, f"{arm}/{way}") for way in (SWAPPED, RANDOM)]  # what is due to what the thought says
        found += [(f"{arm}/{OWN_WHERE}", f"{arm}/{SAME_LAST}")]
        found += [(arm, BEFORE), (f"{arm}/{OFF}", BEFORE)]
    there = [pair for pair in found if pair[0] != pair[1] and {*pair} <= {*arms}]
    return list(dict.fromkeys(there))


def _answers(evaluations: Path, method: str, seed: int) -> pd.DataFrame:
    """A run's answers, each with its seed and arm."""
    path = evaluations / f"{method}-{seed}/predictions.parquet"
    try:
        rows = pd.read_parquet(path, columns=["task", "index", "group", "part", "prompt", "way", *COLUMNS.values()])
    except (OSError, ValueError) as error:
        raise _broken(path) from error
    rare = rows.loc[rows["way"] == SAME_LAST, ["task", "index"]]
    own = rows[rows["way"] == THOUGHT].merge(rare).assign(way=OWN_WHERE)
    rows = pd.concat([rows, own])
    thinks = (rows["way"] == THOUGHT).any()
    mains = {THOUGHT: method, NO_THOUGHT: f"{method}/{OFF}" if thinks else method}
    return rows.assign(seed=seed, arm=[mains.get(way, f"{method}/{way}") for way in rows["way"]])


def _losses(arms: Arms, perplexities: Path) -> dict[tuple[str, str], dict[str, Totals]]:
    """Each arm's losses on held-out text; a group is a text, the weights are numbers of tokens.

    If a text has the marker, also `MARKED`: where another token follows, nothing is thought.
    """
    first, found = None, {}
    for method in arms.methods:
        tables = [_tokens(perplexities / f"{method}-{seed}/tokens.parquet") for seed in arms.seeds]
        first = tables[0] if first is None else first
        if not all(table[["text", AFTER]].equals(first[["text", AFTER]]) for table in tables):
            raise UserError(f"{method}: held-out texts are not those of {arms.methods[0]}: run `dvc repro perplexity`")
        counts = first.groupby("text").size().to_numpy(float)
        ways = {"nll_thought": method} | {f"nll_{way}": f"{method}/{way}" for way in (SWAPPED, RANDOM)}
        others = {"nll_no_thought": f"{method}/{OFF}" if "nll_thought" in tables[0] else method, "nll_before": BEFORE}
        for (column, arm), measure in product((ways | others).items(), LOSSES if first[AFTER].any() else (LOSS,)):
            by_arm = found.setdefault((HELDOUT, measure), {})
            if column not in tables[0] or arm in by_arm:  # what the model before training lost is in every table
                continue
            losses = [table[column] for table in tables]
            if measure == MARKED and column in ways:
                losses = [table[column].where(table[AFTER], table["nll_no_thought"]) for table in tables]
            sums = np.stack([some.groupby(first["text"]).sum() for some in losses])
            by_arm[arm] = Totals(sums, np.broadcast_to(counts, sums.shape))
    return found


def _tokens(path: Path) -> pd.DataFrame:
    """The text of each token, whether it follows the marker, and the losses that tokens.parquet has."""
    try:
        losses = [name for name in pq.read_schema(path).names if name.startswith("nll_")]
        return pd.read_parquet(path, columns=["text", AFTER, *losses])
    except (OSError, ValueError) as error:
        raise _broken(path) from error


def _broken(path: Path) -> UserError:
    return UserError(f"{path} is missing or broken: run `dvc repro` to make it again")
