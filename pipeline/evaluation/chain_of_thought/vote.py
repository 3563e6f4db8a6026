"""cot-maj@k: does thinking help if reasoning is written out and the majority of k answers counts?

Zelikman et al. 2024 (arXiv 2403.09629), section 5; the vote is self-consistency (Wang et al. 2022, arXiv 2203.11171).
`samples` is the protocol (reason, then answer) and reads the votes; `votes` computes accuracy and maj@k from them.
"""

from collections.abc import Iterable, Iterator
from dataclasses import asdict
from itertools import islice
from pathlib import Path

import pyarrow as pa

from pipeline.data.tasks.questions import read_tasks
from pipeline.evaluation.chain_of_thought.samples import ask
from pipeline.evaluation.chain_of_thought.votes import metrics_of, points_of, votes_of
from pipeline.evaluation.prompts import AskedModel
from pipeline.files import write_json, write_rows, write_table
from pipeline.models.base import read_tokenizer
from pipeline.models.device import pick_device
from pipeline.models.trained import base_of, load_trained
from pipeline.params import ChainOfThought
from pipeline.resume import resumable
from pipeline.thought.sampler import Sampling

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
    """Ask the model in ``trained`` to reason, then answer; write samples.parquet, votes.csv and metrics.json.

    Only the tasks in ``tasks`` with a chain_of_thought section are asked. After a kill the same call samples only what
    is missing and writes the same bytes (`pipeline.resume`).
    """
    device = pick_device(params.device)
    inputs = [path for path in (trained, base_of(trained), tasks) if path is not None]
    with resumable("chain_of_thought", asdict(params) | {"device": device}, inputs, Path(__file__)) as scratch:
        model, sampling = load_trained(trained).to(device), Sampling(params.thought_temperature, params.seed)
        asked, places = AskedModel(model, read_tokenizer(trained), sampling, params.batch_size), []
        for name, (task, questions) in read_tasks(tasks).items():
            if task.chain_of_thought is not None:
                places += ask(asked, params, name, task.chain_of_thought, islice(questions, params.questions), scratch)
        write_rows(results / "samples.parquet", samples_of(scratch.rows[place] for place in places), SAMPLES)
        points = points_of(scratch.rows[place] for place in places)
        write_table(results / "votes.csv", votes_of(points, params))
        write_json(results / "metrics.json", metrics_of(points, params))


def samples_of(rows: Iterable[dict]) -> Iterator[dict]:
    """A row of `SAMPLES` for each sample; its index is the question's, and its vote "" if there is none."""
    for row in rows:
        about = {name: row[name] for name in ("task", "index", "way", "answer")}
        for i, (text, vote) in enumerate(zip(row["texts"], row["votes"], strict=True)):
            yield about | {"sample": i, "text": text, "vote": vote, "correct": vote == row["answer"]}
