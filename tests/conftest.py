"""A finished run that tests of stages share."""

from pathlib import Path

import pytest

from tests.stage_runner import copy_project, run_stages


@pytest.fixture(scope="session")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A project whose stages have run. Copy it to change it."""
    folder = copy_project(tmp_path_factory.mktemp("project"))
    run_stages(folder)
    return folder
