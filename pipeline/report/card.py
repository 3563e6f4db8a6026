"""The model card: the run's report in Markdown, with a head that the Hugging Face hub reads."""

import re
from collections.abc import Iterable
from dataclasses import asdict
from pathlib import Path

import yaml
from jinja2 import StrictUndefined, Template

from pipeline import params
from pipeline.evaluation.names import ACCURACY
from pipeline.report.facts import training_facts, training_sentence
from pipeline.report.method import METHODS
from pipeline.report.reading import read_json
from pipeline.report.results import (
    arms_table,
    claims,
    content_table,
    counts_sentence,
    differences_table,
    harm_findings,
    heldout_findings,
    heldout_table,
    read_results,
    reasoning_table,
)

# as their pages on the hub name them; of other names the card says to look there
LICENCES = {
    "HuggingFaceTB/SmolLM2-135M": "apache-2.0",
    "HuggingFaceTB/SmolLM2-135M-Instruct": "apache-2.0",
    "Qwen/Qwen2.5-0.5B": "apache-2.0",
    "Qwen/Qwen2.5-7B": "apache-2.0",
    "mistralai/Mistral-7B-v0.1": "apache-2.0",
    "Salesforce/wikitext": "cc-by-sa-3.0, gfdl",
    "allenai/c4": "odc-by",
    "open-web-math/open-web-math": "odc-by",
    "openai/gsm8k": "mit",
}
ON_THE_HUB = re.compile(r"\w[\w.-]*(/\w[\w.-]*)?")
MARKDOWN = re.compile(r"([\\`*_\[\]<>|#~&$!])")
TEXT = Path(__file__).with_name("card.md.j2").read_text(encoding="utf-8")
TEMPLATE = Template(TEXT, undefined=StrictUndefined, trim_blocks=True, keep_trailing_newline=True)


def model_card(params_file: Path, results: Path) -> str:
    """The card of the run with these parameters whose stages wrote their metrics to ``results``.

    Raises UserError if one of their files is missing or cannot be read.
    """
    given = params.load(params_file)
    train = read_json(results / "train" / given.arms.run / "metrics.json")
    method, base = METHODS[given.arms.methods[0]], given.base_model
    found = read_results(results / "compare", method)
    shown = [arms_table(found, ACCURACY), differences_table(found, ACCURACY), content_table(found)]
    shown += [heldout_table(found), reasoning_table(read_json(results / "chain_of_thought/metrics.json"), method)]
    head: dict = {
        "library_name": "transformers",
        "pipeline_tag": "text-generation",
        "tags": list(dict.fromkeys(["quiet-star", method.key.replace("_", "-")])),
    }
    if base.source == "hub" and on_the_hub(base.path):
        head["base_model"] = base.path
    if given.corpus.source == "hub" and on_the_hub(given.corpus.hub.train.path):
        head["datasets"] = [given.corpus.hub.train.path]
    made_from = sources(given)
    if not made_from:
        head["license"] = "apache-2.0"
    base_name = Path(base.path).name if base.source == "hub" else f"a small {base.scratch.architecture}"
    return TEMPLATE.render(
        method=method,
        head=yaml.safe_dump(head, sort_keys=False, allow_unicode=True),
        base_name=escaped(base_name),
        made_from=[f"{escaped(name)} ({LICENCES.get(name, 'its page says which')})" for name in made_from],
        about=escaped(training_sentence(train, given, method)),
        facts=_table(("", ""), training_facts(train, read_json(results / "summary.json"), given, method)),
        settings=_table(
            ("setting", "value"), ((name, repr(value)) for name, value in params.flat(asdict(given.train)).items())
        ),
        claims=[escaped(finding.text) for finding in [*claims(found), *harm_findings(found), *heldout_findings(found)]],
        counts=escaped(counts_sentence(found)),
        tables=[
            f"{escaped(table.title)}:\n\n{_table(table.header, ([cell.text for cell in row] for row in table.rows))}"
            for table in shown
            if table.rows
        ],
    )


def sources(given: params.Params) -> list[str]:
    """The base model and the texts that the weights are made from; none where this project makes both."""
    base, hub = given.base_model, given.corpus.hub
    names = [base.path] if base.source == "hub" else []
    if given.corpus.source == "hub":
        names += [hub.pretrain.path, hub.train.path] if base.pretrains else [hub.train.path]
    return list(dict.fromkeys(names))


def on_the_hub(name: str) -> bool:
    """Whether ``name`` can be a name on the hub and is not the path of a local folder."""
    return ON_THE_HUB.fullmatch(name) is not None and not Path(name).exists()


def _table(header: Iterable[str], rows: Iterable[Iterable[str]]) -> str:
    lines = [[escaped(cell) for cell in row] for row in (header, *rows)]
    lines.insert(1, ["---"] * len(lines[0]))
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def escaped(text: str) -> str:
    """``text`` in one line, in which nothing is Markdown or HTML."""
    return MARKDOWN.sub(r"\\\1", " ".join(text.split()))
