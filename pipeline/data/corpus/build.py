"""The corpus stage: texts to learn from and questions to ask, made from a seed or taken from the hub."""

from pathlib import Path

import pyarrow as pa
from tqdm import tqdm

from pipeline.data.corpus import microworld
from pipeline.data.corpus.download import TEXT, kept_splits, write_texts
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

    ``texts`` gets pretrain, train and heldout (column ``text``) and probe (``prompt``, ``working``): prompts whose full
    working is known, to see whether thoughts hold it; the hub's texts have none. Without ``pretrain`` that split is
    empty, as a base model from outside needs none.
    """
    splits = [split for split in microworld.TEXT_SPLITS if pretrain or split != "pretrain"]
    sources = {split: getattr(params.hub, split) for split in splits} if params.source == "hub" else {}
    world, seed = params.microworld, params.seed
    with kept_splits(sources, seed) as kept, new_path(texts) as folder, new_path(tasks) as task_folder:
        folder.mkdir()
        task_folder.mkdir()
        write_rows(folder / "pretrain.arrow", [], TEXT)
        if params.source == "hub":
            write_texts(sources, seed, kept, folder)
            probe = []
        else:
            for split in splits:
                count = getattr(world, f"{split}_documents")
                documents = microworld.documents(split, count, seed, world.steps, world.aside_share)
                shown = tqdm(documents, desc=f"corpus {split}", unit=" documents", total=count, mininterval=2)
                write_rows(folder / f"{split}.arrow", ({"text": document} for document in shown), TEXT)
            probe = microworld.probe(world.probe_documents, seed, world.steps)
        write_rows(folder / "probe.parquet", probe, PROBE)
        numbers = microworld.gsm8k_questions(world.questions, seed, world.steps)
        write_rows(task_folder / "rings/test.parquet", numbers, NUMBERS)
        choices = microworld.commonsense_qa_questions(world.questions, seed)
        write_rows(task_folder / "animals/test.parquet", choices, CHOICES)
