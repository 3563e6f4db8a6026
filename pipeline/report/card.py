"""The model card: the run's report in Markdown, with a head that the Hugging Face hub reads."""

import re
from collections.abc import Iterable
from pathlib import Path

import yaml
from jinja2 import StrictUndefined, Template

from pipeline import params
from pipeline.report.comparisons import arm_name, read_comparisons
from pipeline.report.estimates import Estimate, decimal, interval, nats, p_value, percent, points, whole
from pipeline.report.facts import training_facts, training_sentence
from pipeline.report.method import METHODS, Method
from pipeline.report.reading import read_json
from pipeline.report.results import MEASURES

ON_THE_HUB = re.compile(r"\w[\w.-]*(/\w[\w.-]*)?")
MARKDOWN = re.compile(r"([\\`*_\[\]<>|#~&$!])")
TEXT = Path(__file__).with_name("card.md.j2").read_text(encoding="utf-8")
TEMPLATE = Template(TEXT, undefined=StrictUndefined, trim_blocks=True, keep_trailing_newline=True)


def model_card(params_file: Path, results: Path) -> str:
    """The card of the run with these parameters whose stages wrote their metrics to ``results``.

    Raises UserError if one of their files is missing or cannot be read.
    """
    given, train = params.load(params_file), read_json(results / "train/metrics.json")
    method, base = METHODS[train["method"]], given.base_model
    head: dict = {
        "library_name": "transformers",
        "pipeline_tag": "text-generation",
        "tags": list(dict.fromkeys(["quiet-star", method.key.replace("_", "-")])),
    }
    if base.source == "hub" and on_the_hub(base.path):
        head["base_model"] = base.path
    if given.corpus.source == "hub" and on_the_hub(given.corpus.hub.train.path):
        head["datasets"] = [given.corpus.hub.train.path]
    base_name = Path(base.path).name if base.source == "hub" else f"a small {base.scratch.architecture}"
    return TEMPLATE.render(
        method=method,
        head=yaml.safe_dump(head, sort_keys=False, allow_unicode=True),
        base_name=escaped(base_name),
        about=escaped(training_sentence(train, given, method)),
        facts=_table(("", ""), training_facts(train, given, method)),
        settings=_table(("setting", "value"), ((name, repr(value)) for name, value in vars(given.train).items())),
        results="\n\n".join(_results(results, method)),
    )


def on_the_hub(name: str) -> bool:
    """Whether ``name`` can be a name on the hub and is not the path of a local folder."""
    return ON_THE_HUB.fullmatch(name) is not None and not Path(name).exists()


def _results(results: Path, method: Method) -> Iterable[str]:
    """The tables: tasks, other ways of training, written reasoning, held-out text."""
    trained_ways, gain = method.trained_ways, ["difference"] if method.thinks else []

    rows = []
    for task, values in read_json(results / "evaluate/metrics.json").items():
        for key, (label, prefix) in MEASURES.items():
            row = [task, label, *(percent(values[way][key]) for way in method.ways)]
            if method.thinks:
                difference = values["difference"]
                test = p_value(difference["p_value"]) if key == "accuracy" else ""
                row += [interval(Estimate.of(difference, key, prefix), points), test]
            rows.append([*row, whole(values["n"])])
    test = ["McNemar"] if method.thinks else []
    yield _table(["task", "measure", *method.ways.values(), *gain, *test, "n"], rows)

    rows = []
    for one in read_comparisons(results):
        if one["measure"] == "accuracy":
            difference = interval(Estimate.of(one, "difference"), points)
            test, counts = p_value(one["p_value"]), (whole(one["seeds"]), whole(one["n"]))
            rows.append([one["task"], arm_name(one["against"]), difference, test, *counts])
    if rows:
        header = ("task", "against", "difference", "McNemar", "seeds", "n")
        yield f"Accuracy against other ways of training:\n\n{_table(header, rows)}"

    rows = []
    for task, values in read_json(results / "chain_of_thought/metrics.json").items():
        for measure in values["no_thought"]:
            row = [task, measure, *(percent(values[way][measure]) for way in trained_ways)]
            if method.thinks:
                row.append(interval(Estimate.of(values["difference"][measure]), points))
            rows.append([*row, whole(values["n"])])
    if rows:
        table = _table(["task", "measure", *trained_ways.values(), *gain, "n"], rows)
        yield f"With written reasoning (maj@k: the majority of k samples):\n\n{table}"

    text = read_json(results / "perplexity/metrics.json")
    header = ["held-out text", *trained_ways.values()]
    row = ["loss, nats per token", *(decimal(text["loss"][way]) for way in trained_ways)]
    if method.thinks:
        header, row = [*header, "improvement"], [*row, interval(Estimate.of(text["improvement"]), nats)]
    yield _table([*header, "n"], [[*row, whole(text["n_texts"])]])


def _table(header: Iterable[str], rows: Iterable[Iterable[str]]) -> str:
    lines = [[escaped(cell) for cell in row] for row in (header, *rows)]
    lines.insert(1, ["---"] * len(lines[0]))
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def escaped(text: str) -> str:
    """``text`` in one line, in which nothing is Markdown or HTML."""
    return MARKDOWN.sub(r"\\\1", " ".join(text.split()))
