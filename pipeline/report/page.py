"""Fills the page's template. The same inputs give the same bytes: no clock, no chance, no path of this machine."""

import platform
from importlib.metadata import version
from pathlib import Path

import pandas as pd
from jinja2 import Environment, FileSystemLoader, StrictUndefined, Template

from pipeline import params
from pipeline.files import new_path
from pipeline.report import certainty, chain_of_thought, comparisons, curves, estimates, figures, inputs, results, where
from pipeline.report.drawing import Plot, csv_link
from pipeline.report.examples import examples
from pipeline.report.heat_map import heat_map
from pipeline.report.inputs import ReportInputs
from pipeline.report.method import Method, read_method
from pipeline.report.reading import read_metrics, read_text
from pipeline.report.trained import training_facts, training_sentence

PLAN = "\nplan:"  # the last section of params.yaml, which no run depends on: this stage does not either
PACKAGES = ("torch", "transformers", "datasets", "dvc", "hydra-core", "pandas")
FORMATS = (
    comparisons.arm_name,
    comparisons.right_alone,
    estimates.decimal,
    estimates.interval,
    estimates.listed,
    estimates.nats,
    estimates.p_value,
    estimates.percent,
    estimates.points,
    estimates.whole,
)


def write_report(paths: ReportInputs, out: Path) -> None:
    """Writes ``out``/index.html, or raises UserError where an input is missing or malformed."""
    method = read_method(read_metrics(paths.train_metrics))
    shown = _what_was_trained(paths, method) | _did_it_help(paths, method) | _where(paths, method)
    html = _template().render(method=method, **shown, **_how_sure(shown, method), **_training(paths, method))
    with new_path(out / "index.html") as part:
        part.write_text(html, encoding="utf-8", newline="\n")


def _template() -> Template:
    environment = Environment(
        loader=FileSystemLoader(Path(__file__).parent),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.globals.update({function.__name__: function for function in FORMATS})
    return environment.get_template("page.html.j2")


def _what_was_trained(paths: ReportInputs, method: Method) -> dict:
    text, train = read_text(paths.params), read_metrics(paths.train_metrics)
    given = params.load(paths.params)
    return {
        "title": f"{method.name[0].upper()}{method.name[1:]}: report of a run",
        "question": f"Did {method.act.lower()} help?",
        "facts": training_facts(train, given, method),
        "in_words": training_sentence(train, given, method),
        "seed": given.train.seed,
        "params": text.partition(PLAN)[0].rstrip(),
    }


def _did_it_help(paths: ReportInputs, method: Method) -> dict:
    tasks = results.tasks(read_metrics(paths.evaluate_metrics), method)
    text = results.held_out(read_metrics(paths.perplexity_metrics), method)
    by_arm = inputs.read_figures(paths.compare_figures)
    compared = comparisons.comparisons(inputs.read_comparisons(paths.compare_comparisons))
    return {
        "tasks": tasks,
        "text": text,
        "own_findings": results.own_findings(tasks, text, method),
        "arm_findings": comparisons.findings(compared, method),
        "arms": comparisons.arms(by_arm),
        "arm_plot": figures.accuracy_by_arm(by_arm, method) if (by_arm["measure"] == "accuracy").any() else None,
        "comparisons": compared,
        "thoughts_off": comparisons.arm_name(comparisons.thoughts_off(method)),
        **_reasoning(paths, [task.name for task in tasks], method),
    }


def _reasoning(paths: ReportInputs, tasks: list[str], method: Method) -> dict:
    found = chain_of_thought.reasoning(read_metrics(paths.cot_metrics), method)
    votes = inputs.read_votes(paths.cot_votes) if found else None
    rows = [(one.task, chain_of_thought.of_task(votes, one.task, method)) for one in found]
    return {
        "reasoning": found,
        "unreasoned": chain_of_thought.without_reasoning(tasks, found),
        "reasoning_findings": chain_of_thought.findings(found, method),
        "vote_plots": [
            figures.votes(number, task, table, method)
            for number, (task, table) in enumerate(rows, start=1)
            if len(table)
        ],
    }


def _where(paths: ReportInputs, method: Method) -> dict:
    found = {"examples": examples(inputs.read_predictions(paths.predictions, method.ways), method), "groups": []}
    if not method.thinks:
        return found
    extremes = inputs.read_extremes(paths.extremes)
    shares = where.shares(read_metrics(paths.perplexity_metrics))
    return found | {
        "groups": _groups(paths),
        "shares": shares,
        "agreement": where.agreement_sentence(shares),
        "density": figures.density(inputs.read_density(paths.density), method),
        "passages": {side: where.extremes(extremes, "passage", side) for side in ("gain", "loss")},
        "thoughts": {side: where.extremes(extremes, "thought", side) for side in ("gain", "loss")},
        "extremes_data": csv_link(extremes),
        "map": heat_map(inputs.read_tokens(paths.tokens), paths.passages),
    }


def _groups(paths: ReportInputs) -> list[dict]:
    deciles, positions, weights = map(inputs.read_groups, (paths.deciles, paths.positions, paths.weights))
    kinds = where.by_improvement(inputs.read_groups(paths.kinds))
    return [
        _group("tenth", deciles, figures.decile_bars(deciles)),
        _group("kind", kinds, figures.group_bars("kinds", "By kind of token", kinds)),
        _group("positions", positions, figures.group_bars("positions", "By position in the text", positions)),
        _group("weight", weights, figures.group_bars("weights", "By mixing weight", weights)),
    ]


def _group(what: str, table: pd.DataFrame, plot: Plot) -> dict:
    return {"what": what, "plot": plot, "rows": where.groups(table), "sentence": where.range_sentence(table, what)}


def _how_sure(shown: dict, method: Method) -> dict:
    bars = sum(len(group["rows"]) for group in shown["groups"])
    found = certainty.compared(shown["tasks"], shown["comparisons"], shown["reasoning"], bars, method)
    return {
        "compared": found,
        "chance": certainty.chance_sentence(found),
        "seeds": comparisons.seeds_sentence(shown["arms"]),
        "coverage": comparisons.coverage_sentence(shown["arms"]),
    }


def _training(paths: ReportInputs, method: Method) -> dict:
    return {
        "curves": [
            *curves.heldout_curves(paths.train_heldout, method),
            *curves.step_curves(paths.train_steps, method),
            *curves.base_model_curves(paths.base_model_steps),
        ],
        "warnings": curves.step_warnings(paths.train_steps),
        "versions": [("python", platform.python_version())] + [(name, version(name)) for name in PACKAGES],
    }
