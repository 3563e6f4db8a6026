"""Rows and documents of data sets, from local folders in the hub's layout."""

import json
from pathlib import Path

import datasets
import pandas as pd
import pytest

from pipeline.data.corpus import hub
from pipeline.errors import UserError
from pipeline.files import looks_local
from pipeline.params import HubSplit
from tests import local_hub

SHARED = Path(__file__).parents[4] / "shared/hub"
TEXTS = [f"document {i}" for i in range(30)]
ROWS = [{"text": text, "number": i} for i, text in enumerate(TEXTS)]


def source(path: Path, **values: object) -> HubSplit:
    return HubSplit(**({"path": str(path), "split": "train"} | values))


def texts(some: HubSplit, seed: int = 1) -> list[str]:
    return [text for found, _ in hub.blocks(some, seed) for text in found]


@pytest.mark.parametrize("form, columns", [("parquet", "text"), ("jsonl", None), ("text_lines", "text")])
def test_all_rows_in_order(form: str, columns: str | None, tmp_path: Path):
    """``text`` is the default column."""
    rows = TEXTS if form == "text_lines" else ROWS
    folder = getattr(local_hub, form)(tmp_path / "set", "train", rows)
    assert texts(source(folder, columns=columns)) == TEXTS


def test_some_rows_by_the_seed(tmp_path: Path):
    lines = local_hub.jsonl(tmp_path / "set", "train", ROWS)
    some = texts(source(lines, rows=10))
    assert len(set(some)) == 10 and set(some) < set(TEXTS)
    assert some == texts(source(lines, rows=10))
    assert set(some) != set(texts(source(lines, rows=10), seed=2))
    assert len(texts(source(lines, rows=1000))) == 30
    assert {text for seed in range(25) for text in texts(source(lines, rows=10), seed)} == set(TEXTS)


SHUFFLED = pytest.param("parquet", 17, marks=pytest.mark.slow)


@pytest.mark.parametrize("form, count", [("jsonl", 17), ("jsonl", 1000), ("parquet", None), SHUFFLED])
def test_reading_resumes_behind_any_block(form: str, count: int | None, tmp_path: Path, monkeypatch):
    """Of twelve files, more than `datasets` reads at a time; also behind a block that a resumed run has read."""
    monkeypatch.setattr(hub, "BLOCK", 4)
    monkeypatch.setattr(datasets.config, "SLEEP_TIME_ON_THREADS_SHUTDOWN", 0.1)  # not 5 s for every shuffled Parquet
    for i in range(12):
        table = pd.DataFrame({"text": [f"file {i} row {j}" for j in range(3)]})
        path = tmp_path / f"data/train-{i:05d}-of-00012.{form}"
        path.parent.mkdir(exist_ok=True)
        table.to_parquet(path) if form == "parquet" else table.to_json(path, orient="records", lines=True)
    some = source(tmp_path, rows=count)

    def after(state: dict) -> list[tuple[list[str], dict]]:
        return list(hub.blocks(some, 1, json.loads(json.dumps(state))))

    whole = list(hub.blocks(some, 1))
    found = [texts for texts, _ in whole]
    assert len({text for texts in found for text in texts}) == min(count or 36, 36)
    for i, (_, state) in enumerate(whole):
        rest = after(state)
        assert [texts for texts, _ in rest] == found[i + 1 :]
        for j, (_, second) in list(enumerate(rest))[i % 3 :: 3]:  # killed a second time
            assert [texts for texts, _ in after(second)] == found[i + j + 2 :]


def test_parts_share_out_the_rows_by_a_column(tmp_path: Path):
    """What has a value in common is in one part; a part is the same whatever the order, and may be cut to some rows."""
    rows = [{"text": f"{i}", "module": f"m{i // 3}"} for i in range(30)]
    folder = local_hub.jsonl(tmp_path / "set", "train", rows)
    parts = [texts(source(folder, part=f"module:{i}/3")) for i in (1, 2, 3)]
    assert sorted(map(int, sum(parts, []))) == list(range(30)) and all(parts)
    assert all(len({rows[int(text)]["module"] for text in part}) * 3 == len(part) for part in parts)
    local_hub.jsonl(tmp_path / "other", "train", rows[::-1])
    assert texts(source(tmp_path / "other", part="module:2/3")) == parts[1][::-1]
    some = texts(source(folder, part="module:2/3", rows=2))
    assert len(some) == 2 and set(some) < set(parts[1])
    with pytest.raises(UserError, match="part chapter:1/2 has no column 'chapter'; its columns are text, module"):
        texts(source(folder, part="chapter:1/2"))


def test_of_an_answer_its_equations_or_the_final_number(tmp_path: Path):
    answers = ["Half: <<48/2=24>>24.\nIn all <<48+24=72>>72.\n#### 72", "None.\n#### 1,000"]
    rows = [{"question": "How many?", "answer": answer} for answer in answers]
    folder = local_hub.jsonl(tmp_path / "set", "train", rows)
    for solution, expected in {
        None: answers,
        "equations": ["— 48/2=24 48+24=72 — 72", "1,000"],
        "final": ["72", "1,000"],
    }.items():
        found = texts(source(folder, columns="question+answer", solution=solution))
        assert found == [f"Q: How many?\nA: {answer}" for answer in expected]
    local_hub.jsonl(folder, "train", [{"question": "How many?", "answer": "72"}])
    with pytest.raises(UserError, match="solution is final, but an answer has no number after ####"):
        texts(source(folder, columns="question+answer", solution="final"))


def test_blank_documents_are_left_out_and_rows_without_text_refused(tmp_path: Path):
    folder = local_hub.jsonl(tmp_path / "set", "train", [{"text": "a"}, {"text": " \n"}, {"text": "b"}])
    assert texts(source(folder)) == ["a", "b"]
    for values in ({"text": 1}, {"text": None}, {"body": "a"}):
        local_hub.jsonl(folder, "train", [values])
        with pytest.raises(UserError, match="column text is not text|no column 'text'; its columns are body"):
            texts(source(folder))


@pytest.mark.parametrize("files", [1, 2])
def test_a_parquet_file_without_rows(files: int, tmp_path: Path):
    """`datasets` cannot read it, not even beside one that has rows."""
    for i in range(files):
        pd.DataFrame(ROWS).head(30 * i).to_parquet(tmp_path / f"train-0000{i}-of-0000{files}.parquet")
    with pytest.raises(UserError, match="split train has a Parquet file without rows: leave it out"):
        texts(source(tmp_path))


def test_a_path_that_can_only_be_a_folder_is_not_looked_up_on_the_hub():
    paths = ("./set", "/data/set", "~/set", "a/b/c", "openai/gsm8k", "glue")
    assert list(filter(looks_local, paths)) == list(paths[:4])


@pytest.mark.slow
@pytest.mark.skipif(not SHARED.is_dir(), reason=f"no real data at {SHARED}")
def test_real_text():
    documents = texts(source(SHARED / "Salesforce/wikitext", name="wikitext-2-raw-v1", split="test"))
    assert len(documents) > 2000 and all(text.strip() for text in documents)
