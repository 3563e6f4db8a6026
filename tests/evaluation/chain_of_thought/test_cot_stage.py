"""The files that the stage writes."""

import json
from pathlib import Path

import pandas as pd
import pytest

from pipeline.errors import UserError
from pipeline.evaluation.chain_of_thought.vote import SAMPLES, write_chain_of_thought
from tests.evaluation.chain_of_thought.asking import params, tasks_folder, trained_folder


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("DVC_ROOT", str(tmp_path))
    trained_folder(tmp_path / "model")
    tasks_folder(tmp_path / "tasks", count=4)
    return tmp_path


def write(folder: Path, **changes: object) -> None:
    write_chain_of_thought(params(**changes), folder / "model", folder / "tasks", folder / "out")


def test_files_are_as_the_contract_has_them(folder: Path):
    write(folder, questions=3)
    table = pd.read_parquet(folder / "out/samples.parquet")
    assert list(table.columns) == SAMPLES.names
    rows = [(t, i, w, s) for t in "ab" for i in range(3) for w in ("thought", "no_thought") for s in range(4)]
    assert list(table[["task", "index", "way", "sample"]].itertuples(index=False, name=None)) == rows
    assert (table["correct"] == (table["vote"] == table["answer"])).all()
    assert table.query("task == 'a'").groupby("index")["answer"].first().tolist() == ["0", "1", "2"]
    metrics = json.loads((folder / "out/metrics.json").read_text())
    assert list(metrics) == ["a", "b"] and metrics["a"]["n"] == 3
    votes = pd.read_csv(folder / "out/votes.csv")
    assert len(votes) == 2 * 2 * 3
    assert votes.query("k == 1")["accuracy"].tolist() == pytest.approx(
        table.groupby(["task", "way"], sort=False)["correct"].mean().tolist()
    )


def test_a_model_without_thoughts_has_no_difference(folder: Path):
    trained_folder(folder / "model", method="no_thought")
    write(folder, questions=2)
    assert set(pd.read_parquet(folder / "out/samples.parquet")["way"]) == {"no_thought"}
    assert list(json.loads((folder / "out/metrics.json").read_text())["a"]) == ["n", "samples", "no_thought"]


def test_tasks_that_ask_for_no_reasoning_are_absent(folder: Path):
    for name in "ab":
        (folder / f"tasks/{name}.yaml").unlink()
    write(folder)
    assert json.loads((folder / "out/metrics.json").read_text()) == {}
    assert list(pd.read_parquet(folder / "out/samples.parquet").columns) == SAMPLES.names
    assert pd.read_csv(folder / "out/votes.csv").empty


def test_a_missing_model_is_told(folder: Path):
    with pytest.raises(UserError, match="holds no trained model"):
        write_chain_of_thought(params(), folder / "none", folder / "tasks", folder / "out")
