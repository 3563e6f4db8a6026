"""Fill the page's template. The same inputs give the same bytes: no clock, no chance, no path of this machine."""

import platform
from importlib.metadata import version
from pathlib import Path

import pandas as pd
from jinja2 import Environment, FileSystemLoader, StrictUndefined

from pipeline import params
from pipeline.files import replacing
from pipeline.report import certainty, comparisons, curves, estimates, facts, figures, quotes, results, where
from pipeline.report.drawing import Plot, csv_link
from pipeline.report.method import METHODS, Method
from pipeline.report.reading import read_csv, read_json, read_parquet

PLAN = "\nplan:"  # the last section of params.yaml; no stage depends on it, so the page leaves it out
PACKAGES = ("torch", "transformers", "datasets", "dvc", "hydra-core", "pandas")
ENDS = ("ci_low", "ci_high")
FIGURES = ("task", "measure", "arm", "seeds", "n", "mean", *ENDS)
GROUPS = ("group", "n", "share", "base_loss", "improvement", *ENDS, "helped", "hurt")
FUNCTIONS = (
    *(comparisons.arm_name, comparisons.measure_name, comparisons.right_alone, quotes.visible, where.group_name),
    *(estimates.decimal, estimates.nats, estimates.p_value, estimates.percent, estimates.points, estimates.whole),
    *(estimates.interval, estimates.listed),
)


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
    strict = {"autoescape": True, "undefined": StrictUndefined}
    loader = FileSystemLoader(Path(__file__).parent)
    environment = Environment(loader=loader, trim_blocks=True, lstrip_blocks=True, **strict)
    environment.globals |= {function.__name__: function for function in FUNCTIONS}
    environment.globals["estimate"] = estimates.Estimate.of
    html = environment.get_template("page.html.j2").render(shown, chance=certainty.chance_sentence(shown["compared"]))
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
    deciles, kinds, positions, weights = (
        read_csv(folder / f"{name}.csv", *GROUPS) for name in ("deciles", "kinds", "positions", "weights")
    )
    # kinds have no order of their own
    kinds = kinds.sort_values("improvement", ascending=False, kind="stable", ignore_index=True)
    texts = ("what", "side", "token", "thought", "excerpt")
    extremes = read_csv(folder / "extremes.csv", *texts, "rank", "text", "base_loss", "improvement")
    columns = ("text", "position", "token", "thought", "nll_no_thought", "nll_thought", "weight")
    tokens = read_parquet(folder / "tokens.parquet", *columns)
    return shown | {
        "groups": [
            _group("tenth", deciles, figures.decile_bars(deciles)),
            _group("kind", kinds, figures.group_bars("kinds", "By kind of token", kinds)),
            _group("positions", positions, figures.group_bars("positions", "By position in the text", positions)),
            _group("weight", weights, figures.group_bars("weights", "By mixing weight", weights)),
        ],
        "agreement": where.agreement_sentence(text),
        "density": figures.density(read_csv(folder / "density.csv", "base_loss", "improvement", "tokens"), method),
        "passages": {side: quotes.extremes(extremes, "passage", side) for side in ("gain", "loss")},
        "thoughts": {side: quotes.extremes(extremes, "thought", side) for side in ("gain", "loss")},
        "extremes_data": csv_link(extremes),
        "map": quotes.heat_map(tokens, passages),
    }


def _group(what: str, table: pd.DataFrame, plot: Plot) -> dict:
    sentence = where.range_sentence(table, what)
    return {"what": what, "plot": plot, "rows": table.to_dict("records"), "sentence": sentence}
