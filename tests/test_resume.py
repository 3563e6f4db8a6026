"""Finished rows outlive a kill, and nothing else."""

import fcntl
import os
import shutil
import subprocess
import sys
import time
from importlib.metadata import version
from pathlib import Path

import pytest

from pipeline import resume
from pipeline.errors import UserError
from pipeline.resume import Scratch, fingerprint, unfinished
from tests.killing import same_threads
from tests.stage_runner import ROOT

CODE = Path(resume.__file__)
ROWS = [{"index": 0, "text": "é\n\u2028\x00", "loss": 0.1}, {"index": 1, "text": "", "loss": 1e-300}]
HOLD = """
import sys, time
from pathlib import Path
from pipeline import resume
with resume.unfinished("s", {"seed": int(sys.argv[1])}, [], Path(resume.__file__)) as scratch:
    scratch.add([{"index": 0}])
    print("held", flush=True)
    time.sleep(600)
"""


class KilledError(Exception):
    pass


@pytest.fixture(autouse=True)
def root(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("DVC_ROOT", str(tmp_path))
    return tmp_path


@pytest.fixture
def held(root: Path):
    """Another process that has the scratch of seed 1."""
    process = subprocess.Popen(
        [sys.executable, "-c", HOLD, "1"], cwd=ROOT, env=same_threads(), stdout=subprocess.PIPE, text=True
    )
    assert process.stdout.readline() == "held\n"
    yield process
    process.kill()
    process.wait()


def leave(rows: list[dict], seed: int = 1) -> None:
    """A run that ends badly after these rows."""
    with pytest.raises(KilledError), unfinished("s", {"seed": seed}, [], CODE) as scratch:
        scratch.add(rows)
        raise KilledError


def folders(root: Path) -> int:
    return len(list((root / ".resume/s").iterdir()))


def test_rows_are_there_for_the_next_run_and_gone_after_it(root: Path, caplog: pytest.LogCaptureFixture):
    caplog.set_level("INFO")
    leave(ROWS[:1])
    assert not caplog.messages
    leave(ROWS[1:])
    with unfinished("s", {"seed": 1}, [], CODE) as scratch:
        assert list(scratch.rows) == ROWS
    assert [line.partition(" in ")[0] for line in caplog.messages] == [f"going on from {n} rows" for n in (1, 2)]
    assert folders(root) == 0
    with unfinished("s", {"seed": 1}, [], CODE) as scratch:
        assert list(scratch.rows) == []


def test_a_row_cut_short_is_dropped_and_written_over(tmp_path: Path):
    path = tmp_path / "rows"
    Scratch(path).add(ROWS)
    whole = path.read_bytes()
    for cut in range(len(whole) + 1):
        path.write_bytes(whole[:cut])
        scratch = Scratch(path)
        assert list(scratch.rows) == ROWS[: whole[:cut].count(b"\n")]
        scratch.add(ROWS[len(scratch.rows) :])
        scratch.close()
        assert path.read_bytes() == whole


@pytest.mark.parametrize("line", [b"[]\n", b"5\n", b"null\n"])
def test_what_is_no_row_is_dropped(line: bytes, tmp_path: Path):
    path = tmp_path / "rows"
    Scratch(path).add(ROWS[:1])
    path.write_bytes(path.read_bytes() + line)
    assert list(Scratch(path).rows) == ROWS[:1]


@pytest.mark.parametrize("rest", [b"", b"\n", b'dex": 1}\n{"index": 2}\n'], ids=["to the end", "a line", "rows behind"])
def test_zeros_where_a_power_cut_came_first_are_dropped(rest: bytes, tmp_path: Path):
    path = tmp_path / "rows"
    Scratch(path).add(ROWS[:1])
    path.write_bytes(path.read_bytes() + bytes(5000) + rest)
    scratch = Scratch(path)
    assert list(scratch.rows) == ROWS[:1]
    scratch.add(ROWS[1:])
    assert list(scratch.rows) == ROWS == list(Scratch(path).rows)


def test_added_rows_are_on_the_disk(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    synced, fsync = [], os.fsync
    monkeypatch.setattr(os, "fsync", lambda file: synced.append(os.fstat(file).st_size) or fsync(file))
    scratch = Scratch(tmp_path / "rows")
    scratch.add(ROWS)
    assert synced == [(tmp_path / "rows").stat().st_size] and synced[0] > 60


def test_without_dvc_it_is_in_the_current_folder(root: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.delenv("DVC_ROOT")
    (root / "here").mkdir()
    monkeypatch.chdir(root / "here")
    leave(ROWS)
    assert folders(root / "here") == 1 and not (root / ".resume").exists()


def test_other_parameters_and_stages_have_rows_of_their_own(root: Path):
    leave(ROWS)
    leave([], seed=2)
    with pytest.raises(KilledError), unfinished("other", {"seed": 1}, [], CODE) as scratch:
        assert list(scratch.rows) == []
        raise KilledError
    with unfinished("s", {"seed": 2}, [], CODE) as scratch:
        assert list(scratch.rows) == []


@pytest.fixture
def code(root: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A project in which a.py imports b/c.py, and not d.py."""
    files = {"a": "from pipeline.b.c import f", "b/__init__": "", "b/c": "def f(): pass", "d": "import pipeline.a"}
    for name, text in files.items():
        path = root / f"pipeline/{name}.py"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    monkeypatch.setattr(resume, "ROOT", root)
    return root / "pipeline"


def test_everything_that_can_change_a_row_is_in_its_name(root: Path, code: Path, monkeypatch: pytest.MonkeyPatch):
    data = root / "data"
    for path in (data / "x", data / "y/z", root / "file"):
        path.parent.mkdir(exist_ok=True)
        path.write_text("1")

    def name(seed: int = 1) -> str:
        about = {"seed": seed, "temperature": 0.9}
        return fingerprint(about, [data, root / "file"], code / "a.py", resume.LIBRARIES)

    names = [name(), name(seed=2)]
    for path in (code / "a.py", code / "b/__init__.py", code / "b/c.py", data / "x", data / "y/z", root / "file"):
        path.write_text(f"{path.read_text()}#")
        names.append(name())
    (data / "x").rename(data / "w")
    names.append(name())
    for what, value in {
        "torch.get_num_threads": 1234,
        "torch.backends.cpu.get_cpu_capability": "NONE",
        "torch.cuda.is_available": True,
        "torch.cuda.get_device_name": "another GPU",
    }.items():
        monkeypatch.setattr(what, lambda value=value: value)
        if what != "torch.cuda.is_available":
            names.append(name())
    for library in ("torch", "transformers", "tokenizers", "accelerate", "peft"):
        monkeypatch.setattr(resume, "version", lambda one, changed=library: "0" if one == changed else version(one))
        names.append(name())
    assert len(set(names)) == len(names)
    (code / "d.py").write_text("# no part of the work")
    (code / "d.pyc").write_text("compiled")
    assert name() == names[-1]


def test_the_order_of_parameters_is_not_in_the_name(root: Path):
    one, two = ({"seed": 1, "temperature": 0.9}, {"temperature": 0.9, "seed": 1})
    assert fingerprint(one, [], CODE, ()) == fingerprint(two, [], CODE, ())


def test_a_copy_of_inputs_and_code_elsewhere_has_the_same_name(code: Path, root: Path, monkeypatch: pytest.MonkeyPatch):
    """An experiment runs in a temporary workspace."""
    (root / "x").write_text("1")
    name = fingerprint({}, [root / "x"], code / "a.py", ())
    copy = root / "copy"
    shutil.copytree(code, copy / "pipeline")
    shutil.copy(root / "x", copy)
    monkeypatch.setattr(resume, "ROOT", copy)
    assert fingerprint({}, [copy / "x"], copy / "pipeline/a.py", ()) == name


def test_a_second_process_is_refused_until_the_first_is_dead(held: subprocess.Popen, root: Path):
    with pytest.raises(UserError, match=f"^process {held.pid} is at the same work, in ") as told:
        leave(ROWS)
    assert "\n" not in str(told.value)
    held.kill()
    held.wait()
    with unfinished("s", {"seed": 1}, [], CODE) as scratch:
        assert list(scratch.rows) == [{"index": 0}]
        with pytest.raises(UserError, match=f"^process {os.getpid()} is at"):
            leave(ROWS)


def age(folder: Path, seconds: float) -> None:
    """As if nobody had touched it since."""
    for path in (*folder.iterdir(), folder):
        os.utime(path, (time.time() - seconds,) * 2)


def test_a_run_that_ends_well_removes_what_nobody_has_been_at_for_a_week(
    held: subprocess.Popen, root: Path, caplog: pytest.LogCaptureFixture
):
    """Other runs of the stage, killed together with it, each still find their own rows when they are run again."""
    caplog.set_level("INFO")
    (one,) = (root / ".resume/s").iterdir()
    age(one, resume.KEPT + 60)
    for seed in (2, 3, 4):
        leave(ROWS, seed)
        (newest,) = (folder for folder in (root / ".resume/s").iterdir() if folder.stat().st_mtime > time.time() - 60)
        age(newest, resume.KEPT + 60 if seed == 3 else resume.KEPT - 60)
    (root / ".resume/s/.nfs1").touch()
    (root / ".resume/s/half.gone").mkdir()
    with unfinished("s", {"seed": 2}, [], CODE):
        assert folders(root) == 6  # they may still go on, as long as nothing has ended well
    assert folders(root) == 3  # of seed 1, which is at work, seed 4, and the file that is no folder
    assert caplog.messages[-1].startswith("2 other runs in ") and caplog.messages[-1].endswith("kept for a week")
    held.kill()
    held.wait()
    for seed, rows in {1: [{"index": 0}], 4: ROWS, 3: []}.items():
        with unfinished("s", {"seed": seed}, [], CODE) as scratch:
            assert list(scratch.rows) == rows


def test_a_folder_that_vanishes_while_it_is_being_locked_is_made_again(root: Path, monkeypatch: pytest.MonkeyPatch):
    """Its last run removes it between this one's opening the lock and having it."""
    lock, calls = fcntl.flock, []

    def flock(file, how):
        calls.append(1)
        if len(calls) == 1:
            resume._remove(Path(file.name).parent)
        lock(file, how)

    monkeypatch.setattr(fcntl, "flock", flock)
    leave(ROWS)
    assert len(calls) == 2
    with unfinished("s", {"seed": 1}, [], CODE) as scratch:
        assert list(scratch.rows) == ROWS


@pytest.mark.parametrize("rows", [[], [{"index": 1}]], ids=["nothing done", "something done"])
def test_a_run_that_fails_leaves_only_what_another_can_go_on_from(rows: list[dict], root: Path):
    with pytest.raises(ValueError, match="bad"), unfinished("stage", {}, [], CODE) as scratch:
        if rows:
            scratch.add(rows)
        raise ValueError("bad")
    assert bool([path for path in (root / ".resume").rglob("*") if path.is_file()]) == bool(rows)
    with unfinished("stage", {}, [], CODE) as scratch:
        assert list(scratch.rows) == rows
