"""A finished run that tests of stages share."""

from pathlib import Path

import pytest

from tests.stage_runner import STAGES, copy_project, run_as_module


@pytest.fixture(scope="session")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A project whose stages have run, each by `python -m`. Copy it to change it."""
    folder = copy_project(tmp_path_factory.mktemp("project"))
    for stage in STAGES:
        done = run_as_module(folder, stage)
        assert done.code == 0, f"{stage}: {done.stderr}"
    return folder
