"""What a run tells while it trains: tokens a second, the share of a device's peak; trackers change nothing."""

import re
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import pandas as pd
import pytest
import torch
from torch import Tensor
from transformers import TrainerCallback
from transformers.integrations import integration_utils

from pipeline.errors import UserError
from pipeline.models.shape import shape_of
from pipeline.models.work import Step, pass_flops
from pipeline.thought.methods import PAUSE
from pipeline.training import trainer
from pipeline.training.quiet_star import train
from pipeline.training.quiet_star.speed import speed_of
from pipeline.training.quiet_star.train import write_trained
from pipeline.training.quiet_star.trainer import QuietStarTrainer
from pipeline.training.trainer import Speed
from tests.local_hub import model_folder
from tests.thought.tiny import LLAMA, quiet_star
from tests.training.quiet_star.test_trainer import TRAIN, some_spans

HALF = replace(TRAIN, accumulation=3, precision="bfloat16", device="auto")


def test_a_row_of_the_log_says_how_fast_it_was():
    assert Speed(160.0).of(2.0) == {"tokens_per_second": 320.0}
    assert Speed(160.0, 0.25).of(2.0) == {"tokens_per_second": 320.0, "mfu": 0.5}


@pytest.mark.parametrize(
    ("device", "peak"), [("NVIDIA H100 80GB HBM3", 9.89e14), ("NVIDIA L40S", 3.62e14), ("NVIDIA L4", 1.21e14)]
)
def test_the_share_of_a_gpus_peak(device: str, peak: float, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda: device)
    model = quiet_star(LLAMA)
    sizes = (TRAIN.rationales, TRAIN.thought_tokens, TRAIN.lookahead)
    work = pass_flops(shape_of(model.base), Step(12, 10, *sizes))
    assert speed_of(HALF, model, 10.0) == Speed(120.0, pytest.approx(work / peak))
    unknown = [replace(HALF, precision="float32"), replace(HALF, device="cpu")]
    unknown.append(replace(HALF, thinking=replace(HALF.thinking, where="marker")))
    assert [speed_of(settings, model, 10.0) for settings in unknown] == [Speed(120.0)] * 3
    assert speed_of(HALF, quiet_star(LLAMA, method=PAUSE), 10.0) == Speed(120.0)
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda: "another")
    assert speed_of(HALF, model, 10.0) == Speed(120.0)


@pytest.fixture
def write(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., dict[str, bytes]]:
    monkeypatch.setenv("TENSORBOARD_LOGGING_DIR", "unset")  # so that it is put back
    monkeypatch.delenv("TENSORBOARD_LOGGING_DIR")
    model_folder(tmp_path / "base", "llama", num_attention_heads=2, intermediate_size=24)
    for name in ("train", "heldout"):
        some_spans(tmp_path / f"{name}.arrow")

    def call(trackers: list[str]) -> dict[str, bytes]:
        settings = replace(TRAIN, trackers=trackers)
        write_trained(settings, "pause", 1, *map(Path, ("base", "", "probe", "out", "results/train/out")))
        written = [path for folder in ("out", "results/train") for path in Path(folder).rglob("*") if path.is_file()]
        return {str(path): path.read_bytes() for path in written}

    return call


def test_a_rows_speed_is_of_its_steps_alone(write: Callable, monkeypatch: pytest.MonkeyPatch):
    """Not of setting up, evaluation and checkpoints: here a step takes a second, and evaluation a thousand."""
    clock, step, evaluate = [0.0], QuietStarTrainer.training_step, QuietStarTrainer.evaluate

    def slow_step(self, *args: object) -> Tensor:
        clock[0] += 1
        return step(self, *args)

    def slow_evaluation(self, *args: object, **settings: object) -> dict[str, float]:
        clock[0] += 1000
        return evaluate(self, *args, **settings)

    monkeypatch.setattr(trainer, "time", SimpleNamespace(perf_counter=lambda: clock[0], monotonic=time.monotonic))
    monkeypatch.setattr(QuietStarTrainer, "training_step", slow_step)
    monkeypatch.setattr(QuietStarTrainer, "evaluate", slow_evaluation)
    write([])
    assert clock[0] > 1000
    speeds = pd.read_csv("results/speed/out.csv")["tokens_per_second"]
    assert len(speeds) == TRAIN.steps and speeds.nunique() == 1 and speeds[0] > 1


def test_a_tracker_gets_every_row_and_changes_no_byte(write: Callable, monkeypatch: pytest.MonkeyPatch):
    rows = []

    class Tracker(TrainerCallback):
        def on_log(self, args, state, control, logs=None, **kwargs):
            rows.append((args.run_name, state.global_step, *logs))

    monkeypatch.setitem(integration_utils.INTEGRATION_TO_CALLBACK, "wandb", Tracker)
    monkeypatch.setattr(train, "import_module", lambda name: name)
    about, keys = [], train.checkpoints
    monkeypatch.setattr(
        train, "checkpoints", lambda stage, params, *rest: about.append(params) or keys(stage, params, *rest)
    )
    assert write([]) == write(["wandb"]) and about[0] == about[1]
    assert {row[0] for row in rows} == {"pause-1"} and {row[1] for row in rows} == {0, 1, 2}
    steps = [row for row in rows if "base_loss" in row]
    assert len(steps) == TRAIN.steps and all("tokens_per_second" in row for row in steps)


@pytest.mark.parametrize(
    ("error", "complaint"),
    [
        (ModuleNotFoundError(name="mlflow"), "needs mlflow: pip install mlflow"),
        (ModuleNotFoundError(name="httpx"), "needs httpx: pip install httpx"),
        (ImportError("cannot import name 'service'"), "cannot be imported: cannot import name 'service'"),
    ],
)
def test_a_tracker_that_cannot_be_imported(write: Callable, monkeypatch: pytest.MonkeyPatch, error, complaint: str):
    def fail(name: str) -> None:
        raise error

    monkeypatch.setattr(train, "import_module", fail)
    with pytest.raises(UserError, match=f"^train.trackers names mlflow, which {complaint}$"):
        write(["mlflow"])


def test_a_tracker_that_does_not_start(write: Callable, monkeypatch: pytest.MonkeyPatch):
    class Tracker(TrainerCallback):
        def setup(self, args, state, model):
            assert args.run_name == "pause-1" and state.is_world_process_zero and model.config.method == "pause"
            raise RuntimeError("No API key configured. Use `wandb login` to log in.\nMore lines.")

    monkeypatch.setitem(integration_utils.INTEGRATION_TO_CALLBACK, "wandb", Tracker)
    monkeypatch.setattr(train, "import_module", lambda name: name)
    complaint = "train.trackers names wandb, which does not start: No API key configured. Use `wandb login` to log in."
    with pytest.raises(UserError, match=f"^{re.escape(complaint)}$"):
        write(["wandb"])
    assert not Path("out").exists() and not Path("results/train").exists()
