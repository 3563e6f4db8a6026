"""How property-based tests draw, and a finished run that tests of stages share."""

from pathlib import Path

import pytest
from hypothesis import HealthCheck, settings

from tests.stage_runner import copy_project, run_stages

# the same examples in every run; on a loaded machine any one may be slow (`--hypothesis-profile default`: others)
settings.register_profile("suite", derandomize=True, deadline=None, suppress_health_check=[HealthCheck.too_slow])
settings.load_profile("suite")


@pytest.fixture(scope="session")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A project whose stages have run. Copy it to change it."""
    folder = copy_project(tmp_path_factory.mktemp("project"))
    run_stages(folder)
    return folder
