"""Fill the page's template. The same inputs give the same bytes: no clock, no chance, no path of this machine."""

import platform
from importlib.metadata import version
from pathlib import Path

from jinja2 import Environment, FileSystemLoader, StrictUndefined

from pipeline import params
from pipeline.evaluation.names import ACCURACY, HELDOUT, NORM, PROB
from pipeline.files import replacing
from pipeline.report import curves, estimates, facts, figures, quotes, results, where
from pipeline.report.drawing import csv_link
from pipeline.report.method import METHODS, WAYS, Method
from pipeline.report.reading import read_csv, read_json, read_parquet
from pipeline.report.results import Cell, Table

PLAN = "\nplan:"  # the last section of params.yaml; no stage depends on it, so the page leaves it out
PACKAGES = ("torch", "transformers", "datasets", "dvc", "hydra-core", "pandas")
ENDS = ("ci_low", "ci_high")
GROUPS = ("group", "n", "share", "base_loss", "improvement", *ENDS, "helped", "hurt")
GROUP_FIGURES = (  # a table of groups of tokens, the figure's title, and what a group is called
    ("deciles", "By difficulty", "tenth"),
    ("kinds", "By kind of token", "kind"),
    ("positions", "By position in the text", "positions"),
    ("weights", "By mixing weight", "weight"),
)
# what the templates call
FUNCTIONS = vars(estimates) | {"visible": quotes.visible, "estimate": estimates.Estimate.of}


def write_report(params_file: Path, folder: Path, out: Path) -> None:
    """Write the page ``out`` about the first arm from the files that the other stages wrote to ``folder``.

    Raises UserError if one of them is missing or cannot be read.
    """
    given = params.load(params_file)
    run, method = given.arms.run, METHODS[given.arms.methods[0]]
    train = read_json(folder / "train" / run / "metrics.json")
    versions = {"python": platform.python_version()} | {name: version(name) for name in PACKAGES}
    shown = {
        "method": method,
        "in_words": facts.training_sentence(train, given, method),
        "facts": facts.training_facts(train, read_json(folder / "summary.json"), given, method),
        "legend": [*((one.name, facts.what_it_does(one, given)) for one in METHODS.values()), *WAYS.values()],
        "params": params_file.read_text(encoding="utf-8").partition(PLAN)[0].rstrip(),
        "versions": Table("Versions", ["package", "version"], [[*map(Cell, row)] for row in versions.items()]),
        "curves": curves.training_curves(folder, run, method),
        "warnings": curves.step_warnings(folder, run),
        "costs": results.costs_sentence(folder / "evaluate", given.arms),
        **_arms(folder, method),
        **_where(folder, run, given.report.passages, method),
    }
    shown["compared"] += sum(len(group["table"].rows) for group in shown["groups"])
    loader = FileSystemLoader(Path(__file__).parent)
    jinja = Environment(loader=loader, autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True)
    jinja.globals |= FUNCTIONS
    html = jinja.get_template("page.html.j2").render(shown)
    with replacing(out) as part:
        part.write_text(html, encoding="utf-8", newline="\n")


def _arms(folder: Path, method: Method) -> dict:
    """What the arms' comparisons say, and the run's written reasoning."""
    found = results.read_results(folder / "compare", method)
    reasoning = read_json(folder / "chain_of_thought/metrics.json")
    vote_plots = []
    if reasoning:
        votes = read_csv(folder / "chain_of_thought/votes.csv", "task", "way", "k", "accuracy", *ENDS, "n")
        votes = votes[votes["way"].isin(method.ways)]
        for number, task in enumerate(reasoning, start=1):
            vote_plots.append(figures.votes(number, task, votes[votes["task"] == task], method))
    reasoning_table = results.reasoning_table(reasoning, method)
    plots = [figures.seeds(number, task, found) for number, task in enumerate([*found.tasks, HELDOUT], start=1)]
    measures = [ACCURACY, PROB, *([NORM] if any(measure == NORM for _, measure, _ in found.figures) else [])]
    differences = {measure: results.differences_table(found, measure) for measure in measures}
    content, heldout = results.content_table(found), results.heldout_table(found)
    rows = [row[1:] for table in (*differences.values(), content) for row in table.rows]
    rows += [row[2::2] for row in heldout.rows]  # a loss, then the difference, for each measure
    compared = sum(bool(cell.text) for row in rows for cell in row)
    return {
        "claims": results.claims(found),
        "harm": results.harm_findings(found),
        "counts": results.counts_sentence(found),
        "arms": {measure: results.arms_table(found, measure) for measure in measures},
        "differences": differences,
        "content": content,
        "heldout": heldout,
        "heldout_findings": results.heldout_findings(found),
        "seed_plots": list(filter(None, plots)),
        "reasoning": reasoning_table,
        "unreasoned": [task for task in found.tasks if task not in reasoning],
        "vote_plots": vote_plots,
        "compared": compared + len(reasoning_table.rows) * method.thinks,
    }


def _where(folder: Path, run: str, passages: int, method: Method) -> dict:
    """Where thoughts helped: groups of tokens, extremes, the heat map, and examples of questions."""
    if not method.thinks:
        return {"groups": []}
    columns = ("task", "index", "prompt", "answer", "way", "predicted", "correct", "prob", "thought")
    predictions = read_parquet(folder / "evaluate" / run / "predictions.parquet", *columns)
    perplexity, tables = folder / "perplexity" / run, folder / "perplexity" / run / "tables"
    groups = []
    for name, title, what in GROUP_FIGURES:
        rows = read_csv(tables / f"{name}.csv", *GROUPS)
        if name == "kinds":  # they have no order of their own
            rows = rows.sort_values("improvement", ascending=False, kind="stable", ignore_index=True)
        plot = (figures.decile_bars if name == "deciles" else figures.group_bars)(name, title, rows)
        table, sentence = where.group_table(title, what, rows), where.range_sentence(rows, what)
        groups.append({"plot": plot, "table": table, "sentence": sentence})
    text = read_json(tables / "metrics.json")
    texts = ("what", "side", "token", "thought", "excerpt")
    extremes = read_csv(tables / "extremes.csv", *texts, "rank", "text", "base_loss", "improvement", "content")
    columns = ("text", "position", "token", "thought", "nll_no_thought", "nll_thought", "weight")
    tokens = read_parquet(perplexity / "tokens.parquet", *columns)
    return {
        "text": text,
        "groups": groups,
        "agreement": where.agreement_sentence(text),
        "density": figures.density(read_csv(tables / "density.csv", "base_loss", "improvement", "tokens")),
        "passages": {side: quotes.extremes(extremes, "passage", side) for side in quotes.SIDES},
        "thoughts": {side: quotes.extremes(extremes, "thought", side) for side in quotes.SIDES},
        "extremes_data": csv_link(extremes),
        "map": quotes.heat_map(tokens, passages),
        "examples": quotes.examples(predictions, method),
    }
