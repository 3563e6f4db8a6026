"""The environment of a stage that `python -m` runs: odd variables do no harm, a mistake ends it with one line."""

import shutil
from pathlib import Path

import pytest

from tests.bad_input import spoil
from tests.bad_input.test_cases import contents
from tests.stage_runner import run_as_module, set_params

CLUSTER = {"RANK": "0", "WORLD_SIZE": "1", "LOCAL_RANK": "0"}  # as a job of one process has them
ODD = {"TMPDIR": "/nowhere", "OMP_NUM_THREADS": "many", "CUDA_VISIBLE_DEVICES": "none", "DVC_ROOT": "/nowhere"}


def test_a_mistake_ends_with_code_1_and_one_line(finished: Path, tmp_path: Path):
    project = shutil.copytree(finished, tmp_path / "project")
    set_params(project, {"train.steps": 0})
    before = contents(project)
    done = run_as_module(project, "corpus")
    told = "error: params.yaml: train.steps is 0, but must be at least 1 and at most 1000000\n"
    assert (done.code, done.stderr) == (1, told)
    assert contents(project) == before


@pytest.mark.slow
@pytest.mark.parametrize(
    "stage, folder, odd",
    [
        ("perplexity", "results/perplexity", ODD),
        ("train", "models/quiet_star", CLUSTER | {"ACCELERATE_MIXED_PRECISION": "foo"}),
        ("train", "models/quiet_star", CLUSTER | {"WORLD_SIZE": "abc"}),
        ("report", "results/report", {"MPLBACKEND": "foo"}),
    ],
)
def test_odd_variables_change_nothing(stage: str, folder: str, odd: dict[str, str], finished: Path, tmp_path: Path):
    project = shutil.copytree(finished, tmp_path / "project")
    shutil.rmtree(project / folder)
    done = run_as_module(project, stage, odd)
    assert done.code == 0, done.stderr
    assert contents(project / folder) == contents(finished / folder)


@pytest.mark.slow
def test_a_home_of_the_hub_that_cannot_be_written_to(finished: Path, tmp_path: Path):
    """In a process of its own, as `datasets` looks for it when it is imported."""
    project = shutil.copytree(finished, tmp_path / "project")
    spoil.hub()(project)
    before = contents(project)
    done = run_as_module(project, "corpus", {"HF_HOME": "/proc/hub"})
    told = "split train cannot be read: [Errno 2] No such file or directory: '/proc/hub'\n"
    assert (done.code, done.stderr) == (1, f"error: data set {project}/hub/books, {told}")
    assert contents(project) == before
