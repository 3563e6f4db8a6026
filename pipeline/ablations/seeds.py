"""Run every arm with several base models and training seeds: `python -m pipeline.ablations.seeds [BASE:SEED ...]`.

By default ten runs with a base model each (1:1, 2:2, ... 10:10), and training seeds 2 to 5 on base model 1. A run is a
DVC experiment (`pipeline.ablations.experiments`) of all methods in params.yaml, or of those that are named. Its rows go
to results/seeds.csv once it is done, and what has rows there is not run again, whatever the code: delete the file after
a change of the method. Rows of another params.yaml are run again. Also writes seeds.md and seeds.svg.
"""

from collections.abc import Sequence
from itertools import product
from pathlib import Path

import pandas as pd

from pipeline import errors, params
from pipeline.ablations import experiments
from pipeline.ablations.grid import Arm, Workspace
from pipeline.ablations.results import STYLE, add_rows, figures_of, markdown, over_seeds, read_rows, settings_now
from pipeline.errors import UserError
from pipeline.evaluation.names import ACCURACY, HELDOUT, LOSS, SWAPPED, UNTRAINED
from pipeline.evaluation.statistics import SHARE, SHARE_DIFFERENCE
from pipeline.files import replacing
from pipeline.preset import options as preset
from pipeline.report.drawing import Figure, style

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
        draw(rows, TABLE.with_suffix(".svg"))
    experiments.check_done(failed, len(pairs), "runs")
    print(f"all {len(pairs)} runs are done: {TABLE}, seeds.md and seeds.svg")


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
    parts = ["# Seeds", about, "![Each run's accuracy and held-out loss](seeds.svg)"]
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


def draw(rows: pd.DataFrame, path: Path) -> None:
    """Draw every run as a dot, as SVG: a panel for each task's accuracy and one for held-out text.

    A ring is the same run with another question's thoughts. Further training seeds on one base model are grey.
    """
    methods, tasks = list(rows["method"].unique()), list(rows["task"].unique())
    panels = {task: rows[rows["task"] == task] for task in tasks}
    # an untrained thought's prediction is no language model: its loss would flatten all others
    panels[HELDOUT] = rows[(rows["task"] == tasks[0]) & (rows["method"] != UNTRAINED)]
    with style.context(["default", STYLE]), replacing(path) as part:
        figure = Figure(figsize=(3.4 * len(panels), 3), layout="constrained", facecolor="white")
        for axis, (name, some) in zip(figure.subplots(1, len(panels), squeeze=False)[0], panels.items(), strict=True):
            own = some["base_seed"] == some["seed"]
            places = some["method"].map(methods.index) + (some.groupby("method").cumcount() - 4.5) / 20
            colours = own.map({True: "#20639b", False: "0.65"})
            axis.scatter(places, some["heldout_loss" if name == HELDOUT else "accuracy"], c=colours, s=12)
            if name == HELDOUT:
                axis.set(title="held-out text", ylabel="loss, nats a token")
            else:
                swapped = some["accuracy"] - some["content_effect"]
                axis.scatter(places, swapped, facecolors="none", edgecolors=colours, s=16, linewidths=0.8)
                axis.set(title=name, ylabel="accuracy", ylim=(0, 1.03))
            axis.set_xticks(range(len(methods)), methods, rotation=35, ha="right")
        figure.savefig(part, format="svg", metadata={"Date": None, "Creator": None})


if __name__ == "__main__":
    errors.run(main)
