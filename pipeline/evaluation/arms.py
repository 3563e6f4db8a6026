"""What the arms answered and lost, as totals by seed and group.

An arm is a method as it answers by itself (``quiet_star``), or the same models with something else in the thought's
place (``quiet_star/swapped``, ``quiet_star/thoughts_off``).
"""

from collections.abc import Iterator
from itertools import product
from pathlib import Path

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq

from pipeline.errors import UserError
from pipeline.evaluation.statistics import Totals, totals
from pipeline.params import Arms

ACCURACY, PROB, LOSS = "accuracy", "prob", "loss"  # measures; a loss is in nats a token
COLUMNS = {ACCURACY: "correct", PROB: "prob"}  # of predictions.parquet
HELDOUT = "heldout"  # the held-out text, beside the tasks
BEFORE = "before"  # the model before training, as a method and as an arm
OFF, SWAPPED, RANDOM = "thoughts_off", "swapped", "random"
# another problem's thought with the same last token, and the own thoughts at the questions for which there is one
SAME_LAST, OWN_WHERE = "same_last", "own_where_same_last"

Sides = dict[str, Totals]  # by arm


def read_arms(arms: Arms, evaluations: Path, perplexities: Path) -> dict[tuple[str, str], Sides]:
    """The arms' totals by task and measure, from METHOD-SEED/predictions.parquet and METHOD-SEED/tokens.parquet.

    Seeds are in the order of ``arms``. Raises UserError where a file is missing or broken, or the arms were not asked
    the same questions.
    """
    answers = pd.concat(_answers(evaluations, *run) for run in product(arms.methods, arms.seeds))
    found: dict[tuple[str, str], Sides] = {}
    for task, rows in answers.groupby("task", sort=False):
        groups = rows.groupby("index")["group"].first().to_numpy()
        same = rows.groupby("index")[["prompt", "group"]].nunique().max().max() == 1
        for measure, column in COLUMNS.items():
            table = rows.pivot(index=["arm", "seed"], columns="index", values=column)
            sides = found.setdefault((task, measure), {})
            for arm in answers["arm"].unique():
                values = table.reindex([(arm, seed) for seed in arms.seeds]).to_numpy()
                there = ~np.isnan(values)
                if arm.endswith(SAME_LAST):
                    asked = there.any(0)
                    if there.any(1).all():  # else some seed has no such question
                        sides[arm] = totals(values[:, asked], groups[asked])
                    continue
                if not (same and there.all()):
                    raise UserError(f"{task}: the arms were not asked the same questions: run `dvc repro` to ask again")
                sides[arm] = totals(values, groups)
    return found | {(HELDOUT, LOSS): dict(_losses(arms, set(answers["arm"]), perplexities))}


def _answers(evaluations: Path, method: str, seed: int) -> pd.DataFrame:
    """A run's answers, each with its seed and arm."""
    path, numbers = evaluations / f"{method}-{seed}/predictions.parquet", dict.fromkeys(COLUMNS.values(), float)
    try:
        rows = pd.read_parquet(path, columns=["task", "index", "group", "prompt", "way", *numbers]).astype(numbers)
        if rows.empty:
            raise ValueError("it has no rows")
    except (OSError, ValueError, TypeError) as error:  # TypeError: a list where a number should be
        raise _broken(path) from error
    ways = {way: f"{method}/{way}" for way in rows["way"].unique()}
    if "thought" in ways:
        ways |= {"thought": method, "no_thought": f"{method}/{OFF}"}
    else:
        ways |= {"no_thought": method}
    if SAME_LAST in ways:
        question = pd.MultiIndex.from_frame(rows[["task", "index"]])
        where = question.isin(question[rows["way"] == SAME_LAST]) & (rows["way"] == "thought")
        rows = pd.concat([rows, rows[where].assign(way=OWN_WHERE)])
        ways[OWN_WHERE] = f"{method}/{OWN_WHERE}"
    return rows.assign(seed=seed, arm=rows["way"].map(ways))


def _losses(arms: Arms, answering: set[str], perplexities: Path) -> Iterator[tuple[str, Totals]]:
    """Each arm's losses on held-out text; a group is a text, the weights are numbers of tokens.

    ``answering``: the arms of the tasks, which say whether a method has thoughts.
    """
    weights = None
    for method in [method for method in arms.methods if method != BEFORE] or arms.methods:
        tables = [_by_text(perplexities / f"{method}-{seed}/tokens.parquet") for seed in arms.seeds]
        counts = [table.pop("tokens") for table in tables]
        names = {f"nll_{way}": f"{method}/{way}" for way in (SWAPPED, RANDOM)} | {"nll_no_thought": method}
        if f"{method}/{OFF}" in answering:
            names |= {"nll_thought": method, "nll_no_thought": f"{method}/{OFF}"}
        if weights is None:  # the first method: what the model before training lost is the same in all
            names["nll_before"] = BEFORE
            weights = counts[0]
        if not all(count.equals(weights) for count in counts):
            raise UserError(f"{method}: held-out texts are not those of {arms.methods[0]}: run `dvc repro perplexity`")
        for column in [name for name in names if name in tables[0]]:
            sums = np.stack([table[column] for table in tables])
            yield names[column], Totals(sums, np.broadcast_to(weights.to_numpy(float), sums.shape))


def _by_text(path: Path) -> pd.DataFrame:
    """A row for each text: the sums of the losses that tokens.parquet has, and the number of tokens."""
    try:
        columns = ["text", *(name for name in pq.read_schema(path).names if name.startswith("nll_"))]
        by_text = pd.read_parquet(path, columns=columns).groupby("text")
    except (OSError, pa.ArrowException) as error:
        raise _broken(path) from error
    return by_text.sum().assign(tokens=by_text.size())


def _broken(path: Path) -> UserError:
    return UserError(f"{path} is missing or broken: run `dvc repro` to make it again")
