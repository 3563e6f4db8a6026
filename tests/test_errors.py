"""How a command ends: one line for a mistake, Ctrl-C, other code than this folder's, how long a stage took."""

import os
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from pipeline import errors

ROOT = Path(__file__).parents[1]


@pytest.fixture(autouse=True)
def as_a_command(monkeypatch: pytest.MonkeyPatch):
    """In the project's root; what the command makes of Ctrl-C ends with the test."""
    monkeypatch.chdir(ROOT)
    before = signal.getsignal(signal.SIGINT)
    yield
    signal.signal(signal.SIGINT, before)


def ended(command: Callable[[], None]) -> object:
    """The exit code, or the line that comes with exit code 1."""
    with pytest.raises(SystemExit) as end:
        errors.run(command)
    return end.value.code


def fails(error: BaseException) -> Callable[[], None]:
    def command() -> None:
        raise error

    return command


def test_code_from_elsewhere_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.chdir(tmp_path)
    assert str(ended(lambda: (tmp_path / "written").touch())).startswith("error: the code in use is ")
    assert not (tmp_path / "written").exists()
    errors.run((tmp_path / "written").touch, anywhere=True)
    assert (tmp_path / "written").exists()


def test_ctrl_c_ends_a_command_as_a_shell_expects():
    assert ended(fails(KeyboardInterrupt())) == 130
    assert signal.getsignal(signal.SIGINT) is signal.SIG_IGN  # a second Ctrl-C has nothing to end


def loading(tmp_path: Path, *words: str) -> subprocess.Popen:
    """A process of Python that is loading torch, and prints its handler of Ctrl-C."""
    code = "import signal, time\nprint(signal.getsignal(signal.SIGINT).__name__, flush=True)\ntime.sleep(60)\n"
    (tmp_path / "torch.py").write_text(code)
    environment = {**os.environ, "PYTHONPATH": str(tmp_path)}
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
    return subprocess.Popen([sys.executable, *words], cwd=ROOT, env=environment, **pipes)


@pytest.mark.parametrize(
    "words", ["-m stages.train", "-u -m stages.train", "-m pipeline.plan", "-m pipeline.publish.authors"]
)
def test_ctrl_c_while_libraries_are_loaded(words: str, tmp_path: Path):
    process = loading(tmp_path, *words.split())
    assert process.stdout.readline() == "<lambda>\n"
    process.send_signal(signal.SIGINT)
    assert process.communicate(timeout=30) == ("", "") and process.returncode == 130


@pytest.mark.parametrize(
    "words", ["pipeline.preset scale=smoke", "pipeline.report.check -h", "stages.inputs -h", "stages.compare -h"]
)
def test_a_command_that_needs_no_model_does_not_load_torch(words: str):
    """Loading torch and transformers takes seconds."""
    done = subprocess.run([sys.executable, "-X", "importtime", "-m", *words.split()], cwd=ROOT, capture_output=True)
    loaded = {line.split(b"|")[-1].strip() for line in done.stderr.splitlines() if line.startswith(b"import time:")}
    assert b"pipeline.errors" in loaded and not loaded & {b"torch", b"transformers"}


def test_importing_the_package_leaves_ctrl_c_alone(tmp_path: Path):
    process = loading(tmp_path, "-c", "from signal import *; signal(SIGINT, default_int_handler); import pipeline")
    assert process.stdout.readline() == "default_int_handler\n"
    process.kill()
    process.communicate()


def test_an_exception_in_one_line():
    sentence = "what a library says in one line of some length"
    told = {
        f"{sentence}\nand what it adds": sentence,
        "one\n\n  two": "one two",
        f"{sentence}:\n what it is\n3": f"{sentence}: what it is",
        "\n": "ValueError",
        "": "ValueError",
    }
    assert {text: errors.reason(ValueError(text)) for text in told} == told
    assert errors.reason(KeyError("foo")) == "KeyError: 'foo'"


def test_only_a_users_mistake_hides_the_traceback():
    for error in (RuntimeError("a bug"), OSError("a library's own")):
        with pytest.raises(type(error)):
            errors.run(fails(error))


def test_no_memory_left():
    on_a_gpu = torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB.\nMore words")
    for command in (lambda: torch.empty(2**50), fails(MemoryError()), fails(on_a_gpu)):
        told = str(ended(command))
        assert told.startswith("error: out of memory (") and "lower the stage's batch_size" in told and "\n" not in told


def test_a_message_is_one_printable_line(tmp_path: Path):
    words = {"first\n  second": "first second", "a\x1b[31mb\x00": "a\ufffd[31mb\ufffd", "x" * 5000: "x" * 1000 + "…"}
    assert {text: ended(fails(errors.UserError(text))) for text in words} == {t: f"error: {words[t]}" for t in words}
    path = tmp_path / "nothing"  # a complaint of the system names the file
    assert ended(path.read_text) == f"error: No such file or directory: {path}"


def test_durations():
    words = {0.2: "0 s", 59.4: "59 s", 59.6: "1 min 0 s", 192: "3 min 12 s", 3600: "1 h 0 min", 93_661: "1 d 2 h"}
    assert {seconds: errors.duration(seconds) for seconds in words} == words


def test_a_stage_says_how_long_it_took_and_needs_its_arguments(monkeypatch, capsys):
    called: list[tuple[str, ...]] = []
    monkeypatch.setattr(sys, "argv", ["/stages/train.py", "pause", "1"])
    monkeypatch.setattr("time.monotonic", lambda: errors.STARTED + 192)
    errors.run_stage(lambda *arguments: called.append(arguments), "METHOD", "SEED")
    assert called == [("pause", "1")]
    assert capsys.readouterr().err == "train pause 1: 3 min 12 s\n"
    with pytest.raises(SystemExit, match="^error: no$"):
        errors.run_stage(lambda *_: fails(errors.UserError("no"))(), "METHOD", "SEED")
    monkeypatch.setenv("LOCAL_RANK", "0")  # in one of several processes, the one that launched them tells
    errors.run_stage(lambda *_: None, "METHOD", "SEED")
    assert capsys.readouterr().err == ""
    monkeypatch.setattr(sys, "argv", ["/stages/train.py", "pause"])
    with pytest.raises(SystemExit, match=r"^error: usage: python -m stages.train METHOD SEED \(all else is in"):
        errors.run_stage(print, "METHOD", "SEED")
