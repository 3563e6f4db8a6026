"""Run every arm with several base models and training seeds: `python -m pipeline.ablations.seeds [BASE:SEED ...]`.

By default ten runs with a base model each (1:1, 2:2, ... 10:10), and training seeds 2 to 5 on base model 1. A run is a
DVC experiment (`pipeline.ablations.experiments`) of all methods in params.yaml, or of those that are named. Its rows go
to results/seeds.csv once it is done, and what has rows there is not run again, whatever the code: delete the file after
a change of the method. Rows of another params.yaml are run again. Also writes seeds.md.
"""

from collections.abc import Sequence
from itertools import product
from pathlib import Path

import pandas as pd

from pipeline import errors, params
from pipeline.ablations import experiments
from pipeline.ablations.grid import Arm, Workspace
from pipeline.ablations.results import add_rows, figures_of, markdown, over_seeds, read_rows, settings_now
from pipeline.errors import UserError
from pipeline.evaluation.names import ACCURACY, HELDOUT, LOSS, SWAPPED
from pipeline.evaluation.statistics import SHARE, SHARE_DIFFERENCE
from pipeline.files import replacing
from pipeline.preset import options as preset

TABLE = Path("results/seeds.csv")
COLUMNS = [
    "method",
    "base_seed",
    "seed",
    "task",
    "n",
    "groups",
    "accuracy",
    "content_effect",
    "heldout_loss",
    "settings",
]
RUN = ["base_seed", "seed"]
PAIRS = [f"{s}:{s}" for s in range(1, 11)] + [f"1:{s}" for s in range(2, 6)]


def main() -> None:
    parser = experiments.parser("python -m pipeline.ablations.seeds", __doc__)
    parser.add_argument("pairs", nargs="*", default=PAIRS, metavar="BASE:SEED")
    parser.add_argument("--methods", nargs="+", metavar="METHOD", help="default: params.yaml's arms.methods")
    options = experiments.parse(parser, "runs")
    pairs = list(dict.fromkeys(map(_pair, options.pairs)))
    methods = options.methods or params.load().arms.methods
    settings = settings_now()
    rows = read_rows(TABLE, COLUMNS, settings)
    workspace, runs, missing = Workspace(), [], {}
    for base_seed, seed in pairs:
        done = set(rows.loc[(rows["base_seed"] == base_seed) & (rows["seed"] == seed), "method"])
        if absent := [method for method in methods if method not in done]:
            values = {"base_model.seed": base_seed, "arms.seeds": [seed], "arms.methods": absent}
            about = {"base_seed": base_seed, "seed": seed}
            runs.append(workspace.arm(f"base{base_seed}-seed{seed}", about, preset.words(values)))
            missing[runs[-1].name] = absent

    def keep(arm: Arm) -> None:
        found = run_rows(figures_of(arm), missing[arm.name]).assign(**arm.about).reindex(columns=COLUMNS)
        add_rows(TABLE, found, settings, ["method", *RUN, "task"], RUN)

    failed = experiments.run(runs, options.jobs, done=keep)
    if not (rows := read_rows(TABLE, COLUMNS, settings)).empty:
        with replacing(TABLE.with_suffix(".md")) as part:
            part.write_text(in_words(rows), encoding="utf-8")
    experiments.check_done(failed, len(pairs), "runs")
    print(f"all {len(pairs)} runs are done: {TABLE} and seeds.md")


def _pair(text: str) -> tuple[int, int]:
    base_seed, _, seed = text.partition(":")
    if not (base_seed.isdecimal() and seed.isdecimal()):
        raise UserError(f"{text} is no pair of seeds: write BASE:SEED, such as 1:2")
    return int(base_seed), int(seed)


def run_rows(figures: pd.DataFrame, methods: Sequence[str]) -> pd.DataFrame:
    """The rows of a run with one seed, a method and task each, from its figures.csv.

    The content effect is the accuracy with a method's own thoughts less that with another text's, empty if it has none.
    The held-out loss, nats a token, is of the method and not of a task: it stands in the rows of every task.
    """
    accuracy = figures[figures["measure"] == ACCURACY].rename(columns={"value": "accuracy", "arm": "method"})
    found = accuracy[accuracy["method"].isin(methods)]
    by_arm = accuracy.set_index(["method", "task"])["accuracy"]
    swapped = by_arm.reindex(zip(found["method"] + f"/{SWAPPED}", found["task"], strict=True)).to_numpy()
    losses = figures[(figures["task"] == HELDOUT) & (figures["measure"] == LOSS)].set_index("arm")["value"]
    effect = (found["accuracy"] - swapped).round(7)  # as figures.csv is
    return found.assign(content_effect=effect, heldout_loss=found["method"].map(losses))


def in_words(rows: pd.DataFrame) -> str:
    """The table as Markdown: for each task and for held-out text, means over runs with intervals, and every run."""
    about = "`make seeds`. Brackets are 95 % Student intervals over runs; behind them is each run, in order."
    parts = ["# Seeds", about]
    most = rows.groupby("base_seed")["seed"].nunique().idxmax()  # the first of equals
    own, one = rows[rows["base_seed"] == rows["seed"]], rows[rows["base_seed"] == most]
    kinds = {"each run with its own base model and training seed": own, "training seeds on one base model": one}
    for task, (kind, chosen) in product(rows["task"].unique(), kinds.items()):
        lines = []
        for method, group in chosen[chosen["task"] == task].groupby("method", sort=False):
            cells = [over_seeds(group["accuracy"], SHARE), over_seeds(group["content_effect"], SHARE_DIFFERENCE)]
            lines.append([method, len(group), *cells])
        table = pd.DataFrame(lines, columns=["arm", "runs", "accuracy", "content effect"])
        parts += [f"## {task}: {kind}", markdown(table)]
    first = rows["method"].iloc[0]
    for kind, chosen in kinds.items():
        losses = chosen.drop_duplicates(["method", *RUN]).pivot(index=RUN, columns="method", values="heldout_loss")
        lines = [
            [method, losses[method].count(), over_seeds(losses[method], None)]
            + [over_seeds(losses[method] - losses[first], None) if method != first else None]
            for method in chosen["method"].unique()
        ]
        table = pd.DataFrame(lines, columns=["arm", "runs", "nats a token", f"{first} is better by"])
        parts += [f"## Held-out text: {kind}", markdown(table)]
    return "\n\n".join(parts) + "\n"


if __name__ == "__main__":
    errors.run(main)
