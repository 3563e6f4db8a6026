"""What all tests share: how property tests draw their examples, and a finished run of the tiny project."""

import os
import shutil
import signal
from collections.abc import Callable
from pathlib import Path

os.environ["HF_HUB_OFFLINE"] = "1"  # before libraries load: no test waits for a network

# isort: split
import pytest
from hypothesis import HealthCheck, settings

from tests.stage_runner import copy_project, run_stages

# the same examples in every run (`--hypothesis-profile default`: new ones); a loaded machine may be slow at any
settings.register_profile("suite", derandomize=True, deadline=None, suppress_health_check=[HealthCheck.too_slow])
settings.load_profile("suite")

# a shell's background job ignores Ctrl-C, and so would the processes to which tests send it
signal.signal(signal.SIGINT, signal.default_int_handler)


@pytest.fixture
def on_disk(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Record what happens below ``tmp_path``: files that are synced or renamed, folders that are removed."""
    happened: list[str] = []
    fsync, rename, replace, rmtree = os.fsync, Path.rename, Path.replace, shutil.rmtree

    def name(path: Path) -> str:
        return str(path.relative_to(tmp_path))

    def note(what: str, call: Callable[..., object], *args: object) -> object:
        happened.append(what)
        return call(*args)

    def sync(file: int) -> None:
        note(f"sync {name(Path(f'/proc/self/fd/{file}').readlink())}", fsync, file)

    monkeypatch.setattr(os, "fsync", sync)
    monkeypatch.setattr(Path, "rename", lambda old, new: note(f"rename {name(old)} {name(new)}", rename, old, new))
    monkeypatch.setattr(Path, "replace", lambda old, new: note(f"replace {name(old)} {name(new)}", replace, old, new))
    monkeypatch.setattr(shutil, "rmtree", lambda path: note(f"remove {name(path)}", rmtree, path))
    return happened


@pytest.fixture(scope="session")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny project whose stages have all run. Copy it to change it."""
    folder = copy_project(tmp_path_factory.mktemp("project"))
    run_stages(folder)
    return folder
