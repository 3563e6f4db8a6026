"""Two processes train as one does: the same gradients, losses and model; and one that dies is reported and resumed."""

import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable
from contextlib import suppress
from dataclasses import replace
from pathlib import Path

import pandas as pd
import psutil
import pytest
import torch
import yaml
from safetensors.torch import load_file

from pipeline.errors import UserError
from pipeline.training.checkpoints import last_checkpoint
from pipeline.training.launch import launch
from pipeline.training.quiet_star.train import write_trained
from tests.chaos.kills import LONG, checkpoint_often, wait_for
from tests.stage_runner import ENVIRONMENT, ROOT, TRAINED, copy_project, run_stages, set_params
from tests.stage_runner import TRAIN as STAGE
from tests.training.quiet_star.test_trainer import TRAIN
from tests.training.rank import ended, finish, free_port, start
from tests.training.test_checkpoints import outputs, scratches

SHIPPED = yaml.safe_load((ROOT / "launchers/node.yaml").read_text())["fsdp_config"]
SHARDED = {"ACCELERATE_USE_FSDP": "true"} | {
    name.upper(): str(value).lower() if isinstance(value, bool) else str(value) for name, value in SHIPPED.items()
}
# and what accelerate adds by itself
OFF = ("ACTIVATION_CHECKPOINTING", "ACTIVATION_CHECKPOINTING_OFFLOAD", "FORWARD_PREFETCH", "OFFLOAD_PARAMS")
SHARDED |= {f"FSDP_{name}": "false" for name in OFF} | {"FSDP_SHARDING_STRATEGY": "FULL_SHARD"}
SHARDED |= {f"FSDP_{name}": "true" for name in ("SYNC_MODULE_STATES", "USE_ORIG_PARAMS")}
SHARDED |= {"FSDP_MIN_NUM_PARAMS": "100000000"}
WAYS = {"whole models": {}, "sharded": SHARDED}
slow = pytest.mark.slow
both_ways = pytest.mark.parametrize("way", WAYS)


