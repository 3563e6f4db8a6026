"""Two processes train as one does: the same gradients, losses and model; and one that dies is told of and resumed."""

import os
import shutil
import signal
import socket
import subprocess
import sys
import time
from contextlib import suppress
from pathlib import Path

import pandas as pd
import psutil
import pytest
import torch
import yaml
from safetensors.torch import load_file

from pipeline.training.checkpoints import last_checkpoint
from pipeline.training.launch import launch
from tests.killing import checkpoint_often, kill_tree
from tests.stage_runner import ENVIRONMENT, ROOT, run_stages, set_params
from tests.training.test_checkpoints import outputs, scratches

FSDP = "ACCELERATE_USE_FSDP"
SHIPPED = yaml.safe_load((ROOT / "launchers/node.yaml").read_text())["fsdp_config"]
SHARDED = {FSDP: "true", "FSDP_VERSION": "2"} | {
    name.upper(): str(value).lower() if isinstance(value, bool) else str(value) for name, value in SHIPPED.items()
}
WAYS = pytest.mark.parametrize("way", [{}, SHARDED], ids=["whole models", "sharded"])
LONG = 600  # seconds: what takes as long hangs
METHODS = pytest.mark.parametrize("method", ["quiet_star", "pause", "no_thought"])


@pytest.fixture(scope="module")
def project(finished: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny project that trains for 20 steps of two passes, among them padded texts."""
    folder = shutil.copytree(finished, tmp_path_factory.mktemp("distributed") / "project")
    changes = {"train.steps": 20, "train.evaluation_steps": 7, "train.accumulation": 2, "train.batch_size": 2}
    set_params(folder, changes | {"base_model.scratch.layers": 2, "tokenize.span": 40})
    run_stages(folder, ("tokenize", "base_model"))
    return folder


def start(folder: Path, processes: int, way: dict[str, str]) -> subprocess.Popen:
    """`stages.train` in so many processes."""
    run = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", str(processes)]
    own = {"PROJECT": str(folder), "GRADIENTS": str(folder / "gradients.pt"), "PYTHONPATH": f"{folder}:{ROOT}"}
    environment = {**os.environ, **ENVIRONMENT, **way, **own, "ACCELERATE_USE_CPU": "true"}
    log = (folder / "log").open("w")
    return subprocess.Popen([*run, "-m", "tests.training.rank"], cwd=folder, env=environment, stdout=log, stderr=log)


def trained(project: Path, folder: Path, processes: int, way: dict[str, str], **changes: object) -> Path:
    shutil.copytree(project, folder)
    set_params(folder, {name.replace("__", "."): value for name, value in changes.items()})
    process = start(folder, processes, way)
    assert process.wait(LONG) == 0, (folder / "log").read_text()[-3000:]
    return folder


def far(one: torch.Tensor, other: torch.Tensor) -> float:
    return ((one - other).norm() / one.norm().clamp(min=1e-12)).item()


def steps_of(folder: Path) -> pd.DataFrame:
    return pd.read_csv(folder / "results/train/steps.csv")


@WAYS
@METHODS
def test_two_processes_train_as_one(method: str, way: dict[str, str], project: Path, tmp_path: Path):
    one = trained(project, tmp_path / "one", 1, {}, train__method=method)
    two = trained(project, tmp_path / "two", 2, way, train__method=method)
    expected, found = (torch.load(folder / "gradients.pt", weights_only=True) for folder in (one, two))
    assert expected.keys() == found.keys()
    assert max(far(expected[name], found[name]) for name in expected) < 1e-5
    steps = [steps_of(folder) for folder in (one, two)]
    assert len(steps[0]) == 20 and steps[0]["base_loss"].nunique() == 20
    pd.testing.assert_frame_equal(*steps, rtol=1e-5, atol=1e-6)
    expected, found = (load_file(folder / "models/quiet_star/model.safetensors") for folder in (one, two))
    assert expected.keys() == found.keys()
    assert max(far(expected[name], found[name]) for name in expected) < 1e-4
    names = [{path.name for path in (folder / "models/quiet_star").iterdir()} for folder in (one, two)]
    assert names[0] == names[1]


@WAYS
def test_two_processes_with_two_passes_each(way: dict[str, str], project: Path, tmp_path: Path):
    changes = {"train__accumulation": 4, "train__batch_size": 1}
    one, two = (trained(project, tmp_path / f"{n}", n, way if n > 1 else {}, **changes) for n in (1, 2))
    expected, found = (torch.load(folder / "gradients.pt", weights_only=True) for folder in (one, two))
    assert max(far(expected[name], found[name]) for name in expected) < 1e-5
    # with texts a pass alone, rounding has come to 1.5e-5 of a loss after 7 steps
    steps = [steps_of(folder)[["loss", "base_loss"]] for folder in (one, two)]
    pd.testing.assert_frame_equal(*steps, rtol=1e-4)


def test_sharded_weights_in_bfloat16_with_checkpointing(project: Path, tmp_path: Path):
    """As launchers/node.yaml is meant for."""
    changes = {"train__precision": "bfloat16", "train__checkpointing": True}
    one, two = trained(project, tmp_path / "one", 1, {}), trained(project, tmp_path / "two", 2, SHARDED, **changes)
    expected, found = steps_of(one)["base_loss"], steps_of(two)["base_loss"]
    assert not found.equals(expected)
    pd.testing.assert_series_equal(found, expected, rtol=0.05)
    assert load_file(two / "models/quiet_star/model.safetensors")["start_embedding"].dtype == torch.float32


@WAYS
@pytest.mark.parametrize("adapt", ["lora", "frozen"])
def test_two_processes_adapt_a_model_as_one_does(adapt: str, way: dict[str, str], project: Path, tmp_path: Path):
    changes = {"train__adapt": adapt, "train__saved": "learned", "baseline__methods": ["pause"]}
    one, two = (trained(project, tmp_path / f"{n}", n, way if n > 1 else {}, **changes) for n in (1, 2))
    pd.testing.assert_frame_equal(*(steps_of(folder) for folder in (one, two)), rtol=1e-5, atol=1e-6)
    expected, found = (load_file(folder / "models/quiet_star/learned.safetensors") for folder in (one, two))
    assert expected.keys() == found.keys()
    assert max(far(expected[name], found[name]) for name in expected) < 1e-4


@WAYS
def test_two_processes_adapt_a_model_that_is_kept_in_bfloat16(way: dict[str, str], project: Path, tmp_path: Path):
    """Its adapters are added to the weights as they were before they were rounded: what that changes has their rank."""
    changes = {"train__adapt": "lora", "train__precision": "bfloat16", "train__lora__rank": 2}
    untied = shutil.copytree(project, tmp_path / "untied")
    set_params(untied, {"base_model.scratch.tied_embeddings": False})
    run_stages(untied, ("base_model",))
    one, two = (trained(untied, tmp_path / f"{n}", n, way if n > 1 else {}, **changes) for n in (1, 2))
    expected, found = (steps_of(folder)["base_loss"] for folder in (one, two))
    pd.testing.assert_series_equal(found, expected, rtol=0.05)
    model, base = (load_file(two / f"models/{name}/model.safetensors") for name in ("quiet_star", "base"))
    assert {value.dtype for value in model.values()} == {torch.float32}
    change = {name: (model[f"base.{name}"] - value).double() for name, value in base.items()}
    ranks = {name: torch.linalg.matrix_rank(some, rtol=1e-4) for name, some in change.items() if "proj" in name}
    assert ranks and set(map(int, ranks.values())) == {2}
    assert "lm_head.weight" in change and not any(some.any() for name, some in change.items() if name not in ranks)


@WAYS
@pytest.mark.parametrize(
    "changes",
    [{}, {"train.adapt": "lora", "train.saved": "learned"}, {"train.adapt": "lora", "train.precision": "bfloat16"}],
    ids=["whole", "lora", "lora in bfloat16"],
)
def test_two_processes_killed_go_on_to_the_same_bytes(changes: dict, way: dict, project: Path, tmp_path: Path):
    changes = {"train.steps": 60} | changes
    whole = trained(project, tmp_path / "whole", 2, way, **changes)
    folder = shutil.copytree(project, tmp_path / "killed")
    set_params(folder, changes)
    shutil.rmtree(folder / "models/quiet_star")
    process = start(folder, 2, way)
    wait_for(lambda: list(folder.glob(".resume/train/*/*/step-*")), process)
    kill_all(process)
    assert not (folder / "models/quiet_star").exists()
    again = start(folder, 2, way)
    assert again.wait(LONG) == 0, (folder / "log").read_text()[-3000:]
    assert "going on from" in (folder / "log").read_text()
    assert outputs(folder, "train") == outputs(whole, "train")
    assert scratches(folder) == []


@WAYS
def test_processes_with_other_threads_share_the_main_ones_checkpoints(way: dict, project: Path, tmp_path: Path):
    uneven = way | {"UNEVEN": "yes"}
    whole = trained(project, tmp_path / "whole", 2, uneven, train__steps=60)
    folder = shutil.copytree(project, tmp_path / "killed")
    set_params(folder, {"train.steps": 60})
    process = start(folder, 2, uneven)
    wait_for(lambda: list(folder.glob(".resume/train/*/*/step-*")), process)
    kill_all(process)
    (scratch,) = scratches(folder)
    saved = {path.name for path in last_checkpoint(scratch).iterdir()}
    assert {"rng_state_0.pth", "rng_state_1.pth"} <= saved
    again = start(folder, 2, uneven)
    assert again.wait(LONG) == 0, (folder / "log").read_text()[-3000:]
    assert (folder / "log").read_text().count("going on from") == 2
    assert outputs(folder, "train") == outputs(whole, "train") and scratches(folder) == []


def test_another_number_of_processes_starts_afresh(project: Path, tmp_path: Path):
    """Its bytes would be neither run's: rounding depends on the number."""
    folder = shutil.copytree(project, tmp_path / "project")
    set_params(folder, {"train.steps": 60})
    process = start(folder, 2, {})
    wait_for(lambda: list(folder.glob(".resume/train/*/*/step-*")), process)
    kill_all(process)
    assert start(folder, 1, {}).wait(LONG) == 0, (folder / "log").read_text()[-3000:]
    assert "going on from" not in (folder / "log").read_text()
    assert len(scratches(folder)) == 1  # for a week


def test_a_clusters_variables_make_no_process_one_of_several(project: Path, tmp_path: Path):
    """Some give them to every command, and the others would be waited for."""
    alone, told = (shutil.copytree(project, tmp_path / name) for name in ("alone", "told"))
    run_stages(alone, ("train",))
    command, cluster = [sys.executable, "-m", "stages.train"], {"RANK": "1", "WORLD_SIZE": "4"}
    subprocess.run(command, cwd=told, env={**os.environ, **ENVIRONMENT, **cluster}, check=True, timeout=120)
    assert outputs(told, "train") == outputs(alone, "train")


def kill_all(process: subprocess.Popen) -> None:
    kill_tree(psutil.Process(process.pid))
    process.wait()


def wait_for(happened, process: subprocess.Popen, seconds: float = LONG) -> None:
    end = time.monotonic() + seconds
    while not happened():
        assert process.poll() is None and time.monotonic() < end
        time.sleep(0.05)


def ranks(process: subprocess.Popen) -> dict[int, psutil.Process]:
    """The processes that train."""
    found = {}
    for child in psutil.Process(process.pid).children(recursive=True):
        with suppress(psutil.Error):  # ended since it was listed
            if "RANK" in child.environ():
                found[int(child.environ()["RANK"])] = child
    return found


def launched(folder: Path, **variables: str) -> subprocess.Popen:
    """`stages.train`, as a user runs it."""
    command, environment = [sys.executable, "-m", "stages.train"], {**os.environ, **ENVIRONMENT, **variables}
    with (folder / "log").open("w") as log:
        return subprocess.Popen(command, cwd=folder, env=environment, stdout=log, stderr=log)


def test_one_of_two_killed_ends_the_run_with_one_line_and_the_next_goes_on(project: Path, tmp_path: Path):
    """By the shipped launcher, with a checkpoint at every row of the log."""
    whole, folder = (shutil.copytree(project, tmp_path / name) for name in ("whole", "killed"))
    for one in (whole, folder):
        set_params(one, {"train.launcher": "launchers/cpus.yaml", "train.steps": 200})
        checkpoint_often(one)
    shutil.rmtree(folder / "models/quiet_star")
    assert launched(whole).wait(LONG) == 0, (whole / "log").read_text()[-3000:]
    process = launched(folder)
    wait_for(lambda: list(folder.glob(".resume/train/*/*/step-*")), process)
    ranks(process)[1].kill()
    assert process.wait(60) == 1  # seconds: within a minute
    told = [line for line in (folder / "log").read_text().splitlines() if line.startswith(("error:", "Traceback"))]
    assert told == ["error: process 1 was ended by signal 9: `dvc repro` goes on from the last checkpoint"]
    assert not (folder / "models/quiet_star.part").exists()
    assert launched(folder).wait(LONG) == 0, (folder / "log").read_text()[-3000:]
    assert "going on from" in (folder / "log").read_text()
    assert outputs(folder, "train") == outputs(whole, "train") and scratches(folder) == []


def test_two_machines_train_as_one_process(project: Path, tmp_path: Path):
    """By launchers/nodes.yaml but for GPUs: a launcher a machine, which find each other, and one folder for both."""
    one, two = (shutil.copytree(project, tmp_path / name) for name in ("one", "two"))
    nodes = yaml.safe_load((ROOT / "launchers/nodes.yaml").read_text()) | {"distributed_type": "MULTI_GPU"}
    (two / "nodes.yaml").write_text(yaml.safe_dump(nodes | {"use_cpu": True, "num_processes": 2}))
    set_params(two, {"train.launcher": "nodes.yaml"})
    shutil.rmtree(two / "models/quiet_star")
    run_stages(one, ("train",))
    address = {"NNODES": "2", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(free_port())}
    second, first = (launched(two, NODE_RANK=rank, **address) for rank in ("1", "0"))
    assert (first.wait(LONG), second.wait(LONG)) == (0, 0), (two / "log").read_text()[-3000:]
    pd.testing.assert_frame_equal(*map(steps_of, (one, two)), rtol=1e-5, atol=1e-6)
    expected, found = (load_file(folder / "models/quiet_star/model.safetensors") for folder in (one, two))
    assert max(far(expected[name], found[name]) for name in expected) < 1e-4
    assert scratches(two) == []


def free_port() -> int:
    with socket.socket() as some:
        some.bind(("127.0.0.1", 0))
        return some.getsockname()[1]


CLUSTER = {"NNODES": "4", "NODE_RANK": "2", "MASTER_ADDR": "one", "MASTER_PORT": "9"}


@pytest.mark.parametrize(
    "launcher, address, told",
    [
        ("launchers/node.yaml", {}, {"nnodes": "1:1", "nproc_per_node": "8"}),
        (
            "launchers/nodes.yaml",
            CLUSTER,
            {"nnodes": "4", "node_rank": "2", "rdzv_endpoint": "one:9", "nproc_per_node": "8"},
        ),
    ],
)
def test_what_accelerate_makes_of_a_shipped_launcher(
    launcher: str, address: dict, told: dict, monkeypatch: pytest.MonkeyPatch
):
    """What torchrun is told on a machine with 8 GPUs, and FSDP2 as the file has it."""
    started = []
    monkeypatch.setattr("torch.cuda.is_available", lambda: True)
    monkeypatch.setattr("torch.cuda.device_count", lambda: 8)
    monkeypatch.setattr("torch.distributed.run.run", lambda arguments: started.append((arguments, dict(os.environ))))
    monkeypatch.setattr("os.environ", os.environ.copy() | address)
    launch(launcher, "stages.train", lambda: None)
    ((arguments, environment),) = started
    told = told | {"module": "True", "training_script": "stages.train"}
    assert {name: str(getattr(arguments, name)) for name in told} == told
    assert SHARDED.items() <= environment.items()


def test_ctrl_c_ends_all_without_a_word(project: Path, tmp_path: Path):
    folder = shutil.copytree(project, tmp_path / "project")
    set_params(folder, {"train.launcher": "launchers/cpus.yaml", "train.steps": 5000})
    process = launched(folder)
    wait_for(lambda: "it/s" in (folder / "log").read_text() and len(ranks(process)) == 2, process)
    left = list(ranks(process).values())
    process.send_signal(signal.SIGINT)
    assert process.wait(LONG) == 130
    assert psutil.wait_procs(left, timeout=60)[1] == []
    assert not {"Traceback", "error:"} & {line.split(" ")[0] for line in (folder / "log").read_text().splitlines()}


def test_killing_the_launcher_ends_the_processes(project: Path, tmp_path: Path):
    folder = shutil.copytree(project, tmp_path / "project")
    set_params(folder, {"train.launcher": "launchers/cpus.yaml", "train.steps": 5000})
    process = launched(folder, DVC_STAGE="train")
    wait_for(lambda: "it/s" in (folder / "log").read_text() and len(ranks(process)) == 2, process)
    left = list(ranks(process).values())
    process.send_signal(signal.SIGKILL)
    _, alive = psutil.wait_procs(left, timeout=30)
    assert alive == []


@pytest.mark.parametrize(
    "changes, told",
    [
        # their gradients are taken inside the forward pass, where FSDP2 has no layer's weights but the one it is in
        ({"train.positions": 4}, "train.positions is set, but weights that are shared out"),
        (
            {"train.optimizer": "adamw_8bit"},
            "train.optimizer is adamw_8bit, which cannot change weights",
        ),
    ],
)
def test_what_sharded_weights_do_not_allow_is_refused(changes: dict, told: str, project: Path, tmp_path: Path):
    folder = shutil.copytree(project, tmp_path / "project")
    set_params(folder, changes)
    assert start(folder, 1, SHARDED).wait(LONG) == 1
    assert f"error: {told}" in (folder / "log").read_text()
