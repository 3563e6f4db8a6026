"""Training that is killed, at whatever moment, resumes and ends with the bytes of an uninterrupted run."""

import importlib
import os
import shutil
import signal
import sys
from functools import partial, reduce
from importlib.util import find_spec
from itertools import count, product
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from safetensors.torch import load_file

from pipeline.errors import UserError
from pipeline.training.checkpoints import Checkpoints, last_checkpoint
from pipeline.training.trainer import reads_checkpoint
from tests.bad_input.spoil import small_disk
from tests.stage_runner import TRAIN, copy_project, run_here, run_stage, run_stages, set_params

OUTS = {
    "base_model": ("models/base", "results/base_model"),
    **{
        f"train {method} 1": (f"models/trained/{method}-1", f"results/train/{method}-1")
        for method in ("quiet_star", "pause", "no_thought", "rlp", "value")
    },
}
LENGTHS = {"train.steps": 8, "train.evaluation_steps": 3, "train.accumulation": 2}
Place = tuple[str, str]  # of a function: its module and name
# the moments at which a run is killed: a function, and which call of it
LOSS = ("pipeline.training.quiet_star.trainer", "QuietStarTrainer.compute_loss")
PRETRAINING_LOSS = ("pipeline.training.pretrain", "PretrainTrainer.compute_loss")
SAVE = ("transformers", "Trainer._save_optimizer_and_scheduler")
MOMENTS = {
    "between two micro-batches of a step": (LOSS, 11),
    "while the first checkpoint is written": (SAVE, 1),
    "while a later checkpoint is written": (SAVE, 3),
    "before a checkpoint is whole": (("pipeline.training.checkpoints", "Checkpoints.publish"), 4),
    "before its name is on the disk": (("pipeline.training.checkpoints", "sync"), 4),
    "before the one before it is gone": (("pipeline.training.checkpoints", "shutil.rmtree"), 2),
    "while the outputs are written": (("pipeline.training.quiet_star.train", "write_json"), 1),
}


EIGHT_BITS = Path(sys.prefix) / "8bit"  # bitsandbytes, which only the tests that use it find: pyproject.toml says why
needs_8_bits = pytest.mark.skipif(
    not ((EIGHT_BITS / ".ready").is_file() or find_spec("bitsandbytes")),
    reason="bitsandbytes is not installed: `make test` does so",
)


def find_8_bits() -> None:
    sys.path.append(str(EIGHT_BITS))


def often() -> None:
    """Take a checkpoint at every logged step, in a run that `resumes` can take up: with the same libraries."""
    find_8_bits()
    module = importlib.import_module("pipeline.training.checkpoints")
    module.LEAST_SECONDS = module.LEAST_SHARE = 0


def doomed(place: Place, call: int) -> None:
    """Take checkpoints often, and kill this process at this ``call`` of a function."""
    often()
    module, names = place
    *path, last = names.split(".")
    owner = reduce(getattr, path, importlib.import_module(module))
    function, calls = getattr(owner, last), count(1)

    def counted(*args: object, **kwargs: object) -> object:
        if next(calls) == call:
            os.kill(os.getpid(), signal.SIGKILL)
        return function(*args, **kwargs)

    setattr(owner, last, counted)


