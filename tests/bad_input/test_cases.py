"""A stage of a spoiled project ends with one line and leaves every file as it was."""

import os
import re
import shutil
from functools import partial
from pathlib import Path
from unittest import mock

import pytest

from pipeline.errors import UserError
from tests.bad_input import spoil
from tests.bad_input.spoil import ROWS, Spoil, params
from tests.stage_runner import run_here, run_stage


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
    """The stage ends with a message that has these words, and leaves every file as it was."""
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
        ("train", "models", FULL, {}),
        ("train", ".resume", FULL, {}),
        ("train", ".resume/train/quiet_star", READ_ONLY, {}),
        ("evaluate", "results", FULL, {}),
        ("compare", "results/compare", READ_ONLY, {}),
        ("chain_of_thought", ".resume", FULL, {}),
        ("perplexity", "results", FULL, {}),
        ("report", "results/report", READ_ONLY, {}),
        ("release", "models", FULL, {}),
    ],
)
def test_a_stage_that_cannot_write(
    stage: str, folder: str, failure: tuple, changes: dict[str, object], finished: Path, tmp_path: Path
):
    project = shutil.copytree(finished, tmp_path / "project")
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
def test_launched_processes_that_fail_alike(
    accumulation: int, environment: dict[str, str], words: str, finished: Path, tmp_path: Path
):
    project = shutil.copytree(finished, tmp_path / "project")
    params(train__launcher="launchers/cpus.yaml", train__accumulation=accumulation)(project)
    ends_with_one_line(project, "train", words, environment)
