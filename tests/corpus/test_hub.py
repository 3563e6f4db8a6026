"""Rows of data sets from local folders in the hub's layout."""

from pathlib import Path

import pandas as pd
import pytest

from pipeline.corpus import hub
from pipeline.errors import UserError
from pipeline.params import HubSplit
from tests import local_hub

SHARED = Path(__file__).parent.parent.parent.parent / "shared/hub"
needs_real_data = pytest.mark.skipif(not SHARED.is_dir(), reason=f"no real data at {SHARED}")
ROWS = [{"text": f"document {i}", "number": i} for i in range(30)]


def source(path: Path, **values: object) -> HubSplit:
    return HubSplit(**({"path": str(path), "split": "train", "columns": "text"} | values))


@pytest.fixture(params=["parquet", "jsonl", "txt"])
def folder(request: pytest.FixtureRequest, tmp_path: Path) -> Path:
    """Thirty documents in one of the formats."""
    if request.param == "txt":
        return local_hub.text_lines(tmp_path / "set", "train", [row["text"] for row in ROWS])
    return getattr(local_hub, request.param)(tmp_path / "set", "train", ROWS)


def test_all_rows_in_order(folder: Path):
    assert list(hub.texts(source(folder), 1)) == [row["text"] for row in ROWS]


@pytest.fixture
def lines(tmp_path: Path) -> Path:
    """Thirty documents; not Parquet, of which `datasets` takes 5 seconds to shuffle any number."""
    return local_hub.jsonl(tmp_path / "set", "train", ROWS)


def test_some_rows_by_the_seed(lines: Path):
    some = list(hub.texts(source(lines, rows=10), 1))
    assert len(set(some)) == 10 and set(some) < {row["text"] for row in ROWS}
    assert some == list(hub.texts(source(lines, rows=10), 1))
    assert some != list(hub.texts(source(lines, rows=10), 2))


def test_more_rows_than_there_are(lines: Path):
    assert len(list(hub.texts(source(lines, rows=1000), 1))) == 30


def test_text_is_the_default_column(folder: Path):
    assert len(list(hub.texts(source(folder, columns=None), 1))) == 30


def test_question_and_answer(tmp_path: Path):
    folder = local_hub.parquet(tmp_path / "qa", "test", local_hub.gsm8k_rows(2))
    documents = list(hub.texts(source(folder, split="test", columns="question+answer"), 1))
    assert documents[1] == "Q: What is 1 and 91?\nA: Add.\n#### 92"


def test_blank_documents_are_left_out(tmp_path: Path):
    folder = local_hub.jsonl(tmp_path / "set", "train", [{"text": "a"}, {"text": " \n"}, {"text": "b"}])
    assert list(hub.texts(source(folder), 1)) == ["a", "b"]


def test_several_files_of_a_split(tmp_path: Path):
    for i in range(2):
        (tmp_path / "data").mkdir(exist_ok=True)
        pd.DataFrame(ROWS[15 * i : 15 * i + 15]).to_parquet(tmp_path / f"data/train-0000{i}-of-00002.parquet")
    assert len(list(hub.texts(source(tmp_path), 1))) == 30


@pytest.mark.parametrize(
    "path, local",
    [("./set", True), ("/data/set", True), ("~/set", True), ("a/b/c", True), ("openai/gsm8k", False), ("glue", False)],
)
def test_what_can_only_be_a_folder(path: str, local: bool):
    assert hub.looks_local(path) is local


def test_a_folder_that_does_not_exist_is_not_looked_up_on_the_hub():
    with pytest.raises(UserError, match="does not exist"):
        list(hub.rows(HubSplit(path="./nowhere", split="train"), ["text"], 1))


@needs_real_data
@pytest.mark.parametrize(
    "path, name, split, count",
    [("openai/gsm8k", "main", "test", 1319), ("tau/commonsense_qa", None, "validation", 1221)],
)
def test_real_questions(path: str, name: str | None, split: str, count: int):
    columns = ["question", "answer"] if "gsm8k" in path else ["question", "choices", "answerKey"]
    rows = list(hub.rows(HubSplit(path=str(SHARED / path), name=name, split=split), columns, 1))
    assert len(rows) == count and set(columns) <= set(rows[0])


@needs_real_data
def test_real_text():
    wikitext = source(SHARED / "Salesforce/wikitext", name="wikitext-2-raw-v1", split="test")
    documents = list(hub.texts(wikitext, 1))
    assert len(documents) > 2000 and all(d.strip() for d in documents)
