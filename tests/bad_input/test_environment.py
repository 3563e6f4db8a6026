"""The environment of a stage that `python -m` runs: odd variables do no harm, a mistake ends it with one line."""

import shutil
from pathlib import Path

import pytest

from tests.bad_input import spoil
from tests.bad_input.test_cases import contents
from tests.stage_runner import run_as_module

CLUSTER = {"RANK": "0", "WORLD_SIZE": "1", "LOCAL_RANK": "0"}  # as a job of one process has them
ODD = {"TMPDIR": "/nowhere", "OMP_NUM_THREADS": "many", "CUDA_VISIBLE_DEVICES": "none", "DVC_ROOT": "/nowhere"}


# `datasets` looks for a folder to write to when it is imported, so this needs a process of its own
HOME = "data set PROJECT/hub/books, split train cannot be read: [Errno 2] No such file or directory: '/proc/hub'"


@pytest.mark.parametrize(
    "spoiled, variables, told",
    [
        (spoil.params(train__steps=0), {}, "params.yaml: train.steps is 0, but must be at least 1 and at most 1000000"),
        pytest.param(spoil.hub(), {"HF_HOME": "/proc/hub"}, HOME, marks=pytest.mark.slow),
    ],
)
def test_a_mistake_ends_with_code_1_and_one_line(
    spoiled: spoil.Spoil, variables: dict[str, str], told: str, finished: Path, tmp_path: Path
):
    project = shutil.copytree(finished, tmp_path / "project")
    spoiled(project)
    before = contents(project)
    done = run_as_module(project, "corpus", variables)
    assert (done.code, done.stderr) == (1, f"error: {told.replace('PROJECT', str(project))}\n")
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
