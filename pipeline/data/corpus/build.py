"""Everything that comes from outside, or from a seed: documents to learn from and questions to be asked."""

from collections.abc import Iterator
from pathlib import Path

import pyarrow as pa
from tqdm import tqdm

from pipeline.data.corpus import download, microworld
from pipeline.data.corpus.download import TEXT
from pipeline.files import new_path, write_rows
from pipeline.params import Corpus

PROBE = pa.schema({"prompt": pa.string(), "working": pa.string()})
NUMBERS = pa.schema({"question": pa.string(), "answer": pa.string()})
CHOICES = pa.schema(
    {
        "question": pa.string(),
        "choices": pa.struct({"label": pa.list_(pa.string()), "text": pa.list_(pa.string())}),
        "answerKey": pa.string(),
    }
)


def write_corpus(params: Corpus, pretrain: bool, texts: Path, tasks: Path) -> None:
    """Write the text splits as Arrow, and the micro-world's questions as data sets in the hub's layout, as Parquet.

    ``texts`` gets pretrain, train and heldout (column ``text``) and probe (``prompt``, ``working``: where the full
    working of a prompt is known, to see whether thoughts hold it). Without ``pretrain`` that split is left empty, as
    a base model that comes from outside needs none.
    """
    splits = [split for split in microworld.TEXT_SPLITS if pretrain or split != "pretrain"]
    hub = {split: getattr(params.hub, split) for split in splits} if params.source == "hub" else {}
    with (
        download.kept_splits(hub, params.seed) as kept,
        new_path(texts) as folder,
        new_path(tasks) as task_folder,
    ):
        folder.mkdir()
        task_folder.mkdir()
        write_rows(folder / "pretrain.arrow", [], TEXT)
        download.write_texts(hub, params.seed, kept, folder)
        for split in splits if not hub else ():
            write_rows(folder / f"{split}.arrow", ({"text": d} for d in _documents(params, split)), TEXT)
        write_rows(folder / "probe.parquet", _probe(params), PROBE)
        world, seed = params.microworld, params.seed
        numbers = microworld.gsm8k_questions(world.questions, seed, world.steps)
        write_rows(task_folder / "rings/test.parquet", numbers, NUMBERS)
        choices = microworld.commonsense_qa_questions(world.questions, seed)
        write_rows(task_folder / "animals/test.parquet", choices, CHOICES)


def _documents(params: Corpus, split: str) -> Iterator[str]:
    world = params.microworld
    count = getattr(world, f"{split}_documents")
    documents = microworld.documents(split, count, params.seed, world.steps, world.aside_share)
    return tqdm(documents, desc=f"corpus {split}", unit=" documents", total=count, mininterval=2)


def _probe(params: Corpus) -> Iterator[dict]:
    if params.source == "hub":
        return iter(())
    return microworld.probe(params.microworld.probe_documents, params.seed, params.microworld.steps)
