"""A stage goes on after `kill -9`, batch by batch, to the same bytes; with anything changed it starts afresh.

Also in two processes (gloo), which share the batches: the bytes are those of one.
"""

import os
import shutil
import signal
import weakref
from collections.abc import Callable
from dataclasses import replace
from functools import cache, partial
from pathlib import Path
from typing import NamedTuple

import pytest
import torch
from accelerate.state import AcceleratorState
from safetensors.torch import load_file, save_file

from pipeline.errors import UserError
from pipeline.evaluation.chain_of_thought import samples
from pipeline.evaluation.chain_of_thought.vote import write_chain_of_thought
from pipeline.evaluation.direct import score
from pipeline.evaluation.direct.evaluate import write_evaluation
from pipeline.evaluation.perplexity import measure
from pipeline.evaluation.perplexity.measure import write_perplexity
from pipeline.params import Evaluate, Perplexity
from pipeline.resume import Scratch
from tests.evaluation.chain_of_thought.asking import params, tasks_folder, trained_folder
from tests.evaluation.perplexity.made_up import METASPACE, write_spans
from tests.local_hub import model_folder
from tests.training.rank import free_port


class Stage(NamedTuple):
    write: Callable[..., None]
    params: object
    inputs: tuple[str, ...]
    owner: object
    function: str  # of the owner: it computes a batch, or is called with each
    batches: int
    rows: int  # that hold the first batch and a part of the second


EVALUATE = Evaluate(seed=1, batch_size=3, thought_temperature=1.0, device="cpu")
PERPLEXITY = Perplexity(seed=1, texts=5, batch_size=2, thought_temperature=0.0, device="cpu")


def perplexity(*arguments: object) -> None:
    write_perplexity(*arguments, marker="A:")


perplexity.__module__ = write_perplexity.__module__  # where `fail_at_the_end` patches
STAGES = {
    # own thoughts and then others'; two tasks of 7 questions and one of 2
    "evaluate": Stage(write_evaluation, EVALUATE, ("model", "tasks"), score, "_score_batch", 2 * 7, 4),
    # two tasks of 7 questions, two ways
    "chain_of_thought": Stage(write_chain_of_thought, params(), ("model", "tasks"), samples, "_sample", 2 * 6, 4),
    # the model before training, own thoughts and others'
    "perplexity": Stage(perplexity, PERPLEXITY, ("model", "base", "heldout.arrow"), Scratch, "add", 3 * 3, 1),
}


def write(name: str, folder: Path, out: str = "out", **changes: object) -> dict[str, bytes]:
    """Run a stage with ``changes`` of its parameters, and read what it writes."""
    stage = STAGES[name]
    stage.write(replace(stage.params, **changes), *(folder / path for path in stage.inputs), folder / out)
    return read(folder / out)


def read(out: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in out.rglob("*") if path.is_file()}


@pytest.fixture(scope="module")
def inputs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("inputs")
    trained_folder(folder / "model")
    model_folder(folder / "base")
    tasks_folder(folder / "tasks")
    write_spans(folder / "heldout.arrow", METASPACE, [" What is (A) 12\n", " don't", " 42 of", " more", " the last"])
    return folder


@pytest.fixture(scope="module")
def whole(inputs: Path) -> Callable[[str], dict[str, bytes]]:
    """What a stage writes that is not interrupted."""
    return cache(lambda name: write(name, inputs, f"whole {name}"))


