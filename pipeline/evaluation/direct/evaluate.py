"""Does thinking help to answer? Each task's questions, with thoughts and without, and by the model before training."""

from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import ExitStack
from dataclasses import asdict, dataclass
from functools import partial
from itertools import islice
from pathlib import Path
from tempfile import TemporaryFile

import numpy as np
import pyarrow as pa
from transformers import PreTrainedTokenizerBase

from pipeline.data.tasks.questions import read_tasks
from pipeline.data.tasks.spec import Task
from pipeline.evaluation.direct.encoding import Encodings
from pipeline.evaluation.direct.score import Asked, score
from pipeline.evaluation.statistics import interval, mcnemar
from pipeline.files import write_json, write_rows
from pipeline.models.base import read_tokenizer
from pipeline.models.device import pick_device
from pipeline.models.trained import base_of, check_trained, load_plain, load_trained
from pipeline.params import Evaluate
from pipeline.resume import KeptRows, Scratch, unfinished
from pipeline.thought.model import QuietStarForCausalLM
from pipeline.thought.sampler import Sampling

WAYS = ("base", "no_thought", "thought")
PREDICTIONS = pa.schema(
    {
        "task": pa.string(),
        "index": pa.int64(),
        "prompt": pa.string(),
        "answer": pa.string(),
        "way": pa.string(),
        "predicted": pa.string(),
        "correct": pa.bool_(),
        "prob": pa.float64(),
        "thought": pa.string(),
    }
)


@dataclass(frozen=True)
class Part:
    """What a ``model`` ("" for the trained one) answers to a task's questions: ``rows`` from the ``first`` on."""

    task: str
    model: str
    questions: Encodings
    rows: KeptRows
    first: int

    def __iter__(self) -> Iterator[dict]:
        """The rows (`direct.score`), in the questions' order."""
        return (self.rows[self.first + place] for place in self.questions.places)

    def ways(self) -> dict[str, str]:
        """The names of the ways in a row: the only one of a model beside the trained one has the name of that model."""
        return {way: self.model or way for way in ("thought", "no_thought") if way in self.rows[self.first]}


@dataclass(frozen=True)
class Answers:
    """Which questions one way of answering has right, and the right answers' probabilities, both (n,)."""

    correct: np.ndarray
    prob: np.ndarray


def write_evaluation(params: Evaluate, trained: Path, base: Path | None, tasks: Path, results: Path) -> None:
    """Ask the model in ``trained``, and the one in ``base`` from which it was trained, every question of ``tasks``.

    Writes a row a question and way (predictions.parquet), and the means with their intervals (metrics.json). Killed and
    run again, it asks only what is missing and writes the same bytes (`pipeline.resume`).
    """
    device = pick_device(params.device)
    inputs = [path for path in (trained, base or base_of(trained), tasks) if path is not None]
    about = asdict(params) | {"device": device}
    with unfinished(f"evaluate/{trained.name}", about, inputs, Path(__file__)) as scratch, ExitStack() as stack:
        tokenizer = read_tokenizer(trained)
        check_trained(trained)  # before the base model is asked, which may take long
        encoded, parts = _encoded(params, tasks, tokenizer, scratch, stack), []
        for name, read in _asked(params, trained, base, tokenizer, device).items():
            parts += _answered(name, read, encoded, scratch, first=sum(len(part.questions) for part in parts))
        parts.sort(key=lambda part: ([*encoded].index(part.task), part.model))
        write_rows(results / "predictions.parquet", _predictions(parts), PREDICTIONS)
        write_json(results / "metrics.json", _metrics(parts, params))


def _asked(
    params: Evaluate, trained: Path, base: Path | None, tokenizer: PreTrainedTokenizerBase, device: str
) -> dict[str, Callable[[], Asked]]:
    """How each model that is asked is read, by its name (`Part`)."""
    sampling = Sampling(params.thought_temperature, params.seed)

    def read(load: Callable[[Path], QuietStarForCausalLM], folder: Path) -> Asked:
        return Asked(load(folder).to(device), tokenizer, sampling, params.batch_size)

    models = {} if base is None else {"base": partial(read, load_plain, base)}  # first, as it is asked quickly
    return models | {"": partial(read, load_trained, trained)}


