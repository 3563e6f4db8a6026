"""Does thinking help to answer, and is it what is thought? Ask each task's questions, with thoughts and without."""

from collections.abc import Iterator
from contextlib import ExitStack
from functools import partial
from itertools import islice
from pathlib import Path
from tempfile import TemporaryFile

import numpy as np
import pandas as pd
import pyarrow as pa

from pipeline.data.tasks.questions import read_tasks
from pipeline.data.tasks.spec import TEXT
from pipeline.evaluation.direct.encoding import Encodings
from pipeline.evaluation.direct.score import OWN, OWN_GATED, score
from pipeline.evaluation.donors import (
    ANSWER,
    ENDED,
    SKIPPED,
    ByPlace,
    Controls,
    beginning_together,
    controls_of,
    ending_together,
)
from pipeline.evaluation.names import CONTROLS, GATED, MEAN, MEAN_SAMPLES, NO_THOUGHT, SAMPLED, THOUGHT
from pipeline.evaluation.prompts import AskedModel
from pipeline.evaluation.shared import shared_scratch
from pipeline.files import write_json, write_rows
from pipeline.models.base import read_tokenizer
from pipeline.models.device import autocast, pick_device
from pipeline.models.trained import base_of, load_trained, put
from pipeline.params import Evaluate
from pipeline.resume import KeptRows, Scratch
from pipeline.thought.sampler import Sampling
from pipeline.training.processes import is_main

WAYS = (THOUGHT, NO_THOUGHT, GATED, SAMPLED, MEAN, *CONTROLS)
QUESTION = {"task": pa.string(), "index": pa.int64()}
# correct_norm: by the sum of log-probabilities a byte, of tasks of kind text alone
ANSWERED = {"correct": pa.bool_(), "correct_norm": pa.bool_(), "prob": pa.float64(), "thought": pa.string()}
TEXTS = ("group", "part", "prompt", "answer", "way", "predicted")
PREDICTIONS = pa.schema(QUESTION | dict.fromkeys(TEXTS, pa.string()) | ANSWERED)


def write_evaluation(params: Evaluate, trained: Path, tasks: Path, results: Path) -> None:
    """Ask the model in ``trained`` every question of ``tasks``: with its own thoughts, with others' and with none.

    Writes a row for each question and way (predictions.parquet), and their means (metrics.json). A task's questions are
    first asked with their own thoughts; where those are sampled, they are then asked once more with other thoughts in
    their place (`controls_of`). Several processes, which all call this, share the questions, and the main one writes.
    After a kill the same call asks only the missing questions and writes the same bytes (`pipeline.resume`).
    """
    device = pick_device(params.device)
    inputs = [path for path in (trained, base_of(trained), tasks) if path is not None]
    with (
        shared_scratch(f"evaluate/{trained.name}", params, device, inputs, Path(__file__)) as scratch,
        autocast(device, params.precision),
        ExitStack() as stack,
    ):
        model, tokenizer = put(load_trained(trained), device, params.precision), read_tokenizer(trained)
        asked = AskedModel(model, tokenizer, Sampling(params.thought_temperature, params.seed), params.batch_size)
        encoded = {}
        for name, (task, questions) in read_tasks(tasks).items():
            file = stack.enter_context(TemporaryFile(dir=scratch.folder))  # noqa: SIM115  (the stack closes it)
            encoded[name] = Encodings(task, islice(questions, params.questions), tokenizer, file)
        firsts, end = {}, 0  # where a task's rows begin: those of its own thoughts, and of the controls
        for name, questions in encoded.items():
            firsts[name] = [end]
            end = _ask(asked, questions, name, scratch, end)
            if model.samples_thoughts:
                own = partial(_own, scratch.rows, firsts[name][0], questions)
                align = beginning_together if questions.task.kind == TEXT else ending_together
                groups, places = zip(*((q.group, q.first_asked) for q in questions), strict=True)
                controls = controls_of(own, groups, places, model.vocabulary, params.seed, align)
                firsts[name].append(end)
                end = _ask(asked, questions, f"{name} (controls)", scratch, end, controls)
        if not is_main():
            return
        write_rows(results / "predictions.parquet", _predictions(encoded, firsts, scratch.rows), PREDICTIONS)
        columns = ["task", "group", "way", "correct", "correct_norm", "prob"]
        answers = pd.read_parquet(results / "predictions.parquet", columns=columns).groupby("task", sort=False)
        metrics = {task: summary(rows) for task, rows in answers}
        write_json(results / "metrics.json", metrics | {"cost": cost_of(asked, scratch.rows)})


def _ask(
    asked: AskedModel, questions: Encodings, name: str, scratch: Scratch, first: int, controls: Controls | None = None
) -> int:
    """Add the questions' rows that ``scratch`` lacks, of which the first is row ``first``; return where they end."""
    for rows in score(asked, questions, name, len(scratch.rows) - first, controls):
        scratch.add(rows)
    return first + len(questions)


def _own(rows: KeptRows, first: int, questions: Encodings, index: int) -> ByPlace:
    """The own thoughts of question ``index``; the task's rows begin at ``first``."""
    return {place: np.array(ids) for place, ids in rows[first + questions.places[index]][OWN].items()}


def _predictions(encoded: dict[str, Encodings], firsts: dict[str, list[int]], rows: KeptRows) -> Iterator[dict]:
    """A row for each task, question and way, in this order; ``rows`` are in order of length (`score`)."""
    for name, questions in encoded.items():
        for q, place in zip(questions, questions.places, strict=True):
            about = {"task": name, "index": q.index, "group": q.group, "part": q.question.part}
            about |= {"prompt": q.question.prompt, "answer": q.question.answer}
            answers = {way: answer for first in firsts[name] for way, answer in rows[first + place].items()}
            yield from (about | {"way": way} | answers[way] for way in WAYS if way in answers)


def summary(answers: pd.DataFrame) -> dict:
    """How many questions and groups a task has, and each way's number of answers, accuracies and mean probability."""
    found = {"n": int((answers["way"] == NO_THOUGHT).sum()), "groups": int(answers["group"].nunique())}
    for way, rows in answers.groupby("way", sort=False):
        found[way] = {"n": len(rows), "accuracy": float(rows["correct"].mean())}
        if rows["correct_norm"].notna().all():
            found[way]["accuracy_norm"] = float(rows["correct_norm"].mean())
        found[way]["prob"] = float(rows["prob"].mean())
    return found


def cost_of(asked: AskedModel, rows: KeptRows) -> dict[str, float]:
    """What thinking costs, from the ``rows`` of all tasks.

    thought_length: mean tokens of a thought; operations: tokens that pass through the decoder for each one that is
    predicted, as many times as many as the base model needs; gated_share: how often the gate wanted a thought.
    """
    lengths = [len(own) - own.count(ENDED) for row in rows if OWN in row for own in row[OWN][ANSWER]]
    wanted = [own[0] != SKIPPED for row in rows if OWN_GATED in row for own in row[OWN_GATED][ANSWER]]
    room = asked.model.config.thought_room
    length = sum(lengths) / len(lengths) if lengths else float(max(0, room - 2))
    cost = {"thought_length": length, "operations": 1.0 + room}
    if MEAN in asked.direct_ways:
        cost[f"operations_{MEAN}"] = 1.0 + MEAN_SAMPLES * room
    if wanted:
        cost["gated_share"] = sum(wanted) / len(wanted)
        cost[f"operations_{GATED}"] = 1.0 + cost["gated_share"] * room
    return cost
