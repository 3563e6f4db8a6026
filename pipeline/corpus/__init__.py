"""Everything that comes from outside, or from a seed: documents to learn from and questions to be asked."""

from collections.abc import Iterator
from pathlib import Path

import pyarrow as pa

from pipeline.corpus import hub, microworld
from pipeline.errors import UserError
from pipeline.files import new_path, write_rows
from pipeline.params import Corpus, HubSplit

TEXT = pa.schema({"text": pa.string()})
PROBE = pa.schema({"prompt": pa.string(), "working": pa.string()})
TASKS = {
    "gsm8k": pa.schema({"question": pa.string(), "answer": pa.string()}),
    "commonsense_qa": pa.schema(
        {
            "question": pa.string(),
            "choices": pa.struct({"label": pa.list_(pa.string()), "text": pa.list_(pa.string())}),
            "answerKey": pa.string(),
        }
    ),
}


def write_corpus(params: Corpus, pretrain: bool, texts: Path, tasks: Path) -> None:
    """Write the text splits, and the tasks' questions in their data sets' own columns, as Parquet.

    ``texts`` gets pretrain, train and heldout (column ``text``) and probe (``prompt``, ``working``: where the full
    working of a prompt is known, to see whether thoughts hold it). Without ``pretrain`` that split is left empty, as
    a base model that comes from outside needs none.
    """
    with new_path(texts) as folder, new_path(tasks) as task_folder:
        folder.mkdir()
        task_folder.mkdir()
        for split in microworld.TEXT_SPLITS:
            documents = _documents(params, split) if pretrain or split != "pretrain" else iter(())
            write_rows(folder / f"{split}.parquet", ({"text": d} for d in documents), TEXT)
        write_rows(folder / "probe.parquet", _probe(params), PROBE)
        for task, schema in TASKS.items():
            _write_questions(params, task, schema, task_folder / f"{task}.parquet")


def _documents(params: Corpus, split: str) -> Iterator[str]:
    if params.source == "hub":
        return hub.texts(getattr(params.hub, split), params.seed)
    world = params.microworld
    return microworld.documents(
        split, getattr(world, f"{split}_documents"), params.seed, world.steps, world.aside_share
    )


def _probe(params: Corpus) -> Iterator[dict]:
    if params.source == "hub":
        return iter(())
    return microworld.probe(params.microworld.probe_documents, params.seed, params.microworld.steps)


def _write_questions(params: Corpus, task: str, schema: pa.Schema, path: Path) -> None:
    try:
        write_rows(path, _questions(params, task, schema.names), schema)
    except pa.ArrowException as error:
        raise UserError(f"corpus.hub.{task} does not have {task}'s columns: {error}") from error


def _questions(params: Corpus, task: str, columns: list[str]) -> Iterator[dict]:
    if params.source == "hub":
        source: HubSplit = getattr(params.hub, task)
        return ({name: row[name] for name in columns} for row in hub.rows(source, columns, params.seed))
    world = params.microworld
    if task == "gsm8k":
        return iter(microworld.gsm8k_questions(world.questions, params.seed, world.steps))
    return iter(microworld.commonsense_qa_questions(world.questions, params.seed))
