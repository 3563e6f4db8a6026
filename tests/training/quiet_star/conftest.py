"""A folder of its own for each test's checkpoints, and none that a slow machine takes and the next run then finds."""

import math
from collections.abc import Iterator
from pathlib import Path

import pytest


@pytest.fixture(scope="module", autouse=True)
def no_checkpoint_unless_asked() -> Iterator[None]:
    """Runs of one test differ in settings and share a folder, where a stage has one for its settings (`resume`)."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("pipeline.training.checkpoints.LEAST_SECONDS", math.inf)
        yield


@pytest.fixture(autouse=True)
def own_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
