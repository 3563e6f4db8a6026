"""cot-maj@k: does thinking help where reasoning is written out, and the majority of k answers counts?

Zelikman et al. 2024 (arXiv 2403.09629), section 5; the vote is self-consistency (Wang et al. 2022, arXiv 2203.11171).
`samples` (the protocol: reason, then answer), `reading` (a vote from what was written), `votes` (accuracy and maj@k).
"""

from collections.abc import Iterable, Iterator
from dataclasses import asdict
from itertools import islice
from pathlib import Path

import pyarrow as pa

from pipeline.data.tasks.questions import read_tasks
from pipeline.evaluation.chain_of_thought.samples import Asker
from pipeline.evaluation.chain_of_thought.votes import metrics_of, points_of, votes_of
from pipeline.files import write_json, write_rows, write_table
from pipeline.models.base import read_tokenizer
from pipeline.models.device import pick_device
from pipeline.models.trained import base_of, load_trained
from pipeline.params import ChainOfThought
from pipeline.resume import Scratch, unfinished

SAMPLES = pa.schema(
    {
        "task": pa.string(),
        "index": pa.int64(),
        "way": pa.string(),
        "sample": pa.int64(),
        "text": pa.string(),
        "vote": pa.string(),
        "answer": pa.string(),
        "correct": pa.bool_(),
    }
)


def write_chain_of_thought(params: ChainOfThought, trained: Path, tasks: Path, results: Path) -> None:
    """Write what the model in ``trained`` answers after reasoning: samples.parquet, votes.csv, metrics.json.

    Of the tasks in ``tasks``, those whose file says how reasoning is asked for. Killed and run again, it samples only
    what is missing and writes the same bytes (`pipeline.resume`).
    """
    device, base = pick_device(params.device), base_of(trained)
    inputs = [trained, tasks] if base is None else [trained, base, tasks]
    with unfinished("chain_of_thought", asdict(params) | {"device": device}, inputs, Path(__file__)) as scratch:
        asker = Asker(params, load_trained(trained).to(device), read_tokenizer(trained))
        places = ask_all(asker, tasks, scratch)
        write_rows(results / "samples.parquet", samples_of(scratch.rows[place] for place in places), SAMPLES)
        points = points_of(scratch.rows[place] for place in places)
        write_table(results / "votes.csv", votes_of(points, params))
        write_json(results / "metrics.json", metrics_of(points, params))


def ask_all(asker: Asker, tasks: Path, scratch: Scratch) -> list[int]:
    """`Asker.ask` of every task that asks for reasoning, one after the other."""
    places = []
    for name, (task, questions) in read_tasks(tasks).items():
        if task.chain_of_thought is not None:
            asked = islice(questions, asker.params.questions)
            places += asker.ask(name, task.chain_of_thought, asked, scratch)
    return places


def samples_of(rows: Iterable[dict]) -> Iterator[dict]:
    """A row a sample: task, index (of the question), way, sample, text, vote ("" for none), answer, correct."""
    for row in rows:
        about = {name: row[name] for name in ("task", "index", "way", "answer")}
        for i, (text, vote) in enumerate(zip(row["texts"], row["votes"], strict=True)):
            yield about | {"sample": i, "text": text, "vote": vote, "correct": vote == row["answer"]}