@pytest.fixture(scope="module")
def project(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = copy_project(tmp_path_factory.mktemp("long") / "project")
    set_params(folder, LENGTHS)
    run_stages(folder, ("corpus", "tokenize", "base_model"))
    done = run_stage(folder, TRAIN)
    assert done.code == 0, done.stderr
    return folder


@pytest.fixture
def folder(project: Path, tmp_path: Path) -> Path:
    """A copy of the project without the outputs of training, as DVC leaves it before it runs the stage."""
    folder = shutil.copytree(project, tmp_path / "project")
    take_outputs(folder, TRAIN)
    return folder


def outputs(folder: Path, stage: str) -> dict[str, bytes]:
    files = [f for out in OUTS[stage] for f in sorted((folder / out).glob("*")) if f.is_file()]
    return {str(f.relative_to(folder)): f.read_bytes() for f in files}


def take_outputs(folder: Path, stage: str) -> dict[str, bytes]:
    found = outputs(folder, stage)
    for file in found:
        (folder / file).unlink()
    return found


def scratches(folder: Path) -> list[Path]:
    return [rows.parent for rows in (folder / ".resume").rglob("rows.jsonl")]


def killed(folder: Path, stage: str, place: Place, call: int) -> Path:
    assert run_stage(folder, stage, partial(doomed, place, call)).code == -signal.SIGKILL
    (scratch,) = scratches(folder)
    return scratch


def resumes(folder: Path, stage: str, whole: dict[str, bytes]) -> None:
    """Run the stage again: it goes on, and ends with the bytes of an uninterrupted run."""
    goes_on = any(map(last_checkpoint, scratches(folder)))
    done = run_stage(folder, stage, find_8_bits)
    assert done.code == 0, done.stderr
    assert ("going on from .resume/" in done.stderr) == goes_on
    assert outputs(folder, stage) == whole and scratches(folder) == []


def test_killed_it_resumes_from_the_one_checkpoint_that_is_kept(folder: Path, project: Path):
    scratch = killed(folder, TRAIN, LOSS, 13)  # in step 7
    assert sorted(path.name for path in scratch.iterdir()) == ["lock", "rows.jsonl", "step-6"]
    resumes(folder, TRAIN, outputs(project, TRAIN))


@pytest.mark.slow
@pytest.mark.parametrize("moment", ["in a step, three times", *MOMENTS])
def test_killed_at_any_moment_it_resumes_to_the_same_bytes(moment: str, folder: Path, project: Path):
    for place, call in [MOMENTS[moment]] if moment in MOMENTS else [(LOSS, 5)] * 3:
        scratch = killed(folder, TRAIN, place, call)
    assert (last_checkpoint(scratch) is None) == (moment == "while the first checkpoint is written")
    resumes(folder, TRAIN, outputs(project, TRAIN))


LORA = {"train.adapt": "lora", "train.saved": "learned"}
PRETRAINING = {"base_model.scratch.steps": 200}


@pytest.mark.slow
@pytest.mark.parametrize(
    "stage, changes, place, call, step",
    [
        ("train pause 1", {}, LOSS, 11, 5),
        ("train no_thought 1", {}, LOSS, 11, 5),
        ("base_model", PRETRAINING, PRETRAINING_LOSS, 60, 50),
        ("base_model", PRETRAINING, PRETRAINING_LOSS, 120, 100),  # in a later epoch
        (TRAIN, LORA, LOSS, 11, 5),
        (TRAIN, LORA | {"train.precision": "bfloat16"}, LOSS, 11, 5),
        pytest.param(TRAIN, {"train.optimizer": "adamw_8bit"}, LOSS, 11, 5, marks=needs_8_bits),
    ],
)
def test_other_training_resumes_too(stage: str, changes: dict, place: Place, call: int, step: int, folder: Path):
    set_params(folder, changes)
    done = run_stage(folder, stage, find_8_bits)
    assert done.code == 0, done.stderr
    whole = take_outputs(folder, stage)
    checkpoint = last_checkpoint(killed(folder, stage, place, call))
    assert checkpoint.name == f"step-{step}"
    if LORA.items() <= changes.items():
        assert not any("base_layer" in name for name in load_file(checkpoint / "model.safetensors"))
    if "train.optimizer" in changes:
        state = torch.load(checkpoint / "optimizer.pt", weights_only=True)["state"]
        assert torch.uint8 in {moments["__bnb_optimizer_quant_state__"]["state1"].dtype for moments in state.values()}
    resumes(folder, stage, whole)


def test_a_checkpoint_has_its_name_when_it_is_on_the_disk(tmp_path: Path, on_disk: list[str]):
    """And only then is the one before it removed, so that a power cut leaves one of them whole."""
    for name in ("step-2", "checkpoint-4"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "model.safetensors").write_text("weights")
    Checkpoints(tmp_path).publish(tmp_path / "checkpoint-4", 0.0)
    half, renamed = ["sync checkpoint-4", "sync checkpoint-4/model.safetensors"], "rename checkpoint-4 step-4"
    assert sorted(on_disk[:2]) == half and on_disk[2:] == [renamed, "sync .", "remove step-2"]


def test_a_damaged_checkpoint_is_named(folder: Path, monkeypatch: pytest.MonkeyPatch):
    """Each of its files in turn, cut in half or removed."""
    monkeypatch.setattr("pipeline.training.checkpoints.LEAST_SECONDS", 0)
    with monkeypatch.context() as patch, pytest.raises(ZeroDivisionError):
        patch.setattr("pipeline.training.quiet_star.train.save_trained", lambda *_: 1 / 0)
        run_here(folder, TRAIN)
    (scratch,) = scratches(folder)
    checkpoint = last_checkpoint(scratch)
    files = ["model.safetensors", "optimizer.pt", "scheduler.pt", "rng_state.pth", "trainer_state.json"]
    for name, gone in product(files, (False, True)):
        damaged = checkpoint / name
        saved = damaged.read_bytes()
        damaged.unlink() if gone else os.truncate(damaged, len(saved) // 2)
        with pytest.raises(UserError) as error:
            run_here(folder, TRAIN)
        told = f"the checkpoint {checkpoint.relative_to(folder)} cannot be read ("
        assert str(error.value).startswith(told) and str(error.value).endswith("): remove it to start afresh"), name
        assert str(error.value).count("cannot be read") == 1
        assert checkpoint.is_dir() and outputs(folder, TRAIN) == {}
        damaged.write_bytes(saved)


def test_a_want_of_memory_is_not_the_checkpoints_fault():
    """Nobody should remove hours of work because something else used the GPU."""
    for error in (torch.OutOfMemoryError("CUDA out of memory"), MemoryError(), UserError("another thing")):

        def load(trainer: None, checkpoint: str, error: BaseException = error) -> None:
            raise error

        with pytest.raises(type(error)) as raised:
            reads_checkpoint(load)(None, "step-3")
        assert raised.value is error


def test_weights_that_are_not_finite_are_no_checkpoint(folder: Path, monkeypatch: pytest.MonkeyPatch):
    """A step with a finite loss and gradient may be too large."""
    monkeypatch.setattr("pipeline.training.checkpoints.LEAST_SECONDS", 0)
    set_params(folder, {"train.learning_rate": 1e39, "train.warmup_steps": 0})
    told = "step 1: the weights are no longer finite; the last good checkpoint is none yet: lower the learning rate"
    with pytest.raises(UserError, match=told):
        run_here(folder, TRAIN)
    assert not list(folder.glob(".resume/train/quiet_star-1/*/step-*"))


def test_the_newest_checkpoint_is_the_last(tmp_path: Path):
    assert last_checkpoint(tmp_path) is None
    for step in (9, 10):
        (tmp_path / f"step-{step}").mkdir()
    assert last_checkpoint(tmp_path).name == "step-10"


def test_the_time_between_checkpoints_goes_by_what_one_takes_to_write(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    now, control = 0.0, SimpleNamespace(should_save=False)
    monkeypatch.setattr("time.monotonic", lambda: now)
    callback = Checkpoints(tmp_path)

    def saves(seconds: float) -> bool:
        nonlocal now
        now, control.should_save = seconds, False
        callback.on_step_end(SimpleNamespace(logging_steps=1), state, control)
        return control.should_save

    state = SimpleNamespace(global_step=1, max_steps=9)
    assert not saves(9) and saves(11)
    (tmp_path / "checkpoint-1").mkdir()
    now = 72
    callback.publish(tmp_path / "checkpoint-1", 71.0)
    assert not saves(72 + 49) and saves(72 + 51)


@pytest.mark.slow
@pytest.mark.parametrize("room, kept", [(20_000, None), (100_000, None), (300_000, "step-1")])
def test_a_disk_too_full_for_a_checkpoint(room: int, kept: str | None, folder: Path, project: Path):
    """For its weights, for its optimizer or, beside the first one, for the second. With more room it goes on."""
    with small_disk(folder, ".resume", room):
        done = run_stage(folder, TRAIN, often)
        (complaint,) = done.complaint
        told = "error: no checkpoint could be written to .resume/train/quiet_star-1/"
        assert done.code == 1 and complaint.startswith(told) and "(is the disk full?)" in complaint
        assert [path.name for path in folder.glob(".resume/train/quiet_star-1/*/*-*")] == ([kept] if kept else [])
        assert outputs(folder, TRAIN) == {}
        (folder / ".resume/filler").unlink()
        resumes(folder, TRAIN, outputs(project, TRAIN))


def test_other_parameters_or_inputs_start_afresh(folder: Path):
    """And leave the other's checkpoint, for a week. A run that went on from step 6 would end before it is killed."""
    config = folder / "models/base/generation_config.json"
    changes = [
        lambda: None,
        lambda: config.write_text("{}"),
        lambda: set_params(folder, {"train.learning_rate": 0.002}),
    ]
    for change in changes:
        change()
        assert run_stage(folder, TRAIN, partial(doomed, LOSS, 13)).code == -signal.SIGKILL
    assert [last_checkpoint(scratch).name for scratch in scratches(folder)] == ["step-6"] * 3
