"""Does thinking help to answer? Ask each task's questions, with thoughts and without, and ask the base model too."""

from collections.abc import Iterator
from contextlib import ExitStack
from dataclasses import asdict
from itertools import islice
from pathlib import Path
from tempfile import TemporaryFile

import numpy as np
import pandas as pd
import pyarrow as pa

from pipeline.data.tasks.questions import read_tasks
from pipeline.evaluation.direct.encoding import Encodings
from pipeline.evaluation.direct.score import score
from pipeline.evaluation.prompts import AskedModel
from pipeline.evaluation.statistics import SHARE_DIFFERENCE, difference, totals
from pipeline.files import write_json, write_rows
from pipeline.models.base import read_tokenizer
from pipeline.models.device import pick_device
from pipeline.models.trained import base_of, check_trained, load_plain, load_trained
from pipeline.params import Evaluate
from pipeline.resume import KeptRows, resumable
from pipeline.thought.sampler import Sampling

# prefixes: the trained model's rows keep their way's name; the base model's only way is stored as "base"
TRAINED, BASE = "", "base"
QUESTION = {"task": pa.string(), "index": pa.int64()}
ANSWER = {"correct": pa.bool_(), "prob": pa.float64(), "thought": pa.string()}
PREDICTIONS = pa.schema(QUESTION | dict.fromkeys(("prompt", "answer", "way", "predicted"), pa.string()) | ANSWER)


def write_evaluation(params: Evaluate, trained: Path, base: Path | None, tasks: Path, results: Path) -> None:
    """Ask every question of ``tasks``: the model in ``trained`` and, unless ``base`` is None, its base model there too.

    Writes a row for each question and way (predictions.parquet), and means with intervals (metrics.json). After a kill
    the same call asks only the missing questions and writes the same bytes (`pipeline.resume`).
    """
    device = pick_device(params.device)
    inputs = [path for path in (trained, base or base_of(trained), tasks) if path is not None]
    about = asdict(params) | {"device": device}
    with resumable(f"evaluate/{trained.name}", about, inputs, Path(__file__)) as scratch, ExitStack() as stack:
        tokenizer = read_tokenizer(trained)
        check_trained(trained)  # before the base model is asked, which may take long
        encoded = {}
        for name, (task, questions) in read_tasks(tasks).items():
            file = stack.enter_context(TemporaryFile(dir=scratch.folder))  # noqa: SIM115  (the stack closes it)
            encoded[name] = Encodings(task, islice(questions, params.questions), tokenizer, file)
        first, firsts = 0, {}  # where the rows of a task and model begin
        for model, load, folder in ((BASE, load_plain, base), (TRAINED, load_trained, trained)):  # the faster one first
            if folder is None:
                continue
            sampling = Sampling(params.thought_temperature, params.seed)
            asked = AskedModel(load(folder).to(device), tokenizer, sampling, params.batch_size)
            for name, questions in encoded.items():
                label = f"{name} ({model})" if model else name
                for rows in score(asked, questions, label, len(scratch.rows) - first):
                    scratch.add(rows)
                firsts[name, model] = first
                first += len(questions)
            del asked  # so that one model is in memory at a time
        write_rows(results / "predictions.parquet", _predictions(encoded, firsts, scratch.rows), PREDICTIONS)
        columns = ["task", "way", "correct", "prob"]
        answers = pd.read_parquet(results / "predictions.parquet", columns=columns).groupby("task", sort=False)
        write_json(results / "metrics.json", {task: summary(rows) for task, rows in answers})


def _predictions(encoded: dict[str, Encodings], firsts: dict[tuple[str, str], int], rows: KeptRows) -> Iterator[dict]:
    """A row for each task, model, question and way, in this order; ``rows`` are in order of length (`score`)."""
    for name, model in [(name, model) for name in encoded for model in (TRAINED, BASE) if (name, model) in firsts]:
        for q, place in zip(encoded[name], encoded[name].places, strict=True):
            row = rows[firsts[name, model] + place]
            about = {"task": name, "index": q.index, "prompt": q.question.prompt, "answer": q.question.answer}
            for way in ("thought", "no_thought"):
                if way in row:
                    thought = row["thought_text"] if way == "thought" else ""
                    yield {**about, "way": model or way, **row[way], "thought": thought}


def summary(answers: pd.DataFrame) -> dict:
    """A task's mean accuracy and probability per way; for thought minus no_thought also intervals and a p-value.

    Differences are paired (`statistics.difference`). ``answers`` has the columns way, correct and prob; each way has
    the same questions in the same order.
    """
    by_way = dict(list(answers.groupby("way")))
    metrics: dict = {"n": len(by_way["no_thought"])}
    for way in (BASE, "no_thought", "thought"):
        if way in by_way:
            prob, right = (by_way[way][name].to_numpy() for name in ("prob", "correct"))
            metrics[way] = {"prob": float(prob.mean()), "accuracy": float(right.mean())}
    if "thought" in by_way:
        metrics["difference"] = {}
        for measure, column, prefix in (("accuracy", "correct", ""), ("prob", "prob", "prob_")):
            thought, no_thought = (totals(by_way[way][column]) for way in ("thought", "no_thought"))
            gain = difference(thought, no_thought, SHARE_DIFFERENCE)
            metrics["difference"] |= {measure: gain.value, f"{prefix}ci_low": gain.low, f"{prefix}ci_high": gain.high}
            if measure == "accuracy":
                metrics["difference"]["p_value"] = None if np.isnan(gain.p_value) else float(gain.p_value)
    return metrics
