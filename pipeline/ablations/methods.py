"""Compare the methods of the family: `python -m pipeline.ablations.methods [NAME ...] [--seeds N ...]`.

NAME is one of `TRAININGS` (default: all), each a preset (`method=NAME`) and a DVC experiment for each seed and budget.
Every method thinks at the same places, after the marker, where the micro-world's answers are due: that takes a tenth of
the time of thinking everywhere, and none is helped or hurt by where its paper has it think. At equal text every method
trains on as many texts; at equal operations it takes so many steps that its training costs what that of signed does, by
`pipeline.plan`. Rows go to results/methods.csv once a training is done, and what has rows there is not run again,
whatever the code: delete the file after a change of the methods. Rows of another params.yaml are run again. Also writes
methods.md.
"""

import io
from collections import defaultdict
from itertools import product
from pathlib import Path

import pandas as pd

from pipeline import errors, params
from pipeline.ablations import experiments
from pipeline.ablations.grid import Arm, Workspace, git
from pipeline.ablations.results import add_rows, figures_of, markdown, over_seeds, read_rows, settings_now
from pipeline.errors import UserError
from pipeline.evaluation.names import ACCURACY, CONTINUED, GATED, HELDOUT, LOSS, OFF, SWAPPED
from pipeline.evaluation.perplexity.choices import GATE, MARKER
from pipeline.evaluation.statistics import SHARE, SHARE_DIFFERENCE
from pipeline.files import replacing
from pipeline.plan.estimate import estimate
from pipeline.preset import options as preset

TABLE = Path("results/methods.csv")
COLUMNS = ["method", "budget", "seed", "task", "accuracy", "content_effect", "heldout_loss", "thoughts_per_token"]
COLUMNS += ["training_operations", "generation_passes", "settings"]
TEXT, OPERATIONS = BUDGETS = ("text", "operations")
# what is trained, and the rows that come of it: with which way of answering. A gate changes nothing of what it watches,
# so its training is signed's as well
TRAININGS = {
    "quiet_star": {"quiet_star": ""},
    "gated": {"signed": "", "gated": f"/{GATED}"},
    "rlp": {"rlp": ""},
    "value": {"value": ""},
    "fast": {"fast": ""},
    "distilled": {"distilled": f"/{OFF}"},
    CONTINUED: {CONTINUED: ""},  # continued pretraining, with which all are compared
}
MARKED = ["train.thinking.where=marker"]
ONE = ["train.thinking.where=one"]  # what it costs: a document has one marker, and the plan does not read the text
REFERENCE = "gated"  # whose operations all others get
CLOSE = 0.05  # operations that differ by no more are equal


def main() -> None:
    parser = experiments.parser("python -m pipeline.ablations.methods", __doc__)
    parser.add_argument("names", nargs="*", default=list(TRAININGS), metavar="NAME")
    parser.add_argument("--seeds", nargs="+", type=int, default=[1, 2, 3], metavar="N")
    parser.add_argument("--budgets", nargs="+", choices=BUDGETS, default=BUDGETS)
    options = experiments.parse(parser, "trainings")
    for name in options.names:
        if name not in TRAININGS:
            raise UserError(f"there is no method {name} to compare: there are {', '.join(TRAININGS)}")
    settings = settings_now()
    done = set(read_rows(TABLE, COLUMNS, settings)[["method", "budget", "seed"]].itertuples(index=False, name=None))
    plans = {pair: training(*pair) for pair in product(options.names, options.budgets)}
    workspace, arms, budgets = Workspace(), {}, defaultdict(list)
    for seed, budget, name in product(options.seeds, options.budgets, options.names):
        if all((row, budget, seed) in done for row in TRAININGS[name]):
            continue
        words, facts = plans[name, budget]
        about = {"name": name, "seed": seed, **facts}
        label = f"{name}-{facts['steps']}-seed{seed}"
        arm = workspace.arm(label, about, [*words, f"arms.seeds=[{seed}]"])
        arms[arm.name] = arm
        budgets[arm.name].append(budget)  # one training may be both

    def keep(arm: Arm) -> None:
        found = pd.concat(rows_of(arm, budget) for budget in budgets[arm.name]).reindex(columns=COLUMNS)
        add_rows(TABLE, found, settings, ["method", "budget", "seed", "task"], ["budget", "method", "seed"])

    failed = experiments.run(list(arms.values()), options.jobs, done=keep)
    if not (rows := read_rows(TABLE, COLUMNS, settings)).empty:
        with replacing(TABLE.with_suffix(".md")) as part:
            part.write_text(in_words(rows), encoding="utf-8")
    experiments.check_done(failed, len(arms), "trainings")
    print(f"all trainings are done: {TABLE} and methods.md")


def training(name: str, budget: str) -> tuple[list[str], dict[str, float]]:
    """The words for `preset.options` that train ``name`` on this ``budget``, and what its training costs.

    steps; training_operations; thoughts_per_token, those sampled for each token of text that is read; thought_tokens,
    of the last stage; gate_share.
    """
    words = ["arms.methods=[no_thought]"] if name == CONTINUED else [f"method={name}"]
    method = preset.options(words).get("arms.methods", [CONTINUED])[0]
    words = [*words, f"arms.methods=[{method}]", *MARKED]
    facts = costs(words)
    if budget == OPERATIONS:
        _, reference = training(REFERENCE, TEXT)
        times = reference["training_operations"] / facts["training_operations"]
        if abs(times - 1) > CLOSE:
            words = [*words, *_longer(words, times)]
            facts = costs(words)
    return words, facts


