"""A stage of a spoiled project ends with one line and leaves every file as it was, under DVC as well."""

import os
import re
import shutil
import subprocess
import sys
from collections.abc import Callable
from contextlib import nullcontext
from functools import partial
from pathlib import Path
from unittest import mock

import pytest

from pipeline.errors import UserError
from tests.bad_input import spoil
from tests.bad_input.spoil import ROWS, Spoil, params
from tests.stage_runner import (
    ENVIRONMENT,
    EVALUATE,
    PERPLEXITY,
    ROOT,
    TRAIN,
    TRAINED,
    run_as_module,
    run_here,
    run_stage,
)


@pytest.fixture
def project(finished: Path, tmp_path: Path) -> Path:
    """A project that has run, to be spoiled."""
    return shutil.copytree(finished, tmp_path / "project")


def contents(folder: Path) -> dict[str, bytes | str]:
    """Every file's bytes and every link's target, by path."""
    found = {}
    for path in sorted(folder.rglob("*")):
        if path.is_symlink():
            found[str(path.relative_to(folder))] = str(path.readlink())
        elif path.is_file():
            found[str(path.relative_to(folder))] = path.read_bytes()
    return {name: content for name, content in found.items() if "__pycache__" not in name}


def changed(project: Path, before: dict[str, bytes | str]) -> list[str]:
    """Files that are not as before, but for those that a stage's next run resumes from."""
    folders = [rows.parent for rows in project.glob(".resume/**/rows.jsonl") if rows.stat().st_size]
    kept = {str(path.relative_to(project)) for folder in folders for path in folder.iterdir()}
    after = {name: content for name, content in contents(project).items() if name not in kept}
    return [name for name in before.keys() | after.keys() if before.get(name) != after.get(name)]


def says(message: str, words: str, project: Path) -> bool:
    """Whether the message has these ``words`` in their order."""
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


FULL, READ_ONLY = (spoil.small_disk, "No space left on device"), (spoil.immutable, "Operation not permitted")


@pytest.mark.slow
@pytest.mark.parametrize(
    "stage, folder, failure, changes",
    [
        ("corpus", "data", FULL, {"corpus__microworld__pretrain_documents": 30_000}),
        ("tasks", "data", FULL, {}),
        ("tokenize", "data", FULL, {}),
        ("base_model", "models", FULL, {"base_model__scratch__hidden_size": 256}),
        (TRAIN, "models", FULL, {}),
        (TRAIN, ".resume", FULL, {}),
        (TRAIN, ".resume/train/quiet_star-1", READ_ONLY, {}),
        (EVALUATE, "results", FULL, {}),
        ("compare", "results/compare", READ_ONLY, {}),
        ("chain_of_thought", ".resume", FULL, {}),
        (PERPLEXITY, "results", FULL, {}),
        ("report", "results/report", READ_ONLY, {}),
        ("release", "models", FULL, {}),
    ],
)
def test_a_stage_that_cannot_write(stage: str, folder: str, failure: tuple, changes: dict[str, object], project: Path):
    params(**changes)(project)
    cannot_write, message = failure
    with cannot_write(project, folder):
        ends_with_one_line(project, stage, f"{message}: {folder}/", {})


@pytest.mark.slow
@pytest.mark.parametrize(
    "accumulation, environment, words",
    [
        (2, {"GLOO_SOCKET_IFNAME": "nowhere"}, "the processes lost each other (…nowhere…): `dvc repro`"),
        (1, {}, "train.accumulation is 1, but 2 processes share"),
    ],
)
def test_launched_processes_that_fail_alike(accumulation: int, environment: dict[str, str], words: str, project: Path):
    params(train__launcher="launchers/cpus.yaml", train__accumulation=accumulation)(project)
    ends_with_one_line(project, TRAIN, words, environment)


CLUSTER = {"RANK": "0", "WORLD_SIZE": "1", "LOCAL_RANK": "0"}  # as a job of one process has them
ODD = {"TMPDIR": "/nowhere", "OMP_NUM_THREADS": "many", "CUDA_VISIBLE_DEVICES": "none", "DVC_ROOT": "/nowhere"}
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
        ("report", "results/report", {"MPLBACKEND": "foo"}),
    ],
)
def test_odd_variables_change_nothing(stage: str, folder: str, odd: dict[str, str], finished: Path, project: Path):
    shutil.rmtree(project / folder)
    done = run_as_module(project, stage, odd)
    assert done.code == 0, done.stderr
    assert contents(project / folder) == contents(finished / folder)


PATH = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"


def run(project: Path, *command: str) -> subprocess.CompletedProcess:
    environment = {**os.environ, **ENVIRONMENT, "PATH": PATH, "DVC_NO_ANALYTICS": "1"}
    return subprocess.run(command, cwd=project, env=environment, capture_output=True, text=True, check=False)


@pytest.fixture(scope="module")
def committed(finished: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A project that has run, with its outputs in DVC's cache."""
    project = shutil.copytree(finished, tmp_path_factory.mktemp("dvc") / "project")
    shutil.copy(ROOT / "dvc.yaml", project)
    for command in (("git", "init", "-q"), ("dvc", "init", "-q"), ("dvc", "commit", "-q", "-f")):
        done = run(project, *command)
        assert done.returncode == 0, done.stderr
    return project


def kept(project: Path) -> dict[str, bytes | str]:
    """dvc.lock and the cache."""
    return {"dvc.lock": (project / "dvc.lock").read_bytes()} | contents(project / ".dvc/cache")


@pytest.mark.slow
@pytest.mark.parametrize(
    "stage, spoiled, named, full",
    [
        ("train@quiet_star-1", params(train__steps=0), "train.steps is 0", None),
        ("corpus", params(corpus__microworld__pretrain_documents=30_000), "No space left", "data"),
    ],
)
def test_neither_dvc_lock_nor_the_cache_takes_anything_of_it(
    stage: str, spoiled: Spoil, named: str, full: str | None, committed: Path, tmp_path: Path
):
    project = shutil.copytree(committed, tmp_path / "project", symlinks=True)
    during: Callable = partial(spoil.small_disk, path=full) if full else nullcontext
    spoiled(project)
    before, files = kept(project), contents(project)
    with during(project):
        done = run(project, "dvc", "repro", "--single-item", stage)
        after = contents(project)
    assert done.returncode != 0
    assert sum(line.startswith("error: ") and named in line for line in done.stderr.splitlines()) == 1, done.stderr
    assert "Traceback" not in done.stderr
    assert kept(project) == before
    ours = {path: content for path, content in after.items() if path.startswith(("data/", "models/", "results/"))}
    ours.pop("data/filler", None)
    assert ours.items() <= files.items()  # DVC removes a stage's outputs before it runs; nothing else is there
