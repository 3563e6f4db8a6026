"""The model card: the run's report in Markdown, with a head that the Hugging Face hub reads."""

import re
from collections.abc import Iterable
from dataclasses import fields
from pathlib import Path

import yaml

from pipeline import params
from pipeline.params import Params
from pipeline.report.comparisons import arm_name, read_comparisons
from pipeline.report.estimates import Estimate, decimal, interval, nats, p_value, percent, points, whole
from pipeline.report.facts import training_facts, training_sentence
from pipeline.report.method import METHODS, Method
from pipeline.report.reading import read_json
from pipeline.report.results import MEASURES

ON_THE_HUB = re.compile(r"\w[\w.-]*(/\w[\w.-]*)?")
MARKDOWN = re.compile(r"([\\`*_\[\]<>|#~&$!])")
LOADING = """\
The model needs this project's package as well as transformers: `import pipeline` registers the model with the Auto
classes.

```python
import pipeline
from transformers import AutoModelForCausalLM, AutoTokenizer

folder = "models/release"
model = AutoModelForCausalLM.from_pretrained(folder).eval()
tokenizer = AutoTokenizer.from_pretrained(folder)
prompt = tokenizer("Q: What is two and three?\\nA:", return_tensors="pt")
print(tokenizer.decode(model.generate(prompt.input_ids, max_new_tokens=8)[0]))
```"""
WITHOUT = "\n\n`generate(..., think=False)` writes without {many}."
LIMITS = (
    "The figures are of one training run (a comparison may average several, as its column seeds says) on the text and "
    "the tasks named above; they say nothing about other text, tasks or languages. Intervals are 95 % bootstrap "
    "intervals over questions or texts, and over seeds where there are several.",
    "Nothing was done to keep the model from false or harmful statements. It inherits the faults of its base model.",
    "This card gives no licence: the licences of the base model and of its training text apply.",
)
SLOW = "A {one} comes before every token, whether it helps or not, so writing takes several times as long."
NO_EXPLANATION = "A thought is trained to make the next tokens likelier, not to be true, and it explains no answer."
CITATION = """\
```bibtex
@article{zelikman2024quietstar,
  title   = {Quiet-STaR: Language Models Can Teach Themselves to Think Before Speaking},
  author  = {Zelikman, Eric and Harik, Georges and Shao, Yijia and Jayasiri, Varuna and Haber, Nick and
             Goodman, Noah D.},
  journal = {arXiv preprint arXiv:2403.09629},
  year    = {2024}
}
```"""


def model_card(params_file: Path, results: Path) -> str:
    """The card of the run with these parameters whose stages wrote their metrics to ``results``.

    Raises UserError if one of their files is missing or cannot be read.
    """
    given, train = params.load(params_file), read_json(results / "train/metrics.json")
    method = METHODS[train["method"]]
    base = given.base_model
    base_name = Path(base.path).name if base.source == "hub" else f"a small {base.scratch.architecture}"
    settings = [(field.name, repr(getattr(given.train, field.name))) for field in fields(given.train)]
    limits = list(LIMITS)
    if method.thinks:
        limits.append(SLOW.format(one=method.one))
    if method.writes:
        limits.append(NO_EXPLANATION)
    sections = {
        "How to load it": LOADING + (WITHOUT.format(many=method.many) if method.thinks else ""),
        "Training": _table(("", ""), training_facts(train, given, method)),
        "Settings": f"Section `train` of `params.yaml`:\n\n{_table(('setting', 'value'), settings)}",
        "Results": "\n\n".join(_results(results, method)),
        "Limits": "\n".join(f"- {limit}" for limit in limits),
        "Citation": CITATION,
    }
    title, about = f"{method.title} on {escaped(base_name)}", escaped(training_sentence(train, given, method))
    body = "\n\n".join(f"## {name}\n\n{text}" for name, text in sections.items())
    return f"---\n{_head(given, method)}---\n\n# {title}\n\n{about}\n\n{body}\n"


def _head(given: Params, method: Method) -> str:
    head: dict = {
        "library_name": "transformers",
        "pipeline_tag": "text-generation",
        "tags": list(dict.fromkeys(["quiet-star", method.key.replace("_", "-")])),
    }
    if given.base_model.source == "hub" and on_the_hub(given.base_model.path):
        head["base_model"] = given.base_model.path
    if given.corpus.source == "hub" and on_the_hub(given.corpus.hub.train.path):
        head["datasets"] = [given.corpus.hub.train.path]
    return yaml.safe_dump(head, sort_keys=False, allow_unicode=True)


def on_the_hub(name: str) -> bool:
    """Whether ``name`` can be a name on the hub and is not the path of a local folder."""
    return ON_THE_HUB.fullmatch(name) is not None and not Path(name).exists()


def _results(results: Path, method: Method) -> Iterable[str]:
    """The parts of the section: tasks, other ways of training, written reasoning, held-out text."""
    yield "Differences are in percentage points with their 95 % interval; n is the number of questions or texts."
    trained_ways, gain = method.trained_ways, ["difference"] if method.thinks else []

    rows = []
    for task, values in read_json(results / "evaluate/metrics.json").items():
        for label, key, prefix in MEASURES:
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