@pytest.fixture(scope="module")
def project(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny project that trains for 20 steps of two micro-batches, among them padded texts."""
    changes = {"train.steps": 20, "train.evaluation_steps": 7, "train.accumulation": 2, "train.batch_size": 2}
    folder = copy_project(tmp_path_factory.mktemp("distributed") / "project")
    set_params(folder, changes | {"base_model.scratch.layers": 2, "tokenize.span": 40, "train.clip": "together"})
    run_stages(folder, ("corpus", "tokenize", "base_model"))
    return folder


def trained(
    project: Path, folder: Path, processes: int, way: dict[str, str], changes: dict[str, object], stage: str = STAGE
) -> Path:
    shutil.copytree(project, folder)
    set_params(folder, changes)
    finish(folder, start(folder, processes, way, stage))
    return folder


@pytest.fixture(scope="module")
def one(project: Path, tmp_path_factory: pytest.TempPathFactory) -> Callable[..., Path]:
    """A run in one process with these changes, which tests share."""
    folder = tmp_path_factory.mktemp("one")

    def run(changes: dict[str, object], stage: str = STAGE) -> Path:
        known = folder / f"{stage} {changes}"
        return known if known.exists() else trained(project, known, 1, {}, changes, stage)

    return run


def steps_of(folder: Path) -> pd.DataFrame:
    (steps,) = (folder / "results/train").glob("*/steps.csv")
    return pd.read_csv(steps)


def model_of(folder: Path) -> dict[str, torch.Tensor]:
    (weights,) = (folder / "models/trained").glob("*/*.safetensors")
    return load_file(weights)


def farthest(one: dict[str, torch.Tensor], other: dict[str, torch.Tensor]) -> float:
    """The largest relative distance between two tensors of a name."""
    assert one.keys() == other.keys()
    return max(((one[name] - other[name]).norm() / one[name].norm().clamp(min=1e-12)).item() for name in one)


# what is made of rewards, which are small differences of losses and keep their rounding
DRIFT = {"reward": 1e-5, "policy_loss": 1e-3, "mixing_weight": 1e-4, "unresolved_rewards": 0.02, "value_part": 1e-5}
DRIFT |= {"positive_advantages": 0.02, "loss": 0.1, "grad_norm": 0.01}
# steps after which rounding, that AdamW turns into signs, shows in losses: from 18 or 19 on, by 3e-5, on one processor
CLOSE = 10
HEADS = ("mixing_head.", "objective.")  # small ones, that start near 0 and learn from rewards


def same_model(one: Path, other: Path) -> None:
    """The same losses over all steps, and the same weights at the end."""
    logs = [steps_of(folder) for folder in (other, one)]
    # shares of some hundred rewards: another rounding moves one or two across the bound
    counted = logs[0].columns.intersection(["unresolved_rewards", "positive_advantages"])
    pd.testing.assert_frame_equal(*(log[counted] for log in logs), rtol=0, atol=0.01)
    pd.testing.assert_frame_equal(*(log.drop(columns=counted) for log in logs), rtol=1e-5, atol=1e-6)
    assert farthest(model_of(one), model_of(other)) < 1e-4


def nearly_same_model(one: Path, other: Path) -> None:
    """The same losses over the first steps, what is made of rewards about so (`DRIFT`); at the end, about the same."""
    logs = [steps_of(folder) for folder in (other, one)]
    for name in logs[0].columns:
        tolerance = {"rtol": 0, "atol": DRIFT[name]} if name in DRIFT else {"rtol": 1e-5, "atol": 1e-6}
        pd.testing.assert_series_equal(*(log[name][:CLOSE] for log in logs), **tolerance)
    pd.testing.assert_series_equal(*(log["base_loss"] for log in logs), rtol=1e-3)
    weights = [model_of(folder) for folder in (one, other)]
    heads, others = (
        [{name: weight for name, weight in some.items() if name.startswith(HEADS) == small} for some in weights]
        for small in (True, False)
    )
    assert farthest(*others) < 0.02  # 2.4e-3 on a processor without AVX-512, of stages
    assert not heads[0] or farthest(*heads) < 0.5  # 0.14 on one with it


def same_gradients(one: Path, other: Path) -> None:
    found = [torch.load(folder / "gradients.pt", weights_only=True) for folder in (one, other)]
    assert farthest(*({name: g for name, g in some.items() if g is not None} for some in found)) < 1e-5


LEARNED = {"train.saved": "learned", "arms.methods": ["quiet_star"]}
MORE = [("train pause 1", {}), ("train no_thought 1", {})]
CLIPPED_APART = {"train.clip": "apart", "train.gradient_clip": 0.1}
STAGES = [
    {"thought_tokens": 4, "lookahead": 3, "learning_rate": 2e-3, "steps": 12},
    {"thought_tokens": 2, "lookahead": 1, "learning_rate": 1e-3, "steps": 8},
]
MORE += [(STAGE, {"arms.methods": ["quiet_star"], "train.stages": STAGES})]
MORE += [
    ("train value 1", {"train.rationales": 1}),
    ("train rlp 1", {"train.rlp.epochs": 2, "train.warmup_steps": 0}),
]
MORE += [(STAGE, LEARNED | {"train.adapt": "lora"}), (STAGE, LEARNED | {"train.adapt": "frozen"})]


@both_ways
@pytest.mark.parametrize("stage, changes", [(STAGE, {}), *(pytest.param(*some, marks=slow) for some in MORE)], ids=str)
def test_two_processes_train_as_one(stage: str, changes: dict, way: str, project: Path, one: Callable, tmp_path: Path):
    alone, two = one(changes, stage), trained(project, tmp_path / "two", 2, WAYS[way], changes, stage)
    same_gradients(alone, two)
    assert steps_of(alone)["base_loss"].nunique() == 20
    (nearly_same_model if way == "sharded" else same_model)(alone, two)
    assert outputs(two, stage).keys() == outputs(alone, stage).keys() and scratches(two) == []


@slow
def test_two_processes_clip_apart_as_one(project: Path, one: Callable, tmp_path: Path):
    same_model(one(CLIPPED_APART), trained(project, tmp_path / "two", 2, {}, CLIPPED_APART, STAGE))


@slow
@pytest.mark.parametrize("checkpointing", [False, True])
def test_two_processes_average_weights_and_leave_rlps_mixing_head_alone(
    checkpointing: bool, project: Path, one: Callable, tmp_path: Path
):
    """Though it has no gradient, weights decay, and processes wait for the gradients of all that learns."""
    changes = {"train.ema": 0.9, "train.weight_decay": 0.5, "train.checkpointing": checkpointing}
    stage = "train rlp 1"
    alone, two = one(changes, stage), trained(project, tmp_path / "two", 2, {}, changes, stage)
    same_model(alone, two)
    assert steps_of(two)["mixing_weight"].tolist() == [1.0] * 20 and steps_of(two)["ema_gain"].notna().all()
    for folder in (alone, two):
        assert model_of(folder)["mixing_head.4.weight"].sum() == 1


@slow
@both_ways
def test_two_processes_with_two_micro_batches_each(way: str, project: Path, one: Callable, tmp_path: Path):
    changes = {"train.accumulation": 4, "train.batch_size": 1}
    alone, two = one(changes), trained(project, tmp_path / "two", 2, WAYS[way], changes)
    same_gradients(alone, two)
    # with single texts, rounding has come to 2e-5 of a loss after 9 steps and, on one machine, 3e-4 after 18: by then
    # it decides which of two tokens a thought draws
    losses = [steps_of(folder)[["loss", "base_loss"]] for folder in (alone, two)]
    pd.testing.assert_frame_equal(*(some.head(10) for some in losses), rtol=1e-4)
    pd.testing.assert_frame_equal(*losses, rtol=1e-2)


@slow
def test_sharded_weights_in_bfloat16_with_checkpointing(project: Path, one: Callable, tmp_path: Path):
    changes = {"train.precision": "bfloat16", "train.checkpointing": True}
    two = trained(project, tmp_path / "two", 2, SHARDED, changes)
    expected, found = steps_of(one({}))["base_loss"], steps_of(two)["base_loss"]
    assert not found.equals(expected)
    pd.testing.assert_series_equal(found, expected, rtol=0.05)
    assert model_of(two)["start_embedding"].dtype == torch.float32


@slow
@both_ways
def test_two_processes_adapt_a_model_that_is_kept_in_bfloat16(way: str, project: Path, tmp_path: Path):
    """Adapters are merged into the weights before rounding: each weight changes by a matrix of their rank."""
    changes = {"train.adapt": "lora", "train.precision": "bfloat16", "train.lora.rank": 2}
    untied = shutil.copytree(project, tmp_path / "untied")
    set_params(untied, {"base_model.scratch.tied_embeddings": False})
    run_stages(untied, ("base_model",))
    alone, two = (trained(untied, tmp_path / f"{n}", n, WAYS[way] if n > 1 else {}, changes) for n in (1, 2))
    pd.testing.assert_series_equal(steps_of(two)["base_loss"], steps_of(alone)["base_loss"], rtol=0.05)
    model, base = model_of(two), load_file(two / "models/base/model.safetensors")
    assert {value.dtype for value in model.values()} == {torch.float32}
    change = {name: (model[f"base.{name}"] - value).double() for name, value in base.items()}
    ranks = {name: torch.linalg.matrix_rank(some, rtol=1e-4) for name, some in change.items() if "proj" in name}
    assert ranks and set(map(int, ranks.values())) == {2}
    assert "lm_head.weight" in change and not any(some.any() for name, some in change.items() if name not in ranks)


def killed(folder: Path, way: dict[str, str]) -> Path:
    """Kill two processes that train once there is a checkpoint. Returns the scratch folder."""
    ranks = start(folder, 2, way)
    with ended(ranks):
        wait_for(lambda: list(folder.glob(".resume/train/*/*/step-*")), lambda: ranks[0].is_alive())
    assert not (folder / TRAINED).exists()
    (scratch,) = scratches(folder)
    return scratch


@slow
@pytest.mark.parametrize(
    "way, changes",
    [
        ("whole models", {}),
        ("sharded", {}),
        ("sharded", {"train.adapt": "lora", "train.saved": "learned"}),
        ("whole models", {"train.adapt": "lora", "train.precision": "bfloat16"}),
        # a text is read for its entropies before the model's first pass
        ("sharded", {"train.thinking.where": "entropy", "train.thinking.share": 0.5}),
    ],
)
def test_two_processes_killed_resume_to_the_same_bytes(way: str, changes: dict, project: Path, tmp_path: Path):
    """With different numbers of threads, the second process uses the main one's folder all the same."""
    uneven = WAYS[way] | ({} if changes else {"UNEVEN": "yes"})
    whole = trained(project, tmp_path / "whole", 2, uneven, changes)
    folder = shutil.copytree(project, tmp_path / "killed")
    set_params(folder, changes)
    scratch = killed(folder, uneven)
    assert len(list(last_checkpoint(scratch).glob("rng_state_[01].pth"))) == 2
    if way == "whole models" and not changes:  # one process starts afresh, as rounding depends on the number
        alone = shutil.copytree(folder, tmp_path / "alone")
        (told,) = finish(alone, start(alone, 1, {}))
        assert "going on from" not in told and [one.name for one in scratches(alone)] == [scratch.name]  # for a week
    assert all("going on from" in told for told in finish(folder, start(folder, 2, uneven)))
    assert outputs(folder, STAGE) == outputs(whole, STAGE) and scratches(folder) == []


@pytest.mark.parametrize(
    "changes, told",
    [
        # its gradients are taken inside the forward pass, where FSDP2 has no layer's weights but the one it is in
        ({"positions": 4}, "train.positions is set, but FSDP-sharded weights need"),
        ({"ema": 0.9}, "train.ema is set, but FSDP-sharded weights are not averaged: make it null"),
        ({"clip": "apart"}, "train.clip is apart, which FSDP-sharded weights cannot do"),
        ({"optimizer": "adamw_8bit"}, "train.optimizer is adamw_8bit, which cannot change FSDP"),
    ],
)
def test_what_sharded_weights_do_not_allow_is_refused(changes: dict, told: str, monkeypatch: pytest.MonkeyPatch):
    launched = {"RANK": "0", "LOCAL_RANK": "0", "WORLD_SIZE": "2", "MASTER_ADDR": "one", "MASTER_PORT": "9"}
    for name, value in (SHARDED | launched).items():
        monkeypatch.setenv(name, value)
    with pytest.raises(UserError, match=told):
        write_trained(replace(TRAIN, **changes), "quiet_star", 1, *[Path("unread")] * 5)


CLUSTER = {"NNODES": "4", "NODE_RANK": "2", "MASTER_ADDR": "one", "MASTER_PORT": "9"}
OF_FOUR = {"nnodes": "4", "node_rank": "2", "rdzv_endpoint": "one:9"}


@pytest.mark.parametrize(
    "launcher, address, told",
    [("launchers/node.yaml", {}, {"nnodes": "1:1"}), ("launchers/nodes.yaml", CLUSTER, OF_FOUR)],
)
def test_what_accelerate_makes_of_a_shipped_launcher(launcher: str, address: dict, told: dict, monkeypatch):
    """What torchrun is told on a machine with 8 GPUs, and FSDP2 as the file has it."""
    started = []
    monkeypatch.setattr("torch.cuda.is_available", lambda: True)
    monkeypatch.setattr("torch.cuda.device_count", lambda: 8)
    monkeypatch.setattr("torch.distributed.run.run", lambda arguments: started.append((arguments, dict(os.environ))))
    monkeypatch.setattr("os.environ", os.environ.copy() | address)
    launch(launcher, "stages.train", lambda: None)
    ((arguments, environment),) = started
    told = told | {"nproc_per_node": "8", "module": "True", "training_script": "stages.train"}
    assert {name: str(getattr(arguments, name)) for name in told} == told
    about = {name: value for name, value in environment.items() if name.startswith(("FSDP_", "ACCELERATE_USE_FSDP"))}
    assert about == SHARDED


def launched(folder: Path, **variables: str) -> subprocess.Popen:
    command = [sys.executable, "-m", *f"stages.{STAGE}".split()]
    environment = {**os.environ, **ENVIRONMENT, **variables}
    with (folder / "log").open("w") as log:
        return subprocess.Popen(command, cwd=folder, env=environment, stdout=log, stderr=log)


def ranks_of(process: subprocess.Popen) -> dict[int, psutil.Process]:
    found = {}
    for child in psutil.Process(process.pid).children(recursive=True):
        with suppress(psutil.Error):  # ended since it was listed
            if "RANK" in child.environ():
                found[int(child.environ()["RANK"])] = child
    return found


@slow
def test_one_of_two_killed_ends_the_run_with_one_line_and_the_next_resumes(project: Path, tmp_path: Path):
    """By the shipped launcher, with a checkpoint at every row of the log."""
    whole, folder = (shutil.copytree(project, tmp_path / name) for name in ("whole", "killed"))
    for one in (whole, folder):
        set_params(one, {"train.launcher": "launchers/cpus.yaml", "train.steps": 60})
        checkpoint_often(one)
    assert launched(whole).wait(LONG) == 0, (whole / "log").read_text()[-3000:]
    process = launched(folder)
    wait_for(lambda: list(folder.glob(".resume/train/*/*/step-*")), lambda: process.poll() is None)
    ranks_of(process)[1].kill()
    assert process.wait(60) == 1  # seconds: within a minute
    told = [line for line in (folder / "log").read_text().splitlines() if line.startswith(("error:", "Traceback"))]
    assert told == ["error: process 1 was ended by signal 9: `dvc repro` resumes the run"]
    assert not list(folder.rglob("*.part*"))
    assert launched(folder).wait(LONG) == 0, (folder / "log").read_text()[-3000:]
    assert "going on from" in (folder / "log").read_text()
    assert outputs(folder, STAGE) == outputs(whole, STAGE) and scratches(folder) == []


@slow
def test_two_machines_train_as_one_process(project: Path, one: Callable, tmp_path: Path):
    """By launchers/nodes.yaml but for GPUs: a launcher a machine, which find each other, and one folder for both."""
    two = shutil.copytree(project, tmp_path / "two")
    nodes = yaml.safe_load((ROOT / "launchers/nodes.yaml").read_text()) | {"distributed_type": "MULTI_GPU"}
    (two / "nodes.yaml").write_text(yaml.safe_dump(nodes | {"use_cpu": True, "num_processes": 2}))
    set_params(two, {"train.launcher": "nodes.yaml"})
    address = {"NNODES": "2", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(free_port())}
    second, first = (launched(two, NODE_RANK=rank, **address) for rank in ("1", "0"))
    assert (first.wait(LONG), second.wait(LONG)) == (0, 0), (two / "log").read_text()[-3000:]
    same_model(one({}), two)
    assert scratches(two) == []


@slow
@pytest.mark.parametrize("ended_by, code", [(signal.SIGINT, 130), (signal.SIGKILL, -9)], ids=["Ctrl-C", "kill -9"])
def test_the_launchers_end_is_that_of_its_processes(ended_by: int, code: int, project: Path, tmp_path: Path):
    folder = shutil.copytree(project, tmp_path / "project")
    set_params(folder, {"train.launcher": "launchers/cpus.yaml", "train.steps": 5000})
    process = launched(folder, DVC_STAGE="train")
    wait_for(lambda: "training:" in (folder / "log").read_text(), lambda: process.poll() is None)
    left = list(ranks_of(process).values())
    assert len(left) == 2
    process.send_signal(ended_by)
    assert process.wait(LONG) == code
    assert psutil.wait_procs(left, timeout=60)[1] == []
    assert not {"Traceback", "error:"} & {line.split(" ")[0] for line in (folder / "log").read_text().splitlines()}
