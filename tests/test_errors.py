"""How a command ends: the guard against another copy's code, Ctrl-C, exceptions in one line."""

import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from pipeline import errors

ROOT = Path(__file__).parents[1]


def test_code_from_elsewhere_is_refused(tmp_path: Path):
    shutil.copy(ROOT / "params.yaml", tmp_path)
    command = [sys.executable, "-m", "stages.corpus"]
    ran = subprocess.run(
        command, cwd=tmp_path, env={**os.environ, "PYTHONPATH": str(ROOT)}, capture_output=True, text=True
    )
    assert ran.returncode == 1
    assert ran.stderr.startswith("error: the code in use is ") and "Traceback" not in ran.stderr
    assert sorted(path.name for path in tmp_path.iterdir()) == ["params.yaml"]


def interrupted() -> None:
    raise KeyboardInterrupt


@pytest.fixture
def own_ctrl_c():
    """What the test makes of Ctrl-C ends with it."""
    before = signal.getsignal(signal.SIGINT)
    yield
    signal.signal(signal.SIGINT, before)


def test_ctrl_c_ends_a_command_as_a_shell_expects(monkeypatch: pytest.MonkeyPatch, own_ctrl_c: None):
    monkeypatch.chdir(ROOT)
    with pytest.raises(SystemExit) as end:
        errors.run(interrupted)
    assert end.value.code == 130
    assert signal.getsignal(signal.SIGINT) is signal.SIG_IGN  # a second one has nothing to end


@pytest.mark.parametrize("module", ["stages.train", "pipeline.plan", "pipeline.preset"])
def test_ctrl_c_while_libraries_are_loaded(module: str, tmp_path: Path):
    (tmp_path / "torch.py").write_text("import time\nprint('loading', flush=True)\ntime.sleep(60)\n")
    process = subprocess.Popen(
        [sys.executable, "-m", module],
        cwd=ROOT,
        env={**os.environ, "PYTHONPATH": str(tmp_path)},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    assert process.stdout.readline() == "loading\n"
    process.send_signal(signal.SIGINT)
    assert process.communicate(timeout=30) == ("", "") and process.returncode == 130


def test_importing_the_package_leaves_ctrl_c_alone():
    code = (
        "from signal import *; signal(SIGINT, default_int_handler); import pipeline; print(getsignal(SIGINT).__name__)"
    )
    told = subprocess.run([sys.executable, "-c", code], cwd=ROOT, check=True, capture_output=True, text=True)
    assert told.stdout == "default_int_handler\n"


@pytest.mark.parametrize(
    "error, told",
    [
        (
            ValueError("what a library says in one line of some length\nand what it adds"),
            "what a library says in one line of some length",
        ),
        (ValueError("one\n\n  two"), "one two"),
        (
            ValueError("it says what it is about in a line that ends so:\n what it is\n3"),
            "it says what it is about in a line that ends so: what it is",
        ),
        (KeyError("foo"), "KeyError: 'foo'"),
        (ValueError(), "ValueError"),
        (ValueError("\n"), "ValueError"),
    ],
)
def test_an_exception_in_one_line(error: Exception, told: str):
    assert errors.reason(error) == told


def test_only_a_users_mistake_hides_the_traceback():
    def broken() -> None:
        raise RuntimeError("a bug")

    with pytest.raises(RuntimeError):
        errors.run(broken)


def exhaust() -> None:
    torch.empty(2**50)  # more than there are addresses


def exhaust_python() -> None:
    raise MemoryError


def exhaust_a_gpu() -> None:
    raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB.\nMore words")


@pytest.mark.parametrize("stage", [exhaust, exhaust_python, exhaust_a_gpu])
def test_no_memory_left(stage: Callable[[], None]):
    with pytest.raises(SystemExit) as end:
        errors.run(stage)
    told = str(end.value.code)
    assert told.startswith("error: out of memory (") and "lower the stage's batch_size" in told and "\n" not in told


@pytest.mark.parametrize(
    "text, told",
    [("first\n  second", "first second"), ("a\x1b[31mb\x00", "a\ufffd[31mb\ufffd"), ("x" * 5000, "x" * 1000 + "…")],
)
def test_a_message_is_one_printable_line(text: str, told: str):
    def refuse() -> None:
        raise errors.UserError(text)

    with pytest.raises(SystemExit) as end:
        errors.run(refuse)
    assert end.value.code == f"error: {told}"


def test_a_complaint_of_the_system_names_the_file(tmp_path: Path):
    with pytest.raises(SystemExit) as end:
        errors.run(lambda: (tmp_path / "nothing").read_text())
    assert end.value.code == f"error: No such file or directory: {tmp_path / 'nothing'}"
