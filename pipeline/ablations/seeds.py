"""Run every arm with several base models and training seeds: `python -m pipeline.ablations.seeds [BASE:SEED ...]`.

By default ten runs with a base model each (1:1, 2:2, ... 10:10), and training seeds 2 to 5 on base model 1. A run is a
DVC experiment (`pipeline.ablations.experiments`) of all methods in params.yaml. Its rows go to results/seeds.csv once
it is done, and what has rows there is not run again: delete the file after a change of the method. Also writes
seeds.md.
"""

import argparse
from collections.abc import Sequence
from itertools import product
from pathlib import Path

import numpy as np
import pandas as pd
from scipy.special import stdtrit

from pipeline import errors, params
from pipeline.ablations import experiments
from pipeline.ablations.grid import Workspace
from pipeline.ablations.results import figures_of
from pipeline.errors import UserError
from pipeline.files import replacing, write_table
from pipeline.preset import options as preset

TABLE = Path("results/seeds.csv")
COLUMNS = ["method", "base_seed", "seed", "task", "n", "groups", "accuracy", "content_effect"]
PAIRS = [f"{s}:{s}" for s in range(1, 11)] + [f"1:{s}" for s in range(2, 6)]
QUANTILE = 0.975


def main() -> None:
    parser = argparse.ArgumentParser(
        prog="python -m pipeline.ablations.seeds",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("pairs", nargs="*", default=PAIRS, metavar="BASE:SEED")
    pairs = [_pair(text) for text in parser.parse_args().pairs]
    methods, failed = params.load().arms.methods, {}
    rows = pd.read_csv(TABLE) if TABLE.exists() else pd.DataFrame(columns=COLUMNS)
    for base_seed, seed in pairs:
        done = rows.loc[(rows["base_seed"] == base_seed) & (rows["seed"] == seed), "method"]
        missing = [method for method in methods if method not in set(done)]
        if not missing:
            continue
        values = {"base_model.seed": base_seed, "arms.seeds": [seed], "arms.methods": missing}
        about = {"base_seed": base_seed, "seed": seed}
        arm = Workspace().arm(f"base{base_seed}-seed{seed}", about, preset.words(values))
        failed |= experiments.run([arm], 1, tell=lambda line: print(line, flush=True))
        if arm.name not in failed:  # written now, as the next run takes long
            rows = pd.concat([rows, run_rows(figures_of(arm), missing).assign(**about)])[COLUMNS]
            rows = rows.sort_values(["base_seed", "seed"], kind="stable", ignore_index=True)
            write_table(TABLE, rows)
    if not rows.empty:
        with replacing(TABLE.with_suffix(".md")) as part:
            part.write_text(in_words(rows), encoding="utf-8")
    if failed:
        reasons = "; ".join(f"{name} ({reason})" for name, reason in failed.items())
        raise UserError(f"{len(failed)} of {len(pairs)} runs failed: {reasons}. Put it right and run this again")
    print(f"all {len(pairs)} runs are done: {TABLE} and seeds.md")


def _pair(text: str) -> tuple[int, int]:
    base_seed, _, seed = text.partition(":")
    if not (base_seed.isdecimal() and seed.isdecimal()):
        raise UserError(f"{text} is no pair of seeds: write BASE:SEED, such as 1:2")
    return int(base_seed), int(seed)


def run_rows(figures: pd.DataFrame, methods: Sequence[str]) -> pd.DataFrame:
    """The rows of a run with one seed, a method and task each, from its figures.csv.

    The content effect is the accuracy with a method's own thoughts less that with another text's, empty if it has none.
    """
    accuracy = figures[figures["measure"] == "accuracy"].rename(columns={"value": "accuracy", "arm": "method"})
    found = accuracy[accuracy["method"].isin(methods)]
    by_arm = accuracy.set_index(["method", "task"])["accuracy"]
    swapped = by_arm.reindex(zip(found["method"] + "/swapped", found["task"], strict=True)).to_numpy()
    return found.assign(content_effect=found["accuracy"] - swapped)


def in_words(rows: pd.DataFrame) -> str:
    """The table as Markdown: for each task, means over runs with t-intervals, and every run."""
    parts = ["# Seeds", "`make seeds`. Brackets are 95 % t-intervals over runs; behind them is each run, in order."]
    own, one = rows[rows["base_seed"] == rows["seed"]], rows[rows["base_seed"] == rows["base_seed"].min()]
    kinds = {"each run with its own base model and training seed": own, "training seeds on one base model": one}
    for task, (kind, chosen) in product(rows["task"].unique(), kinds.items()):
        lines = [["arm", "runs", "accuracy", "content effect"], ["---"] * 4]
        for method, group in chosen[chosen["task"] == task].groupby("method", sort=False):
            cells = [_mean(group[name], lowest) for name, lowest in (("accuracy", 0.0), ("content_effect", -1.0))]
            lines.append([method, str(len(group)), *cells])
        parts += [f"## {task}: {kind}", "\n".join(f"| {' | '.join(line)} |" for line in lines)]
    return "\n\n".join(parts) + "\n"


def _mean(values: pd.Series, lowest: float) -> str:
    """The mean of ``values``, between ``lowest`` and 1, with its t-interval and all of them."""
    values = values.dropna().to_numpy()
    if not len(values):
        return ""
    every = ", ".join(f"{value:.3f}" for value in values)
    if len(values) == 1:
        return every
    spread = stdtrit(len(values) - 1, QUANTILE) * values.std(ddof=1) / np.sqrt(len(values))
    low, high = np.clip([values.mean() - spread, values.mean() + spread], lowest, 1.0)
    return f"{values.mean():.3f} [{low:.3f}, {high:.3f}]: {every}"


if __name__ == "__main__":
    errors.run(main)
