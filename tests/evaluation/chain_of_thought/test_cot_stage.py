"""The stage writes what the contract says, and goes on after `kill -9` to the same bytes."""

import json
from pathlib import Path

import pandas as pd
import pytest
from torch import Tensor

from pipeline.errors import UserError
from pipeline.evaluation.chain_of_thought import vote as chain_of_thought
from pipeline.evaluation.chain_of_thought.vote import SAMPLES, write_chain_of_thought
from pipeline.thought.model import QuietStarForCausalLM
from tests.bad_input import spoil
from tests.evaluation.chain_of_thought.asking import params, tasks_folder, trained_folder
from tests.killing import stopped

FILES = ("samples.parquet", "votes.csv", "metrics.json")


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("DVC_ROOT", str(tmp_path))
    trained_folder(tmp_path / "model")
    tasks_folder(tmp_path / "tasks")
    return tmp_path


@pytest.fixture
def generated(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """How many prompts the model goes on with each time."""
    prompts, generate = [], QuietStarForCausalLM.generate

    def counted(self: QuietStarForCausalLM, input_ids: Tensor, *rest: object, **options: object) -> Tensor:
        prompts.append(len(input_ids))
        return generate(self, input_ids, *rest, **options)

    monkeypatch.setattr(QuietStarForCausalLM, "generate", counted)
    return prompts


def write(folder: Path, out: str, **changes: object) -> dict[str, bytes]:
    write_chain_of_thought(params(**changes), folder / "model", folder / "tasks", folder / out)
    return {name: (folder / out / name).read_bytes() for name in FILES}


def test_files_are_as_the_contract_has_them(folder: Path):
    write(folder, "out", questions=4)
    table = pd.read_parquet(folder / "out/samples.parquet")
    assert list(table.columns) == SAMPLES.names
    rows = [(t, i, w, s) for t in "ab" for i in range(4) for w in ("thought", "no_thought") for s in range(4)]
    assert list(table[["task", "index", "way", "sample"]].itertuples(index=False, name=None)) == rows
    assert (table["correct"] == (table["vote"] == table["answer"])).all()
    assert table.query("task == 'a'").groupby("index")["answer"].first().tolist() == ["0", "1", "2", "3"]
    metrics = json.loads((folder / "out/metrics.json").read_text())
    assert list(metrics) == ["a", "b"] and metrics["a"]["n"] == 4
    votes = pd.read_csv(folder / "out/votes.csv")
    assert len(votes) == 2 * 2 * 3
    assert votes.query("k == 1")["accuracy"].tolist() == pytest.approx(
        table.groupby(["task", "way"], sort=False)["correct"].mean().tolist()
    )
    assert [f.name for f in (folder / ".resume/chain_of_thought").iterdir()] == []


def test_a_model_without_thoughts_has_no_difference(folder: Path):
    trained_folder(folder / "model", method="no_thought")
    write(folder, "out", questions=2)
    assert set(pd.read_parquet(folder / "out/samples.parquet")["way"]) == {"no_thought"}
    assert list(json.loads((folder / "out/metrics.json").read_text())["a"]) == ["n", "samples", "no_thought"]


def test_tasks_that_ask_for_no_reasoning_are_absent(folder: Path):
    for name in "ab":
        (folder / f"tasks/{name}.yaml").unlink()
    write(folder, "out")
    assert json.loads((folder / "out/metrics.json").read_text()) == {}
    assert list(pd.read_parquet(folder / "out/samples.parquet").columns) == SAMPLES.names
    assert pd.read_csv(folder / "out/votes.csv").empty


def test_killed_and_run_again_it_does_the_rest_to_the_same_bytes(folder: Path, generated: list[int]):
    batches, whole = 7, write(folder, "whole")  # 7 questions in batches of 3, two ways, two tasks: 12 batches
    paths = [folder / name for name in ("model", "tasks", "killed")]
    with stopped("pipeline.evaluation.chain_of_thought.write_chain_of_thought", params(), paths, batches) as process:
        message = f"^process {process.pid} is at the same work, in .*: wait until it has ended"
        with pytest.raises(UserError, match=message):
            write(folder, "killed")
    assert not (folder / "killed").exists()
    (rows,) = (folder / ".resume/chain_of_thought").glob("*/rows.jsonl")
    finished = rows.read_bytes()
    assert 0 < finished.count(b"\n") < 28
    rows.write_bytes(finished + finished.splitlines()[0][:40])  # killed while a row was written

    generated.clear()
    assert write(folder, "killed") == whole
    assert len(generated) == 2 * (12 - batches)
    assert not rows.parent.exists()


def fail_at_the_end(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full_disk(*_: object) -> None:
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patch, pytest.raises(OSError):
        patch.setattr(chain_of_thought, "write_json", full_disk)
        write(folder, "out")


def test_another_seed_starts_afresh(folder: Path, monkeypatch: pytest.MonkeyPatch):
    other = write(folder, "other", seed=4)
    fail_at_the_end(folder, monkeypatch)
    assert len(list((folder / ".resume/chain_of_thought").glob("*/rows.jsonl"))) == 1
    assert write(folder, "out", seed=4) == other


def test_a_changed_model_starts_afresh(folder: Path, generated: list[int], monkeypatch: pytest.MonkeyPatch):
    fail_at_the_end(folder, monkeypatch)
    spoil.weights("model/model.safetensors", spoil.another)(folder)
    generated.clear()
    write(folder, "out")
    assert len(generated) == 2 * 12


def test_predictions_that_are_not_finite_are_refused(folder: Path):
    spoil.weights("model/model.safetensors", spoil.overflowing)(folder)
    with pytest.raises(UserError, match="the model's predictions are not finite: lower the learning rate"):
        write(folder, "out")
    assert not (folder / "out").exists() and not list((folder / ".resume").rglob("rows.jsonl"))


def test_a_missing_model_is_told(folder: Path):
    with pytest.raises(UserError, match="holds no trained model"):
        write_chain_of_thought(params(), folder / "none", folder / "tasks", folder / "out")
