"""How property-based tests draw, and a finished run that tests of stages share."""

import os
import shutil
import signal
from collections.abc import Callable
from pathlib import Path

import pytest
from hypothesis import HealthCheck, settings

from tests.stage_runner import copy_project, run_stages

# the same examples in every run; on a loaded machine any one may be slow (`--hypothesis-profile default`: others)
settings.register_profile("suite", derandomize=True, deadline=None, suppress_health_check=[HealthCheck.too_slow])
settings.load_profile("suite")


# tests send Ctrl-C to processes, which a shell's background, and all that is started in it, has ignored
signal.signal(signal.SIGINT, signal.default_int_handler)


@pytest.fixture
def on_disk(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """What happens below ``tmp_path``, in order: files that are waited for, renamed or, as whole folders, removed."""
    happened: list[str] = []
    fsync, rename, rmtree = os.fsync, Path.rename, shutil.rmtree

    def name(path: Path) -> str:
        return str(path.relative_to(tmp_path))

    def note(what: str, call: Callable[..., object], *args: object) -> object:
        happened.append(what)
        return call(*args)

    def sync(file: int) -> None:
        note(f"sync {name(Path(f'/proc/self/fd/{file}').readlink())}", fsync, file)

    monkeypatch.setattr(os, "fsync", sync)
    monkeypatch.setattr(Path, "rename", lambda old, new: note(f"rename {name(old)} {name(new)}", rename, old, new))
    monkeypatch.setattr(shutil, "rmtree", lambda path: note(f"remove {name(path)}", rmtree, path))
    return happened


@pytest.fixture(scope="session")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A project whose stages have run. Copy it to change it."""
    folder = copy_project(tmp_path_factory.mktemp("project"))
    run_stages(folder)
    return folder
