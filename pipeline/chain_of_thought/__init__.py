"""cot-maj@k: does thinking help where reasoning is written out, and the majority of k answers counts?

Zelikman et al. 2024 (arXiv 2403.09629), section 5; the vote is self-consistency (Wang et al. 2022, arXiv 2203.11171).
`samples` (the protocol: reason, then answer), `reading` (a vote from what was written), `votes` (accuracy and maj@k).
"""

from dataclasses import asdict
from itertools import islice
from pathlib import Path

import pandas as pd

from pipeline.chain_of_thought.samples import Asker
from pipeline.chain_of_thought.votes import metrics_of, points_of, votes_of
from pipeline.files import write_json, write_table
from pipeline.inputs import pick_device, read_tokenizer
from pipeline.learned import base_of
from pipeline.params import ChainOfThought
from pipeline.resume import Scratch, unfinished
from pipeline.tasks import read_tasks
from pipeline.tasks.questions import Question
from pipeline.trained import load_trained

COLUMNS = ("task", "index", "way", "sample", "text", "vote", "answer", "correct")


def write_chain_of_thought(params: ChainOfThought, trained: Path, tasks: Path, results: Path) -> None:
    """Write what the model in ``trained`` answers after reasoning: samples.parquet, votes.csv, metrics.json.

    Of the tasks in ``tasks``, those whose file says how reasoning is asked for. Killed and run again, it samples only
    what is missing and writes the same bytes (`pipeline.resume`).
    """
    device, base = pick_device(params.device), base_of(trained)
    inputs = [trained, tasks] if base is None else [trained, base, tasks]
    with unfinished("chain_of_thought", asdict(params) | {"device": device}, inputs, Path(__file__)) as scratch:
        asker = Asker(params, load_trained(trained).to(device), read_tokenizer(trained))
        table = sample_table(asker, tasks, scratch)
        points = points_of(table)
        write_table(results / "samples.parquet", table)
        write_table(results / "votes.csv", votes_of(points, params))
        write_json(results / "metrics.json", metrics_of(points, params))


def sample_table(asker: Asker, tasks: Path, scratch: Scratch) -> pd.DataFrame:
    """A row a sample: task, index (of the question), way, sample, text, vote ("" for none), answer, correct."""
    rows: list[dict] = []
    for name, (task, questions) in read_tasks(tasks).items():
        if task.chain_of_thought is not None:
            asked = list(islice(questions, asker.params.questions))
            for row in asker.ask(name, task.chain_of_thought, asked, scratch):
                rows.extend(_sample_rows(row, asked[row["index"]]))
    return pd.DataFrame(rows, columns=list(COLUMNS))


def _sample_rows(row: dict, question: Question) -> list[dict]:
    about = {name: row[name] for name in ("task", "index", "way")}
    return [
        about | {"sample": i, "text": text, "vote": vote, "answer": question.answer, "correct": vote == question.answer}
        for i, (text, vote) in enumerate(zip(row["texts"], row["votes"], strict=True))
    ]
