"""A stage of a spoiled project ends with one line and leaves every file as it was, under DVC as well."""

import os
import re
import shutil
import subprocess
from functools import partial
from pathlib import Path
from unittest import mock

import pytest

from pipeline.errors import UserError
from tests.bad_input import spoil
from tests.bad_input.spoil import ROWS, Spoil, params
from tests.chaos.kills import call
from tests.stage_runner import EVALUATE, PERPLEXITY, TRAIN, TRAINED, make_repository, run_as_module, run_here, run_stage


@pytest.fixture
def project(finished: Path, tmp_path: Path) -> Path:
    return shutil.copytree(finished, tmp_path / "project")


def contents(folder: Path) -> dict[str, bytes | str]:
    """Every file's bytes and every link's target, by path."""
    paths = [path for path in folder.rglob("*") if path.is_symlink() or path.is_file()]
    return {
        str(path.relative_to(folder)): str(path.readlink()) if path.is_symlink() else path.read_bytes()
        for path in paths
        if "__pycache__" not in path.parts
    }


def changed(project: Path, before: dict[str, bytes | str]) -> list[str]:
    """Files that are not as before, but for those that a stage's next run resumes from."""
    folders = [rows.parent for rows in project.glob(".resume/**/rows.jsonl") if rows.stat().st_size]
    kept = {str(path.relative_to(project)) for folder in folders for path in folder.iterdir()}
    after = {name: content for name, content in contents(project).items() if name not in kept}
    return [name for name in before.keys() | after.keys() if before.get(name) != after.get(name)]


def says(message: str, words: str, project: Path) -> bool:
    pattern = ".*".join(map(re.escape, words.replace("PROJECT", str(project)).split("…")))
    return re.search(pattern, message) is not None


@pytest.mark.parametrize("stage, spoil, words", ROWS, ids=[f"{stage}: {words}" for stage, _, words in ROWS])
def test_a_bad_input(stage: str, spoil: Spoil, words: str, finished: Path, tmp_path: Path):
    project = tmp_path / "project"
    shutil.copytree(finished, project, ignore=shutil.ignore_patterns("pipeline", "stages"))  # this checkout's run
    with mock.patch.dict(os.environ):
        spoil(project)
        before = contents(project)
        with pytest.raises((UserError, OSError)) as error:
            run_here(project, stage)
    message = str(error.value)
    if isinstance(error.value, OSError):
        message = f"{error.value.strerror}: {error.value.filename}"
    assert says(message, words, project), message
    assert changed(project, before) == []


def set_variables(environment: dict[str, str]) -> None:
    os.environ.update(environment)


def ends_with_one_line(project: Path, stage: str, words: str, environment: dict[str, str]) -> None:
    """In a process of its own: exit code 1, one line, and every file as it was."""
    before = contents(project)
    done = run_stage(project, stage, partial(set_variables, environment))
    assert done.code == 1, done.stderr
    (line,) = done.complaint
    assert line.startswith("error: ") and says(line, words, project), line
    assert changed(project, before) == []


@pytest.mark.slow
@pytest.mark.parametrize(
    "folder, stage",
    [
        *(("data", stage) for stage in ("corpus", "tasks", "tokenize")),
        *(("models", stage) for stage in ("base_model", TRAIN, "release")),
        *((".resume", stage) for stage in (TRAIN, "chain_of_thought")),
        *(("results", stage) for stage in (EVALUATE, "compare", PERPLEXITY, "report")),
    ],
)
def test_a_full_disk(folder: str, stage: str, project: Path):
    params(corpus__microworld__pretrain_documents=30_000, base_model__scratch__hidden_size=256)(project)
    with spoil.small_disk(project, folder):
        ends_with_one_line(project, stage, f"No space left on device: {folder}/", {})


LOST = "the processes lost each other (…nowhere…): `dvc repro`"


