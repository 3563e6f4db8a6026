"""The model card: the run's report in Markdown, with a head that the Hugging Face hub reads."""

import re
from collections.abc import Iterable
from dataclasses import dataclass, fields
from pathlib import Path

import yaml

from pipeline import params
from pipeline.params import Params
from pipeline.report import chain_of_thought, comparisons, results
from pipeline.report.estimates import decimal, interval, nats, p_value, percent, points, whole
from pipeline.report.inputs import read_comparisons
from pipeline.report.method import Method, read_method
from pipeline.report.reading import read_metrics
from pipeline.report.trained import training_facts, training_sentence

ON_THE_HUB = re.compile(r"\w[\w.-]*(/\w[\w.-]*)?")
MARKDOWN = re.compile(r"([\\`*_\[\]<>|#~&$!])")
LOADING = """\
The model needs the project's package beside transformers: `import pipeline` makes the Auto classes know it.

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
    "The figures are of one training run on the text and the tasks named above; they say nothing of other text, tasks "
    "or languages. Intervals are 95 % bootstrap intervals over questions or texts.",
    "Nothing was done to keep the model from saying what is false or harmful; it inherits what its base model does.",
    "No licence is given here: those of the base model and of the text that it was trained on hold.",
)
LIMITS_OF = {
    "quiet_star": (
        "A thought comes before every token, whether it is of use or not: writing takes several times as long.",
        "A thought is trained to make the next tokens likelier, not to be true. It explains no answer.",
    ),
    "pause": ("A pause comes before every token, whether it is of use or not: writing takes several times as long.",),
    "no_thought": (),
}
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


@dataclass(frozen=True)
class CardInputs:
    """The files that tell how the model was trained and how well it does."""

    params: Path
    train_metrics: Path
    evaluate_metrics: Path
    comparisons: Path
    cot_metrics: Path
    perplexity_metrics: Path


def model_card(paths: CardInputs) -> str:
    """The card in Markdown, its head in the YAML that the Hugging Face hub reads."""
    given, train = params.load(paths.params), read_metrics(paths.train_metrics)
    method = read_method(train)
    sections = {
        f"{_title(method)} on {escaped(_base_name(given))}": escaped(training_sentence(train, given, method)),
        "How to load it": LOADING + (WITHOUT.format(many=method.many) if method.thinks else ""),
        "Training": _table(("", ""), training_facts(train, given, method)),
        "Settings": _settings(given),
        "Results": "\n\n".join(_results(paths, method)),
        "Limits": "\n".join(f"- {limit}" for limit in (*LIMITS, *LIMITS_OF[method.key])),
        "Citation": CITATION,
    }
    marks = ["#"] + ["##"] * (len(sections) - 1)
    body = "\n\n".join(f"{mark} {name}\n\n{text}" for mark, (name, text) in zip(marks, sections.items(), strict=True))
    return f"---\n{_head(given, method)}---\n\n{body}\n"


def _title(method: Method) -> str:
    return f"{method.name[0].upper()}{method.name[1:]}"


def _base_name(given: Params) -> str:
    if given.base_model.source == "hub":
        return Path(given.base_model.path).name
    return f"a small {given.base_model.scratch.architecture}"


def _head(given: Params, method: Method) -> str:
    head: dict = {
        "library_name": "transformers",
        "pipeline_tag": "text-generation",
        "tags": ["quiet-star", method.key.replace("_", "-")] if method.key != "quiet_star" else ["quiet-star"],
    }
    if given.base_model.source == "hub" and on_the_hub(given.base_model.path):
        head["base_model"] = given.base_model.path
    if given.corpus.source == "hub" and on_the_hub(given.corpus.hub.train.path):
        head["datasets"] = [given.corpus.hub.train.path]
    return yaml.safe_dump(head, sort_keys=False, allow_unicode=True)


def on_the_hub(name: str) -> bool:
    """Whether ``name`` can be a hub's name, and is not that of a local folder."""
    return ON_THE_HUB.fullmatch(name) is not None and not Path(name).exists()


def _settings(given: Params) -> str:
    rows = [(field.name, repr(getattr(given.train, field.name))) for field in fields(given.train)]
    return f"Section `train` of `params.yaml`:\n\n{_table(('setting', 'value'), rows)}"


def _results(paths: CardInputs, method: Method) -> Iterable[str]:
    yield "Differences are in percentage points with their 95 % interval; n is the number of questions or texts."
    yield _tasks(results.tasks(read_metrics(paths.evaluate_metrics), method), method)
    compared = comparisons.comparisons(read_comparisons(paths.comparisons))
    if compared:
        yield f"Accuracy against other ways of training:\n\n{_compared(compared)}"
    reasoned = chain_of_thought.reasoning(read_metrics(paths.cot_metrics), method)
    if reasoned:
        yield f"With written reasoning (maj@k: the majority of k samples):\n\n{_reasoned(reasoned, method)}"
    yield _held_out(results.held_out(read_metrics(paths.perplexity_metrics), method), method)


def _tasks(found: list[results.Task], method: Method) -> str:
    rows = [
        [
            task.name,
            measure.label,
            *map(percent, measure.by_way.values()),
            *(
                [interval(measure.difference, points), p_value(test) if test is not None else ""]
                if method.thinks
                else []
            ),
            whole(task.n),
        ]
        for task in found
        for measure, test in ((task.accuracy, task.p_value), (task.probability, None))
    ]
    gain = ("difference", "McNemar") if method.thinks else ()
    return _table(["task", "measure", *method.ways.values(), *gain, "n"], rows)


def _compared(found: list[comparisons.Comparison]) -> str:
    rows = []
    for one in found:
        if one.measure == "accuracy":
            test = "" if one.p_value is None else p_value(one.p_value)
            arm = comparisons.arm_name(one.against)
            rows.append((one.task, arm, interval(one.difference, points), test, one.seeds, whole(one.n)))
    return _table(("task", "against", "difference", "McNemar", "seeds", "n"), rows)


def _reasoned(found: list[chain_of_thought.Reasoning], method: Method) -> str:
    ways = [name for way, name in method.ways.items() if way != "base"]
    rows = []
    for one in found:
        for vote in one.votes:
            gain = [interval(vote.difference, points)] if method.thinks else []
            rows.append([one.task, vote.measure, *map(percent, vote.by_way.values()), *gain, whole(one.n)])
    return _table(["task", "measure", *ways, *(["difference"] if method.thinks else []), "n"], rows)


def _held_out(text: results.HeldOut, method: Method) -> str:
    header = ["held-out text", *(method.ways[way] for way in text.loss)]
    row = ["loss, nats per token", *map(decimal, text.loss.values())]
    if method.thinks:
        header, row = [*header, "improvement"], [*row, interval(text.improvement, nats)]
    return _table([*header, "n"], [[*row, whole(text.texts)]])


def _table(header: Iterable[object], rows: Iterable[Iterable[object]]) -> str:
    lines = [[escaped(str(cell)) for cell in row] for row in (header, *rows)]
    lines.insert(1, ["---"] * len(lines[0]))
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def escaped(text: str) -> str:
    """``text`` in one line, in which nothing is Markdown or HTML."""
    return MARKDOWN.sub(r"\\\1", " ".join(text.split()))
