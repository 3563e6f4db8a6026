"""The environment around a stage: what is odd there does no harm, and `python -m` refuses as the tests' forks do."""

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from tests.bad_input import spoil
from tests.bad_input.test_cases import contents
from tests.stage_runner import ENVIRONMENT, run_as_module, set_params

CLUSTER = {"RANK": "0", "WORLD_SIZE": "1", "LOCAL_RANK": "0"}  # as a job of one process has them
ODD = {"TMPDIR": "/nowhere", "OMP_NUM_THREADS": "many", "CUDA_VISIBLE_DEVICES": "none", "DVC_ROOT": "/nowhere"}


def test_odd_variables_change_nothing(finished: Path, tmp_path: Path):
    project = shutil.copytree(finished, tmp_path / "project")
    shutil.rmtree(project / "results/perplexity")
    command = [sys.executable, "-m", "stages.perplexity"]
    environment = {**os.environ, **ENVIRONMENT, **ODD}
    done = subprocess.run(command, cwd=project, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    name = "results/perplexity/metrics.json"
    assert (project / name).read_bytes() == (finished / name).read_bytes()


@pytest.mark.parametrize(
    "stage, folder, odd",
    [
        ("train", "models/quiet_star", CLUSTER | {"ACCELERATE_MIXED_PRECISION": "foo"}),
        ("train", "models/quiet_star", CLUSTER | {"WORLD_SIZE": "abc"}),
        ("report", "results/report", {"MPLBACKEND": "foo"}),
    ],
)
def test_what_a_cluster_or_a_notebook_says_changes_nothing(
    stage: str, folder: str, odd: dict[str, str], finished: Path, tmp_path: Path
):
    project = shutil.copytree(finished, tmp_path / "project")
    shutil.rmtree(project / folder)
    done = run_as_module(project, stage, odd)
    assert done.code == 0, done.stderr
    assert contents(project / folder) == contents(finished / folder)


def test_a_home_of_the_hub_that_cannot_be_written_to(finished: Path, tmp_path: Path):
    """In a process of its own, as `datasets` looks for it when it is imported."""
    project = shutil.copytree(finished, tmp_path / "project")
    spoil.hub()(project)
    before = contents(project)
    command = [sys.executable, "-m", "stages.corpus"]
    environment = {**os.environ, **ENVIRONMENT, "HF_HOME": "/proc/hub"}
    done = subprocess.run(command, cwd=project, env=environment, capture_output=True, text=True, check=False)
    told = "split train cannot be read: [Errno 2] No such file or directory: '/proc/hub'\n"
    assert (done.returncode, done.stderr) == (1, f"error: data set {project}/hub/books, {told}")
    assert contents(project) == before


def test_python_m_ends_with_the_same_line(finished: Path, tmp_path: Path):
    project = shutil.copytree(finished, tmp_path / "project")
    set_params(project, {"train.steps": 0})
    done = run_as_module(project, "corpus")
    told = "error: params.yaml: train.steps is 0, but must be at least 1 and at most 1000000"
    assert (done.code, done.complaint) == (1, [told])