def _longer(words: list[str], times: float) -> list[str]:
    """The words that make a training as many ``times`` as long."""
    train = params.load(changes=preset.options(words)).train
    if not train.stages:
        return [f"train.steps={round(train.steps * times)}"]
    stages = [vars(stage) | {"steps": round(stage.steps * times)} for stage in train.stages]
    return preset.words({"train.stages": stages})


def costs(words: list[str]) -> dict[str, float]:
    """What the training with these words costs (`training`), without its evaluations."""
    changes = preset.options([*words, *ONE, "arms.seeds=[1]"])
    every = params.load(changes=changes)
    more = params.load(changes=changes | {"train.evaluation_texts": 2 * every.train.evaluation_texts})
    planned, train = estimate(every), every.train
    operations = 2 * planned.flops["train"] - estimate(more).flops["train"]  # as evaluation takes as much for each text
    stages = train.every_stage
    steps = sum(stage.steps for stage in stages)
    length = sum(stage.steps * stage.thought_tokens for stage in stages) / steps
    thoughts = planned.tokens["thoughts in training"] / length
    facts = {"steps": steps, "training_operations": operations, "thought_tokens": stages[-1].thought_tokens}
    facts |= {"thoughts_per_token": thoughts / planned.tokens["text in training"]}
    return facts | {"gate_share": train.gate_share}


def rows_of(arm: Arm, budget: str) -> pd.DataFrame:
    """The rows of a finished training, one for each of its methods and tasks, from the commit of its experiment.

    content_effect: the accuracy with its own thoughts less that with another question's. heldout_loss: nats a token,
    where the model thinks after the marker, or where the gate says. generation_passes: of the decoder, for each token
    of such text that is written.
    """
    figures, name, seed = figures_of(arm), arm.about["name"], arm.about["seed"]
    values = figures.set_index(["task", "measure", "arm"])["value"]
    (method,), rows = arm.params["arms.methods"], []
    for row, way in TRAININGS[name].items():
        if way == f"/{OFF}" or row == CONTINUED:
            thinks, loss = 0.0, values.get((HELDOUT, LOSS, f"{method}{way}"))
        elif way == f"/{GATED}":
            thinks, loss = _thinking(arm, f"{method}-{seed}", GATE, arm.about["gate_share"])
        else:
            thinks, loss = _thinking(arm, f"{method}-{seed}", MARKER)
        facts = {"method": row, "budget": budget, "seed": seed, "heldout_loss": loss}
        facts |= {key: arm.about[key] for key in ("thoughts_per_token", "training_operations")}
        facts["generation_passes"] = 1 + thinks * arm.about["thought_tokens"]
        for task in figures.loc[(figures["measure"] == ACCURACY) & ~figures["task"].str.contains("/"), "task"].unique():
            accuracy = values[task, ACCURACY, f"{method}{way}"]
            swapped = values.get((task, ACCURACY, f"{method}/{SWAPPED}")) if thinks and not way else None
            rows.append(facts | {"task": task, "accuracy": accuracy})
            rows[-1]["content_effect"] = None if swapped is None else accuracy - swapped
    return pd.DataFrame(rows)


def _thinking(arm: Arm, run: str, chooser: str, share: float = 0.0) -> tuple[float, float]:
    """The share of held-out tokens that this ``chooser`` chose, of its rows the nearest to ``share``, and the loss."""
    table = pd.read_csv(io.StringIO(git("show", f"{arm.ref}:results/perplexity/{run}/tables/choices.csv")))
    rows = table[table["chooser"] == chooser]
    if rows.empty:
        raise UserError(f"no held-out text of {arm.name} has the marker of train.thinking")
    row = rows.loc[(rows["share"] - share).abs().idxmin()]
    return float(row["share"]), float(row["loss"])


def in_words(rows: pd.DataFrame) -> str:
    """The table as Markdown: for each budget and task, means over seeds with their intervals, and every seed."""
    about = "`make methods`. Brackets are 95 % Student intervals over training seeds; behind them is each, in order."
    parts = ["# Methods", about]
    titles = {TEXT: "at equal text", OPERATIONS: "at equal operations"}
    for budget, task in product(BUDGETS, rows["task"].unique()):
        lines = []
        for method, group in rows[(rows["budget"] == budget) & (rows["task"] == task)].groupby("method", sort=False):
            first = group.iloc[0]
            cells = [over_seeds(group["accuracy"], SHARE), over_seeds(group["content_effect"], SHARE_DIFFERENCE)]
            cells += [over_seeds(group["heldout_loss"], None), f"{first['thoughts_per_token']:.2f}"]
            cells += [f"{first['training_operations']:.2e}", f"{group['generation_passes'].mean():.2f}"]
            lines.append([method, *cells])
        names = ["method", "accuracy", "content effect", "held-out loss", "thoughts a token", "operations to train"]
        table = pd.DataFrame(lines, columns=[*names, "passes a written token"])
        if len(table):
            parts += [f"## {task}, {titles[budget]}", markdown(table)]
    return "\n\n".join(parts) + "\n"


if __name__ == "__main__":
    errors.run(main)
