"""Rows of data sets from local folders in the hub's layout."""

import json
from pathlib import Path

import pandas as pd
import pytest

from pipeline.data.corpus import hub
from pipeline.errors import UserError
from pipeline.files import looks_local
from pipeline.params import HubSplit
from tests import local_hub

SHARED = Path(__file__).parents[4] / "shared/hub"
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


def texts(some: HubSplit, seed: int = 1) -> list[str]:
    return [text for block in hub.blocks(some, seed) for text in block.texts]


def test_all_rows_in_order(folder: Path):
    assert texts(source(folder)) == [row["text"] for row in ROWS]


@pytest.fixture
def lines(tmp_path: Path) -> Path:
    """Thirty documents; not Parquet, of which `datasets` takes 5 seconds to shuffle any number."""
    return local_hub.jsonl(tmp_path / "set", "train", ROWS)


def test_some_rows_by_the_seed(lines: Path):
    some = texts(source(lines, rows=10))
    assert len(set(some)) == 10 and set(some) < {row["text"] for row in ROWS}
    assert some == texts(source(lines, rows=10))
    assert set(some) != set(texts(source(lines, rows=10), seed=2))


def test_any_row_may_be_chosen(lines: Path):
    chosen = {text for seed in range(60) for text in texts(source(lines, rows=3), seed)}
    assert chosen == {row["text"] for row in ROWS}


def test_more_rows_than_there_are(lines: Path):
    assert len(texts(source(lines, rows=1000))) == 30


@pytest.fixture
def small_blocks(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(hub, "BLOCK", 4)


@pytest.mark.parametrize("count", [None, 17, 1000])
@pytest.mark.parametrize("form", ["parquet", "jsonl"])
def test_reading_goes_on_behind_any_block(form: str, count: int | None, tmp_path: Path, small_blocks: None):
    """Twelve files: more than `datasets` reads at a time."""
    for i in range(12):
        table = pd.DataFrame({"text": [f"file {i} row {j}" for j in range(3)]})
        path = tmp_path / f"data/train-{i:05d}-of-00012.{form}"
        path.parent.mkdir(exist_ok=True)
        table.to_parquet(path) if form == "parquet" else table.to_json(path, orient="records", lines=True)
    some = source(tmp_path, rows=count)
    whole = list(hub.blocks(some, 1))
    assert len({text for block in whole for text in block.texts}) == min(count or 36, 36)
    for i, block in enumerate(whole):
        rest = read_on(some, block)
        assert [other.texts for other in rest] == [other.texts for other in whole[i + 1 :]]
        for j, other in enumerate(rest):  # killed a second time
            assert [one.texts for one in read_on(some, other)] == [one.texts for one in whole[i + j + 2 :]]


def read_on(some: HubSplit, block: hub.Block) -> list[hub.Block]:
    return list(hub.blocks(some, 1, json.loads(json.dumps(block.state))))


def test_text_is_the_default_column(folder: Path):
    assert len(texts(source(folder, columns=None))) == 30


def test_question_and_answer(tmp_path: Path):
    folder = local_hub.parquet(tmp_path / "qa", "test", local_hub.gsm8k_rows(2))
    documents = texts(source(folder, split="test", columns="question+answer"))
    assert documents[1] == "Q: What is 1 and 91?\nA: Add.\n#### 92"


def test_blank_documents_are_left_out(tmp_path: Path):
    folder = local_hub.jsonl(tmp_path / "set", "train", [{"text": "a"}, {"text": " \n"}, {"text": "b"}])
    assert texts(source(folder)) == ["a", "b"]


def test_several_files_of_a_split(tmp_path: Path):
    for i in range(2):
        (tmp_path / "data").mkdir(exist_ok=True)
        pd.DataFrame(ROWS[15 * i : 15 * i + 15]).to_parquet(tmp_path / f"data/train-0000{i}-of-00002.parquet")
    assert len(texts(source(tmp_path))) == 30


@pytest.mark.parametrize("files", [1, 2])
def test_a_parquet_file_without_rows(files: int, tmp_path: Path):
    """`datasets` cannot read it, not even beside one that has rows."""
    for i in range(files):
        pd.DataFrame(ROWS).head(30 * i).to_parquet(tmp_path / f"train-0000{i}-of-0000{files}.parquet")
    with pytest.raises(UserError, match="split train has a Parquet file without rows: leave it out"):
        texts(source(tmp_path))


@pytest.mark.parametrize(
    "path, local",
    [("./set", True), ("/data/set", True), ("~/set", True), ("a/b/c", True), ("openai/gsm8k", False), ("glue", False)],
)
def test_what_can_only_be_a_folder(path: str, local: bool):
    assert looks_local(path) is local


def test_a_folder_that_does_not_exist_is_not_looked_up_on_the_hub():
    with pytest.raises(UserError, match="does not exist"):
        list(hub.rows(HubSplit(path="./nowhere", split="train"), ["text"]))


@needs_real_data
@pytest.mark.parametrize(
    "path, name, split, count",
    [("openai/gsm8k", "main", "test", 1319), ("tau/commonsense_qa", None, "validation", 1221)],
)
def test_real_questions(path: str, name: str | None, split: str, count: int):
    columns = ["question", "answer"] if "gsm8k" in path else ["question", "choices", "answerKey"]
    rows = list(hub.rows(HubSplit(path=str(SHARED / path), name=name, split=split), columns))
    assert len(rows) == count and set(columns) <= set(rows[0])


@needs_real_data
def test_real_text():
    wikitext = source(SHARED / "Salesforce/wikitext", name="wikitext-2-raw-v1", split="test")
    documents = texts(wikitext)
    assert len(documents) > 2000 and all(d.strip() for d in documents)
