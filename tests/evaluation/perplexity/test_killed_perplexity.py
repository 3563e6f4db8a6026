"""After `kill -9` the pass over held-out text goes on, by batch of texts, to the same bytes."""

from dataclasses import replace
from pathlib import Path

import pytest

from pipeline.evaluation.perplexity import measure as perplexity
from pipeline.evaluation.perplexity import tokens
from pipeline.evaluation.perplexity.measure import write_perplexity
from pipeline.params import Perplexity
from tests.bad_input import spoil
from tests.evaluation.perplexity.readers import BYTE_LEVEL
from tests.evaluation.perplexity.test_write_perplexity import PARAMS, written
from tests.killing import run_and_kill

RUN = replace(PARAMS, texts=5)  # in batches of two: three


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("DVC_ROOT", str(tmp_path))
    written(tmp_path, BYTE_LEVEL, "quiet_star")
    return tmp_path


@pytest.fixture
def passes(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """How many texts each batch has that the model reads."""
    sizes, batch_columns = [], tokens._batch_columns

    def counted(model, reader, batch, sampling) -> dict[str, list]:
        sizes.append(len(batch["input_ids"]))
        return batch_columns(model, reader, batch, sampling)

    monkeypatch.setattr(tokens, "_batch_columns", counted)
    return sizes


def paths(folder: Path, out: str) -> list[Path]:
    return [folder / name for name in ("model", "heldout.arrow", out)]


def write(folder: Path, out: str, params: Perplexity = RUN) -> dict[str, bytes]:
    write_perplexity(params, *paths(folder, out))
    return {path.name: path.read_bytes() for path in (folder / out).iterdir()}


@pytest.mark.parametrize("adds", [1, 2, 3])
def test_killed_and_run_again_it_reads_the_rest_to_the_same_bytes(folder: Path, passes: list[int], adds: int):
    whole = write(folder, "whole")
    assert len(whole) == 8 and passes == [2, 2, 1]
    passes.clear()
    run_and_kill("pipeline.evaluation.perplexity.measure.write_perplexity", RUN, paths(folder, "killed"), adds)
    assert not (folder / "killed").exists()
    assert write(folder, "killed") == whole
    assert passes == [2, 2, 1][adds:]
    assert list((folder / ".resume/perplexity").iterdir()) == []


def full_disk(*_: object) -> None:
    raise OSError(28, "No space left on device")


def fail_at_the_end(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with monkeypatch.context() as patch, pytest.raises(OSError):
        patch.setattr(perplexity, "write_json", full_disk)
        write(folder, "out")


def test_changed_parameters_start_afresh(folder: Path, passes: list[int], monkeypatch: pytest.MonkeyPatch):
    other = replace(RUN, batch_size=1)
    expected = write(folder, "other", other)
    fail_at_the_end(folder, monkeypatch)
    passes.clear()
    assert write(folder, "out", other) == expected
    assert passes == [1] * 5


def test_a_changed_model_starts_afresh(folder: Path, passes: list[int], monkeypatch: pytest.MonkeyPatch):
    fail_at_the_end(folder, monkeypatch)
    spoil.weights("model/model.safetensors", spoil.another)(folder)
    passes.clear()
    write(folder, "out")
    assert passes == [2, 2, 1]
