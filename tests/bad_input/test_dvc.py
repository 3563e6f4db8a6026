"""Bad input in `dvc repro`: it fails, and neither dvc.lock nor the cache takes anything of it."""

import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from contextlib import nullcontext
from functools import partial
from pathlib import Path

import pytest

from tests.bad_input import spoil
from tests.bad_input.test_cases import contents
from tests.stage_runner import ENVIRONMENT, ROOT

pytestmark = pytest.mark.slow
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


BAD = {
    "a bad parameter": ("train", spoil.params(train__steps=0), "train.steps is 0", None),
    "a broken task file": ("tasks", spoil.torn("tasks/microworld/micro_rings.yaml"), "micro_rings.yaml", None),
    "a full disk": ("corpus", spoil.params(corpus__microworld__pretrain_documents=30_000), "No space left", "data"),
}


@pytest.mark.parametrize("name", BAD)
def test_dvc_takes_nothing_of_it(name: str, committed: Path, tmp_path: Path):
    stage, spoiled, named, full = BAD[name]
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
