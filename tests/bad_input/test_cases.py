"""Each row of the table of bad inputs ends its stage with its one line and leaves every file as it was."""

import os
import shutil
from functools import partial
from pathlib import Path

import pytest

from tests.bad_input.case import Case
from tests.bad_input.cases import CASES
from tests.stage_runner import run_stage


def contents(folder: Path) -> dict[str, bytes | str]:
    """Every file's bytes and every link's target, by path."""
    found = {}
    for path in sorted(folder.rglob("*")):
        if path.is_symlink():
            found[str(path.relative_to(folder))] = str(path.readlink())
        elif path.is_file():
            found[str(path.relative_to(folder))] = path.read_bytes()
    return {name: content for name, content in found.items() if "__pycache__" not in name}


def set_variables(environment: dict[str, str]) -> None:
    os.environ.update(environment)


def unfinished_work(project: Path) -> set[str]:
    """The files of what a stage had done when it failed, which the next run goes on from."""
    folders = [rows.parent for rows in project.glob(".resume/**/rows.jsonl") if rows.stat().st_size]
    return {str(path.relative_to(project)) for folder in folders for path in folder.iterdir()}


def refused(project: Path, case: Case) -> str:
    """What the stage says, in its one line; it must end with code 1 and leave every file as it was."""
    before = contents(project)
    done = run_stage(project, case.stage, partial(set_variables, dict(case.environment)))
    assert done.code == 1, done.stderr
    assert len(done.complaint) == 1 and done.complaint[0].startswith("error: "), done.stderr
    after = {name: content for name, content in contents(project).items() if name not in unfinished_work(project)}
    assert [name for name in before.keys() | after.keys() if before.get(name) != after.get(name)] == []
    return done.complaint[0].removeprefix("error: ")


@pytest.mark.parametrize("case", CASES, ids=[f"{case.stage}: {case.wrong}" for case in CASES])
def test_a_bad_input(case: Case, finished: Path, tmp_path: Path):
    project = shutil.copytree(finished, tmp_path / "project")
    case.spoil(project)
    with case.during(project):
        told = refused(project, case)
    assert case.tells(told, project), told
