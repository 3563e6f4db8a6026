"""Training that is killed, wherever that is, ends with the bytes of a run that was not."""

import importlib
import os
import shutil
import signal
from collections.abc import Callable
from functools import partial
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from safetensors.torch import load_file

from pipeline.training.checkpoints import Checkpoints, last_checkpoint
from tests.bad_input.spoil import small_disk
from tests.eight_bits import find_8_bits, needs_8_bits
from tests.stage_runner import run_stage, set_params

OUTS = {
    "base_model": ("models/base", "results/base_model"),
    "train": ("models/quiet_star", "results/train"),
    "baseline pause 1": ("models/baseline/pause-1", "results/train/pause-1"),
    "baseline no_thought 1": ("models/baseline/no_thought-1", "results/train/no_thought-1"),
}
LENGTHS = {"base_model.scratch.steps": 200, "train.steps": 8, "train.evaluation_steps": 3, "train.accumulation": 2}
# where a run is killed: which call of which function
LOSS = ("pipeline.training.quiet_star.trainer", "QuietStarTrainer.compute_loss")
SYNC = ("pipeline.training.checkpoints", "sync")
PUBLISH = ("pipeline.training.checkpoints", "Checkpoints._publish")
SAVE = ("transformers", "Trainer._save_optimizer_and_scheduler")
TIDY = ("pipeline.training.checkpoints", "shutil.rmtree")
LAST = ("pipeline.training.quiet_star.train", "write_json")
MOMENTS = {
    "in a step": (LOSS, 8),
    "between two passes of a step": (LOSS, 11),
    "while the first checkpoint is written": (SAVE, 1),
    "while a later checkpoint is written": (SAVE, 3),
    "before a checkpoint is whole": (PUBLISH, 4),
    "before its name is on the disk": (SYNC, 4),
    "before the one before it is gone": (TIDY, 2),
    "while the outputs are written": (LAST, 1),
}


def often() -> None:
    """A checkpoint at every step that is logged."""
    module = importlib.import_module("pipeline.training.checkpoints")
    module.LEAST_SECONDS = module.LEAST_SHARE = 0


def doomed(module: str, name: str, call: int) -> None:
    """Kill this process, as `kill -9` does, at this ``call`` of a function."""
    often()
    *path, last = name.split(".")
    owner = importlib.import_module(module)
    for part in path:
        owner = getattr(owner, part)
    function, left = getattr(owner, last), call

    def counted(*args: object, **kwargs: object) -> object:
        nonlocal left
        left -= 1
        if not left:
            os.kill(os.getpid(), signal.SIGKILL)
        return function(*args, **kwargs)

    setattr(owner, last, counted)


def with_8_bits(then: Callable[[], None]) -> None:
    """Call ``then`` in a process that has bitsandbytes."""
    find_8_bits()
    then()


