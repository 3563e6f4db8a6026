"""Fills the page's template. The same inputs give the same bytes: no clock, no chance, no path of this machine."""

import platform
from importlib.metadata import version
from pathlib import Path

from jinja2 import Environment, FileSystemLoader, StrictUndefined

from pipeline.files import new_path
from pipeline.report import figures, results
from pipeline.report import inputs as files
from pipeline.report.examples import examples
from pipeline.report.heat_map import heat_map
from pipeline.report.inputs import ReportInputs, read_metrics, read_steps

PACKAGES = ("torch", "transformers", "datasets", "dvc", "hydra-core", "pandas")
FORMATS = (results.decimal, results.interval, results.nats, results.percent, results.points)
SENTENCES = (results.task_sentence, results.held_out_sentence)


def write_report(inputs: ReportInputs, out: Path) -> None:
    """Writes ``out``/index.html, or raises UserError where an input is missing or malformed."""
    html = _template().render(**_numbers(inputs), **_plots(inputs), **_texts(inputs))
    with new_path(out / "index.html") as part:
        part.write_text(html, encoding="utf-8", newline="\n")


def _template():
    environment = Environment(
        loader=FileSystemLoader(Path(__file__).parent),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.globals.update({function.__name__: function for function in FORMATS + SENTENCES})
    return environment.get_template("page.html.j2")


def _numbers(paths: ReportInputs) -> dict:
    perplexity = read_metrics(paths.perplexity_metrics)
    deciles = files.read_deciles(perplexity)
    return {
        "facts": results.training_facts(read_metrics(paths.train_metrics)),
        "tasks": results.tasks(read_metrics(paths.evaluate_metrics)),
        "text": results.held_out(perplexity),
        "deciles": list(deciles.itertuples()),
        "decile_plot": figures.decile_bars(deciles),
    }


def _plots(paths: ReportInputs) -> dict:
    training = figures.curves(read_steps(paths.train_steps, files.TRAIN_STEPS), figures.TRAINING)
    held_out = figures.curves(read_steps(paths.train_heldout, files.TRAIN_HELDOUT), figures.HELD_OUT)
    base = figures.curves(read_steps(paths.base_model_steps, files.BASE_MODEL_STEPS), figures.BASE_MODEL)
    return {"plots": held_out + training + base}


def _texts(paths: ReportInputs) -> dict:
    return {
        "examples": examples(files.read_predictions(paths.predictions)),
        "map": heat_map(files.read_tokens(paths.tokens), paths.passages),
        "params": files.read_params(paths.params),
        "versions": [("python", platform.python_version())] + [(name, version(name)) for name in PACKAGES],
    }
