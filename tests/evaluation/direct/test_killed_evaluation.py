"""After `kill -9` an evaluation goes on, by batch of questions, to the same bytes."""

import weakref
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from pathlib import Path

import pytest
from transformers import PreTrainedModel

from pipeline.errors import UserError
from pipeline.evaluation.direct import evaluate as evaluation
from pipeline.evaluation.direct import score as direct
from pipeline.evaluation.direct.evaluate import write_evaluation
from pipeline.params import Evaluate
from tests.bad_input import spoil
from tests.evaluation.chain_of_thought.asking import tasks_folder, trained_folder
from tests.killing import run_and_kill
from tests.local_hub import model_folder

PARAMS = Evaluate(seed=1, batch_size=3, thought_temperature=1.0, bootstrap_samples=20, device="cpu")
BATCHES = 2 * 3 + 2 * 3 + 2 * 1  # two models; two tasks of 7 questions in batches of 3, one of 2 questions


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("DVC_ROOT", str(tmp_path))
    trained_folder(tmp_path / "model")
    model_folder(tmp_path / "base")
    tasks_folder(tmp_path / "tasks")
    return tmp_path


@pytest.fixture
def asked(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """How many questions each batch has that a model is asked."""
    sizes, score_batch = [], direct._score_batch
    monkeypatch.setattr(
        direct, "_score_batch", lambda one, batch, task: sizes.append(len(batch)) or score_batch(one, batch, task)
    )
    return sizes


def paths(folder: Path, out: str) -> list[Path]:
    return [folder / name for name in ("model", "base", "tasks", out)]


def write(folder: Path, out: str, params: Evaluate = PARAMS) -> dict[str, bytes]:
    write_evaluation(params, *paths(folder, out))
    return {path.name: path.read_bytes() for path in (folder / out).iterdir()}


@pytest.mark.parametrize("adds", [1, 5, 8, BATCHES])
def test_killed_and_run_again_it_asks_the_rest_to_the_same_bytes(folder: Path, asked: list[int], adds: int):
    whole = write(folder, "whole")
    assert len(whole) == 2 and len(asked) == BATCHES
    sizes = asked.copy()
    asked.clear()
    run_and_kill("pipeline.evaluation.direct.evaluate.write_evaluation", PARAMS, paths(folder, "killed"), adds)
    assert not (folder / "killed").exists()
    assert write(folder, "killed") == whole
    assert asked == sizes[adds:]
    assert list((folder / ".resume/evaluate/model").iterdir()) == []


def test_a_batch_that_was_being_kept_is_asked_as_a_whole(folder: Path, asked: list[int]):
    whole = write(folder, "whole")
    sizes = asked.copy()
    asked.clear()
    run_and_kill("pipeline.evaluation.direct.evaluate.write_evaluation", PARAMS, paths(folder, "killed"), 2)
    (rows,) = (folder / ".resume").rglob("rows.jsonl")
    lines = rows.read_bytes().splitlines(keepends=True)
    assert len(lines) == 6
    rows.write_bytes(b"".join(lines[:4]) + lines[4][:20])
    assert write(folder, "killed") == whole
    assert asked == sizes[1:]


def test_one_model_is_in_memory_at_a_time(folder: Path, monkeypatch: pytest.MonkeyPatch):
    read: list[weakref.ref] = []

    def only(load: Callable[[Path], PreTrainedModel], path: Path) -> PreTrainedModel:
        assert all(model() is None for model in read)
        model = load(path)
        read.append(weakref.ref(model))
        return model

    for name in ("load_trained", "load_plain"):
        monkeypatch.setattr(evaluation, name, partial(only, getattr(evaluation, name)))
    write(folder, "out")
    assert len(read) == 2


def full_disk(*_: object) -> None:
    raise OSError(28, "No space left on device")


def fail_at_the_end(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with monkeypatch.context() as patch, pytest.raises(OSError):
        patch.setattr(evaluation, "write_json", full_disk)
        write(folder, "out")


def test_changed_parameters_start_afresh(folder: Path, asked: list[int], monkeypatch: pytest.MonkeyPatch):
    other = replace(PARAMS, seed=2)
    expected = write(folder, "other", other)
    fail_at_the_end(folder, monkeypatch)
    asked.clear()
    assert write(folder, "out", other) == expected
    assert len(asked) == BATCHES


@pytest.mark.parametrize("model", ["model", "base"])
def test_a_changed_model_starts_afresh(folder: Path, asked: list[int], monkeypatch: pytest.MonkeyPatch, model: str):
    fail_at_the_end(folder, monkeypatch)
    spoil.weights(f"{model}/model.safetensors", spoil.another)(folder)
    asked.clear()
    write(folder, "out")
    assert len(asked) == BATCHES


def test_of_predictions_that_are_not_finite_none_is_kept(folder: Path, asked: list[int]):
    spoil.weights("model/model.safetensors", spoil.overflowing)(folder)
    with pytest.raises(UserError, match="the model's predictions are not finite: lower the learning rate"):
        write(folder, "out")
    assert not (folder / "out").exists() and len(asked) == BATCHES // 2 + 1
    (rows,) = (folder / ".resume").rglob("rows.jsonl")
    assert len(rows.read_bytes().splitlines()) == 2 * 7 + 2  # the base model's
