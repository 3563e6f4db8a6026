"""The corpus stage: what it writes, and that a download which was killed resumes and writes the same bytes."""

from dataclasses import asdict, replace
from pathlib import Path

import pandas as pd
import pytest

from pipeline import params
from pipeline.data.corpus import build, hub, microworld
from pipeline.data.tasks.ask import questions
from pipeline.data.tasks.spec import read_task
from pipeline.errors import UserError
from pipeline.files import arrow_table
from pipeline.params import Corpus, HubSplit
from pipeline.resume import Scratch
from tests import local_hub
from tests.stage_runner import TINY

ROOT = Path(__file__).parents[3]
ROWS = 23  # of the local data set, which is read in blocks of 4: 6 of split train, which takes all, and 3 of heldout


@pytest.fixture(autouse=True)
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A folder of its own for each test, in which a killed run leaves its scratch."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("DVC_ROOT", raising=False)
    monkeypatch.setattr(hub, "BLOCK", 4)


def corpus(**changes: object) -> Corpus:
    values = {name: value for name, value in (TINY | changes).items() if name.startswith("corpus.")}
    return params.load(ROOT / "params.yaml", values).corpus


def texts(folder: str, split: str) -> list[str]:
    return arrow_table(Path(folder) / f"{split}.arrow")["text"].to_pylist()


def test_the_micro_world():
    """Its texts and probe are the module's; the shipped tasks find its questions and ask as GSM8K and CommonsenseQA."""
    settings = corpus()
    world, seed = settings.microworld, settings.seed
    moves, kinds = (world.moves.fewest, world.moves.most), asdict(world.kinds)
    build.write_corpus(settings, True, Path("data/corpus/texts"), Path("data/corpus/tasks"))
    for split in microworld.TEXT_SPLITS:
        count = getattr(world, f"{split}_documents")
        share = {"pretrain": world.aside_share, "train": world.train_aside_share}.get(split, 0.0)
        worked = world.worked_share if split == "pretrain" else 0.0
        made = microworld.documents(split, count, seed, moves, share, worked, kinds)
        assert texts("data/corpus/texts", split) == list(made)
    probe = pd.read_parquet("data/corpus/texts/probe.parquet").to_dict("records")
    assert probe == microworld.probe(microworld.TASKS, world.probe_documents, seed, moves)
    rings, animals = (
        microworld.questions(task, "test", world.questions, world.question_seed, moves) for task in microworld.TASKS
    )
    answers = [row["answer"].split("#### ")[1] for row in rings], [row["answerKey"] for row in animals]
    for name, shape, expected in zip(("rings", "animals"), ("gsm8k", "commonsense_qa"), answers, strict=True):
        own, other = (read_task(ROOT / f"tasks/{file}.yaml") for file in (f"microworld/micro_{name}", shape))
        asked, as_other = (list(questions(replace(task, data=own.data), None)) for task in (own, other))
        assert [q.answer for q in asked] == expected
        assert {q.part for q in asked} == ({str(world.moves.most)} if name == "rings" else {""})
        assert [(q.prompt, q.answer, q.labels) for q in asked] == [(q.prompt, q.answer, q.labels) for q in as_other]
        assert all(q.reasoning_prompt == f"{q.prompt} —" for q in asked)


def test_texts_from_data_sets():
    """There is no probe, as the working of these texts is not known; the micro-world's questions stay.

    A base model from outside needs no pretraining text.
    """
    settings = corpus(**local_hub.sources(Path("hub").resolve()))
    for pretrain, count in ((True, 60), (False, 0)):
        build.write_corpus(settings, pretrain, Path("texts"), Path("tasks"))
        assert [len(texts("texts", split)) for split in microworld.TEXT_SPLITS] == [count, 12, 8]
        assert texts("texts", "train")[0] == "Q: What is 0 and 90?\nA: Add.\n#### 90"
        assert pd.read_parquet("texts/probe.parquet").empty
        assert len(pd.read_parquet("tasks/rings/test.parquet")) == 4


@pytest.fixture(scope="module")
def sources(tmp_path_factory: pytest.TempPathFactory) -> dict[str, HubSplit]:
    rows = [{"text": text} for text in local_hub.texts(ROWS)]
    folder = local_hub.jsonl(tmp_path_factory.mktemp("hub") / "set", "train", rows)
    whole = HubSplit(path=str(folder), split="train")
    return {"train": whole, "heldout": replace(whole, rows=10)}


