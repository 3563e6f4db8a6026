"""Fill the page's template. The same inputs give the same bytes: no clock, no chance, no path of this machine."""

import platform
from importlib.metadata import version
from pathlib import Path

from jinja2 import Environment, FileSystemLoader, StrictUndefined

from pipeline import params
from pipeline.files import replacing
from pipeline.report import certainty, comparisons, curves, estimates, facts, figures, quotes, results, where
from pipeline.report.drawing import csv_link
from pipeline.report.method import METHODS, Method
from pipeline.report.reading import read_csv, read_json, read_parquet

PLAN = "\nplan:"  # the last section of params.yaml; no stage depends on it, so the page leaves it out
PACKAGES = ("torch", "transformers", "datasets", "dvc", "hydra-core", "pandas")
ENDS = ("ci_low", "ci_high")
FIGURES = ("task", "measure", "arm", "seeds", "n", "mean", *ENDS)
GROUPS = ("group", "n", "share", "base_loss", "improvement", *ENDS, "helped", "hurt")
GROUP_FIGURES = (  # a table of groups of tokens, the figure's title, and what a group is called
    ("deciles", "By difficulty", "tenth"),
    ("kinds", "By kind of token", "kind"),
    ("positions", "By position in the text", "positions"),
    ("weights", "By mixing weight", "weight"),
)
# what the templates call
FUNCTIONS = vars(estimates) | vars(comparisons) | {f.__name__: f for f in (quotes.visible, where.group_name)}


def write_report(params_file: Path, results_folder: Path, out: Path) -> None:
    """Write the page ``out`` from the files that the other stages wrote to ``results_folder``.

    Raises UserError if one of them is missing or cannot be read.
    """
    given = params.load(params_file)
    train = read_json(results_folder / "train/metrics.json")
    text = read_json(results_folder / "perplexity/metrics.json")
    method = METHODS[train["method"]]
    shown = {
        "method": method,
        "question": f"Did {method.act.lower()} help?",
        "facts": facts.training_facts(train, given, method),
        "in_words": facts.training_sentence(train, given, method),
        "seed": given.train.seed,
        "params": params_file.read_text(encoding="utf-8").partition(PLAN)[0].rstrip(),
        "versions": {"python": platform.python_version()} | {name: version(name) for name in PACKAGES},
        "curves": curves.training_curves(results_folder, method),
        "warnings": curves.step_warnings(results_folder),
        "text": text,
        **_did_it_help(results_folder, text, method),
        **_where(results_folder, text, given.report.passages, method),
    }
    bars = sum(len(group["rows"]) for group in shown["groups"])
    shown["compared"] = certainty.compared(shown["tasks"], shown["reasoning"], shown["comparisons"], bars, method)
    loader = FileSystemLoader(Path(__file__).parent)
    jinja = Environment(loader=loader, autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True)
    jinja.globals |= FUNCTIONS | {"estimate": estimates.Estimate.of}
    html = jinja.get_template("page.html.j2").render(shown, chance=certainty.chance_sentence(shown["compared"]))
    with replacing(out) as part:
        part.write_text(html, encoding="utf-8", newline="\n")


def _did_it_help(folder: Path, text: dict, method: Method) -> dict:
    """The run's own results, with written reasoning too, and the ways of training against each other."""
    tasks = read_json(folder / "evaluate/metrics.json")
    reasoning = read_json(folder / "chain_of_thought/metrics.json")
    arms = read_csv(folder / "compare/figures.csv", *FIGURES)
    accuracy = arms[arms["measure"] == "accuracy"]
    arm_rows = arms.to_dict("records")
    compared = comparisons.read_comparisons(folder)
    vote_plots = []
    if reasoning:
        table = read_csv(folder / "chain_of_thought/votes.csv", "task", "way", "k", "accuracy", *ENDS, "n")
        table = table[table["way"].isin(method.trained_ways)]
        for number, task in enumerate(reasoning, start=1):
            vote_plots.append(figures.votes(number, task, table[table["task"] == task], method))
    return {
        "tasks": tasks,
        "measures": results.MEASURES,
        "own_findings": results.own_findings(tasks, text, method),
        "arms": arm_rows,
        "arm_plot": figures.accuracy_by_arm(accuracy, method) if len(accuracy) else None,
        "arm_findings": comparisons.comparison_findings(compared, method),
        "comparisons": compared,
        "seeds": certainty.seeds_sentence(arm_rows),
        "coverage": certainty.coverage_sentence(arm_rows),
        "reasoning": reasoning,
        "unreasoned": [task for task in tasks if task not in reasoning],
        "reasoning_findings": results.reasoning_findings(reasoning, method),
        "vote_plots": vote_plots,
    }


def _where(folder: Path, text: dict, passages: int, method: Method) -> dict:
    """Where thoughts helped: groups of tokens, extremes, the heat map, and examples of questions."""
    columns = ("task", "index", "prompt", "answer", "way", "predicted", "correct", "prob", "thought")
    predictions = read_parquet(folder / "evaluate/predictions.parquet", *columns)
    shown = {"examples": quotes.examples(predictions, method), "groups": []}
    if not method.thinks:
        return shown
    folder = folder / "perplexity"
    groups = []
    for name, title, what in GROUP_FIGURES:
        table = read_csv(folder / f"{name}.csv", *GROUPS)
        if name == "kinds":  # they have no order of their own
            table = table.sort_values("improvement", ascending=False, kind="stable", ignore_index=True)
        plot = (figures.decile_bars if name == "deciles" else figures.group_bars)(name, title, table)
        sentence = where.range_sentence(table, what)
        groups.append({"what": what, "plot": plot, "rows": table.to_dict("records"), "sentence": sentence})
    texts = ("what", "side", "token", "thought", "excerpt")
    extremes = read_csv(folder / "extremes.csv", *texts, "rank", "text", "base_loss", "improvement")
    columns = ("text", "position", "token", "thought", "nll_no_thought", "nll_thought", "weight")
    tokens = read_parquet(folder / "tokens.parquet", *columns)
    return shown | {
        "groups": groups,
        "agreement": where.agreement_sentence(text),
        "density": figures.density(read_csv(folder / "density.csv", "base_loss", "improvement", "tokens"), method),
        "passages": {side: quotes.extremes(extremes, "passage", side) for side in ("gain", "loss")},
        "thoughts": {side: quotes.extremes(extremes, "thought", side) for side in ("gain", "loss")},
        "extremes_data": csv_link(extremes),
        "map": quotes.heat_map(tokens, passages),
    }