@pytest.mark.slow
@pytest.mark.parametrize(
    "stage, spoiled, environment, words",
    [
        (TRAIN, params(train__accumulation=2), {"GLOO_SOCKET_IFNAME": "nowhere"}, LOST),
        (TRAIN, params(train__accumulation=1), {}, "train.accumulation is 1, but 2 processes share"),
        (EVALUATE, spoil.gone("data/tasks"), {}, "data/tasks holds no task"),
    ],
)
def test_launched_processes_that_fail_alike(
    stage: str, spoiled: Spoil, environment: dict[str, str], words: str, project: Path
):
    params(train__launcher="launchers/cpus.yaml", evaluate__launcher="launchers/cpus.yaml")(project)
    spoiled(project)
    ends_with_one_line(project, stage, words, environment)


CLUSTER = {"RANK": "0", "WORLD_SIZE": "1", "LOCAL_RANK": "0"}  # as a job of one process has them
ODD = {"TMPDIR": "/nowhere", "OMP_NUM_THREADS": "many", "CUDA_VISIBLE_DEVICES": "none", "DVC_ROOT": "TMP/odd"}
# `datasets` looks for a folder to write to when it is imported, so this needs a process of its own
HOME = "data set PROJECT/hub/books, split train cannot be read: [Errno 2] No such file or directory: '/proc/hub'"


@pytest.mark.parametrize(
    "spoiled, variables, told",
    [
        (params(train__steps=0), {}, "params.yaml: train.steps is 0, but must be at least 1 and at most 1000000"),
        pytest.param(spoil.hub(), {"HF_HOME": "/proc/hub"}, HOME, marks=pytest.mark.slow),
    ],
)
def test_a_mistake_ends_with_code_1_and_one_line(spoiled: Spoil, variables: dict[str, str], told: str, project: Path):
    spoiled(project)
    before = contents(project)
    done = run_as_module(project, "corpus", variables)
    assert (done.code, done.stderr) == (1, f"error: {told.replace('PROJECT', str(project))}\n")
    assert contents(project) == before


@pytest.mark.slow
@pytest.mark.parametrize(
    "stage, folder, odd",
    [
        (PERPLEXITY, "results/perplexity/quiet_star-1", ODD),
        (TRAIN, TRAINED, CLUSTER | {"ACCELERATE_MIXED_PRECISION": "foo"}),
        (TRAIN, TRAINED, CLUSTER | {"WORLD_SIZE": "abc"}),
        (TRAIN, TRAINED, {"RANK": "1", "WORLD_SIZE": "4"}),  # some clusters set these for every command
        ("report", "results/report", {"MPLBACKEND": "foo"}),
    ],
)
def test_odd_variables_change_nothing(
    stage: str, folder: str, odd: dict[str, str], finished: Path, project: Path, tmp_path: Path
):
    shutil.rmtree(project / folder)
    done = run_as_module(project, stage, {name: value.replace("TMP", str(tmp_path)) for name, value in odd.items()})
    assert done.code == 0, done.stderr
    assert contents(project / folder) == contents(finished / folder)


@pytest.mark.slow
def test_neither_dvc_lock_nor_the_cache_takes_anything_of_it(project: Path, capfd: pytest.CaptureFixture):
    make_repository(project, ("corpus",), call)
    call(project, "dvc", "commit", "-q", "-f")
    params(corpus__microworld__pretrain_documents=30_000)(project)
    before = contents(project)
    with spoil.small_disk(project, "data"):
        with pytest.raises(subprocess.CalledProcessError):
            call(project, "dvc", "repro", "corpus")
        after = contents(project)
    told = [line for line in capfd.readouterr().err.splitlines() if line.startswith(("error: ", "Traceback"))]
    assert len(told) == 1 and "No space left" in told[0]
    locked = [{n: c for n, c in some.items() if n.startswith(("dvc.lock", ".dvc/cache"))} for some in (before, after)]
    assert "dvc.lock" in before and locked[0] == locked[1]
    new = {name for name, content in after.items() if before.get(name) != content}
    assert not [name for name in new - {"data/filler"} if name.startswith(("data/", "models/", "results/"))]
