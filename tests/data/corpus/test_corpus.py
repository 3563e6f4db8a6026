"""What the corpus stage writes: texts, and the micro-world's questions as data sets in the hub's layout."""

from pathlib import Path

import pandas as pd
import pytest

from pipeline import params
from pipeline.data.corpus import microworld
from pipeline.data.corpus.build import write_corpus
from pipeline.data.tasks.ask import questions
from pipeline.data.tasks.spec import read_task
from pipeline.files import arrow_table
from pipeline.params import Corpus, HubSplit
from tests.local_hub import sources
from tests.stage_runner import TINY

ROOT = Path(__file__).parents[3]
SPLITS = ("pretrain", "train", "heldout")


def corpus(**changes: object) -> Corpus:
    values = {name: value for name, value in TINY.items() if name.startswith("corpus.")}
    return params.load(ROOT / "params.yaml", values | changes).corpus


def texts(folder: Path, split: str) -> list[str]:
    return arrow_table(folder / f"{split}.arrow")["text"].to_pylist()


def test_the_micro_world(tmp_path: Path):
    settings = corpus()
    write_corpus(settings, True, tmp_path / "texts", tmp_path / "tasks")
    world = settings.microworld
    for split in SPLITS:
        count = getattr(world, f"{split}_documents")
        made = microworld.documents(split, count, settings.seed, world.steps, world.aside_share)
        assert texts(tmp_path / "texts", split) == list(made)
    probe = pd.read_parquet(tmp_path / "texts/probe.parquet").to_dict("records")
    assert probe == list(microworld.probe(world.probe_documents, settings.seed, world.steps))


def test_its_questions_are_what_the_micro_worlds_tasks_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    settings = corpus()
    write_corpus(settings, True, tmp_path / "data/corpus/texts", tmp_path / "data/corpus/tasks")
    files = sorted((ROOT / "tasks/microworld").glob("*.yaml"))
    monkeypatch.chdir(tmp_path)
    asked = {file.stem: list(questions(read_task(file), None)) for file in files}
    rows = microworld.gsm8k_questions(settings.microworld.questions, settings.seed, settings.microworld.steps)
    expected = [(f"Q: {row['question']}\nA:", row["answer"].split("#### ")[1]) for row in rows]
    assert [(q.prompt, q.answer) for q in asked["micro_rings"]] == expected
    keys = [row["answerKey"] for row in microworld.commonsense_qa_questions(4, settings.seed)]
    assert [q.answer for q in asked["micro_animals"]] == keys


def test_a_base_model_from_outside_needs_no_pretraining_text(tmp_path: Path):
    write_corpus(corpus(), False, tmp_path / "texts", tmp_path / "tasks")
    assert texts(tmp_path / "texts", "pretrain") == [] != texts(tmp_path / "texts", "train")


def test_texts_from_data_sets(tmp_path: Path):
    """There is no probe, as nobody knows these texts' workings; the micro-world's questions stay."""
    changes = {name: v for name, v in sources(tmp_path / "hub").items() if name.startswith("corpus.")}
    settings = corpus(**changes)
    assert isinstance(settings.hub.train, HubSplit)
    write_corpus(settings, True, tmp_path / "texts", tmp_path / "tasks")
    assert [len(texts(tmp_path / "texts", split)) for split in SPLITS] == [60, 12, 8]
    assert texts(tmp_path / "texts", "train")[0] == "Q: What is 0 and 90?\nA: Add.\n#### 90"
    assert pd.read_parquet(tmp_path / "texts/probe.parquet").empty
    assert len(pd.read_parquet(tmp_path / "tasks/rings/test.parquet")) == 4