def _encoded(
    params: Evaluate, tasks: Path, tokenizer: PreTrainedTokenizerBase, scratch: Scratch, stack: ExitStack
) -> dict[str, tuple[Task, Encodings]]:
    """Every task's questions, in work files beside ``scratch`` that ``stack`` closes."""
    encoded = {}
    for name, (task, questions) in read_tasks(tasks).items():
        file = stack.enter_context(TemporaryFile(dir=scratch.folder))  # noqa: SIM115  (the stack closes it)
        encoded[name] = task, Encodings(task, islice(questions, params.questions), tokenizer, file)
    return encoded


def _answered(
    model: str, read: Callable[[], Asked], encoded: Mapping[str, tuple[Task, Encodings]], scratch: Scratch, first: int
) -> list[Part]:
    """A model's answers to every task, one after the other in ``scratch`` from the row ``first`` on.

    It is in memory while this runs, so that there is never more than one.
    """
    asked, parts = read(), []
    for name, (task, questions) in encoded.items():
        for rows in score(asked, questions, task, f"{name} ({model})" if model else name, len(scratch.rows) - first):
            scratch.add(rows)
        parts.append(Part(name, model, questions, scratch.rows, first))
        first += len(questions)
    return parts


def _predictions(parts: Iterable[Part]) -> Iterator[dict]:
    """A row a question and way."""
    for part in parts:
        ways = part.ways()
        for encoded, row in zip(part.questions, part, strict=True):
            question = encoded.question
            about = {"task": part.task, "index": row["index"], "prompt": question.prompt, "answer": question.answer}
            for way, name in ways.items():
                yield {**about, "way": name, **row[way], "thought": row["thought_text"] if way == "thought" else ""}


def _metrics(parts: Iterable[Part], params: Evaluate) -> dict[str, dict]:
    """Each task's `summary`."""
    by_task: dict[str, dict[str, Answers]] = {}
    for part in parts:
        by_task.setdefault(part.task, {}).update(_answers(part))
    return {task: summary(answers, params) for task, answers in by_task.items()}


def _answers(part: Part) -> dict[str, Answers]:
    ways, n = part.ways(), len(part.questions)
    answers = {way: Answers(np.empty(n, bool), np.empty(n)) for way in ways}
    for i, row in enumerate(part):
        for way, some in answers.items():
            some.correct[i], some.prob[i] = row[way]["correct"], row[way]["prob"]
    return {ways[way]: some for way, some in answers.items()}


def summary(answers: Mapping[str, Answers], params: Evaluate) -> dict:
    """A task's means by way; of thought minus no thought the intervals, and McNemar's p-value of the accuracy."""
    metrics: dict = {"n": len(answers["no_thought"].prob)}
    for way in WAYS:
        if way in answers:
            metrics[way] = {"prob": float(answers[way].prob.mean()), "accuracy": float(answers[way].correct.mean())}
    if "thought" in answers:
        metrics["difference"] = _difference(answers["thought"], answers["no_thought"], params)
    return metrics


def _difference(thought: Answers, without: Answers, params: Evaluate) -> dict:
    accuracy = thought.correct.astype(float) - without.correct
    prob = thought.prob - without.prob
    low, high = interval(accuracy, None, params.bootstrap_samples, params.seed)
    prob_low, prob_high = interval(prob, None, params.bootstrap_samples, params.seed)
    return {
        "accuracy": float(accuracy.mean()),
        "ci_low": low,
        "ci_high": high,
        "p_value": mcnemar(thought.correct, without.correct),
        "prob": float(prob.mean()),
        "prob_ci_low": prob_low,
        "prob_ci_high": prob_high,
    }