def written(sources: dict[str, HubSplit], out: str) -> dict[str, bytes]:
    Path(out).mkdir()
    with build.kept_splits(sources, 1) as kept:
        build.write_texts(sources, 1, kept, Path(out))
    return {path.name: path.read_bytes() for path in Path(out).iterdir()}


def test_each_split_chooses_its_own_rows(sources: dict[str, HubSplit]):
    some = sources["heldout"]
    assert set(written({**sources, "pretrain": some}, "out")) == {"train.arrow", "heldout.arrow", "pretrain.arrow"}
    assert texts("out", "train") == local_hub.texts(ROWS)
    chosen, other = set(texts("out", "heldout")), set(texts("out", "pretrain"))
    assert len(chosen) == len(other) == 10 and chosen != other
    assert not list(Path(".resume").rglob("*.arrow"))


AFTER = [(1, True), (5, False), (8, True), *(pytest.param(n, n % 2 == 0, marks=pytest.mark.slow) for n in (2, 3, 4, 6))]


@pytest.mark.parametrize("after, noted", AFTER)
def test_a_killed_run_resumes(after: int, noted: bool, sources: dict[str, HubSplit], monkeypatch: pytest.MonkeyPatch):
    """Killed after any of the nine blocks: the last is read again only if it was killed before it had noted it."""
    whole = written(sources, "whole")
    added, add = [], Scratch.add

    def killed(scratch: Scratch, rows: list[dict]) -> None:
        added.append(rows)
        if noted or len(added) != after:
            add(scratch, rows)
        if len(added) == after:
            raise SystemExit

    monkeypatch.setattr(Scratch, "add", killed)
    with pytest.raises(SystemExit):
        written(sources, "killed")
    assert written(sources, "again") == whole
    assert len(added) == (9 if noted else 10)


def test_a_changed_folder_is_read_anew(tmp_path: Path):
    """Blocks are kept until the outputs are in place, but only for the same files."""
    local_hub.jsonl(tmp_path / "real", "train-00000-of-00001", [{"text": "one"}] * 5)
    (tmp_path / "set").mkdir()
    (tmp_path / "set/data").symlink_to(tmp_path / "real")  # which `datasets` follows
    split = HubSplit(path=str(tmp_path / "set"), split="train")
    with pytest.raises(SystemExit), build.kept_splits({"train": split}, 1) as kept:
        build.write_texts({"train": split}, 1, kept, tmp_path)
        raise SystemExit
    assert len(list(Path(".resume").rglob("*.arrow"))) == 2
    local_hub.jsonl(tmp_path / "real", "train-00000-of-00001", [{"text": "other"}] * 6)
    written({"train": split}, "again")
    assert texts("again", "train") == ["other"] * 6


def test_data_sets_that_are_refused(sources: dict[str, HubSplit], tmp_path: Path):
    """A mistake in any split is told before one is read."""
    with pytest.raises(UserError, match="no column 'body'"):
        written({**sources, "heldout": replace(sources["heldout"], columns="body")}, "out")
    assert not list(Path(".resume").rglob("*.arrow"))
    folder = local_hub.jsonl(tmp_path / "blank", "train", [{"text": " "}] * 3)
    with pytest.raises(UserError, match="has no text"):
        written({"train": HubSplit(path=str(folder), split="train")}, "blank_out")


def test_mistakes_in_any_split_are_told_before_the_first_is_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """Also a part's column that is missing, and not a row that is in no part."""
    rows = [{"question": "a", "answer": "no number", "module": "0"}]
    rows += [{"question": "b", "answer": "#### 1", "module": str(i)} for i in range(1, 9)]
    local_hub.jsonl(tmp_path / "set", "train-00000-of-00001", rows)
    split = HubSplit(path=str(tmp_path / "set"), split="train", columns="question+answer", solution="final")
    parts = [replace(split, part=f"module:{i}/2") for i in (1, 2)]
    (out,) = (part for part in parts if not hub.in_part(rows[0], part))  # without the first row
    for mistaken, told in (
        (replace(split, part="chapter:1/2"), "no column 'chapter'"),
        (split, "no number after ####"),
    ):
        with monkeypatch.context() as patched, pytest.raises(UserError, match=told):
            patched.setattr(hub, "blocks", lambda *_: pytest.fail("a split was read"))
            written({"train": out, "heldout": mistaken}, f"refused {len(told)}")
    written({"train": out}, "out")
    assert set(texts("out", "train")) == {"Q: b\nA: 1"}