@pytest.fixture(autouse=True)
def folder(inputs: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A copy of the inputs; one thread, as a fork cannot use the threads of its parent, and rounding depends on it."""
    monkeypatch.setenv("DVC_ROOT", str(tmp_path))
    shutil.copytree(inputs, tmp_path, dirs_exist_ok=True)
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield tmp_path
    torch.set_num_threads(threads)


def count_batches(name: str, monkeypatch: pytest.MonkeyPatch) -> list[None]:
    """A list that grows by one with every batch that is computed."""
    batches, (_, _, _, owner, function, _, _) = [], STAGES[name]
    compute = getattr(owner, function)
    monkeypatch.setattr(owner, function, lambda *args: batches.append(None) or compute(*args))
    return batches


def die_after(adds: int) -> None:
    """Have this process killed once it has kept rows ``adds`` times."""
    add, left = Scratch.add, [adds]

    def add_and_die(self: Scratch, rows: list) -> None:
        add(self, rows)
        left[0] -= 1
        if not left[0]:
            os.kill(os.getpid(), signal.SIGKILL)

    Scratch.add = add_and_die


def kill_after(adds: int, call: Callable[[], object]) -> None:
    """Call in a fork of this process, which gets SIGKILL once it has kept rows ``adds`` times."""
    child = os.fork()
    if not child:
        signal.alarm(100)  # rather than hang
        try:
            die_after(adds)
            call()
        finally:
            os._exit(1)
    assert os.waitpid(child, 0)[1] == signal.SIGKILL


def fork_two(call: Callable[[], object], adds: int = 0) -> list[int]:
    """Call in two processes that are forked, as a launcher starts them. Returns their exit statuses.

    If ``adds``, the main one gets SIGKILL once it has kept rows so many times, and the other one at its end.
    """
    address = {"WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(free_port())}
    ranks = []
    for rank in ("0", "1"):
        child = os.fork()
        if not child:
            code = 1
            signal.alarm(100)  # rather than hang
            try:
                os.environ.update(address | {"RANK": rank, "LOCAL_RANK": rank})
                AcceleratorState._reset_state(reset_partial_state=True)  # as an earlier test has set it
                if adds and rank == "0":
                    die_after(adds)
                call()
                code = 0
            finally:
                os._exit(code)
        ranks.append(child)
    first = os.waitpid(ranks[0], 0)[1]
    if first:  # as a launcher does
        os.kill(ranks[1], signal.SIGKILL)
    return [first, os.waitpid(ranks[1], 0)[1]]


SLOW = {"evaluate": (1, 3, 14), "chain_of_thought": (7,), "perplexity": (1, 3, 5, 9)}
KILLS = [pytest.param(name, adds, marks=pytest.mark.slow) for name in SLOW for adds in SLOW[name]]


@pytest.mark.parametrize("name, adds", [("evaluate", 5), ("perplexity", 7), *KILLS])
def test_killed_and_run_again_it_does_the_rest_to_the_same_bytes(
    name: str, adds: int, folder: Path, whole: Callable, monkeypatch: pytest.MonkeyPatch
):
    expected = whole(name)
    kill_after(adds, lambda: write(name, folder))
    assert not (folder / "out").exists()
    batches = count_batches(name, monkeypatch)
    assert write(name, folder) == expected
    assert len(batches) == STAGES[name].batches - adds
    assert not [path for path in (folder / ".resume").rglob("*") if path.is_file()]


def fail_at_the_end(name: str, folder: Path) -> Path:
    """A run that computes everything and writes nothing; returns the file with its rows."""

    def full_disk(*_: object) -> None:
        raise OSError(28, "No space left on device")

    with pytest.MonkeyPatch.context() as patch, pytest.raises(OSError):
        for function in ("write_rows", "write_table", "write_json"):
            patch.setattr(f"{STAGES[name].write.__module__}.{function}", full_disk, raising=False)
        write(name, folder)
    (rows,) = (folder / ".resume").rglob("rows.jsonl")
    return rows


@pytest.mark.parametrize("name", STAGES)
def test_a_batch_of_which_rows_are_missing_is_computed_as_a_whole(
    name: str, folder: Path, whole: Callable, monkeypatch: pytest.MonkeyPatch
):
    expected, rows, kept = whole(name), fail_at_the_end(name, folder), STAGES[name].rows
    lines = rows.read_bytes().splitlines(keepends=True)
    rows.write_bytes(b"".join(lines[:kept]) + lines[kept][:20])
    batches = count_batches(name, monkeypatch)
    assert write(name, folder) == expected
    assert len(batches) == STAGES[name].batches - 1


@pytest.mark.parametrize("name", STAGES)
def test_another_launcher_goes_on_with_the_same_rows(
    name: str, folder: Path, whole: Callable, monkeypatch: pytest.MonkeyPatch
):
    expected = whole(name)
    fail_at_the_end(name, folder)
    batches = count_batches(name, monkeypatch)
    assert write(name, folder, launcher="launchers/cpus.yaml") == expected
    assert not batches


@pytest.mark.slow
@pytest.mark.parametrize("name", STAGES)
def test_two_processes_write_the_bytes_of_one(name: str, folder: Path, whole: Callable):
    expected = whole(name)
    assert fork_two(lambda: write(name, folder)) == [0, 0]
    assert read(folder / "out") == expected
    assert not [path for path in (folder / ".resume").rglob("*") if path.is_file()]


@pytest.mark.slow
@pytest.mark.parametrize("again", [1, 2])
def test_two_processes_killed_are_resumed_by_any_number(
    again: int, folder: Path, whole: Callable, monkeypatch: pytest.MonkeyPatch
):
    """Killed among the own thoughts of the second task, between the batches of a turn."""
    expected = whole("evaluate")
    assert fork_two(lambda: write("evaluate", folder), adds=7)[0] == signal.SIGKILL
    assert not (folder / "out").exists()
    if again == 1:
        batches = count_batches("evaluate", monkeypatch)
        write("evaluate", folder)
        assert len(batches) == STAGES["evaluate"].batches - 7
    else:
        assert fork_two(lambda: write("evaluate", folder)) == [0, 0]
    assert read(folder / "out") == expected


def change_weights(path: Path, change: Callable[[str, torch.Tensor], torch.Tensor]) -> None:
    save_file({name: change(name, value) for name, value in load_file(path).items()}, path, {"format": "pt"})


@pytest.mark.parametrize(
    "name, changed",
    [(name, changed) for name in STAGES for changed in ("params", "model")] + [("perplexity", "base")],
)
def test_with_anything_changed_it_starts_afresh(
    name: str, changed: str, folder: Path, whole: Callable, monkeypatch: pytest.MonkeyPatch
):
    fail_at_the_end(name, folder)
    if changed != "params":
        change_weights(folder / changed / "model.safetensors", lambda _, value: value * 1.5)
    batches = count_batches(name, monkeypatch)
    assert write(name, folder, **({"seed": 2} if changed == "params" else {})) != whole(name)
    assert len(batches) == STAGES[name].batches


@pytest.mark.parametrize("name", ["evaluate", "chain_of_thought"])
def test_predictions_that_are_not_finite_are_refused_and_not_kept(name: str, folder: Path):
    """With thoughts; whatever is asked, `AskedModel` predicts it."""
    change_weights(
        folder / "model/model.safetensors", lambda name, value: value * (1e25 if "mixing_head" in name else 1)
    )
    with pytest.raises(UserError, match="the model's predictions are not finite: lower the learning rate"):
        write(name, folder)
    assert not (folder / "out").exists()
    assert not any(path.read_bytes() for path in (folder / ".resume").rglob("rows.jsonl"))


def test_one_model_is_in_memory_at_a_time(folder: Path, monkeypatch: pytest.MonkeyPatch):
    models: list[weakref.ref] = []

    def load_alone(load: Callable[[Path], torch.nn.Module], path: Path) -> torch.nn.Module:
        assert all(model() is None for model in models)
        model = load(path)
        models.append(weakref.ref(model))
        return model

    for name in ("load_trained", "load_plain"):
        monkeypatch.setattr(measure, name, partial(load_alone, getattr(measure, name)))
    write("perplexity", folder)
    assert len(models) == 2