@pytest.fixture(scope="module")
def project(finished: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A finished run with enough steps to be killed in."""
    folder = shutil.copytree(finished, tmp_path_factory.mktemp("long") / "project")
    set_params(folder, LENGTHS)
    for stage in OUTS:
        done = run_stage(folder, stage)
        assert done.code == 0, done.stderr
    return folder


@pytest.fixture
def copy(project: Path, tmp_path: Path) -> Callable[[str], Path]:
    """A copy of the run without the outputs of a stage, as DVC leaves it before it runs one."""

    def make(stage: str) -> Path:
        folder = shutil.copytree(project, tmp_path / "project")
        for file in outputs(folder, stage):
            (folder / file).unlink()
        return folder

    return make


def outputs(folder: Path, stage: str) -> dict[str, bytes]:
    """All files of the stage's outputs but the one with times in it."""
    files = [f for out in OUTS[stage] for f in sorted((folder / out).glob("*")) if f.is_file()]
    return {str(f.relative_to(folder)): f.read_bytes() for f in files if f.name != "speed.csv"}


def scratches(folder: Path) -> list[Path]:
    return [lock.parent for lock in (folder / ".resume").rglob("lock")]


def ends_alike(folder: Path, stage: str, project: Path) -> None:
    done = run_stage(folder, stage)
    assert done.code == 0, done.stderr
    assert outputs(folder, stage) == outputs(project, stage)
    assert scratches(folder) == []


@pytest.mark.parametrize("moment", MOMENTS)
def test_killed_it_goes_on_to_the_same_bytes(moment: str, copy: Callable, project: Path):
    folder = copy("train")
    place, call = MOMENTS[moment]
    assert run_stage(folder, "train", partial(doomed, *place, call)).code == -signal.SIGKILL
    (scratch,) = scratches(folder)
    assert (last_checkpoint(scratch) is None) == (moment == "while the first checkpoint is written")
    ends_alike(folder, "train", project)


@pytest.mark.parametrize("stage", ["baseline pause 1", "baseline no_thought 1"])
def test_baselines_go_on_too(stage: str, copy: Callable, project: Path):
    folder = copy(stage)
    assert run_stage(folder, stage, partial(doomed, *LOSS, 11)).code == -signal.SIGKILL
    ends_alike(folder, stage, project)


@pytest.mark.parametrize("call", [60, 120])
def test_pretraining_goes_on_too(call: int, copy: Callable, project: Path):
    """Killed after one checkpoint, at step 50, and in a later epoch."""
    folder = copy("base_model")
    place = ("pipeline.training.pretrain", "PretrainTrainer.compute_loss")
    assert run_stage(folder, "base_model", partial(doomed, *place, call)).code == -signal.SIGKILL
    (scratch,) = scratches(folder)
    assert last_checkpoint(scratch).name == f"step-{call // 50 * 50}"
    ends_alike(folder, "base_model", project)


@pytest.mark.parametrize("precision", ["float32", "bfloat16"])
def test_adapters_go_on_too_and_their_checkpoints_hold_no_base(precision: str, copy: Callable, project: Path):
    folder = copy("train")
    set_params(folder, {"train.adapt": "lora", "train.saved": "learned", "train.precision": precision})
    assert run_stage(folder, "train").code == 0
    whole = outputs(folder, "train")
    assert run_stage(folder, "train", partial(doomed, *LOSS, 11)).code == -signal.SIGKILL
    (scratch,) = scratches(folder)
    assert {name for name in load_file(last_checkpoint(scratch) / "model.safetensors") if "base_layer" in name} == set()
    done = run_stage(folder, "train")
    assert done.code == 0 and "going on from" in done.stderr
    assert outputs(folder, "train") == whole


@needs_8_bits
def test_moments_in_8_bits_go_on_too(copy: Callable, project: Path):
    folder = copy("train")
    set_params(folder, {"train.optimizer": "adamw_8bit"})
    done = run_stage(folder, "train", find_8_bits)
    assert done.code == 0, done.stderr
    whole = outputs(folder, "train")
    assert whole != outputs(project, "train")
    assert run_stage(folder, "train", partial(with_8_bits, partial(doomed, *LOSS, 11))).code == -signal.SIGKILL
    (scratch,) = scratches(folder)
    state = torch.load(last_checkpoint(scratch) / "optimizer.pt", weights_only=True)["state"]
    assert torch.uint8 in {moments["__bnb_optimizer_quant_state__"]["state1"].dtype for moments in state.values()}
    done = run_stage(folder, "train", find_8_bits)
    assert done.code == 0 and "going on from" in done.stderr
    assert outputs(folder, "train") == whole


def test_killed_again_and_again(copy: Callable, project: Path):
    folder = copy("train")
    for _ in range(3):
        assert run_stage(folder, "train", partial(doomed, *LOSS, 5)).code == -signal.SIGKILL
    (scratch,) = scratches(folder)
    assert last_checkpoint(scratch).name == "step-6"
    ends_alike(folder, "train", project)


def test_one_checkpoint_is_kept_and_it_is_on_the_disk(copy: Callable):
    folder = copy("train")
    run_stage(folder, "train", partial(doomed, *LOSS, 13))
    (scratch,) = scratches(folder)
    names = sorted(path.name for path in scratch.iterdir())
    assert names == ["lock", "rows.jsonl", "step-6"]
    state = torch.load(scratch / "step-6/optimizer.pt", weights_only=True)
    assert state["state"] and (scratch / "step-6/model.safetensors").is_file()
    assert (scratch / "step-6/rng_state.pth").is_file() and (scratch / "step-6/scheduler.pt").is_file()


def test_a_checkpoint_has_its_name_when_it_is_on_the_disk(tmp_path: Path, on_disk: list[str]):
    """And only then is the one before it gone, so that a power cut leaves one of them whole."""
    for name in ("step-2", "checkpoint-4"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "model.safetensors").write_text("weights")
    Checkpoints(tmp_path)._publish(tmp_path / "checkpoint-4")
    half, renamed = ["sync checkpoint-4", "sync checkpoint-4/model.safetensors"], "rename checkpoint-4 step-4"
    assert sorted(on_disk[:2]) == half and on_disk[2:] == [renamed, "sync .", "remove step-2"]


@pytest.mark.parametrize(
    "file", ["model.safetensors", "optimizer.pt", "scheduler.pt", "rng_state.pth", "trainer_state.json"]
)
@pytest.mark.parametrize("gone", [False, True], ids=["half of it", "nothing"])
def test_a_damaged_checkpoint_is_named(file: str, gone: bool, copy: Callable):
    folder = copy("train")
    run_stage(folder, "train", partial(doomed, *LOSS, 13))
    (scratch,) = scratches(folder)
    damaged = scratch / "step-6" / file
    damaged.unlink() if gone else os.truncate(damaged, damaged.stat().st_size // 2)
    done = run_stage(folder, "train")
    (complaint,) = done.complaint
    told = f"error: the checkpoint {damaged.parent.relative_to(folder)} cannot be read ("
    assert done.code == 1 and complaint.startswith(told) and complaint.endswith("): remove it to start afresh")
    assert damaged.parent.is_dir() and outputs(folder, "train") == {}


def test_weights_that_are_not_finite_are_no_checkpoint(copy: Callable):
    """A step with a finite loss and gradient may be too large; no run can go on from what it leaves."""
    folder = copy("train")
    set_params(folder, {"train.learning_rate": 1e39, "train.warmup_steps": 0})
    done = run_stage(folder, "train", often)
    told = (
        "error: step 1: the weights are no longer finite; the last good checkpoint is none yet: lower the learning rate"
    )
    assert done.code == 1 and done.complaint == [told]
    assert not list(folder.glob(".resume/train/quiet_star/*/step-*"))


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
    now = 71
    callback.begin()
    now = 72
    (tmp_path / "checkpoint-1").mkdir()
    callback.on_save(None, state, control)
    assert not saves(72 + 49) and saves(72 + 51)


@pytest.mark.parametrize("room, kept", [(20_000, None), (100_000, None), (300_000, "step-1")])
def test_a_disk_too_full_for_a_checkpoint(room: int, kept: str | None, copy: Callable, project: Path):
    """For its weights, for its optimizer or, beside the first one, for the second. With more room it goes on."""
    folder = copy("train")
    with small_disk(folder, ".resume", room):
        done = run_stage(folder, "train", often)
        (complaint,) = done.complaint
        told = "error: no checkpoint could be written to .resume/train/quiet_star/"
        assert done.code == 1 and complaint.startswith(told) and "(is the disk full?)" in complaint
        assert [path.name for path in folder.glob(".resume/train/quiet_star/*/*-*")] == ([kept] if kept else [])
        assert outputs(folder, "train") == {}
        (folder / ".resume/filler").unlink()
        ends_alike(folder, "train", project)


def test_other_parameters_start_afresh_and_leave_the_others_checkpoint(copy: Callable, project: Path):
    folder = copy("train")
    run_stage(folder, "train", partial(doomed, *LOSS, 13))
    set_params(folder, {"train.learning_rate": 0.002})
    done = run_stage(folder, "train")
    assert done.code == 0 and "going on from" not in done.stderr
    assert outputs(folder, "train") != outputs(project, "train")
    (other,) = scratches(folder)  # for a week
    assert last_checkpoint(other).name == "step-6"


def test_other_inputs_start_afresh(copy: Callable):
    folder = copy("train")
    run_stage(folder, "train", partial(doomed, *LOSS, 13))
    readme = folder / "models/base/generation_config.json"
    readme.write_text(readme.read_text() + "\n")
    done = run_stage(folder, "train", partial(doomed, *LOSS, 1))
    assert "going on from" not in done.stderr and len(scratches(folder)) == 2


def test_it_says_that_it_goes_on(copy: Callable):
    folder = copy("train")
    run_stage(folder, "train", partial(doomed, *LOSS, 13))
    assert "going on from .resume/train/quiet_star/" in run_stage(folder, "train").stderr
